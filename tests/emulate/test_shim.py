"""The emulator itself: small programs that must come out right, and wrong ones that must be refused (drivers/shim.cpp).

And the instructions that no kernel of ours uses yet (kernels/tensor.cuh), under several schedules; nvcc must find them
in the same source.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from emulate import toolchain
from emulate.conftest import DRIVERS

pytestmark = pytest.mark.skipif(bool(toolchain.missing()), reason=toolchain.missing() or "-")

NAMES = re.findall(r"^(?:CHECK|REFUSED)\((\w+)", (DRIVERS / "shim.cpp").read_text(), re.M)
SCHEDULES = ("lockstep", "reverse+early", "warps", "warps-reverse+early", "random:1", "random:2+early")


@pytest.fixture(scope="module")
def outcomes(builds) -> dict[str, str]:
    # Unoptimised: many small functions that are compiled for longer than they run. The other programs come along.
    shim, *_ = toolchain.side_by_side(
        lambda build: build(),
        [
            lambda: builds.object(DRIVERS / "shim.cpp", options=("-O0", "-g0")),
            lambda: builds.program("tensor"),
            lambda: builds.program("gram"),
        ],
    )
    ended = toolchain.run(toolchain.link([shim], builds.folder / "shim"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(line.split(": ", 1) for line in ended.stdout.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_promise(outcomes, name):
    assert outcomes[name] == "ok"


def test_tensor_kernels(builds):
    ended = toolchain.run(builds.program("tensor"), *SCHEDULES)
    assert ended.returncode == 0, ended.stdout + ended.stderr


INSTRUCTIONS = (
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "shfl.sync.bfly",
    "atom.global.add.f32",
)


def test_nvcc_finds_the_same_instructions(tmp_path):
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    source = tmp_path / "tensor.cu"
    source.write_text(
        '#include "kernels/tensor.cuh"\n'
        "namespace fastrank::tensor {\n"
        "template __global__ void product_16bit<__half>(const __half*, const __half*, float*, int);\n"
        "}\n"
    )
    folders = [f"-I{toolchain.ROOT / 'csrc'}", f"-I{toolchain.HERE}"]
    command = [nvcc, "-std=c++17", "-arch=sm_80", *folders, "-ptx", source, "-o", tmp_path / "tensor.ptx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ptx = (tmp_path / "tensor.ptx").read_text()
    assert [name for name in INSTRUCTIONS if name not in ptx] == []
