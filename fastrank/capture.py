"""From modules to named matrices: forward hooks that hand on sampled views of what a layer saw and gave.

A *source* is a matrix [n, d] with rows as samples:

* `act`: the output of a layer, in a mode (`flatten`, `channels`, `pool`), see `as_matrix`;
* `window`: the same, with fewer columns and rows, of every forward;
* `weight`: the layer's weight as [out, in], a convolution's as [out, in / groups * kh * kw]; of one that is computed
  (weight_norm, spectral_norm, orthogonal, pruning) what the forward used;
* `input`: the layer's input in the coordinates of that weight: features of a linear layer, patches of a convolution;
  of these a seeded sample of rows. `bound` is the input with all its rows, never formed: its spectrum;
* `features`: the input of a linear layer with all its rows, in place.

With "factors" among the kinds also `slope`, the gradient of a layer's output [rows, out], and all rows of its `input`,
which is then a `factor`: the gradient of the weight is the product of the two. Both only of layers with so few rows
that the pair is smaller than that gradient, and of the first run in a forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fastrank.errors import InputError
from fastrank.factored import pays
from fastrank.hooks import ForwardHook, Switch, find_logits
from fastrank.kernels.gram import Convolution, patch_rows
from fastrank.layers import (
    Layer,
    computed_before,
    is_linear,
    trained_weight,
    weight_matrix,
    weight_parametrization,
)
from fastrank.metrics.gradient_bound import input_spectrum
from fastrank.spectra import Spectrum

#: At most this many features of a flattened activation enter its spectrum ([U] A.5).
MAX_FEATURES = 10_000
#: They are taken in runs of so many neighbours, a cache line of float32: 32 x 10,000 of 802,816 features take 0.4 ms
#: instead of 8. Neighbouring pixels are alike, so that such a sample says a little less: on the outputs of a ResNet-50
#: (digits, 112 px) the effective rank is off by 0.3 % on average instead of 0.16 % with single features, the
#: participation ratio by 1.0 % instead of 0.8 %; at worst by 1.8 % and 5.5 % instead of 0.8 % and 3.4 %.
LINE = 16
#: At most this many rows (samples or patch positions) of a layer's input enter its subspace. Beside all rows of the
#: batch (a trained ResNet-10 at T=1 and 100, 512 to 32,768 rows) such a sample moves the largest cosine by 0.021 on
#: average, one of 512 rows by 0.017, another batch by 0.012; the mean of the diagonal by 0.014, both.
INPUT_ROWS = 256
#: At most so many features enter a window's state: 8 MiB of float64 a layer, 0.4 GiB for ResNet-50's 49 outputs.
WINDOW_FEATURES = 1024
#: At most so many rows of one forward enter it: four times its features, where a convolution has a million positions.
WINDOW_ROWS = 4096

MODES = ("flatten", "channels", "pool")

Emit = Callable[[str, str, Callable[[], Tensor | Spectrum]], None]


class Capture:
    """Hooks on `layers` that call `emit(kind, name, matrix)` at every training-mode forward while `switch.armed`.

    `matrix()` gives a view or a sampled copy of live data: `emit` must take what it needs before it returns. What is
    surely a copy of an activation comes as "sample", all else of it as "act". A module that runs several times in one
    forward emits under `name`, `name#2`, ... `attach` sets the hooks, `remove` takes every one away for a while,
    `detach` for good. With `training=False` it is forwards in evaluation mode. What goes wrong outside of `emit`, with
    a layer used as none of its kind is, is told `fails("layers/<name>", error)` once, or raised without it.
    """

    def __init__(
        self,
        layers: list[Layer],
        emit: Emit,
        *,
        kinds: frozenset[str],
        mode: str = "flatten",
        seed: int = 0,
        max_features: int = MAX_FEATURES,
        input_rows: int = INPUT_ROWS,
        training: bool = True,
        fails: Callable[[str, Exception], None] | None = None,
    ) -> None:
        if mode not in MODES:
            raise InputError("mode", f"one of {', '.join(MODES)}", repr(mode))
        #: Switches the hooks on.
        self.switch = Switch()
        #: A forward whose activations and inputs are left out; weights and bounds are not.
        self.skipping = False
        #: Layers that had a hook, and those of which a forward was ever seen.
        self.hooked: set[str] = set()
        self.seen: set[str] = set()
        self._emit, self._kinds, self._mode, self._seed, self._fails = emit, kinds, mode, seed, fails
        self.max_features, self.input_rows, self._training = max_features, input_rows, training
        self._runs: dict[str, int] = {}
        #: Layers whose gradient has far fewer rows to be made of than it has itself, in the forward under way.
        self._factored: set[str] = set()
        #: Weights that were computed in the forward under way, until their layer's hook takes them.
        self._computed: dict[str, Tensor] = {}
        self._combs: dict[tuple, tuple[int, int, int, int]] = {}
        self.begin_step(0)
        self._layers, self._handles, self._around = layers, [], ()

    def around(self, model: nn.Module, begins: Callable[[], None], ends: Callable[[Tensor | None], None]) -> None:
        """Also calls `begins()` before every training-mode forward of `model`, and `ends(logits)` after it."""

        def find(output: object) -> Tensor | None:
            try:
                return find_logits(output)
            except Exception as error:
                if self._fails is None:
                    raise
                self._fails("logits", error)
                return None

        hooks = (
            ForwardHook(model, self.switch, lambda *_: begins(), fails=self._failing("model")),
            ForwardHook(
                model, self.switch, lambda _, y: ends(y), takes_output=True, find=find, fails=self._failing("model")
            ),
        )
        self._around = tuple(zip((model.register_forward_pre_hook, model.register_forward_hook), hooks, strict=True))

    def _failing(self, key: str) -> Callable[[Exception], None] | None:
        return None if self._fails is None else partial(self._fails, key)

    def attach(self) -> None:
        if not self._handles:
            self._handles = [handle for layer in self._layers for handle in self._hook(layer)]
            self._handles += [register(hook, with_kwargs=True) for register, hook in self._around]

    def _hook(self, layer: Layer):
        wants_input = layer.weight and bool(self._kinds & {"input", "bound", "features"})
        wants_output = layer.output and bool(self._kinds & {"act", "window"})
        if not (wants_input or wants_output or (layer.weight and {"weight", "factors"} & self._kinds)):
            return
        self.hooked.add(layer.name)

        def receive(x: Tensor | None, output: Tensor | None) -> bool:
            self._receive(layer, x, output)
            return layer.name in self._factored

        def receive_gradient(gradient: Tensor) -> None:
            self._emit("slope", layer.name, lambda: output_rows(layer.module, gradient))

        wants_input |= layer.weight and "factors" in self._kinds
        fails = self._failing(f"layers/{layer.name}")
        hook = ForwardHook(
            layer.module, self.switch, receive, wants_input, wants_output, self._training, receive_gradient, fails=fails
        )
        parametrization = weight_parametrization(layer.module) if layer.weight else None
        if parametrization is not None and "weight" in self._kinds:

            def keep(_, weight: Tensor | None) -> None:
                self._computed[layer.name] = weight

            computed = ForwardHook(parametrization, self.switch, keep, takes_output=True, training=self._training)
            yield parametrization.register_forward_hook(computed, with_kwargs=True)
        yield layer.module.register_forward_hook(hook, with_kwargs=True)

    def _receive(self, layer: Layer, x: Tensor | None, output: Tensor | None) -> None:
        self.seen.add(layer.name)
        run = self._runs[layer.name] = self._runs.get(layer.name, 0) + 1
        name = layer.name if run == 1 else f"{layer.name}#{run}"
        parameter = trained_weight(layer.module) if layer.weight else None
        weight = self._weight(layer, parameter) if layer.weight else None
        if weight is not None and "weight" in self._kinds and run == 1:
            self._emit("weight", name, lambda: weight_matrix(weight, layer.module))
        if layer.weight and x is not None and not self.skipping:
            factor = "factors" in self._kinds and run == 1 and self._is_factor(layer.module, parameter, x)
            if factor:
                self._factored.add(name)
            if factor or "input" in self._kinds:
                self._emit("factor" if factor else "input", name, lambda: self._input(layer.module, x))
        if parameter is not None and x is not None and "bound" in self._kinds:
            self._emit("bound", name, lambda: input_spectrum(layer.module, x))
        if x is not None and "features" in self._kinds and is_linear(layer.module):
            self._emit("features", name, lambda: x.reshape(-1, x.shape[-1]))
        if output is not None and "window" in self._kinds:
            self._emit("window", name, lambda: self.window_rows(as_matrix(output, self._mode), name))
        if output is not None and "act" in self._kinds and not self.skipping:
            sampled = self._mode == "flatten" and output.ndim > 1 and output.shape[1:].numel() > self.max_features
            kind = "sample" if sampled else "act"
            self._emit(kind, name, lambda: self.features(as_matrix(output, self._mode), name, self.max_features))

    def _weight(self, layer: Layer, parameter: Tensor | None) -> Tensor | None:
        """What the forward under way multiplied with."""
        if weight_parametrization(layer.module) is not None:
            return self._computed.pop(layer.name, None)
        computed = computed_before(layer.module)
        return parameter if computed is None else computed

    def begin_step(self, step: int) -> None:
        """Number the step: it seeds which rows are drawn."""
        self._step = step
        #: By (population, size, device): layers with as many rows share what is drawn, and are seen at the same places.
        self._drawn: dict[tuple[int, int, torch.device], Tensor] = {}

    def begin_forward(self, skipping: bool = False) -> None:
        """A new forward of the whole model; of those to be skipped only weights, bounds and windows are taken."""
        self._runs.clear()
        self._factored.clear()
        self._computed.clear()
        self.skipping = skipping

    def detach(self) -> None:
        self.remove()
        self.switch.armed = False

    def remove(self) -> None:
        """The hooks only, until `attach`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._computed.clear()

    def features(self, X: Tensor, name: str, most: int) -> Tensor:
        """At most `most` columns: the same seeded subset at every step, so that figures are comparable."""
        if X.shape[1] <= most:
            return X
        key = ("features", name, X.shape[1], most)
        if key not in self._combs:
            self._combs[key] = _comb(X.shape[1], most, self._generator(hash_name(name)))
        start, step, count, line = self._combs[key]
        n, (down, right) = len(X), X.stride()
        runs = X.as_strided((n, count, line), (down, step * right, right), X.storage_offset() + start * right)
        return runs.reshape(n, count * line)

    def window_rows(self, X: Tensor, name: str) -> Tensor:
        """What enters a window: at most WINDOW_ROWS seeded rows, others at each step, and WINDOW_FEATURES columns."""
        if len(X) > WINDOW_ROWS:
            X = X.index_select(0, self._sample(len(X), WINDOW_ROWS, X.device))
        return self.features(X, name, WINDOW_FEATURES)

    def _is_factor(self, module: nn.Module, weight: Tensor | None, x: Tensor) -> bool:
        rows = None if weight is None else factor_rows(module, x)
        # On a GPU whether the product is the gradient would have to be waited for.
        wanted = rows is not None and weight.requires_grad and x.device.type == "cpu"
        return wanted and rows <= self.input_rows and pays(rows, *weight_matrix(weight, module).shape)

    def _input(self, module: nn.Module, x: Tensor) -> Tensor:
        if is_linear(module):
            X = x.reshape(-1, x.shape[-1])
            # A copy in any case: a later layer may write to what is kept until the end of the step.
            return X.clone() if len(X) <= self.input_rows else X.index_select(0, self._rows(len(X), x.device))
        return self._patches(module, x)

    def _patches(self, module: nn.Module, x: Tensor) -> Tensor:
        """Seeded patch rows [m, in / groups * kernel]; no full im2col is formed."""
        convolution = plain_convolution(module)
        if convolution is not None:
            x = x if x.ndim == 4 else x.unsqueeze(0)
            return patch_rows(x, convolution, self._rows(convolution.rows(x.shape), x.device))
        windows = patch_view(x, module)
        groups, spatial = module.groups, windows.ndim // 2 - 1
        batch, positions = windows.shape[0], windows.shape[2 : 2 + spatial]
        pick = self._rows(batch * positions.numel() * groups, x.device)
        group = pick % groups
        rest = pick // groups
        index = []
        for size in reversed(positions):
            index.insert(0, rest % size)
            rest = rest // size
        if groups == 1:
            return windows[(rest, slice(None), *index)].flatten(1)
        width = windows.shape[1] // groups
        channels = group[:, None] * width + torch.arange(width, device=x.device)
        return windows[(rest[:, None], channels, *(i[:, None] for i in index))].flatten(1)

    def _rows(self, total: int, device: torch.device) -> Tensor:
        return self._sample(total, min(total, self.input_rows), device)

    def _sample(self, population: int, size: int, device: torch.device) -> Tensor:
        """`size` of `population`, without replacement, sorted; a function of (seed, step) alone."""
        key = population, size, device
        if key not in self._drawn:
            self._drawn[key] = _places(population, size, self._generator(self._step)).to(device)
        return self._drawn[key]

    def _generator(self, draw: int) -> torch.Generator:
        return torch.Generator().manual_seed((self._seed * 0x9E3779B97F4A7C15 + draw) & 0x7FFFFFFFFFFFFFFF)


def _places(population: int, size: int, generator: torch.Generator) -> Tensor:
    if size == population:
        return torch.arange(size, device="cpu")
    if population > 16 * size:
        # Strata instead of a permutation of millions: one position in each of `size` equal intervals.
        places = torch.rand(size, generator=generator, dtype=torch.float64)
        places += torch.arange(size, device="cpu")
        return places.mul_(population / size).long().clamp_max_(population - 1)
    return torch.randperm(population, generator=generator)[:size].sort().values


def _comb(population: int, most: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """(start, step, count, line): runs of `line` neighbours, one every `step`, `most` of `population` together at most.

    No step of more than a line divides the width of an image or its number of channels, so that the runs lie in other
    places of each.
    """
    line = min(LINE, most)
    count = most // line
    step = population // count
    while step > line and math.gcd(step, population) > 1:
        step -= 1
    room = population - (count - 1) * step - line
    return int(torch.randint(room + 1, (), generator=generator)), step, count, line


def as_matrix(x: Tensor, mode: str) -> Tensor:
    """An activation [B, ...] as a matrix [n, d].

    `flatten`: [B, all features]; `channels`: [B * positions, C] (channels first for 3 dimensions and more of a
    convolutional map, last for token sequences [B, tokens, C]); `pool`: [B, C], the mean over positions.
    """
    if x.ndim < 2:
        return x.reshape(-1, 1)
    if mode == "flatten" or x.ndim == 2:
        return x.flatten(1)
    channels_last = x if x.ndim == 3 else x.movedim(1, -1)
    if mode == "channels":
        return channels_last.flatten(0, -2)
    return channels_last.flatten(1, -2).mean(1)


def factor_rows(module: nn.Module, x: Tensor) -> int | None:
    """Rows of the two factors of a weight's gradient for an input x; None where it is no product of two matrices."""
    if is_linear(module):
        return x.numel() // max(x.shape[-1], 1)
    convolution = plain_convolution(module)
    if convolution is None or convolution.groups != 1:
        return None
    return convolution.rows(x.shape if x.ndim == 4 else (1, *x.shape))


def output_rows(module: nn.Module, y: Tensor) -> Tensor:
    """What belongs to a weighted layer's output, as rows [rows, out] in the order of the rows of its input."""
    if not is_linear(module):
        y = y.movedim(y.ndim - 1 - len(module.kernel_size), -1)
    return y.reshape(-1, y.shape[-1])


def plain_convolution(module: nn.Module) -> Convolution | None:
    """What the patch kernels know: two dimensions, zeros for padding, as wide on both sides."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return None
    return _convolution(module.kernel_size, module.stride, module.padding, module.dilation, module.groups)


@lru_cache(maxsize=256)
def _convolution(*sizes: Any) -> Convolution | None:
    try:
        return Convolution.of(*sizes)
    except ValueError:
        return None


def patch_view(x: Tensor, conv: nn.Module) -> Tensor:
    """The windows of a convolution's input [B, C, *spatial] as a view [B, C, *positions, *kernel] (plus padding)."""
    dims = len(conv.kernel_size)
    if x.ndim == dims + 1:
        x = x.unsqueeze(0)
    if isinstance(conv.padding, str):
        widths = [k for d, s in zip(conv.dilation, conv.kernel_size, strict=True) for k in _same(d * (s - 1))]
        widths = widths if conv.padding == "same" else [0] * (2 * dims)
    else:
        widths = [p for size in conv.padding for p in (size, size)]
    if any(widths):
        # F.pad counts from the last dimension.
        pairs = [widths[2 * i : 2 * i + 2] for i in reversed(range(dims))]
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = nn.functional.pad(x, [w for pair in pairs for w in pair], mode=mode)
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    for axis, (size, step) in enumerate(zip(reach, conv.stride, strict=True)):
        x = x.unfold(2 + axis, size, step)
    for axis, dilation in enumerate(conv.dilation):
        x = x[(slice(None),) * (2 + dims + axis) + (slice(None, None, dilation),)]
    return x


def _same(total: int) -> tuple[int, int]:
    """torch's "same": the odd one goes to the right."""
    return total // 2, total - total // 2


def hash_name(name: str) -> int:
    """A fixed 63-bit number of a name (FNV-1a); Python's own hash changes from process to process."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value >> 1
