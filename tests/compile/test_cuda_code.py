"""The instructions of the CUDA kernels: products in the precision that is promised, no approximation, no atomics."""

import re

from machine_code import ARCHITECTURES, short


def tiles(codes):
    """(code, whether its products are fp64) of every kernel that multiplies."""
    found = [
        (code, short(code.name).endswith("double>"))
        for code in codes
        if re.search("gram_tiles|patch_tiles|patch_pieces", code.name)
    ]
    # 4 dtypes exact, 3 of them fast.
    assert len(found) == 3 * 7 * len(ARCHITECTURES)
    return found


def test_every_kernel_for_every_architecture(cuda_kernels):
    assert {short(code.name) for code in cuda_kernels} >= {"gram_reduce", "gram_mirror"}
    # Of patches also a sum for each of 4 dtypes, and 3 kernels that see fp64 alone.
    assert len(cuda_kernels) == (9 + 2 * 7 + 4 + 3) * len(ARCHITECTURES)


def test_gram_multiplies_in_the_precision_it_promises(cuda_kernels):
    for code, exact in tiles(cuda_kernels):
        # A 4 x 4 register tile, unrolled over 4 rows: 64 fused multiply-adds in one precision.
        assert len(re.findall(r"\bDFMA\b" if exact else r"\bFFMA2?\b", code.sass)) >= (64 if exact else 32), (
            code.name, code.arch
        )  # fmt: skip
        # No tensor-core product: TF32 and 16-bit ones round.
        assert not re.search(r"\b(HMMA|QMMA|UTC\w*MMA|HGMMA)\b", code.sass), (code.name, code.arch)


def test_gram_reads_shared_memory_wide(cuda_kernels):
    """A row of a 4 x 4 tile is four neighbours: in 128-bit loads where the pitch keeps them aligned (fp64)."""
    for code, exact in tiles(cuda_kernels):
        assert "LDS.128" in code.sass or not exact, (code.name, code.arch)


def test_results_do_not_depend_on_the_order_of_blocks(cuda_kernels):
    for code in cuda_kernels:
        assert not re.search(r"\b(ATOM\w*|RED)\b", code.sass), (code.name, code.arch)
