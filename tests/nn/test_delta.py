"""Delta activations and the run by changes against closed forms and the plain run."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

from netloupe.core.errors import InputError
from netloupe.lenses.activity.temporal import change_report
from netloupe.nn.delta import (
    DeltaActivation,
    OverFrames,
    SpatialL1,
    calibrate_steps,
    clip_length,
    delta_layers,
    insert_delta,
    penalties,
)
from netloupe.nn.delta_inference import DeltaRunner, check_deltas
from netloupe.nn.tracing import fan_out
from netloupe.studies._delta_activation_exact import random_network, random_video

SEEDS = range(3)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(granularity="layer", channels=None, q=0.3, **options) -> DeltaActivation:
    return DeltaActivation(granularity, channels, q, **options).double()


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5),
    ).double()  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), q=st.floats(0.01, 3))
def test_a_still_clip_has_no_change_and_rounding_is_near(seed: int, q: float):
    x = draw(seed, 2, 1, 3, 4, 4)
    found = layer(q=q, rate=1.0)
    y = found(x.expand(2, 5, 3, 4, 4))
    assert found.density == 0
    assert float(found.penalty.detach()) == 0
    assert float((y - x).abs().detach().max()) <= q / 2 * (1 + 1e-12)
    assert torch.equal(y, y[:, :1].expand_as(y))
    torch.testing.assert_close(y[:, :1], q * torch.round(x / q), rtol=1e-6, atol=1e-6)


def test_a_ramp_changes_by_whole_steps():
    q, k = 0.25, 3
    x = (torch.arange(6, dtype=torch.float64) * q * k).view(1, 6, 1).expand(2, 6, 4)
    found = layer(q=q, rate=2.0, fan_out=5.0, emit="delta")
    out = found(x)
    assert torch.equal(out[:, 0], torch.zeros(2, 4, dtype=torch.float64))
    assert torch.equal(out[:, 1:], torch.full((2, 5, 4), q * k, dtype=torch.float64))
    assert found.density == 1
    assert float(found.penalty.detach()) == pytest.approx(2 * 5 * q * k)


@pytest.mark.parametrize("seed", SEEDS)
def test_white_noise_changes_as_often_as_the_normal_distribution_says(seed: int):
    s, q, n = 0.2, 0.5, 400_000
    found = layer(q=q)
    found(s * draw(seed, n, 2, 1))
    p = norm.cdf(-q / (2 * s))  # steps beyond the first have no weight at q / s = 2.5: p(1.5 q) = 9e-5
    expected = 1 - (1 - 2 * p) ** 2 - 2 * p**2
    assert found.density == pytest.approx(expected, abs=4 * (expected / n) ** 0.5 + 1e-4)


def test_half_rounds_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5], dtype=torch.float64).view(1, 1, -1).expand(1, 2, 5)
    assert layer(q=1.0)(x)[0, 0].tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("grad", ["paper", "lsq"])
def test_gradients_are_the_stated_ones(seed: int, granularity: str, grad: str):
    x, g = draw(seed, 2, 3, 4, 5, 5).requires_grad_(), draw(seed + 9, 2, 3, 4, 5, 5)
    found = layer(granularity, {"layer": None, "channel": 4, "neuron": (4, 5, 5)}[granularity], q=0.4, grad=grad)
    with torch.no_grad():
        found.theta.mul_(-1)  # q = |theta|: a negative theta turns the gradient round
    found(x).backward(g)
    assert x.grad is not None
    assert torch.equal(x.grad, g)
    q = float(found.steps.detach().flatten()[0])
    rounded = torch.round(x.detach() / q)
    each = g * (-rounded if grad == "paper" else rounded - x.detach() / q)
    expected = {"layer": each.sum().view(1), "channel": each.sum((0, 1, 3, 4)), "neuron": each.sum((0, 1))}[granularity]
    torch.testing.assert_close(found.theta.grad, -expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_penalty_widens_steps(seed: int):
    found = layer(q=0.3, rate=1.0)
    found(draw(seed, 4, 5, 3))
    found.penalty.backward()
    change = torch.round(draw(seed, 4, 5, 3) / found.steps.detach()).diff(dim=1).abs()
    torch.testing.assert_close(found.theta.grad, -change.mean().view(1))  # the product rule has the other sign


@pytest.mark.parametrize("seed", SEEDS)
def test_differences_summed_are_values(seed: int):
    x = draw(seed, 2, 6, 3, 4, 4)
    values = layer("channel", 3)(x)
    deltas = layer("channel", 3, emit="delta")(x)
    torch.testing.assert_close(deltas.cumsum(1), values)
    only = layer("channel", 3, emit="delta_only")(x)
    assert torch.equal(only[:, 1:], deltas[:, 1:])
    assert torch.equal(only[:, 0], only[:, 1])
    again = layer("channel", 3, q=1e-6, accumulate=True)(deltas)
    torch.testing.assert_close(again, values, rtol=0, atol=1e-6)


def test_bias_activation_and_pooling_act_before_rounding():
    x = draw(1, 2, 3, 4, 6, 6)
    found = layer("channel", 4, q=0.1, bias=True, activation="relu", max_pool=2)
    with torch.no_grad():
        found.bias.copy_(torch.arange(4.0))
    q = found.steps.detach()[0]
    shifted = (x + torch.arange(4.0).view(4, 1, 1)).relu().flatten(0, 1)
    expected = q * torch.round(F.max_pool2d(shifted, 2) / q)
    torch.testing.assert_close(found(x).flatten(0, 1), expected)
    soft = layer(q=1e-7, activation="softmax")(x)
    torch.testing.assert_close(soft.sum(2), torch.ones(2, 3, 6, 6, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_twin_charges_for_size(seed: int):
    x = draw(seed, 2, 3, 4).relu()
    found = SpatialL1(0.5, 3.0)
    assert found(x) is x
    assert float(found.penalty.detach()) == pytest.approx(1.5 * float(x.mean()))
    assert found.density == float((x != 0).double().mean())


def test_fan_out():
    assert fan_out(nn.Conv2d(8, 12, 3)) == 12 * 9
    assert fan_out(nn.Conv2d(8, 12, 3, stride=2)) == 12 * 9 / 4
    assert fan_out(nn.Conv2d(8, 12, 3, stride=2), stride=False) == 12 * 9
    assert fan_out(nn.Conv2d(8, 12, 3, groups=4)) == 27
    assert fan_out(nn.Linear(7, 5)) == 5
    with pytest.raises(InputError, match="fan-out of a ReLU"):
        fan_out(nn.ReLU())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.short = (
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Conv2d(2, 3, 1),
        )

    def forward(self, x):
        return self.two(F.relu(self.one(x))) + self.short(x)


def test_insertion_shares_a_layer_between_readers_of_one_tensor():
    model = nn.Sequential(Residual(), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()
    x = draw(0, 2, 2, 6, 6)
    before = model(x)
    assert insert_delta(model, x, q_init=1e-9 * 100, rate=0.1, granularity="neuron") == {
        "0.one": 27.0, "0.two": 27.0, "0.short": 3.0, "2": 2.0,
    }  # fmt: skip
    assert sorted(found.fan_out for found in delta_layers(model).values()) == [2.0, 27.0, 30.0]
    clips = x.view(1, 2, 2, 6, 6)
    torch.testing.assert_close(OverFrames(model)(clips)[0], before, rtol=0, atol=1e-4)
    charged = penalties(model)
    assert len(calibrate_steps(model, clips)) == 3
    assert float(charged.detach()) == pytest.approx(
        sum(float(each.penalty.detach()) for each in delta_layers(model).values())
    )
    assert copy.deepcopy(model) is not model  # a graph in the last penalty would refuse
    pickle.dumps(model)
    with pytest.raises(InputError, match="already has delta layers"):
        insert_delta(model, x)


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_takes_the_deviation_of_everything_a_layer_sees(seed: int):
    model, clips = network(seed), draw(seed, 70, 4, 1, 8, 8)
    hidden = model[:2](clips.flatten(0, 1))
    insert_delta(model, clips[:1, 0])
    steps = calibrate_steps(OverFrames(model), clips, 0.7)
    values = list(steps.values())
    assert values[0] == pytest.approx(0.7 * float(clips.std(correction=0)), rel=1e-9)
    assert values[1] == pytest.approx(0.7 * float(hidden.std(correction=0)), rel=1e-9)
    for name, each in delta_layers(model).items():
        assert isinstance(each, DeltaActivation)
        torch.testing.assert_close(each.steps.detach(), torch.full_like(each.theta, steps[name]))
        assert each.enabled


def test_time_folded_into_samples_is_the_same_as_clips():
    x = draw(0, 3, 4, 2, 5, 5)
    found = layer("channel", 2, emit="delta", rate=1.0)
    expected, penalty = found(x), float(found.penalty.detach())
    with clip_length(found, 4):
        assert torch.equal(found(x.flatten(0, 1)), expected.flatten(0, 1))
    assert float(found.penalty.detach()) == penalty
    assert found.frames is None
    with pytest.raises(InputError, match="no whole number of clips"), clip_length(found, 5):
        found(x.flatten(0, 1))


def test_bad_input_is_one_sentence():
    for build, message in (
        (lambda: DeltaActivation(), "say how many"),
        (lambda: DeltaActivation("units"), "expected one of layer"),
        (lambda: DeltaActivation("neuron", 3), "give a frame's shape"),
        (lambda: DeltaActivation("layer", q_init=0.0), "q_init is 0"),
        (lambda: DeltaActivation("layer", rate=-1), "at least 0"),
        (lambda: layer()(draw(0, 2, 1, 3)), "at least two frames"),
        (lambda: layer("channel", 4)(draw(0, 2, 3, 5)), "the layer's steps"),
        (lambda: layer().penalty, "seen no clip"),
        (lambda: penalties(nn.ReLU()), "no delta layer"),
        (lambda: calibrate_steps(nn.ReLU(), draw(0, 2, 3, 4)), "0 delta layers"),
        (lambda: OverFrames(nn.ReLU())(draw(0, 2, 3)), "clips have shape"),
        (lambda: insert_delta(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 4, 3)), "choose granularity 'layer'"),
        (lambda: DeltaRunner(nn.Sequential(layer(emit="delta_only"), nn.Linear(2, 2))), "delta_only"),
    ):
        with pytest.raises(InputError, match=message):
            build()
    model = network()
    insert_delta(model, draw(0, 1, 1, 8, 8))
    with pytest.raises(InputError, match="sees a constant"):
        calibrate_steps(model, torch.zeros(2, 3, 1, 8, 8, dtype=torch.float64))
    runner = DeltaRunner(network())
    runner.step(draw(0, 1, 1, 8, 8))
    with pytest.raises(InputError, match="reset"):
        runner.step(draw(0, 2, 1, 8, 8))
    with pytest.raises(InputError, match="NaN"):
        runner.step(torch.full((1, 1, 8, 8), float("nan"), dtype=torch.float64))


def test_a_collapsed_step_is_held_with_a_warning():
    found = layer()
    with torch.no_grad():
        found.theta.zero_()
    with pytest.warns(UserWarning, match="collapsed"):
        out = found(draw(0, 2, 3, 4))
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_run_by_changes_is_the_run_by_frames(seed: int):
    model, video = random_network(seed, torch.float64), random_video(seed, torch.float64)
    insert_delta(model, video[0, :1], granularity="layer", grad="none")
    with torch.no_grad():
        expected = OverFrames(model)(video)[0]
    runner = DeltaRunner(OverFrames(model))
    for _ in range(2):
        steps = [runner.step(frame[None]) for frame in video[0]]
        assert float((torch.cat([step.out for step in steps]) - expected).abs().max()) < 1e-12
        report = change_report(model, video)
        assert sum(step.ops for step in steps) == pytest.approx(report.fan_out @ (report.changed + report.first))
        assert steps[0].ops == steps[0].dense_ops
        assert steps[5].ops < steps[5].dense_ops
        runner.reset()


def test_differences_inside_a_network_run_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        layer(q=0.2, emit="delta"), nn.Conv2d(1, 3, 3, bias=False),
        layer("channel", 3, 0.2, accumulate=True, bias=True, activation="relu", emit="delta"), nn.Flatten(),
        nn.Linear(108, 4, bias=False), layer("channel", 4, 0.01, accumulate=True, bias=True),
    ).double()  # fmt: skip
    clips = draw(3, 1, 6, 1, 8, 8)
    check_deltas(OverFrames(model), clips)
    with torch.no_grad():
        expected = OverFrames(model)(clips)[0]
    runner = DeltaRunner(model)
    got = torch.cat([runner.step(frame[None]).out for frame in clips[0]])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_still_video_costs_its_first_frame_and_a_linear_layer_reads_changed_columns_alone():
    runner, frame = DeltaRunner(nn.Sequential(nn.Linear(50, 7))), draw(0, 1, 50).float()
    assert runner.step(frame).ops == 350
    assert runner.step(frame).ops == 0
    frame = frame.clone()
    frame[0, 3] += 1
    step = runner.step(frame)
    assert step.ops == 7
    torch.testing.assert_close(step.out, runner._linear[0].layer(frame))


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ([nn.Conv2d(1, 1, 1)], "has a bias between"),
        ([nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()], "a ReLU, is not linear"),
        ([nn.BatchNorm2d(1).train()], "BatchNorm2d in training mode, is not linear"),
        ([layer()], "without summing"),
        ([layer(accumulate=True), nn.ReLU(), layer(accumulate=True)], "sums over time what are no differences"),
    ],
)
def test_what_may_not_stand_between_difference_and_sum_is_caught(between: list[nn.Module], message: str):
    model = nn.Sequential(layer(emit="delta"), *between, layer(accumulate=True)).double()
    with pytest.raises(InputError, match=message):
        check_deltas(OverFrames(model), draw(0, 2, 3, 1, 4, 4))


def test_what_keeps_differences_may():
    model = nn.Sequential(
        layer(emit="delta"), nn.AvgPool2d(2), nn.Conv2d(1, 2, 1, bias=False), nn.Dropout().eval(), layer(accumulate=True),
        nn.ReLU(),
    ).double()  # fmt: skip
    check_deltas(OverFrames(model), draw(0, 2, 3, 1, 4, 4))
