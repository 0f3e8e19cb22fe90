"""The run database: one directory per run, one SQLite transaction per step, readable at any moment."""

from fastrank.record.amend import add_evaluation
from fastrank.record.export import export_run
from fastrank.record.reader import Run, load_run
from fastrank.record.writer import RunWriter

__all__ = ["Run", "RunWriter", "add_evaluation", "export_run", "load_run"]
