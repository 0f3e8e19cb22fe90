"""Two processes that train one small network: `python watched_ranks.py FOLDER`; see test_watcher_ranks."""

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from watched_loop import Records, small_batches, small_net

import fastrank
from fastrank.integrations.timm import watch_task

SIZE = 2
OPTIONS = {"metrics": ["act", "logits", "weight", "grad", "align"], "window": 2}


def share(batch, rank):
    """Rank 0 has the first four samples, rank 1 the other five."""
    return [x[:4] if rank == 0 else x[4:] for x in batch]


def train(model, log, batches, rank, stop=None, **options):
    """Two micro-batches a step. The loss is the mean over the samples of both ranks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with fastrank.watch(model, log=log, **OPTIONS, **options) as w:
        for number, batch in enumerate(batches, 1):
            x, y = share(batch, rank)
            loss = nn.functional.cross_entropy(model(x), y, reduction="sum") * SIZE / len(batch[0])
            loss.backward()
            if number % 2 == 0:
                optimizer.step()
                w.step(target=y)
                optimizer.zero_grad()
            if number == stop:
                os._exit(1)


def train_by_adapter(model, log, batches, rank):
    """The same through the adapter that every process of a timm loop calls; its model shows no target."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with watch_task(model, optimizer, log=log, all_ranks=True, **OPTIONS):
        for number, batch in enumerate(batches, 1):
            x, y = share(batch, rank)
            (nn.functional.cross_entropy(model(x), y, reduction="sum") * SIZE / len(batch[0])).backward()
            if number % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()


def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    found, mesh = {}, init_device_mesh("cpu", (SIZE,))
    for name in ("ddp", "fsdp", "rank 0", "budget", "fsdp rank 0"):
        model = small_net()
        if name.startswith("fsdp"):
            fully_shard(model[0], mesh=mesh)
            fully_shard(model[2], mesh=mesh, reshard_after_forward=False)
            fully_shard(model, mesh=mesh)
        else:
            model = DistributedDataParallel(model)
        options = {"all_ranks": "rank 0" not in name} | ({"budget": "90%"} if name == "budget" else {})
        records = found[name] = Records()
        train(model, records, small_batches(6), rank, **options)
    found["adapter"] = Records()
    train_by_adapter(DistributedDataParallel(small_net()), found["adapter"], small_batches(6), rank)
    torch.save({name: (list(records), records.notes) for name, records in found.items()}, folder / f"rank{rank}.pt")
    dist.barrier()
    # Rank 1 dies after its second step; rank 0 notices at its next collective call.
    try:
        warnings.simplefilter("ignore")
        log, stop = folder / "dying", 5 if rank == 1 else None
        train(DistributedDataParallel(small_net()), log, small_batches(6), rank, stop, all_ranks=True)
    except RuntimeError:
        os._exit(0)


if __name__ == "__main__":
    # All is imported once, for both.
    main(1 if os.fork() else 0, Path(sys.argv[1]))
