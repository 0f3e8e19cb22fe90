"""Ranks, spectra, subspaces and a tracked step on a device: the CPU's figures within both error bounds."""

import pytest
import torch
from device_calls import DEVICE, MISSING
from torch import nn

import fastrank

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)


def matrix(n, d, decay, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, min(n, d) + 1).double().pow(-decay)
    A = torch.linalg.qr(torch.randn(n, min(n, d), generator=generator, dtype=torch.float64))[0] * scale
    return (A @ torch.linalg.qr(torch.randn(d, min(n, d), generator=generator, dtype=torch.float64))[0].T).float()


@pytest.mark.parametrize(("n", "d", "decay"), [(64, 300, 1.0), (300, 64, 2.0), (200, 200, 3.0)])
def test_spectrum_and_rank_hold_on_the_device(n, d, decay):
    A = matrix(n, d, decay)
    truth = torch.linalg.svdvals(A.double())
    s = fastrank.spectrum(A.to(DEVICE))
    assert ((s.sigma.cpu() - truth).abs() <= s.bound.cpu() + 1e-14 * truth[0]).all()
    r = fastrank.matrix_rank(A.to(DEVICE))
    assert r.lo <= int((truth > r.tol).sum()) <= r.hi


def test_top_svd_keeps_its_residuals():
    A = matrix(400, 2000, 0.5).to(DEVICE)
    state = None
    for _ in range(3):
        state = fastrank.top_svd(A, 15, state)
    truth = torch.linalg.svdvals(A.double())[:15]
    assert ((state.S.double() - truth).abs() <= state.residual.double() + 1e-6 * truth[0]).all()


def test_a_tracked_step_gives_the_figures_of_the_cpu():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 10)
    )
    x, y = torch.randn(32, 3, 8, 8), torch.randint(10, (32,))
    figures = []
    for device in ("cpu", DEVICE):
        import copy

        net = copy.deepcopy(model).to(device)
        with fastrank.watch(net, T=10.0) as w:
            loss = fastrank.TemperedCE(T=10.0)(net(x.to(device)), y.to(device))
            loss.backward()
            w.step(target=y.to(device), loss=loss)
            figures.append(w.latest)
    cpu, gpu = figures
    assert cpu.keys() == gpu.keys() and not any(v != v for v in gpu.values())
    for key in cpu:
        if key.endswith(("/sigma_1", "/frobenius", "logits/norm")):
            # float32 forward and backward passes of depth 3, in another order: 1e-4 is a hundred times their rounding.
            assert gpu[key] == pytest.approx(cpu[key], rel=1e-4), key
