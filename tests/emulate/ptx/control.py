"""Opcodes between threads and of control flow: barriers, exchanges within a warp, tensor cores, branches."""

from __future__ import annotations

from .instruction import TYPES, Instruction, label_name
from .opcodes import opcode


@opcode("bar", "barrier")
def barrier(i: Instruction) -> str:
    if i.flag("warp"):
        i.flag("sync")
        i.done()
        return f"emulate::warp_barrier({i.value(0, 'u32')});"
    i.flag("cta")
    how = i.one_of("sync", "arrive")
    i.flag("aligned")
    i.done()
    number = i.value(0, "u32")
    count = i.value(1, "u32") if len(i.operands) > 1 else "0"
    site = f'{{"PTX line", {i.statement.line}}}'
    return f"emulate::barrier({number}, {count}, {site}, {str(how == 'sync').lower()});"


@opcode("shfl")
def shuffle(i: Instruction) -> str:
    i.type("b32")
    i.flag("sync")
    how = {"up": "up", "down": "down", "bfly": "butterfly", "idx": "index"}[i.one_of("up", "down", "bfly", "idx")]
    i.done()
    first, *inside = (p.strip() for p in i.operands[0].split("|"))
    a, b, c, mask = (i.value(n, "u32") for n in (1, 2, 3, 4))
    call = f"emulate::shuffle(emulate::Shuffle::{how}, {mask}, {a}, {b}, {c}, &inside)"
    predicate = i.set(inside[0], "inside") if inside else ""
    return f"{{ bool inside; const uint32_t r = {call}; {i.set(first, 'r')} {predicate} }}"


@opcode("vote")
def vote(i: Instruction) -> str:
    i.flag("sync")
    i.type("pred", "b32")
    how = i.one_of("all", "any", "uni", "ballot")
    i.done()
    p, mask = i.value(1, "pred"), i.value(2, "u32")
    result = {"all": "votes == mask", "any": "votes != 0", "uni": "votes == 0 || votes == mask", "ballot": "votes"}[how]
    code = f"const uint32_t mask = {mask}, votes = emulate::ballot(mask, {p});"
    return f"{{ {code} {i.set(0, result)} }}"


@opcode("match")
def match(i: Instruction) -> str:
    kind = i.type("b32", "b64")
    how = i.one_of("any", "all")
    i.flag("sync")
    i.done()
    first, *all_equal = (p.strip() for p in i.operands[0].split("|"))
    call = f"emulate::match_{how}({i.value(2, 'u32')}, {i.value(1, kind)})"
    predicate = i.set(all_equal[0], "r != 0") if all_equal else ""
    return f"{{ const uint32_t r = {call}; {i.set(first, 'r')} {predicate} }}"


@opcode("redux")
def redux(i: Instruction) -> str:
    kind = i.type("u32", "s32", "b32", "f32")
    i.flag("sync")
    how = i.one_of("add", "min", "max", "and", "or", "xor")
    if kind == "f32":
        function = f"ptx::reduce_float<{i.mode()}, {str(how == 'max').lower()}>({i.value(2, 'u32')}, "
    else:
        name = how + "_" * (how in ("and", "or", "xor"))
        function = f"emulate::reduce<{TYPES[kind]}>(emulate::Reduce::{name}, {i.value(2, 'u32')}, "
    i.done()
    return i.set(0, function + i.value(1, kind) + ")")


@opcode("elect")
def elect(i: Instruction) -> str:
    i.flag("sync")
    i.done()
    leader, chosen = (p.strip() for p in i.operands[0].split("|"))
    call = f"uint32_t l; const bool c = ptx::elect({i.value(1, 'u32')}, l);"
    return f"{{ {call} {i.set(leader, 'l')} {i.set(chosen, 'c')} }}"


#: (shape, types of D, A, B, C): the shim's number type, and M and K.
_MMA = {
    ("m16n8k16", "f32 bf16 bf16 f32"): ("Bf16", 16, 16),
    ("m16n8k16", "f32 f16 f16 f32"): ("Fp16", 16, 16),
    ("m16n8k8", "f32 bf16 bf16 f32"): ("Bf16", 16, 8),
    ("m16n8k8", "f32 f16 f16 f32"): ("Fp16", 16, 8),
    ("m8n8k4", "f64 f64 f64 f64"): ("Fp64", 8, 4),
    ("m16n8k4", "f64 f64 f64 f64"): ("Fp64", 16, 4),
    ("m16n8k8", "f64 f64 f64 f64"): ("Fp64", 16, 8),
    ("m16n8k16", "f64 f64 f64 f64"): ("Fp64", 16, 16),
}


@opcode("mma")
def mma(i: Instruction) -> str:
    for name in ("sync", "aligned", "row", "col"):
        if not i.flag(name):
            raise i.refuse(f"expected .{name}")
    i.one_of("rn", default="rn")
    shape, *types = i._left
    if (shape, " ".join(types)) not in _MMA:
        raise i.refuse("unsupported matrix product")
    number, m, k = _MMA[shape, " ".join(types)]
    part, total = ("f64", "f64") if number == "Fp64" else ("u32", "f32")
    d, a, b, c = (i.list(n) for n in range(4))
    t, s = TYPES[part], TYPES[total]
    arrays = f"{s} d[{len(d)}] = {{{', '.join(i.value(x, total) for x in c)}}}; "
    for name, registers in (("a", a), ("b", b)):
        arrays += f"const {t} {name}[{len(registers)}] = {{{', '.join(i.value(x, part) for x in registers)}}}; "
    call = f"emulate::multiply_accumulate<emulate::{number}, {s}, {m}, {k}>(d, a, b);"
    return f"{{ {arrays}{call} {' '.join(i.set(x, f'd[{n}]') for n, x in enumerate(d))} }}"


def _jump(i: Instruction, label: str) -> str:
    """A goto; jumps back are counted, so that a loop that never waits is found."""
    if label not in i.context.labels:
        raise i.refuse(f"unknown label {label}")
    back = "emulate::count_step(); " if i.context.labels[label] <= i.context.position else ""
    return f"{{ {back}goto {label_name(label)}; }}"


@opcode("bra")
def branch(i: Instruction) -> str:
    i.flag("uni")
    i.done()
    return _jump(i, i.operands[0])


@opcode("brx")
def branch_indexed(i: Instruction) -> str:
    i.flag("idx")
    i.flag("uni")
    i.done()
    cases = " ".join(f"case {n}: {_jump(i, label)}" for n, label in enumerate(i.context.targets[i.operands[1]]))
    return f'switch ({i.value(0, "u32")}) {{ {cases} default: emulate::fail("brx.idx beyond its table"); }}'


@opcode("ret", "exit")
def leave(i: Instruction) -> str:
    i.flag("uni")
    i.done()
    return "return;"


@opcode("trap", "brkpt")
def trap(i: Instruction) -> str:
    return 'emulate::fail("trap");'


@opcode("call")
def call(i: Instruction) -> str:
    name = next((x for x in i.operands if x.startswith("__assert") or x == "vprintf"), None)
    if name is None:
        raise i.refuse("unsupported call")
    return f'emulate::fail("the kernel calls {name}");'


@opcode("nanosleep")
def sleep(i: Instruction) -> str:
    return "emulate::overtake();"
