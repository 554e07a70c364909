"""One way to write tensors: whole or not at all, and one sentence where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from netloupe.core import tensorfile
from netloupe.core.errors import StoreError
from netloupe.core.tensorfile import read_tensors, write_tensors


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5), "c": torch.ones(2, dtype=torch.bool)}
    shared = torch.zeros(4)
    path = write_tensors(tensors | {"d": shared, "e": shared[:2]}, tmp_path / "new" / "x.safetensors", {"word": "ä"})
    found, words = read_tensors(path)
    assert words == {"word": "ä"}
    assert set(found) == {"a", "b", "c", "d", "e"}
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]
    assert read_tensors(write_tensors({"a": shared}, tmp_path / "y"))[1] == {}


def test_a_failing_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tensors({"a": torch.ones(2)}, tmp_path / "x")

    def full(tensors: dict, name: str, metadata: dict | None = None) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "save_file", full)
    with pytest.raises(StoreError, match=r"the weights could not be written to .*No space left"):
        write_tensors({"a": torch.zeros(2)}, path, what="weights")
    assert torch.equal(read_tensors(path)[0]["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    for name in ("text", "nothing"):
        with pytest.raises(StoreError, match="cannot be read as safetensors"):
            read_tensors(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        write_tensors({"a": torch.zeros(1)}, tmp_path / "file" / "x")
