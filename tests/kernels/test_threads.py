"""The threads that native kernels run on: torch's where those spin, own ones where they sleep; what fails there."""

import os
import subprocess
import sys

import pytest
from fastrank.kernels import backend

pytestmark = [
    pytest.mark.skipif(not backend.native_status().available, reason="no native core"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

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


@pytest.mark.parametrize(("policy", "own"), [("PASSIVE", 1), (None, 0)])
def test_threads_of_a_kernel(policy, own):
    """As many as torch has besides, the same numbers as on one, from two threads at once and after a fork."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == own


NO_MEMORY = """
import resource
import torch
from fastrank.kernels.small_eigh import eigvalsh_many

torch.set_num_threads(2)
eigvalsh_many([torch.eye(64, dtype=torch.float64)] * 8)  # the threads start
G = [torch.eye(2500, dtype=torch.float64)] * 4  # each takes 25 MB of workspace
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), -1))
for _ in range(3):
    try:
        eigvalsh_many(G)
    except MemoryError:
        print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert all(values[-1] == 1 for values in eigvalsh_many(G)[0])
"""


@pytest.mark.parametrize("policy", ["PASSIVE", "ACTIVE"])
def test_a_thread_without_memory_raises_in_the_caller(policy):
    """It ended the process where it was not the caller's own."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"OMP_WAIT_POLICY": policy}
    run = subprocess.run([sys.executable, "-c", NO_MEMORY], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["MemoryError"] * 3
