"""Every CUDA source compiles for every architecture we ship, with nothing spilled and no approximate product.

Needs nvcc and no GPU. What is checked is the machine code: ptxas's own account of registers, spills and stack, and,
where cuobjdump is at hand (it comes with triton), the instructions.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHITECTURES = ("80", "90", "100")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


@cache
def compiled(folder: str, op: str) -> tuple[dict[str, Path], dict[tuple[str, str], str]]:
    """Cubins by architecture, and ptxas's account by (architecture, kernel)."""
    cubins, account = {}, {}
    for arch in ARCHITECTURES:
        cubins[arch] = Path(folder) / f"{op}-{arch}.cubin"
        command = [NVCC, "-std=c++17", "-O3", "-lineinfo", "-cubin", f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}"]
        command += ["-Xptxas", "-v,-warn-spills,-Werror", str(ROOT / "csrc" / op / "cuda.cu"), "-o", str(cubins[arch])]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        for name, facts in re.findall(
            r"Compiling entry function '(\w+)'.*?\n(.*?bytes spill.*?\n.*?Used .*?\n)", run.stderr, re.S
        ):
            account[arch, name] = facts
    return cubins, account


def cuobjdump() -> str | None:
    if found := shutil.which("cuobjdump"):
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


@pytest.fixture(scope="module")
def gram(tmp_path_factory):
    return compiled(str(tmp_path_factory.mktemp("cubin")), "gram")


def test_gram_spills_nothing_and_keeps_no_stack(gram):
    _, account = gram
    # 4 dtypes exact, 3 of them fast, the reduction and the mirror.
    assert len(account) == 9 * len(ARCHITECTURES)
    for (arch, name), facts in account.items():
        assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", facts), (
            arch,
            name,
            facts,
        )
        registers = int(re.search(r"Used (\d+) registers", facts)[1])
        # 256 threads a block: at most 128 registers let two blocks, 16 warps, run on a multiprocessor of 65536.
        assert registers <= 128, (arch, name, registers)


def test_gram_multiplies_in_the_precision_it_promises(gram):
    tool = cuobjdump()
    if tool is None:
        pytest.skip("cuobjdump is not installed (it comes with triton)")
    cubins, _ = gram
    for arch, cubin in cubins.items():
        listing = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
        kernels = dict(re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*\.{10,}|\Z)", listing, re.S))
        tiles = {name: code for name, code in kernels.items() if "gram_tiles" in name}
        assert len(tiles) == 7
        for name, code in tiles.items():
            exact = name.endswith("dEEvNS1_7ProblemE")
            # A 4 x 4 register tile, unrolled over 4 rows: 64 fused multiply-adds in one precision.
            assert len(re.findall(r"\bDFMA\b", code)) >= 64 if exact else len(re.findall(r"\bFFMA\b", code)) >= 64, (
                arch,
                name,
            )
            # No tensor-core product: TF32 and 16-bit ones round.
            assert not re.search(r"\b(HMMA|QMMA|UTC\w*MMA|HGMMA)\b", code), (arch, name)
