"""The feature-complexity study: its parts, and its largest preset on made-up files."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.models.resnet import ResNet18
from netloupe.studies import _v_complexity_claims as claims
from netloupe.studies import _v_complexity_network as network
from netloupe.studies import v_complexity as study

NAMES = [
    "learned-late", "relies-on-simple", "reliance-appears", "less-robust", "skip-first", "skip-simple", "faithful",
]  # fmt: skip


def write_idx(path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_full_preset_reads_its_files(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    images = np.clip(25 * labels[:, None, None] + rng.integers(0, 25, (60, 28, 28)), 0, 255)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    whole = study.SETTINGS["full"]
    tiny = dataclasses.replace(
        whole, sites=whole.sites._replace(build=lambda seed: ResNet18(1, 10, 1, random_state=seed)), n_samples=60,
        n_test=20, n_atoms=6, n_epochs=1, checkpoints=(0, 1), n_seeds=1, n_draws=2, n_shaken=5, patience=1,
        batch_size=20,
    )  # fmt: skip
    monkeypatch.setitem(study.SETTINGS, "full", tiny)
    found = list(study.run("full", 1))
    assert [claim.name for claim in found] == NAMES
    assert "Fashion-MNIST" in found[0].note
    json.dumps([claim.document() for claim in found], allow_nan=False)
    assert len(whole.sites.layers) == 11
    assert len(whole.checkpoints) == 20


def test_training_and_test_samples_are_apart_and_labels_are_shuffled_only_where_asked():
    setting = dataclasses.replace(study.SETTINGS["smoke"], n_epochs=4, patience=1, checkpoints=(0, 1, 4))
    data = study.load_data("smoke")
    fitted, test = network.split_of(setting, len(data[1]), 0)
    assert not (fitted & test).any()
    assert (fitted | test).all()
    assert test.sum() == setting.n_test
    model, states, accuracy = network.trained(setting, data, 0)
    assert sorted(states) == [0, 1, 4]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in states[4].items())
    _, none, shuffled = network.trained(setting, data, 0, shuffled=True)
    assert none == {}
    assert accuracy > 0.5 > shuffled
    still, same, _ = network.trained(setting, data, 0, rate=0.0)
    assert all(torch.equal(value, still.state_dict()[name]) for name, value in same[0].items())


def test_claims_that_rest_on_memorised_labels_are_not_tested_without_them():
    made = network.Measured(None, None, None, 0.5)  # type: ignore[arg-type]
    runs = claims.Runs([], [made], 0.0, "")
    assert runs.against_shuffled([1.0]) == {"measured": None}
    assert "Not tested" in runs.told()
    runs = claims.Runs([], [made._replace(fitted_accuracy=0.98)], 0.0, "")
    assert runs.against_shuffled([1.0, 3.0])["measured"] == 2.0
    assert "Not tested" not in runs.told()


def test_spearman_leaves_out_what_is_missing():
    assert network.spearman(np.array([1, 2, np.nan, 4]), np.array([10, 20, 5, 90])) == pytest.approx(1)
    assert np.isnan(network.spearman(np.ones(4), np.arange(4)))


def test_bad_preset():
    with pytest.raises(InputError, match="preset is 'large'"):
        next(study.run("large"))  # type: ignore[arg-type]
