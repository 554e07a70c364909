"""The neural-collapse study: its smallest run, its largest on made-up files, and how its numbers become verdicts."""

from __future__ import annotations

import dataclasses
import json
import math
import struct

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from netloupe.core.errors import InputError, SubjectError
from netloupe.core.study import StudyResult, run_study
from netloupe.data import digits
from netloupe.lenses.geometry.near_collapse import CentralPath
from netloupe.models.resnet import ResNet18
from netloupe.studies import _neural_collapse_model as model
from netloupe.studies import _neural_collapse_training as training
from netloupe.studies import neural_collapse as study

NAMES = ["flow", "corollary", "corollary-scaling", "spectrum", "first-order", "depth", "weight-decay"]


@pytest.fixture(scope="module")
def smoke() -> StudyResult:
    return run_study("neural-collapse", "smoke", seed=0)


def test_smoke_measures_the_claims_and_every_control_is_negative(smoke):
    assert [claim.name for claim in smoke.claims] == NAMES
    for claim in smoke.claims:
        assert claim.control_is_negative, claim.name
        assert claim.verdict == ("not tested" if claim.measured is None else "reproduced"), claim.name
    assert [claim.name for claim in smoke.claims if claim.measured is None] == ["weight-decay"]
    assert "zero training error" in smoke.claims[-1].note


def test_smoke_can_be_written_and_drawn(smoke):
    again = json.loads(json.dumps(smoke.document(), allow_nan=False))
    assert [row["verdict"] for row in again["claims"]] == [claim.verdict for claim in smoke.claims]
    for claim in smoke.claims:
        axes = Figure().subplots()
        assert claim.plot is not None
        claim.plot(axes)
        assert axes.lines
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_another_seed_is_another_measurement_and_the_same_seed_the_same():
    one, same, other = (model.relative_drops(seed, model.PENALTIES[:1]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-5
    profiles = [
        training.depth_profile(
            dataclasses.replace(study.TRAINING["smoke"], layer_epochs=1), study.load_data("smoke"), seed, None
        )
        for seed in (0, 0, 1)
    ]
    assert profiles[0] == profiles[1] != profiles[2]


def write_idx(path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_full_preset_reads_its_files_and_trains_a_residual_network(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 10
    images = np.clip(25 * labels[:, None, None] + rng.integers(0, 25, (40, 28, 28)), 0, 255)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    tiny = dataclasses.replace(
        study.TRAINING["full"], layer_widths=(8, 8), layer_epochs=1, layer_seeds=1, epochs=1, drop_every=1,
        decay_seeds=1, batch_size=20, losses=("cross-entropy",),
        network=lambda bias, seed: ResNet18(1, 10, 2, bias, seed),
    )  # fmt: skip
    monkeypatch.setitem(study.TRAINING, "full", tiny)
    monkeypatch.setitem(study.MODEL, "full", model.ModelSettings(n_steps=20, record=5, n_seeds=1))
    claims = list(study.run("full", 1))
    assert [claim.name for claim in claims] == NAMES
    assert "Fashion-MNIST" in claims[-1].note
    assert "On shuffled labels, not interpreted" in claims[-1].note
    assert claims[-1].verdict == "not tested"
    assert all(claim.control is not None for claim in claims)


def test_full_preset_says_where_its_files_belong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    with pytest.raises(SubjectError, match="NETLOUPE_DATA"):
        next(study.run("full"))
    with pytest.raises(InputError, match="preset is 'large'"):
        next(study.run("large"))  # type: ignore[arg-type]


def test_presets_say_what_they_stand_for():
    assert study.TRAINING["small"].layer_widths == (256,) * 5
    assert study.TRAINING["full"].layer_widths == (256,) * 10
    assert set(study.TRAINING["full"].losses) == set(training.LOSSES)
    for bias in (True, False):
        network = study.TRAINING["small"].network(bias, 0)
        assert (network.get_submodule("head").bias is not None) == bias
    with_bias, without = (study.TRAINING["small"].network(bias, 0) for bias in (True, False))
    assert torch.equal(with_bias.get_submodule("fc1").weight, without.get_submodule("fc1").weight)


def path_of(ratio, within, between):
    time = np.arange(len(ratio), dtype=float)
    made = CentralPath(time, np.array(within), np.array(between), 0 * time, np.zeros((1, 1)), 0.0, None)
    np.testing.assert_allclose(made.nc1_trace, ratio)
    return made


def test_a_step_counts_only_if_all_three_inequalities_hold():
    assert model.monotone_share(path_of([1, 0.5, 0.25], [1, 0.75, 0.5], [1, 1.5, 2.0])) == 1.0
    assert model.monotone_share(path_of([1, 0.5, 1 / 3], [1, 0.75, 0.75], [1, 1.5, 2.25])) == 0.5
    assert model.monotone_share(path_of([1, 1.5, 0.5], [1, 0.75, 0.5], [1, 0.5, 1.0])) == 0.5
    assert model.monotone_share(path_of([1, 2], [1, 2], [1, 1])) == 0.0


def test_scaling_error_is_zero_for_an_exact_law_and_undefined_where_nothing_drops():
    drops = np.array([[0.5, 0.1, 0.01, 0.001], [1.0, 0.2, 0.02, 0.0025]])
    assert model.scaling_error(drops[:1], 2) == pytest.approx(0, abs=1e-12)
    assert model.scaling_error(drops, 2) == pytest.approx(0.2)
    assert model.scaling_error(drops, 0) == pytest.approx(0.5)
    drops[0, 3] = 0
    assert math.isnan(model.scaling_error(drops, 2))


def test_share_of_layers_that_do_not_rise():
    assert training.share_not_rising([3, 2, 2, 1]) == 1.0
    assert training.share_not_rising([1, 2, 1, 2, 3]) == 0.25


def runs_with(body: float, head: float, redrawn: float, accuracy: float = 1.0) -> training.Runs:
    shifts = {
        "baseline": 0.0, "body doubled": body, "head doubled": -head, "body zero": -2 * body, "head zero": head,
        "redrawn 1": -redrawn, "redrawn 2": redrawn / 2,
    }  # fmt: skip
    line = np.ones(2)
    return {name: training.Run(0.3 * math.exp(value), line, line, accuracy) for name, value in shifts.items()}


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (runs_with(0.5, 0.1, 0.2), "reproduced"),
        (runs_with(0.5, 0.1, 0.45), "not distinguishable"),
        (runs_with(0.1, 0.5, 0.2), "not reproduced"),
        (runs_with(0.5, 0.1, 0.2, accuracy=0.99), "not tested"),
        (runs_with(math.nan, 0.1, 0.2), "not reproduced"),
    ],
)
def test_weight_decay_verdict_follows_from_the_runs(monkeypatch, made, verdict):
    monkeypatch.setattr(training, "decay_runs", lambda *args, **kwargs: made)
    settings = dataclasses.replace(study.TRAINING["smoke"], decay_seeds=2)
    claim = training.decay_claim(settings, study.load_data("smoke"), 0)
    assert claim.verdict == verdict
    if verdict == "reproduced":
        assert claim.measured == pytest.approx(0.4)
        assert claim.control == pytest.approx(0.2)
    json.dumps(claim.document(), allow_nan=False)


def test_decay_runs_differ_in_what_their_names_say(monkeypatch):
    calls = []
    monkeypatch.setattr(training, "collapse_run", lambda *a, **k: calls.append((a[3:], k)))
    training.decay_runs(study.TRAINING["smoke"], study.load_data("smoke"), "squared error", 7)
    same, other = {"seed": 7, "order": 7}, [{"seed": 7, "order": order} for order in (57, 58)]
    assert [(factors, keys) for factors, keys in calls] == [
        ((1.0, 1.0), same), ((2.0, 1.0), same), ((1.0, 2.0), same), ((0.0, 1.0), same), ((1.0, 0.0), same),
        ((1.0, 1.0), other[0]), ((1.0, 1.0), other[1]),
    ]  # fmt: skip


def test_a_run_is_measured_on_the_way_and_repeats():
    inputs, labels = digits(flat=True)
    settings = dataclasses.replace(study.TRAINING["smoke"], epochs=4, drop_every=2, watch_every=2)
    data = (inputs[:200], labels[:200])
    one, same, decayed = (
        training.collapse_run(settings, data, "cross-entropy", body, 1.0, seed=0, order=0) for body in (1.0, 1.0, 2.0)
    )
    assert one.epochs.tolist() == [0, 2, 4]
    assert one.curve[-1] == one.nc1 < one.curve[0]
    assert one.nc1 == same.nc1 != decayed.nc1
    assert 0.1 < one.accuracy <= 1


def test_a_diverged_run_is_a_result_without_a_number(monkeypatch):
    monkeypatch.setattr(training, "RATE", 1e6)
    inputs, labels = digits(flat=True)
    settings = dataclasses.replace(study.TRAINING["smoke"], epochs=2, watch_every=2)
    run = training.collapse_run(settings, (inputs[:64], labels[:64]), "squared error", 1.0, 1.0, seed=0, order=0)
    assert math.isnan(run.nc1)
    assert run.accuracy == 0
