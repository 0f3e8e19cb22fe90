"""Matrix products of a measurement run in the precision of their inputs, whatever the training around them allows."""

from __future__ import annotations

from contextlib import contextmanager

import torch


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
