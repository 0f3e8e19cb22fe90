"""What each family of PTX opcodes computes: small hand-written kernels with known answers, edge cases first.

ptxas assembles every one of them too, where it is installed, so that they are PTX and not only what we take for it.
"""

from __future__ import annotations

import math
import re
import shutil
import struct
import subprocess
from pathlib import Path

import gpu_builds
import numpy as np
import pytest

pytest.importorskip("emulate.ptx.run")
from emulate.ptx.parse import UnsupportedPtx, parse
from emulate.ptx.run import SCHEDULES, Buffer, Emulator, KernelFailure, Run
from emulate.ptx.translate import translate

HEAD = ".version 8.0\n.target sm_{arch}\n.address_size 64\n"
LOCKSTEP = Run()
NAN, INF = math.nan, math.inf


def f32(x: float) -> str:
    return f"0f{struct.unpack('I', struct.pack('f', x))[0]:08X}"


def f64(x: float) -> str:
    return f"0d{struct.unpack('Q', struct.pack('d', x))[0]:016X}"


def half(x: float) -> int:
    return int(np.float16(x).view(np.uint16))


def brain(x: float) -> int:
    return struct.unpack("I", struct.pack("f", x))[0] >> 16


#: Registers each snippet may use: a, b, c hold what `set` puts there; the answer goes to `d`.
REGISTERS = {"b16": "h", "b32": "r", "b64": "l", "pred": "p"}
#: (instructions, answer). %rd, %ld, %hd, %pd: the result, of 32, 64, 16 bits, a predicate. %ra ... are scratch.
ANSWERS = {
    "integers": [
        ("add.s32 %rd, 2147483647, 1;", 0x80000000),
        ("add.sat.s32 %rd, 2147483647, 1;", 0x7FFFFFFF),
        ("add.cc.u32 %ra, 0xFFFFFFFF, 1; addc.u32 %rd, 1, 1;", 3),
        ("sub.cc.u32 %ra, 0, 1; subc.u32 %rd, 5, 1;", 3),
        ("sub.s64 %ld, 0, 1;", 2**64 - 1),
        ("mul.lo.s32 %rd, 65536, 65537;", 0x10000),
        ("mul.hi.s32 %rd, -1, 1;", 0xFFFFFFFF),
        ("mul.hi.u32 %rd, 0xFFFFFFFF, 0xFFFFFFFF;", 0xFFFFFFFE),
        ("mov.u64 %la, 0x8000000000000000; mul.hi.s64 %ld, %la, 2;", 2**64 - 1),
        ("mov.u64 %la, 0xFFFFFFFFFFFFFFFF; mul.hi.u64 %ld, %la, %la;", 2**64 - 2),
        ("mul.wide.s32 %ld, -2, 3;", 2**64 - 6),
        ("mul.wide.u32 %ld, 0xFFFFFFFE, 3;", 0xFFFFFFFE * 3),
        ("mov.u16 %ha, 0xFFFF; mul.wide.u16 %rd, %ha, %ha;", 0xFFFE0001),
        ("mad.lo.s32 %rd, -3, 4, 5;", 2**32 - 7),
        ("mad.wide.s32 %ld, -3, 4, 5;", 2**64 - 7),
        ("mad.hi.u32 %rd, 0x80000000, 4, 1;", 3),
        ("div.s32 %rd, -7, 2;", 2**32 - 3),
        ("rem.s32 %rd, -7, 2;", 2**32 - 1),
        ("div.u64 %ld, 10000000000, 3;", 3333333333),
        ("rem.u64 %ld, 10000000000, 3;", 1),
        ("mov.u32 %ra, 0x80000000; div.s32 %rd, %ra, -1;", 0x80000000),
        ("neg.s32 %rd, -5;", 5),
        ("abs.s32 %rd, -5;", 5),
        ("min.s32 %rd, -1, 1;", 0xFFFFFFFF),
        ("min.u32 %rd, 0xFFFFFFFF, 1;", 1),
        ("max.s64 %ld, -1, 1;", 1),
    ],
    "bits": [
        ("shl.b32 %rd, 1, 31;", 0x80000000),
        ("mov.u32 %ra, 32; shl.b32 %rd, 1, %ra;", 0),
        ("mov.u32 %ra, 40; mov.u32 %rb, 0x80000000; shr.s32 %rd, %rb, %ra;", 0xFFFFFFFF),
        ("mov.u32 %ra, 40; mov.u32 %rb, 0x80000000; shr.u32 %rd, %rb, %ra;", 0),
        ("mov.u32 %ra, 64; shl.b64 %ld, 1, %ra;", 0),
        ("shr.s64 %ld, -8, 1;", 2**64 - 4),
        ("shf.l.wrap.b32 %rd, 0x80000001, 0x12345678, 36;", 0x23456788),
        ("shf.l.clamp.b32 %rd, 0x80000001, 0x12345678, 36;", 0x80000001),
        ("shf.r.wrap.b32 %rd, 0x80000001, 0x12345678, 4;", 0x88000000),
        ("shf.r.clamp.b32 %rd, 0x80000001, 0x12345678, 99;", 0x12345678),
        ("bfe.u32 %rd, 0xABCD1234, 8, 8;", 0x12),
        ("bfe.s32 %rd, 0xABCD1284, 0, 8;", 0xFFFFFF84),
        ("bfe.s32 %rd, 0xABCD1284, 28, 8;", 0xFFFFFFFA),
        ("bfe.u64 %ld, 0xABCD1284, 40, 8;", 0),
        ("bfe.s32 %rd, 0xABCD1284, 0, 0;", 0),
        ("bfi.b32 %rd, 0xFF, 0, 28, 8;", 0xF0000000),
        ("bfi.b64 %ld, 0xFF, 0, 32, 4;", 0xF << 32),
        ("bfind.u32 %rd, 0x00010000;", 16),
        ("bfind.shiftamt.u32 %rd, 0x00010000;", 15),
        ("bfind.s32 %rd, -1;", 0xFFFFFFFF),
        ("bfind.s64 %rd, -256;", 7),
        ("brev.b32 %rd, 1;", 0x80000000),
        ("brev.b64 %ld, 1;", 1 << 63),
        ("clz.b32 %rd, 0;", 32),
        ("clz.b64 %rd, 1;", 63),
        ("popc.b64 %rd, 0x8000000000000001;", 2),
        ("lop3.b32 %rd, 0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA, 0x1A;", 0x1A1A1A1A),
        ("prmt.b32 %rd, 0x33221100, 0x77665544, 0x7610;", 0x77661100),
        ("prmt.b32 %rd, 0x332211F0, 0x77665544, 0x0098;", 0xF0F000FF),
        ("prmt.b32.f4e %rd, 0x33221100, 0x77665544, 3;", 0x66554433),
        ("prmt.b32.b4e %rd, 0x33221100, 0x77665544, 1;", 0x66770011),
        ("prmt.b32.rc8 %rd, 0x33221100, 0x77665544, 2;", 0x22222222),
        ("prmt.b32.ecl %rd, 0x33221100, 0x77665544, 2;", 0x33222222),
        ("prmt.b32.ecr %rd, 0x33221100, 0x77665544, 2;", 0x22221100),
        ("prmt.b32.rc16 %rd, 0x33221100, 0x77665544, 1;", 0x33223322),
        ("not.b32 %rd, 1;", 0xFFFFFFFE),
        ("cnot.b32 %rd, 7;", 0),
        ("and.b64 %ld, 0xFF00FF00FF, 0xF0F0F0F0F0;", 0xFF00FF00FF & 0xF0F0F0F0F0),
        ("mov.b64 %la, {1, 2}; mov.b64 {%ra, %rd}, %la;", 2),
        ("mov.u16 %ha, 7; mov.b32 %rd, {%ha, %ha};", 0x70007),
    ],
    "comparisons": [
        *((f"setp.{c}.f32 %pd, {f32(NAN)}, {f32(1)};", 0) for c in ("eq", "ne", "lt", "le", "gt", "ge", "num")),
        *((f"setp.{c}.f64 %pd, {f64(1)}, {f64(NAN)};", 1) for c in ("equ", "neu", "ltu", "leu", "gtu", "geu", "nan")),
        (f"setp.ne.f32 %pd, {f32(2)}, {f32(1)};", 1),
        (f"setp.geu.f32 %pd, {f32(0)}, {f32(1)};", 0),
        (f"setp.eq.f32 %pd, {f32(0)}, {f32(-0.0)};", 1),
        (f"setp.gt.ftz.f32 %pd, {f32(1e-40)}, {f32(0)};", 0),
        (f"setp.gt.f32 %pd, {f32(1e-40)}, {f32(0)};", 1),
        ("setp.lt.s32 %pd, -1, 0;", 1),
        ("mov.pred %pd, -1;", 1),
        ("mov.pred %pd, 0;", 0),
        ("setp.lt.u32 %pd, 0xFFFFFFFF, 0;", 0),
        ("setp.lo.u32 %pd, 1, 2;", 1),
        ("setp.hs.u32 %pd, 1, 2;", 0),
        ("setp.eq.s32 %pa, 1, 1; setp.lt.and.s32 %pd|%pb, 1, 2, !%pa;", 0),
        ("setp.eq.s32 %pa, 1, 1; setp.lt.and.s32 %pb|%pd, 2, 1, %pa;", 1),
        ("setp.eq.s32 %pa, 1, 1; setp.lt.xor.s32 %pd, 1, 2, %pa;", 0),
        ("setp.eq.s32 %pa, 1, 2; setp.lt.or.s32 %pd, 1, 2, %pa;", 1),
        ("setp.eq.s32 %pa, 1, 2; selp.b32 %rd, 5, 6, %pa;", 6),
        ("set.lt.u32.s32 %rd, 1, 2;", 0xFFFFFFFF),
        (f"set.lt.f32.f32 %rd, {f32(1)}, {f32(2)};", f32(1)),
        ("slct.b32.s32 %rd, 5, 6, -1;", 6),
        ("mov.pred %pa, 1; not.pred %pd, %pa;", 0),
        (f"testp.subnormal.f32 %pd, {f32(1e-40)};", 1),
        (f"testp.normal.f64 %pd, {f64(0)};", 0),
        (f"testp.notanumber.f32 %pd, {f32(NAN)};", 1),
        (f"testp.infinite.f32 %pd, {f32(-INF)};", 1),
    ],
    "floating point": [
        (f"add.rn.f32 %rd, {f32(1)}, {f32(2**-24)};", f32(1)),
        (f"add.rp.f32 %rd, {f32(1)}, {f32(2**-30)};", f32(1 + 2**-23)),
        (f"add.rz.f32 %rd, {f32(-1)}, {f32(2**-30)};", f32(-1 + 2**-24)),
        (f"add.rm.f64 %ld, {f64(1)}, {f64(-(2**-60))};", f64(1 - 2**-53)),
        (f"sub.f64 %ld, {f64(1)}, {f64(3)};", f64(-2)),
        (f"mul.rz.f32 %rd, {f32(1 + 2**-23)}, {f32(1 + 2**-23)};", f32(1 + 2**-22)),
        (f"mul.sat.f32 %rd, {f32(3)}, {f32(3)};", f32(1)),
        (f"add.sat.f32 %rd, {f32(NAN)}, {f32(3)};", f32(0)),
        (f"mul.ftz.f32 %rd, {f32(-1e-20)}, {f32(1e-20)};", f32(-0.0)),
        (f"mul.f32 %rd, {f32(2.0**-100)}, {f32(2.0**-40)};", f32(2.0**-140)),
        (f"fma.rn.f32 %rd, {f32(1 + 2**-12)}, {f32(1 - 2**-12)}, {f32(-1)};", f32(-(2.0**-24))),
        (f"fma.rn.f64 %ld, {f64(1 + 2**-30)}, {f64(1 - 2**-30)}, {f64(-1)};", f64(-(2.0**-60))),
        (f"fma.rz.f32 %rd, {f32(1)}, {f32(1)}, {f32(2**-30)};", f32(1)),
        (f"div.rn.f32 %rd, {f32(1)}, {f32(3)};", f32(1 / 3)),
        (f"div.rn.f64 %ld, {f64(1)}, {f64(0)};", f64(INF)),
        (f"rcp.rn.f32 %rd, {f32(3)};", f32(1 / 3)),
        (f"rcp.rn.f64 %ld, {f64(3)};", f64(1 / 3)),
        (f"sqrt.rn.f64 %ld, {f64(2)};", f64(math.sqrt(2))),
        (f"sqrt.rp.f32 %rd, {f32(4)};", f32(2)),
        (f"min.f32 %rd, {f32(NAN)}, {f32(3)};", f32(3)),
        (f"min.NaN.f32 %rd, {f32(NAN)}, {f32(3)};", "0x7FFFFFFF"),
        (f"max.f32 %rd, {f32(-0.0)}, {f32(0)};", f32(0)),
        (f"min.f64 %ld, {f64(0)}, {f64(-0.0)};", f64(-0.0)),
        (f"max.xorsign.abs.f32 %rd, {f32(-3)}, {f32(2)};", f32(-3)),
        (f"neg.f32 %rd, {f32(0)};", f32(-0.0)),
        (f"abs.f64 %ld, {f64(-2)};", f64(2)),
        (f"copysign.f32 %rd, {f32(-1)}, {f32(5)};", f32(-5)),
    ],
    "16 bits": [
        (f"mov.b16 %ha, {half(1)}; mov.b16 %hb, {half(2**-11)}; add.f16 %hd, %ha, %hb;", half(1)),
        (f"mov.b16 %ha, {half(60000)}; add.f16 %hd, %ha, %ha;", half(INF)),
        (f"mov.b16 %ha, {half(6e-8)}; mov.b16 %hb, {half(0.5)}; mul.rn.f16 %hd, %ha, %hb;", 0),
        (f"mov.b16 %ha, {half(1 + 2**-10)}; mov.b16 %hb, {half(-1)}; fma.rn.f16 %hd, %ha, %ha, %hb;", half(2**-9)),
        (f"mov.b32 %ra, {half(1) | half(2) << 16}; fma.rn.f16x2 %rd, %ra, %ra, %ra;", half(2) | half(6) << 16),
        (f"mov.b32 %ra, {brain(1) | brain(2) << 16}; fma.rn.bf16x2 %rd, %ra, %ra, %ra;", brain(2) | brain(6) << 16),
        (f"mov.b32 %ra, {half(1) | half(2) << 16}; add.rn.f16x2 %rd, %ra, %ra;", half(2) | half(4) << 16),
        (f"mov.b32 %ra, {half(NAN) | half(2) << 16}; mov.b32 %rb, {half(1) | half(3) << 16};"
         "max.f16x2 %rd, %ra, %rb;", half(1) | half(3) << 16),
        (f"mov.b16 %ha, {brain(-2)}; neg.bf16 %hd, %ha;", brain(2)),
        (f"mov.b16 %ha, {brain(1)}; mov.b16 %hb, {brain(3)}; min.bf16 %hd, %ha, %hb;", brain(1)),
        (f"mov.b16 %ha, {half(NAN)}; setp.leu.f16 %pd, %ha, %ha;", 1),
    ],
    "conversions": [
        (f"cvt.rni.s32.f32 %rd, {f32(2.5)};", 2),
        (f"cvt.rzi.s32.f32 %rd, {f32(-2.7)};", 2**32 - 2),
        (f"cvt.rmi.s32.f32 %rd, {f32(-2.1)};", 2**32 - 3),
        (f"cvt.rpi.s64.f64 %ld, {f64(2.1)};", 3),
        (f"cvt.rzi.s32.f32 %rd, {f32(1e20)};", 0x7FFFFFFF),
        (f"cvt.rzi.u32.f32 %rd, {f32(-1)};", 0),
        (f"cvt.rzi.s32.f32 %rd, {f32(NAN)};", 0),
        (f"cvt.rzi.s64.f64 %ld, {f64(1e300)};", 2**63 - 1),
        (f"cvt.rni.f32.f32 %rd, {f32(3.5)};", f32(4)),
        ("cvt.rn.f32.s64 %rd, 9007199791611905;", f32(9007200328482816)),
        ("cvt.rz.f32.u32 %rd, 0xFFFFFFFF;", f32(4294967040)),
        ("cvt.rn.f64.u64 %ld, 3;", f64(3)),
        (f"cvt.rn.f32.f64 %rd, {f64(1 + 2**-24 + 2**-50)};", f32(1 + 2**-23)),
        (f"cvt.rz.f32.f64 %rd, {f64(1 + 2**-23 - 2**-50)};", f32(1)),
        (f"cvt.f64.f32 %ld, {f32(0.5)};", f64(0.5)),
        ("mov.u32 %ra, 0xFFFFFF80; cvt.s32.s8 %rd, %ra;", 0xFFFFFF80),
        ("mov.u16 %ha, 0x8000; cvt.s64.s16 %ld, %ha;", 2**64 - 0x8000),
        ("cvt.sat.u8.s32 %rd, 300;", 255),
        ("cvt.sat.s8.s32 %rd, -300;", 0xFFFFFF80),
        ("cvt.u16.u32 %hd, 0x12345678;", 0x5678),
        (f"cvt.rn.f16.f32 %hd, {f32(65519)};", half(65504)),
        (f"cvt.rn.f16.f32 %hd, {f32(65520)};", 0x7C00),
        (f"cvt.rz.f16.f32 %hd, {f32(1e9)};", half(65504)),
        (f"cvt.rn.f16.f32 %hd, {f32(2**-25 * 1.5)};", 1),
        (f"cvt.rn.bf16.f32 %hd, {f32(1 + 2**-8)};", brain(1)),
        (f"cvt.rn.bf16.f32 %hd, {f32(1 + 3 * 2**-8)};", brain(1 + 2**-6)),
        (f"cvt.rz.bf16.f32 %hd, {f32(1 + 3 * 2**-8)};", brain(1 + 2**-7)),
        (f"cvt.rn.bf16.f32 %hd, {f32(NAN)};", 0x7FFF),
        (f"cvt.rn.relu.bf16.f32 %hd, {f32(-2)};", 0),
        (f"cvt.rn.bf16x2.f32 %rd, {f32(1)}, {f32(2)};", brain(1) << 16 | brain(2)),
        (f"cvt.rn.f16x2.f32 %rd, {f32(1)}, {f32(2)};", half(1) << 16 | half(2)),
        (f"mov.b16 %ha, {half(1.5)}; cvt.f32.f16 %rd, %ha;", f32(1.5)),
        (f"mov.b16 %ha, {brain(1.5)}; cvt.f32.bf16 %rd, %ha;", f32(1.5)),
        (f"mov.b16 %ha, {half(6e-8)}; cvt.f32.f16 %rd, %ha;", f32(2**-24)),
        (f"cvt.rna.tf32.f32 %rd, {f32(1 + 2**-11)};", f32(1 + 2**-10)),
        (f"cvt.sat.f32.f32 %rd, {f32(7)};", f32(1)),
    ],
    "approximations": [
        (f"ex2.approx.f32 %rd, {f32(0)};", f32(1)),
        (f"ex2.approx.f32 %rd, {f32(-INF)};", f32(0)),
        (f"ex2.approx.f32 %rd, {f32(-140)};", f32(2.0**-140)),
        (f"ex2.approx.ftz.f32 %rd, {f32(-140)};", f32(0)),
        (f"lg2.approx.f32 %rd, {f32(0)};", f32(-INF)),
        (f"rcp.approx.f32 %rd, {f32(-0.0)};", f32(-INF)),
        (f"rcp.approx.ftz.f64 %ld, {f64(4)};", f64(0.25)),
        (f"rsqrt.approx.f32 %rd, {f32(INF)};", f32(0)),
        (f"sqrt.approx.f32 %rd, {f32(0)};", f32(0)),
        (f"div.approx.f32 %rd, {f32(1)}, {f32(2.0**127)};", f32(0)),
        (f"div.full.f32 %rd, {f32(6)}, {f32(0)};", f32(INF)),
        (f"tanh.approx.f32 %rd, {f32(0)};", f32(0)),
    ],
    "control": [
        ("mov.u32 %rd, 1; mov.pred %pa, 0; @%pa mov.u32 %rd, 2; @!%pa add.u32 %rd, %rd, 4;", 5),
        ("mov.u32 %rd, 0; $again: add.u32 %rd, %rd, 1; setp.lt.u32 %pa, %rd, 9; @%pa bra $again;", 9),
        ("mov.u32 %ra, 1; table: .branchtargets $x, $y; brx.idx %ra, table; $x: mov.u32 %rd, 3; bra.uni $z;"
         "$y: mov.u32 %rd, 4; $z:", 4),
        ("{ .reg .b32 %rd2; mov.b32 %rd2, 6; mov.b32 %rd, %rd2; }", 6),
        ("mov.u32 %rd, %ntid.x;", 1),
        ("mov.u32 %rd, %nctaid.z;", 1),
        ("mov.u32 %ra, WARP_SZ; mov.u32 %rd, %ra;", 32),
    ],
}  # fmt: skip


def kernel_of(name: str, answers: list[tuple]) -> str:
    """One kernel that stores every answer, as 64 bits, one after another."""
    scratch = "".join(
        f".reg .{kind} {', '.join(f'%{letter}{x}' for x in 'abcd')};\n" for kind, letter in REGISTERS.items()
    )
    body = ["ld.param.u64 %out, [out];"]
    for n, (code, _) in enumerate(answers):
        kind = re.findall(r"%([hrlp])d\b", code)[-1]
        code = re.sub(r"\$(\w+)|\btable\b", lambda m, n=n: f"{m[0]}_{n}", code)
        to64 = {"r": "cvt.u64.u32 %store, %rd;", "l": "mov.b64 %store, %ld;", "h": "cvt.u64.u16 %store, %hd;",
                "p": "selp.b64 %store, 1, 0, %pd;"}[kind]  # fmt: skip
        body += [code, to64, f"st.global.u64 [%out+{8 * n}], %store;"]
    head = f".visible .entry {name}(.param .u64 out)\n{{\n.reg .b64 %out, %store;\n"
    return head + scratch + "\n".join(body) + "\nret;\n}\n"


def number(answer: int | str) -> int:
    return answer if isinstance(answer, int) else int(answer.replace("0f", "0x").replace("0d", "0x"), 16)


def ptxas() -> str | None:
    if found := shutil.which("ptxas"):
        return found
    bundled = gpu_builds.triton and Path(gpu_builds.triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    return str(bundled) if bundled and bundled.exists() else None


def launch(emulator: Emulator, text: str, kernel: str, threads: int, arrays: list[np.ndarray], run: Run = LOCKSTEP):
    buffers = [Buffer(a.ctypes.data, a.nbytes, True, f"array {n}") for n, a in enumerate(arrays)]
    parameters = b"".join(struct.pack("Q", a.ctypes.data) for a in arrays)
    emulator.library(text).launch(kernel, (1,), (threads,), parameters, buffers, 0, run)


def all_answers() -> str:
    kernels = (kernel_of(family.replace(" ", "_").replace("16", "sixteen"), ANSWERS[family]) for family in ANSWERS)
    return HEAD.format(arch=86) + "".join(kernels)


@pytest.mark.parametrize("family", ANSWERS)
def test_answers(family, emulator):
    answers = ANSWERS[family]
    out = np.full(len(answers), 0xDEAD, np.uint64)
    launch(emulator, all_answers(), family.replace(" ", "_").replace("16", "sixteen"), 1, [out])
    wrong = [
        (code, hex(int(got)), hex(number(want)))
        for (code, want), got in zip(answers, out, strict=True)
        if int(got) != number(want)
    ]
    assert not wrong


@pytest.mark.parametrize(("arch", "text"), [(86, "all_answers"), (80, "lanes"), (80, "products")])
def test_is_ptx(arch, text, tmp_path):
    tool = ptxas()
    if tool is None:
        pytest.skip("ptxas is not installed (it comes with triton)")
    (tmp_path / "x.ptx").write_text({"all_answers": all_answers, "lanes": lanes, "products": products}[text]())
    command = [tool, f"-arch=sm_{arch}", str(tmp_path / "x.ptx"), "-o", str(tmp_path / "x.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


#: Of each lane: what it stores, and what lane `l` must hold. %l is the lane, %r0 an answer.
LANES = {
    "shfl.sync.up.b32 %r0|%p0, %lane, 3, 0, -1; @!%p0 add.u32 %r0, %r0, 100;": lambda l: l - 3 if l >= 3 else l + 100,
    "shfl.sync.down.b32 %r0, %lane, 3, 31, -1;": lambda l: l + 3 if l + 3 < 32 else l,
    "shfl.sync.bfly.b32 %r0, %lane, 5, 31, -1;": lambda l: l ^ 5,
    "shfl.sync.idx.b32 %r0, %lane, 2, 0x181F, -1;": lambda l: (l & 24) + 2,
    "shfl.sync.down.b32 %r0, %lane, 1, 0x181F, -1;": lambda l: l + 1 if l % 8 < 7 else l,
    "setp.gt.u32 %p0, %lane, 29; vote.sync.ballot.b32 %r0, %p0, -1;": lambda l: 0xC0000000,
    "setp.gt.u32 %p0, %lane, 29; vote.sync.any.pred %p1, %p0, -1; selp.u32 %r0, 1, 0, %p1;": lambda l: 1,
    "setp.gt.u32 %p0, %lane, 29; vote.sync.all.pred %p1, !%p0, -1; selp.u32 %r0, 1, 0, %p1;": lambda l: 0,
    "and.b32 %r1, %lane, 1; match.any.sync.b32 %r0, %r1, -1;": lambda l: 0xAAAAAAAA if l % 2 else 0x55555555,
    "match.all.sync.b32 %r1|%p0, 7, -1; selp.u32 %r0, %r1, 9, %p0;": lambda l: 0xFFFFFFFF,
    "redux.sync.add.s32 %r0, %lane, -1;": lambda l: 496,
    "sub.s32 %r1, %lane, 5; redux.sync.min.s32 %r0, %r1, -1;": lambda l: 2**32 - 5,
    "redux.sync.xor.b32 %r0, %lane, -1;": lambda l: 0,
    "mov.u32 %r0, %laneid;": lambda l: l,
    "mov.u32 %r0, %lanemask_lt;": lambda l: (1 << l) - 1,
    # Through shared memory, to the lane opposite.
    "shl.b32 %r1, %lane, 2; st.shared.u32 [tile+%0], %lane;".replace("[tile+%0]", "[%r4]")
    + "bar.sync 0; sub.u32 %r2, 124, %r1; add.u32 %r2, %r2, %r3; ld.shared.u32 %r0, [%r2];": lambda l: 31 - l,
    # Atomics: each sees what came before; the sum is that of all.
    "atom.shared.add.u32 %r1, [tile+256], %lane; bar.sync 0; ld.shared.u32 %r0, [tile+256];": None,
    "red.shared.max.s32 [tile+260], %lane; bar.sync 0; ld.shared.u32 %r0, [tile+260];": lambda l: 31,
    f"red.shared.add.f64 [tile+264], {f64(0.5)}; bar.sync 0; ld.shared.f64 %f0, [tile+264];"
    "cvt.rzi.u32.f64 %r0, %f0;": lambda l: 16,
    "atom.shared.cas.b32 %r1, [tile+272], 0, 5; bar.sync 0; ld.shared.u32 %r0, [tile+272];": lambda l: 5,
    "atom.shared.inc.u32 %r1, [tile+276], 30; bar.sync 0; ld.shared.u32 %r0, [tile+276];": lambda l: 1,
    "bar.warp.sync -1; mov.u32 %r0, 3;": lambda l: 3,
    # Vectors, generic addresses, asynchronous copies.
    "st.shared.v4.b32 [%r5], {%lane, 1, 2, 3}; cvta.shared.u64 %l0, %l1; ld.u32 %r0, [%l0+4];"
    "bar.sync 0;": lambda l: 1,
    "isspacep.shared %p0, %out; isspacep.global %p1, %out; selp.u32 %r1, 1, 0, %p0; selp.u32 %r2, 2, 0, %p1;"
    "add.u32 %r0, %r1, %r2;": lambda l: 2,
    "cp.async.ca.shared.global [%r4], [%in], 4; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;"
    "ld.shared.u32 %r0, [%r4];": lambda l: 1000 + l,
    "cp.async.ca.shared.global [%r4], [%in], 4, 0; cp.async.wait_all; bar.sync 0;"
    "ld.shared.u32 %r0, [%r4];": lambda l: 0,
    "createpolicy.fractional.L2::evict_first.b64 %l0, 1.0; ld.global.nc.L1::no_allocate.L2::cache_hint.b32 %r0,"
    " [%in], %l0;": lambda l: 1000 + l,
}  # fmt: skip


def lanes() -> str:
    body = []
    for n, code in enumerate(LANES):
        body += [code, f"st.global.u32 [%out+{128 * n}], %r0;", "bar.sync 0;"]
    return f"""{HEAD.format(arch=80)}
.visible .entry lanes(.param .u64 out, .param .u64 in)
{{
.reg .b32 %lane, %r<8>; .reg .pred %p<3>; .reg .b64 %out, %in, %l<4>; .reg .f64 %f0;
.shared .align 16 .b8 tile[512];
ld.param.u64 %out, [out]; ld.param.u64 %in, [in];
cvta.to.global.u64 %out, %out; cvta.to.global.u64 %in, %in;
mov.u32 %lane, %tid.x; mul.wide.u32 %l2, %lane, 4; add.s64 %out, %out, %l2; add.s64 %in, %in, %l2;
mov.u32 %r3, tile; mad.lo.u32 %r4, %lane, 4, %r3; and.b32 %r5, %lane, 7; mad.lo.u32 %r5, %r5, 16, %r3;
cvt.u64.u32 %l1, %r5;
setp.lt.u32 %p0, %lane, 8; mad.lo.u32 %r6, %lane, 4, %r3; @%p0 st.shared.u32 [%r6+256], 0; bar.sync 0;
{chr(10).join(body)}
ret;
}}
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes(schedule, emulator):
    out, data = np.full((len(LANES), 32), 0xDEAD, np.uint32), np.arange(1000, 1032, dtype=np.uint32)
    launch(emulator, lanes(), "lanes", 32, [out, data], Run(schedule))
    for row, (code, want) in zip(out, LANES.items(), strict=True):
        expected = [496] * 32 if want is None else [want(l) for l in range(32)]
        assert row.tolist() == expected, code


PRODUCTS = {
    # shape, type, words of A and B per lane, words of D
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, 16, "bf16", 4, 2, 4),
    "m16n8k16.row.col.f32.f16.f16.f32": (16, 16, "f16", 4, 2, 4),
    "m8n8k4.row.col.f64.f64.f64.f64": (8, 4, "f64", 1, 1, 2),
}


def products() -> str:
    return HEAD.format(arch=80) + "".join(_product(n, shape) for n, shape in enumerate(PRODUCTS))


def _product(number: int, shape: str) -> str:
    _, _, kind, na, nb, nd = PRODUCTS[shape]
    wide = kind == "f64"
    t, size, total = ("b64", 8, "f64") if wide else ("b32", 4, "f32")
    registers = {x: [f"%{x}{n}" for n in range(count)] for x, count in (("A", na), ("B", nb), ("D", nd))}
    loads = "".join(
        f"ld.global.{total if x == 'D' else t} {r}, [%{x.lower()}p+{size * n}];"
        for x, names in registers.items()
        for n, r in enumerate(names)
    )
    a, b, d = (", ".join(names) for names in registers.values())
    return f"""
.visible .entry product{number}(.param .u64 a, .param .u64 b, .param .u64 d)
{{
.reg .{t} {a}, {b}; .reg .{total} {d};
.reg .b64 %ap, %bp, %dp, %o; .reg .b32 %t;
mov.u32 %t, %tid.x; ld.param.u64 %ap, [a]; ld.param.u64 %bp, [b]; ld.param.u64 %dp, [d];
mul.wide.u32 %o, %t, {na * size}; add.s64 %ap, %ap, %o; mul.wide.u32 %o, %t, {nb * size}; add.s64 %bp, %bp, %o;
mul.wide.u32 %o, %t, {nd * size}; add.s64 %dp, %dp, %o;
{loads}
mma.sync.aligned.{shape} {{{d}}}, {{{a}}}, {{{b}}}, {{{d}}};
{"".join(f"st.global.{total} [%dp+{size * n}], {r};" for n, r in enumerate(registers["D"]))}
ret;
}}
"""


@pytest.mark.parametrize("shape", PRODUCTS)
def test_matrix_products(shape, emulator):
    """D = A B + C with the fragment layouts of the ISA, written here as it draws them."""
    m, k, kind, na, nb, nd = PRODUCTS[shape]
    wide = kind == "f64"
    rng = np.random.default_rng(0)
    A, B, C = (rng.integers(-8, 9, s).astype(np.float64) for s in ((m, k), (k, 8), (m, 8)))
    encode = {"bf16": brain, "f16": half}.get(kind)
    a, b = np.zeros((32, na), np.float64 if wide else np.uint32), np.zeros((32, nb), np.float64 if wide else np.uint32)
    d = np.zeros((32, nd), np.float64 if wide else np.float32)
    for lane in range(32):
        g, q = lane // 4, lane % 4
        if wide:
            a[lane, 0], b[lane, 0] = A[g, q], B[q, g]
        else:
            for n, (row, column) in enumerate([(g, 2 * q), (g + 8, 2 * q), (g, 2 * q + 8), (g + 8, 2 * q + 8)]):
                a[lane, n] = encode(A[row, column]) | encode(A[row, column + 1]) << 16
            for n, row in enumerate([2 * q, 2 * q + 8]):
                b[lane, n] = encode(B[row, g]) | encode(B[row + 1, g]) << 16
        d[lane] = [C[g + 8 * (n // 2), 2 * q + n % 2] for n in range(nd)]
    launch(emulator, products(), f"product{list(PRODUCTS).index(shape)}", 32, [a, b, d])
    D = A @ B + C
    for lane in range(32):
        g, q = lane // 4, lane % 4
        assert d[lane].tolist() == [D[g + 8 * (n // 2), 2 * q + n % 2] for n in range(nd)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_approximations_err_as_far_as_the_isa_allows_and_no_farther(seed, emulator):
    functions = {
        "ex2.approx.f32": (np.exp2, lambda y: 2 * np.spacing(np.float32(y))),
        "lg2.approx.f32": (np.log2, lambda y: 2.0**-22 * max(1.0, abs(y))),
        "rcp.approx.f32": (lambda x: 1 / x, lambda y: np.spacing(np.float32(y))),
        "sqrt.approx.f32": (np.sqrt, lambda y: 2.0**-23 * y + np.spacing(np.float32(y)) / 2),
        "tanh.approx.f32": (np.tanh, lambda y: 2.0**-11 * y),
    }
    text = HEAD.format(arch=80) + "".join(
        f""".visible .entry k{n}(.param .u64 x)
{{
.reg .b64 %p, %o; .reg .f32 %f; .reg .b32 %t;
ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mul.wide.u32 %o, %t, 4; add.s64 %p, %p, %o;
ld.global.f32 %f, [%p]; {name} %f, %f; st.global.f32 [%p], %f; ret;
}}
"""
        for n, name in enumerate(functions)
    )
    x = np.linspace(0.51, 9.7, 256, dtype=np.float32)
    for n, (name, (function, bound)) in enumerate(functions.items()):
        y = x.copy()
        launch(emulator, text, f"k{n}", 256, [y], Run(error_seed=seed))
        exact = function(x.astype(np.float64))
        error = np.abs(y - exact) / np.array([bound(v) for v in exact])
        assert error.max() <= 1 + 1e-6, name
        assert seed == 0 or error.max() > 0.4, name


BAD = {
    "out of bounds: at array 0": "ld.global.u32 %r0, [%out+128];",
    "not aligned to 8": "ld.global.u64 %l0, [%out+4];",
    "shared load of 4 bytes out of bounds": "ld.shared.u32 %r0, [tile+64];",
    "is not aligned to 16": "ld.shared.v4.u32 {%r0, %r1, %r0, %r1}, [tile+4];",
    "divergent barrier": "setp.lt.u32 %p0, %lane, 3; @%p0 bra $a; bar.sync 0; bra $b; $a:\n bar.sync 0; $b:",
    "deadlock": "setp.lt.u32 %p0, %lane, 3; @%p0 bra $a; bar.sync 0; $a:",
    "lacks lane": "shfl.sync.idx.b32 %r0, %r0, 0, 31, 1;",
    "never committed": "cp.async.ca.shared.global [tile], [%out], 4;",
    "endless loop": "$a: bra $a;",
    "trap": "trap;",
}


def bad() -> str:
    return HEAD.format(arch=80) + "".join(
        f""".visible .entry bad{n}(.param .u64 out)
{{
.reg .b32 %lane, %r<4>; .reg .pred %p0; .reg .b64 %out, %l0; .shared .align 16 .b8 tile[64];
ld.param.u64 %out, [out]; mov.u32 %lane, %tid.x; mov.u32 %r0, 0; mov.u32 %r1, 0;
{code}
ret;
}}
"""
        for n, code in enumerate(BAD.values())
    )


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_kernel_is_an_exception(message, emulator):
    number = list(BAD).index(message)
    with pytest.raises(KernelFailure, match=rf"kernel bad{number}, block .*{message}"):
        launch(emulator, bad(), f"bad{number}", 32, [np.zeros(32, np.uint32)])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("wgmma.fence.sync.aligned;", r"unknown opcode: line 6 .*wgmma"),
        ("cvt.rn.e4m3x2.f32 %r0, %r1, %r1;", "unsupported"),
        ("add.rn.f32.strange %r0, %r0, %r1;", "unsupported type"),
        ("ld.shared::cluster.u32 %r0, [%l0];", "unsupported modifier"),
        ("setp.lt.b32 %p0, %r0, %r1;", "bits have no order"),
        ("mov.u32 %r0, %cluster_ctaid.x;", "unsupported operand"),
        ("add.f32 %r0, %r1, 1;", "integer literal"),
    ],
)
def test_what_is_not_known_is_refused(code, message):
    registers = ".reg .b32 %r<4>; .reg .pred %p0; .reg .b64 %l0;"
    text = f"{HEAD.format(arch=80)}.visible .entry k()\n{{{registers}\n{code}\nret;\n}}\n"
    with pytest.raises(UnsupportedPtx, match=message):
        translate(parse(text))
