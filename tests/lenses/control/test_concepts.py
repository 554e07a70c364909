"""Concept dictionaries: planted latents, closed forms, thresholds against scikit-learn, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.control.concepts import ConceptDictionary
from netloupe.lenses.control.detection import Detection, Span, concept_labels, log_decay

NAMES = ("red", "blue", "dog")


def planted(seed: int = 0, n_texts: int = 60, length: int = 6, m: int = 20):
    """Concept c is at one token of a text, where latent c (strong) and latent c + 3 (weak) fire; the others are noise."""
    rng = np.random.default_rng(seed)
    samples = np.repeat(np.arange(n_texts), length)
    codes = 0.1 * rng.random((len(samples), m))
    labels = np.zeros((len(samples), 3), dtype=bool)
    for text in range(n_texts):
        at = text * length + rng.integers(length)
        labels[at, text % 3] = True
        codes[at, text % 3] += 2 + rng.random()
        codes[at, text % 3 + 3] += 1 + rng.random()
    return codes, labels, samples


@pytest.mark.parametrize("mode", ["single", "multi", "relation"])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_latents_are_found_and_detect_other_texts(mode: str, seed: int):
    found = ConceptDictionary(mode, k=2).fit(*planted(seed), NAMES)  # type: ignore[arg-type]
    if mode != "relation":
        for c in range(3):
            assert found.latents_[c][0] == c
    if mode == "multi":
        assert [one[1] for one in found.latents_] == [3, 4, 5]
    judged = found.evaluate(*planted(seed + 10))
    assert judged.summary()["worst"] > 0.98
    assert judged.leaked == 0
    assert found.evaluate(*planted(seed)).leaked == 1


def test_scores_are_differences_of_means_over_texts():
    codes, labels, samples = planted(3)
    found = ConceptDictionary(search_top=None).fit(codes, labels, samples, NAMES)
    official = ConceptDictionary(search_top=None, official=True).fit(codes, labels, samples, NAMES)
    for c in range(3):
        pos = [codes[(samples == t) & labels[:, c]].mean(0) for t in range(60) if (labels[samples == t, c]).any()]
        neg = [codes[(samples == t) & ~labels[:, c]].mean(0) for t in range(60)]
        np.testing.assert_allclose(found.scores_[c], np.mean(pos, 0) - np.mean(neg, 0), atol=1e-12)
        np.testing.assert_allclose(official.scores_[c], np.sum(pos, 0) / 60 - np.mean(neg, 0), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_has_the_best_balanced_accuracy_of_all(seed: int):
    codes, labels, samples = planted(seed)
    codes += np.random.default_rng(seed).normal(scale=0.8, size=codes.shape)
    for official in (False, True):
        found = ConceptDictionary(top=None, multi=True, official=official).fit(codes, labels, samples, NAMES)
        scores = found.scores(codes)
        for c in range(3):
            grid = np.unique(scores[:, c])
            best = max(balanced_accuracy_score(labels[:, c], scores[:, c] >= t) for t in grid)
            said = scores[:, c] >= found.threshold_[c] if official else scores[:, c] > found.threshold_[c]
            assert balanced_accuracy_score(labels[:, c], said) == pytest.approx(best, abs=1e-12)


def test_activations_are_above_the_threshold_and_one_concept_survives():
    codes = np.array([[3.0, 2.0, 0.5, -4.0], [0.0, 0.0, 0.0, 0.0], [1.0, 5.0, 0.0, 0.0]])
    labels = np.eye(3, dtype=bool)[[0, 2, 1]][:, :2]
    found = ConceptDictionary(tau=0.5, search_top=None).fit(codes, labels, [0, 0, 1], ("a", "b"))
    np.testing.assert_allclose(found.activations(codes, [0, 0, 1]).local, [[2.5, 0], [0, 0], [0, 4.5]])
    np.testing.assert_allclose(found.activations(codes, [0, 0, 1]).overall, [[1.0, 0], [0, 4.5]])
    several = ConceptDictionary(tau=0.5, search_top=None, multi=True).fit(codes, labels, [0, 0, 1], ("a", "b"))
    np.testing.assert_allclose(several.activations(codes).local, [[2.5, 1.5], [0, 0], [0.5, 4.5]])
    only = ConceptDictionary(tau=0.5, search_top=None, multi=True, top=1).fit(codes, labels, [0, 0, 1], ("a", "b"))
    np.testing.assert_allclose(only.activations(codes).local, [[2.5, 0], [0, 0], [0, 4.5]])
    assert "latent 0" in found.explain("a")


def test_shared_latents_come_last_or_not_at_all():
    rng = np.random.default_rng(0)
    labels = np.eye(2, dtype=bool)[np.arange(40) % 2]
    codes = 0.01 * rng.random((40, 6))
    codes[:, 0] += 3.0  # with both
    codes[labels[:, 0], 1] += 1.0
    codes[labels[:, 1], 2] += 1.0
    rest = np.zeros((40, 6))
    codes, labels, samples = (
        np.concatenate([codes, rest]),
        np.concatenate([labels, labels & False]),
        np.tile(np.arange(40), 2),
    )
    order = {
        how: ConceptDictionary("multi", k=2, order=how, search_top=2, top=None).fit(codes, labels, samples, ("a", "b"))
        for how in ("unique_first", "unique_only", "original_order")
    }
    assert [one.tolist() for one in order["unique_first"].latents_] == [[1, 0], [2, 0]]
    assert [one.tolist() for one in order["unique_only"].latents_] == [[1], [2]]
    assert [one.tolist() for one in order["original_order"].latents_] == [[0, 1], [0, 2]]
    assert order["unique_first"].collisions_ == {0: ("a", "b")}
    assert order["unique_only"].collisions_ == {}


def test_weights_fall_and_have_the_mean():
    assert log_decay(1).tolist() == [1.0]
    weights = log_decay(10)
    assert weights.mean() == pytest.approx(1)
    assert (np.diff(weights) < 0).all()
    assert weights[3] / weights[0] == pytest.approx(1 - np.log(4) / np.log(11))


def test_labels_from_spans():
    samples = np.array([0, 0, 0, 1, 1])
    spans = [Span(0, 1, 3, "a"), Span(1, 0, 1, "b")]
    assert concept_labels(spans, samples, ("a", "b")).tolist() == [[0, 0], [0, 0], [1, 0], [0, 1], [0, 0]]
    assert concept_labels(spans, samples, ("a", "b"), "all")[:, 0].tolist() == [0, 1, 1, 0, 0]
    with pytest.raises(InputError, match="no span shows c"):
        concept_labels(spans, samples, ("a", "b", "c"))
    with pytest.raises(InputError, match="does not fit text 1"):
        concept_labels([Span(1, 1, 4, "a")], samples, ("a",))


def test_bad_input_is_refused_in_one_sentence():
    codes, labels, samples = planted()
    make = ConceptDictionary
    for bad, message in [
        ((codes, labels.astype(int), samples, NAMES), "need bool"),
        ((codes[:0], labels[:0], samples[:0], NAMES), "at least one of each"),
        ((codes, labels, samples, ("a", "b")), "2 names and 3 columns"),
        ((codes, np.zeros_like(labels), samples, NAMES), "no token shows red, blue, dog"),
    ]:
        with pytest.raises(InputError, match=message):
            make().fit(*bad)
    with pytest.raises(NonFiniteError):
        make().fit(np.where(codes > 2, np.nan, codes), labels, samples, NAMES)
    with pytest.raises(InputError, match="mode is 'other'"):
        make("other").fit(codes, labels, samples, NAMES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="order"):
        make(order="other").fit(codes, labels, samples, NAMES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no latent is higher on"):
        make().fit(np.ones_like(codes), labels, samples, NAMES)
    found = make().fit(codes, labels, samples, NAMES)
    with pytest.raises(InputError, match="19 latents"):
        found.scores(codes[:, :19])
    with pytest.raises(InputError, match="no concept of the dictionary"):
        found.steering_latents("cat")


def test_tensors_are_taken_and_a_finding_is_kept(tmp_path):
    codes, labels, samples = planted()
    found = ConceptDictionary("relation").fit(torch.from_numpy(codes), labels, samples, NAMES)
    judged = found.evaluate(codes, labels, samples)
    assert Detection.load(judged.save(tmp_path / "found")) == judged
    assert "too good" in judged.paragraph()
    assert "latent" in found.explain("dog")
    assert set(found.steering_latents("dog")) <= {2, 5}


def test_numbers_of_the_published_code():
    """Its concept scores, order of latents and thresholds on this input (32-bit there); its parser and chaining agree as well."""
    rng = np.random.default_rng(0)
    z, samples, labels = rng.random((240, 30)) ** 4 * 3, np.repeat(np.arange(40), 6), np.zeros((240, 4), dtype=bool)
    for text in range(40):
        labels[text * 6 + rng.integers(6), text % 4] = True
    for c in range(4):
        z[labels[:, c], c] += 1
    found = ConceptDictionary("multi", k=5, official=True).fit(z, labels, samples, ("a", "b", "c", "d"))
    np.testing.assert_allclose(found.scores_[0, :3], [-0.06143338, -0.38869697, -0.31520441], atol=1e-6)
    assert found.latents_[0].tolist() == [12, 27, 15, 17, 0, 25, 21, 11, 5, 28]
    np.testing.assert_allclose(found.threshold_, [0.69768160, 0.08337957, 0.59020041, 0.11635618], atol=1e-6)
