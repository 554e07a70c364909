"""Windows of bytes: two parts without a common text, and batches that follow the generator alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, SubjectError
from netloupe.data.bytes_text import byte_batches, byte_windows, file_bytes, stdlib_bytes, unigram_entropy
from netloupe.data.stdlib_text import stdlib_docstrings


def test_splits_share_no_text_and_hold_all_of_it():
    train, validation = (
        bytes(stdlib_bytes(split, 100).numpy()).decode().split("\n") for split in ("train", "validation")
    )
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(stdlib_docstrings(100))
    assert len(validation) == len(stdlib_docstrings(100)) // 10
    assert torch.equal(stdlib_bytes("train", 100), stdlib_bytes("train", 100))


def test_windows_are_consecutive_or_evenly_spread():
    stream = torch.arange(100, dtype=torch.uint8)
    whole = byte_windows(stream, 7)
    assert whole.shape == (14, 7)
    assert whole.dtype == torch.int64
    assert torch.equal(whole.reshape(-1), torch.arange(98))
    assert byte_windows(stream, 7, 3)[:, 0].tolist() == [0, 28, 63]


def test_batches_follow_the_generator():
    draw = byte_batches(torch.arange(200, dtype=torch.uint8), 5, 4)
    one, same = (draw(step, torch.Generator().manual_seed(3)) for step in (0, 9))
    assert torch.equal(one, same)
    assert one.shape == (4, 5)
    assert (one.diff(dim=1) == 1).all()
    assert not torch.equal(one, draw(0, torch.Generator().manual_seed(4)))


def test_entropy_of_even_bytes():
    assert unigram_entropy(torch.arange(16, dtype=torch.uint8)) == pytest.approx(math.log(16))
    assert unigram_entropy(torch.zeros(5, dtype=torch.uint8)) == 0


def test_a_file_is_mapped_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "text.bin"
    content = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
    content.tofile(path)
    monkeypatch.setenv("NETLOUPE_TEXT", str(path))
    assert np.array_equal(file_bytes("train").numpy(), content[:198_000])
    assert np.array_equal(file_bytes("validation", path).numpy(), content[198_000:])
    monkeypatch.delenv("NETLOUPE_TEXT")
    with pytest.raises(SubjectError, match="NETLOUPE_TEXT"):
        file_bytes("train")


def test_bad_arguments():
    stream = torch.arange(10, dtype=torch.uint8)
    for call in (
        lambda: stdlib_bytes("test"),  # type: ignore[arg-type]
        lambda: stdlib_bytes("train", 3),
        lambda: byte_windows(stream, 11),
        lambda: byte_windows(stream, 1),
        lambda: byte_windows(stream, 5, 3),
        lambda: byte_batches(stream, 11),
        lambda: byte_batches(stream, 5, 0),
        lambda: unigram_entropy(stream[:0]),
    ):
        with pytest.raises(InputError):
            call()
