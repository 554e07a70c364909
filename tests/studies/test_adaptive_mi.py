"""The adaptive-mi study: its smallest run, and how its numbers become claims."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.data.szt import ib_task
from netloupe.lenses.information.estimators import binned_mi, ebab_edges
from netloupe.studies import _adaptive_mi_fashion as fashion
from netloupe.studies import _adaptive_mi_runs as runs
from netloupe.studies import adaptive_mi as study

NAMES = [
    "tanh", "estimator", "averaging", "penalty", "penalty-levels", "generalisation", "kernel", "smooth", "images",
]  # fmt: skip


def test_smoke_measures_every_claim_but_the_one_on_real_images():
    result = run_study("adaptive-mi", "smoke", seed=1)
    assert [claim.name for claim in result.claims] == NAMES
    for claim in result.claims[:-1]:
        assert claim.control_is_negative, claim.name
        assert claim.measured is not None
    assert result.claims[-1].verdict == "not tested"
    assert "full preset" in result.claims[-1].note
    json.dumps(result.document(), allow_nan=False)


def made(ebab: np.ndarray, ranged: np.ndarray | None = None, accuracy: float = 0.95) -> runs.Trained:
    trained = runs.Trained(
        runs.Copy("relu", 0), list(range(len(ebab))), accuracy, [], torch.zeros(1), np.zeros(1), runs.WIDTHS
    )
    trained.measured = {"ebab": np.asarray(ebab, float), "fixed": np.asarray(ebab, float)}
    if ranged is not None:
        trained.measured |= {"global": np.asarray(ranged, float), "maxima": np.ones((len(ebab), 5))}
    return trained


def collection(**changes) -> runs.Runs:
    flat = made([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1]])
    found = runs.Runs([flat] * 2, flat, flat, [flat] * 2, [flat] * 2, [flat] * 2, [flat] * 4, {})
    return dataclasses.replace(found, **changes)


def test_a_drop_counts_only_with_the_accuracy():
    good = made([[12, 12, 12, 11, 9, 5], [12, 12, 12, 9, 6, 5]])
    poor = made(good.ebab, accuracy=0.89)
    settings = dataclasses.replace(study.SETTINGS["smoke"], n_claimed=2)
    assert study.tanh_claim(collection(tanh=[good, good]), settings, "").verdict == "reproduced"
    claim = study.tanh_claim(collection(tanh=[good, poor]), settings, "")
    assert claim.values == (2.5, 0.0)
    assert claim.verdict == "not reproduced"


def test_estimators_disagree_only_with_more_bits_and_opposite_signs():
    up, down = [[6, 6, 6, 6, 6, 1], [7, 7, 7, 7, 7, 1]], [[2, 2, 2, 2, 2], [1, 1, 1, 1, 1]]
    tanh = [made([[6, 5, 4, 3, 2, 1]] * 2)] * 2
    claim = study.estimator_claim(collection(relu=[made(up, down), made(up, np.array(up)[:, :5] - 1)], tanh=tanh), "")
    assert claim.values == (1.0, 0.0)
    assert claim.verdict == "reproduced"
    assert study.estimator_claim(collection(relu=[made(up, np.array(down) + 9)], tanh=tanh), "").measured == 0.0


def test_spread_against_mean_counts_layers():
    one, two = made([[9.0] * 6, [8, 8, 8, 9, 9, 9]]), made([[9.0] * 6, [10, 8, 8, 10, 9, 9]])
    claim = study.averaging_claim(collection(relu=[one, two], tanh=[made([[9.0] * 6, [9, 9, 9, 7, 5, 9]])] * 2), "")
    # changes: (-1, 1), (-1, -1), (-1, -1), (0, 1), (0, 0)
    assert claim.measured == 3.0
    assert claim.control == 0.0


def test_penalty_needs_every_layer_and_levels_the_gap():
    without = [made([[0] * 6, [12, 11, 10, 9, 8, 4]])] * 2
    with_ = [made([[0] * 6, [12, 9, 8, 7, 6, 5.5]]), made([[0] * 6, [12, 9, 8, 7, 6.1, 6.0]])]
    share, gap = study.penalty_claims(collection(relu=without, penalised=with_, barely=without), "")
    assert share.values == (1.0, 0.0)
    assert share.control == 0.0
    assert gap.values == pytest.approx((1.5, 1.0))
    assert gap.control == 5.0


def test_correlations_are_ranks_and_zero_without_variation():
    from scipy.stats import spearmanr

    draw = np.random.default_rng(0)
    scores, accuracies = draw.standard_normal((20, 6)).round(1), draw.standard_normal(20).round(1)
    scores[:, 2] = 0.0
    found = study._correlations(scores, accuracies)
    for index in (0, 1, 3, 4, 5):
        assert found[index] == pytest.approx(spearmanr(scores[:, index], accuracies).statistic)
    assert found[2] == 0.0


def test_the_margin_is_found_where_only_the_last_layer_follows_accuracy():
    draw = np.random.default_rng(0)
    varied = []
    for index in range(20):
        hidden = draw.uniform(6, 9, 5)
        varied.append(made([[10] * 6, [*hidden, 9 - index / 4]], accuracy=0.6 + index / 60))
    settings = dataclasses.replace(study.SETTINGS["smoke"], n_permutations=200)
    claim = study.generalisation_claim(collection(varied=varied), settings, 0, "")
    assert claim.verdict == "reproduced"
    assert claim.control < 0


def test_a_trained_copy_remembers_every_look_and_its_test_is_unseen():
    inputs, labels = ib_task("quadratic", 0)
    copies = [runs.Copy("tanh", 1), runs.Copy("prelu", 2, share=0.2), runs.Copy("tanh", 3, shuffled=True)]
    trained = runs.train_stack(copies, inputs, labels, 30, 4)
    assert trained[0].steps == [0, 1, 5, 30]
    layers = trained[0].layers(3)
    assert [layer.shape[1] for layer in layers] == [10, 7, 5, 4, 3, 2]
    np.testing.assert_allclose(layers[-1].sum(1), 1, rtol=1e-5)
    assert trained[0].ebab[3, 1] == binned_mi(layers[1], labels, ebab_edges(layers[1])).i_xt
    assert trained[1].ebab.shape == (4, 6)
    feed = runs.Feed(4096, copies)
    assert not set(feed.tests[1].tolist()) & set(feed.own[1].tolist())
    assert len(feed.own[1]) == int(0.2 * 4096)
    batches = torch.cat([feed(step, torch.Generator())[0][:, 1] for step in range(3)])
    assert len(set(batches.tolist())) == 3 * 256
    assert set(batches.tolist()) <= set(feed.own[1].tolist())


def test_real_images_go_through_the_same_claim():
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.rand(400, 20, generator=draw), torch.randint(0, 3, (400,), generator=draw)
    settings = dataclasses.replace(study.SETTINGS["smoke"], epochs=2, looks=3)
    claim = fashion.image_claim(settings, 0, images, labels, images[:100], labels[:100], n_seeds=2)
    assert len(claim.values) == 2
    assert claim.control == 0.0
    assert claim.plot is not None


def test_presets():
    assert study.SETTINGS["full"].fashion
    assert study.SETTINGS["full"].n_tanh == 50
    assert study.SETTINGS["full"].steps == 8000 * 12
    with pytest.raises(InputError, match="one of smoke, small, full"):
        next(study.run("tiny"))  # type: ignore[arg-type]
