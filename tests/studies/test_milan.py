"""The milan study: captions that mean what regions show, and the claims of its smallest run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.core.study import run_study
from netloupe.data.scenes import WORDS, scenes
from netloupe.models.scene_captioner import Group, annotate, true_words
from netloupe.models.scene_networks import Mixer, convolutional, seen
from netloupe.studies._milan_claims import low
from netloupe.studies._milan_world import f1, word_overlap, words_in


def words(*names: str) -> np.ndarray:
    return np.array([word in names for word in WORDS])


def test_claims_and_presets():
    result = run_study("milan", "smoke", seed=1)
    assert len(result.claims) == 11
    assert {c.name for c in result.claims if c.measured is not None} == {
        "pmi names more",
        "fewer stock phrases",
        "beyond a closed list",
    }
    with pytest.raises(InputError, match="preset"):
        run_study("milan", "huge")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_annotators_say_what_is_true(seed: int):
    rng = np.random.default_rng(seed)
    for truth in (
        words("red", "striped", "cross"),
        words("blue"),
        words("circle", "plain"),
        words("letter"),
        words("background"),
        words(),
    ):
        said = annotate(truth, rng)
        assert len(said) == 3
        assert not any((words_in(one) & ~truth).any() for one in said)
        assert (words_in(said[2]) == truth).all()
        assert words_in(said[0]).sum() == min(1, truth.sum())
    assert annotate(words("red", "striped", "cross"), rng)[2] == "the striped red crosses in the image"


def test_truth_of_regions():
    shown = scenes(40, objects=(1, 1), letter_share=0.0, random_state=3)
    red = torch.nonzero(shown.attributes[:, 0, 0] == 0)[:5, 0]
    masks, known = shown.masks[red, 0].numpy(), shown.word_masks()[red].numpy()
    found = true_words(masks, known)
    assert found[WORDS.index("red")]
    assert not found[WORDS.index("background")]
    assert not found[WORDS.index("blue")]
    empty = ~masks & (np.arange(32) >= 16)[None, None] & (np.arange(32) >= 16)[None, :, None]
    assert (true_words(empty, known) == words("background")).all()
    assert not true_words(np.zeros_like(masks), known)[:-1].any()
    assert f1(np.stack([words("red", "circle")]), np.stack([words("red")])) == pytest.approx(2 / 3)
    assert low(np.ones(20)) == 1


def test_overlap_with_words():
    """A unit that is the red channel at full resolution, against a plain count."""
    shown = scenes(30, random_state=4)
    network = torch.nn.Sequential()
    network.add_module("relu2", torch.nn.Identity())
    group = Group(
        [(0, "relu2", 0), (0, "relu2", 2)], np.array([0.6, 0.7]), torch.zeros(2, 1, 1), np.zeros((2, len(WORDS)), bool)
    )
    found = word_overlap([network], group, shown)
    masks = shown.word_masks().numpy()
    for row, (channel, level) in enumerate(((0, 0.6), (2, 0.7))):
        on = shown.images[:, channel].numpy() > level
        for word in range(len(WORDS)):
            both, either = (on & masks[:, word]).sum(), (on | masks[:, word]).sum()
            assert found[row, word] == pytest.approx(both / max(1, either))


def test_networks():
    shown = scenes(5)
    for network in (convolutional((4, 6, 8), seen(shown).shape[1], 0, norm=True), Mixer(8, seen(shown).shape[1], 0)):
        assert network(shown.images).shape == seen(shown).shape
    assert seen(shown).shape[1] == 13 + 18 + 24 + 12 + 4
