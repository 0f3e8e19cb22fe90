"""Opcodes that compute: integers, floating point, comparisons, conversions, bits."""

from __future__ import annotations

from .instruction import BYTES, FLOATS, TYPES, Instruction
from .opcodes import opcode

_COMPARISONS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_FLIPPED = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"} | {
    "ltu": "leu", "leu": "ltu", "gtu": "geu", "geu": "gtu", "equ": "neu", "neu": "equ"
}  # fmt: skip
_SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_COMPARE_NAMES = (
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
)  # fmt: skip


def _values(i: Instruction, kind: str, first: int = 1) -> str:
    return ", ".join(i.value(n, kind) for n in range(first, len(i.operands)))


#: The same in plain C++, for float and double rounded to nearest.
_PLAIN = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "fused_multiply_add": "__builtin_fma{}({}, {}, {})",
}


def _float(i: Instruction, function: str, kind: str) -> str:
    if kind in ("f32", "f64") and function in _PLAIN and set(i._left) <= {"rn"}:
        values = [i.value(n, kind) for n in range(1, len(i.operands))]
        if function == "fused_multiply_add":
            values.insert(0, "f" if kind == "f32" else "")
        return i.set(0, _PLAIN[function].format(*values), kind)
    mode = i.mode()
    i.done()
    return i.set(0, f"ptx::{function}<{mode}>({_values(i, kind)})")


@opcode("add", "sub")
def add(i: Instruction) -> str:
    kind = i.type()
    name = {"add": "add", "sub": "subtract"}[i.statement.base]
    if kind in FLOATS:
        if i.one_of("f32", default="") and kind in ("f16", "bf16"):  # sm_100: a 16-bit first operand, fp32 otherwise
            mode = i.mode()
            i.done()
            first = f"float(double({i.value(1, kind)}))"
            return i.set(0, f"ptx::{name}<{mode}>({first}, {i.value(2, 'f32')})")
        return _float(i, name, kind)
    if i.flag("cc"):
        i.done()
        wide = f"(uint64_t){i.value(1, 'u32')} {'+' if name == 'add' else '-'} {i.value(2, 'u32')}"
        if kind not in ("u32", "s32"):
            raise i.refuse("carry of other than 32 bits")
        return f"{{ const uint64_t w = {wide}; carry = w >> 32 & 1; {i.set(0, 'uint32_t(w)')} }}"
    if i.flag("sat"):
        i.done()
        wide = f"int64_t({i.value(1, kind)}) {'+' if name == 'add' else '-'} int64_t({i.value(2, kind)})"
        return i.set(0, f"ptx::convert<int32_t, int64_t, ptx::Mode{{.sat = true}}>({wide})")
    i.done()
    u = kind.replace("s", "u")  # wraps around
    return i.set(0, f"{i.value(1, u)} {'+' if name == 'add' else '-'} {i.value(2, u)}", kind)


@opcode("addc", "subc")
def add_with_carry(i: Instruction) -> str:
    kind = i.type("u32", "s32")
    i.flag("cc")
    i.done()
    sign = "+" if i.statement.base == "addc" else "-"
    wide = f"(uint64_t){i.value(1, 'u32')} {sign} {i.value(2, 'u32')} {sign} carry"
    assert kind
    return f"{{ const uint64_t w = {wide}; carry = w >> 32 & 1; {i.set(0, 'uint32_t(w)')} }}"


@opcode("mul", "mad")
def multiply(i: Instruction) -> str:
    kind = i.type()
    base = i.statement.base
    if kind in FLOATS:
        return _float(i, "multiply" if base == "mul" else "fused_multiply_add", kind)
    half = i.one_of("lo", "hi", "wide")
    i.done()
    a, b = i.value(1, kind), i.value(2, kind)
    immediate = not i.operands[2].startswith("%")
    if immediate and (on := i.context.mutate("stride", f"{i.operands[2]} + 1")):
        b = f"{TYPES[kind]}({b} + ({on}))"
    if half == "wide":
        result = kind[0] + str(16 * BYTES[kind])
        product = f"({TYPES[result]}({a}) * {TYPES[result]}({b}))"
    else:
        result, product = kind, f"ptx::multiply_{'low' if half == 'lo' else 'high'}({a}, {b})"
    if base == "mad":
        product = f"ptx::add_integer<{TYPES[result]}>({product}, {i.value(3, result)})"
    return i.set(0, product, result)


@opcode("fma")
def fma(i: Instruction) -> str:
    kind = i.type()
    if i.one_of("f32", default="") and kind in ("f16", "bf16"):
        mode = i.mode()
        i.done()
        a, b = (f"float(double({i.value(n, kind)}))" for n in (1, 2))
        return i.set(0, f"ptx::fused_multiply_add<{mode}>({a}, {b}, {i.value(3, 'f32')})")
    return _float(i, "fused_multiply_add", kind)


@opcode("div")
def divide(i: Instruction) -> str:
    kind = i.type()
    if kind not in FLOATS:
        i.done()
        return i.set(0, f"ptx::divide_integer({_values(i, kind)})")
    how = i.one_of("approx", "full", default="exact")
    if how == "exact":
        return _float(i, "divide", kind)
    mode = i.mode()
    i.done()
    return i.set(0, f"ptx::divide_approx<{mode}, {str(how == 'full').lower()}>({_values(i, 'f32')})")


@opcode("rem")
def remainder(i: Instruction) -> str:
    kind = i.type()
    i.done()
    return i.set(0, f"ptx::remainder({_values(i, kind)})")


@opcode("rcp", "sqrt", "rsqrt")
def roots(i: Instruction) -> str:
    kind, base = i.type("f32", "f64"), i.statement.base
    name = {"rcp": "reciprocal", "sqrt": "sqrt", "rsqrt": "rsqrt"}[base]
    if i.flag("approx"):
        if kind == "f64":
            if base == "sqrt" or not i.flag("ftz"):
                raise i.refuse("unsupported approximation")
            i.done()
            return i.set(0, f"ptx::{name}_gross({i.value(1, kind)})")
        mode = i.mode()
        i.done()
        return i.set(0, f"ptx::{name}_approx<{mode}>({i.value(1, kind)})")
    if base == "rsqrt":
        raise i.refuse("only the approximation exists")
    if base == "sqrt":
        return _float(i, "square_root", kind)
    mode = i.mode()
    i.done()
    return i.set(0, f"ptx::divide<{mode}>({TYPES[kind]}(1), {i.value(1, kind)})")


@opcode("ex2", "lg2", "sin", "cos", "tanh")
def transcendental(i: Instruction) -> str:
    kind = i.type("f32")
    i.flag("approx")
    mode = i.mode()
    i.done()
    name = {"ex2": "exp2", "lg2": "log2"}.get(i.statement.base, i.statement.base)
    return i.set(0, f"ptx::{name}_approx<{mode}>({i.value(1, kind)})")


@opcode("abs", "neg")
def sign(i: Instruction) -> str:
    kind, base = i.type(), i.statement.base
    if kind in FLOATS:
        mode = i.mode()
        i.done()
        a = i.value(1, kind)
        return i.set(0, f"ptx::absolute<{mode}>({a})" if base == "abs" else f"ptx::negate({a})")
    i.done()
    a = i.value(1, kind)
    negative = f"ptx::subtract_integer<{TYPES[kind]}>(0, {a})"
    return i.set(0, f"({a} < 0 ? {negative} : {a})" if base == "abs" else negative)


@opcode("min", "max")
def extreme(i: Instruction) -> str:
    kind, base = i.type(), i.statement.base
    if kind in FLOATS:
        function = f"ptx::extreme<{i.mode()}, {str(base == 'max').lower()}>"
    else:
        function = f"std::{base}<{TYPES[kind]}>"
    i.done()
    result = f"{function}({i.value(1, kind)}, {i.value(2, kind)})"
    if len(i.operands) == 4:
        result = f"{function}({result}, {i.value(3, kind)})"
    return i.set(0, result)


@opcode("copysign")
def copysign(i: Instruction) -> str:
    kind = i.type("f32", "f64")
    i.done()
    return i.set(0, f"ptx::copy_sign({_values(i, kind)})")


@opcode("testp")
def testp(i: Instruction) -> str:
    kind = i.type("f32", "f64")
    test = i.one_of("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    i.done()
    return i.set(0, f"ptx::test<ptx::Test::{test}>({i.value(1, kind)})")


def comparison(i: Instruction, kind: str) -> str:
    """The C++ condition of a setp or set, with its mutant: the bound itself on the other side."""
    name = i.one_of(*_COMPARE_NAMES)
    name = _COMPARISONS.get(name, name)
    if kind[0] == "b" and kind not in FLOATS and name not in ("eq", "ne"):
        raise i.refuse("bits have no order")
    ftz = str(i.flag("ftz")).lower()
    a, b = i.value(1, kind), i.value(2, kind)
    operands = f"({a}, {b})"
    result = f"ptx::compare<ptx::Compare::{name}, {ftz}>{operands}"
    # C++'s own comparisons of floating-point numbers are PTX's ordered ones, but for `!=`.
    if name in _SIGNS and ftz == "false" and (kind not in FLOATS or (kind in ("f32", "f64") and name != "ne")):
        result = f"({a} {_SIGNS[name]} {b})"
    if name in _FLIPPED and (on := i.context.mutate("compare", f"{name} becomes {_FLIPPED[name]}")):
        result = f"(({on}) ? ptx::compare<ptx::Compare::{_FLIPPED[name]}, {ftz}>{operands} : {result})"
    return result


@opcode("setp")
def setp(i: Instruction) -> str:
    kind = i.type()
    condition = comparison(i, kind)
    combine = i.one_of("and", "or", "xor", default="")
    i.done()
    sign = {"and": "&", "or": "|", "xor": "^", "": ""}[combine]
    rest = f" {sign} {i.value(3, 'pred')}" if combine else ""
    first, *second = (p.strip() for p in i.operands[0].split("|"))
    if not second and not combine:
        return i.set(first, condition, "pred")
    code = f"const bool t = {condition}; const bool c = t{rest}, d = !t{rest}; (void)d; {i.set(first, 'c')}"
    return f"{{ {code} {i.set(second[0], 'd') if second else ''} }}"


@opcode("set")
def set_value(i: Instruction) -> str:
    kind = i.type()
    result = i.type("u32", "s32", "f32")
    condition = comparison(i, kind)
    i.done()
    one = "1.0f : 0.0f" if result == "f32" else "0xFFFFFFFFu : 0u"
    return i.set(0, f"({condition} ? {one})")


@opcode("selp")
def selp(i: Instruction) -> str:
    kind = i.type()
    i.done()
    return i.set(0, f"({i.value(3, 'pred')} ? {i.value(1, kind)} : {i.value(2, kind)})", kind)


@opcode("slct")
def slct(i: Instruction) -> str:
    test = i.type("s32", "f32")
    kind = i.type()
    i.flag("ftz")
    i.done()
    return i.set(0, f"({i.value(3, test)} >= 0 ? {i.value(1, kind)} : {i.value(2, kind)})")


@opcode("and", "or", "xor")
def logic(i: Instruction) -> str:
    kind = i.type()
    i.done()
    sign = {"and": "&", "or": "|", "xor": "^"}[i.statement.base]
    return i.set(0, f"{TYPES[kind]}({i.value(1, kind)} {sign} {i.value(2, kind)})", kind)


@opcode("not", "cnot")
def complement(i: Instruction) -> str:
    kind = i.type()
    i.done()
    a = i.value(1, kind)
    plain = kind != "pred" and i.statement.base == "not"
    return i.set(0, f"{TYPES[kind]}({'~' if plain else '!'}{a})")


@opcode("shl", "shr")
def shift(i: Instruction) -> str:
    kind = i.type()
    i.done()
    n = i.value(2, "u32")
    if not i.operands[2].startswith("%") and (on := i.context.mutate("stride", f"shift by {i.operands[2]} + 1")):
        n = f"({n} + ({on}))"
    elif i.operands[2].isdigit() and int(i.operands[2]) < 8 * BYTES[kind]:
        plain = kind if i.statement.base == "shr" else f"u{8 * BYTES[kind]}"
        sign = "<<" if i.statement.base == "shl" else ">>"
        return i.set(0, f"{TYPES[plain]}({i.value(1, plain)}) {sign} {i.operands[2]}", kind)
    name = "shift_left" if i.statement.base == "shl" else "shift_right"
    return i.set(0, f"ptx::{name}({i.value(1, kind)}, {n})")


@opcode("shf")
def funnel(i: Instruction) -> str:
    i.type("b32")
    left, wrap = i.one_of("l", "r") == "l", i.one_of("clamp", "wrap") == "wrap"
    i.done()
    template = f"{str(left).lower()}, {str(wrap).lower()}"
    return i.set(0, f"ptx::funnel<{template}>({_values(i, 'u32')})")


@opcode("bfe")
def bfe(i: Instruction) -> str:
    kind = i.type("u32", "s32", "u64", "s64")
    i.done()
    return i.set(0, f"ptx::extract({i.value(1, kind)}, {i.value(2, 'u32')}, {i.value(3, 'u32')})")


@opcode("bfi")
def bfi(i: Instruction) -> str:
    kind = i.type("b32", "b64")
    i.done()
    values = [i.value(1, kind), i.value(2, kind), i.value(3, "u32"), i.value(4, "u32")]
    return i.set(0, f"ptx::insert({', '.join(values)})")


@opcode("bfind")
def bfind(i: Instruction) -> str:
    kind = i.type("u32", "s32", "u64", "s64")
    amount = str(i.flag("shiftamt")).lower()
    i.done()
    return i.set(0, f"ptx::find_top({i.value(1, kind)}, {amount})")


@opcode("brev", "clz", "popc")
def bits(i: Instruction) -> str:
    kind = i.type("b32", "b64")
    i.done()
    a, wide = i.value(1, kind), kind == "b64"
    name = i.statement.base
    if name == "brev":
        return i.set(0, f"ptx::reverse_bits({a})")
    if name == "clz":
        return i.set(0, f"uint32_t(std::countl_zero({a}))")
    return i.set(0, f"uint32_t(__builtin_popcount{'ll' if wide else ''}({a}))")


@opcode("lop3")
def lop3(i: Instruction) -> str:
    kind = i.type("b32")
    i.done()
    a, b, c = (i.value(n, kind) for n in (1, 2, 3))
    return i.set(0, f"ptx::logic3({a}, {b}, {c}, {i.value(4, 'u32')})")


@opcode("prmt")
def prmt(i: Instruction) -> str:
    mode = i.one_of("f4e", "b4e", "rc8", "ecl", "ecr", "rc16", default="index")
    i.type("b32")
    i.done()
    return i.set(0, f"ptx::permute<ptx::Permute::{mode}>({_values(i, 'u32')})")


@opcode("cvt")
def cvt(i: Instruction) -> str:
    source = i.type()
    if i.flag("tf32"):
        rounding = i.one_of("rna", "rn", "rz")
        i.done()
        return i.set(0, f"ptx::to_tf32<ptx::{rounding}>({i.value(1, source)})")
    kind = i.type()
    finite = str(i.flag("satfinite")).lower()
    whole = i.one_of("rni", "rzi", "rmi", "rpi", default="no")
    mode = i.mode()
    i.done()
    if kind in ("f16x2", "bf16x2"):
        return i.set(0, f"ptx::convert_pair<{TYPES[kind]}, {mode}, {finite}>({_values(i, source)})")
    if source in FLOATS and kind not in FLOATS and whole == "no":
        raise i.refuse("a conversion to an integer without a rounding")
    template = f"{TYPES[kind]}, {TYPES[source]}, {mode}, ptx::Whole::{whole}, {finite}"
    if kind not in FLOATS and source not in FLOATS and "sat" not in i.statement.modifiers:
        return i.set(0, i.value(1, source), kind)
    return i.set(0, f"ptx::convert<{template}>({i.value(1, source)})", kind)
