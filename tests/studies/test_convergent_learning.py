"""The convergent-learning study: its smallest run, its helpers on networks whose answer is known, and its full preset on made-up files."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, SubjectError
from netloupe.core.study import StudyResult, run_study
from netloupe.models.small import DigitsCNN, mlp
from netloupe.studies import _convergent_learning_groups as groups
from netloupe.studies import _convergent_learning_network as network
from netloupe.studies import convergent_learning as study

NAMES = [
    "beyond-chance",
    "shared-partners",
    "units-alone",
    "few-cost",
    "few-predict",
    "mean-spectrum",
    "information-agrees",
    "information-unbiased",
    "clusters-mixed",
]


@pytest.fixture(scope="module")
def smoke() -> StudyResult:
    return run_study("convergent-learning", "smoke", seed=0)


def test_smoke_measures_every_claim(smoke: StudyResult, whole):
    by_name = whole(smoke, NAMES, ("beyond-chance", "few-predict", "information-unbiased"))
    assert "recovered for 100 %" in by_name["units-alone"].note
    assert by_name["few-predict"].control == pytest.approx(0.5, abs=0.05)


def test_moments_of_a_network_with_itself_and_with_other_images():
    model, images = mlp(64, (20,), 10, random_state=0), torch.rand(30, 1, 8, 8)
    found = network.site_moments(model, model, images, ["act1"])["act1"]
    np.testing.assert_allclose(np.diag(found.between)[~found.dead_a], 1)
    order = torch.randperm(30)
    apart = network.site_moments(model, model, images, ["act1"], images[order])["act1"]
    np.testing.assert_allclose(apart.within_a, found.within_a, atol=1e-12)
    assert not np.allclose(apart.between, found.between)


def test_rows_are_the_same_places_in_every_network():
    torch.manual_seed(0)
    one = DigitsCNN(width=4).eval()
    images = torch.rand(20, 1, 8, 8)
    a, b = (network.rows_of(one, images, "relu1", 200, seed=3) for _ in range(2))
    assert a.shape == (200, 4)
    assert torch.equal(a, b)
    assert network.rows_of(one, images, "features", 200, seed=3).shape == (20, 64)


def test_least_squares_on_all_units_is_the_dense_map():
    model, other = (mlp(64, (12,), 10, random_state=seed) for seed in (0, 1))
    images = torch.rand(200, 1, 8, 8)
    moments = network.site_moments(model, other, images, ["act1"])["act1"]
    live = np.flatnonzero(~moments.dead_a)
    q = len(moments.mean) - moments.p
    found = groups._least_squares(moments, moments, [live] * q)
    assert found == pytest.approx(np.nanmean(groups.SparseMapper(0).fit_moments(moments).half_mse_))
    assert groups._least_squares(moments, moments, [live[:3]] * q) > found


def test_full_preset_reads_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SubjectError, match="Fashion-MNIST"):
        list(study.run("full"))
    draw = np.random.default_rng(0)
    for stem, count in (("train", 600), ("t10k", 400)):
        labels = draw.integers(0, 10, count).astype(np.uint8)
        images = (draw.random((count, 28, 28)) * 60 + labels[:, None, None] * 15).astype(np.uint8)
        head = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes())
    full = network.SETTINGS["full"]
    small = replace(
        full, n_nets=2, steps=5, conv_steps=1, mi_rows=500, alphas=(0.0, 0.05, 0.3),
        conv=lambda seed: network.ResNet18(n_channels=1, width=4, random_state=seed), conv_site="relu",
    )  # fmt: skip
    monkeypatch.setitem(network.SETTINGS, "full", small)
    assert [claim.name for claim in study.run("full")] == NAMES


def test_unknown_preset():
    with pytest.raises(InputError, match="preset is 'huge'"):
        next(study.run("huge"))  # pyright: ignore[reportArgumentType]
