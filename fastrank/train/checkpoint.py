"""What a run needs to go on as if it had never stopped, in one file that is replaced whole.

A file holds tensors and plain values only and is read with `weights_only=True`: loading runs no code from it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from fastrank.errors import InputError

FILE = "checkpoint.pt"
FORMAT = 1


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Writes `state` beside the old checkpoint of the run's directory, then puts it in its place: a kill leaves one."""
    partial = run / f"{FILE}.part"
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, run / FILE)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The state on the CPU, None where the run has none yet; InputError where the file is damaged or not ours."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        got = f"{path}, which is damaged or not a checkpoint ({type(error).__name__})"
        raise InputError("checkpoint", "a file that fastrank wrote", got, "delete the run's directory") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError("checkpoint", f"a file of format {FORMAT}", f"{path} of another", "delete the run's directory")
    return state


def rng_state() -> dict[str, Any]:
    """Of torch's global generators, on which dropout and the like draw; data and tracking have their own."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
