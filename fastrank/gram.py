"""GramState: a matrix's spectrum from a stream of its rows, in memory that does not grow with them.

The state of a source X [n, d] is `n`, a fixed `shift` [d], `total = sum (x - shift)` and the lower triangle of
`sum (x - shift)(x - shift)^T`, in float64. It is additive: batches, workers, ranks and resumed runs combine to the
state of one pass, up to rounding. Centred and uncentred spectra come from the same state.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastrank.arrays import as_tensor, channel_views
from fastrank.errors import InputError
from fastrank.kernels.gram import (
    MODES,
    Convolution,
    Depth,
    depth,
    depth_patches,
    gram_accumulate_,
    gram_patches_,
)
from fastrank.kernels.gram.validate import check_patches
from fastrank.small_grams import SmallGram
from fastrank.spectra import Spectrum, of_grams

#: Coarsest storage first. The coarsest dtype seen names the data's precision.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
#: Rows that fix the shift, at most, and numbers: it need only be within about a standard deviation of the mean.
_SHIFT_ROWS, _SHIFT_NUMBERS = 4096, 1 << 19
#: Rows converted to float64 at a time for the class sums.
_CLASS_ROWS = 4096
#: float64 roundings of moving a state to another shift: four products and sums per entry, and those of `total`.
_MOVE_ROUNDINGS = 8


def _plainly(method: Callable) -> Callable:
    """Outside autograd and inference mode: what a state keeps can be written to anywhere later on."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return call


class GramState:
    """Streaming Gram matrix of X [n, d], rows being samples.

    Args:
        d: number of features.
        mode: "exact" (float64 sums of exact products) or "fast" (float32 inside blocks of 128 rows, for data within
            about 1e19 of its mean; with AMX exact products of numbers rounded to 24 bits).
        device: where the state lives and the data must be; None is the CPU.
        classes: number of classes C, to keep per-class sums and counts as well; `update` then needs `y`.

    The shift is the mean of the first batch (of a sample of at most 4096 of its rows), rounded per feature to a
    multiple of a power of two near the standard deviation: as good as the mean itself against cancellation, and the
    subtraction is then exact for integers and for data with a mean far above its spread.

    Error. `gram_error(centered)` bounds the 2-norm of the error of `gram(centered)` before any eigensolver, from the
    roundings that the kernels make (`fastrank.kernels.gram.bound`), with c the relative bound of one product and
    t = ||Y||_F^2 the trace, Y = X - shift. Element by element the error is at most c times the sum of the absolute
    values of the terms, and Cauchy-Schwarz gives the norms:

    * of sum y y^T itself: c t; of `total`: c sqrt(n t);
    * centred, sum y y^T - total total^T / n: the second term carries at most (2 c + c^2) t, so 3 c t + c^2 t together;
    * uncentred, with s the shift, sum y y^T + s total^T + total s^T + n s s^T: c (sqrt(t) + sqrt(n) ||s||)^2;
    * a state moved by delta in a merge: likewise c (sqrt(t) + sqrt(n) ||delta||)^2, which may exceed c times its new
      trace; the excess is carried along and added to t.

    The roundings made in forming these are counted into c.

    In mode "fast" a processor with AMX's integer tiles rounds the numbers themselves instead (`fastrank.kernels.gram`):
    the state is then, to a c as small as that of "exact", that of a matrix which differs from X by at most `rounding`
    in Frobenius norm, some 3e-7 of ||Y||_F, and so do its singular values from those of X.
    """

    @_plainly
    def __init__(
        self, d: int, mode: str = "exact", device: torch.device | str | None = None, classes: int | None = None
    ) -> None:
        if not isinstance(d, Integral) or isinstance(d, bool) or d < 1:
            raise InputError("d", "a positive integer", repr(d))
        if mode not in MODES:
            raise InputError("mode", "'exact' or 'fast'", repr(mode))
        if classes is not None and (not isinstance(classes, Integral) or isinstance(classes, bool) or classes < 1):
            raise InputError("classes", "a positive integer or None", repr(classes))
        self.d, self.mode, self.classes = int(d), mode, None if classes is None else int(classes)
        d = self.d
        #: Rows seen.
        self.n = 0
        #: Coarsest storage dtype seen; None before the first row.
        self.dtype: torch.dtype | None = None
        self._depth = Depth()
        self._float64 = False  # whether any row was of float64, whose products can underflow
        # The shift is the same for so many features from each multiple of it on: for all taps of a channel.
        self._equal_shifts = 1
        zeros = torch.zeros(d, d, dtype=torch.float64, device="cpu" if device is None else device)
        self._gram, self._total, self._shift = zeros, zeros.new_zeros(d), zeros.new_zeros(d)
        self._excess = zeros.new_zeros(())  # see "Error" above
        self._rounded = zeros.new_zeros(1)  # the square of `rounding`
        # A last, extra class collects labels out of range, so that a GPU need not be waited for to refuse them.
        self._class_sums = None if classes is None else zeros.new_zeros(classes + 1, d)
        self._class_counts = None if classes is None else zeros.new_zeros(classes + 1, dtype=torch.int64)

    @property
    def device(self) -> torch.device:
        return self._gram.device

    def __repr__(self) -> str:
        extra = "" if self.classes is None else f", classes={self.classes}"
        return f"GramState(d={self.d}, mode={self.mode!r}, n={self.n}, device='{self.device}'{extra})"

    def __copy__(self) -> GramState:
        return copy.deepcopy(self)  # tensors shared by two states would be two states' sums

    # ---- taking data in ----

    @_plainly
    def update(self, X: Any, y: Any = None) -> GramState:
        """Adds the rows of X [n, d] (torch, NumPy or CuPy; any strides; float64, float32, bfloat16, float16).

        Args:
            y: [n] integer class labels, when the state has classes.
        Raises:
            InputError: a wrong shape, dtype or device; labels missing, not wanted, or out of range (on a GPU a label
                out of range is reported when the class sums are read, so as not to wait for the device here).
        """
        X = self._checked("X", X, ndim=2, features=1)
        labels = self._labels(y, len(X))
        self._accumulate(X)
        if labels is not None:
            for rows, label in zip(X.split(_CLASS_ROWS), labels.split(_CLASS_ROWS), strict=True):
                self._class_sums.index_add_(0, label, rows.double())
            self._class_counts.index_add_(0, labels, torch.ones_like(labels))
        return self

    @_plainly
    def update_channels(self, x: Any) -> GramState:
        """Adds every position of x [B, d, *spatial] as a row, read in place: the channel matrix of an activation."""
        self._refuse_classes("update_channels")
        x = self._checked("x", x, ndim=3, features=1, at_least=True)
        for view in channel_views(x):
            self._accumulate(view)
        return self

    @_plainly
    def update_patches(self, x: Any, kernel_size, stride=1, padding=0, dilation=1, groups: int = 1) -> GramState:
        """Adds the patches that a convolution sees in x [B, C, H, W]: d = C / groups * kh * kw features each.

        Features are in the order of `F.unfold`, that of a weight [out, C / groups, kh, kw] flattened; the rows of all
        groups are stacked. Patches are never formed: beside the state this takes some 16 MiB on a CPU, some 64 MiB on
        CUDA (and a few times the state for a moment, where rows or patches of another size came before: they shifted
        the features of a channel apart). Sizes are integers or pairs; `padding` may also be "valid" or "same".

        Raises:
            InputError: also for patches larger than the padded input, and channels that `groups` does not divide.
        """
        self._refuse_classes("update_patches")
        x = self._checked("x", x, ndim=4)
        try:
            convolution = Convolution.of(kernel_size, stride, padding, dilation, groups)
            if x.shape[1] % convolution.groups == 0 and convolution.features(x.shape[1]) != self.d:
                sizes = " * ".join(map(str, convolution.kernel_size))
                raise InputError(
                    "x", f"C / groups * kh * kw = d = {self.d}", f"{x.shape[1]} / {convolution.groups} * {sizes}"
                )
            check_patches(self._gram, self._total, x, convolution, None, self.mode)
        except (TypeError, ValueError) as error:
            raise InputError.quoting(error) from None
        rows = convolution.rows(x.shape)
        if rows == 0:
            return self
        taps = math.prod(convolution.kernel_size)
        if self.n == 0:
            self._shift = _round_shift(_pixels(x, convolution.groups)).repeat_interleave(taps)
            self._equal_shifts = taps
        elif self._equal_shifts % taps:  # the kernel knows one shift a channel
            shift = self._shift[::taps].repeat_interleave(taps)
            self._gram, self._total, self._excess = self._moved(shift)
            self._shift, self._equal_shifts = shift, taps
            self._depth = Depth().merged(self._depth, _MOVE_ROUNDINGS)
        gram_patches_(self._gram, self._total, x, convolution, self._shift[::taps], self.mode)
        self._took(rows, x.dtype, depth_patches(tuple(x.shape), convolution, x.dtype, self.mode, x.device.type))
        return self

    def _accumulate(self, X: Tensor) -> None:
        """X: [n, d] or [B, d, S]."""
        rows = X.numel() // self.d
        if rows == 0:
            return
        if self.n == 0:
            self._shift, self._equal_shifts = _round_shift(X), 1
        rounded = self._rounded if self.mode == "fast" else None
        gram_accumulate_(self._gram, self._total, X, self._shift, self.mode, rounded=rounded)
        self._took(rows, X.dtype, depth(rows, self.d, X.dtype, self.mode, X.device.type, rounded=rounded is not None))

    def _took(self, rows: int, dtype: torch.dtype, roundings: Depth) -> None:
        self._depth = self._depth.then(roundings)
        self.dtype = dtype if self.dtype is None else min(self.dtype, dtype, key=_DTYPES.index)
        self._float64 |= dtype == torch.float64
        self.n += rows

    def _checked(self, name: str, x: Any, ndim: int, features: int | None = None, at_least: bool = False) -> Tensor:
        x = as_tensor(name, x).detach()
        if x.layout != torch.strided or x.is_nested:
            raise InputError(name, "a dense tensor", "a nested one" if x.is_nested else x.layout)
        if type(x) is not Tensor and not hasattr(x, "__tensor_flatten__"):
            x = x.as_subclass(Tensor)  # a subclass that only adds to a tensor would be kept in the state
        if x.ndim != ndim and not (at_least and x.ndim > ndim):
            raise InputError(name, f"{ndim} dimensions{' or more' * at_least}", f"shape {tuple(x.shape)}")
        if x.dtype not in _DTYPES:
            cure = "" if x.is_complex() else f"convert it: {name}.float()"
            raise InputError(name, "float64, float32, bfloat16 or float16", x.dtype, cure)
        if features is not None and x.shape[features] != self.d:
            raise InputError(name, f"d = {self.d} features in dimension {features}", f"shape {tuple(x.shape)}")
        if x.device != self.device:
            raise InputError(
                name, f"data on {self.device}, where the state is", x.device, f"GramState(..., device='{x.device}')"
            )
        return x

    def _labels(self, y: Any, rows: int) -> Tensor | None:
        if self.classes is None:
            if y is not None:
                raise InputError("y", "no labels, for a state without classes", "labels", "GramState(..., classes=C)")
            return None
        if y is None:
            raise InputError("y", f"labels, for a state with {self.classes} classes", None)
        y = as_tensor("y", y)
        if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
            raise InputError("y", "integer labels", y.dtype)
        if tuple(y.shape) != (rows,):
            raise InputError("y", f"one label for each of {rows} rows", f"shape {tuple(y.shape)}")
        if y.device != self.device:
            raise InputError("y", f"labels on {self.device}", y.device)
        y = y.long()
        out = (y < 0) | (y >= self.classes)
        if not y.is_cuda and bool(out.any()):
            raise InputError("y", f"labels in 0 .. {self.classes - 1}", int(y[out][0]))
        return y.masked_fill(out, self.classes)

    def _refuse_classes(self, method: str) -> None:
        if self.classes is not None:
            raise InputError("classes", f"a state without classes for {method}: its rows have no labels", self.classes)

    # ---- combining states ----

    @_plainly
    def merge(self, other: GramState) -> GramState:
        """Adds all that `other` has seen, as if this state had seen it; `other` is left as it is.

        Sums about another shift are moved by the rank-one terms of Chan, Golub and LeVeque (1983).

        Raises:
            InputError: states of different d, mode, classes or device.
        """
        if not isinstance(other, GramState):
            raise InputError("other", "a GramState", type(other).__name__)
        for name in ("d", "mode", "classes", "device"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise InputError("other", f"a state with {name} = {mine!r}", repr(theirs))
        if self.classes is not None:
            self._class_sums += other._class_sums
            self._class_counts += other._class_counts
        if other.n == 0:
            return self
        self._float64 |= other._float64
        if self.n == 0:
            self._gram.copy_(other._gram)
            self._total.copy_(other._total)
            self._excess.copy_(other._excess)
            self._rounded.copy_(other._rounded)
            self._shift, self._equal_shifts = other._shift.clone(), other._equal_shifts
            self._depth, self.dtype, self.n = other._depth, other.dtype, other.n
            return self
        gram, total, excess = other._moved(self._shift)
        self._gram += gram
        self._total += total
        self._excess += excess
        self._rounded += other._rounded
        self._depth = self._depth.merged(other._depth, _MOVE_ROUNDINGS)
        self.dtype = min(self.dtype, other.dtype, key=_DTYPES.index)
        self.n += other.n
        return self

    @_plainly
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> GramState:
        """Makes this state that of all ranks together, on every rank of `group`.

        A collective call. Do it once, on a copy (`copy.deepcopy`) if this state goes on taking data: a second call
        would count everything again.

        Raises:
            InputError: torch.distributed is not initialised.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError("group", "an initialised torch.distributed", "none", "call init_process_group first")
        facts = torch.tensor(
            [self.n, -1 if self.dtype is None else _DTYPES.index(self.dtype), self._equal_shifts, self._float64,
             *_parts(self._depth)],
            dtype=torch.int64, device=self.device,
        )  # fmt: skip
        size = dist.get_world_size(group)
        all_facts = [torch.empty_like(facts) for _ in range(size)]
        all_shifts = [torch.empty_like(self._shift) for _ in range(size)]
        dist.all_gather(all_facts, facts, group=group)
        dist.all_gather(all_shifts, self._shift, group=group)
        ranks = [(shift, fact.tolist()) for shift, fact in zip(all_shifts, all_facts, strict=True) if fact[0] > 0]
        if not ranks:
            return self
        shift, (_, _, self._equal_shifts, *_) = ranks[0]  # of the first rank with data, the same on every rank
        if self.n:
            self._gram, self._total, self._excess = self._moved(shift)
        self._shift = shift
        for name in self._tensor_names():
            if name != "shift":
                dist.all_reduce(getattr(self, "_" + name), group=group)
        self.n = sum(values[0] for _, values in ranks)
        self.dtype = _DTYPES[min(values[1] for _, values in ranks)]
        self._float64 = any(values[3] for _, values in ranks)
        parts = [max(column) for column in zip(*(values[4:] for _, values in ranks), strict=True)]
        self._depth = Depth(parts[0], parts[1], parts[2] + _MOVE_ROUNDINGS + size)
        return self

    def _moved(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(gram, total, excess) of the same rows about another shift; of gram only the lower triangle counts."""
        delta = self._shift - shift
        cross = torch.outer(self._total, delta)
        gram = self._gram + (cross + cross.T + self.n * torch.outer(delta, delta))
        scale = self._gram.diagonal().sum() + self._excess
        excess = (scale.sqrt() + math.sqrt(self.n) * delta.norm()).square() - gram.diagonal().sum()
        return gram, self._total + self.n * delta, excess.clamp_min(0)

    # ---- reading the state ----

    @property
    def mean(self) -> Tensor:
        """[d] float64."""
        self._require_rows("mean")
        return self._shift + self._total / self.n

    @property
    def class_sums(self) -> Tensor:
        """[C, d] float64: the sum of the rows of each class (about zero, not about the shift)."""
        self._require_labels()
        return self._class_sums[:-1]

    @property
    def class_counts(self) -> Tensor:
        """[C] int64."""
        self._require_labels()
        return self._class_counts[:-1]

    def gram(self, centered: bool = False) -> Tensor:
        """[d, d] float64, symmetric: X^T X, or sum (x - mean)(x - mean)^T."""
        lower = self._gram.tril()
        G = lower + lower.tril(-1).T
        if self.n == 0:
            return G
        if centered:
            G -= torch.outer(self._total, self._total / self.n)
            # A variance that rounding has made negative is zero to within gram_error; left alone it would turn into
            # a NaN at the first square root.
            G.diagonal().clamp_(min=0)
            return G
        cross = torch.outer(self._shift, self._total)
        G += cross + cross.T + self.n * torch.outer(self._shift, self._shift)
        return G

    @property
    def rounding(self) -> Tensor:
        """0-d float64: how far in Frobenius norm the rows were rounded, at most; 0 in mode "exact"."""
        return self._rounded[0].sqrt()

    def gram_error(self, centered: bool = False) -> Tensor:
        """0-d float64: bound on the 2-norm of the error of `gram(centered)`; derived in the class's docstring."""
        error, moved = self._error(centered), self.rounding
        if centered:
            norm = self._gram.diagonal().sum() + self._excess
        else:
            norm = (self._gram.diagonal().sum().sqrt() + math.sqrt(self.n) * self._shift.norm()).square()
        return error + moved * (2 * norm.sqrt() + moved)

    def _error(self, centered: bool) -> Tensor:
        """That of the rounded rows."""
        c = self._depth.factor(extra=_MOVE_ROUNDINGS)
        if not math.isfinite(c):
            return self._total.new_full((), math.inf)
        # Numbers of 32 bits and less, and their mean, differ by 0 or by more than 2^-215: no product underflows
        # in float64, so that a state of zeros is known to be one.
        underflow = self._depth.tiny * self.n * self.d if self._float64 or self._depth.fp32 else 0.0
        # The computed trace may be below the true one, by c of it.
        trace = (self._gram.diagonal().sum() + self._excess + underflow) / max(1 - c, torch.finfo(torch.float64).tiny)
        if centered:
            return (3 * c + c * c) * trace + underflow
        return c * (trace.sqrt() + math.sqrt(self.n) * self._shift.norm()).square() + underflow

    @property
    def floor(self) -> float:
        """sigma / sigma_1 below which the uncentred state cannot tell a singular value from zero.

        `sqrt(gram_error / lambda)` with `lambda = ||G||_F^2 / trace(G) <= sigma_1^2`, which needs no eigenvalues: about
        `sqrt(c * trace / lambda)`, c being 3e-14 (exact) or 8e-6 (fast; 2e-15 and 3e-7 beside the root where it rounds
        the numbers), so never below 1e-7 and 3e-3. The bound holds
        in the worst case; rounding errors mostly cancel and leave a tenth of it. Infinite for a state without rows, 0
        where all rows are zero. A centred spectrum has a floor of its own, `spectrum(centered=True).floor`.
        """
        if self.n == 0:
            return math.inf
        G = self.gram()
        trace = G.diagonal().sum()
        # Of G / trace, whose squares neither overflow nor vanish.
        relative = (self._error(False).sqrt() + self.rounding) / trace.sqrt() / (G / trace).square().sum().sqrt()
        return float(torch.where(trace == 0, 0.0, relative))

    def spectrum(self, centered: bool = False) -> Spectrum:
        """Singular values of all rows seen, or of those rows minus their mean, with their bounds.

        Raises:
            InputError: no rows yet.
        """
        return of_grams([self.small_gram(centered)])[0]

    def small_gram(self, centered: bool = False) -> SmallGram:
        """`gram(centered)` without its upper triangle, and `gram_error(centered)`: what spectra and ranks are made of.

        Raises:
            InputError: no rows yet.
        """
        self._require_rows("spectrum")
        if centered:
            G = torch.addr(self._gram, self._total, self._total / -self.n)
            G.diagonal().clamp_(min=0)
        else:
            # No more roundings than gram() makes: s t^T + t s^T + n s s^T = s (t + n s)^T + t s^T.
            G = torch.addr(self._gram, self._shift, self._total + self.n * self._shift)
            G.addr_(self._total, self._shift)
        return SmallGram(G, self.n, self.d, self.dtype, centered, self._error(centered), self.rounding)

    def _require_rows(self, what: str) -> None:
        if self.n == 0:
            raise InputError("state", f"at least one row for {what}", "none", "call update first")

    def _require_labels(self) -> None:
        if self.classes is None:
            raise InputError("classes", "a state with classes", None, "GramState(..., classes=C)")
        if strays := int(self._class_counts[-1]):
            raise InputError("y", f"labels in 0 .. {self.classes - 1}", f"{strays} outside, in an earlier update")

    # ---- saving ----

    def state_dict(self) -> dict[str, Any]:
        """Copies of the tensors, and plain numbers and strings: safe for `torch.load(weights_only=True)`."""
        tensors = {name: getattr(self, "_" + name) for name in self._tensor_names()}
        return {
            "d": self.d,
            "mode": self.mode,
            "classes": self.classes,
            "n": self.n,
            "dtype": None if self.dtype is None else _name(self.dtype),
            "depth": _parts(self._depth),
            "float64": self._float64,
            "equal_shifts": self._equal_shifts,
            **{name: tensor.clone() for name, tensor in tensors.items()},
        }

    @_plainly
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`; the tensors move to this state's device.

        Raises:
            InputError: a missing or unknown entry, or one that does not fit this state's d, mode or classes.
        """
        if not isinstance(state, dict):
            raise InputError("state", "a dictionary from state_dict()", type(state).__name__)
        # States of older versions do not say whether any row was of float64, and rounded nothing.
        state = {"float64": True, "rounded": torch.zeros_like(self._rounded), **state}
        wanted = {"d", "mode", "classes", "n", "dtype", "depth", "float64", "equal_shifts", *self._tensor_names()}
        for name in ("d", "mode", "classes"):
            if name in state and state[name] != getattr(self, name):
                raise InputError(f"state[{name!r}]", repr(getattr(self, name)), repr(state[name]))
        if wanted != set(state):
            raise InputError("state", f"the entries {', '.join(sorted(wanted))}", ", ".join(sorted(state)) or "none")
        for name in self._tensor_names():
            mine, theirs = getattr(self, "_" + name), state[name]
            if not isinstance(theirs, Tensor):
                raise InputError(f"state[{name!r}]", "a torch tensor", type(theirs).__name__)
            if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
                raise InputError(
                    f"state[{name!r}]", f"{mine.dtype} {tuple(mine.shape)}", f"{theirs.dtype} {tuple(theirs.shape)}"
                )
        n, dtype, parts, equal = (state[name] for name in ("n", "dtype", "depth", "equal_shifts"))
        for name, fits, expected in (
            ("n", _whole(n, 0), "an integer >= 0"),
            ("dtype", dtype in {None, *map(_name, _DTYPES)}, f"None or one of {', '.join(map(_name, _DTYPES))}"),
            (
                "depth",
                isinstance(parts, list) and len(parts) == 3 and all(_whole(p, 0) for p in parts),
                "three integers",
            ),
            ("float64", isinstance(state["float64"], bool), "True or False"),
            ("equal_shifts", _whole(equal, 1), "an integer >= 1"),
        ):
            if not fits:
                raise InputError(f"state[{name!r}]", expected, repr(state[name]))
        for name in self._tensor_names():
            setattr(self, "_" + name, state[name].to(self.device, copy=True))
        self.n = state["n"]
        self.dtype = None if state["dtype"] is None else getattr(torch, state["dtype"])
        self._depth = Depth(*state["depth"])
        self._float64 = state["float64"]
        self._equal_shifts = state["equal_shifts"]

    def _tensor_names(self) -> tuple[str, ...]:
        names = ("gram", "total", "shift", "excess", "rounded")
        return names if self.classes is None else (*names, "class_sums", "class_counts")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parts(depth: Depth) -> list[int]:
    return [depth.fp32, depth.before, depth.adds]


def _sampled(d: int) -> int:
    return max(64, min(_SHIFT_ROWS, _SHIFT_NUMBERS // d))


def _pixels(x: Tensor, groups: int) -> Tensor:
    """Enough pixels of x [B, C, H, W] for `_round_shift`, as [B * groups, C / groups, S]."""
    rows, pixels = _sampled(x.shape[1] // groups), math.prod(x.shape[2:])
    columns = max(1, math.ceil(x.shape[3] / rows))
    some = x[: math.ceil(rows / pixels), :, :: math.ceil(pixels / rows), ::columns]
    return some.unflatten(1, (groups, -1)).flatten(0, 1).flatten(2)


def _round_shift(X: Tensor) -> Tensor:
    """The shift that the first batch X ([n, d] or [B, d, S]) fixes; see GramState. 0 where the data is not finite."""
    rows = _sampled(X.shape[1])
    if X.ndim == 3:
        pixels = X[:, :, :: math.ceil(X.shape[2] / rows)]
        X = pixels[: max(1, rows // pixels.shape[2])].transpose(1, 2).reshape(-1, X.shape[1])
    sample = X[:rows].double()
    mean, deviation = sample.mean(0), sample.std(0, correction=0)
    step = torch.exp2(torch.floor(torch.log2(deviation)))
    # No spread, or one below what float64 resolves beside the mean: the mean itself.
    rounded = torch.where(mean.abs() < step * 2.0**52, torch.round(mean / step) * step, mean)
    return torch.where(rounded.isfinite(), rounded, 0.0)
