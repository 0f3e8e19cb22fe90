"""mse: the rank deficit comes with the squared error of the softmax too (Masarczyk et al. 2025, Table 6)."""

from __future__ import annotations

from fastrank.recipes import temperature_sweep
from fastrank.recipes.recipe import Recipe, Scale
from fastrank.recipes.training import SMALL_RESNET, SMOKE_MLP, UNTRACKED, over_temperatures, paper_resnet, train_jobs

MSE = {**UNTRACKED, "loss": "mse"}

RECIPE = Recipe(
    name="mse",
    claim="With the squared error between softmax and target a higher temperature also lowers the solution's rank.",
    source="Masarczyk et al. 2025, appendix F, Table 6",
    rule="As temperature-sweep's, with the squared error of the softmax as the loss.",
    scales={
        "smoke": Scale(over_temperatures({**SMOKE_MLP, **MSE}, (1, 10)), 2, "seconds"),
        "quick": Scale(over_temperatures({**SMALL_RESNET, **MSE}, (1, 10, 100)), 3, "about 10 minutes"),
        "full": Scale(
            over_temperatures({**paper_resnet("resnet34_cifar", "cifar100"), **MSE}, (1, 100)), 3,
            "6 trainings of ResNet-34 on CIFAR-100, 164 epochs each",
        ),
    },
    columns=temperature_sweep.RECIPE.columns,
    run=train_jobs,
    effects=temperature_sweep.effects,
    draw=temperature_sweep.draw,
)  # fmt: skip
