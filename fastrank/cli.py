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
        app()
    except (InputError, OSError) as error:
        typer.echo(f"fastrank: {_one_line(error)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
