"""Every Triton kernel, with every shipped tile, compiled for sm_80, sm_90 and sm_100 without a device.

Nothing may spill to local memory, the logits must be read and written 128 bits at a time where their layout allows
it, and gradients must round to nearest.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("under TRITON_INTERPRET=1 nothing is compiled", allow_module_level=True)
triton = pytest.importorskip("triton")

import triton.language as tl
from fastrank.kernels.tempered_ce import config
from fastrank.kernels.tempered_ce import triton as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)
ACCUMULATOR = {"fp64": tl.float64}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel, architecture, dtype, warps, constants):
    """The kernel as launched on contiguous logits of `dtype`: 16-byte aligned pointers, unit class stride."""
    accumulator = "fp64" if dtype == "fp64" else "fp32"
    types = {"logits_ptr": dtype, "grad_ptr": dtype, "target_ptr": "i64", "T": "fp32", "smoothing": "fp32"}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + types.get(name, accumulator)
            aligned[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = types.get(name, "i32")
    return triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps},
    )


def resources(binary, folder) -> dict[str, int]:
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    text = subprocess.run([CUOBJDUMP, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def options(tile, dtype, full):
    return {
        "HAS_T": full, "HAS_WEIGHT": full, "SMOOTH": full, "STATS": full, "NESTED": False, "ALIGN": 8, "D": 1,
        "ACC": ACCUMULATOR.get(dtype, tl.float32), "ROWS": tile.rows, "CLASSES": tile.classes,
        "stride_c": 1, "grad_stride_c": 1,
    }  # fmt: skip


# The richest variant for every architecture, in the accumulator most use; the others where they differ.
VARIANTS = [(architecture, "fp32", True) for architecture in ARCHITECTURES]
VARIANTS += [(90, "bf16", False), (90, "fp64", True)]


@pytest.mark.parametrize(("architecture", "dtype", "full"), VARIANTS)
@pytest.mark.parametrize("tile", config.TILES, ids=lambda t: f"{t.rows}x{t.classes}")
@pytest.mark.parametrize("kernel", [kernels.forward_kernel, kernels.backward_kernel], ids=lambda k: k.__name__)
def test_tile(kernel, tile, architecture, dtype, full, tmp_path):
    binary = compiled(kernel, architecture, dtype, tile.warps, options(tile, dtype, full))
    used = resources(binary, tmp_path)
    assert used["STACK"] == 0 and used["LOCAL"] == 0, used
    assert used["REG"] * 32 * tile.warps <= 65536, used
    ptx = binary.asm["ptx"]
    wide = "v2.b64" if dtype == "fp64" else "v4.b32"
    assert f"ld.global.{wide}" in ptx
    if kernel is kernels.backward_kernel:
        assert f"st.global.{wide}" in ptx
        assert dtype != "bf16" or re.search(r"cvt\.rn\.bf16(x2)?\.f32", ptx)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reduction(architecture, tmp_path):
    constants = {"HAS_WEIGHT": True, "MEAN": True, "ACC": tl.float32, "BLOCK": config.REDUCE_BLOCK}
    binary = compiled(kernels.reduce_kernel, architecture, "fp32", config.REDUCE_WARPS, constants)
    used = resources(binary, tmp_path)
    assert used["STACK"] == 0 and used["LOCAL"] == 0, used


def test_logarithms_are_not_approximate():
    """`lg2.approx` errs by 2^-22 absolutely: no digit would be left of a loss near 0."""
    tile = config.TILES[0]
    binary = compiled(kernels.forward_kernel, 90, "fp32", tile.warps, options(tile, "fp32", True))
    assert "lg2.approx" not in binary.asm["ptx"]
