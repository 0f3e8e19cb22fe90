"""`WatchCallback`: `fastrank.watch` in a Hugging Face Trainer.

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from fastrank.integrations.transformers import WatchCallback

config = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
)
data = [{"input_ids": torch.randint(50, (8,)), "labels": i % 3} for i in range(30)]
trainer = Trainer(
    BertForSequenceClassification(config),
    TrainingArguments("runs/checkpoints", num_train_epochs=1, use_cpu=True, report_to="none"),
    train_dataset=data,
    callbacks=[WatchCallback(log="runs/bert", mode="channels")],
)
trainer.train()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrank.extras import require
from fastrank.hooks import find_logits, member
from fastrank.integrations.tracking import Tracking
from fastrank.tracking.step_arguments import class_rows

transformers = require("transformers", "the Trainer callback")

#: Beside the Trainer's own files in a checkpoint.
STATE = "fastrank.pt"


class WatchCallback(transformers.TrainerCallback):
    """Measures the Trainer's model after each optimizer step: the batch of rank 0, or with all_ranks=True those of all
    processes as one. Rank 0 writes.

    Gradients are those that the optimizer used, after clipping. Every checkpoint gets a file `fastrank.pt`, with which
    a resumed training goes on with the same figures and the same `log`. Logits are found in any output that has them;
    those of tokens [batch, tokens, classes] as 1,024 evenly spaced positions, padding included. Loss and
    accuracy are recorded where the model is given `labels`, the loss only without gradient accumulation, which
    rescales it.

    Args:
        log: as of `watch`. A `WandB()` of `fastrank.sinks` and the Trainer's own reports share one run.
        logits: finds the logits in the model's output; by default `find_logits`.
        options: all others of `watch`: layers, every, metrics, seed, T, mode, window, budget, all_ranks, config.

    Attributes:
        watcher: the Watcher while training runs, else None.
    """

    def __init__(
        self, log: Any = None, logits: Callable[[object], Tensor | None] = find_logits, **options: Any
    ) -> None:
        self._log, self._logits, self._options = log, logits, options
        self._tracking: Tracking | None = None
        self._whole_loss = True

    @property
    def watcher(self):
        return self._tracking and self._tracking.watcher

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._tracking is not None:  # an exception ended the last training; the Trainer tells no one
            self._tracking.close(finished=False)
            self._tracking = None
        self._whole_loss = args.gradient_accumulation_steps == 1
        if state.is_world_process_zero or self._options.get("all_ranks"):
            before = _stored(args, state.global_step) if state.global_step else None
            self._tracking = Tracking(model, self._log, self._options, self._see, before)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        if self._tracking is not None:
            lr = lr_scheduler.get_last_lr()[0] if lr_scheduler is not None else None
            self._tracking.step(lr=lr)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = _checkpoint(args, state.global_step)
        if self._tracking is None or not state.is_world_process_zero or not folder.is_dir():
            return
        if (watched := self._tracking.state_dict()) is not None:
            self._tracking.attempt(lambda: torch.save(watched, folder / STATE))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._tracking is not None:
            self._tracking.close()
            self._tracking = None

    def _see(self, args: tuple, kwargs: dict, output: object) -> dict[str, Tensor]:
        seen = {"logits": self._logits(output), "target": kwargs.get("labels")}
        loss = member(output, "loss")
        if self._whole_loss and isinstance(loss, Tensor) and loss.numel() == 1:
            seen["loss"] = loss
        if seen["logits"] is not None and seen["logits"].ndim == 3:
            # Rows at once: labels of tokens may be meant for the next position, and are not compared.
            seen["logits"], _ = class_rows(seen["logits"], None)
        return {name: value for name, value in seen.items() if isinstance(value, Tensor)}


def _checkpoint(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _stored(args: Any, step: int) -> dict:
    """The watcher's state at `step`; without its file only the number of the step, and subspaces begin anew."""
    given = args.resume_from_checkpoint
    for folder in [*([Path(given)] if isinstance(given, str) else []), _checkpoint(args, step)]:
        if (folder / STATE).is_file():
            try:
                found = torch.load(folder / STATE, map_location="cpu", weights_only=True)
                if found["step"] == step:
                    return found
            except Exception as error:
                warnings.warn(f"fastrank: {folder / STATE} cannot be read: {error}", RuntimeWarning, stacklevel=2)
    return {"step": step}
