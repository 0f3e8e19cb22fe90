"""Compiles what the selected tests look at, once, and prints what it takes of a multiprocessor."""

from __future__ import annotations

from pathlib import Path

import gpu_builds
import pytest
from machine_code import CUDA_ARCHITECTURES, Code, architectures, compile_all, cuda_code, resource_table, triton_code

TABLE: pytest.StashKey[list[Code]] = pytest.StashKey()


def _compiled(jobs: list[tuple], folder: Path, config: pytest.Config) -> list[Code]:
    found = compile_all(jobs, folder)
    config.stash[TABLE] = config.stash.get(TABLE, []) + found
    return found


@pytest.fixture(scope="session")
def triton_kernels(request, tmp_path_factory) -> list[Code]:
    if not gpu_builds.TRITON:
        pytest.skip("Triton's kernels are not compiled without triton, or under TRITON_INTERPRET=1")
    if not gpu_builds.cuobjdump():
        pytest.skip("cuobjdump is not installed (it comes with triton)")
    jobs = []
    for build in gpu_builds.TRITON:
        jobs += [(triton_code, build, arch) for arch in architectures(build)]
    return _compiled(jobs, tmp_path_factory.mktemp("triton"), request.config)


@pytest.fixture(scope="session")
def cuda_kernels(request, tmp_path_factory) -> list[Code]:
    if gpu_builds.NVCC is None:
        pytest.skip("nvcc is not installed")
    if not gpu_builds.cuobjdump():
        pytest.skip("cuobjdump is not installed (it comes with triton)")
    jobs = [(cuda_code, build, arch) for build in gpu_builds.CUDA for arch in CUDA_ARCHITECTURES]
    return _compiled(jobs, tmp_path_factory.mktemp("cuda"), request.config)


def pytest_terminal_summary(terminalreporter, config) -> None:
    if codes := config.stash.get(TABLE, []):
        terminalreporter.section("GPU kernels")
        terminalreporter.write_line(resource_table(codes))
