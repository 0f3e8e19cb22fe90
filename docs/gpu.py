"""Writes the generated part of gpu.md: `python docs/gpu.py`. A test holds the page to what this prints."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import torch
from fastrank.kernels.cost import DEVICES, Launch, limiter, predict, roofline
from fastrank.kernels.gram import cost as gram
from fastrank.kernels.occupancy import MULTIPROCESSORS
from fastrank.kernels.tempered_ce import cost as loss

PAGE = Path(__file__).with_name("gpu.md")
BEGIN, END = "<!-- begin: python docs/gpu.py -->\n", "<!-- end -->\n"

#: Ops on the shapes that `fastrank bench --gpu-check` times too.
CASES: dict[str, tuple[Launch, ...]] = {
    f"loss and gradient, {rows:,} x {classes:,}, bf16": (
        loss.forward(rows, classes, torch.bfloat16) + loss.backward(rows, classes, torch.bfloat16)
    )
    for rows, classes in ((256, 1000), (256, 21_841), (8192, 32_000), (8192, 128_256))
}
for mode in ("exact", "fast"):
    CASES |= {
        f"gram_dual, {n:,} x {d:,}, fp32, {mode}": gram.dual(n, d, mode=mode) for n, d in ((128, 2048), (128, 10_000))
    }
    CASES |= {
        f"gram_accumulate_, {n:,} x {d:,}, fp32, {mode}": gram.accumulate(n, d, mode=mode)
        for n, d in ((4096, 512), (100_000, 1000))
    }


def generated() -> str:
    """The tables, as Markdown."""
    return "\n".join([_devices(), _predictions(), _kernels(), _resources()])


def _devices() -> str:
    lines = ["### Devices\n", "| | memory | bandwidth | fp32 | fp64 | SMs | source |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| `{name}` {d.name} | {d.memory / 1e9:.0f} GB | {d.bandwidth / 1e12:.3g} TB/s | "
        f"{d.flops['fp32'] / 1e12:g} TFLOPS | {d.flops['fp64'] / 1e12:g} TFLOPS | {d.sms} | {d.source} |"
        for name, d in DEVICES.items()
    ]
    return "\n".join([*lines, ""])


def _predictions() -> str:
    names = list(DEVICES)
    lines = [
        "### Ops: roofline / predicted, in microseconds\n",
        f"| op | launches | bytes | flops | {' | '.join(names)} | measured |",
        "|---|" + "---|" * (len(names) + 4),
    ]
    for case, launches in CASES.items():
        times = [f"{_us(roofline(launches, d))} / {_us(predict(launches, d))}" for d in DEVICES.values()]
        moved, work = sum(x.bytes for x in launches), sum(sum(x.flops.values()) for x in launches)
        lines.append(f"| {case} | {len(launches)} | {_si(moved)}B | {_si(work)} | {' | '.join(times)} | not yet |")
    return "\n".join([*lines, ""])


def _kernels() -> str:
    columns = ("op", "kernel", "blocks", "read", "written", "asked for", "flops", "issued", "bound by", "roofline us",
               "predicted us")  # fmt: skip
    lines = ["### Launch by launch, on an H100\n", f"| {' | '.join(columns)} |", "|---|" + "---|" * (len(columns) - 1)]
    h100 = DEVICES["h100"]
    for case in list(CASES)[2:6]:
        for x in CASES[case]:
            issued = x.flops if x.issued is None else x.issued
            asked = x.read if x.requested is None else x.requested
            cells = (
                case, f"`{x.kernel}`", x.blocks or "", f"{_si(x.read)}B", f"{_si(x.written)}B", f"{_si(asked)}B",
                _si(sum(x.flops.values())), _si(sum(issued.values())), limiter(x, h100), _us(roofline([x], h100)),
                _us(predict([x], h100)),
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def _resources() -> str:
    loss_claims, gram_claims = (
        importlib.import_module(f"fastrank.kernels.{op}.config").CLAIMS for op in ("tempered_ce", "gram")
    )
    lines = [
        "### Registers a thread (at most) and blocks a multiprocessor (at least) that the tuning counts on\n",
        "| loss | plain | full | nested | fp64 plain | fp64 full |",
        "|---|---|---|---|---|---|",
    ]
    rows: dict[str, list[str]] = {}
    for name, claim in loss_claims.items():
        rows.setdefault(" ".join(name.split()[:2]), []).append(f"{claim.registers}, {claim.blocks}")
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items() if len(cells) > 1]
    lines += ["", "| other | |", "|---|---|"]
    rest = {"loss: reduce": loss_claims["reduce"], **gram_claims}
    lines += [f"| {name} | {claim.registers}, {claim.blocks} |" for name, claim in rest.items()]
    archs = ", ".join(f"sm_{arch}" for arch in MULTIPROCESSORS)
    checked = (
        f"Nothing spills or uses local memory: the CUDA kernels and the loss with every option are compiled for "
        f"{archs}, the loss's other variants for sm_90 and, where registers are many, sm_89."
    )
    return "\n".join([*lines, "", checked, ""])


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.3g}" if seconds < 1e-3 else f"{1e6 * seconds:,.0f}"


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def updated(page: str) -> str:
    """`page` with its generated part anew."""
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{generated()}\n{END}", page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
