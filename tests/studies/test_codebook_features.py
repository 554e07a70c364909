"""The codebook-features study: what its smallest run says, and its controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.isolation import pinned_threads
from netloupe.core.study import run_study
from netloupe.studies._codebook_features_claims import precisions
from netloupe.studies._codebook_features_network import Spec, World, table_entropy
from netloupe.studies.codebook_features import SETTINGS


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with pinned_threads(1):
        yield


def test_smoke_verdicts():
    claims = {claim.name: claim for claim in run_study("codebook-features", "smoke", seed=1).claims}
    assert len(claims) == 11
    assert claims["both are dearer"].verdict == "reproduced"
    assert claims["steering by a code"].verdict == "not tested"
    assert sum(claim.measured is None for claim in claims.values()) == 7
    assert -1 <= (claims["codes name states"].measured or 0) <= 1
    with pytest.raises(InputError, match="preset"):
        run_study("codebook-features", "huge")  # type: ignore[arg-type]


def test_networks_differ_in_what_they_should_and_nothing_else():
    setting = dataclasses.replace(SETTINGS["smoke"], steps=(6, 3), n_judged=20)
    world = World(setting, 0)
    mlp, attention = world.net(Spec("mlp")), world.net(Spec("attention"))
    assert world.net(Spec("mlp")) is mlp
    assert mlp.sites == ("blocks.0.ffn", "blocks.1.ffn")
    assert world.sites("both") == [*attention.sites, *mlp.sites]
    assert attention["blocks.0.attn.out:in"].groups == setting.network[2]
    assert world.net(Spec("mlp", backward="base"))["blocks.0.ffn"].backward == "base"
    assert mlp.model is not world.start
    drawn = world.untrained(Spec("mlp"))
    for name, value in world.start.named_parameters():
        assert torch.equal(drawn.model.get_parameter(name), value)
    assert abs(float(drawn["blocks.0.ffn"].table.detach().std()) - 1) < 0.1
    ids = world.ids(mlp)
    assert {tuple(each.shape) for each in ids.values()} == {(20, 13, 1, 1)}
    assert all(0 <= bits <= np.log2(60) for bits in table_entropy(mlp, ids))
    assert 0 < world.error(mlp) < 1.5
    assert world.used(mlp)["blocks.0.ffn"] == len(ids["blocks.0.ffn"].unique())


def test_a_code_for_every_state_is_found():
    world = World(dataclasses.replace(SETTINGS["smoke"], steps=(1, 1), n_judged=60), 0)
    model = world.untrained(Spec("mlp"))
    states = world.machine.states(world.judged)
    perfect = {site: torch.where(states >= 0, states, 59)[..., None, None] for site in model.sites}
    world.ids = lambda _: perfect  # type: ignore[method-assign]
    for code, unit, recall in precisions(world, model).values():
        assert len(code) == 25
        assert (code == 1).all()
        assert (recall == 1).all()
        assert unit.mean() < 0.6
    for code, _, _ in precisions(world, model, 0.0, shuffle=1).values():
        assert code.mean() < 0.2
