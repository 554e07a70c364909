"""Joint clusters: planted groups, scikit-learn, closed forms of mixing and of canonical correlations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from netloupe.core.errors import InputError
from netloupe.core.statistics import CrossMoments, JointMoments
from netloupe.lenses.similarity.joint_clusters import (
    _joins,
    cluster_mixing,
    cluster_overlap,
    joint_spectral_clusters,
    joint_tree,
)
from netloupe.lenses.similarity.shared_groups import shared_groups

SEEDS = [0, 1, 2]


def planted(seed: int, groups: int = 4, each: int = 5, own: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units of two sites around common causes; with ``own`` no cause is common. Activations and the groups of all units."""
    draw = np.random.default_rng(seed)
    causes = draw.normal(size=(600, 2 * groups))
    first = np.repeat(np.arange(groups), each)
    second = first + groups * own
    a, b = (causes[:, which] + 0.5 * draw.normal(size=(600, len(which))) for which in (first, second))
    return a, b, np.concatenate([first, second])


def moments_of(a: np.ndarray, b: np.ndarray) -> JointMoments:
    return CrossMoments().update(a, b).result()


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_groups_and_their_number_are_found(seed: int):
    a, b, truth = planted(seed)
    m = moments_of(a, b)
    found = joint_spectral_clusters(m.within_a, m.between, m.within_b)
    assert found.k == 4
    assert adjusted_rand_score(truth, found.labels) == 1
    affinity = np.abs(m.joint) - np.eye(40)
    theirs = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(affinity)
    assert adjusted_rand_score(theirs, found.labels) == 1
    scale = 1 / np.sqrt(affinity.sum(1))
    values = np.linalg.eigvalsh(np.eye(40) - affinity * scale * scale[:, None])
    np.testing.assert_allclose(found.eigenvalues, values[: len(found.eigenvalues)], atol=1e-12)
    assert found.eigenvalues[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_the_tree_joins_sites_early_only_where_they_share_causes(own: bool):
    a, b, _ = planted(0, own=own)
    m = moments_of(a, b)
    tree = joint_tree(m.within_a, m.between, m.within_b)
    assert len(tree.linkage) == 39
    assert (tree.depth > 0).all()
    if own:  # the branch of a cause is one site's: five units make at least two joins before another cause comes
        assert tree.height.min() > tree.linkage[:31, 2].max()
    else:
        assert tree.height.max() <= tree.linkage[35, 2]


def test_depth_and_height_of_a_tree_by_hand():
    # units 0, 1, 2 are of a, 3 and 4 of b: 0 joins 1, 3 joins 4, then 2 joins {0, 1}, then all
    linkage = np.array([[0, 1, 0.1, 2], [3, 4, 0.2, 2], [5, 2, 0.3, 3], [6, 7, 0.4, 5]])
    depth, height = _joins(linkage, np.array([True, True, True, False, False]))
    assert depth.tolist() == [3, 3, 2, 2, 2]
    assert height.tolist() == [0.4] * 5
    depth, height = _joins(linkage, np.array([True, False, True, False, False]))
    assert depth.tolist() == [1, 1, 1, 2, 2]
    assert height.tolist() == [0.1, 0.1, 0.3, 0.4, 0.4]
    depth, height = _joins(linkage, np.ones(5, bool))
    assert depth.tolist() == [-1] * 5
    assert np.isinf(height).all()


def test_mixing_by_hand():
    labels = np.array([0, 0, 1, 2, 0, 1, 1, -1])  # the first four units are of a
    found = cluster_mixing(labels, 4)
    assert found.counts.tolist() == [[2, 1], [1, 2], [1, 0]]
    assert found.shared == 1.0  # of the two clusters with several units
    even = [2 * (1 / 3) / (1 / 2 + 1 / 3), 2 * (1 / 4) / (1 / 4 + 2 / 3), 0]
    assert found.mixing == pytest.approx((3 * even[0] + 3 * even[1]) / 7)
    assert len(found.null) == 200
    apart = cluster_mixing(np.repeat([0, 1], 30), 30)
    assert apart.shared == 0
    assert apart.mixing == 0
    assert apart.null.min() > 0.4
    assert cluster_mixing(np.tile(np.arange(30), 2), 30).mixing == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_overlap_is_the_canonical_correlation(seed: int):
    draw = np.random.default_rng(seed)
    a = draw.normal(size=(400, 5))
    b = np.concatenate([a[:, :2] @ draw.normal(size=(2, 2)), draw.normal(size=(400, 1))], 1)
    found = cluster_overlap(moments_of(a, b), np.array([0, 0, 1, 1, 1, 0, 0, 1]))
    np.testing.assert_allclose(found[0], [1, 1], atol=1e-6)
    left, right = a[:, 2:5] - a[:, 2:5].mean(0), b[:, 2:] - b[:, 2:].mean(0)
    q_left, q_right = np.linalg.qr(left)[0], np.linalg.qr(right)[0]
    np.testing.assert_allclose(found[1], np.linalg.svd(q_left.T @ q_right, compute_uv=False), atol=1e-6)
    assert cluster_overlap(moments_of(a, b), np.array([0] * 5 + [1] * 3)) == {}


def test_dead_units_have_no_cluster():
    a, b, truth = planted(1)
    a[:, 4] = 3.0
    m = moments_of(a, b)
    found = joint_spectral_clusters(m.within_a, m.between, m.within_b, k=4)
    assert found.labels[4] == -1
    assert adjusted_rand_score(np.delete(truth, 4), np.delete(found.labels, 4)) == 1
    assert len(joint_tree(m.within_a, m.between, m.within_b).units) == 39
    assert shared_groups(a, b).labels_a[4] == -1


def test_the_lens_tells_shared_causes_from_own():
    shared, own = (shared_groups(*planted(0, own=own)[:2]) for own in (False, True))
    assert shared.summary()["mixing"] == 1
    assert shared.summary()["shared"] == 1
    assert shared.overlap.min() > 0.7
    assert own.summary()["mixing"] == 0
    assert own.summary()["p_apart"] == pytest.approx(1 / 201)
    assert np.isnan(own.overlap).all()
    assert own.summary()["joins"] > shared.summary()["joins"]


def test_bad_input_is_one_sentence():
    a, b, truth = planted(0)
    m = moments_of(a, b)
    tables = m.within_a, m.between, m.within_b
    nan = m.between.copy()
    nan[0, 0] = np.nan
    cases = [
        (lambda: joint_spectral_clusters(m.within_a, m.between.T[:3], m.within_b), "are needed"),
        (lambda: joint_spectral_clusters(*tables, k=41), "41 clusters of 40 units"),
        (lambda: joint_spectral_clusters(*tables, k=1), "1 clusters"),
        (lambda: joint_spectral_clusters(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))), "at least three"),
        (lambda: joint_spectral_clusters(m.within_a, nan, m.within_b), "NaN or infinity"),
        (lambda: joint_tree(*tables, n_vectors=0), "n_vectors is 0"),
        (lambda: cluster_mixing(truth, 40), "p is 40"),
        (lambda: cluster_mixing(np.arange(40), 20), "at least one with two units"),
        (lambda: cluster_overlap(m, truth[:3]), "moments are of 40"),
        (lambda: shared_groups(np.ones((9, 3)), np.eye(9)), "no unit of one site varies"),
    ]
    for call, words in cases:
        with pytest.raises(InputError, match=words):
            call()
