"""The feature-merging study: its smallest run, its planted networks, and its full preset on made-up files."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, SubjectError
from netloupe.core.study import StudyResult, run_study
from netloupe.lenses.similarity.feature_merging import merge_features
from netloupe.models.small import mlp
from netloupe.studies import _feature_merging_claims as claims
from netloupe.studies import _feature_merging_network as network
from netloupe.studies import iterative_feature_merging as study

NAMES = [
    "duplicates-free",
    "flipped-kept",
    "redundant-units",
    "merging-harmless",
    "beats-magnitude",
    "wider-more-redundant",
    "depth-rises-falls",
    "groups-mean-the-same",
]


@pytest.fixture(scope="module")
def smoke() -> StudyResult:
    return run_study("iterative-feature-merging", "smoke", seed=0)


def test_smoke_measures_every_claim(smoke: StudyResult, whole):
    by_name = whole(smoke, NAMES, ("duplicates-free", "flipped-kept", "merging-harmless", "groups-mean-the-same"))
    assert (by_name["duplicates-free"].measured or 0) < 1e-12
    assert by_name["flipped-kept"].control == 1.0


@pytest.mark.parametrize("flip", [False, True])
def test_planted_copies_leave_the_function_or_flip_it(flip: bool):
    model, x = mlp(64, (8, 6), 3, random_state=0).double().eval(), torch.rand(5, 1, 8, 8).double()
    wide, widths = network.with_copies(model, x[:1], 0.5, flip, 0)
    assert widths == {"fc1": 8, "fc2": 6}
    assert wide.get_parameter("fc1.weight").shape == (12, 64)
    assert wide.get_parameter("fc2.weight").shape == (9, 12)
    same = torch.allclose(wide(x), model(x))
    assert same is not flip


def test_pruning_by_size_takes_out_as_many_as_merging():
    model, x = mlp(64, (8, 6), 3, random_state=0).eval(), torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        model.get_parameter("fc1.weight")[2] = 0
    data = network.Data((x, torch.zeros(5)), (x, torch.zeros(5).long()))
    result = merge_features(model, x[:1], 1.0, 0.25)
    small, chance = (network.without_smallest(model, data, result, state) for state in (None, 0))
    for found in (small, chance):
        assert found.get_parameter("fc1.weight").shape[0] == result.complexity["fc1"] == 6
        assert found.get_parameter("fc2.weight").shape == (4, 6)
    assert float(small.get_parameter("fc1.weight").detach().abs().sum(1).min()) > 0


def test_where_a_profile_peaks():
    assert claims._peaks_inside([3, 5, 4])
    assert not claims._peaks_inside([5, 5, 4])
    assert not claims._peaks_inside([3, 4, 5])
    assert claims._spearman([1, 2, 3], [1.0, 1.0, 1.0]) == 0
    assert claims._spearman([1, 2, 3], [0.9, 0.5, 0.2]) == pytest.approx(-1)


def test_full_preset_reads_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SubjectError, match="Fashion-MNIST"):
        list(study.run("full"))
    draw = np.random.default_rng(0)
    for stem, count in (("train", 300), ("t10k", 100)):
        labels = draw.integers(0, 10, count).astype(np.uint8)
        images = (draw.random((count, 28, 28)) * 60 + labels[:, None, None] * 15).astype(np.uint8)
        head = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes())
    small = replace(study.SETTINGS["full"], width=12, widths=(8, 12), depth=3, n_seeds=1, steps=20, betas=(0.1, 0.9))
    monkeypatch.setitem(study.SETTINGS, "full", small)
    assert [claim.name for claim in study.run("full")] == NAMES


def test_unknown_preset():
    with pytest.raises(InputError, match="preset is 'huge'"):
        next(study.run("huge"))  # pyright: ignore[reportArgumentType]
