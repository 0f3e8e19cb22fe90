"""A product inside Triton kernels that is rounded by itself, never fused with an addition."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter wants it beside every jitted function)
from fastrank.kernels import backend

if backend.interpreting():

    @triton.jit
    def mul_rn(a, b):
        return a * b

else:
    from triton.language.extra import libdevice

    @triton.jit
    def mul_rn(a, b):
        return libdevice.mul_rn(a, b)
