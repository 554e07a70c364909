"""Features of known complexity: computed as they say, balanced, independent, and hidden from linear readers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from netloupe.core.errors import InputError
from netloupe.data.abstract_features import BINARY, binary_features, feature_strings, shape_colour_images

RULES = {  # from the definitions, on -1 and +1
    "bit": lambda b: b[:, 0] > 0,
    "majority": lambda b: b.sum(1) > 0,
    "xor": lambda b: b[:, 0] * b[:, 1] < 0,
    "parity3": lambda b: b[:, :3].prod(1) > 0,
    "parity4": lambda b: b[:, :4].prod(1) < 0,
    "xor_of_xors": lambda b: (b[:, 0] != b[:, 1]) != (b[:, 2] != b[:, 3]),
}


@pytest.mark.parametrize("kind", list(BINARY))
def test_a_feature_is_what_its_name_says_and_uses_its_own_block(kind: str):
    x, y = binary_features(2000, ("bit", kind), width=14, seed=3)
    assert x.shape == (2000, 14)
    assert x.dtype == np.float32
    assert set(np.unique(x)) == {-1, 1}
    np.testing.assert_array_equal(RULES[kind](x[:, 5:10]), y[:, 1] == 1)
    np.testing.assert_array_equal(x[:, 0] > 0, y[:, 0] == 1)


@pytest.mark.parametrize("seed", range(3))
def test_every_combination_is_equally_frequent_and_the_rest_is_coin_tosses(seed: int):
    x, y = binary_features(4096, ("majority", "xor", "parity3"), seed=seed)
    assert set(np.bincount(y @ [4, 2, 1])) == {512}
    assert np.abs(x.mean(0)).max() < 0.08
    for column, linear in zip(y.T, (True, False, False)):
        score = LinearRegression().fit(x, column).score(x, column)
        assert (score > 0.5) == linear
    again, _ = binary_features(4096, ("majority", "xor", "parity3"), seed=seed)
    np.testing.assert_array_equal(x, again)


def test_given_its_feature_a_block_is_uniform():
    x, y = binary_features(40_000, ("majority",), seed=1)
    codes = (x[:, :5] > 0) @ (2 ** np.arange(5))
    counts = np.bincount(codes, minlength=32)
    assert np.abs(counts / 1250 - 1).max() < 0.15
    assert y.mean() == 0.5


def test_strings():
    tokens, y = feature_strings(1000, ("first", "majority", "parity", "count"), length=22)
    assert tokens.shape == (1000, 22)
    pieces = [tokens[:, start : start + 5] for start in range(0, 20, 5)]
    ones = [piece.sum(1) for piece in pieces]
    wanted = [pieces[0][:, 0] == 1, ones[1] > 2, ones[2] % 2 == 1, np.isin(ones[3], [2, 3])]
    np.testing.assert_array_equal(np.stack(wanted, 1), y == 1)


def test_images_show_shape_and_colour():
    images, y = shape_colour_images(400, noise=0.0, seed=2)
    assert images.shape == (400, 3, 16, 16)
    lit = images.sum((2, 3))
    np.testing.assert_array_equal(lit[:, 2] > 0, y[:, 1] == 1)
    np.testing.assert_array_equal(lit[:, 0] > 0, y[:, 1] == 0)
    figures = images.sum(1) > 0
    heights = figures.any(2).sum(1)
    assert (heights[y[:, 0] == 1].min()) > heights[y[:, 0] == 0].max()
    areas = figures.sum((1, 2))
    assert 0.5 < areas[y[:, 0] == 1].mean() / areas[y[:, 0] == 0].mean() < 2
    assert np.ptp(areas[y[:, 0] == 1]) == np.ptp(areas[y[:, 0] == 0]) == 0, "no figure is cut off"


def test_bad_arguments():
    for call in (
        lambda: binary_features(10, ("nothing",)),
        lambda: binary_features(10, ()),
        lambda: binary_features(10, ("xor",) * 7),
        lambda: binary_features(10, ("majority",), block=6),
        lambda: binary_features(10, ("xor",), block=3),
        lambda: binary_features(1, ("xor",)),
        lambda: shape_colour_images(10, size=8),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
