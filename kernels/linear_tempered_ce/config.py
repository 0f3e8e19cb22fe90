"""How many logits are in memory at a time."""

#: Bytes of one chunk of logits, per kind of device. A CPU's chunk should stay in the last cache between the matrix
#: product that writes it, the loss, and the two products that read its gradient; a GPU's be large enough for the
#: products to fill the device.
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
#: Fewer rows than these make the matrix products slower than the memory they save is worth.
MIN_ROWS = 32


def chunk_rows(classes: int, itemsize: int, device: str) -> int:
    """Rows of features whose logits are formed together."""
    return max(MIN_ROWS, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (classes * itemsize))
