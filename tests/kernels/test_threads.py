"""The threads that native kernels run on: torch's where those spin, own ones where they sleep."""

import os
import subprocess
import sys

import pytest
from fastrank.kernels import backend

SCRIPT = """
import os, threading
import torch
from fastrank.kernels.gram import gram_dual

def in_child():
    # Torch's threads do not come along with a fork either: no operation of its own that takes two.
    child = os.fork()
    if not child:
        os._exit(0 if (gram_dual(X).numpy() == alone.numpy()).all() else 1)
    assert os.waitpid(child, 0)[1] == 0

torch.set_num_threads(1)
X = torch.randn(128, 20_000, generator=torch.Generator().manual_seed(0))
alone = gram_dual(X)
torch.set_num_threads(2)
X @ X.T  # torch's own threads start
in_child()  # before the first call with threads
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
assert torch.equal(gram_dual(X), alone)
print(threads() - before)

found = []
other = threading.Thread(target=lambda: found.append(gram_dual(X)))
other.start()
found.append(gram_dual(X))
other.join()
assert all(torch.equal(G, alone) for G in found)

in_child()
"""


@pytest.mark.skipif(not backend.native_status().available, reason="no native core")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize(("policy", "own"), [("PASSIVE", 1), (None, 0)])
def test_threads_of_a_kernel(policy, own):
    """As many as torch has besides, the same numbers as on one, from two threads at once and after a fork."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == own
