"""What the processes of torch.distributed saw of one step, brought together on rank 0.

No process may wait for one that failed. So everything that can fail on one of them alone (memory, a matrix that is not
what it seems) comes before the messages, and every process tells whether it did: what one of them lacks, all leave out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastrank.errors import InputError
from fastrank.gram import GramState
from fastrank.small_grams import U64, SmallGram

#: Bytes to which each matrix is padded in a message, so that any dtype can be read in place.
ALIGN = 16

#: What one process says of a key: (its own number of rows, all that has to be the same on every process).
Fact = tuple[int, tuple]


class Ranks:
    """This process among those of the default group; one alone where torch.distributed is not initialised.

    Attributes:
        rank, size: of the group. together: whether all measure together. first: whether this one computes and writes.
    """

    def __init__(self, together: bool) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
        self.together = together and self.size > 1
        self.first = self.rank == 0

    @property
    def measures(self) -> bool:
        return self.first or self.together

    def everyones(self, mine: Any) -> list[Any]:
        """Small plain values of all processes, by rank: a collective call."""
        if not self.together:
            return [mine]
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, mine)
        return told

    def agree(self, facts: Sequence[Any]) -> tuple[Any, ...]:
        """Rank 0's facts: a collective call."""
        told = [tuple(facts)]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def jointly(self, action: Callable[[], Any]) -> Any:
        """What `action()` gives here; where it raises on one process, all raise. A collective call.

        Raises:
            RuntimeError: what another process said.
        """
        result = mistake = None
        try:
            result = action()
        except Exception as error:
            mistake = error
        told = self.everyones(None if mistake is None else f"{type(mistake).__name__}: {mistake}")
        if mistake is not None:
            raise mistake
        for rank, text in enumerate(told):
            if text is not None:
                raise RuntimeError(f"process {rank} failed: {text}")
        return result

    def same(self, options: Mapping[str, Any]) -> None:
        """A collective call.

        Raises:
            InputError: on every process, where one of them was given other options.
        """
        # Where an object lies in memory is no difference.
        told = self.everyones({name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in options.items()})
        for rank, theirs in enumerate(told):
            for name, value in told[0].items():
                if theirs[name] != value:
                    raise InputError(
                        name, f"the same on every process, {value} as on rank 0", f"{theirs[name]} on {rank}"
                    )

    def exchange(
        self, parts: Sequence[Part], told: Sequence[Sequence[Mapping[str, Fact]]]
    ) -> list[tuple[int, str, str]]:
        """Brings every part together; then `part.found(key)` is there on rank 0 for its `part.keys`. A collective call.

        Args:
            told: by rank, the facts of each part.
        Returns:
            (rank, key, what it said) of every key that a process could not send, and which all left out.
        Raises:
            Exception: of a message itself. This process is then out of step with the others.
        """
        for part, facts in zip(parts, zip(*told, strict=True), strict=True):
            part.agree(facts)
        if not any(part.keys for part in parts):
            return []
        failed = [(part.prepare() if part.keys else {}) for part in parts]
        failures = []
        for rank, theirs in enumerate(self.everyones(failed)):
            for part, reasons in zip(parts, theirs, strict=True):
                part.keys = [key for key in part.keys if key not in reasons]
                failures += [(rank, key, reason) for key, reason in reasons.items()]
        for part in parts:
            if part.keys:
                part.send()
        return failures


class Part:
    """What a process has of one kind, by key, and how all of that becomes one.

    Attributes:
        facts: of each. keys: those that all processes can send, in the same order.
    """

    def __init__(self, ranks: Ranks, mine: Mapping[str, Any]) -> None:
        self.keys: list[str] = []
        self._ranks, self._mine = ranks, mine
        self.facts: dict[str, Fact] = {key: self._fact(item) for key, item in mine.items()}

    def agree(self, everywhere: Sequence[Mapping[str, Fact]]) -> None:
        self._everywhere = everywhere
        common = sorted(set.intersection(*map(set, everywhere)))
        self.keys = [key for key in common if len({facts[key][1] for facts in everywhere}) == 1]

    def prepare(self) -> dict[str, str]:
        """All that can fail on this process alone: {key: why}."""
        try:
            return self._reserve()
        except Exception as error:
            return dict.fromkeys(self.keys, _said(error))

    def why_not(self, key: str) -> str:
        """Why all leave out a key that one of them has."""
        missing = [str(rank) for rank, facts in enumerate(self._everywhere) if key not in facts]
        if missing:
            return f"left out: not there on process {', '.join(missing)}"
        return "left out: not the same columns on every process"

    def _each(self, action: Callable[[str], None]) -> dict[str, str]:
        failed = {}
        for key in self.keys:
            try:
                action(key)
            except Exception as error:
                failed[key] = _said(error)
        return failed

    def _fact(self, item: Any) -> Fact:
        raise NotImplementedError

    def _reserve(self) -> dict[str, str]:
        """`prepare`, where an exception counts to all keys."""
        raise NotImplementedError

    def send(self) -> None:
        """Messages, and nothing else that could fail."""
        raise NotImplementedError

    def found(self, key: str) -> Any:
        """On rank 0."""
        raise NotImplementedError


class Rows(Part):
    """Matrices: `found` has the rows of all processes, in their order."""

    def _fact(self, item: Tensor) -> Fact:
        return len(item), (tuple(item.shape[1:]), str(item.dtype), item.device.type)

    def _reserve(self) -> dict[str, str]:
        first = self._mine[self.keys[0]]
        # By rank and key, where it begins and ends.
        self._places: list[dict[str, tuple[int, int]]] = []
        for facts in self._everywhere:
            at, places = 0, {}
            for key in self.keys:
                length = facts[key][0] * _count(facts[key][1][0]) * self._mine[key].element_size()
                places[key] = at, at + length
                at += -(-length // ALIGN) * ALIGN
            self._places.append(places | {"": (at, at)})
        size = max(places[""][0] for places in self._places)
        self._message = torch.zeros(size, dtype=torch.uint8, device=first.device)
        self._received = (
            [torch.empty_like(self._message) for _ in range(self._ranks.size)] if self._ranks.first else None
        )

        def write(key: str) -> None:
            start, end = self._places[self._ranks.rank][key]
            self._message[start:end] = self._mine[key].contiguous().reshape(-1).view(torch.uint8)

        return self._each(write)

    def send(self) -> None:
        dist.gather(self._message, self._received, dst=0)

    def found(self, key: str) -> Tensor:
        X = self._mine[key]
        everyones = zip(self._received, self._places, self._everywhere, strict=True)
        return torch.cat([
            message[slice(*places[key])].view(X.dtype).reshape(facts[key][0], *X.shape[1:])
            for message, places, facts in everyones
        ])  # fmt: skip


class Sums(Part):
    """Gram matrices: `found` is that of the rows of all processes."""

    def _fact(self, item: SmallGram) -> Fact:
        return item.n, (item.d, str(item.dtype), item.G.device.type, len(item.G))

    def _reserve(self) -> dict[str, str]:
        sizes = [self._mine[key].G.numel() + 2 for key in self.keys]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        self._places = {key: (end - size, end) for key, size, end in zip(self.keys, sizes, ends, strict=True)}
        G = self._mine[self.keys[0]].G
        self._message = torch.zeros(ends[-1], dtype=G.dtype, device=G.device)

        def write(key: str) -> None:
            """What adds up over matrices of other rows: Gram matrices, their errors, squares of Frobenius norms."""
            g = self._mine[key]
            start, end = self._places[key]
            self._message[start : end - 2] = g.G.reshape(-1)
            self._message[end - 2] = g.error
            self._message[end - 1] = g.moved.square()

        return self._each(write)

    def send(self) -> None:
        dist.reduce(self._message, dst=0)

    def found(self, key: str) -> SmallGram:
        g, (start, end) = self._mine[key], self._places[key]
        G, (error, moved) = self._message[start : end - 2].reshape(g.G.shape), self._message[end - 2 : end]
        # Each of the sums rounds once more, by at most u of what it adds up.
        error = error + self._ranks.size * U64 * G.diagonal().sum()
        n = sum(facts[key][0] for facts in self._everywhere)
        return SmallGram(G, n, g.d, g.dtype, g.centered, error, moved.sqrt())


class Shards(Part):
    """Parameters and gradients that FSDP2 keeps in shards: `found` is the whole tensor."""

    def _fact(self, item: Tensor) -> Fact:
        return 0, (tuple(item.shape), str(item.dtype), item.device.type)

    def _reserve(self) -> dict[str, str]:
        # Rank 0 holds all of them in the end, the others one at a time.
        taken = []

        def reserve(key: str) -> None:
            X = self._mine[key]
            room = torch.empty(tuple(X.shape), dtype=X.dtype, device=X.to_local().device)
            if self._ranks.first:
                taken.append(room)

        return self._each(reserve)

    def send(self) -> None:
        self._whole = {}
        for key in self.keys:
            whole = self._mine[key].full_tensor()
            if self._ranks.first:
                self._whole[key] = whole

    def found(self, key: str) -> Tensor:
        return self._whole[key]


class States(Part):
    """Gram states of windows: `found` is that of the rows of all processes. They are used up."""

    def _fact(self, item: GramState) -> Fact:
        return item.n, (item.d, item.mode, item.device.type)

    def _reserve(self) -> dict[str, str]:
        # Moving a state to another shift takes its size a few times over.
        def reserve(key: str) -> None:
            torch.empty(4 * self._mine[key].d ** 2, dtype=torch.float64, device=self._mine[key].device)

        return self._each(reserve)

    def send(self) -> None:
        for key in self.keys:
            self._mine[key].all_reduce()

    def found(self, key: str) -> GramState:
        return self._mine[key]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
