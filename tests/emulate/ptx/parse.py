"""PTX text to kernels: parameters, registers, symbols in memory, statements. No meaning is given to any opcode here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class UnsupportedPtx(Exception):
    """PTX that the emulator does not know; names the opcode or directive and its line."""


@dataclass(frozen=True)
class Symbol:
    """A parameter, or an array in shared, global, constant or local memory. `bytes` is None for `.extern name[]`."""

    name: str
    align: int
    bytes: int | None
    data: bytes | None = None


@dataclass(frozen=True)
class Statement:
    """`@!%p opcode operands;` at a line of the PTX text; `source` is the .loc in force, e.g. "triton.py:84"."""

    line: int
    guard: str | None
    opcode: str
    operands: tuple[str, ...]
    source: str

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"line {self.line} ({self.source}): {guard}{self.opcode} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Targets:
    """`name: .branchtargets a, b;`, for brx.idx."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Registers:
    """`.reg .type %r<count>` or `.reg .type %a, %b`: C++ sees `names`."""

    type: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Scope:
    opens: bool


Item = Statement | Label | Targets | Registers | Scope


@dataclass
class Kernel:
    name: str
    parameters: list[Symbol]
    body: list[Item] = field(default_factory=list)
    shared: list[Symbol] = field(default_factory=list)
    local: list[Symbol] = field(default_factory=list)
    #: .reqntid: the only block the kernel may be launched with; .maxntid: the most threads.
    required_threads: int | None = None
    most_threads: int | None = None

    @property
    def statements(self) -> list[Statement]:
        return [item for item in self.body if isinstance(item, Statement)]


@dataclass
class Module:
    kernels: dict[str, Kernel]
    shared: list[Symbol]
    memory: list[Symbol]  # .global and .const


SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}
_NAME = r"[\w$%]+"
_ARRAY = re.compile(
    rf"(?:\.align\s+(\d+)\s+)?(?:\.attribute\S*\s+)?\.([bsuf])(\d+)\s+({_NAME})(?:\[(\d*)\])?\s*(?:=\s*(.*))?$", re.S
)


def _symbol(text: str, line: int) -> Symbol:
    found = _ARRAY.search(text)
    if not found:
        raise UnsupportedPtx(f"line {line}: declaration {text!r}")
    align, _, bits, name, count, initial = found.groups()
    size = SIZES[bits]
    data = None
    if initial is not None:
        numbers = re.findall(r"0x[0-9a-fA-F]+|-?\d+", initial)
        if re.search(r"[A-Za-z_$%](?!x)", re.sub(r"0x[0-9a-fA-F]+U?", "", initial)):
            raise UnsupportedPtx(f"line {line}: initial value {initial[:60]!r}")
        data = b"".join((int(n, 0) % (1 << 8 * size)).to_bytes(size, "little") for n in numbers)
    elements = None if count == "" else int(count or 1)
    total = None if elements is None else elements * size
    if data is not None:
        data = data.ljust(total, b"\0")
    return Symbol(name, max(int(align or 1), size), total, data)


def _registers(text: str) -> Registers:
    kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S).groups()
    listed: list[str] = []
    for name in (n.strip() for n in names.split(",")):
        counted = re.fullmatch(r"(%?\w+)<(\d+)>", name)
        listed += [f"{counted[1]}{i}" for i in range(int(counted[2]))] if counted else [name]
    return Registers(kind, tuple(listed))


def _operands(text: str) -> tuple[str, ...]:
    """Splits at the commas outside brackets."""
    out, depth, current = [], 0, ""
    for c in text:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            out.append(current.strip())
            current = ""
        else:
            current += c
    return (*out, current.strip()) if current.strip() else tuple(out)


_MARK = re.compile(r"[;{}()\[\]\n:]")
_DIRECTIVES = (".loc", ".file", ".version", ".target", ".address_size")


def _pieces(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, kind, text) of what is separated by `;`, `{`, `}` (those of a block, not of an operand) and labels."""
    line, begin, start, depth = 1, 1, 0, 0  # `begin`: the line of the first character that is not a space
    for mark in _MARK.finditer(text):
        c, at = mark[0], mark.start()
        so_far = text[start:at].strip()
        if not so_far:
            begin = line
        kind = ""
        if c == "\n":
            line += 1
            begin = begin if so_far else line
            kind = "directive" if so_far.startswith(_DIRECTIVES) else ""
        elif c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == "{" and depth == 0 and (not so_far or _HEADER.match(so_far)):
            kind = "header" if so_far else "open"
        elif c == "{":
            depth += 1
        elif c == "}" and depth == 0:
            kind = "close"
        elif c == "}":
            depth -= 1
        elif c == ";" and depth == 0:
            kind = "statement"
        elif c == ":" and re.fullmatch(_NAME, so_far) and not text.startswith("::", at):
            kind = "label"
        if kind:
            yield begin, kind, so_far
            start = at + 1


_HEADER = re.compile(r"\.(visible|weak|entry|func)\b")
_POINTER = re.compile(r"\.ptr\s*(\.(global|shared|const|local)\s+)?(\.align\s+\d+\s+)?")
_STATEMENT = re.compile(r"(?:@(!?\s*%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_IGNORED = (".pragma", ".minnctapersm", ".maxnreg")


def parse(text: str) -> Module:
    """The kernels of a PTX module. Debugging sections are skipped; other unknown directives are UnsupportedPtx."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text))
    text = re.split(r"^\s*\.section", text, maxsplit=1, flags=re.M)[0]
    module = Module({}, [], [])
    kernel: Kernel | None = None
    depth, source, pending = 0, "?", None
    for line, kind, piece in _pieces(text):
        if kind == "directive":
            if found := re.match(r"\.loc\s+(\d+)\s+(\d+)", piece):
                source = f"{files.get(found[1], '?').rsplit('/', 1)[-1]}:{found[2]}"
        elif kind == "header":
            kernel = _kernel(piece, line)
            module.kernels[kernel.name] = kernel
        elif kernel is None:
            if kind != "statement":
                raise UnsupportedPtx(f"line {line}: {kind} outside a kernel")
            _module_level(module, piece, line)
        elif kind == "open":
            depth += 1
            kernel.body.append(Scope(True))
        elif kind == "close" and depth == 0:
            kernel = None
        elif kind == "close":
            depth -= 1
            kernel.body.append(Scope(False))
        elif kind == "label":
            pending = Label(piece)
            kernel.body.append(pending)
        elif piece.startswith(".branchtargets"):
            kernel.body.remove(pending)
            kernel.body.append(Targets(pending.name, tuple(x.strip() for x in piece[14:].split(","))))
        elif piece.startswith(".reg"):
            kernel.body.append(_registers(piece))
        elif piece.startswith(".shared"):
            kernel.shared.append(_symbol(piece, line))
        elif piece.startswith(".local"):
            kernel.local.append(_symbol(piece, line))
        elif piece.startswith((".param", *_IGNORED)) or not piece:
            continue  # .param: of a call, which is refused or reported when it is reached
        elif found := _STATEMENT.fullmatch(piece):
            guard = found[1].replace(" ", "") if found[1] else None
            kernel.body.append(Statement(line, guard, found[2], _operands(found[3]), source))
        else:
            raise UnsupportedPtx(f"line {line}: {piece[:80]!r}")
    return module


def _kernel(header: str, line: int) -> Kernel:
    found = re.fullmatch(rf"(?:\.(?:visible|weak)\s+)*\.entry\s+({_NAME})\s*(?:\((.*?)\))?\s*(.*)", header, re.S)
    if not found:
        raise UnsupportedPtx(f"line {line}: {header[:80]!r} (a function that is not a kernel)")
    name, parameters, facts = found.groups()
    listed = [_symbol(_POINTER.sub("", p), line) for p in _operands(parameters or "")]
    kernel = Kernel(name, listed)
    for directive, numbers in re.findall(r"\.(\w+)\s+([\d,\s]*)", facts):
        threads = 1
        for n in numbers.split(","):
            threads *= int(n)
        if directive == "reqntid":
            kernel.required_threads = threads
        elif directive == "maxntid":
            kernel.most_threads = threads
        elif directive not in ("minnctapersm", "maxnreg"):
            raise UnsupportedPtx(f"line {line}: .{directive}")
    return kernel


def _module_level(module: Module, piece: str, line: int) -> None:
    if not piece or piece.startswith(".extern .func"):
        return
    if re.match(r"(\.extern\s+|\.visible\s+|\.weak\s+)*\.shared", piece):
        module.shared.append(_symbol(piece, line))
    elif re.match(r"(\.visible\s+|\.weak\s+)*\.(global|const)", piece):
        module.memory.append(_symbol(piece, line))
    else:
        raise UnsupportedPtx(f"line {line}: {piece[:80]!r}")
