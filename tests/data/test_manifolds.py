"""Shapes with the topology they claim, and subjects who share it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from netloupe.core.errors import InputError
from netloupe.data.manifolds import MANIFOLDS, arc, distorted_subjects, manifold


def gap(x: np.ndarray) -> float:
    """The longest edge that single linkage needs, over the median one."""
    edges = linkage(pdist(x), "single")[:, 2]
    return float(edges[-1] / np.median(edges))


@pytest.mark.parametrize("name", MANIFOLDS)
def test_shapes_are_points_in_space_that_repeat(name: str):
    x = manifold(name, 61, seed=3)
    assert x.shape == (61, 3)
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x, manifold(name, 61, seed=3))


def test_closed_forms():
    ring = manifold("ring", 8)
    np.testing.assert_allclose(np.linalg.norm(ring, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(np.roll(ring, 1, 0) - ring, axis=1), 2 * np.sin(np.pi / 8))
    torus = manifold("torus", 300)
    np.testing.assert_allclose((np.hypot(torus[:, 0], torus[:, 1]) - 10) ** 2 + torus[:, 2] ** 2, 16)
    np.testing.assert_allclose(np.linalg.norm(manifold("sphere", 50), axis=1), 10)
    flat, over = manifold("figure_8", 60), manifold("untouched_8", 60)
    assert squareform(pdist(flat))[15, 45] == pytest.approx(0, abs=1e-12)  # it crosses itself
    assert squareform(pdist(over))[15, 45] == pytest.approx(2 / 3)
    broken = manifold("broken_8", 60)
    assert np.linalg.norm(broken[0] - broken[-1]) > 1.5


def test_parts():
    assert gap(manifold("two_rings", 60)) > 2
    assert gap(manifold("ring", 60)) == pytest.approx(1)
    assert gap(manifold("blobs", 60, seed=1)) > 2
    assert np.linalg.norm(np.diff(arc(60, 0.5)[[0, -1]], axis=0)) == pytest.approx(2)
    np.testing.assert_array_equal(manifold("arc", 60), arc(60, 5 / 6))
    assert np.linalg.norm(np.diff(arc(60)[[0, -1]], axis=0)) == pytest.approx(1)


def test_subjects_share_the_shape_and_not_its_distances():
    found = distorted_subjects(("ring", "arc"), 5, 20, stretch=0.5, noise=0.0, seed=1)
    assert found.features.shape == (10, 20, 3)
    assert found.subject.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found.shape.tolist() == [0, 1] * 5
    for seen in found.features[::2]:  # an ellipse: two axes' factors, the same for all points
        ring = manifold("ring", 20)
        factor = seen[:, :2] / np.where(np.abs(ring[:, :2]) < 1e-9, np.nan, ring[:, :2])
        np.testing.assert_allclose(np.nanmin(factor, 0), np.nanmax(factor, 0), rtol=1e-6)
    same = distorted_subjects(("ring",), 3, 20, stretch=0.0, noise=0.0)
    np.testing.assert_allclose(pdist(same.features[0]), pdist(same.features[2]))
    wide = distorted_subjects(("ring",), 3, 20, stretch=0.0, noise=0.0, n_units=12)
    np.testing.assert_allclose(pdist(wide.features[0]), pdist(same.features[0]))
    own = distorted_subjects((arc(20, 0.4), "ring"), 1, 20, 0.0, 0.0)
    np.testing.assert_allclose(pdist(own.features[0]), pdist(arc(20, 0.4)))
    assert own.names == ("shape 0", "ring")
    logs = np.log(np.ptp(distorted_subjects(("ring",), 400, 8, 0.5, 0.0).features[:, :, 0], axis=1) / 2)
    assert logs.std() == pytest.approx(0.5, rel=0.1)
    noisy = distorted_subjects(("ring",), 50, 40, stretch=0.0, noise=0.2)
    assert (noisy.features - same_points(40)).std() == pytest.approx(0.2, rel=0.05)


def same_points(n: int) -> np.ndarray:
    return manifold("ring", n)


def test_refusals():
    for bad in (
        lambda: manifold("square"),
        lambda: manifold("ring", 3),
        lambda: distorted_subjects(n_subjects=0),
        lambda: distorted_subjects(()),
        lambda: distorted_subjects(n_units=2),
        lambda: distorted_subjects(stretch=-1),
        lambda: distorted_subjects(noise=float("nan")),
        lambda: distorted_subjects(("knot",)),
        lambda: distorted_subjects((np.ones((5, 3)),), n_points=6),
        lambda: arc(10, 1.0),
    ):
        with pytest.raises(InputError):
            bad()
