"""gram_patches_ as an `Op` of the conformity suite: images behind odd layouts, and `depth_patches`' bound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from conformity import Op
from fastrank.kernels.gram import Convolution, depth_patches, gram_patches_, reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Sizes of x, and a convolution. Below 12 channels a group, and at other strides than 1, patches are packed one by one;
#: from there on their shared products are computed once.
SHARED = [
    ((2, 16, 5, 7), Convolution.of(3, padding=1)),
    ((1, 37, 9, 8), Convolution.of(3)),
    ((2, 13, 6, 5), Convolution.of((5, 3), padding=(2, 1))),
    ((3, 12, 4, 9), Convolution.of((1, 3))),
    ((2, 17, 5, 5), Convolution.of(2, padding=1)),
    ((2, 16, 9, 7), Convolution.of(3, padding=2, dilation=2)),
    ((2, 64, 7, 7), Convolution.of(3, padding=1, groups=4)),
    ((3, 70, 3, 2), Convolution.of(3, padding=1)),
    ((2, 20, 1, 1), Convolution.of(3, padding=1)),  # eight of nine taps see padding only
    ((2, 20, 2, 3), Convolution.of(3, padding=(3, 0))),  # patches that see padding only
    ((1, 12, 12, 13), Convolution.of(11, padding=5)),
]
APART = [
    ((2, 3, 9, 8), Convolution.of(7, 2, 3)),
    ((2, 16, 9, 8), Convolution.of(3, 2, 1)),
    ((2, 16, 9, 8), Convolution.of(3, (1, 2), 1)),
    ((2, 16, 9, 8), Convolution.of(1, 2)),
    ((2, 40, 5, 4), Convolution.of(1)),
    ((3, 8, 6, 6), Convolution.of(3, padding=1, groups=8)),
    ((2, 5, 40, 3), Convolution.of((13, 1), padding=(6, 0))),
    ((700, 3, 3, 3), Convolution.of(2)),  # several chunks of rows
]


def images(size, dtype, layout="contiguous", integer=False):
    generator = torch.Generator().manual_seed(sum(size))
    if integer:
        x = torch.randint(-8, 9, size, generator=generator).to(dtype)
    else:
        x = (torch.randn(size, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((size[0], size[1] + 1, size[2] * 2, size[3] + 3), float("nan"), dtype=dtype)
        view = wide[:, 1:, ::2, 2:-1]
        return view.copy_(x)
    return x


def shift_of(size, convolution, integer=False):
    shift = torch.linspace(-2, 2, size[1] // convolution.groups, dtype=torch.float64)
    return shift.round() if integer else shift


def patches(x, convolution, shift=None):
    kernel, stride, padding, dilation, groups = convolution
    apart = x.double().unflatten(1, (groups, -1)).flatten(0, 1).contiguous()
    P = F.unfold(apart, kernel, dilation, padding, stride).transpose(1, 2).flatten(0, 1)
    return P if shift is None else P - shift.repeat_interleave(kernel[0] * kernel[1])


def accumulated(function, x, convolution, shift, *args):
    d = convolution.features(x.shape[1])
    G, total = (torch.zeros(size, dtype=torch.float64, device=x.device) for size in ((d, d), (d,)))
    function(G, total, x, convolution, shift, *args)
    return G, total


def op(size, convolution, mode):
    def band(case, truth):
        device = truth[0].device
        x, shift = (None if v is None else v.to(device) for v in case)
        P = patches(x, convolution, shift).abs()
        roundings = depth_patches(size, convolution, x.dtype, mode, device.type)
        c, tiny = roundings.factor(), roundings.tiny * len(P)
        return c * (P.T @ P) + tiny, c * P.sum(0) + tiny

    return Op(
        "gram_patches_",
        ("reference", "native"),
        run=lambda impl, x, shift: accumulated(gram_patches_, x, convolution, shift, mode, impl),
        reference=lambda x, shift: accumulated(reference.gram_patches_, x, convolution, shift),
        band=band,
        build=lambda case: case,
    )
