"""kernels/occupancy.py gives the numbers of NVIDIA's own header."""

import random
import shutil
import subprocess
from pathlib import Path

import gpu_builds
import pytest
from fastrank.kernels.occupancy import MULTIPROCESSORS, Claim, occupancy


def header() -> Path | None:
    """cuda_occupancy.h of the toolkit that nvcc belongs to."""
    if gpu_builds.NVCC is None:
        return None
    for root in (Path(gpu_builds.NVCC).resolve().parents[1], Path("/usr/local/cuda")):
        if (root / "include" / "cuda_occupancy.h").exists():
            return root / "include"
    return None


def test_equals_nvidias_calculator(tmp_path):
    if header() is None or not shutil.which("g++"):
        pytest.skip("cuda_occupancy.h (of the CUDA toolkit) or g++ is not installed")
    program = tmp_path / "occupancy"
    source = Path(__file__).with_name("occupancy.cpp")
    subprocess.run(["g++", "-O1", "-w", f"-I{header()}", str(source), "-o", str(program)], check=True)
    draw = random.Random(0)
    cases = []
    for arch, limits in MULTIPROCESSORS.items():
        for _ in range(2000):
            warps = draw.choice([1, 2, 3, 4, 5, 8, 12, 16, 32])
            registers = draw.randint(1, min(255, 65536 // (32 * warps)) // 8 * 8)
            shared = draw.choice([0, 1, 256, 8448, 16896, draw.randint(0, limits.shared - 1024)])
            cases.append((arch, limits, warps, registers, shared))
    lines = [
        f"{arch // 10} {arch % 10} {limits.warps} {limits.shared} {32 * warps} {registers} {shared}"
        for arch, limits, warps, registers, shared in cases
    ]
    run = subprocess.run([str(program)], input="\n".join(lines), capture_output=True, text=True, check=True)
    expected = [int(line) for line in run.stdout.split()]
    assert len(expected) == len(cases)
    for (arch, _, warps, registers, shared), blocks in zip(cases, expected, strict=True):
        assert occupancy(registers, shared, warps, arch).blocks == blocks, (arch, warps, registers, shared)


def test_a_known_case():
    """128 registers and 256 threads: two blocks, a quarter of the warps, held back by registers."""
    found = occupancy(128, 16896, 8, 90)
    assert (found.blocks, found.share, found.limiter) == (2, 0.25, "registers")
    assert occupancy(32, 0, 8, 86).limiter == "warps"
    assert Claim(32, 8).blocks_on(90, 8) == 8 and Claim(32, 8).blocks_on(86, 8) == 6
