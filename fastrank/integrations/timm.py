"""`watch_task`: `fastrank.watch` in timm's own train loop, which trains a `timm.task`.

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from fastrank.integrations.timm import watch_task

model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
task = ClassificationTask(model, torch.nn.CrossEntropyLoss())
optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1)
with watch_task(task, optimizer, log="runs/timm", metrics="light"):
    for step in range(2):  # what timm's train_one_epoch does
        result = task(torch.randn(8, 1, 32, 32), torch.randint(10, (8,)))
        result["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastrank.hooks import find_logits
from fastrank.integrations.tracking import Tracking


class watch_task:
    """Measures the model of a timm task whenever `optimizer` has stepped; one line in timm's train.py.

    It goes where the task and the optimizer are complete (distributed, compiled), on every process; the loop stays as
    it is. Rank 0 writes, and measures its own batch, or with all_ranks=True those of all processes as one. Logits,
    target and loss are those of the task's last forward. A plain model works too, without the target and the loss.

    Args:
        task: a timm.task.TrainingTask, or a model.
        optimizer: the torch.optim.Optimizer that trains it.
        log, options: those of `watch`.
        state: the `state_dict()` of an earlier watching, whose figures and `log` go on.

    Attributes:
        watcher: the Watcher, None after the end.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        log: Any = None,
        state: dict | None = None,
        **options: Any,
    ) -> None:
        trained = task.get_trainable_module() if hasattr(task, "get_trainable_module") else task
        self._tracking = Tracking(trained, log, options, _see, state, where=task)
        self._handle = optimizer.register_step_post_hook(self._after_step)

    @property
    def watcher(self):
        return self._tracking.watcher

    def state_dict(self) -> dict | None:
        return self._tracking.state_dict()

    def close(self, finished: bool = True) -> None:
        self._handle.remove()
        self._tracking.close(finished)

    def __enter__(self) -> watch_task:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close(finished=kind is None)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self._tracking.step(lr=optimizer.param_groups[0]["lr"])


def _see(args: tuple, kwargs: dict, output: object) -> dict[str, Tensor]:
    """Of a task's forward (input, target) -> {"loss", "output", ...}, or of a model's."""
    if not isinstance(output, dict) or "output" not in output:  # a plain model
        logits = find_logits(output)
        return {} if logits is None else {"logits": logits}
    target = kwargs.get("target", args[1] if len(args) > 1 else None)
    seen = {"logits": find_logits(output["output"]), "target": target, "loss": output.get("loss")}
    return {name: value for name, value in seen.items() if isinstance(value, Tensor)}
