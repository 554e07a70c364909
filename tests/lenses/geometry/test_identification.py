"""Identification beside scikit-learn's loop and the authors' numbers; the bootstrap by brute force; the map."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestCentroid

from netloupe.core.dissimilarity import Dissimilarities
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.geotopology import geo_topological, geodesic, rank_minmax
from netloupe.lenses.geometry.identification import (
    RepresentationIdentifier,
    arrangement_map,
    bootstrap_identification,
    corner_accuracy,
    identification_map,
)
from netloupe.lenses.geometry.identification_scores import accuracy_of
from netloupe.lenses.geometry.topology import corner_parameters


def responses(seed: int, n_subjects: int = 5, n_regions: int = 3, n: int = 8, noise: float = 1.2):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n_regions, n, 4))
    vectors = [
        pdist(base[r] + noise * rng.standard_normal((n, 4))) for _ in range(n_subjects) for r in range(n_regions)
    ]
    return (
        np.stack(vectors),
        np.repeat(np.arange(n_subjects), n_regions),
        np.tile(np.arange(1, n_regions + 1), n_subjects),
    )


def loop(vectors: np.ndarray, subject: np.ndarray, region: np.ndarray) -> np.ndarray:
    said = np.empty_like(region)
    for who in np.unique(subject):
        out = subject == who
        said[out] = NearestCentroid().fit(vectors[~out], region[~out]).predict(vectors[out])
    return said


OFFICIAL = {  # seed: accuracy from distances and from geo-topological matrices, mean within/across ratio (code of arXiv 2309.11028)
    0: (0.6, 0.6, 0.9367282901302684),
    1: (0.5333333333333333, 0.5333333333333333, 0.9278833020541434),
    2: (0.4666666666666667, 0.6, 0.9418400838542045),
    3: (0.7333333333333333, 0.6, 0.93310183975542),
}


@pytest.mark.parametrize("seed", OFFICIAL)
def test_numbers_of_the_authors_code(seed: int):
    raw, squashed, ratio = OFFICIAL[seed]
    data = responses(seed)
    found = RepresentationIdentifier().fit(*data)
    assert found.score() == pytest.approx(raw)
    assert found.within_across_ == pytest.approx(ratio, rel=1e-12)
    assert RepresentationIdentifier(geo_topological).fit(*data).score() == pytest.approx(squashed)


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_centroid_of_the_others(seed: int):
    vectors, subject, region = responses(seed, 4, 4, 7)
    order = np.random.default_rng(seed).permutation(len(vectors))
    vectors, subject, region = vectors[order], 10 * subject[order], np.array(list("dcba"))[region[order] - 1]
    extra = np.concatenate([vectors, vectors[:3] + 0.1])  # a subject may respond more than once
    subject, region = np.concatenate([subject, subject[:3]]), np.concatenate([region, region[:3]])
    found = RepresentationIdentifier(rank_minmax).fit(extra, subject, region)
    said = loop(np.stack([rank_minmax(v) for v in extra]), subject, region)
    assert found.predicted_.tolist() == said.tolist()
    assert found.score() == pytest.approx((said == region).mean())
    for i, name in enumerate(found.regions_):
        own = region == name
        assert found.sensitivity_[i] == pytest.approx((said[own] == name).mean())
        assert found.specificity_[i] == pytest.approx((said[~own] != name).mean())
    assert found.confusion_.sum() == len(extra)
    whole = NearestCentroid().fit(np.stack([rank_minmax(v) for v in extra]), region)
    assert found.predict(vectors).tolist() == whole.predict(np.stack([rank_minmax(v) for v in vectors])).tolist()


def test_a_bootstrap_draw_is_what_drawing_gives():
    """Weights in place of repeated stimuli: the same as building the repeated matrix and dropping what is no pair."""
    vectors, subject, region = responses(2)
    rng = np.random.default_rng(5)
    rows, stimuli = rng.integers(0, 15, 15), rng.integers(0, 8, 8)
    drawn = Dissimilarities(vectors[rows]).take(stimuli).values
    kept = drawn[:, ~np.isnan(drawn).any(0)]
    wanted = (loop(kept, subject[rows], region[rows]) == region[rows]).mean()
    times = np.bincount(stimuli, minlength=8)
    one, two = np.triu_indices(8, 1)
    weight = (times[one] * times[two]).astype(float)
    table = vectors[rows] * np.sqrt(weight)
    assert accuracy_of(table, subject[rows], region[rows] - 1, 3) == pytest.approx(wanted)
    assert squareform(weight).sum() / 2 == kept.shape[1]


def test_bootstrap():
    data = responses(0, n_subjects=8, noise=0.8)
    named = {"distances": None, "ranked": rank_minmax, "local": partial(geo_topological, lower=0.0, upper=0.1)}
    found = bootstrap_identification(*data, named, n_boot=60, seed=1)
    assert found == bootstrap_identification(*data, named, n_boot=60, seed=1)
    assert found.draws.shape == (60, 3)
    for name, accuracy in zip(found.names, found.accuracy):
        assert accuracy == RepresentationIdentifier(named[name]).fit(*data).score()
    assert np.abs(found.draws.mean(0) - found.accuracy).max() < 0.2
    gain, (low, high), p = found.difference("ranked", "local")
    assert low <= gain <= high
    assert 0 <= p <= 1
    assert found.difference("ranked", "ranked") == (0, (0, 0), 1)
    assert found.paragraph()
    found.plot(Figure().subplots())
    for over in (("subject",), ("session",), ("stimulus",), ("session", "stimulus")):
        draws = bootstrap_identification(*data, n_boot=20, over=over).draws
        assert draws.shape == (20, 2)
        assert draws.std() > 0
    same = responses(0, noise=1e-6)
    assert bootstrap_identification(*same, n_boot=10).accuracy.tolist() == [1, 1]


def test_map():
    data = responses(3, n_subjects=6, noise=0.9)
    found = identification_map(*data, step=0.25)
    assert found.accuracy.shape == (5, 5)
    for i, lower in enumerate(found.lower):
        for j, upper in enumerate(found.upper):
            if upper < lower or not 0.01 < lower + upper < 1.99:
                assert np.isnan(found.accuracy[i, j])
            else:
                transform = partial(geo_topological, lower=lower, upper=upper)
                assert found.accuracy[i, j] == RepresentationIdentifier(transform).fit(*data).score()
    assert found.summary()["ranked"] == RepresentationIdentifier(rank_minmax).fit(*data).score()
    lower, upper = found.best()
    best = RepresentationIdentifier(partial(geo_topological, lower=lower, upper=upper)).fit(*data).score()
    assert best == found.summary()["highest"]
    assert set(found.summary()) <= set(found.meanings)
    found.plot(Figure().subplots())
    two = identification_map(*data, step=0.5, after=partial(geodesic, keep="twostep", disconnected="max"))
    assert np.isfinite(two.accuracy[0, 1])
    assert len(identification_map(*data).lower) == 21


def test_corner_accuracy_is_a_mean_over_draws():
    data = responses(4)
    scores = [
        RepresentationIdentifier(partial(geo_topological, lower=low, upper=high)).fit(*data).score()
        for low, high in corner_parameters("local", 5, 2)
    ]
    assert corner_accuracy(*data, "local", 5, 2) == pytest.approx(np.mean(scores))


def test_findings_are_saved(tmp_path):
    data = responses(0)
    for finding in (bootstrap_identification(*data, n_boot=5), identification_map(*data, step=0.5)):
        assert Finding.load(finding.save(tmp_path / "f")) == finding
        assert set(finding.summary()) <= set(finding.meanings)


def test_arrangement():
    vectors = np.concatenate([responses(0, noise=0.1)[0], responses(9, noise=0.1)[0]])
    one = arrangement_map(vectors)
    assert one.shape == (30, 2)
    apart = squareform(pdist(one))
    assert apart[0, 3] < apart[0, 1]  # same region of another subject is nearer than another region
    turned = arrangement_map(vectors, reference=one @ [[0, 1], [-1, 0]])
    np.testing.assert_allclose(squareform(pdist(turned)) / pdist(turned).max(), apart / apart.max(), atol=1e-6)
    with pytest.raises(InputError):
        arrangement_map(vectors[:2])
    with pytest.raises(InputError):
        arrangement_map(vectors, reference=one[:3])


def test_dissimilarities_are_taken_as_they_are():
    vectors, subject, region = responses(1)
    assert (
        RepresentationIdentifier().fit(Dissimilarities(vectors), subject, region).score()
        == RepresentationIdentifier().fit(vectors, subject, region).score()
    )


def test_refusals():
    vectors, subject, region = responses(0)
    nan = vectors.copy()
    nan[2, 2] = np.nan
    fit = RepresentationIdentifier().fit
    cases = [
        (lambda: fit(vectors, subject * 0, region), "at least two of each"),
        (lambda: fit(vectors, subject, region * 0), "at least two of each"),
        (lambda: fit(vectors[1:], subject[1:], region[1:]), "no response of region '1'"),
        (lambda: fit(vectors, subject[1:], region), "one of each"),
        (lambda: fit(vectors[0], subject, region), "condensed"),
        (lambda: fit(vectors[:, :-1], subject, region), "pairs"),
        (lambda: RepresentationIdentifier().score(), "not been fitted"),
        (lambda: fit(vectors, subject, region).predict(vectors[:, :10]), "same stimuli"),
        (lambda: bootstrap_identification(vectors, subject, region, over=("subject", "session")), "not both"),
        (lambda: bootstrap_identification(vectors, subject, region, over=()), "over is"),
        (lambda: bootstrap_identification(vectors, subject, region, n_boot=0), "draws"),
        (lambda: bootstrap_identification(vectors, subject, region, n_boot=2).difference("a", "ranked"), "transforms"),
        (lambda: identification_map(vectors, subject, region, step=0.7), "step"),
        (lambda: fit(np.ones((15, 28)), subject, region) and RepresentationIdentifier(rank_minmax).fit(np.ones((15, 28)), subject, region), "equally far"),
    ]  # fmt: skip
    for bad, words in cases:
        with pytest.raises(InputError, match=words):
            bad()
    with pytest.raises(NonFiniteError):
        fit(nan, subject, region)
