"""What the processes of torch.distributed saw of one step, brought together on rank 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastrank.small_grams import U64, SmallGram

#: Bytes to which each matrix is padded in a message, so that any dtype can be read in place.
ALIGN = 16


class Ranks:
    """This process among those of the default group; one alone where torch.distributed is not initialised.

    Every method but `whole` is a collective call when there are several that measure together.

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

    def shared(self, facts: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
        """The facts of every rank by rank, and the keys that all of them have, sorted."""
        everywhere: list[dict[str, Any]] = [{}] * self.size
        dist.all_gather_object(everywhere, dict(facts))
        return everywhere, sorted(set.intersection(*map(set, everywhere)))

    def rows(self, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{key: the rows of all ranks, in their order}, on rank 0; elsewhere nothing.

        Keys that a rank lacks, or has with other columns, are left out.
        """
        facts = {key: (tuple(X.shape), str(X.dtype)) for key, X in matrices.items()}
        everywhere, keys = self.shared(facts)
        keys = [
            key for key in keys
            if len({(shape[1:], dtype) for shape, dtype in (facts[key] for facts in everywhere)}) == 1
        ]  # fmt: skip
        if not keys:
            return {}
        message = _packed([matrices[key] for key in keys])
        sizes = [
            sum(_padded(_count(facts[key][0]) * matrices[key].element_size()) for key in keys) for facts in everywhere
        ]
        message = torch.nn.functional.pad(message, (0, max(sizes) - len(message)))
        received = [torch.empty_like(message) for _ in range(self.size)] if self.first else None
        dist.gather(message, received, dst=0)
        if received is None:
            return {}
        parts: dict[str, list[Tensor]] = {key: [] for key in keys}
        for facts, bytes in zip(everywhere, received, strict=True):
            at = 0
            for key in keys:
                shape, dtype = facts[key][0], matrices[key].dtype
                length = _count(shape) * dtype.itemsize
                parts[key].append(bytes[at : at + length].view(dtype).reshape(shape))
                at += _padded(length)
        return {key: torch.cat(members) for key, members in parts.items()}

    def sums(self, grams: Mapping[str, SmallGram]) -> dict[str, SmallGram]:
        """{key: the Gram matrix X^T X of the rows of all ranks}, on rank 0; elsewhere nothing."""
        everywhere, keys = self.shared({key: (g.n, g.d, str(g.dtype)) for key, g in grams.items()})
        keys = [key for key in keys if len({facts[key][1:] for facts in everywhere}) == 1]
        if not keys:
            return {}
        message = torch.cat([_message(grams[key]) for key in keys])
        dist.reduce(message, dst=0)
        found, at = {}, 0
        for key in keys if self.first else ():
            g = grams[key]
            area = g.G.numel()
            G, (error, moved) = message[at : at + area].reshape(g.G.shape), message[at + area : at + area + 2]
            at += area + 2
            # Each of the sums rounds once more, by at most u of what it adds up.
            error = error + self.size * U64 * G.diagonal().sum()
            n = sum(facts[key][0] for facts in everywhere)
            found[key] = SmallGram(G, n, g.d, g.dtype, g.centered, error, moved.sqrt())
        return found

    def agree(self, facts: Sequence[Any]) -> tuple[Any, ...]:
        """Rank 0's facts."""
        told = [tuple(facts)]
        dist.broadcast_object_list(told, src=0)
        return told[0]


def _message(g: SmallGram) -> Tensor:
    """What adds up over matrices of other rows: Gram matrices, their errors, and the squares of Frobenius norms."""
    return torch.cat([g.G.reshape(-1), g.error.reshape(1), g.moved.square().reshape(1)])


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A parameter or gradient that FSDP2 keeps in shards, whole: a collective call of its processes; others as is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def _packed(matrices: list[Tensor]) -> Tensor:
    flat = [X.contiguous().reshape(-1).view(torch.uint8) for X in matrices]
    return torch.cat([torch.nn.functional.pad(x, (0, _padded(len(x)) - len(x))) for x in flat])


def _padded(length: int) -> int:
    return -(-length // ALIGN) * ALIGN


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
