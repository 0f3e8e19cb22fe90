"""A training loop by hand with `fastrank.watch` in it: what adapters to other loops are compared with."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import fastrank

ROOT = Path(__file__).parents[1]


def off_the_checkout(question):
    """Ask `question()` without the checkout's root on the path, which `python -m pytest` puts there.

    transformers asks once whether Hugging Face's package `kernels` is there, and takes our folder for it.
    """
    path = sys.path[:]
    sys.path[:] = [place for place in path if Path(place or ".").resolve() != ROOT]
    try:
        return question()
    finally:
        sys.path[:] = path


class Records(list):
    """A sink that keeps [(step, scalars, arrays)]."""

    def __init__(self):
        self.notes = []

    def log_step(self, step, scalars, arrays):
        self.append((step, scalars, arrays))

    def note(self, step, key, text):
        self.notes.append((step, key, text))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 5))


def small_batches(n, size=9):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 12, generator=g), torch.randint(5, (size,), generator=g)) for _ in range(n)]


def by_hand(model, batches, accumulate=1, also=None, **options):
    """Train over `batches`, one optimizer step every `accumulate` of them, and return what `watch` recorded.

    `also`: further sinks.
    """
    records = Records()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    others = also if isinstance(also, list) and not hasattr(also, "log_step") else [] if also is None else [also]
    with fastrank.watch(model, log=[*others, records], **options) as w:
        for number, (x, y) in enumerate(batches, 1):
            loss = nn.functional.cross_entropy(model(x), y)
            (loss / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                w.step(target=y, loss=loss)
                optimizer.zero_grad()
    return records


def run_example(module, folder, monkeypatch):
    """Run the example in a module's docstring in `folder`, as written."""
    monkeypatch.chdir(folder)
    example = module.__doc__.partition("\n\n")[2]
    assert "import" in example
    exec(compile(example, module.__name__, "exec"), {"__name__": "example"})


def assert_same(found, expected, but=("cost/",)):
    """The same steps with the same figures, bit for bit; keys that start with one of `but` are not compared."""
    assert found and [step for step, *_ in found] == [step for step, *_ in expected]
    for (_, scalars, arrays), (_, wanted, wanted_arrays) in zip(found, expected, strict=True):
        left = {key: value for key, value in scalars.items() if not key.startswith(but)}
        assert left == {key: value for key, value in wanted.items() if not key.startswith(but)}
        assert arrays.keys() == wanted_arrays.keys()
        for key in [key for key in arrays if not key.startswith(but)]:
            assert arrays[key].tolist() == wanted_arrays[key].tolist(), key


def run_ranks(script: str, folder: Path) -> tuple[list, str]:
    """What the two processes of tests/`script` leave as rank0.pt and rank1.pt, None where one left nothing, and what
    they say."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-P", here / script, folder],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, timeout=200,
        env={"PYTHONPATH": str(here), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # The pipe ends with the last of the two.
    files = [folder / f"rank{rank}.pt" for rank in range(2)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files], done.stdout
