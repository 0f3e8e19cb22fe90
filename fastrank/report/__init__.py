"""Runs side by side: in text at one step, and at all steps in a one-file HTML page."""

from fastrank.report.compare import Comparison, compare_runs, print_comparison
from fastrank.report.page import write_report

__all__ = ["Comparison", "compare_runs", "print_comparison", "write_report"]
