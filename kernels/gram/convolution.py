"""The patches that a convolution sees: rows of a matrix that is never formed."""

from __future__ import annotations

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
        """From integers or pairs.

        Raises:
            ValueError: one that is neither, or too small.
        """
        if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
            raise ValueError(f"groups: expected a positive integer, got {groups!r}")
        return cls(
            _pair("kernel_size", kernel_size, 1), _pair("stride", stride, 1), _pair("padding", padding, 0),
            _pair("dilation", dilation, 1), groups,
        )  # fmt: skip

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


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    fits = isinstance(pair, (tuple, list)) and len(pair) == 2
    if fits and all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in pair):
        return tuple(pair)
    raise ValueError(f"{name}: expected an integer >= {least} or a pair of them, got {value!r}")
