"""What a killed simulation goes on from: a file that only a call with the same arguments reads."""

from __future__ import annotations

import hashlib
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.record.export import replacing

#: Seconds between checkpoints, at most one per record.
SAVE_EVERY = 30.0


class Checkpoint:
    """`path` None: nothing is read or written. `arguments`: all that the figures depend on."""

    def __init__(self, path: Path | None, *arguments: Any) -> None:
        self._path, self._saved = path, time.monotonic()
        # A call with other arguments would go on from a state that is not its own.
        self._key = "" if path is None else _fingerprint(*arguments)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What `save` was given last; None without a file.

        Raises:
            InputError: a file of another call, or none that `save` wrote.
        """
        if self._path is None or not self._path.is_file():
            return None
        try:
            held = torch.load(self._path, map_location=device, weights_only=True)
        except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            got = f"{self._path} ({type(error).__name__})"
            raise InputError("checkpoint", "a file that this function wrote", got, "delete it") from None
        if not isinstance(held, dict) or held.get("key") != self._key:
            raise InputError("checkpoint", "one of a call with these arguments", str(self._path), "delete it")
        return held["state"]

    def save(self, state: dict[str, Any], last: bool = False) -> None:
        """Writes `state` where the last time is long ago, or this is the `last`."""
        if self._path is None or not (last or time.monotonic() - self._saved > SAVE_EVERY):
            return
        with replacing(self._path) as partial:
            torch.save({"key": self._key, "state": state}, partial)
        self._saved = time.monotonic()


def _fingerprint(*arguments: Any) -> str:
    hashed = hashlib.sha256()
    for value in arguments:
        hashed.update(value.cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return hashed.hexdigest()
