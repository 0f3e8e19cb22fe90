"""One instruction as the opcode functions see it: modifiers to consume, operands as C++ expressions of a type."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .parse import Kernel, Statement, UnsupportedPtx

#: PTX types as runtime.h's C++ types. Bits without a meaning are unsigned numbers.
TYPES = {
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    "f16": "ptx::f16", "bf16": "ptx::bf16", "f16x2": "ptx::f16x2", "bf16x2": "ptx::bf16x2", "f32x2": "ptx::f32x2",
    "f32": "float", "f64": "double", "pred": "bool",
}  # fmt: skip
FLOATS = ("f16", "bf16", "f16x2", "bf16x2", "f32x2", "f32", "f64")
BYTES = {"pred": 1, "f16x2": 4, "bf16x2": 4, "f32x2": 8, "bf16": 2} | {
    t: int(re.sub(r"\D", "", t)) // 8 for t in TYPES if re.fullmatch(r"[ubsf]\d+", t)
}
ROUNDINGS = ("rn", "rz", "rm", "rp")

SPECIAL = {
    **{f"%tid.{d}": f"emulate::this_thread().index.{d}" for d in "xyz"},
    **{f"%ctaid.{d}": f"emulate::this_block().index.{d}" for d in "xyz"},
    **{f"%ntid.{d}": f"emulate::this_launch().block.{d}" for d in "xyz"},
    **{f"%nctaid.{d}": f"emulate::this_launch().grid.{d}" for d in "xyz"},
    "%laneid": "emulate::this_thread().lane()",
    "%warpid": "(emulate::this_thread().linear / 32)",
    "%nwarpid": "emulate::this_block().warps.size()",
    "%lanemask_eq": "(1u << emulate::this_thread().lane())",
    "%lanemask_lt": "((1u << emulate::this_thread().lane()) - 1)",
    "%lanemask_le": "(~0u >> (31 - emulate::this_thread().lane()))",
    "%lanemask_gt": "(~1u << emulate::this_thread().lane())",
    "%lanemask_ge": "(~0u << emulate::this_thread().lane())",
    "%smid": "0", "%nsmid": "1", "%gridid": "0",
    "%clock": "++clock", "%clock64": "++clock", "%globaltimer": "++clock",
    "%dynamic_smem_size": "(emulate::this_launch().shared - kStaticShared)",
    "%total_smem_size": "emulate::this_launch().shared",
}  # fmt: skip


@dataclass
class Context:
    """What an instruction may need to know of its kernel."""

    kernel: Kernel
    #: Offset of each parameter, of each array in shared memory, of each in local memory.
    parameters: dict[str, int]
    parameter_bytes: int
    shared: dict[str, int]
    local: dict[str, int]
    #: C++ expressions of the addresses of .global and .const arrays.
    memory: dict[str, str]
    registers: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)  # name -> index in the body
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    position: int = 0
    #: `mutate(kind, what)` gives the C++ condition "this mutant is on", or None where no mutants are wanted.
    mutate: Callable[[str, str], str | None] = lambda kind, what: None


def cpp_name(name: str) -> str:
    return "v_" + re.sub(r"\W", lambda m: f"_{ord(m[0]):x}_", name.removeprefix("%"))


def label_name(name: str) -> str:
    return "L_" + re.sub(r"\W", lambda m: f"_{ord(m[0]):x}_", name)


class Instruction:
    def __init__(self, statement: Statement, context: Context):
        self.statement, self.context = statement, context
        self.operands = list(statement.operands)
        self._left = list(statement.modifiers)

    # ---- modifiers ----

    def refuse(self, why: str) -> UnsupportedPtx:
        return UnsupportedPtx(f"{why}: {self.statement}")

    def flag(self, name: str) -> bool:
        if name in self._left:
            self._left.remove(name)
            return True
        return False

    def one_of(self, *names: str, default: str | None = None) -> str:
        """The first modifier if it is among `names`, else (if given) the default."""
        for name in self._left:
            if name in names:
                self._left.remove(name)
                return name
        if default is None:
            raise self.refuse(f"expected one of .{', .'.join(names)}")
        return default

    def drop(self, *patterns: str) -> None:
        """Modifiers that change no result: caching, eviction, prefetching."""
        self._left = [m for m in self._left if not any(re.fullmatch(p, m) for p in patterns)]

    def type(self, *allowed: str) -> str:
        """The last modifier, which is a type."""
        if not self._left or self._left[-1] not in TYPES or (allowed and self._left[-1] not in allowed):
            raise self.refuse("unsupported type")
        return self._left.pop()

    def done(self) -> None:
        if self._left:
            raise self.refuse(f"unsupported modifier .{', .'.join(self._left)}")

    def mode(self, default_rounding: str = "rn") -> str:
        """runtime.h's Mode of the floating-point modifiers, as a template argument."""
        facts = [f".round = ptx::{self.one_of(*ROUNDINGS, 'rna', default=default_rounding)}"]
        facts += [f".ftz = {str(self.flag('ftz')).lower()}", f".sat = {str(self.flag('sat')).lower()}"]
        facts += [f".{cpp} = true" for name, cpp in (("relu", "relu"), ("NaN", "nan")) if self.flag(name)]
        if self.flag("xorsign"):
            self.flag("abs")
            facts.append(".xorsign = true")
        elif self.flag("abs"):
            facts.append(".abs = true")
        return f"ptx::Mode{{{', '.join(facts)}}}"

    # ---- operands ----

    def value(self, operand: int | str, kind: str) -> str:
        """A source operand as a C++ expression of PTX type `kind`."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        if kind == "pred":
            return f"!{self.value(text[1:].strip(), kind)}" if text.startswith("!") else self._predicate(text)
        if text in SPECIAL:
            return f"static_cast<{TYPES[kind]}>({SPECIAL[text]})"
        if text in self.context.registers:
            return self._register(text, kind)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return self._bits(int(text[2:], 16), 4, kind)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return self._bits(int(text[2:], 16), 8, kind)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
            number = text.rstrip("U")
            octal = re.fullmatch(r"(-?)0(\d+)", number)
            return self._integer(int(octal[1] + octal[2], 8) if octal else int(number, 0), kind)
        if text == "WARP_SZ":
            return self._integer(32, kind)
        if (found := re.fullmatch(r"([\w$%]+)\s*(?:\+\s*(\d+))?", text)) and (address := self._symbol(found[1])):
            return f"static_cast<{TYPES[kind]}>({address} + {found[2] or 0})"
        raise self.refuse(f"unsupported operand {text!r}")

    def _register(self, name: str, kind: str) -> str:
        # Plain C++ where it says the same as ptx::as: half of the time goes to compiling it.
        size = BYTES[self.context.registers[name]]
        if self.context.registers[name] != "pred" and size >= BYTES[kind]:
            if kind not in FLOATS:
                plain = size == BYTES[kind] and kind[0] != "s"
                return cpp_name(name) if plain else f"{TYPES[kind]}({cpp_name(name)})"
            if kind in ("f32", "f64") and size == BYTES[kind]:
                return f"__builtin_bit_cast({TYPES[kind]}, {cpp_name(name)})"
        return f"ptx::as<{TYPES[kind]}>({cpp_name(name)})"

    def _predicate(self, text: str) -> str:
        if text in ("0", "1", "-1"):  # nvcc writes true as -1
            return ("false", "true")[abs(int(text))]
        if self.context.registers.get(text) != "pred":
            raise self.refuse(f"expected a predicate, got {text!r}")
        return cpp_name(text)

    def _bits(self, bits: int, size: int, kind: str) -> str:
        if kind == "f64" and size == 4:
            return f"double(std::bit_cast<float>({bits:#x}u))"
        if BYTES[kind] != size:
            raise self.refuse(f"a literal of {8 * size} bits for .{kind}")
        number = f"{bits:#x}u" if size == 4 else f"{bits:#x}ull"
        return f"std::bit_cast<{TYPES[kind]}>({'uint32_t' if size == 4 else 'uint64_t'}({number}))"

    def _integer(self, number: int, kind: str) -> str:
        if kind in ("f32", "f64", "f32x2"):
            raise self.refuse("an integer literal for a floating-point number")
        bits = number % (1 << 8 * BYTES[kind])
        if kind in FLOATS:  # of 16 bits: PTX has no other literals for them
            return f"std::bit_cast<{TYPES[kind]}>(uint{8 * BYTES[kind]}_t({bits:#x}u))"
        return f"static_cast<{TYPES[kind]}>({bits:#x}ull)"

    def _symbol(self, name: str) -> str | None:
        context = self.context
        for offsets in (context.parameters, context.shared):
            if name in offsets:
                return f"uint64_t({offsets[name]})"
        if name in context.local:
            return f"(reinterpret_cast<uint64_t>(local.begin) + {context.local[name]})"
        return context.memory.get(name)

    def list(self, operand: int | str) -> list[str]:
        """`{a, b}` as its parts; anything else as itself."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        return [x.strip() for x in text[1:-1].split(",")] if text.startswith("{") else [text]

    def set(self, operand: int | str, expression: str, kind: str = "") -> str:
        """Assigns to a destination register; `_` takes nothing. `kind`: the expression's PTX type, where known."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        if text == "_":
            return f"(void)({expression});"
        if text not in self.context.registers:
            raise self.refuse(f"unsupported destination {text!r}")
        register = self.context.registers[text]
        if kind and kind == register == "pred":
            return f"{cpp_name(text)} = {expression};"
        if kind and "pred" not in (kind, register) and BYTES[register] >= BYTES[kind]:
            if kind not in FLOATS:  # assigning extends by the sign or with zeros, as PTX does
                return f"{cpp_name(text)} = {TYPES[kind]}({expression});"
            if kind in ("f32", "f64") and BYTES[register] == BYTES[kind]:
                return f"{cpp_name(text)} = __builtin_bit_cast(uint{8 * BYTES[kind]}_t, {TYPES[kind]}({expression}));"
        return f"ptx::set({cpp_name(text)}, {expression});"

    def address(self, operand: int | str) -> tuple[str, str, int]:
        """(base text, base as C++ expression of 64 bits, offset) of `[base+offset]`."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        found = re.fullmatch(r"\[\s*([\w$%]+)\s*(?:\+\s*(-?\w+)\s*)?\]", text)
        if not found:
            raise self.refuse(f"unsupported address {text!r}")
        base, offset = found[1], int(found[2] or "0", 0)
        if base in self.context.registers:
            wide = self.context.registers[base][1:] == "64"
            return base, self.value(base, "u64") if wide else f"uint64_t({self.value(base, 'u32')})", offset
        return base, self.value(base, "u64"), offset
