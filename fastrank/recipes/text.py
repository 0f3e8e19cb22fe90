"""What `fastrank reproduce` prints: the list of recipes, and a result."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import fill

from fastrank.extras import require
from fastrank.recipes import FILES, Result, find_recipe
from fastrank.recipes.recipe import IMAGENET, Scale
from fastrank.recipes.result import upright


def list_recipes() -> None:
    """What each recipe claims, and what each of its scales runs and takes."""
    for name in FILES:
        recipe = find_recipe(name)
        print(name)
        print(fill(recipe.claim, 100, initial_indent="  ", subsequent_indent="  "))
        for scale in ("quick", "full", IMAGENET):
            if scale in recipe.scales:
                print(f"  {'--' + scale:<11}{_scale(recipe.scales[scale])}")


def _scale(scale: Scale) -> str:
    count = len(scale.settings)
    return f"{count} setting{'s' * (count > 1)} x {scale.seeds} seeds: {scale.cost}"


def print_result(result: Result, out: Path) -> None:
    """The table, the effects, the verdict, and where the figure is."""
    heads, rows = upright(result.table)
    console, table = _table("", *heads)
    for name, cells in rows.items():
        table.add_row(name, *(cell.text for cell in cells))
    console.print(table)
    console, table = _table("effect", "claimed", "estimate", "95 % interval", "")
    for effect in result.effects:
        interval = f"[{_number(effect.lo)}, {_number(effect.hi)}]"
        state = effect.verdict + ("" if effect.counts else " (does not count)")
        table.add_row(effect.name, f"{effect.claimed} {effect.null:g}", _number(effect.value), interval, state)
    console.print(table)
    if result.revised:
        console.print(f"changed after a first look: {result.revised}", highlight=False, markup=False)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(f"{result.recipe}: {result.verdict}. {result.claim}", highlight=False, markup=False)
    console.print(str(out / result.recipe / result.scale / "figure.png"), soft_wrap=True, highlight=False, markup=False)
    console.print(str(out / "index.html"), soft_wrap=True, highlight=False, markup=False)


def _table(*columns: str):
    console = require("rich.console", "the summary").Console()
    table = require("rich.table", "the summary").Table(box=require("rich.box", "the summary").SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    return console, table


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"
