"""Losses with a temperature, as modules and functions."""

from __future__ import annotations

from torch import Tensor, nn

from fastrank.kernels.linear_tempered_ce import linear_tempered_cross_entropy
from fastrank.kernels.tempered_ce import RowStats, tempered_cross_entropy
from fastrank.kernels.tempered_loss import validate
from fastrank.kernels.tempered_mse import tempered_mse

__all__ = [
    "FusedLinearTemperedCE",
    "RowStats",
    "TemperedCE",
    "TemperedMSE",
    "linear_tempered_cross_entropy",
    "tempered_cross_entropy",
    "tempered_mse",
]

Target = Tensor | tuple[Tensor, Tensor, float | Tensor]


class _Tempered(nn.Module):
    """Temperature and options of a loss; a tensor `T` that is no parameter is a buffer."""

    def __init__(
        self,
        T: float | Tensor = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        scale_gradient: str | None = None,
    ) -> None:
        super().__init__()
        validate.options(T, reduction, label_smoothing, scale_gradient)
        if isinstance(T, Tensor) and T.dim() > 0:  # nn.CrossEntropyLoss's first argument is the classes' weights
            raise ValueError(
                f"T: expected a number or a 0-d tensor, got shape {tuple(T.shape)}; class weights are `weight`, and "
                "the functions take a temperature for each sample"
            )
        if isinstance(T, Tensor) and not isinstance(T, nn.Parameter):
            self.register_buffer("T", T)
        else:
            self.T = T
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.scale_gradient = scale_gradient

    def extra_repr(self) -> str:
        number = isinstance(self.T, Tensor) and self.T.dim() == 0 and not self.T.is_meta
        T = float(self.T.detach()) if number else self.T
        options = {"label_smoothing": self.label_smoothing, "scale_gradient": self.scale_gradient}
        return f"T={T}, reduction={self.reduction!r}" + "".join(
            f", {name}={value!r}" for name, value in options.items() if value
        )


class TemperedCE(_Tempered):
    """`nn.CrossEntropyLoss` of logits divided by a temperature `T`; see `tempered_cross_entropy`.

    `T` is a number, a 0-d tensor or a `nn.Parameter`. A tensor is kept as a buffer, moves with `.to(device)` and is
    saved in `state_dict()`; a schedule changes it in place:

        criterion = TemperedCE(T=torch.tensor(100.0))
        criterion.T.fill_(50.0)

    `weight`, `ignore_index`, `reduction` and `label_smoothing` are those of `nn.CrossEntropyLoss`; `scale_gradient` and
    `return_stats` those of the function.
    """

    def __init__(
        self,
        T: float | Tensor = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        scale_gradient: str | None = None,
        return_stats: bool = False,
    ) -> None:
        super().__init__(T, weight, ignore_index, reduction, label_smoothing, scale_gradient=scale_gradient)
        self.return_stats = return_stats

    def forward(self, input: Tensor, target: Target) -> Tensor | tuple[Tensor, RowStats]:
        return tempered_cross_entropy(
            input, target, self.T, self.weight, self.ignore_index, self.reduction, self.label_smoothing,
            scale_gradient=self.scale_gradient, return_stats=self.return_stats,
        )  # fmt: skip


class TemperedMSE(_Tempered):
    """Squared error between the softmax of logits over a temperature `T` and their target; see `tempered_mse`.

    Without options `nn.MSELoss()(softmax(input / T), one_hot(target))`; arguments as of `TemperedCE`,
    without statistics.

        criterion = TemperedMSE(T=100)
        loss = criterion(logits, target)
    """

    def forward(self, input: Tensor, target: Target) -> Tensor:
        return tempered_mse(
            input, target, self.T, self.weight, self.ignore_index, self.reduction, self.label_smoothing,
            scale_gradient=self.scale_gradient,
        )  # fmt: skip


class FusedLinearTemperedCE(_Tempered):
    """`TemperedCE` of a linear classifier's logits, which are never all in memory; see `linear_tempered_cross_entropy`.

    criterion = FusedLinearTemperedCE(T=100)
    loss = criterion(features, head.weight, target, head.bias)
    """

    def forward(self, features: Tensor, classifier: Tensor, target: Target, bias: Tensor | None = None) -> Tensor:
        return linear_tempered_cross_entropy(
            features, classifier, target, bias, self.T, self.weight, self.ignore_index, self.reduction,
            self.label_smoothing, scale_gradient=self.scale_gradient,
        )  # fmt: skip
