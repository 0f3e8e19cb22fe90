"""Two processes, of which one fails in what it measures: `python failing_ranks.py FOLDER`; see test_failing_ranks."""

import os
import sys
import time
import warnings
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from watched_loop import Records, small_batches, small_net

import fastrank
from fastrank import capture
from fastrank.gram import GramState
from fastrank.tracking import all_ranks, measurements
from fastrank.tracking.figures import Figures
from fastrank.tracking.window import Window

SIZE, STEPS = 2, 4
#: Seconds after which a process that waits for another gives up.
DEADLINE = 20
OPTIONS = {"metrics": ["act", "logits", "weight", "grad", "align"], "window": 2, "all_ranks": True}


class Failing:
    """A stand-in for `real` that fails where `fails(*args)` says so."""

    def __init__(self, real, fails=lambda *_: True):
        self.real, self.fails = real, fails

    def __call__(self, *args, **kwargs):
        if self.fails(*args):
            raise RuntimeError("mine")
        return self.real(*args, **kwargs)

    def __get__(self, thing, kind=None):
        return lambda *args, **kwargs: self(thing, *args, **kwargs)


class Module:
    """A module in which some names are others."""

    def __init__(self, real, **names):
        self.real, self.names = real, names

    def __getattr__(self, name):
        return self.names[name] if name in self.names else getattr(self.real, name)


def without_memory(name):
    return patch.object(all_ranks, "torch", Module(torch, **{name: Failing(getattr(torch, name))}))


def method(kind, name, fails=lambda *_: True):
    return patch.object(kind, name, Failing(getattr(kind, name), fails))


#: {name: (kind of model, the process that fails, how)}
HURTS = {
    "nothing": ("ddp", 0, None),
    "nothing sharded": ("fsdp", 0, None),
    "activation": ("ddp", 1, lambda: method(capture.Capture, "features", lambda c, X, name, most: name == "1")),
    "input": ("ddp", 1, lambda: method(capture.Capture, "_input", lambda c, m, x: m.out_features == 10)),
    "message": ("ddp", 1, lambda: without_memory("zeros")),
    "rows on rank 0": ("ddp", 0, lambda: without_memory("cat")),
    "window": ("ddp", 1, lambda: method(Window, "add", lambda w, name, X: name == "1")),
    "window on rank 0": ("ddp", 0, lambda: method(GramState, "small_gram")),
    "figures": ("ddp", 0, lambda: patch.object(measurements, "of_grams", Failing(None))),
    "spectra": (
        "ddp", 0, lambda: method(Figures, "add_spectra", lambda f, spectra, *_: any("act/1" in key for key in spectra))
    ),
    "record": ("budget", 0, lambda: method(Figures, "to_host")),
    "weight in shards": (
        "fsdp", 1, lambda: patch.object(
            capture, "weight_matrix", Failing(capture.weight_matrix, lambda X, m: len(X) == 16)
        )
    ),
    "gradient in shards": ("fsdp", 1, "no gradient"),
    "memory for shards": ("fsdp", 1, lambda: without_memory("empty")),
    "evaluation": ("ddp", 1, "evaluation"),
    "evaluation of shards": ("fsdp", 1, "evaluation"),
    "pause": ("ddp", 1, "pause"),
    "argument": ("ddp", 1, "argument"),
}  # fmt: skip


def build(kind, mesh):
    model = small_net()
    if kind != "fsdp":
        return DistributedDataParallel(model)
    fully_shard(model[0], mesh=mesh)
    fully_shard(model[2], mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def train(model, log, hurt, options):
    """Step 1 of those of `hurt` that are words is the one that differs."""
    raised = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with fastrank.watch(model, log=log, **options) as w:
        for step, batch in enumerate(small_batches(STEPS, 40)):
            x, y = (half.chunk(SIZE)[dist.get_rank()] for half in batch)
            now = step == 1
            if now and hurt == "pause":
                w.pause()
            model.train(not (now and hurt == "evaluation"))
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if now and hurt == "no gradient":
                next(iter(model[0].parameters())).grad = None
            try:
                w.step(target=y, loss=torch.ones(2) if now and hurt == "argument" else loss)
            except fastrank.InputError as error:
                raised.append((step, str(error)))
            if now and hurt == "pause":
                w.resume()
            optimizer.zero_grad()
    return raised


def refused(log, **options):
    try:
        fastrank.watch(small_net(), log=log, **{**OPTIONS, **options}).close()
    except Exception as error:
        return type(error).__name__, str(error)


def main(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE, timeout=timedelta(seconds=DEADLINE)
    )
    found, mesh = {}, init_device_mesh("cpu", (SIZE,))
    for name, (kind, failing, hurt) in HURTS.items():
        records, start = Records(), time.monotonic()
        options = OPTIONS | ({"budget": "90%"} if kind == "budget" else {})
        hurt = hurt if rank == failing else None
        model = build(kind, mesh)
        with ExitStack() as stack:
            said = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            if callable(hurt):
                stack.enter_context(hurt())
            raised = train(model, records, hurt, options)
        said = [str(one.message) for one in said if str(one.message).startswith("fastrank")]
        trained = [(X.full_tensor() if kind == "fsdp" else X).detach() for X in model.parameters()]
        found[name] = {
            "records": list(records), "notes": records.notes, "said": said, "raised": raised,
            "seconds": time.monotonic() - start, "trained": trained,
        }  # fmt: skip
        torch.save(found, folder / f"rank{rank}.pt")
    fastrank.watch(small_net(), log=folder / "run", **OPTIONS).close()
    found["refused"] = {
        "every": refused(None, every=1 + rank),
        "budget": refused(None, budget=None if rank else "2%"),
        "log": refused(folder / "run"),
        "function": refused(None, every=Failing(bool, lambda step: False)),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    # All is imported once, for both.
    main(1 if os.fork() else 0, Path(sys.argv[1]))
