"""The patches that a convolution sees: rows of a matrix that is never formed."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple


class Convolution(NamedTuple):
    """Sizes as of `torch.nn.Conv2d`, as pairs (rows, columns)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1) -> Convolution:
        """From integers or pairs; `padding` also as "valid" or "same".

        Raises:
            ValueError: one that is neither, or too small; "same" with a stride, or where it is not symmetric.
        """
        kernel_size, stride = _pair("kernel_size", kernel_size, 1), _pair("stride", stride, 1)
        dilation = _pair("dilation", dilation, 1)
        if isinstance(padding, str):
            padding = _named_padding(padding, kernel_size, stride, dilation)
        return cls(kernel_size, stride, _pair("padding", padding, 0), dilation, _whole("groups", groups))

    def features(self, channels: int) -> int:
        """Numbers of a patch of an image of `channels`: columns of the patch matrix."""
        return channels // self.groups * self.kernel_size[0] * self.kernel_size[1]

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """Positions of the kernel on an image; not above 0 where it does not fit."""
        return tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip((height, width), *self[:4], strict=True)
        )

    def rows(self, shape: tuple[int, ...]) -> int:
        """Patches of x [images, channels, height, width], those of all groups."""
        height, width = self.outputs(*shape[2:])
        return shape[0] * self.groups * height * width


def _named_padding(name: str, kernel_size: tuple, stride: tuple, dilation: tuple) -> tuple[int, int]:
    """As torch's convolutions know it by name."""
    if name == "valid":
        return 0, 0
    if name != "same":
        raise ValueError(f"padding: expected numbers, 'valid' or 'same', got {name!r}")
    if stride != (1, 1):
        raise ValueError(f"padding: expected numbers where stride is not 1, got 'same' and stride {stride}")
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise ValueError(
            f"padding: expected 'same' to be as wide on both sides, got kernel {kernel_size} with dilation {dilation}; "
            "pad the input by torch.nn.functional.pad"
        )
    return reach[0] // 2, reach[1] // 2


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    numbers = tuple(_integer(v) for v in pair)
    if len(numbers) == 2 and all(v is not None and v >= least for v in numbers):
        return numbers
    raise ValueError(f"{name}: expected an integer >= {least} or a pair of them, got {value!r}")


def _whole(name: str, value: Any) -> int:
    if (number := _integer(value)) is None or number < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return number


def _integer(value: Any) -> int | None:
    """NumPy's integers and torch.SymInt count too, truth values do not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
