"""The twelve-bit task: all patterns, balanced rules, and a rule that rotations leave alone."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.data.szt import ib_task, icosahedron


@pytest.mark.parametrize("kind", ["rotation", "quadratic"])
@pytest.mark.parametrize("seed", range(5))
def test_all_patterns_once_and_nearly_as_many_of_each_class(kind, seed):
    inputs, labels = ib_task(kind, seed)
    assert inputs.shape == (4096, 12)
    assert set(inputs.unique().tolist()) == {-1.0, 1.0}
    assert len(torch.unique(inputs, dim=0)) == 4096
    assert abs(int(labels.sum()) - 2048) <= (0.05 * 4096 if kind == "rotation" else 0)
    again = ib_task(kind, seed)
    assert torch.equal(again[0], inputs)
    assert torch.equal(again[1], labels)
    assert not torch.equal(ib_task(kind, seed + 1)[1], labels)


def rotations() -> list[np.ndarray]:
    """The 60 orders of the corners that a proper rotation makes, found from the corners themselves."""
    corners = icosahedron()
    gram = np.round(corners @ corners.T, 6)
    found, first = [], [0, 4, 8]
    for images in permutations(range(12), 3):
        if not np.array_equal(gram[np.ix_(images, images)], gram[np.ix_(first, first)]):
            continue
        turn = np.linalg.lstsq(corners[first], corners[list(images)], rcond=None)[0]
        if np.linalg.det(turn) > 0 and np.allclose(turn @ turn.T, np.eye(3), atol=1e-8):
            order = (((corners @ turn)[:, None] - corners[None]) ** 2).sum(-1)
            if np.allclose(order.min(1), 0, atol=1e-10):
                found.append(order.argmin(1))
    return found


def test_the_rotation_rule_does_not_change_when_the_solid_turns():
    turns = rotations()
    assert len(turns) == 60
    inputs, labels = ib_task("rotation", 3)
    codes = ((inputs.numpy() + 1) / 2) @ 2 ** np.arange(11, -1, -1)
    table = np.zeros(4096, int)
    table[codes.astype(int)] = labels.numpy()
    for turn in turns[::7]:
        moved = np.empty_like(inputs.numpy())
        moved[:, turn] = inputs.numpy()
        assert np.array_equal(table[(((moved + 1) / 2) @ 2 ** np.arange(11, -1, -1)).astype(int)], labels.numpy())


def test_another_kind_is_refused():
    with pytest.raises(InputError, match="rotation or quadratic"):
        ib_task("linear")  # type: ignore[arg-type]
