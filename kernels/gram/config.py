"""Constants of the Gram ops. Those of the native kernels stand beside them, in csrc/gram/{schedule.h,kernels.cuh}."""

from fastrank.kernels.occupancy import Claim

MODES = ("exact", "fast")

#: Rows whose float32 products are summed in float32 before they go to float64 in mode "fast" (kFastChunk in
#: csrc/gram/gram.h; a test holds the two together). 128 bounds a block's error by 128 * 2^-24 = 8e-6 of its absolute
#: sum, and the flush costs a sixteenth of the block's arithmetic.
FAST_BLOCK = 128

#: Rows that the reference converts to float64 at a time, so that its memory does not grow with n.
REFERENCE_ROWS = 4096

#: What the CUDA kernels count on, as nvcc 13.0 compiles them: registers a thread at most, and blocks at once on a
#: multiprocessor (tests/compile holds this to the compiler's work). A thread of gram_tiles has a 4 x 4 tile of sums in
#: fp64, 32 registers, twice in mode "fast"; __launch_bounds__ asks for two blocks, so that one computes while the other
#: waits at its barrier.
CLAIMS = {
    "gram_tiles": Claim(128, 2), "gram_reduce": Claim(48, 5), "gram_mirror": Claim(32, 8),
    # As gram_tiles; two buffers of two panels in shared memory, 36 KiB with fp64, are within what two blocks have.
    "patch_tiles": Claim(128, 2), "patch_pieces": Claim(128, 2),
    "patch_reduce": Claim(32, 8), "patch_sums": Claim(40, 6), "patch_outside": Claim(40, 6),
    "patch_combine": Claim(40, 6),
}  # fmt: skip
