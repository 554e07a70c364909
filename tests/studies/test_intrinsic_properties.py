"""The intrinsic-properties study: a stack trains each network as by itself, and the claims of its smallest run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.data.digits import digits
from netloupe.studies._intrinsic_properties_claims import Manifolds, manifold_claims
from netloupe.studies._intrinsic_properties_network import PENALTY, Recipe, Task, hidden, train_tasks
from netloupe.studies._intrinsic_properties_pairs import Pairs, draw_pairs


def test_smoke_verdicts():
    verdicts = {claim.name: claim.verdict for claim in run_study("intrinsic-properties", "smoke", seed=1).claims}
    assert len(verdicts) == 11
    for name in ("loss-dimension", "error-dimension", "loss-sharpness", "sharpness-ranks", "sharpness-slope"):
        assert verdicts[name] == "not tested"
    for name in ("estimators", "estimators-order", "attack"):
        assert verdicts[name] in ("reproduced", "not reproduced")
    with pytest.raises(InputError, match="preset"):
        run_study("intrinsic-properties", "huge")  # type: ignore[arg-type]


def tasks() -> list[Task]:
    x, y = digits(flat=True)
    pairs = Pairs(x, y, ((0, 1), (3, 8)), 100, 1)
    return [pairs.of((0, 1), 0), pairs.of((3, 8), 1)]


def test_a_stack_is_networks_side_by_side():
    both, recipe = tasks(), Recipe((16, 8), 20)
    trained = train_tasks(both, recipe, seed=3)
    model = trained[1].fresh
    parameters = [p.requires_grad_(True) for p in model.parameters()]
    adam = torch.optim.Adam(parameters, recipe.rate)
    for step in range(recipe.steps):
        draw = torch.Generator().manual_seed(3 * 1_000_003 + step)
        rows = (torch.rand(recipe.batch_size, 2, generator=draw)[:, 1] * 100).long()
        weights = [module.weight for module in model if isinstance(module, nn.Linear)]  # type: ignore[union-attr]
        loss = F.cross_entropy(model(both[1].x[rows]), both[1].y[rows]) + 0.5 * PENALTY * sum(
            w.pow(2).sum() for w in weights
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        logits = trained[1].model(both[1].x_test)
        assert torch.allclose(model(both[1].x_test), logits, atol=2e-3)
        assert trained[1].loss == pytest.approx(float(F.cross_entropy(logits, both[1].y_test)), rel=1e-5)
    assert [layer.shape for layer in hidden(model, both[1].x)] == [(100, 16), (100, 8)]


def test_pairs_are_of_two_classes_and_disjoint():
    x, y = digits(flat=True)
    pairs = Pairs(x, y, draw_pairs(10, 10, 0), 240, 1)
    assert len(set(pairs.pairs)) == 10
    assert len(draw_pairs(10, 99, 0)) == 45
    task = pairs.of((2, 7), 5)
    assert len(task.x) == 240
    assert len(task.x) + len(task.x_test) == int(((y == 2) | (y == 7)).sum())
    assert set(task.y.tolist()) == {0, 1}


def test_every_claim_about_manifolds_measures():
    grid = Manifolds((2, 4), (1.0, 4.0), 3.0, (2, 4), (50, 100), 100, 100, 2)
    claims = list(manifold_claims(grid, Recipe((16,), 10), 0))
    assert [claim.name for claim in claims] == [
        "loss-dimension",
        "error-dimension",
        "loss-samples",
        "loss-sharpness",
        "sharpness-ranks",
        "sharpness-slope",
    ]
    for claim in claims:
        assert claim.measured is not None
        assert claim.control is not None
        assert claim.plot is not None
