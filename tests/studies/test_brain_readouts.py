"""The smoke preset of the study, and its parts where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from netloupe.core.study import run_study
from netloupe.studies._brain_readouts_fits import Setting, World
from netloupe.studies._brain_readouts_zones import Zones, _coarse, _driven


@pytest.fixture(scope="module")
def claims():
    return {claim.name: claim for claim in run_study("brain-readouts", "smoke", 0).claims}


def test_planted_voxels_that_move_need_the_readout_that_moves(claims):
    for name in ("identity-start", "moving-over-still", "motion-not-features", "masks-follow", "ceiling"):
        assert claims[name].verdict == "reproduced", (name, claims[name].measured)
    assert claims["zones"].verdict == "not tested"
    assert claims["masks-follow"].control < 0.3


def test_a_world_is_judged_on_scenes_that_no_size_trains_on():
    world = World(Setting(50, 20, 14, 2, 10, 1, (30, 90)), 3)
    assert len(world.scenes) == 110
    for n in (None, 30, 90):
        fit, judge = world.rows(n)
        assert fit.stop <= judge.start == 90
    assert world.with_code.shape == (110, 7, 14, 14)
    assert sorted(map(bytes, world.shuffled_code)) == sorted(map(bytes, world.code))


def test_voxels_are_driven_by_their_features_alone():
    rng = np.random.default_rng(0)
    features = _coarse(rng.standard_normal((40, 3, 4, 4)))
    assert features.shape == (40, 12)
    driven = _driven(features, 5, rng)
    np.testing.assert_allclose(driven.std(0), 1)
    centred = features - features.mean(0)
    residual = driven - centred @ np.linalg.lstsq(centred, driven, rcond=None)[0]
    assert np.abs(residual).max() < 1e-9
    assert Zones(1.0, np.zeros((3, 3)), np.arange(3)).truth.tolist() == [0, 1, 2]
