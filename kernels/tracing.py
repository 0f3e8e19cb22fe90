"""Who looks on while an op runs: tracers, transforms and modes, which must see the operator, not its kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _is_tracing, _len_torch_dispatch_stack
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

_NO_TENSOR = {float, int, bool, str, type(None)}


def unobserved(arguments: tuple) -> bool:
    """Whether this is a plain eager call: no tracer, transform, mode or subclass that must see the operator, and no
    lazily negated tensor, whose memory the dispatcher would first set right."""
    if torch.compiler.is_compiling() or _len_torch_dispatch_stack() or peek_interpreter_stack() is not None:
        return False
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            if x.is_neg() or is_legacy_batchedtensor(x):
                return False
        elif kind not in _NO_TENSOR:
            return False
    return not (_is_tracing() or _profiler_enabled())


def batched(x: Tensor) -> bool:
    """Whether a tensor stands for several, as under torch.autograd.grad(is_grads_batched=True)."""
    return not torch.compiler.is_compiling() and is_legacy_batchedtensor(x)


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is under way. (A
    compiled graph is guarded by the transforms around it.)"""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def values_are_known(x: Tensor) -> bool:
    """Whether looking at values beside `x` neither waits for a device nor breaks a trace."""
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter  # a tracer's tensor is a subclass
    return plain and x.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()


def varies(number: float) -> bool:
    """Whether a number is an input of the graph being compiled, rather than a constant in it."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # half a second of imports, loaded by then

    return not has_static_value(number)


def constant(function):
    """Marks what a compiled graph may take as it is while it is traced, as torch.compiler.assume_constant_result does;
    that one imports the compiler, seconds for those who never compile."""
    function._dynamo_marked_constant = True
    return function


constant(transformed)
