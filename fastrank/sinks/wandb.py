"""`WandB`: a Weights & Biases run, the user's own or a new one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrank.errors import InputError
from fastrank.extras import require

#: The x axis of our figures: W&B's own step counts calls of `log`, the user's among them.
STEP = "fastrank/step"
#: A histogram is some 100 bytes a step and key, kept for ever: every step of 150 spectra would outgrow the scalars.
SPECTRA_EVERY = 100


class WandB:
    """A sink that logs to Weights & Biases, one `log` a step; the first part of a key is its section.

        with fastrank.watch(model, log=["runs/a", WandB(project="ranks", mode="offline")]) as w: ...

    A spectrum is a histogram whose bar i is as high as sigma_i. Notes go to the run's summary under `notes/`. Other
    figures may be logged to the same run at any rhythm: these have their own step axis.

    W&B takes about 30 microseconds a figure and step, 30 ms for the thousand of a ResNet-50: `every` thins out what it
    gets, and leaves the other sinks of a list every step.

    Args:
        run: a run that exists (`wandb.run`), which stays open at the end; a new one if left out.
        spectra_every: every how many steps a spectrum is logged; 0 for never.
        every: log every `every`-th step only.
        init: arguments of `wandb.init` for the new run, such as project=..., mode="offline", dir=....
    """

    def __init__(self, run: Any = None, spectra_every: int = SPECTRA_EVERY, every: int = 1, **init: Any) -> None:
        for name, value, least in (("spectra_every", spectra_every, 0), ("every", every, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(name, f"a whole number >= {least}", repr(value))
        self._wandb = require("wandb", "the Weights & Biases sink")
        self._owned = run is None
        self._run = self._wandb.init(**init) if run is None else run
        self._spectra_every, self._every = spectra_every, every
        self._sections: set[str] = set()
        self._run.define_metric(STEP, hidden=True)

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        if step % self._every:
            return
        figures: dict[str, Any] = {**scalars, STEP: step}
        if self._spectra_every and step % self._spectra_every == 0:
            for key, array in arrays.items():
                heights = np.asarray(array, np.float64)
                if heights.ndim == 1 and heights.size and np.isfinite(heights).all():
                    edges = np.arange(len(heights) + 1) + 0.5
                    figures[f"{key}/spectrum"] = self._wandb.Histogram(np_histogram=(heights, edges))
        for section in {key.partition("/")[0] for key in figures if "/" in key and key != STEP} - self._sections:
            self._sections.add(section)
            self._run.define_metric(f"{section}/*", step_metric=STEP)
        self._run.log(figures)

    def note(self, step: int, key: str, text: str) -> None:
        self._run.summary[f"notes/{key}"] = f"step {step}: {text}"

    def close(self, finished: bool = True) -> None:
        if self._owned:
            self._run.finish(exit_code=0 if finished else 1)
