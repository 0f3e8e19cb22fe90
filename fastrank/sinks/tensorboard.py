"""`TensorBoard`: scalars, spectra and notes in an event file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fastrank.errors import InputError
from fastrank.extras import require

#: TensorBoard shows a few hundred histograms of a tag at most, a random choice: more cost time and disk unseen.
SPECTRA_EVERY = 100
#: Seconds between flushes of the writer's own thread: what a kill may lose.
FLUSH_SECONDS = 10


class TensorBoard:
    """A sink that writes what `tensorboard --logdir` shows.

        with fastrank.watch(model, log=["runs/a", TensorBoard("runs/tensorboard/a")]) as w: ...

    Scalars keep their keys as tags. A spectrum is a histogram whose bar i is as high as sigma_i, so that its shape, not
    the spread of its values, is what is seen. Notes are texts. The event is written by a thread of TensorBoard's.

    Args:
        path: the directory of the event file; an existing one gets another file, as TensorBoard does on a restart.
        spectra_every: every how many steps a spectrum is written; 0 for never.

    Raises InputError where `path` cannot be written; ImportError without tensorboard.
    """

    def __init__(self, path: str | os.PathLike, spectra_every: int = SPECTRA_EVERY) -> None:
        require("tensorboard", "the TensorBoard sink")
        from torch.utils.tensorboard import summary
        from torch.utils.tensorboard.writer import FileWriter

        if isinstance(spectra_every, bool) or not isinstance(spectra_every, int) or spectra_every < 0:
            raise InputError("spectra_every", "a whole number >= 0", repr(spectra_every))
        self.path, self._spectra_every, self._summary = Path(path), spectra_every, summary
        try:
            self._writer = FileWriter(self.path, max_queue=100, flush_secs=FLUSH_SECONDS)
        except OSError as error:
            raise InputError("path", "a directory that can be written", f"{path} ({error.strerror or error})") from None

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        # One event for all scalars: one per scalar, as SummaryWriter.add_scalar writes, takes several times as long.
        event = self._summary.Summary()
        for key, value in scalars.items():
            event.value.add(tag=key, simple_value=value)
        if self._spectra_every and step % self._spectra_every == 0:
            for key, array in arrays.items():
                heights = np.asarray(array, np.float64)
                if heights.ndim == 1 and heights.size and np.isfinite(heights).all():
                    event.value.add(tag=f"{key}/spectrum").histo.CopyFrom(self._bars(heights))
        self._writer.add_summary(event, step)

    def note(self, step: int, key: str, text: str) -> None:
        self._writer.add_summary(self._summary.text(f"notes/{key}", text), step)

    def close(self, finished: bool = True) -> None:
        self._writer.close()

    def _bars(self, heights: np.ndarray):
        """A histogram over 1 ... n with these counts, the bars one wide."""
        edges = np.arange(1, len(heights) + 1) + 0.5
        places = np.arange(1, len(heights) + 1)
        return self._summary.HistogramProto(
            min=0.5,
            max=edges[-1],
            num=heights.sum(),
            sum=(places * heights).sum(),
            sum_squares=(places**2 * heights).sum(),
            bucket_limit=edges,
            bucket=heights,
        )
