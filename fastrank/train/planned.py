"""`fastrank plan`: a model by name on the meta device, its plan as tables or as JSON."""

from __future__ import annotations

import io
import json
import shutil
from typing import Any

import torch

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.plan import Cost, Plan, cuts, plan
from fastrank.tracking_cost import LIBRARY_SHARE, Work
from fastrank.train.models import build_model

#: Layers that the table shows; the rest are one line (JSON has them all).
SHOWN = 20


def plan_named(
    model: str, *, batch: int, image: int, classes: int = 1000, channels: int = 3, kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Plan:  # fmt: skip
    """The plan of a model by its name (timm's or the package's own); `options` as of `fastrank.plan.plan`."""
    for name, value in (("batch", batch), ("image", image), ("classes", classes), ("channels", channels)):
        if value < (2 if name == "batch" else 1):
            raise InputError(name, f"a whole number >= {2 if name == 'batch' else 1}", value)
    with torch.device("meta"):
        network = build_model(model, classes, channels, image, kwargs or {})
    return plan(network, torch.empty(batch, channels, image, image, device="meta"), **options)


def to_json(found: Plan, title: str, budget: float | None) -> str:
    """Everything that the tables show, and every matrix."""
    everything = {
        "what": f"{title}: a prediction, nothing was run",
        "device": {"name": found.device.name, "source": found.device.source},
        "assumed": _assumptions(found),
        "step": {"flops": found.step_flops, "ms": found.step_ms, "precision": found.precision},
        "tracked_step": _figures(found.cost()),
        "every": found.every,
        "share": found.share(),
        "memory": {"kept": found.kept, "temporary": found.temporary},
        "kinds": {kind: _figures(found.cost(works)) for kind, works in found.by(_kind).items()},
        "layers": {layer: _figures(found.cost(works)) for layer, works in found.by(_layer).items()},
        "matrices": [
            {"kind": w.kind, "layer": w.layer, "source": w.source, "n": w.n, "d": w.d,
             "dtype": str(w.dtype).removeprefix("torch."), **_figures(found.cost([w]))}
            for w in found.works
        ],
    }  # fmt: skip
    if budget is not None:
        everything["budget"] = {"share": budget, "cuts": [vars(cut) for cut in cuts(found, budget)]}
    return json.dumps(everything, indent=1)


def to_text(found: Plan, title: str, budget: float | None, width: int | None = None) -> str:
    """Tables: kinds, the dearest layers, totals, and ways to a budget."""
    box, text = require("rich.box", "the plan"), io.StringIO()
    width = width or max(100, shutil.get_terminal_size((140, 24)).columns)
    console = require("rich.console", "the plan").Console(file=text, width=width, highlight=False, markup=False)

    def table(first: str, rows: list[tuple[str, str, Cost]], caption: str) -> None:
        grid = require("rich.table", "the plan").Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
        grid.add_column(first, no_wrap=True)
        grid.add_column("matrices", justify="left" if first == "layer" else "right")
        for column in ("launches", "bytes", "flops", "roofline ms", "kernels ms", "library flops", "ms *"):
            grid.add_column(column, justify="right", no_wrap=True)
        for name, matrices, c in rows:
            grid.add_row(
                name, matrices, str(c.launches), _si(c.bytes) + "B", _si(c.flops), f"{c.roofline_ms:.3f}",
                f"{c.kernel_ms:.2f}", _si(c.library_flops), f"{c.library_ms:.2f}",
            )  # fmt: skip
        console.print(grid)

    device, all_of_it = found.device, found.cost()
    console.print(f"{title}: a prediction, nothing was run")
    console.print(f"{device.name} ({device.source}): {_peaks(found)}")
    layers = found.by(_layer)
    dear = sorted(layers, key=lambda name: -found.cost(layers[name]).ms)
    shown = [(name, _shapes(layers[name]), found.cost(layers[name])) for name in dear[:SHOWN]]
    if rest := [work for name in dear[SHOWN:] for work in layers[name]]:
        shown.append((f"{len(dear) - SHOWN} more", str(len(rest)), found.cost(rest)))
    table("layer", shown, "the dearest first, each as if it were measured alone; all of them with --json")
    kinds = [(kind, str(len(works)), found.cost(works)) for kind, works in found.by(_kind).items()]
    table(
        "figures", [*kinds, ("a tracked step", str(all_of_it.matrices), all_of_it)],
        "roofline: the floor of these products from cold memory. kernels: our kernels as they are cut, and one launch "
        "latency for each of torch's small operations. * factorisations timed as a whole: "
        + _assumptions(found)["library"],
    )  # fmt: skip
    console.print(
        f"training step: {_si(found.step_flops)} flops ({found.precision}), {found.step_ms:.1f} ms at an assumed "
        f"{100 * found.utilisation:g} % of the peak"
    )
    console.print(
        f"tracking: {all_of_it.ms:.1f} ms a tracked step, every {found.every}: +{100 * found.share():.3g} % of training"
    )
    if followed := _followed(found):
        console.print(f"an average step: {followed}")
    console.print(f"memory: {_si(found.kept)}B kept between steps, {_si(found.temporary)}B at most while measuring")
    if budget is not None:
        _print_cuts(console, found, budget)
    return text.getvalue()


def _print_cuts(console: Any, found: Plan, budget: float) -> None:
    options = cuts(found, budget)
    if not options:
        console.print(f"budget {100 * budget:g} %: within it")
        return
    console.print(f"budget {100 * budget:g} %: over it; any one of these is predicted to reach it:")
    for cut in options:
        first = ", ".join(repr(name) for name in cut.kept[:6])
        more = f", and {len(cut.kept) - 6} more (all of them with --json)" if len(cut.kept) > 6 else ""
        ask = {"every": "", "light": 'metrics="light", '}.get(cut.change, f"{cut.change}=[{first}{more}], ")
        console.print(f"  watch(..., {ask}every={cut.every}): +{100 * cut.share:.3g} %", markup=False)


def _assumptions(found: Plan) -> dict[str, Any]:
    measured = found.device.name == "CPU"
    library = (
        "their flops at the rate measured here for one size" if measured
        else f"their flops at an assumed {100 * LIBRARY_SHARE:g} % of the peak; no roofline claim"
    )  # fmt: skip
    return {
        "utilisation": found.utilisation,
        "launch_us": 1e6 * found.device.launch,
        "library": library,
        "weights and gradients": _followed(found) or "each computed anew",
        "every_figure": "predicted, not measured",
    }


def _followed(found: Plan) -> str:
    """What is not computed anew at every step."""
    of = {how: [work for work in found.works if work.how == how] for how in ("carried", "factors", "sketch")}
    parts = []
    if of["carried"]:
        periods = sorted(work.period for work in of["carried"])
        spread = f"{periods[0]}" if periods[0] == periods[-1] else f"{periods[0]} to {periods[-1]}"
        parts.append(f"{len(of['carried'])} weights are carried, their exact spectra at most every {spread} steps")
    for how, text in (("factors", "from their factors"), ("sketch", "from a sketch")):
        if of[how]:
            parts.append(f"{len(of[how])} gradients are {text}")
    return "; ".join(parts) and "; ".join(parts) + "; the first measured step computes every spectrum and takes longer"


def _peaks(found: Plan) -> str:
    rates = ", ".join(f"{unit} {_si(found.device.flops[unit])}flop/s" for unit in ("fp32", "fp64"))
    return f"{_si(found.device.bandwidth)}B/s, {rates}, {1e6 * found.device.launch:.2g} us a launch" + (
        "" if found.device.name == "CPU" else " (assumed)"
    )


def _figures(c: Cost) -> dict[str, float]:
    return vars(c) | {"ms": c.ms}


def _kind(work: Work) -> str:
    return work.kind


def _layer(work: Work) -> str:
    return work.layer


def _shapes(works: list[Work]) -> str:
    """act 128x4096 | weight, grad 512x4608 | input 512x4608"""
    sources: dict[tuple[int, int], list[str]] = {}
    for work in works:
        names = sources.setdefault((work.n, work.d), [])
        if work.source not in names:
            names.append(work.source)
    return " | ".join(f"{', '.join(names)} {n}x{d}" for (n, d), names in sources.items())


def _si(value: float) -> str:
    """1234567 as "1.23 M"."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
