"""`write_report`: one self-contained HTML file from any number of runs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from string import Template

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.record import load_run
from fastrank.report.content import page_content

HERE = Path(__file__).parent
SCRIPTS = (
    "definitions.js",
    "base.js",
    "charts.js",
    "state.js",
    "cards.js",
    "header.js",
    "lines.js",
    "evaluated.js",
    "layers.js",
    "alignment.js",
    "page.js",
)


def write_report(paths: Iterable[str | os.PathLike], out: str | os.PathLike | None = None) -> Path:
    """Writes the page that compares the runs `paths` and returns its path.

    out: the file; by default `report.html` in the directory of a single run, or beside the first of several. The page
    loads nothing from the network (its content policy forbids it) and replaces an older one only when it is complete.

    Raises InputError where a path is no run, none is given, or `out` cannot be written; ImportError without plotly.
    """
    paths = [Path(path) for path in paths]
    if out is None and paths:
        out = (paths[0] if len(paths) == 1 else paths[0].resolve().parent) / "report.html"
    # `runs/*` names the page that an earlier call left there, and may name a run twice.
    unique = {path.resolve(): path for path in paths if path.resolve() != Path(out).resolve()}
    if not unique:
        raise InputError("paths", "at least one run directory", "none")
    runs = [load_run(path) for path in unique.values()]
    page = Template(_asset("page.html")).substitute(
        css=_asset("page.css"),
        plotly=require("plotly.offline", "the report").get_plotlyjs(),
        data=_embed(page_content(runs)),
        script="\n".join(_asset(name) for name in SCRIPTS),
    )
    return _write(Path(out), page)


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _embed(content: dict) -> str:
    """JSON that cannot end, or open, the script element it stands in."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no character
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _write(out: Path, page: str) -> Path:
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=out.parent, prefix=f".{out.name}.", delete=False
        ) as file:
            partial = Path(file.name)
            file.write(page)
        partial.chmod(0o644)
        partial.replace(out)
    except OSError as error:
        if partial is not None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        raise InputError("out", "a file that can be written", f"{out} ({error.strerror or error})") from None
    return out
