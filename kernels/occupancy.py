"""How many thread blocks of a kernel a multiprocessor holds at once, and what a kernel's tuning counts on.

The rules are those of NVIDIA's `cuda_occupancy.h`, to which a test holds them. Limits per compute capability: CUDA C++
Programming Guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
#: A multiprocessor's registers lie in four parts, and a warp takes its registers from one of them, 256 at a time.
REGISTERS, PARTS, REGISTER_UNIT = 65536, 4, 256
#: The system's own shared memory per block, and the unit in which shared memory is given out.
RESERVED_SHARED, SHARED_UNIT = 1024, 128


@dataclass(frozen=True)
class Multiprocessor:
    """Of one compute capability: warps, blocks and bytes of shared memory at most, all blocks together."""

    warps: int
    blocks: int
    shared: int


MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 164 * 1024),
    86: Multiprocessor(48, 16, 100 * 1024),
    89: Multiprocessor(48, 24, 100 * 1024),
    90: Multiprocessor(64, 32, 228 * 1024),
    100: Multiprocessor(64, 32, 228 * 1024),
    120: Multiprocessor(48, 24, 100 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks at once, the share of a multiprocessor's warps that they are, and what stands in the way of more."""

    blocks: int
    share: float
    limiter: str


def occupancy(registers: int, shared: int, warps: int, arch: int) -> Occupancy:
    """Of a kernel with `registers` a thread, `shared` bytes and `warps` a block, on sm_<arch>."""
    limits = MULTIPROCESSORS[arch]
    per_warp = -(-max(registers, 1) * WARP // REGISTER_UNIT) * REGISTER_UNIT
    resident = REGISTERS // PARTS // per_warp * PARTS
    bytes_a_block = -(-(shared + RESERVED_SHARED) // SHARED_UNIT) * SHARED_UNIT
    bounds = {
        "registers": resident // warps,
        "shared": limits.shared // bytes_a_block,
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
    }
    blocks = min(bounds.values())
    # Where two are equal, the one that is fixed.
    limiter = next(name for name in ("warps", "blocks", "registers", "shared") if bounds[name] == blocks)
    return Occupancy(blocks, blocks * warps / limits.warps, limiter)


@dataclass(frozen=True)
class Claim:
    """What a kernel's tuning counts on, as `config.py` states it.

    Attributes:
        registers: a thread's, at most, over all architectures; in steps of 8, as they are given out.
        blocks: at once on a multiprocessor of 64 warps, at least. One of 48 (sm_86, sm_89, sm_120) holds as many, or
            as many as it has warps for.
    """

    registers: int
    blocks: int

    def blocks_on(self, arch: int, warps: int) -> int:
        limits = MULTIPROCESSORS[arch]
        return min(self.blocks, limits.warps // warps, limits.blocks)
