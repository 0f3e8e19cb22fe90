"""The kernels as torch's operators `fastrank::tempered_ce` and `fastrank::tempered_ce_backward`."""

from __future__ import annotations

from fastrank.kernels.tempered_ce import layout, native, reference
from fastrank.kernels.tempered_loss.register import register


def _kernels(impl: str):
    if impl == "native":
        return native
    from fastrank.kernels.tempered_ce import triton

    return triton


tempered_ce, tempered_ce_backward = register(
    "tempered_ce", _kernels, reference.tempered_cross_entropy, layout.outputs, options="bool stats, "
)
