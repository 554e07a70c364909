"""A captioner that needs no network from elsewhere: it learns, says what is there, and comes back from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError, StoreError
from netloupe.data.scenes import scenes
from netloupe.lenses.naming.milan import MilanDescriber
from netloupe.lenses.naming.milan_file import load_describer, save_describer
from netloupe.lenses.naming.naming import name_feature
from netloupe.models.scene_captioner import SceneCaptioner, scene_captioner, train_scene_captioner
from netloupe.models.scene_networks import convolutional, seen


@pytest.fixture(scope="module")
def captioner() -> SceneCaptioner:
    torch.set_num_threads(1)
    return train_scene_captioner(400, 200, 60, ((8, 12, 12),), epochs=25)


def test_phrases_are_of_known_words_and_the_same_from_disk(captioner: SceneCaptioner, tmp_path: Path) -> None:
    shown = scenes(200, random_state=9)
    network = convolutional((6, 8, 8), seen(shown).shape[1], 3).eval()
    said = captioner.describe(network, "relu2", shown.images, units=[0, 3, 5])
    assert len(said) == 3
    assert all(one.text for one in said)
    again = SceneCaptioner.load(captioner.save(tmp_path / "captioner.safetensors"))
    assert again.describe(network, "relu2", shown.images, units=[0, 3, 5]) == said
    assert [p.name for p in tmp_path.iterdir()] == ["captioner.safetensors"]


def test_its_phrases_are_proposals_that_end_in_a_held_out_score(captioner: SceneCaptioner) -> None:
    """A feature that is on for red things: the regions are whole pictures, the judge knows what is in them."""
    shown = scenes(240, random_state=4)
    red = shown.word_masks()[:, _word("red")].flatten(1).float().mean(1).numpy()
    regions = _pictures(captioner, shown)

    def judge(text: str, samples: list[int]) -> np.ndarray:
        words = [
            w for w in text.split() if w in ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
        ]
        known = [shown.word_masks()[:, _word(w)].flatten(1).any(1).float().numpy() for w in words if _known(w)]
        return sum((column[np.asarray(samples)] for column in known), np.zeros(len(samples)))

    proposer = captioner.describer.proposer(stack=lambda samples: np.stack([regions[i] for i in samples]))
    name = name_feature(red, list(range(240)), proposer, judge, share=0.2)
    assert captioner.describer.vocabulary is not None
    assert set(name.text.split()) <= set(captioner.describer.vocabulary.tokens)
    assert name.text in {proposal.text for proposal in name.tried}
    assert name.n_active + name.n_quiet == 120


def _word(word: str) -> int:
    from netloupe.data.scenes import WORDS

    return WORDS.index(word)


def _known(word: str) -> bool:
    from netloupe.data.scenes import WORDS

    return word in WORDS


def _pictures(captioner: SceneCaptioner, shown) -> np.ndarray:
    from netloupe.core.capture import capture

    parts = []
    for captured in capture(captioner.backbone, shown.images, ["relu1", "relu2", "relu3"], pool="mean"):
        parts.append(torch.cat([captured[site] for site in ("relu1", "relu2", "relu3")], 1))
    return (torch.cat(parts) / captioner.scale[-parts[0].shape[1] :]).numpy()


def test_the_recipe_is_read_from_the_cache_and_a_broken_cache_is_made_anew(captioner, tmp_path, monkeypatch) -> None:
    from netloupe.models import scene_captioner as module

    trained = []
    monkeypatch.setenv("NETLOUPE_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "train_scene_captioner", lambda: trained.append(1) or captioner)
    for expected in (1, 1):
        scene_captioner()
        assert len(trained) == expected
    (path,) = (tmp_path / "recipes").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    scene_captioner()
    assert len(trained) == 2


def test_files_that_are_none_and_describers_that_learned_nothing(tmp_path: Path, captioner: SceneCaptioner) -> None:
    with pytest.raises(InputError, match="fit first"):
        save_describer(MilanDescriber(), tmp_path / "x")
    with pytest.raises(StoreError, match="cannot be read"):
        load_describer(tmp_path / "nothing")
    from netloupe.core.dictionary import Dictionary

    other = Dictionary(torch.eye(2)).save(tmp_path / "d.safetensors")
    with pytest.raises(StoreError, match="no netloupe describer"):
        SceneCaptioner.load(other)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        captioner.save(tmp_path / "file" / "x.safetensors")
