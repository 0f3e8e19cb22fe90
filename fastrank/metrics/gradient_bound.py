"""The bound of a weight gradient's rank: rank(dL/dW) <= rank(A), A being the layer's input ([U] eq. 3).

`dL/dW = (dL/dZ)^T A`, a sum over all rows of A: samples, tokens, or the patches of a convolution. In exact arithmetic
no gradient exceeds it; of numerical ranks, each at its own tolerance, the intervals say when one certainly does.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastrank.gram import GramState
from fastrank.spectra import Spectrum, spectrum


def input_spectrum(module: nn.Module, x: Tensor) -> Spectrum:
    """Spectrum of all rows that a layer multiplies its weight [out, in / groups * kernel] with; none is left out.

    Args:
        module: a linear layer, or a convolution of one or two dimensions (patches are never formed).
        x: its input.
    Raises:
        NotImplementedError: a convolution of more dimensions.
    """
    if not hasattr(module, "kernel_size"):
        return spectrum(x.reshape(-1, x.shape[-1]))
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        raise NotImplementedError(f"the input's rank of a {type(module).__name__}")
    dims = len(module.kernel_size)
    if x.ndim == dims + 1:
        x = x.unsqueeze(0)
    # "same" may be one wider on the right, and other modes repeat pixels: then the image is padded, not its patches.
    padding = module.padding
    if padding == "same" or (module.padding_mode != "zeros" and padding != "valid"):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode), "valid"
    sizes = [module.kernel_size, module.stride, padding, module.dilation]
    if dims == 1:  # an image one pixel high
        x, one = x.unsqueeze(2), (1, 1, 0, 1)
        sizes = [s if isinstance(s, str) else (least, s[0]) for s, least in zip(sizes, one, strict=True)]
    features = module.weight[0].numel()
    state = GramState(features, device=x.device)
    return state.update_patches(x, *sizes, module.groups).spectrum()
