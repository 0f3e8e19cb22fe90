"""The papers' experiments as named recipes; `fastrank reproduce` on the command line.

    from fastrank.recipes import find_recipe, reproduce
    result = reproduce(find_recipe("softmax-rank"), scale="quick", out=Path("reproduced"))

A recipe is one file here (see `fastrank.recipes.recipe.Recipe`) and its entry in FILES.
"""

from __future__ import annotations

import importlib
import re

from fastrank.errors import InputError
from fastrank.recipes.execute import recompute, reproduce
from fastrank.recipes.recipe import SCALES, Column, Job, Recipe, Scale, Study
from fastrank.recipes.result import Result
from fastrank.train.config import TrainConfig
from fastrank.train.models import parse_kwargs
from fastrank.train.names import closest

#: name -> module under fastrank.recipes that holds its `RECIPE`, in the order of the gallery's list.
FILES = {
    "temperature-sweep": "temperature_sweep",
    "logits-norm": "logits_norm",
    "alignment": "alignment",
    "gradient-rank": "gradient_rank",
    "softmax-rank": "softmax_rank",
    "orthodev": "orthodev",
    "ood-detection": "ood_detection",
    "vgg-norm": "vgg_norm",
    "init-norm": "init_norm",
    "mse": "mse",
    "schedule": "schedule",
    "controls": "controls",
    "rank-sweeps": "rank_sweeps",
    "ufm-depth": "ufm.recipe_depth",
    "ufm-spectral": "ufm.recipe_spectral",
    "ufm-basin": "ufm.recipe_basin",
    "ufm-width": "ufm.recipe_width",
    "ufm-codes": "ufm.recipe_codes",
}

__all__ = [
    "FILES",
    "SCALES",
    "Column",
    "Job",
    "Recipe",
    "Result",
    "Scale",
    "Study",
    "find_recipe",
    "recompute",
    "reproduce",
]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, also with other training: "mse+optimizer=sgd"; InputError suggests the closest names."""
    plain, _, changes = name.partition("+")
    if plain not in FILES:
        raise InputError("name", f"one of {', '.join(FILES)}", repr(plain), closest(plain, FILES))
    recipe = importlib.import_module(f"fastrank.recipes.{FILES[plain]}").RECIPE
    if not changes:
        return recipe
    fields = parse_kwargs(re.split(r",(?=\w+=)", changes))  # values such as lists have commas of their own
    if unknown := set(fields) - set(TrainConfig.__dataclass_fields__):
        known = ", ".join(TrainConfig.__dataclass_fields__)
        raise InputError("set", f"fields of a training ({known})", ", ".join(sorted(unknown)))
    return recipe.changed(fields)
