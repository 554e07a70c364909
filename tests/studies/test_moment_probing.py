"""The moment-probing study: its parts on known input, and its largest preset on made-up files."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.data import digits
from netloupe.studies import _moment_probing_network as network
from netloupe.studies import _moment_probing_text as text
from netloupe.studies import _moment_probing_tuning as tuning
from netloupe.studies import moment_probing as study

NAMES = [
    "covariance", "mean", "frozen-network", "beyond-size", "compact", "adapters", "adapters-and-moments", "text",
]  # fmt: skip
TINY_NETWORK = dataclasses.replace(study.NETWORK["smoke"], n_steps=3, n_epochs=2)


def write_idx(path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_full_preset_reads_its_files(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 10
    images = np.clip(25 * labels[:, None, None] + rng.integers(0, 25, (100, 28, 28)), 0, 255)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    monkeypatch.setattr(network, "N_SHUFFLES", 1)
    small = {"n_epochs": 1, "n_seeds": 1}
    planted = dataclasses.replace(study.PLANTED["full"], n_samples=64, **small)
    monkeypatch.setitem(study.PLANTED, "full", planted)
    monkeypatch.setitem(
        study.NETWORK, "full", dataclasses.replace(study.NETWORK["full"], n_steps=2, parity_samples=64, **small)
    )
    monkeypatch.setitem(study.TUNING, "full", dataclasses.replace(study.TUNING["full"], batch_size=32, **small))
    made = dataclasses.replace(study.TEXT["full"], n_steps=2, n_texts=40, n_epochs=1, d_model=16, n_layers=1, limit=300)
    monkeypatch.setitem(study.TEXT, "full", made)
    claims = list(study.run("full", 1))
    assert [claim.name for claim in claims] == NAMES
    assert "Fashion-MNIST:" in claims[2].note
    json.dumps([claim.document() for claim in claims], allow_nan=False)


def test_shuffled_tokens_keep_each_unit_and_lose_what_belongs_together():
    tokens = torch.arange(6.0)[:, None, None] + torch.zeros(6, 2, 40)
    found = network.shuffled(tokens, 0)
    assert found.shape == (6 * network.N_SHUFFLES, 2, 40)
    for part in found.split(6):
        assert torch.equal(part.sort(0).values, tokens)
        assert torch.equal(part[:, 0], part[:, 1])  # a map stays a map
    assert (found[:6].std(-1) > 0.5).all()


def test_the_network_never_sees_the_probed_classes_and_stays_as_it_was():
    data = digits()
    images, labels = network.unseen(TINY_NETWORK, data)
    assert len(images) == int((data[1] >= 5).sum())
    assert set(labels.tolist()) == set(range(5))
    body = network.pretrained(TINY_NETWORK, data, 0)
    tokens = network.tokens_of(body, images[:3])
    assert tokens.shape == (3, 16, 32)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    settings = tuning.TuningSettings(n_epochs=1, n_seeds=1)
    found = [
        tuning.tuned_accuracy(settings, TINY_NETWORK, body, (images[:200], labels[:200]), "moment", kind, 0)
        for kind in ("none", "zero", "tuned")
    ]
    assert found[0] == found[1]
    assert all(0 <= value <= 1 for value in found)
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())


def test_texts_in_order_and_shuffled_hold_the_same_characters():
    training, probed, labels = text.ordered_or_not(40, 300, 0)
    assert probed.shape == (40, text.LENGTH)
    assert int(labels.sum()) == 20
    assert int(training.max()) < text.N_TOKENS
    again = text.ordered_or_not(40, 300, 0)
    assert torch.equal(probed, again[1])
    assert not torch.equal(probed, text.ordered_or_not(40, 300, 1)[1])


def test_bad_preset():
    with pytest.raises(InputError, match="preset is 'large'"):
        next(study.run("large"))  # type: ignore[arg-type]
