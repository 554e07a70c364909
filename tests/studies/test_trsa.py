"""The tRSA study: its data, and the claims of its smallest run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.geotopology import rank_minmax
from netloupe.core.isolation import pinned_threads
from netloupe.core.study import run_study
from netloupe.studies._trsa_data import TRANSFORMS, Networks, layer_responses, manifold_responses


@pytest.fixture(autouse=True)
def one_thread():
    with pinned_threads(1):
        yield


def test_smoke_verdicts():
    result = run_study("trsa", "smoke", seed=0)
    verdicts = {claim.name: claim.verdict for claim in result.claims}
    assert set(verdicts) == {
        "family-rdm", "family-adjacency", "layers", "layers-beside-distances", "stretched-rgtm", "stretched-rgdm", "corners", "noise",
        "selection",
    }  # fmt: skip
    for name in ("family-rdm", "family-adjacency", "stretched-rgtm", "stretched-rgdm"):
        assert verdicts[name] == "reproduced", name
    with pytest.raises(InputError, match="preset"):
        run_study("trsa", "huge")  # type: ignore[arg-type]


def test_layers_are_told_apart_across_networks_and_not_when_permuted():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 300))
    inputs = torch.from_numpy(rng.standard_normal((300, 12))).float() + 3 * torch.eye(3, 12)[labels]
    networks = Networks(3, (16, 16), 150, n_stimuli=20)
    found, accuracy = layer_responses(((inputs[:200], labels[:200]), (inputs[200:], labels[200:])), networks, 0)
    assert found.vectors.shape == (6, 190)
    assert found.region.tolist() == [0, 1] * 3
    assert accuracy > 0.8
    again, _ = layer_responses(((inputs[:200], labels[:200]), (inputs[200:], labels[200:])), networks, 0)
    np.testing.assert_array_equal(found.vectors, again.vectors)
    mixed = [found.permuted(rng) for _ in range(60)]
    for one in mixed:
        assert all(sorted(one.region[one.subject == who]) == [0, 1] for who in range(3))
    assert np.mean([one.accuracy() for one in mixed]) == pytest.approx(0.5, abs=0.2)


def test_noise_is_as_wide_as_asked_and_leaves_no_negative_distance():
    found = manifold_responses(0.0, 4, 20, 0.05, 0)
    rng = np.random.default_rng(0)
    wide = found.noisy(0.01, rng).vectors - found.vectors
    assert wide.std() == pytest.approx(0.01 * found.vectors.std(), rel=0.1)
    assert found.noisy(5.0, rng).vectors.min() == 0
    assert found.of(np.array([1, 3])).subject.tolist() == [1, 1, 1, 3, 3, 3]


def test_without_stretches_everything_is_identified():
    found = manifold_responses(0.0, 6, 40, 0.02, 1, share=0.5)
    for name, transform in TRANSFORMS.items():
        assert found.accuracy(transform) > 0.9, name
    assert manifold_responses(0.75, 6, 40, 0.02, 1).accuracy() < found.accuracy(rank_minmax)
