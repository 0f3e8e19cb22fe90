"""The instructions of the Triton kernels: wide memory accesses, no digit lost to an approximation, the counted work."""

import dataclasses
import re
from collections import Counter

import gpu_builds
import pytest
import torch
from fastrank.kernels.tempered_ce import cost

WIDE = {16: r"v4\.b32|v2\.b64|v4\.f32|v2\.f64", 8: r"v2\.b32|b64|v2\.f32"}
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}


def rows(codes):
    """The kernels that go over logits, with their dtype and variant."""
    for code in codes:
        kernel, *rest = code.name.split(maxsplit=3)
        if kernel in ("forward", "backward"):
            yield code, kernel, rest[1], rest[2]


def test_logits_are_read_and_written_128_bits_at_a_time(triton_kernels):
    """Or as many as the alignment of their rows allows; a nested layout [N, C, d1] has no contiguous rows."""
    seen = 0
    for code, kernel, dtype, variant in rows(triton_kernels):
        if variant == "nested":
            continue
        width = min(16, code.constants["ALIGN"] * ITEMSIZE[dtype])
        assert width == 16 or "64x16" in code.name
        assert re.search(rf"ld\.global\.({WIDE[width]})", code.ptx), (code.name, code.arch)
        if kernel == "backward":
            assert re.search(rf"st\.global\.({WIDE[width]})", code.ptx), (code.name, code.arch)
        seen += 1
    assert seen > 50


def test_gradients_round_to_nearest(triton_kernels):
    for code, kernel, dtype, _ in rows(triton_kernels):
        if kernel == "backward" and dtype in ("bf16", "fp16"):
            assert re.search(rf"cvt\.rn\.{dtype.replace('fp', 'f')}(x2)?\.f32", code.ptx), (code.name, code.arch)


def test_no_approximation_that_loses_digits(triton_kernels):
    for code in triton_kernels:
        # It errs by 2^-22 absolutely: no digit would be left of a loss near 0.
        assert "lg2.approx" not in code.ptx, (code.name, code.arch)
        # Tensor cores take float64 alone; products of fp32 are fused multiply-adds, 16-bit numbers are widened first.
        products = set(re.findall(r"\bw?mma\S*", code.ptx))
        assert "tf32" not in code.ptx and all(".f64.f64.f64.f64" in x for x in products), (code.name, code.arch)
    for code, _, dtype, _ in rows(triton_kernels):
        # Exponentials: the special function unit's in fp32 (2 ulp), a polynomial in fp64.
        assert ("ex2.approx" in code.ptx) == (dtype != "fp64"), (code.name, code.arch)


def test_losses_are_summed_in_float64(triton_kernels):
    reductions = [code for code in triton_kernels if code.name.startswith("reduce")]
    reductions += [code for code, kernel, *_ in rows(triton_kernels) if (code.op, kernel) == ("tempered_ce", "forward")]
    for code in reductions:
        assert re.search(r"add(\.rn)?\.f64", code.ptx), (code.name, code.arch)


def test_what_the_last_program_reads_was_written_before(triton_kernels):
    """Each program counts itself off by an atomic that releases what it stored and acquires what others did, after a
    barrier of its own threads; nothing waits on the counter."""
    for code, kernel, *_ in rows(code for code in triton_kernels if code.op == "tempered_ce"):
        atomics = re.findall(r"\b(?:atom|red)\.\S+", code.ptx)
        if kernel == "backward":
            assert not atomics
            continue
        assert len(atomics) == 1 and re.search(r"acq_rel.*gpu|gpu.*acq_rel", atomics[0]), (code.name, atomics)
        before = code.ptx.partition(atomics[0])[0]
        assert before.rfind("bar.sync") > before.rfind("st.global"), (code.name, code.arch)


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize(
    ("dtype", "variant"),
    [("fp32", "plain"), ("fp32", "full"), ("fp64", "full"), ("fp32", "mixed full"), ("bf16", "probabilities")],
)
def test_flops_per_logit(triton_kernels, kernel, dtype, variant):
    """Two tiles that differ only in logits per thread differ by what the cost model counts, instruction by
    instruction."""
    name = f"{kernel} 1x2048 {dtype} {variant}"
    build = next(build for build in gpu_builds.TRITON if build.name == name)
    smaller = dataclasses.replace(build, constants={**build.constants, "CLASSES": 1024})
    with gpu_builds.not_assembled():
        half = smaller.compile(90).asm["ptx"]
    large, small = (_arithmetic(ptx, dtype) for ptx in (_ptx(triton_kernels, name), half))
    per_thread = (2048 - 1024) // (32 * build.warps)
    flops = (large["flops"] - small["flops"]) / per_thread
    exponentials = (large["ex2"] - small["ex2"]) / per_thread
    full, target = "full" in variant, re.search("mixed|probabilities|$", variant)[0] or "index"
    torch_dtype = torch.float64 if dtype == "fp64" else torch.float32
    if kernel == "forward":
        launch = cost.forward(1, 2048, torch_dtype, target=target, stats=full, smoothing=full, weight=full)[-1]
    else:
        launch = cost.backward(1, 2048, torch_dtype, target=target, smoothing=full, weight=full)[-1]
    if dtype == "fp64":
        assert launch.flops == {"fp64": 2048 * flops}
    else:
        assert launch.flops == {"fp32": 2048 * flops, "sfu": 2048 * exponentials}


def _ptx(codes, name: str) -> str:
    return next(code.ptx for code in codes if code.name == name and code.arch == 90)


def _arithmetic(ptx: str, dtype: str) -> Counter:
    bits = "64" if dtype == "fp64" else "32"
    found = Counter(re.findall(rf"^\s+(?:@%p\d+ )?(add|sub|mul|fma|max|div|ex2)(?:\.\w+)*\.f{bits}\b", ptx, re.M))
    flops = sum(count * (2 if op == "fma" else 1) for op, count in found.items() if op != "ex2")
    return Counter(flops=flops, ex2=found["ex2"])
