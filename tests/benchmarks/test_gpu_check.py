"""The GPU check without a GPU: its stages are what they say, its readers object, its report can be pasted."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_check
import pytest
import torch
import verdict
from stages import Objection

from fastrank import cli

ROOT = Path(__file__).parents[2]


def spread(median):
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median, "samples": 9}


def result(ours, **changes):
    figures = {"ours": ours, "seconds": spread(2e-6), "wall": spread(9e-6), "speed": spread(3.0), "error": 1e-8}
    return figures | {"budget": 1e-6, "read": 4000, "written": 2000, "flops": {"fp32": 9000}, "problem": ""} | changes


@pytest.fixture
def document():
    """A check on an imaginary device: every kind of verdict, figures in every table."""
    machine = {
        "cpu": "a CPU", "cores": 8, "threads": 8, "omp_wait_policy": "PASSIVE", "load_average": 0.1, "isa": "avx2",
        "torch_isa": "avx2", "blas": "MKL", "python": "3.11", "platform": "Linux", "torch": "2.14", "numpy": "2",
        "triton": "3.8", "fastrank": "0.1", "commit": "abc", "device": "cuda", "gpu": "Imaginary 9", "capability": "90",
        "memory_gb": 80, "sms": 100, "driver": "1.2", "cuda": "13.0", "clocks": "1 / 2",
    }  # fmt: skip
    cases = {
        "8 x 8": {"problem": "", "results": {"eager": result(False), "fastrank": result(True)}},
        "9 x 9": {"problem": "not enough memory", "results": {}},
        "7 x 7": {"problem": "", "results": {"peer": result(False, seconds=None, speed=None, problem="Error: a | b")}},
    }
    bench = {"benchmarks": {"gram": {"peers": {"CuPy": "not installed"}, "cases": cases}}}
    kernels = [
        {"case": "c", "kernel": "k", "bound": "memory", "roofline": 1e-6, "predicted": 2e-6, "measured": 3e-6},
        {"case": "c", "kernel": "l", "bound": "fp64", "roofline": 1e-6, "predicted": 2e-6, "measured": None},
    ]
    stage = {"about": "about", "seconds": 1.0, "tail": "", "figures": {}}
    stages = [
        stage | {"name": "streams", "status": "fail", "reason": "exit code 1", "tail": "AssertionError"},
        stage | {"name": "memcheck", "status": "skipped", "reason": "not found"},
        stage | {"name": "bench gram", "status": "pass", "reason": "fine", "figures": bench},
        stage
        | {
            "name": "prediction",
            "status": "pass",
            "reason": "ok",
            "figures": {"model": "H9", "why": "measured peaks", "kernels": kernels},
        },
    ]
    return {"date": "2030-01-02T03:04:05+00:00", "machine": machine, "stages": stages}


def test_the_report(document):
    text = verdict.render(document)
    assert "## Imaginary 9, 2030-01-02" in text and "FAILED: streams" in text
    assert "| streams: about | **FAIL** | 1 | exit code 1 |" in text and "| skipped | 1 | not found |" in text
    assert "against the model of H9, measured peaks:" in text
    assert "| c | `k` | memory | 1.0 | 2.0 | 3.0 | 1.50 |" in text and "| not found |" in text
    assert "| **fastrank** | 0.002 | 0.009 | 3.00x | 2.70 .. 3.30 | 1.0e-08 | 3.0 | 4.5 |" in text
    assert "CuPy: not installed" in text and r"Error: a \| b" in text and "not enough memory" in text
    assert "AssertionError" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for rows in tables:  # every row of a table has as many cells as its head
        assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1, rows


def test_readers_object_to_a_pass_in_which_nothing_happened(tmp_path):
    assert gpu_check.tested("== 3 passed, 1 skipped in 2s ==")[0] == "3 passed, 1 skipped"
    for output in ("", "== 7 skipped in 1s ==", "no tests ran in 0.01s"):
        with pytest.raises(Objection, match="no test passed"):
            gpu_check.tested(output)
    assert gpu_check.sanitized("x\n========= ERROR SUMMARY: 0 errors\n")[0] == "ERROR SUMMARY: 0 errors"
    with pytest.raises(Objection):
        gpu_check.sanitized("")
    path = tmp_path / "x.json"
    with pytest.raises(Objection, match="no figures"):
        gpu_check.benched("gram", path)("")
    path.write_text(json.dumps({"benchmarks": {"gram": {"cases": {}}}}))
    with pytest.raises(Objection, match="no case was timed"):
        gpu_check.benched("gram", path)("")
    path.write_text(json.dumps({"kernels": [{"measured": None, "predicted": 1.0}]}))
    with pytest.raises(Objection, match="no kernel was measured"):
        gpu_check.predicted(path)("")
    path.write_text(json.dumps({"kernels": [{"measured": 3.0, "predicted": 2.0}]}))
    assert gpu_check.predicted(path)("")[0] == "measured / predicted 1.50 .. 1.50 over 1 kernels"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stages_name_what_exists_and_fit_the_time(tmp_path, device):
    stages = gpu_check.stages(device, tmp_path)
    for stage in stages:
        for argument in stage.command:
            if argument.endswith(".py"):
                assert (ROOT / argument).is_file(), argument
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert {"conformity", "streams", "memcheck", "racecheck", "prediction", "training"} < set(names)
    assert max(stage.limit for stage in stages) < gpu_check.TOTAL < 600
    skipped = {stage.name for stage in stages if stage.skip}
    assert skipped >= ({"build", "memcheck", "racecheck"} if device == "cpu" else set())
    assert not skipped & {"conformity", "streams", "prediction", "training"}


def test_without_a_gpu_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fastrank", "bench", "--gpu-check"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    out, error = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and error.count("\n") == 1
    assert error.startswith(
        "fastrank: gpu-check: expected a machine with an NVIDIA GPU that torch sees, got none; torch"
    )
    assert not any(tmp_path.iterdir())


def test_the_check_writes_its_report_and_fails_with_its_stages(monkeypatch, tmp_path):
    from stages import Stage

    def fake(device, scratch):
        yield Stage("good", "about", (sys.executable, "-c", ""), 30)
        yield Stage("bad", "about", (sys.executable, "-c", "raise SystemExit(1)"), 30)

    lines = []
    monkeypatch.setattr(gpu_check, "stages", fake)
    assert gpu_check.run("cpu", tmp_path, lines.append) == 1
    (report,) = tmp_path.glob("*.md")
    saved = json.loads(report.with_suffix(".json").read_text())
    assert [s["status"] for s in saved["stages"]] == ["pass", "fail"] and "**FAIL**" in report.read_text()
    monkeypatch.setattr(gpu_check, "stages", lambda device, scratch: list(fake(device, scratch))[:1])
    assert gpu_check.run("cpu", tmp_path, lines.append) == 0


def test_small_calls_of_every_op_run_and_every_kernel_is_predicted():
    import predict
    from device_calls import CALLS, main

    main("cpu")
    ops = {"tempered_ce", "tempered_mse", "gram_accumulate_", "gram_dual", "gram_dual_many", "gram_patches_"}
    assert {call.name.split()[0] for call in CALLS} == ops
    model, why = predict.model_of("cpu")
    assert why.startswith("measured peaks")
    rows = predict.compare("cpu", model)
    assert rows and all(row["measured"] > 0 and row["predicted"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("name", "sms", "sheet"),
    [
        ("NVIDIA A100-SXM4-80GB", 108, "A100 80GB SXM"),
        ("NVIDIA H100 80GB HBM3", 132, "H100 SXM"),
        ("NVIDIA H200", 132, "H200 SXM"),
        ("NVIDIA B200", 148, "B200"),
        ("NVIDIA H100 80GB HBM3", 114, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16, None),
        ("NVIDIA H100 PCIe", 114, None),
        ("NVIDIA H100 NVL", 132, None),
        ("NVIDIA A100-PCIE-40GB", 108, None),
        ("NVIDIA GH200 480GB", 132, None),
    ],
)
def test_a_data_sheet_is_that_of_the_very_product(monkeypatch, name, sms, sheet):
    import machine
    import predict
    from fastrank.kernels.cost import Launch

    properties = SimpleNamespace(name=name, multi_processor_count=sms, total_memory=1, L2_cache_size=1)
    peaks = {"copy": 1e12, "fp32": 4e12, "fp64": 2e12, "bf16_tensor": 9e12}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(machine, "peaks", lambda device: peaks)
    model, why = predict.model_of("cuda")
    assert model.name == (sheet or name) and model.sms == sms and name in why
    assert why.startswith("data sheet" if sheet else "measured peaks")
    bound = predict._row("case", "k", 1.0, [Launch("k", 0, 0, {"fp64": 9})], model)["bound"]
    assert bound == ("fp64" if sheet else "fp64_tensor-or-vector")


def test_the_profilers_names_are_matched():
    import predict

    names = {"void gram_tiles<float, true>(Args)": 1.0, "forward_kernel": 2.0, "gram_reduce": 4.0}
    names["void at::native::forward_kernel<float>(Args)"] = 3.0
    assert predict._find(names, "gram_tiles") == 1.0 and predict._find(names, "forward") == 2.0
    assert predict._find(names, "gram_reduce") == 4.0 and predict._find(names, "backward") is None


def test_benchmarks_need_a_checkout(monkeypatch, capsys, tmp_path):
    import fastrank.checkout

    monkeypatch.setattr(fastrank, "__file__", str(tmp_path / "site-packages" / "fastrank" / "__init__.py"))
    monkeypatch.setattr(sys, "argv", ["fastrank", "bench"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    assert error.startswith("fastrank: bench: expected a checkout with benchmarks/, got fastrank installed in ")


def test_every_profiled_call_finds_a_cold_l2(monkeypatch):
    import predict
    import torch.profiler

    done = []

    class Profile:
        def __init__(self, activities):
            done.clear()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            return [SimpleNamespace(device_type="DeviceType.CUDA", name="k", device_time_total=t) for t in (1, 3, 2)]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(predict, "l2_flush", lambda device: SimpleNamespace(zero_=lambda: done.append("flush")))
    assert predict.kernel_times(lambda: done.append("run"), "cuda") == {"k": pytest.approx(2e-6)}
    assert done == ["flush", "run"] * predict.CALLS
