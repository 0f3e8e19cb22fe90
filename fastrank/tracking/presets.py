"""What `watch(metrics=...)` may ask for: presets, and lists of kinds."""

from __future__ import annotations

from collections.abc import Iterable

from fastrank.errors import InputError
from fastrank.metrics import OF_SPECTRUM

#: Singular values kept per source and step, and singular vectors compared ([U] Fig. 3 uses 15).
TOP = 15

#: What a preset measures: sources, and figures of each spectrum beside its rank.
BASIC = ("frobenius", "stable_rank", "effective_rank")
PRESETS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "light": (frozenset({"act", "logits"}), BASIC),
    "default": (frozenset({"act", "logits", "weight", "grad", "align"}), BASIC),
    "full": (frozenset({"act", "logits", "weight", "grad", "align"}), tuple(OF_SPECTRUM)),
}
#: What a list of kinds may name: also "bound", [U] eq. 3 of every weight gradient, which no preset has: it takes the
#: rank of the layer's whole input, all patches of a convolution included.
KINDS = PRESETS["default"][0] | {"bound"}


def parse_metrics(metrics: str | Iterable[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    if isinstance(metrics, str):
        if metrics not in PRESETS:
            raise InputError("metrics", f"{', '.join(PRESETS)} or a list of {', '.join(sorted(KINDS))}", repr(metrics))
        return PRESETS[metrics]
    if not isinstance(metrics, Iterable):
        raise InputError("metrics", f"{', '.join(PRESETS)} or a list of kinds", repr(metrics))
    kinds = frozenset(metrics)
    if not kinds or kinds - KINDS:
        raise InputError("metrics", f"some of {', '.join(sorted(KINDS))}", sorted(kinds - KINDS) or "none")
    return kinds | ({"grad"} if "bound" in kinds else set()), BASIC
