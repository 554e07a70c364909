"""Readouts beside einsum, exact shifts and the published code's numbers; fitting beside planted voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.data.synthetic_voxels import gaussian_spots, object_scenes, voxel_responses
from netloupe.domains.brain.fitting import as_maps, concordance, fit_readout, masked_error, predict, readout_loss
from netloupe.domains.brain.readouts import (
    READOUTS,
    AttentionReadout,
    FactorizedReadout,
    GaussianReadout,
    RidgeReadout,
    SemanticSpatialTransformer,
)
from netloupe.domains.brain.warps import MODES, identity_outputs, n_outputs, theta_of, warp

SHAPE = (3, 6, 6)


def seeded(shape: tuple[int, ...], k: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(k))


def moving(mode="affine", official: bool = False, **options) -> SemanticSpatialTransformer:
    return SemanticSpatialTransformer(SHAPE, 2, nn.Identity(), (5, 7, 7), mode=mode, official=official, **options)


def test_factorised_is_an_einsum_and_a_ridge_of_rank_one():
    readout, ridge = FactorizedReadout(SHAPE, 4, init=1.0), RidgeReadout(SHAPE, 4)
    x = seeded((5, *SHAPE), 0)
    mask = readout.spatial.clamp_min(0)
    mask = mask / (mask.flatten(1).norm(dim=1)[:, None, None] + 1e-6)
    weight = mask[:, None] * readout.features[:, :, None, None]
    torch.testing.assert_close(readout(x), torch.einsum("nchw,vchw->nv", x, weight) + readout.bias)
    ridge.weight.data = weight.data
    torch.testing.assert_close(ridge(x), readout(x))
    readout.constrain()
    assert readout.spatial.min() >= 0
    assert RidgeReadout(SHAPE, 4).penalty(2.0, squared=False) < 2.0


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_starts_as_the_factorised_readout(mode):
    torch.manual_seed(0)
    sst, plain = moving(mode, init=1.0), FactorizedReadout(SHAPE, 2, init=1.0)
    plain.load_state_dict({name: sst.state_dict()[name] for name in plain.state_dict()})
    x, img = seeded((4, *SHAPE), 1), seeded((4, 5, 7, 7), 2)
    torch.testing.assert_close(sst(x, img), plain(x), atol=1e-5, rtol=0)
    with torch.no_grad():
        sst.move_masks[2].bias.add_(0.5)
    assert (sst(x, img) - plain(x)).abs().max() > 1e-2


# The published readout with the same parameters (seeded as below) on the same input; it was run outside this project.
PUBLISHED = {
    "affine": [[0.7750442, -0.6112321], [-0.0100799, -0.4411468], [0.2579543, -0.5264712]],
    "rotation_translation_scale": [[0.8283421, -0.5052436], [0.3945536, -0.2902961], [0.3905492, -0.2944114]],
}


@pytest.mark.parametrize("mode", PUBLISHED)
def test_published_numbers(mode):
    sst = moving(mode, official=True)
    names = [
        ("spatial", (2, 6, 6)), ("features", (2, 3)), ("bias", (2,)), ("encode.weight", (4, 5, 1, 1)), ("encode.bias", (4,)),
        ("move_masks.0.weight", (32, 196)), ("move_masks.0.bias", (32,)), ("move_masks.2.weight", (12, 32)),
        ("move_masks.2.bias", (12,)), ("move_maps.0.weight", (32, 196)), ("move_maps.0.bias", (32,)),
        ("move_maps.2.weight", (18, 32)), ("move_maps.2.bias", (18,)),
    ]  # fmt: skip
    identity = torch.tensor([1.0, 0, 0, 0, 1, 0])
    for k, (name, shape) in enumerate(names):
        value = seeded(shape, k)
        if name.endswith("2.weight"):
            value *= 0.05
        elif name.endswith("2.bias"):
            value = 0.1 * value + identity.repeat(len(value) // 6)
        elif k > 2:
            value *= 0.3
        sst.get_parameter(name).data = value
    found = sst(seeded((3, *SHAPE), 50), seeded((3, 5, 7, 7), 51))
    np.testing.assert_allclose(found.detach().numpy(), PUBLISHED[mode], atol=2e-6)


def test_published_concordance():
    p, y = seeded((20, 3), 1), seeded((20, 3), 2) + 0.5 * seeded((20, 3), 1)
    y[3, 1] = float("nan")
    assert float(1 - concordance(p, y)) == pytest.approx(0.7330982685089111, abs=1e-6)
    assert float(readout_loss(p, y)) == pytest.approx(float(masked_error(p, y)) + 0.7330982685089111, abs=1e-6)
    apart = y + torch.tensor([0.0, 10, 20])
    shifted = p + torch.tensor([0.0, 10, 20])
    assert concordance(shifted, apart) > 0.9, "differences between voxels pass for agreement"
    levels = torch.tensor([0.0, 10.0]).repeat(2000, 1)
    assert float(concordance(levels, levels + seeded((2000, 2), 3))) == pytest.approx(50 / 51, abs=2e-3), "means alone"
    assert concordance(shifted, apart, per_voxel=True) == pytest.approx(
        float(concordance(p, y, per_voxel=True)), abs=1e-4
    )


def test_a_whole_pixel_is_an_exact_shift_and_the_mask_goes_the_other_way():
    maps = seeded((1, 1, 8, 8), 0)
    theta = torch.tensor([[[[1.0, 0, 2 / 8], [0, 1, 0]]]])
    moved = warp(maps, theta)
    torch.testing.assert_close(moved[..., :-1], maps[..., 1:])
    assert moved[..., -1].abs().max() == 0


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(0.5, 2), st.floats(0.5, 2), st.floats(-1, 1), st.floats(-1, 1))
def test_motions_are_rotation_times_scale_plus_translation(angle, across, down, x, y):
    theta = theta_of(torch.tensor([[[angle, x, y, across, down]]], dtype=torch.float64), "rotation_translation_scale")[
        0, 0
    ]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(theta[:, :2], rotation @ np.diag([across, down]), atol=1e-12)
    np.testing.assert_allclose(theta[:, 2], [x, y])
    for mode in MODES:
        same = theta_of(identity_outputs(mode)[None, None], mode)[0, 0]
        torch.testing.assert_close(same, torch.eye(2, 3))
        assert n_outputs(mode) == len(identity_outputs(mode))


def test_gaussian_reads_its_mean_in_evaluation_and_samples_in_training():
    readout = GaussianReadout(SHAPE, 3)
    x = seeded((2, *SHAPE), 0)
    readout.eval()
    assert torch.equal(readout(x), readout(x))
    with torch.no_grad():
        readout.mu.fill_(-1 + 1 / 6)  # the middle of the first pixel
        readout.mu[:, 0] += 2 / 6 * 2  # x: two pixels across
    torch.testing.assert_close(readout(x), torch.einsum("nc,vc->nv", x[:, :, 0, 2], readout.features) + readout.bias)
    readout.train()
    assert not torch.equal(readout(x), readout(x))


@pytest.mark.parametrize("name", READOUTS)
def test_every_readout_learns_a_voxel_it_can_express(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, *SHAPE)).astype(np.float32)
    weights = rng.standard_normal((2, 3))
    if name in ("global", "attention"):
        signal = x.mean((2, 3)) @ weights.T
    else:
        x = np.repeat(x[:, :, 3:4, 2:3], 6, 2).repeat(6, 3)[:, :, :6, :6] + 0.3 * x
        signal = x[:, :, 3, 2] @ weights.T
    y = signal / signal.std(0) + 0.1 * rng.standard_normal((400, 2))
    torch.manual_seed(0)
    readout = READOUTS[name](SHAPE, 2)
    found = fit_readout(readout, x, y, steps=400, lr=0.02, judge_every=40)
    assert found.score > (0.75 if name == "attention" else 0.85)
    assert found.history.state in ("finished", "stopped") or found.history.loss


def test_fitting_keeps_the_best_repeats_itself_and_leaves_out_what_is_missing():
    scenes = object_scenes(300, size=6, n_channels=3, seed=1)
    voxels = voxel_responses(scenes, "fixed", 2, seed=1)
    y = voxels.responses.copy()
    y[::7, 0] = np.nan
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        readout = FactorizedReadout(SHAPE, 2)
        made.append((fit_readout(readout, scenes.maps, y, steps=120, judge_every=20), predict(readout, scenes.maps)))
    assert made[0][0].score == made[1][0].score
    np.testing.assert_array_equal(made[0][1], made[1][1])
    assert np.isfinite(made[0][1]).all()


def test_moving_masks_follow_the_object():
    scenes = object_scenes(700, size=14, seed=0)
    voxels = voxel_responses(scenes, "object", 4, noise=0.3, seed=0)
    torch.manual_seed(0)
    sst = SemanticSpatialTransformer((6, 14, 14), 4, nn.Identity(), (1, 7, 7), code_channels=4, warp_features=False)
    moved = fit_readout(sst, scenes.maps[:600], voxels.responses[:600], scenes.code()[:600], steps=500, judge_every=50)
    torch.manual_seed(0)
    plain = FactorizedReadout((6, 14, 14), 4)
    still = fit_readout(plain, scenes.maps[:600], voxels.responses[:600], steps=500, judge_every=50)
    assert moved.score > still.score + 0.03


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda x, y: FactorizedReadout((3, 6), 2), "expected \\(channel, height, width\\)"),
        (lambda x, y: FactorizedReadout(SHAPE, 2)(x[:, :2]), "the readout was made for"),
        (lambda x, y: moving()(x), "give it the images"),
        (lambda x, y: moving()(x, seeded((2, 5, 7, 7), 0)), "the same samples"),
        (lambda x, y: moving()(x, seeded((30, 4, 7, 7), 0)), "code_shape says"),
        (lambda x, y: moving("zoom"), "expected one of affine"),
        (lambda x, y: fit_readout(FactorizedReadout(SHAPE, 2), x, y[:-1]), "responses have shape"),
        (lambda x, y: fit_readout(FactorizedReadout(SHAPE, 2), x, y * torch.nan), "fewer than two responses"),
        (lambda x, y: fit_readout(FactorizedReadout(SHAPE, 2), x * torch.nan, y), "NaN or infinity"),
        (lambda x, y: fit_readout(FactorizedReadout(SHAPE, 2), x, y, alpha=1.0), "RidgeReadout"),
        (lambda x, y: fit_readout(FactorizedReadout(SHAPE, 2), x, y, steps=0), "at least one step"),
        (lambda x, y: concordance(y[:1, :1], y[:1, :1]), "at least two"),
        (lambda x, y: object_scenes(0), "were asked for"),
        (lambda x, y: object_scenes(3).code(5), "divisor"),
        (lambda x, y: voxel_responses(object_scenes(3), "all"), "expected fixed"),
        (lambda x, y: voxel_responses(object_scenes(3), "fixed", 0), "at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(ask, sentence: str):
    with pytest.raises((InputError, NonFiniteError), match=sentence) as raised:
        ask(seeded((30, *SHAPE), 0), seeded((30, 2), 1))
    assert "\n" not in str(raised.value)


def test_planted_voxels_are_what_they_say():
    scenes = object_scenes(4000, n_objects=3, category_strength=0.5, seed=2)
    assert np.isnan(scenes.centres[:, 0]).sum() == 0
    assert 0.2 < np.isnan(scenes.centres[:, 2, 0]).mean() < 0.9
    for kind in ("fixed", "object", "category", "dense"):
        voxels = voxel_responses(scenes, kind, 6, noise=0.7, n_repeats=3, seed=3)
        np.testing.assert_allclose(voxels.signal.std(0), 1)
        found = [np.corrcoef(s, r)[0, 1] for s, r in zip(voxels.signal.T, voxels.responses.T, strict=True)]
        np.testing.assert_allclose(found, voxels.ceiling, atol=0.02)
    spot = gaussian_spots(np.array([[0.5, -0.5]]), 8, 0.1)[0]
    assert np.unravel_index(spot.argmax(), spot.shape) in ((1, 5), (1, 6), (2, 5), (2, 6)), "x is across, y is down"
    assert AttentionReadout(SHAPE, 1)(seeded((2, *SHAPE), 0)).shape == (2, 1)


def test_a_recorded_site_becomes_maps():
    import netloupe
    from netloupe.models.small import DigitsCNN

    torch.manual_seed(0)
    model, images = DigitsCNN().eval(), seeded((5, 1, 8, 8), 0)
    captured = next(iter(netloupe.capture(model, images, ["conv2"])))
    with torch.no_grad():
        wanted = model.conv2(model.pool(model.relu1(model.norm1(model.conv1(images)))))
    maps = as_maps(captured.activations["conv2"], *wanted.shape[2:])
    np.testing.assert_allclose(maps, wanted.numpy(), atol=1e-6)
    with pytest.raises(InputError, match="record without pooling"):
        as_maps(captured.activations["conv2"].mean(1), 4, 4)
