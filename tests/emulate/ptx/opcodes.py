"""The table of opcodes: from a mnemonic's first part to the function that makes C++ of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .instruction import Instruction

OPCODES: dict[str, Callable[[Instruction], str]] = {}


def opcode(*names: str):
    def register(function: Callable[[Instruction], str]) -> Callable[[Instruction], str]:
        for name in names:
            assert name not in OPCODES, name
            OPCODES[name] = function
        return function

    return register
