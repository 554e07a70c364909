"""Loading responses: what is missing stays missing, and nothing is unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from netloupe.core.errors import InputError, StoreError
from netloupe.domains.brain.nsd import Responses, from_mapping, load_responses, save_responses


def made() -> Responses:
    return from_mapping({7: {1: [1.0, 2.0], 2: [3.0]}, 3: {1: [4.0, -999.0]}}, {1: 2, 2: 1})


def test_missing_subjects_and_sentinels_are_nan_and_a_file_keeps_them(tmp_path: Path):
    found = made()
    np.testing.assert_array_equal(found.values, [[4, np.nan, np.nan], [1, 2, 3]])
    assert found.images.tolist() == [3, 7]
    assert found.subject.tolist() == [1, 1, 2]
    with_ceiling = Responses(found.values, found.images, found.subject, np.array([0.5, 0.0, 0.2]))
    again = load_responses(save_responses(with_ceiling, tmp_path / "r.npz"))
    np.testing.assert_array_equal(again.values, found.values)
    assert again.explainable().values.shape == (2, 2)
    np.testing.assert_array_equal(again.take([7, 3]).images, [7, 3])


def test_bad_files_are_one_sentence_and_pickles_are_never_opened(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "r.pickle").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "bomb.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "objects.npz", values=np.array([{}], dtype=object))
    np.savez(tmp_path / "half.npz", values=np.ones((2, 2)))
    np.savez(tmp_path / "odd.npz", values=np.ones((2, 2)), images=np.arange(3), subject=np.arange(2))
    cases = [("r.pickle", InputError, "neither"), ("bomb.npz", StoreError, "cannot be read"), ("objects.npz", StoreError, "."),
             ("half.npz", StoreError, "no 'images'"), ("odd.npz", StoreError, "do not fit"), ("none.npz", StoreError, "cannot be read")]  # fmt: skip
    for name, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            load_responses(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="not among"):
        made().take([5])
    with pytest.raises(InputError, match="no ceilings"):
        made().explainable()
    with pytest.raises(InputError, match="expected 2"):
        from_mapping({7: {1: [1.0]}}, {1: 2})
    with pytest.raises(InputError, match="no images"):
        from_mapping({}, {})
    with pytest.raises(StoreError, match="could not be written"):
        save_responses(made(), tmp_path / "no" / "r.npz")
