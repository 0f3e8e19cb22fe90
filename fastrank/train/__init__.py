"""Thin training harness: data, networks, one loop with tracking, checkpoints."""

from fastrank.train.config import TrainConfig
from fastrank.train.loop import Interrupted, Result, train, train_all
from fastrank.train.models import parse_kwargs
from fastrank.train.presets import PRESETS, preset_fields
from fastrank.train.progress import print_summary

__all__ = [
    "PRESETS",
    "Interrupted",
    "Result",
    "TrainConfig",
    "parse_kwargs",
    "preset_fields",
    "print_summary",
    "train",
    "train_all",
]
