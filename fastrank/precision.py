"""How a measurement computes, whatever the training around it allows: full precision, and one thread where small."""

from __future__ import annotations

from contextlib import contextmanager

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


@contextmanager
def one_thread():
    """Torch's own operations run on the calling thread alone; its number of threads is restored after. Our kernels keep
    all of them. Also a decorator.

    A QR or eigenproblem of a few hundred rows is a long chain of tiny parallel regions. Shared by two threads it is
    no faster on idle cores, and several times slower where another process holds one of them. A root or logarithm of
    128 numbers wakes MKL's threads, for 80 us where they sleep between calls; one takes 1.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    backend.held.threads = threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        backend.held.threads = 0


@contextmanager
def all_threads():
    """Large products and factorisations of torch, inside `one_thread`."""
    threads, ours = torch.get_num_threads(), backend.threads()
    if threads == ours:
        yield
        return
    torch.set_num_threads(ours)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
