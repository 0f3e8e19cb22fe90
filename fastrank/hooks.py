"""Forward hooks that know when not to look, stay behind when a model is copied, and survive torch.compile.

torch.compile traces the hooks that a module has at its first call into its graph, and does not look for new ones. There
a hook leaves an operation, `fastrank::tap`, that hands its tensors on when the graph runs: no graph break, and what the
graph computes stays the same.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LIBRARY = torch.library.Library("fastrank", "FRAGMENT")
# A graph keeps an operation without a result only if it writes to something: to `token`. The replay of a CUDA graph
# would leave it out.
_LIBRARY.define(
    "tap(Tensor? input, Tensor? output, Tensor(a!) token, int hook) -> ()", tags=(torch.Tag.cudagraph_unsafe,)
)
_NUMBERS = itertools.count()
_TAPPED: weakref.WeakValueDictionary[int, ForwardHook] = weakref.WeakValueDictionary()


def _tap(input: Tensor | None, output: Tensor | None, token: Tensor, hook: int) -> None:
    if (found := _TAPPED.get(hook)) is not None:
        found.tapped(input, output)


_LIBRARY.impl("tap", _tap, "CompositeExplicitAutograd")
torch.library.register_fake("fastrank::tap", lambda input, output, token, hook: None, lib=_LIBRARY)


class Hook:
    """A hook that stays behind: a copy or a pickle of a watched model holds hooks that do nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self._call = call

    def __call__(self, *args: object) -> None:
        if self._call is not None:
            self._call(*args)

    def __reduce__(self) -> tuple:
        return Hook, ()


class Switch:
    """Shared by the hooks of one watching. armed: whether they look. traced: whether a compiled graph holds them.

    token: what their operations in a graph write to, which keeps them, and in their order.
    """

    def __init__(self) -> None:
        self.armed = False
        self.traced = False
        self.token = torch.zeros(())


class ForwardHook(Hook):
    """Calls `receive(input, output)` with the first tensors of a training-mode forward of `module`, detached.

    With `training=False` it is the forwards in evaluation mode that it looks at.

    It returns at once while its switch is off, and during a backward: what runs then is a forward that activation
    checkpointing repeats. Of the replicas of nn.DataParallel that of the first device counts.

    Args:
        receive: returns whether `receive_gradient` is wanted for this output; anything false if not.
        takes_input, takes_output: which of the two `receive` wants; the other is None.
        receive_gradient: called with the output's gradient in every backward through it; not in a compiled graph.
        find: the tensor of an output; the first if left out.
        fails: called with what goes wrong, in place of a forward that it would end; from then on the hook does nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        switch: Switch,
        receive: Callable[[Tensor | None, Tensor | None], bool | None],
        takes_input: bool = False,
        takes_output: bool = False,
        training: bool = True,
        receive_gradient: Callable[[Tensor], None] | None = None,
        find: Callable[[object], Tensor | None] | None = None,
        fails: Callable[[Exception], None] | None = None,
    ) -> None:
        self._fails, self._failed = fails, False
        self._training, self._receive_gradient, self._find = training, receive_gradient, find or first_tensor
        self._module, self._switch, self._receive = module, switch, receive
        self._takes_input, self._takes_output = takes_input, takes_output
        self._number = next(_NUMBERS)
        _TAPPED[self._number] = self

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: object = None) -> None:
        if torch.compiler.is_compiling():
            if module.training == self._training:
                x, y = self._tensors(args, kwargs, output)
                torch.ops.fastrank.tap(x, y, self._switch.token, self._number)
            return
        if self._switch.armed and module.training == self._training and not in_backward() and not self._failed:
            try:
                self._look(module, args, kwargs, output)
            except Exception as error:
                self._fail(error)

    def _look(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        x, y = self._tensors(args, kwargs, output)
        mine = module is self._module or _on_first_device(self._module, x if y is None else y)
        if mine and self._receive(x, y):
            self._await_gradient(first_tensor(output))

    def _fail(self, error: Exception) -> None:
        if self._fails is None:
            raise error
        self._failed = True
        self._fails(error)

    def _await_gradient(self, output: Tensor | None) -> None:
        if output is None or not output.requires_grad:
            return

        def arrived(gradient: Tensor) -> None:
            if self._switch.armed:
                self._receive_gradient(gradient.detach())

        output.register_hook(arrived)

    def tapped(self, x: Tensor | None, y: Tensor | None) -> None:
        """From a compiled graph."""
        self._switch.traced = True
        if self._switch.armed and not self._failed:
            try:
                self._receive(x, y)
            except Exception as error:
                self._fail(error)

    def _tensors(self, args: tuple, kwargs: dict, output: object) -> tuple[Tensor | None, Tensor | None]:
        x = None
        if self._takes_input:
            x = args[0] if args and isinstance(args[0], Tensor) else first_tensor((args, kwargs))
        y = self._find(output) if self._takes_output else None
        return None if x is None else x.detach(), None if y is None else y.detach()


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile is on the model or on a part of it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or isinstance(module, torch._dynamo.OptimizedModule)
        for module in model.modules()
    )


def in_backward() -> bool:
    """Whether this thread is inside a backward pass; torch's own activation checkpointing asks the same way."""
    return torch._C._current_graph_task_id() != -1


def _on_first_device(module: nn.Module, x: Tensor | None) -> bool:
    own = next(module.parameters(), None)
    return x is None or own is None or own.device == x.device


def member(output: object, name: str) -> Any:
    """`output[name]` or `output.name`, None where it has neither."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def find_logits(output: object) -> Tensor | None:
    """`logits` of a model's output where it has them, else its first floating-point tensor of two and more dimensions:
    a loss beside the logits is none."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and not output.is_nested and output.ndim >= 2 else None
    if isinstance(named := member(output, "logits"), Tensor):
        return named
    members = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for member in members if (found := find_logits(member)) is not None), None)


def first_tensor(output: object) -> Tensor | None:
    """The tensor of a module's output: itself, or the first one of a tuple, list or dict."""
    if isinstance(output, Tensor):
        return output
    members = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    for member in members:
        if (found := first_tensor(member)) is not None:
            return found
    return None
