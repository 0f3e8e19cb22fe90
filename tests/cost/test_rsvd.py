"""The cost of a warm step, against the products that the reference makes."""

import pytest
import torch
from fastrank.kernels.rsvd import steps
from fastrank.kernels.rsvd.cost_step import step
from torch.utils._python_dispatch import TorchDispatchMode


class Products(TorchDispatchMode):
    """Multiplications and additions of float32 matrix products, and the bytes of their larger operand."""

    def __init__(self):
        super().__init__()
        self.flops, self.read = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.mm.default and args[0].dtype == torch.float32:
            (n, inner), (_, columns) = args[0].shape, args[1].shape
            self.flops += 2 * n * inner * columns
            self.read += args[0].nbytes
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("n", "d", "q", "k"), [(60, 90, 27, 15), (90, 60, 8, 20), (40, 300, 1, 1)])
def test_products_with_the_matrix(n, d, q, k):
    A, V = torch.randn(n, d), torch.linalg.qr(torch.randn(d, q))[0]
    with Products() as made:
        steps.subspace_step(A, V, k)
    found = step(n, d, q, k, torch.float32)
    assert found.flops["fp32"] == made.flops + 4 * d * q * q  # the reference has entering residuals in float64
    # The reference reads A for each of three products, the kernel once for the first two.
    assert found.read == made.read * 2 // 3 + V.nbytes
    assert found.issued["fp32"] >= found.flops["fp32"]


def test_without_pairs_there_is_one_read():
    with_pairs, without = step(64, 576, 27, 15, torch.bfloat16), step(64, 576, 27, 0, torch.bfloat16)
    assert with_pairs.read - without.read == 2 * 64 * 576
    assert with_pairs.flops["fp32"] - without.flops["fp32"] == 2 * 64 * 576 * 15
    both = step(64, 576, 27, 15, torch.float64)
    assert both.flops.keys() == {"fp64"}
