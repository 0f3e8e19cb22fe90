"""Builds the native core (csrc/) with CMake and ninja as `fastrank.kernels._core`.

The core links no torch, so it builds under pip's build isolation in seconds. What was asked for and what
came of it is written to `kernels/_build_report.json`, which `fastrank doctor` reads:

* no C++ compiler: the package installs without the core and runs on its torch reference;
* FASTRANK_CUDA=AUTO (default): CUDA where nvcc works, else CPU only; ON: fail without it; OFF: never.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
REPORT = ROOT / "kernels" / "_build_report.json"


def cuda_request() -> str:
    request = os.environ.get("FASTRANK_CUDA", "AUTO").upper()
    if request not in {"ON", "OFF", "AUTO"}:
        raise SystemExit(f"FASTRANK_CUDA: expected ON, OFF or AUTO, got {request!r}")
    return request


def find_compiler() -> str | None:
    candidates = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def write_report(*folders: Path, **facts) -> None:
    """Into the source tree, where an editable install looks, and into `folders` on their way into a wheel."""
    for folder in (REPORT.parent, *folders):
        (folder / REPORT.name).write_text(json.dumps(facts, indent=1) + "\n")


class CMakeBuild(build_ext):
    """Runs cmake + ninja for the one extension; falls back from CUDA to CPU only where AUTO allows it."""

    def build_extension(self, ext: Extension) -> None:
        request, nvcc = cuda_request(), find_nvcc()
        if request == "ON" and nvcc is None:
            raise SystemExit("FASTRANK_CUDA=ON: expected nvcc on PATH or in CUDA_HOME/bin, found none")
        attempts = {"ON": [nvcc], "OFF": [None], "AUTO": [nvcc, None] if nvcc else [None]}[request]
        cuda_error = None
        for attempt in attempts:
            try:
                self._cmake(ext, attempt)
            except subprocess.CalledProcessError as error:
                if attempt is attempts[-1]:
                    raise
                cuda_error = f"the CUDA part did not build ({' '.join(map(str, error.cmd[:4]))} ... failed)"
                print(f"fastrank: {cuda_error}; building for the CPU only", file=sys.stderr)
            else:
                write_report(
                    Path(self.get_ext_fullpath(ext.name)).parent,
                    native=True,
                    cuda=attempt is not None,
                    requested_cuda=request,
                    nvcc=nvcc,
                    compiler=find_compiler(),
                    cuda_error=cuda_error,
                )
                return

    def _cmake(self, ext: Extension, nvcc: str | None) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / ("cuda" if nvcc else "cpu")
        build.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('FASTRANK_BUILD_TYPE', 'Release')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output.parent}",
            f"-DFASTRANK_MODULE_FILE={output.name}",
            f"-DFASTRANK_CUDA={'ON' if nvcc else 'OFF'}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        if nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        # A cache from another environment names a cmake, ninja or pybind11 that pip has since deleted.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


if find_compiler() is None:
    if cuda_request() == "ON":
        raise SystemExit("FASTRANK_CUDA=ON: expected a C++ compiler (c++, g++ or clang++) on PATH, found none")
    write_report(
        native=False, cuda=False, requested_cuda=cuda_request(), nvcc=find_nvcc(), compiler=None, cuda_error=None
    )
    extensions = []
else:
    extensions = [Extension("fastrank.kernels._core", sources=[])]

setup(
    # kernels/ is a folder of its own at the top, and importable only as fastrank.kernels.
    packages=[
        *find_packages(include=["fastrank", "fastrank.*"]),
        "fastrank.kernels",
        *(f"fastrank.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"fastrank": "fastrank", "fastrank.kernels": "kernels"},
    package_data={
        "fastrank.kernels": [REPORT.name],
        "fastrank.report": ["*.css", "*.js", "*.html"],
        "fastrank.recipes": ["*.html"],
    },
    ext_modules=extensions,
    cmdclass={"build_ext": CMakeBuild},
)
