"""One picture per benchmark: how near each case comes to what this machine gives.

Left, the roofline: FLOP/s reached against FLOPs per byte, both by the cost model's count of the algorithm, under the
measured bandwidth of a copy and the measured peaks of a matrix product. Right, the same as a share of the roof, case by
case, with the baseline beside ours: cases in a cache can pass the roof of main memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastrank.extras import require

#: Units of arithmetic that a roof is drawn for, and how it is called.
ROOFS = {
    "fp32": "fp32 product",
    "fp64": "fp64 product",
    "bf16_tensor": "bf16 product",
    "fp64_tensor": "fp64 tensor cores",
}
OURS, THEIRS, INK, ROOF = "#0b6e99", "#9a9a9a", "#222222", "#555555"


@dataclass(frozen=True)
class Point:
    """A contender in a case; `roof` is the FLOP/s that the machine allows at its intensity."""

    case: str
    contender: str
    intensity: float
    rate: float
    roof: float
    unit: str


def draw(document: dict, folder: Path) -> list[Path]:
    """`folder`/<benchmark>.png for every benchmark whose cases the cost model describes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, benchmark in document["benchmarks"].items():
        points = points_of(benchmark, document["peaks"])
        if points:
            paths.append(_picture(name, points, benchmark, document, folder / f"{name}.png"))
    return paths


def points_of(benchmark: dict, peaks: dict[str, float]) -> list[Point]:
    """Ours, where the cost model counts bytes and flops; in the table's order."""
    points = []
    for title, case in benchmark["cases"].items():
        for contender, r in case["results"].items():
            moved, flops = r["read"] + r["written"], sum(r["flops"].values())
            if not (r["ours"] and r["seconds"] and moved and flops):
                continue
            unit = max((u for u in r["flops"] if u in peaks), key=lambda u: r["flops"][u] / peaks[u], default="fp32")
            intensity = flops / moved
            roof = min(peaks["copy"] * intensity, peaks[unit])
            points.append(Point(title, contender, intensity, flops / r["seconds"]["median"], roof, unit))
    return points


def _picture(name: str, points: list[Point], benchmark: dict, document: dict, path: Path) -> Path:
    require("matplotlib", "the roofline plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13.5, 1.2 + 0.30 * max(14, len(points))), width_ratios=(1, 1.05), layout="constrained"
    )
    contenders = list(dict.fromkeys(p.contender for p in points))
    colours = dict(zip(contenders, (OURS, "#d1682c", "#5b8c3e", "#7d5ba6"), strict=False))
    left.set_box_aspect(0.72)
    left.set_anchor("N")
    _roofline(left, points, document["peaks"], colours)
    _shares(right, points, benchmark, colours)
    facts = document["machine"]
    where = (
        facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}, {facts['isa']}"
    )
    figure.suptitle(f"{name}  |  {where}  |  {document['date'][:10]}", x=0.01, ha="left", fontsize=12, color=INK)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _roofline(axes, points: list[Point], peaks: dict[str, float], colours: dict[str, str]) -> None:
    used = [unit for unit in ROOFS if unit in peaks and any(p.unit == unit for p in points)]
    low = min([p.intensity for p in points] + [peaks[u] / peaks["copy"] for u in used]) / 4  # the slope is seen
    high = max([p.intensity for p in points] + [peaks[u] / peaks["copy"] for u in used]) * 6
    for unit in used:
        ridge = peaks[unit] / peaks["copy"]
        axes.plot(
            [low, ridge, high], [low * peaks["copy"] / 1e9, peaks[unit] / 1e9, peaks[unit] / 1e9], color=ROOF, lw=1.3
        )
        axes.annotate(
            f"{ROOFS[unit]}, {peaks[unit] / 1e9:,.0f} GFLOP/s", (high, peaks[unit] / 1e9), (-4, 4),
            textcoords="offset points", ha="right", fontsize=8.5, color=ROOF,
        )  # fmt: skip
    cached = peaks["copy_cached"]
    top = max(peaks[u] for u in used)
    if top / cached > low:
        axes.plot([low, top / cached], [low * cached / 1e9, top / 1e9], color=ROOF, lw=1, ls=(0, (4, 3)))
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    bottom = min([p.rate for p in points] + [low * peaks["copy"]]) / 1e9 / 2
    axes.set_ylim(bottom, top / 1e9 * 2.5)
    for rate, text in ((peaks["copy"], "copy in memory"), (cached, "copy in cache")):
        # At a tenth of the way up, along the line, so that the two labels stand clear of the roofs' own.
        x = bottom * 1e9 / rate * (top / 1e9 / bottom) ** 0.32
        x = max(x, low * 1.15)
        if x * rate > top / 3:  # no room below the roof
            continue
        axes.annotate(
            f"{text}, {rate / 1e9:,.0f} GB/s", (x, x * rate / 1e9), (0, 5), textcoords="offset points", fontsize=8.5,
            color=ROOF, rotation=_angle(axes), rotation_mode="anchor", in_layout=False,
        )  # fmt: skip
    titles = list(dict.fromkeys(p.case for p in points))
    for p in points:
        axes.text(
            p.intensity, p.rate / 1e9, str(titles.index(p.case) + 1), color=colours[p.contender], ha="center",
            va="center", fontsize=9.5, fontweight="bold",
        )  # fmt: skip
    for contender, colour in colours.items():
        axes.plot([], [], marker="s", ls="", color=colour, label=contender)
    axes.legend(loc="lower right", fontsize=8.5, frameon=False)
    axes.set_xlabel("FLOPs per byte (cost model's count)")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("reached, under the roof measured on this machine", fontsize=10, loc="left")
    axes.grid(which="major", color="#e6e6e6", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _angle(axes) -> float:
    """Degrees at which a line of slope 1 in log-log axes is seen."""
    import math

    box = axes.get_window_extent()
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    return math.degrees(math.atan((box.height / math.log10(y1 / y0)) / (box.width / math.log10(x1 / x0))))


def _shares(axes, points: list[Point], benchmark: dict, colours: dict[str, str]) -> None:
    """Bars of the share of the roof, ours; a tick where the baseline would be."""
    titles = list(dict.fromkeys(p.case for p in points))
    labels, y = [], 0.0
    for number, title in enumerate(titles, 1):
        case = benchmark["cases"][title]
        group = [p for p in points if p.case == title]
        for p in group:
            share = p.rate / p.roof
            axes.barh(y, share, height=0.78, color=colours[p.contender])
            speed = case["results"][p.contender]["speed"]
            text = f"{share:.0%}" + (f"   {speed['median']:.1f}x of {case['baseline']}" if speed else "")
            theirs = 0.0
            if speed:
                theirs = share / speed["median"]
                axes.plot([theirs, theirs], [y - 0.39, y + 0.39], color=INK, lw=1.6)
            axes.annotate(
                text, (max(share, theirs), y), (5, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            y += 0.85
        labels.append((y - 0.85 * (len(group) + 1) / 2, f"{number}  {title}"))
        y += 0.45
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=8.5)
    axes.invert_yaxis()
    axes.axvline(1, color=ROOF, lw=1, ls=(0, (4, 3)))
    widest = max(p.rate / p.roof for p in points)
    axes.set_xlim(0, max(1.05, widest) * 1.45)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("share of the roof (bar); the baseline's (tick)", fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
