"""Test matrices, sketches and subspace steps on a device: the CPU's bits, the bounds, a side stream."""

import pytest
import torch
from device_calls import DEVICE, MISSING
from fastrank.kernels.rsvd import KINDS, cosines_many, orthonormal_many, sketch, subspace_step_many
from fastrank.kernels.rsvd import test_matrix as random_matrix

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

IMPL = "native" if DEVICE == "cpu" else "triton"
EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matrices_have_the_same_bits_as_on_the_cpu(kind, dtype):
    for rows, columns, seed, stream in ((1, 1, 0, 0), (1000, 37, 2**64 - 1, 2**32 - 1), (70, 6, 12345678901234567, 3)):
        expected = random_matrix(rows, columns, seed, stream, kind, dtype, impl="reference")
        assert torch.equal(random_matrix(rows, columns, seed, stream, kind, dtype, DEVICE, impl=IMPL).cpu(), expected)


@pytest.mark.parametrize("q", [1, 16, 33, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_sketch(dtype, q):
    A = torch.randn(300, 2500, generator=torch.Generator().manual_seed(0)).to(dtype)
    omega = random_matrix(2500, q, 5, 1, "gaussian", torch.float64)
    found = sketch(A.to(DEVICE), q, 5, 1, impl=IMPL).cpu()
    budget = 2500 * EPS[found.dtype] * (A.double().abs() @ omega.abs())
    assert ((found.double() - A.double() @ omega).abs() <= budget).all()


@pytest.mark.parametrize("q", [5, 27, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_steps(dtype, q):
    """Against the reference in float64; every V orthonormal, in one call and on a side stream the same bits."""
    generator, u = torch.Generator().manual_seed(q), EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    A = [torch.randn(n, d, generator=generator).to(dtype) for n, d in ((64, 576), (512, 4608), (100, 77), (70, 66))]
    A[3].zero_()
    V = [torch.linalg.qr(torch.randn(a.shape[1], q, generator=generator, dtype=torch.float64))[0] for a in A]
    V = [v if dtype == torch.float64 else v.float() for v in V]
    there = [[x.to(DEVICE) for x in xs] for xs in (A, V)]
    found = subspace_step_many(*there, 5, impl=IMPL)
    truth = subspace_step_many([a.double() for a in A], [v.double() for v in V], 5, impl="reference")
    for a, got, true in zip(A, found, truth, strict=True):
        budget = 500 * 2 * sum(a.shape) * u * float(a.double().norm())
        W, S = got.V.cpu().double(), got.S.cpu().double()
        assert (W.T @ W - torch.eye(q)).abs().max() <= 8 * q * u
        assert (S - true.S).abs().max() <= budget
        left = (a.double() @ W[:, :5] - got.U.cpu().double() * S[:5]).norm(dim=0)
        assert ((left - got.residual.cpu().double()).abs() <= budget).all()
    if DEVICE != "cpu":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again = subspace_step_many(*there, 5)
        stream.synchronize()
        for a, b in zip(found, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_orthonormal_blocks_and_cosines(dtype):
    generator, u = torch.Generator().manual_seed(0), EPS[dtype]
    X = [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((4608, 27), (70, 64), (300, 5), (130, 9))]
    X[3][:, 4], X[2][7, 2] = 3 * X[3][:, 1], float("nan")
    Q = orthonormal_many([x.to(DEVICE) for x in X], IMPL)
    for own, true in zip(Q, orthonormal_many(X, "reference"), strict=True):
        assert (own.cpu().double() - true.double()).abs().max() <= 100 * u  # both within their roundings
    tops = [own[:, :15].T for own in Q]
    found = cosines_many(tops, tops[:1] + [x + 1 for x in tops[1:]])
    for index, (own, top) in enumerate(zip(found, tops, strict=True)):
        top = top.cpu().double()
        other = (top if index == 0 else top.to(dtype).add(1).double()).T
        budget = (top.shape[1] + 1) * u * (top.abs() @ other.abs())
        assert ((own.cpu().double() - (top @ other).abs().clamp_max(1.0)).abs() <= budget).all()
