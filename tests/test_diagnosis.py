"""`fastrank doctor`: every subject is there, every op has its backend and reason, every conflict its cure."""

import ctypes
import importlib.metadata
import os
import subprocess
import sys
import types

import pytest
import torch
from fastrank.kernels import backend

import fastrank
from fastrank import conflicts, diagnosis


def test_every_subject_fits_one_screen():
    findings = fastrank.doctor()
    for subject in ("python", "torch", "threads", "BLAS", "nvcc", "driver", "native core", "native CUDA", "triton"):
        assert findings[subject]
    assert {f"op {op}" for op in backend.OPS} <= findings.keys()
    assert len(diagnosis.describe().splitlines()) <= 40


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without a GPU")
def test_an_op_says_what_runs_it_and_why_not_the_best():
    findings = fastrank.doctor()
    assert findings["op gram_dual"] == "cpu -> native; cuda -> native (no device here)"
    for op in ("tempered_ce", "tempered_mse"):
        assert findings[f"op {op}"] == "cpu -> native; cuda -> triton (no device here)"


def test_an_op_without_the_core_falls_to_the_reference_and_says_why(monkeypatch):
    missing = backend.Status(False, "no compiler", "install one")
    monkeypatch.setattr(backend, "native_status", lambda: missing)
    assert diagnosis._runs("gram_dual", "cpu") == "reference, since native: no compiler; install one"


def test_a_gpu_without_code_is_a_conflict_with_a_cure(monkeypatch):
    core = types.SimpleNamespace(cuda=True, cuda_version=13000, cuda_architectures="80-real,100-real", isa="avx2")
    monkeypatch.setattr(backend, "core", lambda: core)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    backend.cuda_status.cache_clear()
    try:
        wrong, cure = conflicts.no_device_code()
        assert wrong == "NVIDIA H100: no code for sm_90 among 80-real,100-real" and "pip install -e ." in cure
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
        backend.cuda_status.cache_clear()
        assert conflicts.no_device_code() is None
    finally:
        backend.cuda_status.cache_clear()


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 0), "80-real", True),
        ((8, 9), "80-real", True),  # machine code of the same major, a lower minor
        ((9, 0), "80-real", False),
        ((7, 5), "80-real,90", False),
        ((12, 0), "80-real,90,100-real", True),  # through the PTX of 9.0
        ((12, 0), "80-real,100-real", False),
        ((8, 0), "90", False),
        ((9, 0), "90-virtual", True),
    ],
)
def test_which_devices_a_build_covers(capability, architectures, runs):
    assert backend._has_code(*capability, architectures) is runs


def test_the_driver_must_know_the_cores_cuda(monkeypatch):
    core = types.SimpleNamespace(cuda=True, cuda_version=13000)
    monkeypatch.setattr(backend, "core", lambda: core)
    monkeypatch.setattr(conflicts, "driver_cuda", lambda: 12080)
    wrong, cure = conflicts.driver_too_old()
    assert "CUDA 13.0" in wrong and "up to 12.8" in wrong and "driver" in cure
    monkeypatch.setattr(conflicts, "driver_cuda", lambda: 13010)
    assert conflicts.driver_too_old() is None
    monkeypatch.setattr(conflicts, "driver_cuda", lambda: None)
    assert conflicts.driver_too_old() is None


def test_a_driver_is_asked_for_its_cuda(monkeypatch):
    def answer(pointer):
        pointer._obj.value = 12040
        return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace(cuDriverGetVersion=answer))
    assert conflicts.driver_cuda() == 12040


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(conflicts, "usable_cores", lambda: 2.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert conflicts.too_many_threads() == ("8 threads on 2.5 usable cores", "export OMP_NUM_THREADS=2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert conflicts.too_many_threads() is None


def test_a_triton_that_torch_did_not_ask_for(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.1.0")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ['triton==3.8.0; platform_system == "Linux"'])
    assert conflicts.triton_version() == (
        "triton 3.1.0 beside a torch that asks for 3.8.0",
        "pip install triton==3.8.0",
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.8.0")
    assert conflicts.triton_version() is None


def test_two_builds_of_cupy(monkeypatch):
    found = [types.SimpleNamespace(name="cupy-cuda12x")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert conflicts.cupy_version() == ("cupy-cuda12x beside a torch built for CUDA 13.0", "pip install cupy-cuda13x")
    found.append(types.SimpleNamespace(name="cupy-cuda13x"))
    assert "installed together" in conflicts.cupy_version()[0]


@pytest.mark.parametrize(("policy", "spins"), [("PASSIVE", False), (None, True)])
def test_the_waiting_policy_of_the_shell_counts(policy, spins):
    """What this process sets afterwards, as the command line does, is no setting of the user's."""
    code = (
        "import os; os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'\n"
        "from fastrank import conflicts; print(conflicts.waiting_threads_spin())"
    )

    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(spins)


def test_the_interpreter_is_named(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert conflicts.interpreter()[1] == "unset TRITON_INTERPRET"


@pytest.mark.parametrize(("value", "wrong"), [("abc", True), ("0", True), ("", True), ("4", False), ("4,2", False)])
def test_a_thread_count_that_openmp_cannot_read(monkeypatch, value, wrong):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    found = conflicts.bad_thread_count()
    assert (found is not None) is wrong and (not wrong or repr(value) in found[0])


def test_a_forced_instruction_set_is_named(monkeypatch):
    monkeypatch.setattr(backend, "core", lambda: types.SimpleNamespace(isa="avx2", built_isas="scalar,avx2"))
    monkeypatch.delenv("FASTRANK_ISA", raising=False)
    assert conflicts.instruction_set() is None
    monkeypatch.setenv("FASTRANK_ISA", "foo")
    assert "FASTRANK_ISA='foo' is not among scalar,avx2" in conflicts.instruction_set()[0]
    monkeypatch.setenv("FASTRANK_ISA", "avx2")
    assert "below what the processor can" in conflicts.instruction_set()[0]


def test_hidden_gpus_are_named(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "weird,7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA_VISIBLE_DEVICES='weird,7'" in fastrank.doctor()["GPU"]
    monkeypatch.setattr(conflicts, "driver_cuda", lambda: 13000)
    assert "CUDA_VISIBLE_DEVICES='weird,7' hides" in conflicts.hidden_devices()[0]
    monkeypatch.setattr(conflicts, "driver_cuda", lambda: None)
    assert conflicts.hidden_devices() is None


def test_a_compiler_is_not_missed_where_the_core_is_built(monkeypatch):
    monkeypatch.setattr(diagnosis.shutil, "which", lambda *_, **__: None)
    assert "->" not in diagnosis._compiler()
