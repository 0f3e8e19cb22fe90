"""Every way to install, each in a fresh environment from a copy of the source, with pip's own build isolation."""

import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from fastrank.kernels import backend

ROOT = Path(__file__).parents[2]
SOURCES = ["fastrank", "kernels", "csrc", "setup.py", "CMakeLists.txt", "pyproject.toml", "README.md"]

PROBE = """
import json, sys
import torch
import fastrank
from fastrank.kernels import backend
core = backend.core()
rank = int(fastrank.matrix_rank(torch.eye(5)))
loss = float(fastrank.TemperedCE(T=100)(torch.zeros(2, 3), torch.tensor([0, 1])))
print(json.dumps({"file": fastrank.__file__, "native": core is not None, "cuda": bool(core and core.cuda),
                  "rank": rank, "loss": loss, "doctor": fastrank.doctor()}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What was compiled for one installation serves the next."""
    return tmp_path_factory.mktemp("compiled")


def install(tmp_path, *options, compiled=None, **environment):
    """A new environment that sees this one's torch but not its fastrank; returns its python and the source copy."""
    source = tmp_path / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("*.so", "_build_report.json", "__pycache__", "build")
    for name in SOURCES:
        origin = ROOT / name
        copy = shutil.copytree if origin.is_dir() else shutil.copy
        copy(origin, source / name, **({"ignore": ignore} if origin.is_dir() else {}))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    # A path line, unlike site.addsitedir, does not run the .pth files there, so an editable fastrank stays unseen.
    (packages / "base.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    if compiled is not None:
        launcher = f"{sys.executable};{Path(__file__).with_name('compile_once.py')}"
        env |= {"CMAKE_CXX_COMPILER_LAUNCHER": launcher, "KEEP": str(compiled), "SOURCE": str(source)}
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", *options, str(source)],
        check=True,
        env=env,
        cwd=tmp_path,
    )
    return python, source


def probe(python, tmp_path):
    output = subprocess.run(
        [python, "-W", "ignore", "-c", PROBE], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    return json.loads(output.stdout)


@pytest.mark.parametrize(
    "options",
    [["--editable"], ["--config-settings", "editable_mode=strict", "--editable"], []],
    ids=["editable", "strict-editable", "normal"],
)
def test_install(tmp_path, options, compiled):
    python, source = install(tmp_path, *options, compiled=compiled, FASTRANK_CUDA="OFF")
    found = probe(python, tmp_path)
    assert found["native"] and not found["cuda"]
    assert found["rank"] == 5
    assert ("source" in found["file"]) == ("--editable" in options)
    assert "FASTRANK_CUDA=OFF" in found["doctor"]["native CUDA"]
    top_level = subprocess.run([python, "-c", "import kernels"], cwd=source, capture_output=True, text=True)
    assert top_level.returncode != 0 and "fastrank.kernels" in top_level.stderr


def test_install_without_a_compiler_works_through_the_reference_and_says_so(tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("sh", "env", "git", "uname"):
        if found := shutil.which(tool):
            (bare / tool).symlink_to(found)
    python, _ = install(tmp_path, "--editable", PATH=str(bare), CXX="", CUDA_HOME=str(tmp_path / "none"))
    found = probe(python, tmp_path)
    assert not found["native"]
    assert found["rank"] == 5 and found["loss"] == pytest.approx(1.0986123, rel=1e-6)
    assert "without a C++ compiler" in found["doctor"]["native core"]
    assert "apt install g++" in found["doctor"]["native core"]


def test_cuda_demanded_without_nvcc_fails_and_says_why(tmp_path):
    compilers = tmp_path / "bin"
    compilers.mkdir()
    for tool in ("sh", "c++", "g++", "cc", "gcc"):
        if found := shutil.which(tool):
            (compilers / tool).symlink_to(found)
    with pytest.raises(subprocess.CalledProcessError):
        install(tmp_path, "--editable", PATH=str(compilers), FASTRANK_CUDA="ON", CUDA_HOME=str(tmp_path / "none"))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_cuda_builds_and_imports_without_a_driver(tmp_path, compiled):
    """This environment's own core has shown it where it was built with CUDA, as `make test` does."""
    python = sys.executable
    if not backend.core() or not backend.core().cuda:
        python, _ = install(tmp_path, "--editable", compiled=compiled, FASTRANK_CUDA="ON")
    found = probe(python, tmp_path)
    assert found["native"] and found["cuda"]


def test_instruction_set_objects_leave_no_inline_function_for_the_linker_to_share(compiled):
    """A weak symbol from an AVX-512 object could be the copy the whole module uses (csrc/common/simd.h)."""
    objects = list(compiled.glob("*_avx512.dir-*"))
    if not objects:
        pytest.skip("nothing was compiled for AVX-512: it was not asked for, or the processor is another")
    for path in objects:
        symbols = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout
        weak = [line.split()[-1] for line in symbols.splitlines() if line.split()[-2] in "uvVwW"]
        assert not weak, f"{path.name}: {weak}"
