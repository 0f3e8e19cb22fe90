"""How a measurement computes, whatever the training around it allows: full precision, and one thread where small."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ContextDecorator, contextmanager
from functools import cache
from pathlib import Path

import torch

from fastrank.kernels import backend


@contextmanager
def full_precision(device: torch.device):
    """No autocast, no TF32 and no bf16 shortcut for float32 products inside; the caller's settings after.

    `torch.set_float32_matmul_precision("medium")` makes even CPU products of float32 matrices bfloat16 (error 0.2 on a
    256 x 256 Gaussian product instead of 4e-5), and hooks run inside the caller's autocast region.
    """
    backend = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul
    allowed = backend.fp32_precision
    with torch.autocast(device_type=device.type, enabled=False):
        if allowed in ("ieee", "none"):
            yield
            return
        backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            backend.fp32_precision = allowed


class one_thread(ContextDecorator):
    """Torch's own operations run on the calling thread alone; its number of threads is restored after. Our kernels keep
    all of them. Also a decorator.

    A QR or eigenproblem of a few hundred rows is a long chain of tiny parallel regions. Shared by two threads it is
    no faster on idle cores, and several times slower where another process holds one of them. Waking one that sleeps
    takes as long as a softmax of 12,000 numbers.

    Not by torch.set_num_threads, which also sets what other threads begin with and what MKL takes from then on: OpenMP
    and MKL are told of this thread. Where torch was built without them, nothing changes.
    """

    def __enter__(self) -> None:
        threads = torch.get_num_threads()
        self._before = None
        if threads > 1 and (set_threads := _set_threads()) is not None:
            self._held = getattr(backend.held, "threads", 0)
            self._before = threads, set_threads(1, 1)
            backend.held.threads = threads

    def __exit__(self, *_) -> None:
        if self._before is not None:
            backend.held.threads = self._held
            _set_threads()(*self._before)

    def _recreate_cm(self) -> one_thread:
        return one_thread()  # a decorated function may run in several threads


class all_threads:
    """Large products and factorisations of torch, inside `one_thread`."""

    def __enter__(self) -> None:
        threads = torch.get_num_threads()
        self._before = None
        if threads != backend.threads():
            self._before = threads, _set_threads()(backend.threads(), 0)

    def __exit__(self, *_) -> None:
        if self._before is not None:
            _set_threads()(*self._before)


@cache
def _set_threads() -> Callable[[int, int], int] | None:
    """(threads of OpenMP, threads of MKL) of the calling thread, 0 for MKL's usual; returns MKL's before. None where
    torch has neither."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        openmp = library.omp_set_num_threads
    except (OSError, AttributeError):
        return None
    openmp.argtypes, openmp.restype = [ctypes.c_int], None
    mkl = getattr(library, "MKL_Set_Num_Threads_Local", lambda threads: 0)

    def set_threads(of_openmp: int, of_mkl: int) -> int:
        openmp(of_openmp)
        return mkl(of_mkl)

    return set_threads
