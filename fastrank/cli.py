"""The command line. A command parses, calls one function of the package, and prints; nothing is computed here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from fastrank.errors import InputError

try:
    import typer
except ImportError:
    sys.exit("fastrank: the command line needs typer and rich; pip install 'fastrank[train,report]'")

app = typer.Typer(
    name="fastrank", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown", help="Per-step spectral tracking of network training.",
)  # fmt: skip


@app.command()
def train(
    temperature: Annotated[
        list[float] | None, typer.Option(help="Softmax temperatures, one run each: --temperature 1 100.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A timm model, or mlp, vgg19, resnet18_cifar, ...")] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, glyphs, or folder:/path (ImageFolder, tar, WebDataset).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory that the run directories go to.")] = Path("runs"),
    preset: Annotated[
        str | None,
        typer.Option(help="Named hyperparameters: demo, paper-resnet, paper-vgg, paper-mlp, paper-imagenet."),
    ] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="SGD's.")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, steps or cosine.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Linear warm-up.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, cifar or imagenet.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the data set's own if left out.")] = None,
    samples_per_class: Annotated[int | None, typer.Option(help="Limits the training split.")] = None,
    model_kwarg: Annotated[
        list[str] | None, typer.Option(help="key=value for the model's constructor; may be given again.")
    ] = None,
    track: Annotated[str | None, typer.Option(help="off, light, default or full.")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Globs over module names; may be given again.")] = None,
    every: Annotated[int | None, typer.Option(help="Track every so many steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue interrupted runs from their checkpoints.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    workers: Annotated[int, typer.Option(help="Data loading processes, for data on disk.")] = 0,
) -> None:
    """Train at one or more temperatures, tracking spectra at every step.

    Example: `fastrank train --model resnet18 --data glyphs --temperature 1 100 --epochs 10 --out runs/mine`
    """
    from fastrank.train import TrainConfig, parse_kwargs, preset_fields, print_summary, train_all

    named = {
        "model": model, "data": data, "epochs": epochs, "seed": seed, "batch_size": batch_size, "optimizer": optimizer,
        "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "schedule": schedule,
        "warmup_epochs": warmup_epochs, "augment": augment, "image_size": image_size,
        "samples_per_class": samples_per_class, "track": track, "every": every,
        "layers": tuple(layers) if layers else None, "model_kwargs": parse_kwargs(model_kwarg) if model_kwarg else None,
    }  # fmt: skip
    fields = (preset_fields(preset) if preset else {}) | {k: v for k, v in named.items() if v is not None}
    configs = [TrainConfig(**fields, temperature=T) for T in (temperature or [1.0])]
    print_summary(train_all(configs, out, resume=resume, device=device, workers=workers))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, compared side by side in this order.")],
    out: Annotated[Path | None, typer.Option(help="The page; report.html beside the first run if left out.")] = None,
) -> None:
    """Write one self-contained HTML page that compares runs.

    Example: `fastrank report runs/demo/* --out report.html`
    """
    from fastrank.report import write_report

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


def main() -> None:
    """Run the command line: a user's mistake is one line and exit code 2, Ctrl-C is 130, a bug shows its traceback."""
    try:
        app(args=_spread(sys.argv[1:], "--temperature"))
    except (InputError, OSError) as error:
        typer.echo(f"fastrank: {_one_line(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _spread(arguments: list[str], option: str) -> list[str]:
    """`--option 1 100` as `--option 1 --option 100`, which is the only form that click knows."""
    spread, following = [], 0
    for argument in arguments:
        if argument.startswith("-") and not _is_number(argument):
            following = 0 if argument != option else 1
        elif following:
            following += 1
        if following > 2:
            spread.append(option)
        spread.append(argument)
    return spread


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
