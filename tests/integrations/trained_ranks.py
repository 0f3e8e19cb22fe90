"""Lightning and the Trainer under `all_ranks=True`: `torchrun --nproc-per-node 2 trained_ranks.py FOLDER`.

`python trained_ranks.py FOLDER PORT` is both processes too, and imports everything once; see test_all_ranks.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import lightning
import torch
import transformers
from torch import nn
from watched_loop import Records, off_the_checkout, small_batches, small_net

import fastrank.integrations.lightning as in_lightning
import fastrank.integrations.transformers as in_transformers

OPTIONS = {"metrics": ["act", "logits", "weight", "grad", "align"], "window": 2, "all_ranks": True}
STEPS, SIZE = 4, 8


def rank():
    return int(os.environ["RANK"])


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = small_net()

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(*small_net())

    def forward(self, x, labels=None):
        logits = super().forward(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def by_lightning(folder, log, steps=STEPS, resume=None, **options):
    """Each process has its half of every batch."""
    batches = small_batches(STEPS, SIZE)[steps - 2 : steps]  # a whole epoch: Lightning gives what is left of one anew
    halves = [[x.chunk(2)[rank()] for x in batch] for batch in batches]
    trainer = lightning.Trainer(
        max_epochs=steps // 2, strategy="ddp", devices=2, accelerator="cpu", use_distributed_sampler=False,
        logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
        callbacks=[in_lightning.WatchCallback(log=log, **OPTIONS, **options)],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(halves, batch_size=None), ckpt_path=resume)
    return trainer


def by_trainer(folder, log, steps=STEPS, resume=None, **options):
    """The Trainer gives each process its half itself."""
    rows = [{"x": x, "labels": y} for batch in small_batches(STEPS, SIZE) for x, y in zip(*batch, strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, use_cpu=True, report_to="none", per_device_train_batch_size=SIZE // 2,
        disable_tqdm=True, train_sampling_strategy="sequential", logging_strategy="no", remove_unused_columns=False,
        save_strategy="steps", save_steps=2, max_grad_norm=0.0, learning_rate=0.1,
    )  # fmt: skip
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[in_transformers.WatchCallback(log=log, **OPTIONS, **options)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)


def main(folder):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off_the_checkout(transformers.utils.is_kernels_available)
    found = {name: Records() for name in ("lightning", "lightning resumed", "trainer", "trainer resumed", "failing")}
    trainer = by_lightning(folder / "a", found["lightning"], steps=2)
    trainer.save_checkpoint(folder / "half.ckpt")
    by_lightning(folder / "a", found["lightning resumed"], resume=folder / "half.ckpt")
    by_trainer(folder / "b", found["trainer"])
    if rank():  # as on a machine without the other's files
        in_transformers.STATE = "elsewhere.pt"
    by_trainer(folder / "b", found["trainer resumed"], resume=str(folder / "b" / "checkpoint-2"))
    in_transformers.STATE = "fastrank.pt"

    def fails_once(output):
        found["failing"].notes.append((0, "call", ""))
        if rank() and len(found["failing"].notes) == 2:
            raise ValueError("mine")
        return output["logits"]

    said = []
    warnings.showwarning = lambda message, *_: said.append(str(message))
    warnings.simplefilter("always")
    by_trainer(folder / "c", found["failing"], logits=fails_once)
    said = [text for text in said if text.startswith("fastrank: ")]
    torch.save({**{name: list(records) for name, records in found.items()}, "said": said}, folder / f"rank{rank()}.pt")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        here = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": sys.argv[2],
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
        }
        os.environ |= {**here, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = "1" if os.fork() else "0"
    main(Path(sys.argv[1]))
