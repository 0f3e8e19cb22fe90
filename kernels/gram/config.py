"""Constants of the Gram ops. Those of the native kernels stand beside them, in csrc/gram/{schedule.h,kernels.cuh}."""

MODES = ("exact", "fast")

#: Rows whose float32 products are summed in float32 before they go to float64 in mode "fast" (kFastChunk in
#: csrc/gram/gram.h; a test holds the two together). 128 bounds a block's error by 128 * 2^-24 = 8e-6 of its absolute
#: sum, and the flush costs a sixteenth of the block's arithmetic.
FAST_BLOCK = 128

#: Rows that the reference converts to float64 at a time, so that its memory does not grow with n.
REFERENCE_ROWS = 4096
