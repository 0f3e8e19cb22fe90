"""`reproduce`: runs what is not finished, then computes table, effects, verdict and figure from the run directories.

OUT/<recipe>/<scale>/<label>-s<seed>/    one run directory per setting and seed
OUT/<recipe>/<scale>/result.json         what `Result` holds, table.csv, figure.png, figure.pdf
OUT/index.html                           the gallery: one page over all recipes that have a result
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastrank.errors import InputError
from fastrank.recipes.gallery import DPI, write_gallery
from fastrank.recipes.recipe import Job, Recipe, Study
from fastrank.recipes.result import Result, result_of
from fastrank.record import load_run
from fastrank.record.export import replacing
from fastrank.record.schema import DATABASE, jsonable

RESULT, TABLE, PICTURE, PLATE = "result.json", "table.csv", "figure.png", "figure.pdf"


def reproduce(
    recipe: Recipe,
    scale: str = "quick",
    seeds: int | Sequence[int] | None = None,
    out: Path = Path("reproduced"),
    device: torch.device | str = "cpu",
    data: Path | None = None,
) -> Result:
    """Runs the jobs of `recipe` that `out` does not hold finished, and writes its result and the gallery.

    seeds: how many (0, 1, ...), or which; the scale's number if left out. data: the folder that stands for `{data}` in
    settings that read images from disk. A killed call goes on where it stopped; a finished run is never run again.

    Raises:
        InputError: an unknown scale, no seeds, or a run directory that holds other settings than the recipe's.
    """
    jobs = plan_jobs(recipe, scale, seeds, out, data)
    unfinished = [job for job in jobs if not _finished(job)]
    if unfinished:
        recipe.run(unfinished, torch.device(device))
    if missing := [str(job.path) for job in jobs if not _finished(job)]:
        raise RuntimeError(f"{recipe.name} left {len(missing)} runs unfinished, the first is {missing[0]}")
    folder = out / recipe.name / scale
    folder.mkdir(parents=True, exist_ok=True)
    result = write_result(study_of(recipe, scale, jobs), folder)
    write_gallery(out)
    return result


def plan_jobs(
    recipe: Recipe, scale: str, seeds: int | Sequence[int] | None, out: Path, data: Path | None = None
) -> list[Job]:
    """One job per label and seed of a scale, label by label."""
    if scale not in recipe.scales:
        raise InputError("scale", f"one of {', '.join(recipe.scales)} for {recipe.name}", repr(scale))
    chosen = recipe.scales[scale]
    seeds = chosen.seeds if seeds is None else seeds
    numbers = list(seeds) if isinstance(seeds, Sequence) else range(seeds) if isinstance(seeds, int) else []
    if not len(numbers) or not all(isinstance(seed, int) and seed >= 0 for seed in numbers):
        raise InputError("seeds", "at least one, how many or which, none of them negative", repr(seeds))
    numbers = sorted(set(numbers))
    folder = out / (recipe.shares or recipe.name) / scale
    return [
        Job(label, _filled(settings, data or Path("data")), seed, folder / f"{_plain(label)}-s{seed}")
        for label, settings in chosen.settings.items()
        for seed in numbers
    ]


def recompute(folder: Path, find) -> Result:
    """The result of a recipe's directory (OUT/<recipe>/<scale>) again, from its run directories; runs nothing.

    find: recipe's name -> Recipe. Raises InputError where `folder` holds no result.
    """
    try:
        stored = json.loads((folder / RESULT).read_text())
        recipe, scale, seeds = find(stored["recipe"]), stored["scale"], stored["seeds"]
    except (OSError, ValueError, KeyError):
        raise InputError("path", f"a recipe's directory, with {RESULT}", str(folder)) from None
    out = folder.parent.parent
    result = write_result(study_of(recipe, scale, plan_jobs(recipe, scale, seeds, out)), folder)
    write_gallery(out)
    return result


def study_of(recipe: Recipe, scale: str, jobs: Sequence[Job]) -> Study:
    runs = {(job.label, job.seed): load_run(job.path) for job in jobs}
    return Study(recipe, scale, runs, tuple(recipe.scales[scale].settings), tuple(sorted({job.seed for job in jobs})))


def write_result(study: Study, folder: Path) -> Result:
    """result.json, table.csv and the figure, each replaced whole."""
    result = result_of(study)
    figure = study.recipe.draw(study)
    with replacing(folder / PICTURE) as partial:
        figure.savefig(partial, format="png", dpi=DPI, bbox_inches="tight")
    with replacing(folder / PLATE) as partial:
        figure.savefig(partial, format="pdf", bbox_inches="tight", metadata={"CreationDate": None})
    with replacing(folder / TABLE) as partial, partial.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["setting", "column", "mean", "std", "n", "mean_lo", "mean_hi", "lo", "hi", "values"])
        for label, cells in result.table.items():
            for name, cell in cells.items():
                intervals = (cell.mean_lo, cell.mean_hi, cell.lo, cell.hi)
                rows.writerow([label, name, cell.mean, cell.std, cell.n, *intervals, *cell.values])
    with replacing(folder / RESULT) as partial:
        partial.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")
    return result


def _finished(job: Job) -> bool:
    """Whether the job's directory holds its finished run; InputError where it holds other settings."""
    if not (job.path / DATABASE).is_file():
        return False
    run = load_run(job.path)
    stored, wanted = run.config.get("recipe"), jsonable({"settings": job.settings, "seed": job.seed})
    if stored is not None and stored != wanted:
        cure = "delete it, or choose another --out"
        raise InputError("out", f"a directory whose runs have this recipe's settings ({job.label})", job.path, cure)
    return run.status == "finished"


def _filled(value: Any, data: Path) -> Any:
    """`value` with `{data}` in texts replaced."""
    if isinstance(value, str):
        return value.replace("{data}", str(data))
    if isinstance(value, dict):
        return {key: _filled(item, data) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, data) for item in value]
    return value


def _plain(label: str) -> str:
    """As part of a file name on any system."""
    return "".join(c if c.isalnum() or c in "._-+" else "_" for c in label)
