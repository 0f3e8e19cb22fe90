"""`torch.ops.fastrank.gram_accumulate_` and `gram_dual`: schema, implementations per device, shapes for tracing."""

from __future__ import annotations

import torch
from fastrank.kernels import backend
from fastrank.kernels.gram import reference
from fastrank.kernels.gram.validate import DTYPES
from torch import Tensor

# The mode is called `precision` in the schemas: torch's functionalisation passes an op's arguments by name and has a
# parameter `mode` of its own.
_library = torch.library.Library("fastrank", "FRAGMENT")
_library.define(
    "gram_accumulate_(Tensor(a!) G, Tensor(b!) total, Tensor X, Tensor? shift=None, str precision='exact', "
    "str? impl=None) -> ()"
)
_library.define("gram_dual(Tensor X, str precision='exact', str? impl=None) -> Tensor")


# The dispatcher leaves out trailing arguments that have their default, so these repeat the schema's.
def _accumulate(
    G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None = None, precision: str = "exact", impl: str | None = None
) -> None:
    if backend.choose("gram_accumulate_", X, impl) == "reference":
        reference.gram_accumulate_(G, total, X, shift)
        return
    if shift is not None:
        shift = shift.contiguous()
    _native(_matrix(X), X, shift, G, total, precision)


def _dual(X: Tensor, precision: str = "exact", impl: str | None = None) -> Tensor:
    if backend.choose("gram_dual", X, impl) == "reference":
        return reference.gram_dual(X)
    n, d = X.shape
    K = torch.zeros(n, n, dtype=torch.float64, device=X.device)
    # The columns of X are the rows that are summed over.
    _native((d, n, d, 0, X.stride(1), X.stride(0)), X, None, K, None, precision)
    if X.is_cuda:
        with torch.cuda.device(X.device):
            backend.core().gram_mirror_cuda(K.data_ptr(), n, torch.cuda.current_stream().cuda_stream)
    else:
        backend.core().gram_mirror_cpu(K.data_ptr(), n)
    return K


def _matrix(X: Tensor) -> tuple[int, ...]:
    """(rows, columns, inner, stride_outer, stride_inner, stride_column) of X, as in Matrix of csrc/gram/gram.h."""
    if X.ndim == 2:
        n, d = X.shape
        return n, d, n, 0, X.stride(0), X.stride(1)
    B, d, S = X.shape
    return B * S, d, S, X.stride(0), X.stride(2), X.stride(1)


def _native(
    matrix: tuple[int, ...], X: Tensor, shift: Tensor | None, G: Tensor, total: Tensor | None, precision: str
) -> None:
    core = backend.core()
    rows, columns = matrix[:2]
    if rows == 0 or columns == 0:
        return
    arguments = (
        X.data_ptr(),
        DTYPES[X.dtype],
        *matrix,
        0 if shift is None else shift.data_ptr(),
        G.data_ptr(),
        G.stride(0),
        0 if total is None else total.data_ptr(),
        precision == "fast" and X.dtype != torch.float64,
    )
    if not X.is_cuda:
        core.gram_accumulate_cpu(*arguments, backend.threads())
        return
    with torch.cuda.device(X.device):
        size = core.gram_workspace_cuda(rows, columns)
        # The caching allocator keeps it for this stream until the kernels that read it are queued.
        workspace = torch.empty(size, dtype=torch.float64, device=X.device)
        core.gram_accumulate_cuda(*arguments, workspace.data_ptr(), torch.cuda.current_stream().cuda_stream)


for _key in ("CPU", "CUDA", "CompositeExplicitAutograd"):  # the last: every other device, through the reference
    _library.impl("gram_accumulate_", _accumulate, _key)
    _library.impl("gram_dual", _dual, _key)


@torch.library.register_fake("fastrank::gram_accumulate_", lib=_library)
def _(G, total, X, shift=None, precision="exact", impl=None):
    return None


@torch.library.register_fake("fastrank::gram_dual", lib=_library)
def _(X, precision="exact", impl=None):
    return X.new_empty(len(X), len(X), dtype=torch.float64)
