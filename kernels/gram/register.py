"""`torch.ops.fastrank.gram_*`: schema, implementations per device, shapes for tracing."""

from __future__ import annotations

import torch
from fastrank.kernels import backend, buffers
from fastrank.kernels.gram import reference
from fastrank.kernels.gram.convolution import Convolution
from fastrank.kernels.gram.validate import DTYPES, check_row_range
from torch import Tensor
from torch.autograd.graph import increment_version

# The mode is called `precision` in the schemas: torch's functionalisation passes an op's arguments by name and has a
# parameter `mode` of its own.
_library = torch.library.Library("fastrank", "FRAGMENT")
_library.define(
    "gram_accumulate_(Tensor(a!) G, Tensor(b!) total, Tensor X, Tensor? shift=None, str precision='exact', "
    "str? impl=None, Tensor(c!)? rounded=None) -> ()"
)
_library.define("gram_dual(Tensor X, str precision='exact', str? impl=None) -> Tensor")
_library.define(
    "gram_patches_(Tensor(a!) G, Tensor(b!) total, Tensor x, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation, int groups, Tensor? shift=None, str precision='exact', str? impl=None) -> ()"
)
_library.define(
    "patch_rows(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, Tensor rows, "
    "str? impl=None) -> Tensor"
)
_library.define(
    "gram_dual_many(Tensor[] X, str precision='exact', str? impl=None, bool may_round=False) -> (Tensor[], Tensor)"
)


# The dispatcher leaves out trailing arguments that have their default, so these repeat the schema's.
def accumulate_(
    G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None = None, precision: str = "exact", impl: str | None = None,
    rounded: Tensor | None = None,
) -> None:  # fmt: skip
    if backend.chosen("gram_accumulate_", X.device.type, impl) == "reference":
        reference.gram_accumulate_(G, total, X, shift)
        return
    if shift is not None:
        shift = shift.contiguous()
    if X.numel():
        arguments = _arguments(_matrix(X), X, shift, G, total, precision)
        if X.is_cuda:
            _launch(arguments, X.device, symmetric=False)
        else:
            place = 0 if rounded is None else rounded.data_ptr()
            backend.core().gram_accumulate_cpu(*arguments, place, backend.threads())
    _written(G, total, *([] if rounded is None else [rounded]))


def _dual(X: Tensor, precision: str = "exact", impl: str | None = None) -> Tensor:
    return duals([X], precision, impl)[0]


def _patches(
    G: Tensor, total: Tensor, x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int, shift: Tensor | None = None, precision: str = "exact", impl: str | None = None,
) -> None:  # fmt: skip
    convolution = Convolution(*map(tuple, (kernel_size, stride, padding, dilation)), groups)
    if backend.chosen("gram_patches_", x.device.type, impl) == "reference":
        reference.gram_patches_(G, total, x, convolution, shift)
        return
    if x.numel() == 0:
        return
    if shift is not None:
        shift = shift.contiguous()
    core, fast = backend.core(), _fast(x, precision)
    arguments = (
        x.data_ptr(), DTYPES[x.dtype], tuple(x.shape), x.stride(), groups, *convolution[:4],
        0 if shift is None else shift.data_ptr(), G.data_ptr(), G.stride(0), total.data_ptr(), fast,
    )  # fmt: skip
    _written(G, total)
    if not x.is_cuda:
        core.gram_patches_cpu(*arguments, backend.threads())
        return
    with torch.cuda.device(x.device):
        size = core.gram_workspace_patches_cuda(tuple(x.shape), groups, *convolution[:4], fast)
        workspace = torch.empty(size, dtype=torch.float64, device=x.device)
        core.gram_patches_cuda(*arguments, workspace.data_ptr(), torch.cuda.current_stream().cuda_stream)


def patch_rows(
    x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int,
    rows: Tensor, impl: str | None = None,
) -> Tensor:  # fmt: skip
    convolution = Convolution(*map(tuple, (kernel_size, stride, padding, dilation)), groups)
    if backend.chosen("patch_rows", x.device.type, impl) == "reference":
        check_row_range(rows, convolution.rows(x.shape))
        return reference.patch_rows(x, convolution, rows)
    # Gigabytes a minute where every layer is sampled at every step: fresh pages would take as long as the copy.
    out, rows = buffers.empty((len(rows), convolution.features(x.shape[1])), x), rows.contiguous()
    backend.core().patch_rows_cpu(
        x.data_ptr(), DTYPES[x.dtype], tuple(x.shape), x.stride(), groups, *convolution[:4], rows.data_ptr(),
        len(rows), out.data_ptr(), backend.threads(),
    )  # fmt: skip
    return out


def _dual_many(
    X: list[Tensor], precision: str = "exact", impl: str | None = None, may_round: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Also `rounded`, one of each; zeros where nothing may be."""
    rounded = torch.zeros(len(X), dtype=torch.float64, device=X[0].device if X else "cpu")
    return duals(X, precision, impl, rounded if may_round else None), rounded


def duals(
    X: list[Tensor], precision: str = "exact", impl: str | None = None, rounded: Tensor | None = None
) -> list[Tensor]:
    if not X or backend.chosen("gram_dual", X[0].device.type, impl) == "reference":
        return [reference.gram_dual(x.detach()) for x in X]
    K = [_square(x) for x in X]
    filled = [(i, x, k) for i, (x, k) in enumerate(zip(X, K, strict=True)) if x.numel()]
    if X[0].is_cuda:
        _launch_group([_arguments(_turned(x), x, None, k, None, precision) for _, x, k in filled], X[0].device)
    else:
        place, size = (0, 0) if rounded is None else (rounded.data_ptr(), rounded.element_size())
        items = [
            (x.data_ptr(), DTYPES[x.dtype], *x.shape, *x.stride(), k.data_ptr(), _fast(x, precision), place + i * size)
            for i, x, k in filled
        ]
        backend.core().gram_dual_many_cpu(items, backend.threads())
    if rounded is not None:
        _written(rounded)
    return K


def _square(X: Tensor) -> Tensor:
    """For `X X^T`, which a CPU writes and a GPU adds to zeros."""
    shape = len(X), len(X)
    if X.is_cuda or not X.numel():
        return X.new_zeros(shape, dtype=torch.float64)
    # Fresh pages of some MiB would take up to a tenth of the time of the product.
    return buffers.empty(shape, X, torch.float64)


def _launch(product: tuple, device: torch.device, symmetric: bool) -> None:
    """One of `_arguments`, on a GPU, where it goes in the kernels' own arguments."""
    core = backend.core()
    with torch.cuda.device(device):
        # The caching allocator keeps it for this stream until the kernels that read it are queued.
        workspace = torch.empty(core.gram_workspace_cuda(*product[2:4]), dtype=torch.float64, device=device)
        stream = torch.cuda.current_stream().cuda_stream
        core.gram_accumulate_cuda(*product, workspace.data_ptr(), stream, symmetric=symmetric)


def _launch_group(items: list[tuple], device: torch.device) -> None:
    """Both triangles of each, on a GPU."""
    if len(items) == 1:
        _launch(items[0], device, symmetric=True)
    if len(items) < 2:
        return
    core = backend.core()
    with torch.cuda.device(device):
        products = torch.tensor([(*item, 0, True) for item in items], dtype=torch.int64)
        group = products.data_ptr(), len(items)
        workspace = torch.empty(core.gram_group_cuda_workspace(*group), dtype=torch.float64, device=device)
        # The caching allocators keep the table and its copy until the stream has done with them.
        table = torch.empty(core.gram_group_cuda_size(len(items)), dtype=torch.uint8, pin_memory=True)
        core.gram_group_cuda_fill(*group, workspace.data_ptr(), table.data_ptr())
        on_device = table.to(device, non_blocking=True)
        stream = torch.cuda.current_stream().cuda_stream
        core.gram_group_cuda_launch(table.data_ptr(), on_device.data_ptr(), stream)


def _turned(X: Tensor) -> tuple[int, ...]:
    """The columns of X as the rows that are summed over; see `_matrix`."""
    n, d = X.shape
    return d, n, d, 0, X.stride(1), X.stride(0)


def _matrix(X: Tensor) -> tuple[int, ...]:
    """(rows, columns, inner, stride_outer, stride_inner, stride_column) of X, as in Matrix of csrc/gram/gram.h."""
    if X.ndim == 2:
        n, d = X.shape
        return n, d, n, 0, X.stride(0), X.stride(1)
    B, d, S = X.shape
    return B * S, d, S, X.stride(0), X.stride(2), X.stride(1)


def _written(*tensors: Tensor) -> None:
    """Tells autograd that the kernels have written to what it may have saved."""
    increment_version([x for x in tensors if not x.is_inference()])


def _arguments(
    matrix: tuple[int, ...], X: Tensor, shift: Tensor | None, G: Tensor, total: Tensor | None, precision: str
) -> tuple:
    return (
        X.data_ptr(),
        DTYPES[X.dtype],
        *matrix,
        0 if shift is None else shift.data_ptr(),
        G.data_ptr(),
        G.stride(0),
        0 if total is None else total.data_ptr(),
        _fast(X, precision),
    )


def _fast(X: Tensor, precision: str) -> bool:
    return precision == "fast" and X.dtype != torch.float64


for _key in ("CPU", "CUDA", "CompositeExplicitAutograd"):  # the last: every other device, through the reference
    _library.impl("gram_accumulate_", accumulate_, _key)
    _library.impl("gram_dual", _dual, _key)
    _library.impl("gram_patches_", _patches, _key)
    _library.impl("patch_rows", patch_rows, _key)
    _library.impl("gram_dual_many", _dual_many, _key)


@torch.library.register_fake("fastrank::gram_accumulate_", lib=_library)
def _(G, total, X, shift=None, precision="exact", impl=None, rounded=None):
    return None


@torch.library.register_fake("fastrank::gram_dual", lib=_library)
def _(X, precision="exact", impl=None):
    return X.new_empty(len(X), len(X), dtype=torch.float64)


@torch.library.register_fake("fastrank::gram_patches_", lib=_library)
def _(
    G, total, x, kernel_size, stride, padding, dilation, groups, shift=None, precision="exact", impl=None
):  # fmt: skip
    return None


@torch.library.register_fake("fastrank::patch_rows", lib=_library)
def _(x, kernel_size, stride, padding, dilation, groups, rows, impl=None):
    return x.new_empty(len(rows), x.shape[1] // groups * kernel_size[0] * kernel_size[1])


@torch.library.register_fake("fastrank::gram_dual_many", lib=_library)
def _(X, precision="exact", impl=None, may_round=False):
    grams = [x.new_empty(len(x), len(x), dtype=torch.float64) for x in X]
    return grams, torch.empty(len(X), dtype=torch.float64, device=X[0].device if X else "cpu")
