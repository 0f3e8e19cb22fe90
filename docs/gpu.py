"""Writes the generated part of gpu.md: `python docs/gpu.py`. A test holds the page to what this prints."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from fastrank.kernels.cost import DEVICES, Launch, limiter, predict, roofline
from fastrank.kernels.gram import config as gram_config
from fastrank.kernels.gram import cost as gram
from fastrank.kernels.gram import cost_patches
from fastrank.kernels.occupancy import MULTIPROCESSORS
from fastrank.kernels.rsvd import config as rsvd_config
from fastrank.kernels.rsvd import cost as rsvd
from fastrank.kernels.small_eigh import config as small_eigh_config
from fastrank.kernels.small_eigh import cost as small_eigh
from fastrank.kernels.tempered_ce import config
from fastrank.kernels.tempered_ce import cost as loss
from fastrank.kernels.tempered_mse import config as mse_config
from fastrank.kernels.tempered_mse import cost as squared_error

PAGE = Path(__file__).with_name("gpu.md")
BEGIN, END = "<!-- begin: python docs/gpu.py -->\n", "<!-- end -->\n"

#: The weights of a ResNet-50 as matrices [out, in].
RESNET50 = [(64, 147), *(
    shape
    for width, blocks, before in ((64, 3, 64), (128, 4, 256), (256, 6, 512), (512, 3, 1024))
    for block in range(blocks)
    for shape in (
        (width, 4 * width if block else before), (width, 9 * width), (4 * width, width),
        *([] if block else [(4 * width, before)]),
    )
), (1000, 2048)]  # fmt: skip
#: Ops on the shapes that `fastrank bench --gpu-check` times too.
CASES: dict[str, tuple[Launch, ...]] = {
    f"loss and gradient, {rows:,} x {classes:,}, bf16": (
        loss.forward(rows, classes, torch.bfloat16) + loss.backward(rows, classes, torch.bfloat16)
    )
    for rows, classes in ((256, 1000), (256, 21_841), (8192, 32_000), (8192, 128_256))
}
CASES["squared error and gradient, 1,024 x 1,000, bf16"] = (
    *squared_error.forward(1024, 1000, torch.bfloat16),
    *squared_error.backward(1024, 1000, torch.bfloat16),
)
for mode in ("exact", "fast"):
    CASES |= {
        f"gram_dual, {n:,} x {d:,}, fp32, {mode}": gram.dual(n, d, mode=mode) for n, d in ((128, 2048), (128, 10_000))
    }
    CASES |= {
        f"gram_accumulate_, {n:,} x {d:,}, fp32, {mode}": gram.accumulate(n, d, mode=mode)
        for n, d in ((4096, 512), (100_000, 1000))
    }
    CASES |= {
        f"gram_patches_, 3 x 3 of 32 x {c} x {side} x {side}, fp32, {mode}, {way}": cost_patches.patches(
            cost_patches.Patches(32, c, (side, side), (3, 3), (1, 1)), mode=mode, shifts=way == "by shifts"
        )
        for c, side in ((64, 56), (512, 7))
        for way in ("general", "by shifts")
    }
CASES |= {
    "sketch, 2,048 x 100,000, 64 columns, fp32": rsvd.sketch(2048, 100_000, 64),
    "subspace_step_many, 54 weights of ResNet-50, 27 columns, 15 pairs, fp32": rsvd.steps(RESNET50, 27, 15),
    "orthonormal_many, the same, 27 columns, fp32": rsvd.orthonormal([(d, min(27, n, d)) for n, d in RESNET50]),
    "cosines_many, the same, 15 directions each, fp32": rsvd.cosines([(15, 15, d) for _, d in RESNET50]),
    "eigh_many, 54 of order 27": small_eigh.eigh([27] * 54),
    "eigvalsh_many, 50 of order 256": small_eigh.eigvalsh([256] * 50),
    "inertia_many, 50 of order 256": small_eigh.inertia([256] * 50),
}

#: The loss's shapes, [rows, classes, target] of bf16 logits: launch-bound, long rows, few rows.
SHAPES = (
    (256, 1000, "index"), (1024, 1000, "index"), (1024, 1000, "mixed"), (1024, 1000, "probabilities"),
    (4096, 1000, "index"), (32768, 1000, "index"), (262_144, 100, "index"), (1024, 21_841, "index"),
    (8192, 32_000, "index"), (512, 128_256, "index"), (64, 128_256, "index"), (4, 128_256, "index"),
    (1, 300_000, "index"),
)  # fmt: skip
#: Seconds that a program takes for a tile it has to wait for, and tiles' time that the last program's work takes: an
#: atomic, and what the others left, there and back through L2. Assumptions, as the launches' 3 us.
TILE, LAST = 0.7e-6, 3


def generated() -> str:
    """The tables, as Markdown."""
    return "\n".join([_devices(), _predictions(), _kernels(), _shapes(), _resources()])


def _shapes() -> str:
    device = DEVICES["h100"]
    lines = [
        "### The loss on an H100: what share of the roofline is expected, and why\n",
        "Both passes, bf16 logits, a mean. A program waits some 0.7 us for a tile; as many programs at once as the "
        "registers allow; the last one takes three times that for the reduction, and once more for 1,024 programs. "
        "Assumptions, not measurements; `launches` are the 3 us each of them.\n",
        "| rows x classes | target | programs forward | parts a row | roofline us | expected us | share | "
        "without launches | bound by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rows, classes, target in SHAPES:
        forward = loss.forward(rows, classes, torch.bfloat16, target=target)
        backward = loss.backward(rows, classes, torch.bfloat16, target=target)
        shape = config.tile(classes)
        parts, span = config.splits(-(-rows // shape.rows), classes, device.sms)
        plain, waits = target.replace("index", "plain"), {}
        for kernel, launch, tiles in (("forward", forward[1], span), ("backward", backward[-1], 1)):
            variant = "split" if parts > 1 and kernel == "forward" else plain
            resident = config.CLAIMS[f"{kernel} {shape.rows}x{shape.classes} {variant}"].blocks * device.sms
            waits[kernel] = -(-launch.blocks // resident) * tiles * TILE
        memory = {"forward": roofline(forward[1:], device), "backward": roofline(backward[-1:], device)}
        floor, launches = sum(memory.values()), device.launch * len(forward + backward)
        last = LAST + (0 if parts > 1 or len(forward) > 2 else forward[1].blocks // config.REDUCE_BLOCK)
        device_time = sum(max(memory[k], waits[k]) for k in memory) + last * TILE
        reasons = {"launches": launches, "waiting for memory": device_time - floor, "memory": floor}
        lines.append(
            f"| {rows:,} x {classes:,} | {target} | {forward[1].blocks:,} | {parts} | {_us(floor)} | "
            f"{_us(device_time + launches)} | {100 * floor / (device_time + launches):.0f} % | "
            f"{100 * floor / device_time:.0f} % | {max(reasons, key=reasons.get)} |"
        )
    return "\n".join([*lines, ""])


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
    chains = (
        "`small`, `basis`, `jacobi`, `tridiagonal`, `bisect` and `count` are chains of dependent steps, a program or a "
        "few for each matrix: how long they wait between steps is in no count, and will be most of their time.\n"
    )
    lines = [
        "### Launch by launch, on an H100\n",
        chains,
        f"| {' | '.join(columns)} |",
        "|---|" + "---|" * (len(columns) - 1),
    ]
    h100 = DEVICES["h100"]
    for case in [*list(CASES)[2:7], *list(CASES)[-6:]]:
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
    loss_claims, gram_claims = config.CLAIMS, gram_config.CLAIMS
    lines = ["### Registers a thread (at most) and blocks a multiprocessor (at least) that the tuning counts on\n"]
    rows: dict[str, dict[str, str]] = {}
    for name, claim in loss_claims.items():
        kernel, tile, variant = name.split(maxsplit=2)
        rows.setdefault(f"{kernel} {tile}", {})[variant] = f"{claim.registers}, {claim.blocks}"
    variants = [v for v in next(iter(rows.values())) if "split" not in v]
    lines += [f"| loss | {' | '.join(variants)} |", "|---|" + "---|" * len(variants)]
    lines += [f"| {name} | {' | '.join(cells[v] for v in variants)} |" for name, cells in rows.items()]
    lines += ["", "| other | |", "|---|---|"]
    lines += [
        f"| loss: {name} | {claim.registers}, {claim.blocks} |"
        for name, claim in loss_claims.items()
        if "split" in name
    ]
    others = {f"squared error: {name}": claim for name, claim in mse_config.CLAIMS.items()} | gram_claims
    others |= {f"rsvd: {name}": claim for name, claim in rsvd_config.CLAIMS.items()}
    others |= {f"small_eigh: {name}": claim for name, claim in small_eigh_config.CLAIMS.items()}
    lines += [f"| {name} | {claim.registers}, {claim.blocks} |" for name, claim in others.items()]
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
