"""The figures of one step, on the devices where they were made until one copy brings them to the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastrank.metrics import OF_SPECTRUM
from fastrank.ranks import rank_counts
from fastrank.spectra import Spectrum, Stack


class Figures:
    """Numbers and small arrays by key; nothing waits for a device before `to_host`."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._numbers: list[Tensor] = []
        self._arrays: dict[str, Tensor] = {}

    def add(self, keys: Sequence[str], values: Tensor) -> None:
        """values: as many numbers as keys, any dtype."""
        self._keys += keys
        self._numbers.append(values)

    def add_array(self, key: str, array: Tensor) -> None:
        self._arrays[key] = array

    def add_spectra(self, spectra: dict[str, Spectrum], names: Sequence[str], top: int) -> None:
        """Rank with its interval, sigma_1, the figures `names` of OF_SPECTRUM and the `top` singular values of each.

        Spectra of one length are worked out together: some thirty small operations for all of them.
        """
        groups: dict[tuple, list[str]] = {}
        for key, s in spectra.items():
            groups.setdefault((len(s.sigma), s.sigma.device), []).append(key)
        for keys in groups.values():
            stack = Stack([spectra[key] for key in keys])
            columns = dict(zip(("rank", "rank_lo", "rank_hi"), rank_counts(stack), strict=True))
            columns["sigma_1"] = stack.sigma[:, :1].sum(1)
            columns |= {name: OF_SPECTRUM[name](stack) for name in names}
            self.add([f"{key}/{name}" for key in keys for name in columns], torch.stack([*columns.values()], 1))
            for key, sigma in zip(keys, stack.sigma[:, :top], strict=True):
                self.add_array(f"{key}/sigma", sigma)

    def to_host(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        parts = [part.detach().reshape(-1).double() for part in (*self._numbers, *self._arrays.values())]
        device = next((part.device for part in parts if part.device.type != "cpu"), torch.device("cpu"))
        host = (
            torch.cat([part.to(device) for part in parts]).cpu()
            if parts
            else torch.empty(0, dtype=torch.float64, device="cpu")
        )
        at = len(self._keys)
        numbers, arrays = dict(zip(self._keys, host[:at].tolist(), strict=True)), {}
        for key, array in self._arrays.items():
            arrays[key] = host[at : at + array.numel()].reshape(array.shape).numpy()
            at += array.numel()
        return numbers, arrays
