"""NECO, OrthoDev and detection against scikit-learn, written-out definitions and, where installed, pytorch-ood."""

import math

import numpy as np
import pytest
import torch

from fastrank.errors import InputError
from fastrank.evaluation.ood import Neco, Scores, detection, orthodev
from fastrank.evaluation.solution_rank import softmax_gap

pytest.importorskip("sklearn")


def features(n, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    scale = torch.linspace(3, 0.1, 10)
    mix = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(9)))[0]
    return (torch.randn(n, 10, generator=g) * scale) @ mix + shift


@pytest.mark.parametrize("dim", [3, 0.9])
def test_neco_is_standard_scaler_and_pca(dim):
    """As Ammar et al. compute it: StandardScaler, PCA of the training features, ratio of the norms."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    train, other = features(400, 0).double(), features(100, 1, 2.0).double()
    train[:, 4] = other[:, 4] = 1.0  # a dead feature
    neco = Neco.fit(train.mean(0), torch.cov(train.T, correction=0), dim)
    scaler = StandardScaler().fit(train.numpy())
    pca = PCA().fit(scaler.transform(train.numpy()))
    if dim == 0.9:
        assert neco.dim == int(np.searchsorted(pca.explained_variance_ratio_.cumsum(), 0.9)) + 1
    z = scaler.transform(other.numpy())
    expected = np.linalg.norm(pca.transform(z)[:, : neco.dim], axis=1) / np.linalg.norm(z, axis=1)
    assert neco.score(other).numpy() == pytest.approx(expected, rel=1e-9)


def test_neco_survives_huge_shifts_and_the_mean_itself():
    train = features(200, 0).double()
    neco = Neco.fit(train.mean(0), torch.cov(train.T, correction=0), 3)
    far = features(5, 1).double() * 1e200
    score = neco.score(torch.cat([far, train.mean(0)[None]]))
    assert bool(score.isfinite().all()) and float(score[-1]) == 0 and bool((score[:-1] > 0).all())
    for dim in (0, 11, 1.5, True):
        with pytest.raises(InputError, match="neco_dim: expected"):
            Neco.fit(train.mean(0), torch.cov(train.T), dim)


def test_orthodev_is_equation_4():
    means, other = torch.randn(2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    means, other = means[:5], other[5]
    assert len({bool(m @ other > 0) for m in means}) == 2  # opposite signs do not cancel
    written = np.mean([abs(float(m @ other)) / float(m.norm() * other.norm()) for m in means])
    assert float(orthodev(means, other)) == pytest.approx(written)
    assert float(orthodev(torch.eye(4, 5), torch.eye(5)[4])) == 0
    assert math.isnan(float(orthodev(means, torch.zeros(7, dtype=torch.float64))))


def test_detection_counts_by_hand():
    found = detection(np.array([3.0, 4, 5, 6]), np.array([1.0, 2, 3.5]))
    pairs = [(i, o) for i in (3, 4, 5, 6) for o in (1, 2, 3.5)]
    assert found.auroc == pytest.approx(np.mean([i > o for i, o in pairs]))
    # 95 % of four ID samples are all of them, so the threshold is 3; one of three OOD samples reaches it.
    assert found.fpr95_id_positive == pytest.approx(1 / 3)
    # All OOD samples are flagged at 3.5 and below; so is one of the ID samples.
    assert found.fpr95_ood_positive == pytest.approx(1 / 4)


def test_exactly_95_percent_is_enough():
    """19 of 20: the one sample beyond the threshold costs nothing."""
    many, few = np.arange(1.0, 21.0), np.array([1.5])
    assert detection(many, few).fpr95_id_positive == 0
    assert detection(-few, -many).fpr95_ood_positive == 0


def test_the_softmax_score_is_of_the_tempered_logits():
    logits = torch.tensor([[100.0, 0.0, 0.0], [60.0, 59.0, -100.0]])
    scores = Scores(None, 50.0)
    scores.end(None, logits)
    np.testing.assert_allclose(scores.arrays()["max_softmax"], torch.softmax(logits.double() / 50, 1).amax(1))


def test_detection_ties_and_nan():
    tied = detection(np.ones(10), np.ones(4))
    assert (tied.auroc, tied.fpr95_id_positive, tied.fpr95_ood_positive) == (0.5, 1.0, 1.0)
    broken = detection(np.array([1.0, math.nan]), np.zeros(3))
    assert math.isnan(broken.auroc) and broken.reason == "1 of 5 scores are not finite"
    assert detection(np.ones(3), np.ones(0)).reason == "no samples of one kind"


def test_detection_against_pytorch_ood():
    """Its positives are the OOD samples and its scores are outlier scores: minus ours."""
    metrics = pytest.importorskip("pytorch_ood.metrics", reason="pytorch-ood is not installed")
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 500), rng.normal(0, 1.5, 300)
    found = detection(inside, outside)
    theirs = metrics.OODMetrics()
    scores = torch.from_numpy(-np.concatenate([inside, outside]))
    theirs.update(scores, torch.cat([torch.zeros(500), -torch.ones(300)]).long())
    expected = theirs.compute()
    assert float(expected["AUROC"]) == pytest.approx(found.auroc, abs=1e-6)
    assert float(expected["FPR95TPR"]) == pytest.approx(found.fpr95_ood_positive, abs=1e-6)


def test_proposition_3_1_holds():
    g = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 10.0, 300.0):
        for rows in (8, 3):
            gap, bound = softmax_gap((torch.randn(rows, 8, generator=g, dtype=torch.float64) * scale).softmax(1))
            assert 0 <= gap <= bound
    # r by hand: 3 inner products of 1/4 each; none.
    assert softmax_gap(torch.full((4, 4), 0.25)) == pytest.approx((1.0, math.sqrt(1.75)))
    assert softmax_gap(torch.eye(5)) == pytest.approx((0.0, 1 - math.sqrt(1 / 5)))
    with pytest.raises(InputError, match="S: expected"):
        softmax_gap(torch.ones(3, 2))
