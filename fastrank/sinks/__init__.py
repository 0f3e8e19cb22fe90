"""Where the figures of a step go: what `watch(log=...)` takes beside the directory of a run database.

A sink is any object with `log_step(step, scalars, arrays)`, called once per tracked step with {key: float} and
{key: NumPy array}; `note(step, key, text)` and `close(finished)` are called where it has them.
"""

from __future__ import annotations

from fastrank.sinks.console import Console
from fastrank.sinks.many import Sinks, open_log
from fastrank.sinks.tables import CSV, Parquet
from fastrank.sinks.tensorboard import TensorBoard
from fastrank.sinks.wandb import WandB

__all__ = ["CSV", "Console", "Parquet", "Sinks", "TensorBoard", "WandB", "open_log"]
