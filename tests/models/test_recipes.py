"""The networks that this version can train by itself: built alike each time, trained alike, and worth training."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from netloupe.core.errors import SubjectError
from netloupe.core.isolation import pinned_threads
from netloupe.core.losses import next_token_loss
from netloupe.core.training import train
from netloupe.data.bytes_text import byte_batches, stdlib_bytes, unigram_entropy
from netloupe.models.recipes import RECIPES, get_recipe, run_recipe
from netloupe.subjects import Subject, load_data


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_builds_the_same_network_each_time(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two = get_recipe(name).build(), get_recipe(name).build()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_the_fashion_transformer_learns_from_files_and_says_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETLOUPE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SubjectError, match="put the four idx files there"):
        run_recipe("fashion-vit", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    draw = np.random.default_rng(0)
    for split, count in (("train", 200), ("t10k", 100)):
        labels = draw.integers(0, 10, count)
        images = draw.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels):
            image[2 * label : 2 * label + 4] += 180  # the class is the height of a bright bar
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", labels)
    monkeypatch.setattr("netloupe.models.recipes.FASHION_STEPS", 60)
    path, numbers = run_recipe("fashion-vit", tmp_path / "out", progress=False)
    assert path.is_file()
    assert numbers["test_accuracy"] > 0.5
    again = run_recipe("fashion-vit", tmp_path / "again", progress=False)
    assert again[1] == numbers
    one, two = load_file(str(path)), load_file(str(again[0]))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_byte_model_soon_knows_more_than_frequencies() -> None:
    """A fifth of the recipe is enough to predict better than the frequencies of bytes do; the same numbers twice."""
    runs = []
    for _ in range(2):
        model = get_recipe("stdlib-gpt").build()
        adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
        text = stdlib_bytes("train", 400)
        data = byte_batches(text, 64, 12)
        with pinned_threads(1):
            history = train(model, data, steps=100, optimizer=adam, loss=next_token_loss, warmup=10, clip=1.0)
        runs.append(history.loss)
    assert runs[0] == runs[1]
    assert runs[0][0] == pytest.approx(np.log(256), abs=0.1)
    assert max(runs[0][-5:]) < unigram_entropy(text)


def test_bytes_are_shown_as_characters() -> None:
    subject = Subject("gpt", get_recipe("stdlib-gpt").build())
    data = load_data("stdlib-bytes", subject, 6, batch_size=4)
    assert [tuple(batch.shape) for batch in data] == [(4, 64), (2, 64)]
    assert data.kind == "text"
    assert data.show is not None
    tokens = data.show(1).tokens
    assert tokens is not None
    assert len(tokens) == 64
    first = next(iter(data))[1]
    ascii_only = [index for index, byte in enumerate(first.tolist()) if 32 <= byte < 127]
    assert [tokens[index] for index in ascii_only] == [chr(int(first[index])) for index in ascii_only]
