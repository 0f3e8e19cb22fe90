"""Opcodes that move data: loads, stores, atomics, asynchronous copies, matrix fragments, addresses."""

from __future__ import annotations

from .instruction import BYTES, FLOATS, TYPES, Instruction
from .opcodes import opcode

_CACHING = (
    "ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", r"L[12]::\w+", r"level::\w+", "weak", "unified", "noftz",
)  # fmt: skip
_ORDER = ("relaxed", "acquire", "release", "acq_rel", "volatile", "mmio")
_SCOPES = ("cta", "cluster", "gpu", "sys")


def _space(i: Instruction, *spaces: str) -> str:
    """The state space; `shared::cta` is `shared`, and none is generic."""
    for name in list(i._left):
        if name.split("::")[0] in (*spaces, "param", "local") and not name.endswith("::cluster"):
            i._left.remove(name)
            return name.split("::")[0]
    return "generic"


def pointer(i: Instruction, space: str, operand: int | str, size: int, access: str) -> str:
    """A checked char* for `size` bytes."""
    _, base, offset = i.address(operand)
    address = f"{base} + {offset}" if offset >= 0 else f"{base} - {-offset}"
    access = f"emulate::Access::{access}"
    if space == "shared":  # a 32-bit space: an address below 0 is one beyond the end
        return f"emulate::shared(uint32_t({address}), {size}, {access})"
    if space in ("global", "const"):
        return f"emulate::global({address}, {size}, {access})"
    if space == "local":
        return f"local.at({address}, {size})"
    return f"ptx::generic(local, {address}, {size}, {access})"


@opcode("ld", "ldu")
def load(i: Instruction) -> str:
    kind = i.type()
    space = _space(i, "global", "shared", "const")
    return _load(i, kind, space, _order(i))


def _order(i: Instruction) -> bool:
    """Whether other threads may come first: everything but a weak access."""
    ordered = i.one_of(*_ORDER, default="") != ""
    if ordered:
        i.one_of(*_SCOPES, default="")
    return ordered


def _load(i: Instruction, kind: str, space: str, ordered: bool) -> str:
    i.drop(*_CACHING)
    count = int(i.one_of("v2", "v4", "v8", default="v1")[1:])
    i.done()
    destinations = i.list(0)
    if len(destinations) != count:
        raise i.refuse(f"expected {count} registers")
    size = count * BYTES[kind]
    if space == "param":
        base, _, offset = i.address(1)
        context = i.context
        if base in context.parameters:
            if context.parameters[base] + offset + size > context.parameter_bytes:
                raise i.refuse("beyond the parameters")
            p = f"parameters + {context.parameters[base] + offset}"
        elif base in context.registers:
            p = f"ptx::parameter(parameters, {context.parameter_bytes}, {i.value(base, 'u64')} + {offset}, {size})"
        else:
            raise i.refuse("the result of a call")
    else:
        p = pointer(i, space, 1, size, "load")
    reads = " ".join(i.set(d, f"ptx::load<{TYPES[kind]}>(p, {n})", kind) for n, d in enumerate(destinations))
    return f"{{ {'emulate::overtake(); ' if ordered else ''}const char* const p = {p}; {reads} }}"


@opcode("st")
def store(i: Instruction) -> str:
    kind = i.type()
    space = _space(i, "global", "shared")
    if space == "param":
        return ";"  # an argument of a call, which is reported when it is reached
    ordered = _order(i)
    i.drop(*_CACHING)
    count = int(i.one_of("v2", "v4", "v8", default="v1")[1:])
    i.done()
    values = i.list(1)
    if len(values) != count:
        raise i.refuse(f"expected {count} registers")
    p = pointer(i, space, 0, count * BYTES[kind], "store")
    writes = " ".join(f"ptx::store<{TYPES[kind]}>(p, {n}, {i.value(v, kind)});" for n, v in enumerate(values))
    return f"{{ {'emulate::overtake(); ' if ordered else ''}char* const p = {p}; {writes} }}"


@opcode("atom", "red")
def atomic(i: Instruction) -> str:
    kind = i.type()
    i.one_of(*_ORDER[:4], default="")
    i.one_of(*_SCOPES, default="")
    space = _space(i, "global", "shared")
    how = i.one_of("add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec")
    i.drop(*_CACHING)
    i.done()
    first = 1 if i.statement.base == "atom" else 0
    t = TYPES[kind]
    p = pointer(i, space, first, BYTES[kind], "store")
    b = i.value(first + 1, kind)
    if kind in FLOATS:
        mode = "ptx::Mode{.ftz = true}" if kind == "f32" and space == "global" else "ptx::Mode{}"
        new = {"add": f"ptx::add<{mode}>(old, b)", "exch": "b"}
        new |= {m: f"ptx::extreme<ptx::Mode{{}}, {str(m == 'max').lower()}>(old, b)" for m in ("min", "max")}
    else:
        new = {"add": "ptx::add_integer(old, b)", "and": "old & b", "or": "old | b", "xor": "old ^ b", "exch": "b"}
        new |= {"min": "std::min(old, b)", "max": "std::max(old, b)"}
        new |= {"inc": f"old >= b ? {t}(0) : {t}(old + 1)", "dec": f"old == 0 || old > b ? b : {t}(old - 1)"}
        if how == "cas":
            new["cas"] = f"old == b ? {i.value(first + 2, kind)} : old"
    if how not in new:
        raise i.refuse("unsupported atomic")
    call = f"ptx::read_modify_write<{t}>({p}, [=]({t} old) -> {t} {{ return {new[how]}; }})"
    return f"{{ const {t} b = {b}; (void)b; {i.set(0, call) if first else call + ';'} }}"


@opcode("cp")
def copy(i: Instruction) -> str:
    if not i.flag("async"):
        raise i.refuse("unsupported copy")
    if i.flag("commit_group"):
        i.done()
        return "emulate::commit_copies();"
    if i.flag("wait_all"):
        i.done()
        return "emulate::wait_all_copies();"
    if i.flag("wait_group"):
        i.done()
        return f"emulate::wait_copies({i.value(0, 'u32')});"
    i.one_of("ca", "cg")
    if not (i.flag("shared") or i.flag("shared::cta")) or not i.flag("global"):
        raise i.refuse("expected .shared.global")
    hinted = "L2::cache_hint" in i.statement.modifiers
    i.drop(*_CACHING)
    i.done()
    rest = i.operands[2 : len(i.operands) - hinted]
    size = int(rest[0], 0)
    if len(rest) == 2 and i.context.registers.get(rest[1].lstrip("!")) == "pred":
        bytes_ = f"({i.value(rest[1], 'pred')} ? 0u : {size}u)"  # ignore-src
    elif len(rest) == 2:
        bytes_ = i.value(rest[1], "u32")
    else:
        bytes_ = f"{size}u"
    _, to, to_offset = i.address(0)
    _, source, offset = i.address(1)
    to = f"emulate::shared(uint32_t({to} + {to_offset}), {size}, emulate::Access::store)"
    source = f"reinterpret_cast<const void*>({source} + {offset})"
    return f"emulate::copy_async({to}, {source}, {size}, {bytes_});"


@opcode("ldmatrix")
def ldmatrix(i: Instruction) -> str:
    count, transposed = _matrix(i)
    registers = i.list(0)
    _, base, offset = i.address(1)
    sets = " ".join(i.set(r, f"m[{n}]") for n, r in enumerate(registers))
    row = _row(base, offset, count, "load")
    return f"{{ uint32_t m[{count}]; emulate::load_matrix<{count}, {transposed}>(m, {row}); {sets} }}"


@opcode("stmatrix")
def stmatrix(i: Instruction) -> str:
    count, transposed = _matrix(i)
    values = ", ".join(i.value(v, "u32") for v in i.list(1))
    _, base, offset = i.address(0)
    row = _row(base, offset, count, "store")
    return f"{{ const uint32_t m[{count}] = {{{values}}}; ptx::store_matrix<{count}, {transposed}>(m, {row}); }}"


def _matrix(i: Instruction) -> tuple[int, str]:
    i.type("b16")
    for name in ("sync", "aligned", "m8n8"):
        if not i.flag(name):
            raise i.refuse(f"expected .{name}")
    count, transposed = int(i.one_of("x1", "x2", "x4")[1:]), str(i.flag("trans")).lower()
    if _space(i, "shared") != "shared":
        raise i.refuse("expected .shared")
    i.done()
    return count, transposed


def _row(base: str, offset: int, count: int, access: str) -> str:
    """The lane's row; lanes beyond the last matrix may pass anything."""
    row = f"emulate::shared(uint32_t({base} + {offset}), 16, emulate::Access::{access})"
    return f"(emulate::this_thread().lane() < {8 * count} ? {row} : nullptr)"


@opcode("cvta")
def cvta(i: Instruction) -> str:
    kind = i.type("u64", "u32")
    to = i.flag("to")
    space = i.one_of("global", "shared", "shared::cta", "local", "const", "param").split("::")[0]
    i.done()
    a = i.value(1, kind)
    if space == "param":
        raise i.refuse("the generic address of a parameter")
    if space == "shared":
        a = f"ptx::generic_to_shared({a})" if to else f"ptx::shared_base() + {a}"
    return i.set(0, f"static_cast<{TYPES[kind]}>({a})")


@opcode("isspacep")
def isspacep(i: Instruction) -> str:
    space = i.one_of("global", "shared", "shared::cta", "local", "const").split("::")[0]
    i.done()
    a = i.value(1, "u64")
    elsewhere = f"emulate::is_shared({a}) || local.holds({a})"
    conditions = {"shared": f"emulate::is_shared({a})", "local": f"local.holds({a})", "global": f"!({elsewhere})"}
    return i.set(0, conditions.get(space, "false"))


@opcode("createpolicy")
def createpolicy(i: Instruction) -> str:
    return i.set(0, "uint64_t(0)")


@opcode("prefetch", "prefetchu")
def prefetch(i: Instruction) -> str:
    return ";"


@opcode("membar", "fence")
def fence(i: Instruction) -> str:
    i.one_of("sc", "acq_rel", "acquire", "release", default="")
    i.one_of("cta", "gl", "sys", "gpu", "cluster")
    i.done()
    return "emulate::fence();"


@opcode("mov")
def mov(i: Instruction) -> str:
    kind = i.type()
    i.done()
    packed, parts = i.list(1), i.list(0)
    if len(parts) > 1 or i.operands[0].startswith("{"):
        width = 8 * BYTES[kind] // len(parts)
        value = i.value(1, f"u{8 * BYTES[kind]}")
        sets = " ".join(i.set(p, f"uint{width}_t(w >> {n * width})") for n, p in enumerate(parts))
        return f"{{ const uint{8 * BYTES[kind]}_t w = {value}; {sets} }}"
    if i.operands[1].startswith("{"):
        width, whole = 8 * BYTES[kind] // len(packed), f"uint{8 * BYTES[kind]}_t"
        bits = (f"{whole}({i.value(p, f'u{width}')}) << {n * width}" for n, p in enumerate(packed))
        return i.set(0, f"{whole}({' | '.join(f'({b})' for b in bits)})")
    return i.set(0, i.value(1, kind), kind)
