"""The one-file HTML page that compares runs."""

from fastrank.report.page import write_report

__all__ = ["write_report"]
