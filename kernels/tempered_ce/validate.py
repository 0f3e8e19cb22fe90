"""What the tempered cross-entropy accepts; every message names the argument, what was expected and what came."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")
INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def options(T: float | Tensor, reduction: str, label_smoothing: float) -> None:
    """The arguments that can be judged before any logits are there."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    if isinstance(T, Tensor):
        if T.dtype not in FLOAT_DTYPES:
            raise TypeError(f"T: expected a floating-point tensor, got {T.dtype}")
        if T.dim() > 1:
            raise ValueError(f"T: expected a float, a 0-d tensor or one value per sample [N], got {_shape(T)}")
    elif not isinstance(T, numbers.Real):
        raise TypeError(f"T: expected a float or a tensor, got {type(T).__name__}")
    elif not 0 < T < float("inf"):
        raise ValueError(f"T: expected a finite temperature > 0, got {T!r}")


def arguments(input: Tensor, target: Tensor, T: float | Tensor, weight: Tensor | None, ignore_index: int) -> None:
    """Shapes, dtypes and devices; reads no values, so it neither waits for a device nor breaks a graph."""
    for name, value in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and not (name == "weight" and value is None):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if input.dtype not in FLOAT_DTYPES:
        raise TypeError(f"input: expected logits in float64, float32, bfloat16 or float16, got {input.dtype}")
    if input.dim() == 0:
        raise ValueError("input: expected logits [C], [N, C] or [N, C, d1, ...], got a 0-d tensor")
    classes = input.shape[min(1, input.dim() - 1)]
    if classes == 0:
        raise ValueError(f"input: expected at least one class, got shape {_shape(input)}")
    _target(input, target, ignore_index)
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


def _target(input: Tensor, target: Tensor, ignore_index: int) -> None:
    _same_device("target", target, input)
    if target.is_floating_point():
        if target.shape != input.shape:
            raise ValueError(
                f"target: expected class probabilities shaped like input {_shape(input)}, or integer class indices, "
                f"got {target.dtype} of shape {_shape(target)}"
            )
        if ignore_index >= 0:
            raise ValueError(f"ignore_index: expected none with class-probability targets, got {ignore_index}")
        return
    if target.dtype not in INDEX_DTYPES:
        raise TypeError(f"target: expected integer class indices or class probabilities, got {target.dtype}")
    expected = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size(())
    if target.shape != expected:
        raise ValueError(
            f"target: expected class indices of shape {list(expected)} for input {_shape(input)}, got {_shape(target)}"
        )


def values(target: Tensor, T: float | Tensor, classes: int, ignore_index: int) -> None:
    """Labels and temperatures themselves. The native kernel does this on its way; here it serves the reference."""
    if not target.is_floating_point():
        bad = (target != ignore_index) & ((target < 0) | (target >= classes))
        if bad.any():
            raise bad_label(target, int(bad.flatten().nonzero()[0]), classes, ignore_index)
    if isinstance(T, Tensor):
        bad = ~((T > 0) & T.isfinite())
        if bad.any():
            raise bad_temperature(T, int(bad.flatten().nonzero()[0]))


def bad_label(target: Tensor, row: int, classes: int, ignore_index: int) -> IndexError:
    """The error for the label at `row` of the flattened target."""
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(row), target.shape))
    place = f" at position {position if len(position) > 1 else position[0]}" if position else ""
    label = int(target.flatten()[row])
    return IndexError(f"target: expected labels in [0, {classes}) or ignore_index={ignore_index}, got {label}{place}")


def bad_temperature(T: Tensor, sample: int) -> ValueError:
    place = f" for sample {sample}" if T.dim() else ""
    return ValueError(f"T: expected finite temperatures > 0, got {float(T.detach().flatten()[sample])}{place}")


def _same_device(name: str, value: Tensor, input: Tensor) -> None:
    if value.device != input.device:
        raise ValueError(f"{name}: expected a tensor on {input.device} like input, got one on {value.device}")


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
