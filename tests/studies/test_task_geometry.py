"""The task-geometry study: trainings that mean what they say, and the claims of its smallest run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.isolation import pinned_threads
from netloupe.core.study import run_study
from netloupe.data.structured_tasks import unstructured_task
from netloupe.studies._task_geometry_claims import grid_claim, images
from netloupe.studies._task_geometry_networks import ImageRecipe, Recipe, image_depth, train_shallow

TINY = Recipe(16, 12, 60, 200, 50)


@pytest.fixture(autouse=True)
def one_thread():
    with pinned_threads(1):
        yield


def test_smoke_verdicts():
    result = run_study("task-geometry", "smoke", seed=1)
    verdicts = {claim.name: claim.verdict for claim in result.claims}
    for name in (
        "parallelism", "target-alignment", "input-alignment", "separability", "generalisation", "weights-axis", "weights-peak",
        "generators",
    ):  # fmt: skip
        assert verdicts[name] == "reproduced", name
    for name in ("images-target", "images-input", "grid"):
        assert verdicts[name] == "not tested"
    with pytest.raises(InputError, match="preset"):
        run_study("task-geometry", "huge")  # type: ignore[arg-type]


def test_each_network_is_trained_on_its_own_task():
    tasks = [unstructured_task(4, 12, seed=s) for s in (0, 1)]
    both = train_shallow(tasks, "tanh", TINY, looks=3)
    alone = train_shallow(tasks[1:], "tanh", TINY)
    assert both[0].accuracy > 0.95
    assert both[1].path.shape == (4, 16, 12)
    torch.testing.assert_close(both[1].path[0], both[1].initial)
    torch.testing.assert_close(both[1].path[-1], both[1].net.hidden.weight)
    assert both[1].weights().cosine.mean() > both[1].weights(trained=False).cosine.mean()
    # only the order of the samples differs
    assert both[1].numbers.target == pytest.approx(alone[0].numbers.target, abs=0.02)
    mixed = train_shallow(tasks[:1], "tanh", TINY, shuffled=[True])[0]
    assert mixed.accuracy < 0.9


def test_depth_of_image_networks():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 300))
    inputs = torch.from_numpy(rng.standard_normal((300, 10))).float() + 3 * torch.eye(3, 10)[labels]
    recipe = ImageRecipe((16, 12), 250)
    data = (inputs[:200], labels[:200]), (inputs[200:], labels[200:])
    after, before = (image_depth(data, recipe, 2, 0, trained) for trained in (True, False))
    assert after.target.shape == after.input.shape == (2, 2, 2)
    assert after.accuracy.min() > 0.7 > before.accuracy.mean()
    assert after.target.mean() > before.target.mean()
    names = [claim.name for claim in images(after, before, "made up")]
    assert names == ["images-target", "images-input"]


def test_a_grid_is_judged_by_its_share():
    gaps = {(2, dial, 0.1): gap for dial, gap in ((0.0, -0.2), (0.5, 0.1), (1.0, 0.3))}
    found = grid_claim(gaps)
    assert (found.measured, found.control, found.verdict) == (1.0, 0.0, "reproduced")
