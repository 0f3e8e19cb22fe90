"""Constants of the Gram ops. Those of the native kernels stand beside them, in csrc/gram/{schedule.h,problem.cuh}."""

from fastrank.kernels.occupancy import Claim

MODES = ("exact", "fast")

#: Rows whose float32 products are summed in float32 before they go to float64 in mode "fast" (kFastChunk in
#: csrc/gram/gram.h; a test holds the two together). 128 bounds a block's error by 128 * 2^-24 = 8e-6 of its absolute
#: sum, and the flush costs a sixteenth of the block's arithmetic.
FAST_BLOCK = 128

#: Rows of which each column is rounded to 24 bits of its largest number where mode "fast" may round (kDigitsChunk).
#: Larger blocks round more where a column has outliers and write C less often: at 512 the products of 1000 columns take
#: five times as long as putting them together.
DIGITS_BLOCK = 512

#: Rows that the reference converts to float64 at a time, so that its memory does not grow with n.
REFERENCE_ROWS = 4096

#: What the CUDA kernels count on, as nvcc 13.0 compiles them: registers a thread at most, and blocks at once on a
#: multiprocessor (tests/compile holds this to the compiler's work). Of a tile of 64 (128 threads) a lane owns 32
#: numbers of C, of one of 128 (256 threads) 64: in fp64 two registers each, and in mode "fast" a third for the fp32
#: sum. __launch_bounds__ asks for three blocks of the small tile, so that some compute while others wait at a barrier;
#: of the wide one's eight warps, each has 64 independent sums to go on with.
CLAIMS = {
    "gram_tiles Exact 64": Claim(160, 3),
    "gram_tiles Exact 128": Claim(232, 1),
    "gram_tiles Fast 64": Claim(168, 3),
    "gram_tiles Fast 128": Claim(256, 1),
    "gram_tiles Half 64": Claim(168, 3),
    "gram_tiles Half 128": Claim(256, 1),
    "gram_reduce": Claim(64, 2),
    # The tiles of patches are the small ones.
    "patch_tiles Exact 64": Claim(160, 3),
    "patch_tiles Fast 64": Claim(168, 3),
    "patch_pieces Exact 64": Claim(152, 3),
    "patch_pieces Fast 64": Claim(168, 3),
    "patch_reduce": Claim(40, 8),
    "patch_sums": Claim(56, 4),
    "patch_outside": Claim(40, 6),
    "patch_combine": Claim(64, 4),
}
