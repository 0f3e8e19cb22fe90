"""The command line. A command parses, calls one function of the package, and prints; nothing is computed here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from fastrank.errors import InputError

try:
    import typer
except ImportError:
    sys.exit("fastrank: the command line needs typer and rich; pip install 'fastrank[train,report]'")

#: Options that take several values at once.
SEVERAL = ("--temperature", "--set", "--milestones", "--layers", "--model-kwarg", "--ood", "--probes", "--figures")

app = typer.Typer(
    name="fastrank", add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown", help="Per-step spectral tracking of network training.",
)  # fmt: skip


@app.command()
def train(
    temperature: Annotated[
        list[float] | None, typer.Option(help="Softmax temperatures, one run each: --temperature 1 100.")
    ] = None,
    temperature_schedule: Annotated[
        str | None, typer.Option(help="constant, linear, cosine or norm-matched (constant).")
    ] = None,
    temperature_end: Annotated[float | None, typer.Option(help="Where linear and cosine end (1).")] = None,
    initial_norm: Annotated[
        float | None, typer.Option(help="norm-matched: RMS norm of a sample's first logits, over T.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="ce, or mse of the softmax (ce).")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Of the targets (0).")] = None,
    model: Annotated[
        str | None, typer.Option(help="A timm model, or mlp, vgg19, resnet18_cifar, ... (resnet18)")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, glyphs, or folder:/path (ImageFolder, tar, WebDataset) (glyphs).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory that the run directories go to.")] = Path("runs"),
    preset: Annotated[
        str | None,
        typer.Option(help="Named hyperparameters: demo, or paper-resnet, -vgg, -mlp, -vit, -imagenet."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data (10).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data order and sampling (0).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step (128).")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw (sgd).")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate (0.1).")] = None,
    momentum: Annotated[float | None, typer.Option(help="SGD's (0.9).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2, or AdamW's decoupled (1e-4).")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, steps or cosine (cosine).")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Linear warm-up (0).")] = None,
    milestones: Annotated[
        list[int] | None,
        typer.Option(help="Epochs at which the schedule `steps` lowers the rate: --milestones 80 120."),
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Factor at each milestone.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, cifar, imagenet or vit (none).")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the data set's own if left out.")] = None,
    samples_per_class: Annotated[int | None, typer.Option(help="Limits the training split.")] = None,
    class_balance: Annotated[float | None, typer.Option(help="Smallest class over largest, in training (1).")] = None,
    classifier_scale: Annotated[float | None, typer.Option(help="Of the classifier's initial weight (1).")] = None,
    model_kwarg: Annotated[
        list[str] | None, typer.Option(help="key=value for the model's constructor, one or more.")
    ] = None,
    track: Annotated[str | None, typer.Option(help="off, light, default or full (default).")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Globs over module names, one or more.")] = None,
    every: Annotated[
        str | None, typer.Option(help="Track every so many steps (1), or log, log:5, epoch:391; several with commas.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Track so often that it takes such a share as 2%.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue interrupted runs from their checkpoints.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    workers: Annotated[int, typer.Option(help="Data loading processes, for data on disk.")] = 0,
) -> None:
    """Train at one or more temperatures, tracking spectra at every step.

    Example: `fastrank train --model resnet18 --data glyphs --temperature 1 100 --epochs 10 --out runs/mine`
    """
    from fastrank.train import Interrupted, TrainConfig, parse_kwargs, preset_fields, print_summary, train_all

    named = {
        "model": model, "data": data, "epochs": epochs, "seed": seed, "batch_size": batch_size, "optimizer": optimizer,
        "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "schedule": schedule,
        "warmup_epochs": warmup_epochs, "milestones": tuple(milestones) if milestones else None, "gamma": gamma,
        "augment": augment, "image_size": image_size,
        "samples_per_class": samples_per_class, "class_balance": class_balance,
        "classifier_scale": classifier_scale, "track": track, "every": every,
        "budget": budget,
        "temperature_schedule": temperature_schedule, "temperature_end": temperature_end, "initial_norm": initial_norm,
        "loss": loss, "label_smoothing": label_smoothing,
        "layers": tuple(layers) if layers else None, "model_kwargs": parse_kwargs(model_kwarg) if model_kwarg else None,
    }  # fmt: skip
    fields = (preset_fields(preset) if preset else {}) | {k: v for k, v in named.items() if v is not None}
    configs = [TrainConfig(**fields, temperature=T) for T in (temperature or [1.0])]
    try:
        print_summary(train_all(configs, out, resume=resume, device=device, workers=workers))
    except Interrupted as stop:
        typer.echo(f"fastrank: {stop}", err=True)
        raise typer.Exit(130) from None


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory of `fastrank train`, or its checkpoint.pt.")],
    ood: Annotated[
        list[str] | None, typer.Option(help="Out-of-distribution data, one or more: digits, glyphs, folder:/path.")
    ] = None,
    probes: Annotated[list[str] | None, typer.Option(help="adam, ridge, both (default), or none.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the probes of adam (the paper's 50).")] = None,
    probe_batch: Annotated[int | None, typer.Option(help="Samples a step of these (the paper's 4096).")] = None,
    probe_steps: Annotated[
        int | None, typer.Option(help="Steps of these at least (0 with --epochs, else 650 where affordable).")
    ] = None,
    probe_memory: Annotated[float, typer.Option(help="Bytes for the samples that probes are trained on.")] = 2e9,
    layers: Annotated[list[str] | None, typer.Option(help="Globs over module names, one or more.")] = None,
    limit: Annotated[int | None, typer.Option(help="Samples of each set at most; all if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Of probes and samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file for all figures, beside the run's record.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    workers: Annotated[int, typer.Option(help="Data loading processes, for data on disk.")] = 0,
) -> None:
    """Measure a trained run on whole data sets: solution rank, neural collapse, linear probes, foreign data.

    The figures are stored with the run, for `fastrank.load_run(run).evaluation` and `fastrank report`.

    Example: `fastrank evaluate runs/mine/glyphs-resnet18-T100-s0 --ood digits`
    """
    from fastrank.train.evaluated import evaluate_checkpoint, print_evaluation
    from fastrank.train.loop import choose_device

    methods = [name for name in probes or ("adam", "ridge") if name != "none"]
    found = evaluate_checkpoint(
        checkpoint, ood or (), device=choose_device(device), workers=workers, epochs=epochs, probe_batch=probe_batch,
        probe_steps=probe_steps,
        probes=methods, probe_memory=probe_memory, layers=tuple(layers or ("*",)), limit=limit, seed=seed,
    )  # fmt: skip
    print_evaluation(found)
    if out is not None:
        typer.echo(found.save(out))


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="A timm model, or mlp, vgg19, resnet18_cifar, ...")] = "resnet18",
    batch: Annotated[int, typer.Option(help="Samples per step.")] = 128,
    image: Annotated[int, typer.Option(help="Pixels.")] = 224,
    device: Annotated[str, typer.Option(help="cpu (measured), a100, h100, h200 or b200 (data sheets).")] = "h100",
    track: Annotated[str, typer.Option(help="light, default or full.")] = "default",
    layers: Annotated[list[str] | None, typer.Option(help="Globs over module names, one or more.")] = None,
    every: Annotated[int, typer.Option(help="Track every so many steps.")] = 1,
    budget: Annotated[str | None, typer.Option(help="Share of a training step, such as 5%: what to cut.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of training: fp32, or bf16 (autocast; a GPU's default).")
    ] = None,
    utilisation: Annotated[float | None, typer.Option(help="Share of the peak that training reaches.")] = None,
    classes: Annotated[int, typer.Option(help="Of the classifier.")] = 1000,
    channels: Annotated[int, typer.Option(help="Of the images.")] = 3,
    model_kwarg: Annotated[
        list[str] | None, typer.Option(help="key=value for the model's constructor, one or more.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every matrix, as JSON.")] = False,
) -> None:
    """Predict what tracking costs on a device, before anything is run: layers, bytes, flops, launches, ms, memory.

    Example: `fastrank plan --model resnet50 --batch 256 --image 224 --device h100 --track default --budget 5%`
    """
    from fastrank.tracking.budget import parse_budget
    from fastrank.train.models import parse_kwargs
    from fastrank.train.planned import plan_named, to_json, to_text

    limit = None if budget is None else parse_budget(budget)
    found = plan_named(
        model, batch=batch, image=image, classes=classes, channels=channels, kwargs=parse_kwargs(model_kwarg or []),
        device=device, track=track, layers=layers or "*", every=every, precision=precision, utilisation=utilisation,
    )  # fmt: skip
    title = f"{model}, batch {batch}, {image} px, track {track}"
    typer.echo((to_json if as_json else to_text)(found, title, limit))


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="A recipe; --list names them all.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes on two cores, the default.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The paper's scale, for a GPU.")] = False,
    imagenet: Annotated[bool, typer.Option("--imagenet", help="The paper's on ImageNet-1k, where it has one.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", hidden=True)] = False,
    seeds: Annotated[int | None, typer.Option(help="How many, from 0 on; the recipe's own number if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of runs, results and the gallery.")] = Path("reproduced"),
    data: Annotated[Path, typer.Option(help="Folder of the data sets on disk that --full reads.")] = Path("data"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Other training, in runs of its own: --set weight_decay=0 label_smoothing=0.1."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    list_: Annotated[bool, typer.Option("--list", help="Name the recipes and what each takes, and stop.")] = False,
) -> None:
    """Reproduce an experiment of the papers: runs, figure, table, and whether the claim held. A killed call continues.

    Example: `fastrank reproduce softmax-rank --quick --out reproduced`
    """
    from fastrank import recipes
    from fastrank.recipes.text import list_recipes, print_result
    from fastrank.train import Interrupted
    from fastrank.train.loop import choose_device

    if list_:
        list_recipes()
        return
    if name is None:
        raise InputError("name", f"one of {', '.join(recipes.FILES)}", "none", "see --list")
    scales = {"quick": quick, "full": full, "imagenet": imagenet, "smoke": smoke}
    if sum(scales.values()) > 1:
        raise InputError("--quick, --full, --imagenet", "one of them", "several")
    scale = next((name for name, chosen in scales.items() if chosen), "quick")
    try:
        recipe = recipes.find_recipe("+".join([name, ",".join(changes)] if changes else [name]))
        result = recipes.reproduce(recipe, scale, seeds, out, choose_device(device), data)
    except Interrupted as stop:
        typer.echo(f"fastrank: {str(stop).removesuffix('; --resume continues')}; the same command continues", err=True)
        raise typer.Exit(130) from None
    print_result(result, out)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, compared side by side in this order; or one recipe's directory."),
    ],
    out: Annotated[Path | None, typer.Option(help="The page; report.html beside the first run if left out.")] = None,
) -> None:
    """Write one self-contained HTML page that compares runs; a recipe's result is computed from its runs again.

    Example: `fastrank report runs/demo/* --out report.html`
    """
    if len(runs) == 1 and (runs[0] / "result.json").is_file():
        from fastrank.recipes import find_recipe, recompute
        from fastrank.recipes.text import print_result

        print_result(recompute(runs[0], find_recipe), runs[0].parent.parent)
        return
    from fastrank.report import write_report

    typer.echo(write_report(runs, out))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two run directories or more.")],
    step: Annotated[int | None, typer.Option(help="At which step; the last that all runs have if left out.")] = None,
    figures: Annotated[
        list[str] | None, typer.Option(help="Globs over figures of the network (train/* logits/* ...).")
    ] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Globs over figures of layers (act/*/rank).")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the page of `fastrank report` there.")] = None,
) -> None:
    """Print runs side by side: settings that differ, figures at one step, ranks of all layers.

    Example: `fastrank compare runs/demo/* --layers "weight/*/stable_rank" "act/*/rank"`
    """
    from fastrank.report import compare_runs, print_comparison, write_report
    from fastrank.report.compare import FIGURES, LAYERS

    print_comparison(compare_runs(runs, step, figures or FIGURES, layers or LAYERS))
    if out is not None:
        typer.echo(write_report(runs, out))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path, typer.Option(help="Directory for the files.")],
    format: Annotated[str, typer.Option(help="csv or parquet.")] = "csv",
) -> None:
    """Write a run's figures as tidy tables.

    Example: `fastrank export runs/demo/glyphs-resnet10t-T1-s0 --out figures --format parquet`
    """
    from fastrank.record import export_run

    for path in export_run(run, out, format):
        typer.echo(path)


@app.command()
def doctor() -> None:
    """Say which backends are live, why the others are not, and the cure; paste it into a bug report.

    Example: `fastrank doctor`
    """
    from fastrank.diagnosis import describe

    typer.echo(describe())


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="tempered_ce, tempered_mse, gram, rank, svd, ufm, probes, tracking; all if left out.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases, less time for each.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Of torch and the native kernels (torch's choice).")] = None,
    seconds: Annotated[float | None, typer.Option(help="Per contender and case (0.6; quick 0.08).")] = None,
    case: Annotated[str | None, typer.Option(help="Only cases whose title contains this.")] = None,
    json: Annotated[Path | None, typer.Option(help="A file for all figures.")] = None,
    save: Annotated[str | None, typer.Option(help="Keep the figures under this name, for --against.")] = None,
    against: Annotated[
        str | None, typer.Option(help="A saved name or file: say what changed; exit code 1 if a ratio got worse.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A directory for one roofline picture per benchmark.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the benchmarks and their cases, and stop.")] = False,
    gpu_check: Annotated[
        bool, typer.Option("--gpu-check", help="The whole verdict on a GPU: tests, sanitizer, timings; 10 minutes.")
    ] = False,
) -> None:
    """Time this package against torch, scipy and others, checking every answer in the same run.

    Example: `fastrank bench gram --quick --save before`
    """
    from fastrank.checkout import benchmark_module

    if gpu_check:
        if names:
            raise InputError("names", "none with --gpu-check, which runs them all", ", ".join(names))
        raise typer.Exit(benchmark_module("gpu_check").run(device, echo=typer.echo))
    runner = benchmark_module("runner")
    if list_:
        typer.echo(runner.listing())
        return
    code = runner.run(
        names, quick=quick, device=device, threads=threads, seconds=seconds, case=case, json=json, save=save,
        against=against, plots=plots, echo=typer.echo,
    )  # fmt: skip
    raise typer.Exit(code)


def main() -> None:
    """Run the command line: a user's mistake is one line and exit code 2, Ctrl-C is 130, a bug shows its traceback."""
    # torch's threads sleep while they wait for each other, instead of spinning: no slower on idle cores, and ten times
    # faster where another process wants one of them. It must be chosen before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = _spread(sys.argv[1:] or ["--help"], SEVERAL)
    try:
        sys.exit(app(args=arguments, standalone_mode=False))
    except (InputError, ImportError, OSError) as error:
        typer.echo(f"fastrank: {_one_line(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer says of a wrong option or command
            raise
        typer.echo(f"fastrank: {_one_line(error.format_message())} (see --help)", err=True)
        sys.exit(2)


def _spread(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """`--option 1 100` as `--option 1 --option 100`, which is the only form that typer knows, for each of `options`."""
    spread, option, values = [], None, 0
    for argument in arguments:
        if argument.startswith("-") and not _is_number(argument):
            option, values = (argument if argument in options else None), 0
        elif option:
            values += 1
            if values > 1:
                spread.append(option)
        spread.append(argument)
    return spread


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _one_line(error: Exception | str) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
