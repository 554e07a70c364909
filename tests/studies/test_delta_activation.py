"""The delta-activation study: its smallest run, and how its numbers become claims."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.isolation import pinned_threads
from netloupe.core.study import run_study
from netloupe.data.video import moving_digits
from netloupe.lenses.activity.temporal import ChangeReport
from netloupe.models.resnet import ResNet18
from netloupe.nn.delta import DeltaActivation, SpatialL1, delta_layers
from netloupe.studies import _delta_activation_exact as exact
from netloupe.studies import _delta_activation_training as training
from netloupe.studies import delta_activation as study

NAMES = [
    "temporal-density",
    "needs-correlation",
    "plain-dense",
    "rate",
    "exact-inference",
    "step-collapse",
    "step-cure",
]


@pytest.fixture(autouse=True)
def one_thread():
    with pinned_threads(1):  # more of them slow small networks down on a busy machine
        yield


def test_smoke_measures_its_claims():
    result = run_study("delta-activation", "smoke", seed=1)
    assert [claim.name for claim in result.claims] == NAMES
    for claim in result.claims[:-1]:
        assert claim.measured is not None
        assert claim.control_is_negative, claim.name
    assert result.claims[4].verdict == "reproduced"
    assert result.claims[-1].verdict == "not tested"
    json.dumps(result.document(), allow_nan=False)


def made(temporal: float, spatial: float, accuracy: float = 0.9, step: float = 0.1) -> training.Run:
    counts = {"changed": round(1000 * temporal), "nonzero": round(1000 * spatial), "compared": 1000, "n_values": 1000}
    arrays = {name: np.array([value]) for name, value in counts.items()}
    report = ChangeReport(("0:in",), **arrays, first=np.array([0]), fan_out=np.array([1.0]), tol=0.0)
    return training.Run(report, accuracy, {"0": step})


def runs(**changes) -> training.Runs:
    found = training.Runs(
        plain=made(0.73, 0.7), noise_free=made(0.15, 0.7),
        refined={rate: made(0.28 - 0.001 * i, 0.6, 0.87) for i, rate in enumerate(training.RATES)}, twin=made(0.7, 0.6),
        independent_plain=made(0.8, 0.83), independent=made(0.58, 0.7), unrefined=made(0.28, 0.6),
        learned={"fixed": made(0.28, 0.6), "paper": made(0.675, 0.6, step=0.002), "slow": made(0.28, 0.6),
                 "lsq": made(0.3, 0.6)},
        variants={},
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def claims(one: training.Runs):
    settings = study.SETTINGS["small"]
    return [
        study.density_claim(settings, [one]), study.correlation_claim([one]), study.plain_claim([one]),
        study.rate_claim([one]), study.collapse_claim(settings, [one]), study.cure_claim(settings, [one]),
    ]  # fmt: skip


def test_verdicts_follow_from_the_runs():
    assert [claim.verdict for claim in claims(runs())] == ["reproduced"] * 6
    assert claims(runs())[0].measured == pytest.approx(0.279 / 0.7)
    assert "1 of 1 steps" in claims(runs())[4].note
    worse = {rate: made(0.28, 0.6, 0.8) for rate in training.RATES}
    assert claims(runs(refined=worse))[0].measured == 1.0, "a loss of accuracy counts as no gain"
    rising = {rate: made(0.28 + 0.01 * i, 0.6) for i, rate in enumerate(training.RATES)}
    assert claims(runs(refined=rising))[3].verdict == "not reproduced"
    assert claims(runs(twin=made(0.2, 0.6)))[3].verdict == "not distinguishable"
    assert claims(runs(noise_free=made(0.9, 0.9)))[2].verdict == "not distinguishable"
    assert claims(runs(independent=made(0.3, 0.7)))[1].verdict == "not reproduced"
    calm = {**runs().learned, "paper": made(0.3, 0.6)}
    assert [claim.verdict for claim in claims(runs(learned=calm))[4:]] == ["not reproduced", "not distinguishable"]


def test_refinement_leaves_the_plain_network_alone_and_fixed_steps_fixed():
    settings = dataclasses.replace(study.SETTINGS["smoke"], refine_steps=2)
    data = settings.clips("motion", "train", 0)
    plain = settings.network(0)
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    start = training.refined(settings, plain, data, 0, steps=0)
    after = training.refined(settings, plain, data, 0)
    assert all(torch.equal(one, two) for one, two in zip(before, plain.parameters()))
    for name, layer in delta_layers(after).items():
        assert isinstance(layer, DeltaActivation)
        assert torch.equal(layer.theta, delta_layers(start)[name].theta)  # pyright: ignore[reportArgumentType]
    learned = training.refined(settings, plain, data, 0, grad="paper", step_rate=0.5)
    moved = [
        float((layer.theta - delta_layers(start)[name].theta).detach().abs().max())  # pyright: ignore[reportOperatorIssue]
        for name, layer in delta_layers(learned).items()
    ]
    assert 0 < max(moved) <= 2.01 * 0.5 * settings.learning_rate
    twin = training.refined(settings, plain, data, 0, rate=1e-3, twin=True)
    assert all(isinstance(layer, SpatialL1) for layer in delta_layers(twin).values())


def test_a_residual_network_takes_the_same_way():
    def clips(kind, part, seed):
        return moving_digits(8, 2, size=8, independent=kind == "independent", part=part, seed=seed)

    settings = training.Training(
        "tiny", clips, lambda seed: ResNet18(1, 10, width=4, random_state=seed), 1, 1, 1, batch_size=4, variants=True
    )
    found = training.measure(settings, 0, learn=False)
    assert set(found.variants) == {"layer", "neuron", "scratch"}
    assert found.learned == {}
    assert len(found.refined[1e-4].steps) == 18  # a block's first and shortcut convolutions share one


def test_a_miscounted_or_uncaught_fault_is_no_success(monkeypatch: pytest.MonkeyPatch):
    assert exact.exact_claim(0, 1).verdict == "reproduced"
    monkeypatch.setattr(exact, "check_deltas", lambda *_: None)
    assert exact.exact_claim(0, 1).measured == exact.LOST
    with pytest.raises(InputError, match="one of smoke, small, full"):
        next(study.run("tiny"))  # type: ignore[arg-type]


def test_random_networks_differ():
    one, two = (exact.random_network(seed, torch.float64) for seed in (0, 1))
    assert [p.shape for p in one.parameters()] != [p.shape for p in two.parameters()]
    assert torch.equal(exact.random_video(1, torch.float64), exact.random_video(1, torch.float64))
