"""The input's rank bounds the gradient's: [U] eq. 3, on layers of every kind and over several forwards."""

import pytest
import torch
from torch import nn

import fastrank
from fastrank.capture import patch_view
from fastrank.metrics.gradient_bound import input_spectrum


def low_rank(rows, columns, rank, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=g) @ torch.randn(rank, columns, generator=g)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 5), (6, 12)),
        (nn.Linear(12, 5), (2, 7, 12)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, groups=2, padding="same", dilation=2), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, (2, 3), padding="same"), (3, 4, 5, 6)),  # wider on the right
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 5, 6)),
        (nn.Conv2d(4, 6, 3), (4, 7, 7)),  # one image without a batch dimension
        (nn.Conv1d(4, 6, 3, padding=2, stride=2, dilation=2), (3, 4, 15)),
    ],
    ids=str,
)
def test_the_spectrum_is_that_of_every_row(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if isinstance(layer, nn.Linear):
        rows = x.flatten(0, -2)
    else:
        dims = len(layer.kernel_size)
        windows = patch_view(x, layer).movedim(1, 1 + dims)  # [B, *positions, C, *kernel]
        rows = windows.unflatten(1 + dims, (layer.groups, -1)).flatten(0, 1 + dims).flatten(1)
    found = input_spectrum(layer, x)
    assert (found.n, found.d) == tuple(rows.shape)
    truth = torch.linalg.svdvals(rows.double())
    assert ((found.sigma - truth).abs() <= found.bound + 1e-14 * truth[0]).all()


def test_no_gradient_exceeds_the_rank_of_what_the_layer_saw():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10))
    with fastrank.watch(model, metrics=["bound"]) as w:
        for seed in (0, 1):  # two forwards whose gradients add up
            model(low_rank(30, 20, rank=3, seed=seed)).square().sum().backward()
        w.step()
    assert w.latest["grad/0/input_rank"] == 6
    assert 3 < w.latest["grad/0/rank"] <= 6
    assert w.latest["grad/0/bound_excess"] == 0 and w.latest["grad/2/bound_excess"] == 0


def test_a_gradient_of_something_else_is_caught():
    model = nn.Sequential(nn.Linear(20, 16))
    with fastrank.watch(model, metrics=["bound"]) as w:
        model(low_rank(30, 20, rank=3)).sum().backward()
        model[0].weight.grad = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
        w.step()
    assert w.latest["grad/0/bound_excess"] == 16 - 3


def test_a_layer_whose_input_is_no_matrix_is_left_out_by_name():
    notes = []

    class Log:
        def log_step(self, step, scalars, arrays):
            pass

        def note(self, step, key, text):
            notes.append((key, text))

    model = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 3))
    said = pytest.warns(RuntimeWarning, match="grad/0 bound is no longer measured: the input's rank of a Conv3d")
    with said, fastrank.watch(model, metrics=["bound"], log=Log()) as w:
        model(torch.randn(2, 1, 3, 3, 3)).sum().backward()
        w.step()
    assert "grad/2/input_rank" in w.latest and "grad/0/input_rank" not in w.latest
    assert any(key == "grad/0 bound" for key, _ in notes)
