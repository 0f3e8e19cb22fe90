"""The report of a GPU check as Markdown: first what is meant for docs/gpu.md, then the details."""

from __future__ import annotations

import machine

MARK = {"pass": "pass", "fail": "**FAIL**", "skipped": "skipped"}


def render(document: dict) -> str:
    facts, stages = document["machine"], document["stages"]
    name = facts.get("gpu", facts["cpu"])
    parts = [f"# GPU check: {name}", summary(document)]
    parts += ["## Machine", "```\n" + machine.summary(facts) + "\n```"]
    benches = {
        s["name"].removeprefix("bench "): s["figures"]
        for s in stages
        if s["name"].startswith("bench ") and s["figures"]
    }
    if benches:
        parts.append("## Benchmarks")
        parts.append(
            "Medians; device time from a cold L2, `call` from call to call in a loop. Speed is over the baseline."
        )
        parts += [_cases(name, run["benchmarks"][name]) for name, run in benches.items()]
    parts += [f"## Output of {s['name']}\n\n```\n{s['tail']}\n```" for s in stages if s["tail"]]
    return "\n\n".join(parts) + "\n"


def summary(document: dict) -> str:
    """The section to paste into docs/gpu.md: date, device, verdicts, best figures, predicted against measured."""
    facts, stages = document["machine"], document["stages"]
    failed = [s["name"] for s in stages if s["status"] == "fail"]
    outcome = f"FAILED: {', '.join(failed)}" if failed else "all stages that ran passed"
    gpu = f", driver {facts['driver']}, CUDA {facts['cuda']}" if "gpu" in facts else " (no GPU: a trial of the check)"
    lines = [
        f"## {facts.get('gpu', facts['cpu'])}, {document['date'][:10]}",
        "",
        f"fastrank {facts['fastrank']} at {facts['commit']}, torch {facts['torch']}, triton {facts['triton']}{gpu}: "
        f"{outcome}.",
        "",
        "| stage | verdict | seconds | |",
        "|---|---|---|---|",
        *(
            f"| {s['name']}: {s['about']} | {MARK[s['status']]} | {s['seconds']:.0f} | {_cell(s['reason'])} |"
            for s in stages
        ),
    ]
    predicted = next((s["figures"] for s in stages if s["name"] == "prediction" and s["figures"]), None)
    if predicted:
        lines += ["", f"Kernels, against the model of {predicted['model']}, {_cell(predicted['why'])}:", ""]
        lines += ["| case | kernel | bound by | roofline us | predicted us | measured us | measured / predicted |"]
        lines += ["|---|---|---|---|---|---|---|", *(_kernel(k) for k in predicted["kernels"])]
    return "\n".join(lines)


def _kernel(k: dict) -> str:
    measured = k["measured"]
    last = f"{measured * 1e6:.1f} | {measured / k['predicted']:.2f}" if measured else "not found | "
    times = f"{k['roofline'] * 1e6:.1f} | {k['predicted'] * 1e6:.1f}"
    return f"| {k['case']} | `{k['kernel']}` | {k['bound']} | {times} | {last} |"


def _cases(name: str, benchmark: dict) -> str:
    absent = ", ".join(f"{peer}: {what}" for peer, what in benchmark["peers"].items())
    lines = [f"### {name}", "", f"Peers: {absent}." if absent else "", ""]
    lines += [
        "| case | | device ms | call ms | speed | quartiles | error | GB/s | GFLOP/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, case in benchmark["cases"].items():
        if case["problem"]:
            lines.append(f"| {title} | {_cell(case['problem'])} | | | | | | | |")
        for contender, r in case["results"].items():
            lines.append(f"| {title} | {'**' * r['ours']}{contender}{'**' * r['ours']} | {_figures(r)} |")
            title = ""  # once, in the first line of its contenders
    return "\n".join(lines)


def _figures(r: dict) -> str:
    if not r["seconds"]:
        return f"{_cell(r['problem'])} | | | | | |"
    seconds, speed, wall = r["seconds"]["median"], r["speed"], r["wall"]
    call = f"{wall['median'] * 1e3:.4g}" if wall else ""
    ratio = f"{speed['median']:.2f}x | {speed['low']:.2f} .. {speed['high']:.2f}" if speed else " | "
    error = "" if r["error"] is None else f"{r['error']:.1e}"
    moved, flops = r["read"] + r["written"], sum(r["flops"].values())
    rates = f"{moved / seconds / 1e9:.1f} | {flops / seconds / 1e9:.1f}" if moved else " | "
    return f"{seconds * 1e3:.4g} | {call} | {ratio} | {error} | {rates}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
