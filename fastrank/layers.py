"""What of a model is watched: layers by name, and the trained matrices that they hold."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from fastrank.errors import InputError

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Layer:
    """A module to watch: its clean name, and which sources it gives.

    Where `parameter` is set, the layer is that one parameter of `module` and nothing else: a matrix whose rows and
    columns belong to no input and output that a hook would see.
    """

    name: str
    module: nn.Module
    output: bool
    weight: bool
    parameter: str = ""

    @property
    def has_matrix(self) -> bool:
        return self.weight or bool(self.parameter)

    @property
    def is_looked_up(self) -> bool:
        """Whether a forward reads rows of the matrix, as an embedding's."""
        return bool(self.parameter) and isinstance(self.module, nn.Embedding | nn.EmbeddingBag)

    def trained(self) -> Tensor | None:
        """The parameter that holds the gradient of its matrix, see `trained_weight`."""
        return self.module._parameters.get(self.parameter) if self.parameter else trained_weight(self.module)

    def matrix(self, tensor: Tensor) -> Tensor:
        """Its parameter, or the gradient of that, as a matrix."""
        return tensor.detach().squeeze().flatten(1) if self.parameter else weight_matrix(tensor, self.module)


def clean_name(name: str) -> str:
    """A module's name without the parts that torch.compile, DDP, FSDP and checkpointing add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def select_layers(model: nn.Module, layers: str | Iterable[str] = "*") -> list[Layer]:
    """The layers whose clean names match one of the shell globs in `layers`, in the model's order.

    `"*"` is every layer: weights and inputs of all linear and convolutional modules, all other trained matrices (see
    below), outputs of all nonlinearities ([U] A.5 takes representations after the nonlinearity), or of the weighted
    modules where the model has no nonlinearity modules. Any other glob watches the output of whatever it names,
    containers too, and the weight of what has one.

    Trained matrices of other modules are layers under their own names, such as `embedding.weight`,
    `lstm.weight_ih_l0` (the four gates one below the other), `attn.in_proj_weight` (query, key and value) and
    `pos_embed`: [first dimension, all others], those of size 1 left out. They have a weight and a gradient, and neither
    outputs nor alignment. A glob names them by their own name or by their module's.

    Raises:
        InputError: a glob that matches nothing.
    """
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(p, str) for p in patterns):
        raise InputError("layers", "a glob or a list of globs", repr(layers))
    modules = {clean_name(name): module for name, module in model.named_modules()}
    matrices = {layer.name: layer for layer in _matrices(modules)}
    of_module = {name: name.rpartition(".")[0] for name in matrices}
    del modules[""]
    if not modules:
        raise InputError(
            "model", "a module with submodules", f"a bare {type(model).__name__}", "wrap it in nn.Sequential"
        )
    weighted = {name for name, module in modules.items() if is_weighted(module) and name not in matrices}
    chosen: dict[str, Layer] = {}
    for pattern in patterns:
        if pattern == "*":
            outputs = {name for name, module in modules.items() if is_nonlinearity(module)} or weighted
            found = {name: (name in outputs, name in weighted) for name in weighted | outputs}
            others = set(matrices)
        else:
            names = set(fnmatch.filter(modules, pattern))
            found = {name: (True, name in weighted) for name in names if name not in matrices}
            others = {name for name, module in of_module.items() if fnmatch.fnmatch(name, pattern) or module in names}
        if not found and not others:
            sample = ", ".join(list(modules)[:8])
            raise InputError("layers", f"globs over module names such as {sample}", repr(pattern))
        for name, (output, weight) in found.items():
            old = chosen.get(name)
            chosen[name] = Layer(name, modules[name], output or bool(old and old.output), weight)
        chosen |= {name: matrices[name] for name in others}
    order = dict.fromkeys((*(name for name, module in of_module.items() if not module), *modules))
    order = [place for name in order for place in (name, *(n for n, m in of_module.items() if m == name))]
    return [chosen[name] for name in dict.fromkeys(order) if name in chosen]


def _matrices(modules: dict[str, nn.Module]) -> Iterator[Layer]:
    """The trained matrices that are no weight of a linear or convolutional module, each as a layer of its own.

    What makes up a weight that is computed (weight_norm and its like) is none.
    """
    # Attention takes this parameter without calling the module that holds it.
    uncalled = {id(m.out_proj) for m in modules.values() if isinstance(m, nn.MultiheadAttention)}
    weights = (trained_weight(m) for m in modules.values() if is_weighted(m) and id(m) not in uncalled)
    known = {id(weight) for weight in weights}
    for name, module in modules.items():
        if isinstance(module, ParametrizationList) or (is_weighted(module) and id(module) not in uncalled):
            continue
        for own, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad or not _is_matrix(parameter) or id(parameter) in known:
                continue
            known.add(id(parameter))
            full = name if id(module) in uncalled else f"{name}.{own}" if name else own
            yield Layer(full, module, output=False, weight=False, parameter=own)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.numel() > max(parameter.shape)


def trained_weight(module: nn.Module) -> Tensor | None:
    """The parameter behind `module.weight`, which holds its gradient; None where several make it up (weight_norm).

    A parametrized weight is never read itself: that computes it anew, and a spectral norm or a dropout would move on.
    """
    if (parameter := module._parameters.get("weight")) is not None:
        return parameter
    if (parametrization := weight_parametrization(module)) is not None:
        return getattr(parametrization, "original", None)
    return module._parameters.get("weight_orig")


def weight_parametrization(module: nn.Module) -> nn.Module | None:
    """What gives `module.weight` in a forward where torch.nn.utils.parametrize has it computed."""
    parametrizations = module._modules.get("parametrizations")
    return parametrizations["weight"] if parametrizations is not None and "weight" in parametrizations else None


def computed_before(module: nn.Module) -> Tensor | None:
    """The weight that a hook computes before each forward and leaves at the module: torch.nn.utils.weight_norm,
    spectral_norm and pruning. Only theirs: what else lies there may be a view of memory that comes and goes."""
    parts = module._parameters.keys()
    known = "weight_orig" in parts or {"weight_g", "weight_v"} <= parts
    weight = module.__dict__.get("weight") if known else None
    return weight if isinstance(weight, Tensor) else None


def is_computed(module: nn.Module) -> bool:
    """Whether the weight that a forward uses is no parameter, but made of some."""
    return weight_parametrization(module) is not None or computed_before(module) is not None


def weight_matrix(weight: Tensor, module: nn.Module) -> Tensor:
    """The weight of `module`, or its gradient, as [out, in], a convolution's kernel flattened behind its outputs."""
    return weight.detach().T if is_transposed(module) else weight.detach().flatten(1)


def unmeasured(model: nn.Module, layers: Iterable[Layer]) -> list[str]:
    """The trained matrices of a model that no layer has, by name: parts of what is computed but no layer's weight."""
    layers = [layer for layer in layers if layer.has_matrix]
    ours = {id(weight) for layer in layers if (weight := layer.trained()) is not None}
    ours |= {id(p) for layer in layers if layer.weight and is_computed(layer.module) for p in layer.module.parameters()}
    return [
        f"{clean_name(name)} {tuple(p.shape)}"
        for name, p in model.named_parameters()
        if p.requires_grad and _is_matrix(p) and id(p) not in ours
    ]


def is_nonlinearity(module: nn.Module) -> bool:
    """An activation function: a parameter-free (or PReLU) leaf of torch.nn.modules.activation or a library's own."""
    origin = type(module).__module__
    known = origin.startswith(("torch.nn.modules.activation", "timm.layers.activations", "transformers.activations"))
    return known and not isinstance(module, nn.MultiheadAttention | nn.Softmax | nn.LogSoftmax)


def is_weighted(module: nn.Module) -> bool:
    """Whether the module multiplies rows with a matrix: linear layers and convolutions."""
    return isinstance(module, WEIGHTED) or is_transposed(module)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """A linear layer whose weight is [in, out]: `transformers.pytorch_utils.Conv1D`, of which GPT-2 is made."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
