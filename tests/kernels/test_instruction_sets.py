"""The binary carries code for lesser processors too. FASTRANK_ISA chooses at import, hence a process for each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastrank.kernels import backend

#: What is run again in each file: conformity of the native kernel, and that its bits depend on nothing they must not.
CHOSEN = {
    "test_gram.py": "test_conforms and native and float32 or test_threads",
    "test_gram_patches.py": "test_integers_are_exact and native",
    "test_rsvd.py": "bits_of or tails or conform and native and float32 or products and native and gaussian",
    "test_small_eigh.py": "native and (extended or Gram or graded or cliff or Wilkinson) or roundings or change_a_bit",
    "test_tempered_ce.py": "smoothing_at_every_shape",
    "test_tempered_mse.py": "smoothing_at_every_shape",
}
RUN = """
import os, sys
import pytest
from fastrank.kernels import backend
assert backend.core().isa == os.environ["FASTRANK_ISA"]
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_lesser_instruction_sets_conform(isa):
    core = backend.core()
    if core is None or isa not in core.built_isas.split(",") or core.isa == isa:
        pytest.skip(f"{isa} is not below this build and processor's {core and core.isa}")
    here = Path(__file__).parent
    names = " or ".join(f"({file} and ({chosen}))" for file, chosen in CHOSEN.items())
    run = subprocess.run(
        [sys.executable, "-c", RUN, "-q", "-k", names, *(str(here / file) for file in CHOSEN)],
        env={**os.environ, "FASTRANK_ISA": isa}, cwd=here.parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
