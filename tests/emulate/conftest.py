"""Shared by the emulator's tests: what is compiled is compiled once a session."""

import os

import pytest
from emulate import toolchain


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Compiles PTX for the CPU."""
    if reason := toolchain.missing():
        pytest.skip(reason)
    from emulate.ptx.run import Emulator

    return Emulator(tmp_path_factory.mktemp("ptx"))


@pytest.fixture(scope="session")
def triton_emulator(emulator):
    """The same, where Triton can compile."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("under TRITON_INTERPRET=1 nothing is compiled")
    pytest.importorskip("triton")
    return emulator
