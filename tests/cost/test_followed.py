"""The cost of what is not computed anew, against the products that it makes."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastrank.carried import carried_spectra
from fastrank.factored import factored_spectra
from fastrank.followed_cost import carried, from_factors, from_sketch
from fastrank.sketched import sketched_spectrum
from fastrank.subspace import top_svd


class Products(TorchDispatchMode):
    """Multiplications and additions of torch's products by dtype, and bytes of matrices whose distances are taken."""

    def __init__(self):
        super().__init__()
        self.flops, self.read = {torch.float32: 0, torch.float64: 0}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name.startswith(("aten::mm", "aten::addmm", "aten::bmm")):
            (*many, n, inner), (*_, columns) = [X.shape for X in args if X.ndim >= 2][-2:]
            self.flops[args[0].dtype] += 2 * math.prod(many) * n * inner * columns
        elif name == "fastrank::products_many":
            self.flops[torch.float64] += sum(2 * A.numel() * X.shape[1] for A, X in zip(*args[:2], strict=True))
        elif name == "fastrank::distances_many":
            self.read += sum(X.nbytes for side in args[:2] for X in side)
        return function(*args, **(kwargs or {}))


def counted(launches, unit):
    """Of torch's own products: our kernels' launches are counted where they are."""
    return sum(launch.flops.get(unit, 0) for launch in launches if launch.kernel in ("torch.sketch", "torch.probes"))


def test_from_factors():
    g = torch.Generator().manual_seed(0)
    n, d, r = 300, 260, 50
    G, X = torch.randn(r, n, generator=g), torch.randn(r, d, generator=g)
    with Products() as made:
        (found,) = factored_spectra([(G.T @ X, G, X)], 0, 0)
    assert found is not None and found.method == "factors"
    launches, ((name, flops),) = from_factors(n, d, r)
    # Without the product that the gradient is; the small ones of r x r are with the factorisation.
    assert made.flops[torch.float64] == counted(launches, "fp64") + 4 * r**3
    assert (name, flops) == ("eigvalsh", 4 * r**3 // 3)


@pytest.mark.parametrize(("n", "d"), [(300, 260), (150, 500)])
def test_from_a_sketch(n, d):
    g, q = torch.Generator().manual_seed(0), 32
    A = torch.randn(n, 12, generator=g) @ torch.randn(12, d, generator=g)
    sketched_spectrum(A, q, 0, 0)  # its test matrix is kept
    with Products() as made:
        assert sketched_spectrum(A, q, 0, 1) is not None
    launches, _ = from_sketch(n, d, q)
    m = min(n, d)
    assert made.flops[torch.float32] == counted(launches, "fp32") - 4 * m * q * q  # the orthonormal basis
    assert made.flops[torch.float64] == counted(launches, "fp64")


def test_carried():
    X = torch.randn(130, 200, generator=torch.Generator().manual_seed(0))
    top = top_svd(X, 15)
    (first,) = carried_spectra([(X, top, None)], 0)
    with Products() as made:
        carried_spectra([(X + 0, top, first.anchor)], 1)
    (launch,), _ = carried(130, 200, torch.float32)
    assert made.read == launch.read == 2 * X.nbytes
