"""A PTX module as C++: one function per kernel, run once per CUDA thread by the shim."""

from __future__ import annotations

from dataclasses import dataclass

from . import arithmetic, control, memory
from .instruction import Context, Instruction, cpp_name, label_name
from .opcodes import OPCODES
from .parse import Kernel, Label, Module, Registers, Scope, Statement, Symbol, Targets, UnsupportedPtx

assert arithmetic and control and memory  # they fill the table

_REGISTERS = {"pred": "bool", "b8": "uint8_t"} | {
    f"{kind}{bits}": f"uint{bits}_t" for kind in "busf" for bits in (16, 32, 64)
}
_REACHES_OUT = ("ld", "st", "atom", "red", "cp", "ldmatrix", "stmatrix", "bar", "barrier", "shfl", "vote", "match",
                "redux", "mma", "cvta", "membar", "fence", "bra", "brx", "trap", "call", "ldu", "elect")  # fmt: skip


@dataclass
class Mutant:
    """A deliberate mistake in a translated kernel, switched on by its number when the kernel is launched.

    What the compiler made of one line of the source, in many registers, is one mistake; each barrier is one of its own.
    """

    number: int
    kernel: str
    kind: str
    what: str
    statements: list[Statement]

    @property
    def source(self) -> str:
        return self.statements[0].source

    def __str__(self) -> str:
        more = f" and {len(self.statements) - 1} more" * (len(self.statements) > 1)
        return f"{self.kernel}, {self.kind} {self.what}: {self.statements[0]}{more}"


def _offsets(symbols: list[Symbol], start: int = 0) -> tuple[dict[str, int], int]:
    """Where each array lies, one after another, and the end of the last. One without a size begins at the end."""
    offsets, end = {}, start
    for s in symbols:
        end = -(-end // s.align) * s.align
        offsets[s.name] = end
        end += s.bytes or 0
    return offsets, end


def _registers(kernel: Kernel) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in kernel.body:
        if isinstance(item, Registers):
            if item.type not in _REGISTERS:
                raise UnsupportedPtx(f"register type .{item.type}")
            for name in item.names:
                # The same name in two scopes is two variables, but must be of one type here.
                if found.setdefault(name, item.type) != item.type:
                    raise UnsupportedPtx(f"register {name} of two types")
    return found


def layout(module: Module, kernel: Kernel) -> tuple[dict[str, int], int, dict[str, int], int]:
    """(offset of each parameter, bytes of all, offset of each shared array, bytes of those with a size)."""
    parameters, parameter_bytes = _offsets(kernel.parameters)
    sized = [s for s in module.shared if s.bytes is not None] + kernel.shared
    dynamic = [s for s in module.shared if s.bytes is None]
    shared, static = _offsets(sized)
    for s in dynamic:
        static = -(-static // s.align) * s.align
    shared |= {s.name: static for s in dynamic}
    return parameters, parameter_bytes, shared, static


def translate(module: Module, mutants: bool = False) -> tuple[str, list[Mutant]]:
    """C++ for all kernels of the module, and the mutants it contains. Unknown opcodes are UnsupportedPtx."""
    out = ['#include "launch.h"']
    addresses = {}
    for n, symbol in enumerate(module.memory):
        data = ", ".join(str(b) for b in symbol.data or b"") or "0"
        out.append(f"alignas({symbol.align}) static unsigned char memory{n}[{max(symbol.bytes, 1)}] = {{{data}}};")
        addresses[symbol.name] = f"reinterpret_cast<uint64_t>(memory{n})"
    found: list[Mutant] = []
    for number, kernel in enumerate(module.kernels.values()):
        out.append(_kernel(module, kernel, number, addresses, found if mutants else None))
    entries = ", ".join(_entry(module, kernel, n) for n, kernel in enumerate(module.kernels.values()))
    out.append(
        f"namespace ptx {{ const Entry entries[] = {{{entries}}}; const int entry_count = {len(module.kernels)}; }}"
    )
    register = " ".join(
        f'emulate::register_buffer(memory{n}, {s.bytes}, true, ".global {s.name}");'
        for n, s in enumerate(module.memory)
    )
    out.append(f"void ptx::register_symbols() {{ {register} }}")
    return "\n".join(out) + "\n", found


def _kernel(module: Module, kernel: Kernel, number: int, memory_: dict[str, str], mutants: list[Mutant] | None) -> str:
    parameters, parameter_bytes, shared, static = layout(module, kernel)
    local, local_bytes = _offsets(kernel.local)
    context = Context(kernel, parameters, parameter_bytes, shared, local, memory_, _registers(kernel))
    context.labels = {item.name: n for n, item in enumerate(kernel.body) if isinstance(item, Label)}
    context.targets = {item.name: item.labels for item in kernel.body if isinstance(item, Targets)}
    lines = [
        f"namespace kernel{number} {{",
        f"constexpr unsigned kStaticShared = {static}; static_assert(kStaticShared + 1 > 0);",
        "static void thread(const char* parameters) {",
        "int line = 0; [[maybe_unused]] uint32_t carry = 0; [[maybe_unused]] static uint64_t clock = 0;",
        "(void)parameters;",
    ]
    if local_bytes:
        lines.append(f"alignas(16) char own[{local_bytes}]; std::memset(own, 0xFF, sizeof own);")
    lines.append(f"[[maybe_unused]] const ptx::Local local = {{{'own' if local_bytes else 'nullptr'}, {local_bytes}}};")
    lines.append("try {")
    for position, item in enumerate(kernel.body):
        context.position = position
        if isinstance(item, Registers):
            lines.append(f"{_REGISTERS[item.type]} {', '.join(cpp_name(n) for n in item.names)};")
        elif isinstance(item, Scope):
            lines.append("{" if item.opens else "}")
        elif isinstance(item, Label):
            lines.append(f"{label_name(item.name)}: ;")
        elif isinstance(item, Statement):
            lines.append(_statement(item, context, mutants))
    report = 'throw emulate::Failure(std::string(failure.what()) + " [PTX line " + std::to_string(line) + "]");'
    lines += [f"}} catch (const emulate::Failure& failure) {{ {report} }}", "} }"]
    return "\n".join(lines)


def _statement(statement: Statement, context: Context, mutants: list[Mutant] | None) -> str:
    if statement.base not in OPCODES:
        raise UnsupportedPtx(f"unknown opcode: {statement}")

    def mutate(kind: str, what: str) -> str | None:
        if mutants is None:
            return None
        name, opcode = context.kernel.name, statement.opcode
        for m in mutants:
            same = (m.kernel, m.kind, m.what, m.source) == (name, kind, what, statement.source)
            if same and m.statements[0].opcode == opcode and kind != "barrier":
                m.statements.append(statement)
                return f"ptx::mutant == {m.number}"
        mutants.append(Mutant(len(mutants) + 1, name, kind, what, [statement]))
        return f"ptx::mutant == {len(mutants)}"

    context.mutate = mutate
    code = OPCODES[statement.base](Instruction(statement, context))
    if statement.base in _REACHES_OUT:
        code = f"line = {statement.line}; {code}"
    if statement.base in ("bar", "barrier") and (on := mutate("barrier", "removed")):
        code = f"if (!({on})) {{ {code} }}"
    if statement.guard:
        guard = Instruction(statement, context).value(statement.guard, "pred")
        if statement.base in ("ld", "st", "atom", "red") and (on := mutate("guard", "dropped")):
            guard = f"({guard}) || {on}"
        code = f"if ({guard}) {{ {code} }}"
    return code


def _entry(module: Module, kernel: Kernel, number: int) -> str:
    """The kernel's row in the table that launch.h reads."""
    _, parameter_bytes, _, static = layout(module, kernel)
    limits = f"{kernel.required_threads or 0}, {kernel.most_threads or 0}"
    return f'{{"{kernel.name}", &kernel{number}::thread, {static}, {limits}, {parameter_bytes}}}'
