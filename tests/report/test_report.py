"""The page's structure: one file, nothing from outside, every name harmless, every kind of run accepted."""

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from report.synthetic import write_run

from fastrank.errors import InputError
from fastrank.record import RunWriter, load_run
from fastrank.report import content, page, write_report
from fastrank.report.content import flatten, numbers, page_content, thin

HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.pwned = 1'>",
    "%{y} <b>bold</b> &lt;i&gt; $x$",
    "__proto__",
    "constructor",
    "\u2028\u2029 漢字 \x00",
]


class Page(HTMLParser):
    """Elements and the text of scripts, as a browser would split them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self._script = [], [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self._script = dict(attributes)
            self.scripts.append((self._script, ""))

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[-1] = (self._script, self.scripts[-1][1] + data)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    @property
    def data(self):
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == "data"]
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / f"T{T}", T=T, layers=5, steps=30) for T in (1, 100)]


def hostile_run(path):
    """Every name that a run can carry is hostile, its own included."""
    path = path / "".join(c for c in HOSTILE[0] if c != "/")
    with RunWriter(path, {name: name for name in HOSTILE} | {"temperature": HOSTILE[0]}) as writer:
        for step in range(3):
            scalars = {
                f"{kind}/{name}/{metric}": step + 1.0
                for kind in ("act", "align", *HOSTILE)
                for name in HOSTILE
                for metric in ("rank", "max", *HOSTILE)
            }
            scalars |= {f"logits/{name}": 1.0 for name in ("norm", *HOSTILE)} | dict.fromkeys(HOSTILE, 2.0)
            arrays = {f"{kind}/{name}/sigma": [2.0, 1.0] for kind in ("act", *HOSTILE) for name in HOSTILE}
            arrays |= {f"align/{name}/cosines": np.eye(2) for name in HOSTILE}
            writer.log_step(step, scalars, arrays)
        for name in HOSTILE:
            writer.note(1, name, name)
        writer.set_evaluation(
            {name: name for name in HOSTILE} | {"solution_rank": {"rank": 1, "definition": HOSTILE[0]}}
        )
    return path


def test_one_file_with_parsable_data(runs, tmp_path):
    out = write_report(runs, tmp_path / "deep" / "page.html")
    assert out == tmp_path / "deep" / "page.html" and [*out.parent.iterdir()] == [out]
    data = Page(out.read_text()).data
    assert [run["name"] for run in data["runs"]] == ["T1", "T100"]
    assert [run["T"] for run in data["runs"]] == [1, 100]
    first = data["runs"][0]
    run = load_run(runs[0])
    assert first["lines"]["logits/norm"]["steps"] == run.steps.tolist()
    np.testing.assert_allclose(first["lines"]["logits/norm"]["values"], run.series("logits/norm")[1], rtol=1e-4)
    layers = [key.split("/")[1] for key in run.keys if key.startswith("act/") and key.endswith("/rank")]
    assert first["maps"]["act"]["layers"] == layers and len(first["maps"]["act"]["metrics"]["rank"]) == len(layers)
    assert first["evaluation"]["train_accuracy"] == 0.991


def test_nothing_comes_from_outside(runs, tmp_path):
    page = Page(write_report(runs, tmp_path / "page.html").read_text())
    policy = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert len(policy) == 1 and policy[0].startswith("default-src 'none'") and "http" not in policy[0]
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "action", "data", "srcset") if name in a]
    assert addresses and all(address.startswith("#") for address in addresses)
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "embed", "base", "form")]
    css = (page_dir := sys.modules["fastrank.report.page"].HERE) / "page.css"
    assert "url(" not in css.read_text() and "@import" not in css.read_text()
    for script in page_dir.glob("*.js"):
        assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:|innerHTML|eval\(", script.read_text()), (
            script.name
        )


def test_hostile_names_stay_data(tmp_path):
    run = hostile_run(tmp_path)
    page = Page(write_report([run, run.parent / "." / run.name], tmp_path / "page.html").read_text())
    plain = Page(write_report([write_run(tmp_path / "plain", layers=3, steps=3)], tmp_path / "plain.html").read_text())
    (text,) = [text for attributes, text in page.scripts if attributes.get("id") == "data"]
    assert not set("<>&") & set(text)
    # The names add no element, and nothing but the data differs.
    assert page.elements == plain.elements
    assert [text for a, text in page.scripts if "id" not in a] == [text for a, text in plain.scripts if "id" not in a]
    (data,) = page.data["runs"]
    assert set(HOSTILE) <= set(data["config"]) and {name for name in HOSTILE if "/" not in name} <= set(data["maps"])
    assert data["vectors"]["act"]["layers"] == HOSTILE and data["cosines"]["layers"] == HOSTILE


def test_a_lone_surrogate_leaves_the_page_valid(tmp_path):
    with RunWriter(tmp_path / "run", {"a": "x\ud800y"}) as writer:
        writer.log_step(0, {"act/\ud800/rank": 1.0})
    (run,) = Page(write_report([tmp_path / "run"]).read_text(encoding="utf-8")).data["runs"]
    assert run["config"] == {"a": "x?y"} and run["maps"]["act"]["layers"] == ["?"]


def test_not_a_number_is_null(tmp_path):
    with RunWriter(tmp_path / "run", {"lr": float("nan"), "temperature": float("inf")}) as writer:
        for step, value in enumerate([1.0, float("nan"), float("inf"), -float("inf")]):
            writer.log_step(step, {"train/loss": value, "act/a/rank": value}, {"act/a/sigma": [value, value]})
        writer.set_evaluation({"train_accuracy": float("nan")})
    (run,) = Page(write_report([tmp_path / "run"]).read_text()).data["runs"]
    expected = [1, None, None, None]
    assert run["lines"]["train/loss"]["values"] == expected
    assert run["maps"]["act"]["metrics"]["rank"] == [expected] and run["vectors"]["act"]["values"] == [
        [expected, expected]
    ]
    assert run["config"] == {"lr": "nan", "temperature": "inf"} and run["evaluation"] == {"train_accuracy": "nan"}


def test_series_are_thinned_for_display_but_keep_their_ends(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        for step in range(3, 1503):
            writer.log_step(
                step,
                {"train/loss": step, "act/a/rank": step},
                {"act/a/sigma": [step], "align/a/cosines": np.full((2, 2), step)},
            )
    (run,) = page_content([load_run(tmp_path / "run")])["runs"]
    for part, most in (
        (run["lines"]["train/loss"], 400),
        (run["maps"]["act"], 400),
        (run["vectors"]["act"], 400),
        (run["cosines"], 30),
    ):
        assert len(part["steps"]) == most and part["steps"][0] == 3 and part["steps"][-1] == 1502
    assert run["steps"] == 1500 and run["last"] == 1502
    assert run["maps"]["act"]["metrics"]["rank"][0] == run["maps"]["act"]["steps"]
    assert run["vectors"]["act"]["values"][0][0][-1] == 1502
    assert thin(np.arange(5), 5).tolist() == [0, 1, 2, 3, 4] and len(thin(np.arange(6), 5)) == 5


def test_the_page_stays_small_however_many_runs(tmp_path, monkeypatch):
    """With a fiftieth of the numbers to spend, one layer already reaches the bound: a fiftieth of 7 MB."""
    for name in ("MAP_NUMBERS", "VECTOR_NUMBERS", "COSINE_NUMBERS"):
        monkeypatch.setattr(content, name, getattr(content, name) // 50)
    run = load_run(write_run(tmp_path / "run", names=[("fc", 94)], steps=300, align_every=1))
    parts = [
        {part: one[part] for part in ("maps", "vectors", "cosines")}
        for count in (1, 4)
        for one in page_content([run] * count)["runs"]
    ]
    sizes = [len(json.dumps(part, separators=(",", ":"))) for part in parts]
    assert sizes[0] < 7e6 / 50 and sum(sizes[1:]) < 7e6 / 50
    assert len(parts[1]["vectors"]["act"]["steps"]) < len(parts[0]["vectors"]["act"]["steps"]) < 300


def test_schedules_and_layouts_may_differ(tmp_path):
    """A metric at every third step, a layer that appears late, sigmas that change their length."""
    with RunWriter(tmp_path / "run", {}) as writer:
        for step in range(9):
            extra = {"act/b/rank": 5} if step >= 4 else {}
            sometimes = {"act/a/stable_rank": step} if step % 3 == 0 else {}
            writer.log_step(
                step, {"act/a/rank": step, **extra, **sometimes}, {"act/a/sigma": np.arange(2 + step % 2) + 1.0}
            )
    (run,) = page_content([load_run(tmp_path / "run")])["runs"]
    act = run["maps"]["act"]
    assert act["layers"] == ["a", "b"] and act["steps"] == list(range(9))
    assert act["metrics"]["rank"] == [list(range(9)), [None] * 4 + [5] * 5]
    assert act["metrics"]["stable_rank"] == [[0, None, None, 3, None, None, 6, None, None], [None]]
    sigma = run["vectors"]["act"]["values"][0]
    assert len(sigma) == 3 and sigma[2] == [None, 3] * 4 + [None]


def test_the_first_steps_of_sessions_are_apart(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        for step, setup in enumerate([True, False, False, True, False]):
            name, ms = ("setup", 2000.0) if setup else ("track", 50.0)
            writer.log_step(step, {"cost/step_ms": 100.0 + ms, f"cost/{name}_ms": ms})
    run = load_run(tmp_path / "run")
    assert run.overhead == pytest.approx(0.5) and run.setup_seconds == pytest.approx(4.0)
    assert [content["setup"] for content in page_content([run])["runs"]] == [4]


def test_costs_by_layer_are_the_watchers_last_note(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.log_step(0, {"logits/rank": 3.0})
        writer.note(0, "cost", '{"act/a": {"ms": 9.0, "share": 0.9, "MB": 1.0}}')
        table = {
            "act/a": {"ms": 1.0, "share": 0.1, "MB": 0.5},
            "grad/<b>": {"ms": 2.0, "share": float("nan"), "MB": 0.0},
        }
        writer.note(1, "cost", json.dumps(table))
    (run,) = page_content([load_run(tmp_path / "run")])["runs"]
    assert run["costs"] == [["grad/<b>", 2, None, 0], ["act/a", 1, 0.1, 0.5]] and run["notes"] == []
    with RunWriter(tmp_path / "other", {}) as writer:
        writer.note(3, "cost", "too much")
    (run,) = page_content([load_run(tmp_path / "other")])["runs"]
    assert run["costs"] == []


def test_uncertain_ranks_are_counted(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        for step in range(4):
            high = float("nan") if step == 3 else 5 + (step == 0)
            writer.log_step(
                step, {"act/a/rank": 5, "act/a/rank_lo": 5, "act/a/rank_hi": high, "act/a/effective_rank": 2}
            )
    (run,) = page_content([load_run(tmp_path / "run")])["runs"]
    assert run["maps"]["act"]["uncertain"] == {"rank": 1 / 3}
    assert list(run["maps"]["act"]["metrics"]) == ["rank", "effective_rank"]


def test_overhead_is_that_of_all_steps_measured_or_not(tmp_path):
    for every in (1, 10):
        with RunWriter(tmp_path / str(every), {"watch": {"T": 3.0}}) as writer:
            for step, (track, whole) in enumerate([(50.0, 100.0), (90.0, 900.0), (float("nan"), 50.0)]):
                writer.log_step(step * every + every - 1, {"cost/track_ms": track, "cost/step_ms": whole})
    runs = page_content([load_run(tmp_path / name) for name in ("1", "10")])["runs"]
    # 140 ms beside 860 in two of three, or of thirty steps.
    assert [run["overhead"] for run in runs] == pytest.approx([140 / 860 * 2 / 3, 140 / 860 * 2 / 30], rel=1e-3)
    assert [run["T"] for run in runs] == [3.0, 3.0]


@pytest.mark.parametrize("steps", [0, 1])
def test_short_runs(tmp_path, steps):
    path = write_run(tmp_path / "run", layers=3, steps=steps)
    (run,) = Page(write_report([path]).read_text()).data["runs"]
    assert run["steps"] == steps and run["last"] == (0 if steps else None)


def test_status_and_notes_are_told(tmp_path):
    path = write_run(tmp_path / "run", layers=3, steps=4, close=False)
    with RunWriter(path, {}, resume=True) as writer:
        for step in (1, 3, 2):
            writer.note(step, "act/a/rank", "NaN input")
        writer.note(3, "cost", "{}")  # of `watch`: a table, no remark
        (run,) = page_content([load_run(path)])["runs"]
        assert run["status"] == "running"
    assert run["notes"] == [{"key": "act/a/rank", "text": "NaN input", "count": 3, "first": 1, "last": 3}]
    assert (
        page_content([load_run(write_run(tmp_path / "b", layers=3, steps=1, close=False))])["runs"][0]["status"]
        == "interrupted"
    )


def test_equal_names_are_told_apart(runs, tmp_path):
    paths = [write_run(tmp_path / place / "run", layers=3, steps=1) for place in ("a", "b")]
    shown = page_content([load_run(path) for path in [*paths, runs[0]]])["runs"]
    assert [run["name"] for run in shown] == ["a/run", "b/run", "T1"]


def test_where_the_page_goes(tmp_path):
    paths = [write_run(tmp_path / name, layers=3, steps=1) for name in ("a", "b")]
    assert write_report(paths[:1]) == tmp_path / "a" / "report.html"
    (tmp_path / "a" / "report.html").unlink()
    assert write_report(paths) == tmp_path / "report.html"
    # The shell's runs/* now names the page too, and a run may be given twice.
    again = write_report([*sorted(tmp_path.iterdir()), paths[0]])
    assert len(Page(again.read_text()).data["runs"]) == 2


def test_an_older_page_survives_a_failure(runs, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    out.write_text("older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.Path, "replace", full)
    with pytest.raises(InputError, match=r"out: expected a file that can be written.*No space left"):
        write_report(runs, out)
    assert out.read_text() == "older" and [*tmp_path.iterdir()] == [out]


def test_bad_input(runs, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="paths: expected at least one run directory, got none"):
        write_report([])
    with pytest.raises(InputError, match="path: expected a run directory"):
        write_report([runs[0], tmp_path])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="out: expected a file that can be written"):
        write_report(runs, tmp_path / "file" / "page.html")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"needs plotly.*pip install 'fastrank\[report\]'"):
        write_report(runs, tmp_path / "page.html")


def test_numbers_and_flatten():
    assert numbers(np.array([1.0, 0.123456, np.nan, 1e20, 2.5e-9, 123456.7]), 3) == [
        1,
        0.123,
        None,
        1e20,
        2.5e-9,
        123000,
    ]
    nested = {"a": {"b": {"c": 1}}, "d": [1, 2], "e": {}, "f": None, "g": True}
    assert flatten(nested) == {"a.b.c": 1, "d": "1, 2", "e": "none", "f": None, "g": True}
