"""Every benchmark end to end on a tiny case: answers right, results in the schema, saved, compared and drawn."""

import json
from dataclasses import replace

import pytest
import results
import runner
from harness import Case

import fastrank

pytest.importorskip("timm")
pytest.importorskip("sklearn")

#: Fields that make a benchmark's own kinds of case tiny.
TINY = {
    "tempered_ce": [{"rows": 5, "classes": 7}, {"rows": 5, "classes": 7, "features": 3}],
    "tempered_mse": [{"rows": 5, "classes": 7}, {"rows": 5, "classes": 7, "soft": True}],
    "gram": [
        {"n": 8, "d": 4, "kind": "accumulate"},
        {"n": 8, "d": 4, "kind": "accumulate", "shift": True},
        {"n": 12, "d": 3, "images": 2, "kind": "channels"},
        {"n": 3, "d": 8, "kind": "dual"},
        {"images": 2, "channels": 12, "side": 5},
        {"images": 2, "channels": 3, "side": 5, "stride": 2},
        {"count": 2, "n": 3, "d": 8},
    ],
    "small_eigh": [{"kind": kind, "m": 6, "count": 2} for kind in ("values", "count", "vectors")],
    "rank": [{"shapes": ((20, 30),), "kind": kind} for kind in ("spectrum", "rank", "stream")],
    "svd": [{"shapes": ((20, 30),)}, {"shapes": ((20, 30), (40, 12))}],
    "ufm": [{"classes": 3, "depth": 3, "width": 4, "runs": 2}],
    "probes": [{"layers": 2, "width": 3, "classes": 3, "rows": 12}],
    "tracking": [{"batch": 4, "every": 2}, {"model": "MLP 2x6", "image": 0, "batch": 5, "classes": 3}],
}
SPREAD = {"median", "low", "high", "samples"}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Benchmarks of tiny cases, marked quick; saved runs go to a directory of the test's own."""
    real = runner.load
    full = {name: real(name) for name in runner.BENCHMARKS}

    def load(name):
        if name not in full:
            return real(name)
        # Of the first kind of case that has those fields.
        bases = [next(c for c in full[name].cases if f.keys() <= vars(c).keys()) for f in TINY[name]]
        cases = tuple(replace(b, quick=True, where="a test", **f) for b, f in zip(bases, TINY[name], strict=True))
        return replace(full[name], cases=cases)

    monkeypatch.setattr(runner, "load", load)
    monkeypatch.setattr(results, "SAVED", tmp_path / "saved")
    monkeypatch.setattr(runner.machine, "COPY_BYTES", 1 << 20)
    monkeypatch.setitem(runner.machine.GEMM_SIDE, "cpu", 32)
    return tmp_path


@pytest.mark.parametrize("name", TINY)
def test_runs(tiny, name):
    lines = []
    path = tiny / "figures.json"
    code = runner.run([name], quick=True, seconds=0.001, device="cpu", json=path, echo=lines.append)
    text = "\n".join(lines)
    assert code == 0, text
    run = json.loads(path.read_text())
    assert run["schema"] == results.SCHEMA and run["quick"] is True and run["device"] == "cpu"
    assert {"cpu", "cores", "threads", "isa", "blas", "torch", "load_average", "commit"} <= run["machine"].keys()
    assert run["peaks"].keys() == {"copy", "copy_cached", "fp32", "fp64"} and all(v > 0 for v in run["peaks"].values())
    cases = run["benchmarks"][name]["cases"]
    assert len(cases) == len(TINY[name])
    for title, case in cases.items():
        assert f"{name}: {title}" in text
        assert case["baseline"] in case["results"] and case["error_unit"] and not case["problem"]
        assert any(result["ours"] for result in case["results"].values())
        for contender, result in case["results"].items():
            assert not result["problem"], (contender, result["problem"])
            assert result["seconds"].keys() == SPREAD and result["speed"].keys() == SPREAD
            assert result["budget"] is None or result["error"] <= result["budget"]
    for peer, what in run["benchmarks"][name]["peers"].items():
        assert f"{peer}: {what}" in text and what  # whoever is not here is named


def test_a_wrong_kernel_fails_the_run(tiny, monkeypatch):
    import bench_tempered_ce

    true = bench_tempered_ce.tempered_cross_entropy
    monkeypatch.setattr(bench_tempered_ce, "tempered_cross_entropy", lambda z, y, T, **o: true(z, y, T * 1.001, **o))
    lines = []
    assert runner.run(["tempered_ce"], quick=True, seconds=0.001, device="cpu", echo=lines.append) == 1
    assert any(line.startswith("FAILED tempered_ce: 5 x 7 float32") and "wrong: error" in line for line in lines)


@pytest.mark.parametrize(
    ("title", "wrong"),
    [
        ("dual", None),  # its upper triangle is missing
        ("8 x 4 float32", lambda G, total: (G, total + 1e-3)),
        ("8 x 4 float32", lambda G, total: (G, total * float("nan"))),
        ("shifted", lambda G, total: (G * 1.001, total)),
    ],
)
def test_a_wrong_gram_matrix_fails_the_run(tiny, monkeypatch, title, wrong):
    import bench_gram

    dual, accumulate = bench_gram.gram_dual, bench_gram.gram_accumulate_

    def wrongly(G, total, *args, **options):
        accumulate(G, total, *args, **options)
        for target, source in zip((G, total), wrong(G, total), strict=True):
            target.copy_(source)

    monkeypatch.setattr(bench_gram, "gram_accumulate_", wrongly)
    monkeypatch.setattr(bench_gram, "gram_dual", lambda X, mode: dual(X, mode).tril())
    lines, options = [], {"quick": True, "seconds": 0.001, "device": "cpu"}
    assert runner.run(["gram"], case=title, echo=lines.append, **options) == 1
    failed = [line for line in lines if line.startswith("FAILED")]
    assert failed and all("fastrank" in line and "wrong: error" in line for line in failed)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_gram_bench_counts_the_same_on_either_name_of_the_cpu(device):
    import bench_gram

    case = bench_gram.accumulate(8, 4, "a test")
    assert [launch.kernel for launch in bench_gram.account(case, 8, 4, "exact", device)] == ["native"]


@pytest.fixture
def any_processor(monkeypatch):
    """The same contenders whether the processor has integer tiles or not."""
    import bench_gram

    monkeypatch.setattr(bench_gram, "digits", lambda device: False)


def test_cases_left_out_are_not_gone(tiny, any_processor):
    options = {"quick": True, "seconds": 0.001, "device": "cpu"}
    lines = []
    assert runner.run(["gram"], save="all", echo=lines.append, **options) == 0
    runner.run(["gram"], case="shifted", against="all", echo=lines.append, **options)
    told = next(line for line in reversed(lines) if "against the run of" in line)
    assert "gone" not in told and "of 2 ratios" in told


def test_save_against_and_plots(tiny, any_processor):
    options = {"quick": True, "seconds": 0.001, "device": "cpu"}
    lines = []
    assert runner.run(["gram"], save="before", plots=tiny / "pictures", echo=lines.append, **options) == 0
    assert (tiny / "saved" / "before.json").is_file()
    assert (tiny / "pictures" / "gram.png").read_bytes().startswith(b"\x89PNG")
    run = results.read("before")
    for case in run["benchmarks"]["gram"]["cases"].values():  # no machine is a thousand times faster than itself
        for result in case["results"].values():
            result["speed"] = {key: 1000 * value for key, value in result["speed"].items()}
    faster = results.write(run, tiny / "faster.json")
    assert runner.run(["gram"], against=str(faster), echo=lines.append, **options) == 1
    told = next(line for line in reversed(lines) if "against the run of" in line)
    assert sum("got worse: once more" in line for line in lines) == 2 * len(TINY["gram"])
    assert "regression" in told and told.endswith("0 of 16 ratios unchanged (within 10%, or within their spread)")


def test_every_benchmark_keeps_the_shape(monkeypatch):
    for name in runner.BENCHMARKS:
        benchmark = runner.load(name)
        assert benchmark.name == name and benchmark.about
        titles = [case.title for case in benchmark.cases]
        for kind in ("cpu", "cuda"):
            here = [case.title for case in benchmark.cases if kind in case.devices]
            assert len(set(here)) == len(here) and here
            assert any(case.quick for case in benchmark.cases if kind in case.devices)
        assert all(isinstance(case, Case) and case.where for case in benchmark.cases) and titles
    listing = runner.listing()
    assert all(name in listing for name in runner.BENCHMARKS) and "* also with --quick" in listing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"names": ["gramm"]},
            r"name: expected one of tempered_ce, .*small_eigh, rank, svd, ufm, probes, tracking, got 'gramm'",
        ),
        ({"device": "tpu"}, r"device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"threads": 0}, r"threads: expected a whole number >= 1, got 0"),
        ({"seconds": 0.0}, r"seconds: expected a number > 0, got 0.0"),
        ({"case": "no such"}, r"case: expected part of a title that --list shows for cpu, got 'no such'"),
        (
            {"against": "nobody"},
            r"against: expected a file, or a name given to --save before, got 'nobody'; saved here: ",
        ),
        ({"save": "../up"}, r"save: expected a name of letters"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tiny, options, message):
    with pytest.raises(fastrank.InputError, match=message):
        runner.run(**options, echo=lambda line: pytest.fail(f"printed {line}"))


def test_files_that_are_no_runs(tiny):
    run = {"schema": 1, "date": "today", "quick": True, "machine": {}, "benchmarks": {}}
    result = {"ours": True, "speed": {"median": 1.0, "low": 1.0, "high": None}}
    flawed = run | {"benchmarks": {"gram": {"cases": {"a case": {"results": {"fastrank": result}}}}}}
    for content, message in (
        ("{", "a JSON file"),
        ('{"schema": 0}', "a run with schema 1"),
        ("[]", "with list"),
        ('{"schema": 1}', "a run with a date"),
        (json.dumps(run | {"benchmarks": {"gram": {}}}), "a run with cases of gram"),
        (json.dumps(flawed), "a run with a high speed of gram: a case, fastrank"),
    ):
        path = tiny / "run.json"
        path.write_text(content)
        with pytest.raises(fastrank.InputError, match=message):
            results.read(str(path))
