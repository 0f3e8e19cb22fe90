"""The instructions of the CUDA kernels: products on the units that are promised, wide loads, no atomics."""

import re

import gpu_builds
from machine_code import ARCHITECTURES, CUDA_ARCHITECTURES, short


def tiles(codes, *ways, kernels="gram_tiles|patch_tiles|patch_pieces"):
    """(code, numbers of C a lane owns) of every kernel of tiles that multiplies one of these ways."""
    found = [(code, re.fullmatch(rf"(?:{kernels})<(\w+) .*, (\d+)>", short(code.name))) for code in codes]
    return [(code, int(name[2]) // 2) for code, name in found if name and name[1] in ways]


def count(code, pattern: str) -> int:
    return len(re.findall(rf"\b{pattern}", code.sass))


def test_every_kernel_for_every_architecture(cuda_kernels):
    names = {short(code.name) for code in cuda_kernels}
    # In two widths: 4 dtypes exact, 3 of them fast, 2 of them along rows and along columns without a shift.
    assert len({name for name in names if name.startswith("gram_tiles")}) == 2 * (4 + 3 + 2 * 2)
    # Of patches in one width, never without a shift.
    assert len({name for name in names if re.match("patch_(tiles|pieces)<", name)}) == 2 * (4 + 3)
    assert names >= {"gram_reduce", "patch_reduce", "patch_sums", "patch_outside", "patch_combine"}
    # patch_sums, of 4 dtypes, is one name.
    kernels = len(names) + 3
    assert len([code for code in cuda_kernels if short(code.name) in names]) == kernels * len(ARCHITECTURES)


def test_the_core_carries_what_is_looked_at_here():
    text = (gpu_builds.ROOT / "CMakeLists.txt").read_text()
    listed = re.findall(r"(?:set\(|APPEND )architectures ([^)]+)\)", text)
    assert [int(arch.removesuffix("-real")) for arch in " ".join(listed).split()] == list(CUDA_ARCHITECTURES)


def test_exact_products_are_on_fp64_tensor_cores(cuda_kernels):
    for code, numbers in tiles(cuda_kernels, "Exact"):
        # 16 x 8 x 8 products as one instruction where the chip has it, else as four (sm_100 too, whatever
        # the PTX says).
        wide, narrow = count(code, r"DMMA\.16x?8x?8\b"), count(code, r"DMMA\.(?:884|8x8x4)\b")
        assert (wide, narrow) in ((numbers // 4, 0), (0, numbers)), (short(code.name), code.arch, wide, narrow)
        assert code.arch != 90 or wide, code.name


def test_fast_products_are_fp32(cuda_kernels):
    for code, numbers in tiles(cuda_kernels, "Fast"):
        # The small tile's loop over a step is unrolled four times, the wide one's not at all.
        unrolled = 4 if numbers == 32 else 1
        assert count(code, r"FFMA\b") + 2 * count(code, r"FFMA2\b") >= numbers * unrolled, (short(code.name), code.arch)
        assert not count(code, r"[DHIQ]MMA\b"), (short(code.name), code.arch)


def test_products_of_sixteen_bits_are_on_tensor_cores_with_fp32_sums(cuda_kernels):
    for code, numbers in tiles(cuda_kernels, "Half"):
        assert count(code, r"HMMA\.16816\.F32(?:\.BF16)?\s") == numbers // 4, (short(code.name), code.arch)
        # Whole fragments come at once, and panels past the registers.
        assert count(code, r"LDSM\.16\.MT?88\.4\b") == numbers // 16 + 2, (short(code.name), code.arch)
        assert count(code, r"LDGSTS\.E\.BYPASS\.128\b") == 2, (short(code.name), code.arch)


def test_nothing_is_rounded_to_tf32(cuda_kernels):
    for code in cuda_kernels:
        assert not re.search(r"TF32|\b(QMMA|UTC\w*MMA|HGMMA)\b", code.sass), (code.name, code.arch)


def test_memory_is_read_wide_and_by_name(cuda_kernels):
    for code, _ in tiles(cuda_kernels, "Exact", "Fast"):
        assert count(code, r"LDS\.128\b"), (short(code.name), code.arch)
    for code, _ in tiles(cuda_kernels, "Exact", "Fast", kernels="gram_tiles"):
        # 16 bytes at a time from global memory and from shared memory, and to it.
        for instruction in (r"LDG\.E\.128\b", r"LDS\.128\b", r"STS\.128\b"):
            assert count(code, instruction), (short(code.name), code.arch, instruction)
    for code in cuda_kernels:  # no access that first has to ask which memory is meant
        assert not re.search(r"\b(LD|ST)\.E\b", code.sass), (short(code.name), code.arch)


def test_results_do_not_depend_on_the_order_of_blocks(cuda_kernels):
    for code in cuda_kernels:
        assert not re.search(r"\b(ATOM\w*|RED)\b", code.sass), (code.name, code.arch)
