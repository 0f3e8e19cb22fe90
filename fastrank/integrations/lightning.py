"""`WatchCallback`: `fastrank.watch` in a Lightning Trainer.

import lightning
import torch
from fastrank.integrations.lightning import WatchCallback

class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

data = torch.utils.data.TensorDataset(torch.randn(60, 16), torch.randint(4, (60,)))
trainer = lightning.Trainer(max_epochs=2, callbacks=[WatchCallback(log="runs/lightning")])
trainer.fit(Classifier(), torch.utils.data.DataLoader(data, batch_size=20))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.hooks import find_logits, member
from fastrank.integrations.tracking import Tracking

pl = require("lightning.pytorch", "the Lightning callback")


class WatchCallback(pl.Callback):
    """Measures a LightningModule after each of its optimizer steps: rank 0's batch, or with all_ranks=True those of all
    processes as one. Rank 0 writes.

    The figures go to `log` and, every `log_every_n_steps` steps, to the Trainer's own loggers. Checkpoints of the
    Trainer hold what a resumed run needs to go on with the same figures and the same `log`. Of accumulated batches the
    last forward counts, as in `watch`. With manual optimization gradients must still be there when `training_step`
    returns.

    Args:
        module: name of the submodule to watch, where `training_step` calls it instead of the LightningModule's forward;
            left out, the LightningModule itself, or its only child with parameters where it defines no forward.
        log: as of `watch`; None for the Trainer's loggers alone.
        loggers: False keeps the figures out of the Trainer's loggers.
        logits: finds the logits in the output of the watched module's forward; by default `find_logits`.
        target: finds class indices in a batch, for `train/accuracy`; by default its second member.
        options: all others of `watch`: layers, every, metrics, seed, T, mode, window, budget, all_ranks, config.

    Attributes:
        watcher: the Watcher while training runs, else None.
    """

    def __init__(
        self,
        module: str | None = None,
        log: Any = None,
        loggers: bool = True,
        logits: Callable[[object], Tensor | None] = find_logits,
        target: Callable[[Any], Tensor | None] | None = None,
        **options: Any,
    ) -> None:
        self._module, self._log, self._loggers, self._options = module, log, loggers, options
        self._logits, self._target = logits, target or _second
        self._tracking: Tracking | None = None
        self._state: dict | None = None
        self._steps = 0

    @property
    def watcher(self):
        return self._tracking and self._tracking.watcher

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._end(finished=False)
        self._steps = trainer.global_step
        if not (trainer.is_global_zero or self._options.get("all_ranks")):
            return
        sinks = self._log if isinstance(self._log, list | tuple) and not hasattr(self._log, "log_step") else [self._log]
        sinks = [sink for sink in sinks if sink is not None]
        if self._loggers and trainer.loggers:
            sinks.append(_Loggers(trainer))
        module = _watched(pl_module, self._module)
        self._tracking = Tracking(module, sinks or None, self._options, self._see, self._state)

    def _see(self, args: tuple, kwargs: dict, output: object) -> dict[str, Tensor]:
        logits = self._logits(output)
        return {} if logits is None else {"logits": logits}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        if self._tracking is not None and stepped:
            loss = _loss(trainer, pl_module, outputs)
            self._tracking.step(lambda: self._target(batch), loss=loss, epoch=trainer.current_epoch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end(finished=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._end(finished=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._end(finished=False)

    def state_dict(self) -> dict[str, Any]:
        self._keep_state()
        return {} if self._state is None else {"watcher": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict.get("watcher")

    def _keep_state(self) -> None:
        if self._tracking is not None:
            self._state = self._tracking.state_dict() or self._state

    def _end(self, finished: bool) -> None:
        if self._tracking is not None:
            self._keep_state()  # a further `fit` goes on from here
            self._tracking.close(finished)
            self._tracking = None


class _Loggers:
    """The Trainer's loggers as a sink: scalars, as often as the Trainer itself logs."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        if (step + 1) % max(self._trainer.log_every_n_steps, 1):
            return
        for logger in self._trainer.loggers:
            logger.log_metrics(dict(scalars), step)


def _watched(pl_module: Any, name: str | None) -> nn.Module:
    children = {child: part for child, part in pl_module.named_children() if any(True for _ in part.parameters())}
    if name is not None:
        try:
            return pl_module.get_submodule(name)
        except AttributeError:
            raise InputError("module", f"a submodule such as {', '.join(children) or 'none'}", repr(name)) from None
    if type(pl_module).forward is not pl.LightningModule.forward:
        return pl_module
    if len(children) == 1:
        return next(iter(children.values()))
    raise InputError("module", f"the one of {', '.join(children)} that training_step calls", "None")


def _second(batch: Any) -> Any:
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def _loss(trainer: Any, pl_module: Any, outputs: Any) -> Tensor | None:
    """What `training_step` returned; Lightning hands it on divided by the number of accumulated batches."""
    loss = outputs if isinstance(outputs, Tensor) else member(outputs, "loss")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    return loss.detach() * (trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1)
