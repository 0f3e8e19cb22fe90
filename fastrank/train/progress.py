"""What is seen of a training run: a live bar on a terminal, one line per epoch elsewhere, and the table at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from fastrank.extras import require

if TYPE_CHECKING:
    from fastrank.train.loop import Result

#: Weight of the newest step in the shown averages.
NEWEST = 0.1


class Progress:
    """Shows one run, as a context manager; `step` takes the figures of every step.

    Loss, accuracy and overhead are running means, rank and norm those of the last tracked batch.
    """

    def __init__(self, name: str, steps: int, steps_per_epoch: int, done: int) -> None:
        rich = require("rich.progress", "the progress bar")
        self._epochs, self._steps_per_epoch = steps // steps_per_epoch, steps_per_epoch
        self._bar = rich.Progress(
            rich.BarColumn(bar_width=8),
            rich.TextColumn("{task.fields[figures]}"),
            rich.TimeRemainingColumn(compact=True),
            transient=True,
        )
        self._name, self._live = name, self._bar.console.is_terminal
        self._task = self._bar.add_task(name, total=steps, completed=done, figures="")
        self._means: dict[str, float] = {}
        self._done = done

    def __enter__(self) -> Progress:
        if self._live:
            self._bar.console.print(self._name, highlight=False, markup=False)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def step(self, loss: float | None, figures: Mapping[str, float]) -> None:
        self._done += 1
        for key, value in {"loss": loss, **{k: figures.get(k) for k in ("train/accuracy", "cost/share")}}.items():
            if value is not None and math.isfinite(value):
                self._means[key] = value if key not in self._means else self._mean(key, value)
        text = f"{-(-self._done // self._steps_per_epoch)}/{self._epochs} {self._text(figures)}"
        self._bar.update(self._task, completed=self._done, figures=text)
        if not self._live and self._done % self._steps_per_epoch == 0:
            print(f"{self._name} epoch {text}", flush=True)

    def _mean(self, key: str, value: float) -> float:
        return self._means[key] + NEWEST * (value - self._means[key])

    def _text(self, figures: Mapping[str, float]) -> str:
        shown = [
            f"loss {self._means.get('loss', math.nan):.3f}",
            f"acc {_percent(self._means.get('train/accuracy'), 0)}",
        ]
        if "logits/rank" in figures:
            shown.append(f"rank {figures['logits/rank']:.0f}")
            shown.append(f"norm {figures['logits/norm']:.2g}")
        if "cost/share" in self._means:
            shown.append(f"tracking +{_percent(self._means['cost/share'], 0)}")
        elif "cost/setup_ms" in figures:
            shown.append(f"tracking set up in {figures['cost/setup_ms'] / 1e3:.2g} s")
        return " ".join(shown)


def print_summary(results: Sequence[Result]) -> None:
    """One row a run: temperature, accuracies, solution rank with its interval, logits norm, overhead, directory."""
    console = require("rich.console", "the summary").Console()
    setups = [found for result in results if (found := result.evaluation.get("tracking_setup")) is not None]
    first = f", after the first, which took up to {max(setups):.1f} s more" if setups else ""
    table = require("rich.table", "the summary").Table(
        box=require("rich.box", "the summary").SIMPLE_HEAD,
        caption=f"accuracy and rank over whole splits; tracking: time added to a training step{first}",
    )
    for column in ("T", "train", "test", "solution rank", "logits norm", "norm / T", "tracking"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        found = result.evaluation
        table.add_row(
            f"{found.get('temperature', result.config.temperature):g}",
            _percent(found["train_accuracy"]),
            _percent(found["test_accuracy"]),
            "{rank} [{lo}, {hi}]".format(**found["solution_rank"]),
            f"{found['logits_norm']:.4g}",
            f"{found['logits_norm_over_T']:.4g}",
            ("off" if found.get("tracking_setup") is None else "-")
            if found["overhead"] is None
            else f"+{_percent(found['overhead'])}",
        )
    console.print(table)
    for result in results:  # below the table, where a long path can be copied whole
        console.print(str(result.path), soft_wrap=True, highlight=False, markup=False)


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"
