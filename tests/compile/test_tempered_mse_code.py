"""The instructions of the squared error's Triton kernels: the counted work (the rest is test_triton_code.py's)."""

import dataclasses

import gpu_builds
import pytest
import torch
from compile.test_triton_code import _arithmetic
from fastrank.kernels.tempered_mse import cost


def _build(name: str):
    return next(build for build in gpu_builds.TRITON if (build.op, build.name) == ("tempered_mse", name))


def _ptx(codes, name: str) -> str:
    return next(code.ptx for code in codes if (code.op, code.name, code.arch) == ("tempered_mse", name, 90))


@pytest.mark.parametrize(("dtype", "variant"), [("fp32", "plain"), ("fp32", "soft"), ("fp64", "soft")])
@pytest.mark.parametrize(
    ("kernel", "rows", "classes"), [("forward", 1, 2048), ("forward", 2, 1024), ("backward", 1, 2048)]
)
def test_flops_per_logit(triton_kernels, kernel, rows, classes, dtype, variant):
    """Two tiles that differ only in logits per thread differ by what the cost model counts, instruction by
    instruction."""
    name = f"{kernel} {rows}x{classes} {dtype} {variant}"
    build = _build(name)
    smaller = dataclasses.replace(build, constants={**build.constants, "CLASSES": classes // 2})
    with gpu_builds.not_assembled():
        half = smaller.compile(90).asm["ptx"]
    large, small = (_arithmetic(ptx, dtype) for ptx in (_ptx(triton_kernels, name), half))
    per_thread = rows * classes // 2 // (32 * build.warps)
    flops = (large["flops"] - small["flops"]) / per_thread
    exponentials = (large["ex2"] - small["ex2"]) / per_thread
    soft = variant == "soft"
    options = {"target": "probabilities" if soft else "index"}
    # A row of more than one tile is walked along twice.
    logits = classes if rows > 1 else 2 * classes
    torch_dtype = torch.float64 if dtype == "fp64" else torch.float32
    if kernel == "forward":
        launch = cost.forward(1, logits, torch_dtype, weight=soft, **options)[0]
    else:
        launch = cost.backward(1, logits, torch_dtype, **options)[0]
    if dtype == "fp64":
        assert launch.flops == {"fp64": logits * flops}
    else:
        assert launch.flops == {"fp32": logits * flops, "sfu": logits * exponentials}


def test_a_sum_does_not_read_weights():
    """As cost.py counts: only a mean over labels needs what the rows weigh."""
    launch = cost.forward(100, 10, reduction="sum", weight=True)[-1]
    assert launch.read == 100 * 4
    assert "row_weight_ptr" not in _build("reduce fp32 rows").signature or (
        _build("reduce fp32 rows").signature["row_weight_ptr"] == "constexpr"
    )
