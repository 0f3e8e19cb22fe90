"""A seeded sample of bounded size from a stream, uniform without replacement, the same for any batch size."""

from __future__ import annotations

import torch
from torch import Tensor

#: Share of the samples held out to measure probes where no test set is given: one in so many.
HELD_OUT = 5


class Sample:
    """The `capacity` rows with the smallest keys, a row's key being a hash of the seed and its position."""

    def __init__(self, capacity: int, seed: int, device: torch.device) -> None:
        self.capacity, self._seed, self._device = capacity, seed, device
        self.keys = torch.empty(0, dtype=torch.int64, device=device)

    @property
    def rows(self) -> int:
        return len(self.keys)

    def take(self, first: int, rows: int) -> tuple[Tensor, Tensor]:
        """(which of the next `rows` rows to keep, into which slots); slots already used are overwritten."""
        new = keys(first, rows, self._seed, self._device)
        used = len(self.keys)
        free = min(self.capacity - used, rows)
        self.keys = torch.cat([self.keys, new[:free]])
        taken, slots = torch.arange(free, device=new.device), torch.arange(used, used + free, device=new.device)
        if free == rows or not self.capacity:
            return taken, slots
        both = torch.cat([self.keys, new[free:]])
        keep = torch.zeros(len(both), dtype=torch.bool, device=new.device)
        keep[both.topk(self.capacity, largest=False).indices] = True
        out, into = (~keep[: self.capacity]).nonzero().flatten(), keep[self.capacity :].nonzero().flatten()
        self.keys[out] = new[free:][into]
        # A row that came in above may be thrown out at once: the later writer of a slot is the one that counts.
        stays = ~torch.isin(slots, out)
        return torch.cat([taken[stays], into + free]), torch.cat([slots[stays], out])


def keys(first: int, rows: int, seed: int, device: torch.device) -> Tensor:
    """[rows] int64 >= 0: well-mixed bits of (seed, position) (splitmix64)."""
    z = torch.arange(first, first + rows, device=device) + _signed(seed * 0x9E3779B97F4A7C15)
    for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
        z = (z ^ _logical(z, shift)) * _signed(factor)
    return (z ^ _logical(z, 31)) & 0x7FFFFFFFFFFFFFFF


def held_out(keys: Tensor) -> Tensor:
    """[rows] bool: one in HELD_OUT, by bits that the order of the keys does not depend on."""
    return (keys & 0xFFFFFF) % HELD_OUT == 0


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _logical(z: Tensor, shift: int) -> Tensor:
    return (z >> shift) & ((1 << (64 - shift)) - 1)
