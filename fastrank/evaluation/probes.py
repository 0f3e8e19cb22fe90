"""Linear probes of every layer, trained together as one batched problem ([U] Table 5), and what [U] reads from them.

Each layer has its own softmax regression on its standardised features, trained by Adam with the paper's settings. The
problems share samples, labels, batches and steps, so one gathering, one batched product for all layers of a width (on a
CPU, a walk through them in the cache) and one fused step serve all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastrank.errors import InputError
from fastrank.evaluation.one_pass import Batch, Observer

#: Rows of a layer worked on at a time on a CPU. 1024 and 256 take 0.5 to 0.7 of the time of 4096 (1 core, 64 to 2048
#: features, 10 to 94 classes).
CPU_ROWS = 1024
#: Steps that [U]'s protocol takes on the 50,000 samples of CIFAR: 50 epochs of 13 batches.
STEPS = 650
#: Products that `continued` may spend, about half a minute of one core (1e10 a second, measured on a small ResNet). A
#: step takes 2 a sample and weight; Adam's reading and writing of a weight takes as long as some 45.
WORK, ADAM = 3e11, 45


@dataclass(frozen=True)
class ProbeProtocol:
    """How probes are trained; the defaults are [U]'s, Table 5, which leaves standardisation and start open.

    Adam (0.9, 0.999) with coupled weight decay (also of the bias), a fresh order of the samples each epoch, the last
    incomplete batch used. standardise: features minus mean over standard deviation of the training samples (a constant
    feature becomes 0). Weights start as those of `torch.nn.Linear`. Everything is a function of `seed`.

    least_steps is not [U]'s: epochs go on until so many steps are taken. 50 epochs of a set of one batch are 50 steps
    of 1e-3, which leave a probe near its random start: 0.55 to 0.98 right on one such set, over six seeds. (`evaluate`
    without a protocol takes `continued`.)
    """

    lr: float = 1e-3
    weight_decay: float = 1e-3
    epochs: int = 50
    batch_size: int = 4096
    standardise: bool = True
    seed: int = 0
    least_steps: int = 0

    def __post_init__(self) -> None:
        for name, low in (("lr", 0), ("weight_decay", None), ("epochs", 0), ("batch_size", 0), ("least_steps", None)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (low == 0 and value == 0):
                raise InputError(name, "a finite number " + ("> 0" if low == 0 else ">= 0"), value)

    def steps(self, samples: int) -> int:
        """Of all epochs; a set of few batches leaves the probes unfinished at the paper's rate."""
        batches = math.ceil(samples / self.batch_size)
        return max(self.epochs, math.ceil(self.least_steps / max(1, batches))) * batches


def continued(samples: int, weights: int, seed: int) -> ProbeProtocol:
    """[U]'s protocol, but on small sets with as many steps as it takes on CIFAR (650), or as many as `WORK` pays for.

    Its 50 epochs of 1437 digits are 50 steps, and kappa of six layers of an MLP on them 0.67, 0.33 and 0.33 for three
    seeds; after 650 steps it is 0.17 for each, as that of ridge probes, and accuracies differ by 0.01 at most. (The
    bound of `Probe.excess` is no rule to stop by: it is still 1 then, and 0.25 after 2000.) Where 50 epochs are 650
    steps or more, as on CIFAR and ImageNet, nothing changes.

    weights: of the probes of all layers together.
    """
    affordable = WORK / (max(samples, 1) * 2 + ADAM) / max(weights, 1)
    return ProbeProtocol(seed=seed, least_steps=min(STEPS, int(affordable)))


@dataclass(frozen=True)
class Probe:
    """A trained probe: class scores are `((x - mean) / std) @ weight.T + bias`.

    weight [C, d], bias [C], mean [d], std [d], float32. reason: why there is none; empty otherwise.
    excess: a bound on the share of the training objective f (cross-entropy and weight decay) that more training could
        still take away, in [0, 1]. Weight decay makes f strongly convex, so that f - min f is at most
        ||grad f||^2 / (2 weight_decay) (Boyd & Vandenberghe 2004, eq. 9.9), and at most f. 1 without weight decay; NaN
        for a probe in closed form.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    reason: str = ""
    excess: float = math.nan

    def predict(self, X: Tensor) -> Tensor:
        """[n] int64: the class of each row of X [n, d]; -1 where its scores are not finite."""
        scores = torch.addmm(self.bias, (X.float() - self.mean) / self.std, self.weight.T)
        return scores.argmax(1).masked_fill(~scores.isfinite().all(1), -1)


def train_probes(
    groups: Sequence[Tensor], labels: Tensor, classes: int, protocol: ProbeProtocol, distributed: bool = False
) -> list[list[Probe]]:
    """Probes for groups of layers of one width each.

    Args:
        groups: [G, n, d] float32 each, the features of G layers at the same n samples. They are standardised in place.
        labels: [n] int64 in 0 .. classes-1.
        distributed: every process has its own samples; gradients and statistics are those of all.
    Returns:
        probes[g][i], of layer i of group g. A layer with non-finite features has a reason instead; others are not
        touched by it.
    """
    n = len(labels)
    if n == 0:
        raise InputError("labels", "at least one labelled sample to train probes on", 0)
    world = dist.get_world_size() if distributed else 1
    moments = [_standardise_(X, distributed) if protocol.standardise else _unchanged(X) for X in groups]
    weights, biases = zip(*_start(groups, classes, protocol.seed), strict=True)
    parameters = [*weights, *biases]
    optimizer = torch.optim.Adam(parameters, protocol.lr, weight_decay=protocol.weight_decay, fused=True)
    onehot = torch.nn.functional.one_hot(labels, classes).to(torch.float32)
    for batch in _batches(n, protocol, world, labels.device, distributed):
        for X, W, b in zip(groups, weights, biases, strict=True):
            gradient_(X, onehot, W, b, batch, blocks=X.device.type == "cpu")
        if distributed:
            for parameter in parameters:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        optimizer.step()
    left = [
        _excess(X, onehot, W, b, protocol.weight_decay, world if distributed else 0)
        for X, W, b in zip(groups, weights, biases, strict=True)
    ]
    return [
        [_finished(W[i], b[i], mean[i], std[i], excess[i]) for i in range(len(W))]
        for W, b, (mean, std), excess in zip(weights, biases, moments, left, strict=True)
    ]


def gradient_(X: Tensor, onehot: Tensor, W: Tensor, b: Tensor, batch: Tensor | None, blocks: bool) -> None:
    """Sets the gradients of W [G, C, d], b [G, C]: mean cross-entropy of the rows `batch` (None: all) of X [G, n, d].

    One batched product for all layers, or (`blocks`, for a CPU) layer by layer in blocks of rows that stay in the cache
    from their gathering to their gradient.
    """
    if not blocks:
        x, target = (X, onehot) if batch is None else (X.index_select(1, batch), onehot.index_select(0, batch))
        error = torch.baddbmm(b[:, None], x, W.mT).softmax(-1).sub_(target).div_(len(target))
        W.grad, b.grad = torch.bmm(error.mT, x), error.sum(1)
        return
    if W.grad is None:  # written over at every step: fresh memory would take as long as the products of few rows
        W.grad, b.grad = torch.empty_like(W), torch.empty_like(b)
    rows = len(onehot) if batch is None else len(batch)
    for start in range(0, rows, CPU_ROWS):
        block = slice(start, start + CPU_ROWS)
        index = None if batch is None else batch[block]
        target = onehot[block] if index is None else onehot.index_select(0, index)
        for i in range(len(W)):
            x = X[i, block] if index is None else X[i].index_select(0, index)
            error = torch.addmm(b[i], x, W[i].T).softmax(1).sub_(target)
            W.grad[i].addmm_(error.T, x, beta=float(start > 0), alpha=1 / rows)
            b.grad[i].copy_(error.sum(0) / rows) if start == 0 else b.grad[i].add_(error.sum(0), alpha=1 / rows)


def _excess(X: Tensor, onehot: Tensor, W: Tensor, b: Tensor, decay: float, world: int) -> list[float]:
    """`Probe.excess` of each layer. world: processes whose losses are averaged, 0 for this one alone."""
    gradient_(X, onehot, W, b, None, blocks=X.device.type == "cpu")
    loss = X.new_zeros(len(W), dtype=torch.float64)
    for start in range(0, len(onehot), CPU_ROWS):
        rows = slice(start, start + CPU_ROWS)
        for i in range(len(W)):
            scores = torch.addmm(b[i], X[i, rows], W[i].T)
            loss[i] -= (scores.log_softmax(1) * onehot[rows]).sum(dtype=torch.float64) / len(onehot)
    if world:
        for value in (W.grad, b.grad, loss):
            dist.all_reduce(value)
            value /= world
    objective = loss + decay / 2 * (W.double().square().sum((1, 2)) + b.double().square().sum(1))
    slope = [(P.grad.double() + decay * P.double()).flatten(1).square().sum(1) for P in (W, b)]
    if not decay:
        return torch.ones_like(objective).where(objective.isfinite(), math.nan).tolist()
    return (sum(slope) / (2 * decay) / objective).clamp(max=1).tolist()


def _start(groups: Sequence[Tensor], classes: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(weights [G, C, d], biases [G, C]) as `torch.nn.Linear` draws them, uniform within 1 / sqrt(d)."""
    generator = torch.Generator().manual_seed(seed)
    for X in groups:
        G, _, d = X.shape
        W = torch.empty(G, classes, d).uniform_(-1, 1, generator=generator) / math.sqrt(d)
        b = torch.empty(G, classes).uniform_(-1, 1, generator=generator) / math.sqrt(d)
        yield W.to(X.device), b.to(X.device)


def _batches(
    n: int, protocol: ProbeProtocol, world: int, device: torch.device, distributed: bool
) -> Iterator[Tensor | None]:
    """Indices of every batch of every epoch; None for all samples at once."""
    if distributed:  # as many steps on every process
        least = torch.tensor(n, device=device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        n = int(least)
    size = max(1, protocol.batch_size // world)
    generator = torch.Generator().manual_seed(protocol.seed + 1)
    for _ in range(max(protocol.epochs, math.ceil(protocol.least_steps / math.ceil(n / size)))):
        if n <= size and not distributed:
            yield None
            continue
        yield from torch.randperm(n, generator=generator).to(device).split(size)


def _standardise_(X: Tensor, distributed: bool) -> tuple[Tensor, Tensor]:
    """X [G, n, d] in place, layer by layer; (mean, std) [G, d] float32."""
    means, stds = [], []
    for layer in X:
        count = torch.tensor(float(len(layer)), dtype=torch.float64, device=X.device)
        total = layer.sum(0, dtype=torch.float64)
        if distributed:
            dist.all_reduce(total)
            dist.all_reduce(count)
        mean = (total / count).float()
        layer -= mean
        squares = torch.linalg.vector_norm(layer, dim=0, dtype=torch.float64).square()
        if distributed:
            dist.all_reduce(squares)
        std = (squares / count).sqrt().float()
        std = std.masked_fill(std == 0, 1.0)
        layer /= std
        means.append(mean)
        stds.append(std)
    return torch.stack(means), torch.stack(stds)


def _unchanged(X: Tensor) -> tuple[Tensor, Tensor]:
    G, _, d = X.shape
    return X.new_zeros(G, d), X.new_ones(G, d)


def _finished(W: Tensor, b: Tensor, mean: Tensor, std: Tensor, excess: float) -> Probe:
    broken = not bool(W.isfinite().all() and b.isfinite().all())
    return Probe(W, b, mean, std, "non-finite features" if broken else "", excess)


class ProbeAccuracy(Observer):
    """Counts right answers of each layer's probe, and of the model itself, over a pass."""

    def __init__(self, probes: dict[str, Probe], widths: dict[str, Tensor | None], device: torch.device) -> None:
        """widths: layer -> the columns of its representation that its probe reads, None for all."""
        self._probes, self._columns = probes, widths
        zero = torch.zeros((), dtype=torch.int64, device=device)
        self._right = {name: zero.clone() for name in probes}
        self._broken = {name: zero.clone() for name in probes}
        self.seen = 0
        self._labels: Tensor | None = None

    def begin(self, batch: Batch) -> None:
        self._labels = batch.labels
        self.seen += 0 if batch.labels is None else batch.rows

    def layer(self, name: str, X: Tensor) -> None:
        probe = self._probes.get(name)
        if probe is None or self._labels is None:
            return
        columns = self._columns[name]
        said = probe.predict(X if columns is None else X[:, columns])
        self._right[name] += (said == self._labels).sum()
        self._broken[name] += (said < 0).sum()

    def all_reduce(self) -> None:
        for count in (*self._right.values(), *self._broken.values()):
            dist.all_reduce(count)
        device = next(iter(self._right.values())).device if self._right else "cpu"
        seen = torch.tensor(self.seen, device=device)
        dist.all_reduce(seen)
        self.seen = int(seen)

    def accuracies(self) -> tuple[dict[str, float], dict[str, str]]:
        """(layer -> share of right answers, layer -> why it is NaN)."""
        accuracy, reasons = {}, {}
        for name, probe in self._probes.items():
            broken = int(self._broken[name])
            reason = probe.reason or (f"non-finite features in {broken} of {self.seen} samples" if broken else "")
            reason = reason or ("" if self.seen else "no labelled samples")
            accuracy[name] = math.nan if reason else int(self._right[name]) / self.seen
            if reason:
                reasons[name] = reason
        return accuracy, reasons


def kappa(accuracies: Sequence[float], threshold: float = 0.99) -> float:
    """Effective depth: (number of the first layer that reaches `threshold` of the last layer's accuracy) / layers.

    accuracies: of the probes on the training task's test set, in the order of the layers. In (0, 1]; NaN without
    layers or with an accuracy that is NaN. ([U] sec. 2.1)
    """
    if not len(accuracies) or any(map(math.isnan, accuracies)):
        return math.nan
    goal = threshold * accuracies[-1]
    return next(i for i, accuracy in enumerate(accuracies, 1) if accuracy >= goal) / len(accuracies)


def rho(accuracies: Sequence[float]) -> float:
    """OOD generalisation loss: (best - last) / best of the OOD probes' accuracies, in [0, 1]. ([U] sec. 2.1)

    NaN without layers, with an accuracy that is NaN, or where the best is 0.
    """
    if not len(accuracies) or any(map(math.isnan, accuracies)) or max(accuracies) <= 0:
        return math.nan
    return (max(accuracies) - accuracies[-1]) / max(accuracies)
