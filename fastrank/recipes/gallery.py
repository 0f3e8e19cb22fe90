"""The gallery: one self-contained HTML page over every recipe that has a result in a directory."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from fastrank.recipes.result import upright
from fastrank.record.export import replacing

#: Of the figures' pictures.
DPI = 160
PAGE = Template((Path(__file__).parent / "gallery.html").read_text(encoding="utf-8"))


def write_gallery(out: Path) -> Path:
    """Writes OUT/index.html from every OUT/<recipe>/<scale>/result.json; loads nothing from the network."""
    results = [(path.parent, json.loads(path.read_text())) for path in sorted(out.glob("*/*/result.json"))]
    rows = "\n".join(_summary(folder, result) for folder, result in results)
    page = PAGE.substitute(rows=rows, sections="\n".join(_section(out, folder, result) for folder, result in results))
    with replacing(out / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return out / "index.html"


def _summary(folder: Path, result: dict[str, Any]) -> str:
    anchor = f"{folder.parent.name}-{folder.name}"
    changed = " *" if result.get("revised") else ""
    counting = [effect["verdict"] for effect in result["effects"] if effect["counts"]]
    return (
        f'<tr><td><a href="#{escape(anchor)}">{escape(result["recipe"])}</a></td><td>{escape(result["scale"])}</td>'
        f"<td>{len(result['seeds'])}</td><td class=mark>{_badge(result['verdict'])}{changed}</td>"
        f"<td>{counting.count('held')} of {len(counting)}</td><td>{escape(result['claim'])}</td></tr>"
    )


def _section(out: Path, folder: Path, result: dict[str, Any]) -> str:
    picture = folder / "figure.png"
    pixels = picture.read_bytes() if picture.is_file() else b""
    image = f"data:image/png;base64,{base64.b64encode(pixels).decode()}" if pixels else ""
    # At its size in inches (a PNG's bytes 16 .. 19 are its width), so that text is as large in every figure.
    width = round(int.from_bytes(pixels[16:20]) * 96 / DPI)
    notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
    changed = result.get("revised")  # results of older versions have none
    revised = f"<p class=notes><b>Changed after a first look.</b> {escape(changed)}</p>" if changed else ""
    command = f"fastrank report {folder}"
    heads, rows = upright(result["table"])
    return f"""<section id="{escape(f"{folder.parent.name}-{folder.name}")}">
<h2>{escape(result["recipe"])} <small>{escape(result["scale"])}, {len(result["seeds"])} seeds</small>
{_badge(result["verdict"])}</h2>
<p><b>Claim.</b> {escape(result["claim"])} <i>{escape(result["source"])}</i></p>
<p><b>Rule.</b> {escape(result["rule"])}</p>
{revised}
{"<ul class=notes>" + notes + "</ul>" if notes else ""}
<figure><img alt="{escape(result["recipe"])}" width="{width}" src="{image}"></figure>
<table><thead><tr><th>effect</th><th>claimed</th><th>estimate</th><th>95 % interval</th><th>n</th><th>interval by</th>
<th></th></tr></thead><tbody>{"".join(_effects(result))}</tbody></table>
<table><thead>{_head(heads)}</thead><tbody>{"".join(_rows(rows))}</tbody></table>
<p class=small>Mean ± standard deviation over seeds, below it the 95 % interval of the mean (Student's t); a rank's
[lo, hi] is what its error bound leaves open, over all seeds. Runs: <code>{escape(str(folder.relative_to(out)))}</code>;
from them again: <code>{escape(command)}</code></p>
</section>"""


def _effects(result: dict[str, Any]) -> Iterator[str]:
    for effect in result["effects"]:
        interval = f"[{_number(effect['lo'])}, {_number(effect['hi'])}]"
        state = _badge(effect["verdict"]) + ("" if effect["counts"] else " <i>does not count</i>")
        if effect["spoiled"]:
            state += f" {escape(effect['spoiled'])}"
        margin = f" ± {effect['margin']:g}" if effect["margin"] else ""
        yield (
            f"<tr><td>{escape(effect['name'])}</td><td>{escape(effect['claimed'])} {effect['null']:g}{margin}</td>"
            f"<td>{_number(effect['value'])}</td><td>{interval}</td><td>{effect['n']}</td>"
            f"<td>{escape(effect['method'])}</td><td>{state}</td></tr>"
        )


def _head(heads: list[str]) -> str:
    return "<tr><th></th>" + "".join(f"<th>{escape(name)}</th>" for name in heads) + "</tr>"


def _rows(rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for name, cells in rows.items():
        yield f"<tr><td>{escape(name)}</td>{''.join(map(_cell, cells))}</tr>"


def _cell(cell: dict[str, Any]) -> str:
    lo, hi = cell.get("mean_lo"), cell.get("mean_hi")  # results of older versions have none
    interval = "" if lo is None else f"<br><small>{_number(lo)} .. {_number(hi)}</small>"
    return f"<td>{escape(cell['text'])}{interval}</td>"


def _badge(verdict: str) -> str:
    return f'<span class="badge {verdict.replace(" ", "-")}">{escape(verdict)}</span>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
