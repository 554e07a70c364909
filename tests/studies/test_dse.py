"""The dse study: its smallest run, and how its numbers become claims."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from netloupe.core.batches import Batch
from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.models.resnet import ResNet18
from netloupe.studies import _dse_training as training
from netloupe.studies import dse as study

NAMES = [
    "clusters", "dimension", "labels", "labels-random", "entropy-rises", "information-rises", "matched-scale",
    "matched-information", "contrastive", "initialisation",
]  # fmt: skip


def test_smoke_measures_every_claim():
    result = run_study("dse", "smoke", seed=1)
    assert [claim.name for claim in result.claims] == NAMES
    for claim in result.claims:
        assert claim.measured is not None
        assert claim.control_is_negative, claim.name
    assert [claim.verdict for claim in result.claims[:4]] == ["reproduced"] * 4
    json.dumps(result.document(), allow_nan=False)


def test_blobs_are_as_far_apart_as_said():
    z, labels = study.blobs(4000, 4, 20, 0)
    centres = np.stack([z[labels == k].mean(0) for k in range(4)])
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.testing.assert_allclose(distances[np.triu_indices(4, 1)], study.APART, atol=0.5)
    assert z[labels == 0].std(0).mean() == pytest.approx(1.0, abs=0.05)


def test_corruption_draws_its_share_anew():
    labels = np.arange(10_000) % 5
    for share in (0.0, 0.5, 1.0):
        kept = (study.corrupted(labels, share, 3) == labels).mean()
        assert kept == pytest.approx(1 - share + share / 5, abs=0.02)


def test_a_curve_that_rises_anywhere_counts_as_nothing(monkeypatch):
    settings = dataclasses.replace(study.SETTINGS["smoke"], n_points=100)
    values = iter([2.0, 1.0, 1.5, 0.5, 0.2, 0.0])

    def made(z, reference, seed, entropy=None):
        return (0.0 if entropy else next(values)), reference

    monkeypatch.setattr(study, "diffusion_spectral_mutual_information", made)
    claim, _ = study.label_claims(settings, [0])
    assert claim.measured == 0.0
    values = iter([2.0, 1.5, 1.0, 0.5, 0.2, 0.0])
    claim, random = study.label_claims(settings, [0])
    assert claim.verdict == random.verdict == "reproduced"


def test_a_course_looks_before_during_and_after():
    settings = dataclasses.replace(study.SETTINGS["smoke"].training, epochs=2, every=1, n_measured=100)
    inputs, labels = study.load_data("smoke")
    data = (inputs[:200], labels[:200])
    clusters = np.arange(100) % 3
    found = training.course(settings, settings.network(0), data, clusters, 2, 1e-3, 0)
    assert found.column("epoch") == [0.0, 1.0, 2.0]
    assert found.rise("entropy") == found.looks[-1].entropy - found.looks[0].entropy
    assert 0 <= found.accuracy <= 1
    still = training.course(settings, settings.network(0), data, clusters, 1, 0.0, 0)
    assert still.rise("entropy") == 0.0


def test_a_diverged_network_is_not_a_number():
    look = training.look_at(np.full((10, 2), np.nan), np.arange(10) % 2, np.arange(10) % 2, 3.0)
    assert look.epoch == 3.0
    assert math.isnan(look.entropy)


def test_matched_looks_do_not_see_the_scale():
    z, labels = study.blobs(80, 4, 10, 0)
    one, two = (training.look_at(scale * z, labels, labels, 0.0) for scale in (1.0, 0.01))
    assert one.matched_entropy == pytest.approx(two.matched_entropy, abs=1e-9)
    assert one.matched_label == pytest.approx(two.matched_label, abs=1e-9)
    assert one.entropy > two.entropy + 1


def test_views_agree_loss_is_small_where_pairs_match():
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(16, 64, generator=draw)
    assert training.views(images, draw).shape == images.shape
    assert not torch.equal(training.views(images, draw), images)
    code = torch.eye(8)
    batch = Batch((), {}, None, None, 16)
    matched = float(training.agreement_loss(torch.cat([code, code]), batch))
    crossed = float(training.agreement_loss(torch.cat([code, code.roll(1, 0)]), batch))
    expected = math.log(1 + 14 * math.exp(-1 / training.TEMPERATURE))
    assert matched == pytest.approx(expected, rel=1e-5)
    assert crossed > matched + 1


def test_convolutions_are_drawn_anew_at_the_width_asked():
    model = ResNet18(1, 10, random_state=0)
    head = model.head.weight.detach().clone()
    training.redraw(model, 0.01, 3)
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Conv2d)])
    assert float(weights.detach().std()) == pytest.approx(0.01, rel=0.01)
    assert torch.equal(model.head.weight, head)


@pytest.mark.parametrize(
    ("starts", "verdict"),
    [
        ({0.01: (1.0, 0.9), 0.1: (2.0, 0.8), 0.005: (1.0, 0.9)}, "reproduced"),
        ({0.01: (1.0, 0.7), 0.1: (2.0, 0.8), 0.005: (1.0, 0.7)}, "not reproduced"),
        ({0.01: (3.0, 0.9), 0.1: (2.0, 0.8), 0.005: (3.0, 0.9)}, "not reproduced"),
        ({0.01: (1.0, 0.9), 0.1: (2.0, 0.8), 0.005: (1.0, 0.5)}, "not distinguishable"),
    ],
)
def test_initialisation_verdict_follows_from_the_starts(monkeypatch, starts, verdict):
    def start(settings, data, std, seed):
        return training.Start(starts[std][0], starts[std][1] + 0.001 * (seed % 3) * (std == 0.01))

    monkeypatch.setattr(training, "start", start)
    settings = dataclasses.replace(study.SETTINGS["small"].training)
    claim = training.initialisation_claim(settings, study.load_data("smoke"), 0)
    assert claim.verdict == verdict


def test_presets():
    assert study.SETTINGS["full"].training.n_measured == 5000
    with pytest.raises(InputError, match="one of smoke, small, full"):
        next(study.run("tiny"))  # type: ignore[arg-type]
