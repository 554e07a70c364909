"""Planted scenes mean what they say; annotations are read as they lie on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, SubjectError
from netloupe.data.milannotations import milannotations
from netloupe.data.scenes import COLOURS, LETTERS, SHAPES, TEXTURES, WORDS, scenes


@pytest.mark.parametrize("seed", range(3))
def test_scenes(seed: int):
    made, again = scenes(60, random_state=seed), scenes(60, random_state=seed)
    assert torch.equal(made.images, again.images)
    assert made.images.shape == (60, 3, 32, 32)
    assert 0 <= float(made.images.min()) < float(made.images.max()) <= 1
    n_objects = (made.attributes[..., 0] >= 0).sum(1)
    assert set(n_objects.tolist()) <= {1, 2, 3}
    assert torch.equal(made.masks.flatten(2).any(-1), made.attributes[..., 0] >= 0)
    assert int(made.masks.sum(1).max()) == 1  # nothing overlaps
    assert not (made.masks.any(1) & made.letter_masks).any()
    assert torch.equal(made.letters >= 0, made.letter_masks.flatten(1).any(1))
    words, present = made.word_masks(), made.present()
    assert torch.equal(words.flatten(2).any(-1)[:, :-1], present)
    groups = {"colour": range(len(COLOURS)), "texture": range(6, 9), "shape": range(9, 13)}
    for places in groups.values():
        assert torch.equal(words[:, list(places)].sum(1), made.masks.sum(1))
    assert torch.equal(words[:, WORDS.index("background")], ~(made.masks.any(1) | made.letter_masks))
    assert len(TEXTURES) + len(COLOURS) + len(SHAPES) + 2 == len(WORDS)


def test_colours_are_what_attributes_say():
    made = scenes(200, objects=(1, 1), noise=0.0, letter_share=0.0, random_state=5)
    plain = made.attributes[:, 0, 1] == 0
    for colour in range(len(COLOURS)):
        rows = torch.nonzero(plain & (made.attributes[:, 0, 0] == colour))[:, 0]
        values = torch.stack([made.images[row][:, made.masks[row, 0]].mean(1) for row in rows])
        assert float(values.std(0).max()) < 1e-6
    striped = torch.nonzero(made.attributes[:, 0, 1] == 1)[:, 0]
    assert all(float(made.images[row][:, made.masks[row, 0]].std(1).max()) > 0.1 for row in striped)


def test_letters():
    bare = scenes(40, letter_share=0.0, random_state=1)
    assert not bare.letter_masks.any()
    wanted = torch.arange(40) % 5 - 1
    told = bare.with_letters(wanted)
    assert torch.equal(told.letters, wanted)
    changed = (told.images != bare.images).any(1)
    assert not (changed & ~told.letter_masks).any()
    assert torch.equal(changed.flatten(1).any(1), wanted >= 0)
    blurred = told.blurred()
    assert not ((blurred.images != told.images).any(1) & ~told.letter_masks).any()
    inside = told.images[1][:, told.letter_masks[1]].std(), blurred.images[1][:, told.letter_masks[1]].std()
    assert inside[1] < 0.4 * inside[0]
    with pytest.raises(InputError, match="have letters already"):
        told.with_letters(wanted)
    with pytest.raises(InputError, match="expected one of"):
        bare.with_letters(torch.full((40,), len(LETTERS)))
    for broken in ({"n": 0}, {"objects": (2, 1)}, {"objects": (0, 4)}, {"letter_share": 2.0}, {"noise": -1.0}):
        with pytest.raises(InputError, match="at least one scene"):
            scenes(**{"n": 3, **broken})


def test_milannotations(tmp_path):
    (tmp_path / "conv1").mkdir()
    (tmp_path / "conv2").mkdir()
    rng = np.random.default_rng(0)
    arrays = {}
    for layer, n in (("conv1", 4), ("conv2", 2)):
        arrays[layer] = (
            rng.integers(0, 256, (n, 3, 3, 8, 8), dtype=np.uint8),
            rng.integers(0, 2, (n, 3, 1, 8, 8), dtype=np.uint8),
        )
        for name, values in zip(("images", "masks"), arrays[layer], strict=True):
            np.save(tmp_path / layer / f"{name}.npy", values)
    np.save(tmp_path / "conv2" / "units.npy", np.array([7, 9]))
    rows = [
        "layer,unit,summary",
        'conv1,0,"red, round things"',
        "conv1,0,circles",
        "conv1,2,grass",
        "conv2,9,text",
        "conv2,9,letters",
    ]
    (tmp_path / "annotations.csv").write_text("\n".join(rows), encoding="utf-8")
    one, two = milannotations(tmp_path)
    assert (one.layer, one.units, one.captions) == ("conv1", [0, 2], [["red, round things", "circles"], ["grass"]])
    assert (two.units, two.captions) == ([9], [["text", "letters"]])
    np.testing.assert_array_equal(one.images, arrays["conv1"][0][[0, 2]])
    np.testing.assert_array_equal(two.masks, arrays["conv2"][1][[1]])
    assert [layer.units for layer in milannotations(tmp_path, n_captions=2)] == [[0], [9]]
    with pytest.raises(SubjectError, match="no column name"):
        list(milannotations(tmp_path, column="name"))
    with pytest.raises(SubjectError, match="no file"):
        list(milannotations(tmp_path / "conv1"))
    (tmp_path / "conv2" / "masks.npy").write_bytes(b"x")
    with pytest.raises(SubjectError, match="not a readable array"):
        list(milannotations(tmp_path))
    np.save(tmp_path / "conv2" / "masks.npy", arrays["conv1"][1])
    with pytest.raises(SubjectError, match="do not match"):
        list(milannotations(tmp_path))
    (tmp_path / "annotations.csv").write_text("layer,unit,summary\nconv1,x,y\n", encoding="utf-8")
    with pytest.raises(SubjectError, match="whole number"):
        list(milannotations(tmp_path))
