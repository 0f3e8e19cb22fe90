"""The kernels as torch's operators `fastrank::tempered_mse` and `fastrank::tempered_mse_backward`."""

from __future__ import annotations

from fastrank.kernels.tempered_loss.register import register
from fastrank.kernels.tempered_mse import layout, native, reference


def _kernels(impl: str):
    if impl == "native":
        return native
    from fastrank.kernels.tempered_mse import triton

    return triton


tempered_mse, tempered_mse_backward = register("tempered_mse", _kernels, reference.tempered_mse, layout.outputs)
