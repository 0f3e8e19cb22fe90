"""The deep unconstrained feature model: a chain of matrices on identity inputs, its loss and its gradients.

Samples are rows, as everywhere in the package: `Z = W_1 W_2 ... W_L` with W_1 [N, d] the features that training moves
freely (their input is the identity, one orthogonal direction per sample), W_2 ... W_{L-1} [d, d] and W_L [d, C]. The
literature writes the transpose. With L = 1, Z = W_1 [N, C] is itself trained: multinomial regression. The loss is the
unregularised cross-entropy, mean over the N = C * samples rows of Z.

Every tensor has a leading dimension of runs. Nothing here mixes two runs, so a run's numbers do not depend on its
company, and one that diverges harms no other. DevNotes.md has the derivations.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrank.errors import InputError

#: A multiple of the elements that torch's vector code takes at a time, in any dtype on any CPU.
VECTOR = 64


@dataclass(frozen=True)
class DeepUFM:
    """Sizes of the model: C classes, L >= 1 layers, inner width d, n samples per class.

    Raises:
        InputError: classes < 2, or another size < 1.
    """

    classes: int = 10
    depth: int = 3
    width: int = 32
    samples: int = 1

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("depth", 1), ("width", 1), ("samples", 1)):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= least):
                raise InputError(name, f"an integer of at least {least}", getattr(self, name))

    @property
    def rows(self) -> int:
        """N, the number of samples."""
        return self.classes * self.samples

    @property
    def labels(self) -> Tensor:
        """[N] int64; the samples of a class are neighbours."""
        return torch.arange(self.classes).repeat_interleave(self.samples)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of W_1 ... W_L."""
        sizes = [self.rows, *[self.width] * (self.depth - 1), self.classes]
        return list(itertools.pairwise(sizes))

    @property
    def parameters(self) -> int:
        return sum(m * n for m, n in self.shapes)


def split(flat: Tensor, model: DeepUFM) -> list[Tensor]:
    """Views [B, m, n] of the layers in a flat state [B, parameters]."""
    sizes = [m * n for m, n in model.shapes]
    parts = zip(flat.split(sizes, 1), model.shapes, strict=True)
    return [part.unflatten(1, shape) for part, shape in parts]


def join(weights: list[Tensor]) -> Tensor:
    """The flat state [B, parameters] of weights [B, m, n]."""
    return torch.cat([w.flatten(1) for w in weights], 1)


def check_weights(weights: list[Tensor], model: DeepUFM) -> None:
    """Raises InputError unless the weights are finite, of one floating dtype and of the model's shapes."""
    shapes = [tuple(w.shape[1:]) for w in weights]
    if shapes != model.shapes or len({(len(w), w.dtype, w.device) for w in weights}) != 1:
        raise InputError("weights", f"tensors [runs, m, n] with (m, n) = {model.shapes}, of one dtype", shapes)
    if weights[0].dtype not in (torch.float32, torch.float64):
        raise InputError("weights", "float32 or float64", weights[0].dtype)
    if not all(bool(w.isfinite().all()) for w in weights):
        raise InputError("weights", "finite numbers", "others")


def features(weights: list[Tensor]) -> Tensor:
    """[B, N, d], W_1 ... W_{L-1}; depth 2 or more."""
    H = weights[0]
    for W in weights[1:-1]:
        H = torch.bmm(H, W)
    return H


def logits(weights: list[Tensor]) -> Tensor:
    """[B, N, C], W_1 ... W_L."""
    return torch.bmm(features(weights), weights[-1]) if len(weights) > 1 else weights[0]


def margins(Z: Tensor, labels: Tensor) -> Tensor:
    """[B, N], the target's logit less the largest other one."""
    target = torch.nn.functional.one_hot(labels, Z.shape[-1]).bool()
    others = Z.masked_fill(target, -torch.inf).amax(-1)
    return Z.masked_fill(~target, -torch.inf).amax(-1) - others


def losses(Z: Tensor, labels: Tensor) -> Tensor:
    """[B], mean cross-entropy over the rows; small ones keep their digits (log1p of the others' share)."""
    target = torch.nn.functional.one_hot(labels, Z.shape[-1]).bool()
    at = Z.masked_fill(~target, 0).sum(-1, keepdim=True)
    others = torch.logsumexp((Z - at).masked_fill(target, -torch.inf), -1)
    return (others.clamp_min(0) + torch.log1p(torch.exp(-others.abs()))).mean(-1)


class Chain:
    """A batch of runs and the buffers of a step, used again at every step.

    Forward keeps the prefixes A_l = W_1 ... W_l; backward the D_l = dloss/dA_l; then dloss/dW_l = A_{l-1}^T D_l. No
    autograd, no allocation; the update of a layer is one batched product.
    """

    def __init__(self, model: DeepUFM, runs: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        new = {"dtype": dtype, "device": device}
        N, C, self.depth = model.rows, model.classes, model.depth
        self.weights = [torch.empty(runs, *shape, **new) for shape in model.shapes]
        #: [B, N, n]: A_1 ... A_L (A_1 is W_1 itself) and D_1 ... D_L.
        self.prefixes = [self.weights[0], *(torch.empty(runs, N, n, **new) for _, n in model.shapes[1:])]
        self.back = [torch.empty(runs, N, n, **new) for _, n in model.shapes]
        self._weights_T, self._prefixes_T = ([X.mT for X in many] for many in (self.weights, self.prefixes))
        # torch's vector code and its scalar code for what a vector does not fill round differently: rows are padded, so
        # that a run's bits do not depend on its place.
        filled = -(-runs * N // VECTOR) * VECTOR
        self._padded, self._sums = torch.zeros(C, filled, **new), torch.zeros(filled, **new)
        self._by_class = self._padded[:, : runs * N].view(C, runs, N)
        self._others = self._sums[: runs * N].view(runs, N)
        target = torch.nn.functional.one_hot(model.labels, C).T[:, None].to(**new)  # [C, 1, N]
        self._target, self._rest = target, 1 - target

    def load(self, flat: Tensor) -> None:
        """Takes the weights of a flat state [B, parameters]."""
        at = 0
        for W in self.weights:
            size = W.shape[1] * W.shape[2]
            W.copy_(flat[:, at : at + size].view_as(W))
            at += size

    def gradients(self, scale: Tensor) -> Tensor:
        """[B, parameters], scale * N * dloss/dW; scale [B, 1, 1]."""
        self._backward(scale)
        return join([self.back[0], *(torch.bmm(self._prefixes_T[l - 1], self.back[l]) for l in range(1, self.depth))])

    def descend_(self, scale: Tensor, shrink: Tensor | None = None) -> None:
        """One step, W_l = shrink * W_l - scale * N * dloss/dW_l, all layers from the same weights."""
        self._backward(scale)
        if shrink is not None:
            # A_1 is W_1: the products that read it come before it shrinks.
            for W in self.weights[1:]:
                W.mul_(shrink)
        for l in range(1, self.depth):
            self.weights[l].baddbmm_(self._prefixes_T[l - 1], self.back[l], alpha=-1)
        if shrink is not None:
            self.weights[0].mul_(shrink)
        self.weights[0].sub_(self.back[0])

    def _backward(self, scale: Tensor) -> None:
        """D_l of scale * N * loss."""
        for l in range(1, self.depth):
            torch.bmm(self.prefixes[l - 1], self.weights[l], out=self.prefixes[l])
        P = self._by_class  # classes first: torch's softmax over a short last dimension takes 15 times as long
        P.copy_(self.prefixes[-1].permute(2, 0, 1))
        torch.softmax(self._padded, 0, out=self._padded)
        # p - 1 at the target as minus the sum of the others: near a perfect fit p rounds to 1.
        P.mul_(self._rest)
        torch.sum(self._padded, 0, out=self._sums)
        P.addcmul_(self._target, self._others, value=-1)
        self.back[-1].copy_(P.permute(1, 2, 0)).mul_(scale)
        for l in range(self.depth - 1, 0, -1):
            torch.bmm(self.back[l], self._weights_T[l], out=self.back[l - 1])
