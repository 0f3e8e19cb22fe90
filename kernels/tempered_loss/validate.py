"""What the tempered cross-entropy accepts; every message names the argument, what was expected and what came."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")
#: Power of T that the gradient of the logits is multiplied by.
GRADIENT_POWERS = {None: 0, "T": 1, "T2": 2}
INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
#: 1e-30 to 1e30 as a number of any dtype: T and 1 / T, and their products with logits up to 1e8, are then in float32's
#: range.
LOWEST_T, HIGHEST_T = 2.0**-100, 2.0**100
_T_RANGE = "[1e-30, 1e30]"


def options(T: float | Tensor, reduction: str, label_smoothing: float, scale_gradient: str | None = None) -> None:
    """The arguments that can be judged before any logits are there."""
    if scale_gradient is not None and scale_gradient not in ("T", "T2"):
        raise ValueError(f"scale_gradient: expected None, 'T' or 'T2', got {scale_gradient!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if type(label_smoothing) is not float and not isinstance(label_smoothing, numbers.Real):
        raise TypeError(f"label_smoothing: expected a number in [0, 1], got {type(label_smoothing).__name__}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    if type(T) in (float, int) and LOWEST_T <= T <= HIGHEST_T:  # settled without the slower questions of type
        return
    if isinstance(T, Tensor):
        if T.dtype not in FLOAT_DTYPES:
            raise TypeError(f"T: expected a floating-point tensor, got {T.dtype}")
        if T.dim() > 1:
            raise ValueError(f"T: expected a float, a 0-d tensor or one value per sample [N], got {_shape(T)}")
    elif not isinstance(T, numbers.Real):
        raise TypeError(f"T: expected a float or a tensor, got {type(T).__name__}")
    elif not 0 < T < float("inf"):
        raise ValueError(f"T: expected a finite temperature > 0, got {T!r}")
    elif not LOWEST_T <= T <= HIGHEST_T:
        raise ValueError(f"T: expected a temperature in {_T_RANGE}, got {T!r}")


def arguments(
    input: Tensor, target: Tensor | tuple, T: float | Tensor, weight: Tensor | None, ignore_index: int
) -> None:
    """Shapes, dtypes and devices; reads no values, so it neither waits for a device nor breaks a graph."""
    if _usual(input, target, T, weight, ignore_index):
        return
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a tensor, got {type(input).__name__}")
    if weight is not None and not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    if type(ignore_index) is not int and (
        isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral)
    ):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: expected an int of 64 bits, got {ignore_index}")
    if input.dtype not in FLOAT_DTYPES:
        raise TypeError(f"input: expected logits in float64, float32, bfloat16 or float16, got {input.dtype}")
    if input.dim() == 0:
        raise ValueError("input: expected logits [C], [N, C] or [N, C, d1, ...], got a 0-d tensor")
    classes = input.shape[min(1, input.dim() - 1)]
    if classes == 0:
        raise ValueError(f"input: expected at least one class, got shape {_shape(input)}")
    if isinstance(target, tuple):
        _mixed_target(input, target, ignore_index)
    elif isinstance(target, Tensor):
        _target(input, target, ignore_index)
    else:
        raise TypeError(
            f"target: expected a tensor, or a tuple (first labels, second labels, share of the first), "
            f"got {type(target).__name__}"
        )
    if weight is not None:
        if weight.shape != (classes,):
            raise ValueError(f"weight: expected one value per class [{classes}], got shape {_shape(weight)}")
        if weight.dtype not in FLOAT_DTYPES:
            raise TypeError(f"weight: expected a floating-point tensor, got {weight.dtype}")
        _same_device("weight", weight, input)
    if isinstance(T, Tensor) and T.dim() == 1:
        if input.dim() == 1:
            raise ValueError(f"T: expected a float or a 0-d tensor for unbatched logits [C], got shape {_shape(T)}")
        if T.shape[0] != input.shape[0]:
            raise ValueError(
                f"T: expected a float, a 0-d tensor or one value per sample [{input.shape[0]}], got shape {_shape(T)}"
            )
        _same_device("T", T, input)
    elif isinstance(T, Tensor) and T.device.type != "cpu":
        _same_device("T", T, input)


def _usual(input: Tensor, target: Tensor | tuple, T: float | Tensor, weight: Tensor | None, ignore_index: int) -> bool:
    """Whether this is the call of most training steps, known to be right: a batch of float logits [N, C], int64 labels
    [N], one number T. The questions of `arguments` take as long as the loss of a small batch."""
    return (
        type(T) in (float, int)
        and weight is None
        and type(ignore_index) is int
        and -(2**63) <= ignore_index < 2**63
        and isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and target.dtype is torch.int64
        and input.dtype in FLOAT_DTYPES
        and input.dim() == 2
        and target.shape == input.shape[:1]
        and input.shape[1] > 0
        and input.device == target.device
    )


def _target(input: Tensor, target: Tensor, ignore_index: int) -> None:
    if target.is_floating_point():
        _same_device("target", target, input)
        if target.shape != input.shape:
            raise ValueError(
                f"target: expected class probabilities shaped like input {_shape(input)}, or integer class indices, "
                f"got {target.dtype} of shape {_shape(target)}"
            )
        if ignore_index >= 0:
            raise ValueError(f"ignore_index: expected none with class-probability targets, got {ignore_index}")
        return
    _indices("target", target, input, "integer class indices or class probabilities")


def _mixed_target(input: Tensor, target: tuple, ignore_index: int) -> None:
    if len(target) != 3:
        raise ValueError(
            f"target: expected (first labels, second labels, share of the first), got {len(target)} values"
        )
    *labels, share = target
    for name, value in zip(("target[0]", "target[1]"), labels, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor of class indices, got {type(value).__name__}")
        _indices(name, value, input, "integer class indices")
    if ignore_index >= 0:
        raise ValueError(f"ignore_index: expected none with mixed targets, got {ignore_index}")
    if isinstance(share, Tensor):
        _same_device("target[2]", share, input)
        samples = () if input.dim() == 1 else (input.shape[0],)
        if not share.is_floating_point() or share.shape not in (torch.Size(()), torch.Size(samples)):
            raise ValueError(
                f"target[2]: expected the first label's share as a number or one per sample {list(samples)}, "
                f"got {share.dtype} of shape {_shape(share)}"
            )
    elif not isinstance(share, numbers.Real):
        raise TypeError(f"target[2]: expected a number or a tensor, got {type(share).__name__}")
    elif not 0 <= share <= 1:
        raise ValueError(f"target[2]: expected the first label's share in [0, 1], got {share!r}")


def _indices(name: str, labels: Tensor, input: Tensor, what: str) -> None:
    _same_device(name, labels, input)
    if labels.dtype not in INDEX_DTYPES:
        raise TypeError(f"{name}: expected {what}, got {labels.dtype}")
    expected = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size(())
    if labels.shape != expected:
        raise ValueError(
            f"{name}: expected class indices of shape {list(expected)} for input {_shape(input)}, got {_shape(labels)}"
        )


def values(target: Tensor | tuple, T: float | Tensor, classes: int, ignore_index: int) -> None:
    """Labels, shares and temperatures themselves. The native kernel does this on its way; here it serves the
    reference."""
    mixed = isinstance(target, tuple)
    for name, labels in zip(("target[0]", "target[1]"), target, strict=False) if mixed else (("target", target),):
        if labels.is_floating_point():
            continue
        labels = labels.long()  # a narrow dtype would wrap ignore_index
        bad = (labels < 0) | (labels >= classes)
        if not mixed:
            bad &= labels != ignore_index
        if bad.any():
            raise bad_label(name, labels, int(bad.flatten().nonzero()[0]), classes, None if mixed else ignore_index)
    if isinstance(T, Tensor):
        bad = ~((T >= LOWEST_T) & (T <= HIGHEST_T))
        if bad.any():
            raise bad_temperature(T, int(bad.flatten().nonzero()[0]))
    if mixed and isinstance(target[2], Tensor):
        bad = ~((target[2] >= 0) & (target[2] <= 1))
        if bad.any():
            raise bad_share(target[2], int(bad.flatten().nonzero()[0]))


def bad_label(name: str, target: Tensor, row: int, classes: int, ignore_index: int | None) -> IndexError:
    """The error for the label at `row` of the flattened target."""
    position, rest = [], row
    for size in reversed(target.shape):
        rest, index = divmod(rest, size)
        position.insert(0, index)
    position = tuple(position)
    place = f" at position {position if len(position) > 1 else position[0]}" if position else ""
    label, ignored = int(target.flatten()[row]), "" if ignore_index is None else f" or ignore_index={ignore_index}"
    return IndexError(f"{name}: expected labels in [0, {classes}){ignored}, got {label}{place}")


def bad_share(share: Tensor, sample: int) -> ValueError:
    place = f" for sample {sample}" if share.dim() else ""
    value = float(share.detach().flatten()[sample])
    return ValueError(f"target[2]: expected the first label's share in [0, 1], got {value}{place}")


def bad_temperature(T: Tensor, sample: int) -> ValueError:
    place = f" for sample {sample}" if T.dim() else ""
    value = float(T.detach().flatten()[sample])
    wanted = f"temperatures in {_T_RANGE}" if 0 < value < float("inf") else "finite temperatures > 0"
    return ValueError(f"T: expected {wanted}, got {value}{place}")


def _same_device(name: str, value: Tensor, input: Tensor) -> None:
    if value.device != input.device:
        raise ValueError(f"{name}: expected a tensor on {input.device} like input, got one on {value.device}")


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
