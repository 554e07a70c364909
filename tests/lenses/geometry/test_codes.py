"""Binary codes: closed forms of line arrangements, brute force, and bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import nn

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.geometry.code_neighbours import knn_votes
from netloupe.lenses.geometry.codes import (
    DistinctCodes,
    PackedCodes,
    activation_code,
    drop_constant,
    hamming,
    network_codes,
    neural_code,
    redundancy_ratio,
)
from netloupe.models.small import DigitsCNN, mlp


def bits_of(seed: int, n: int, width: int, p: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random((n, width)) < p


@pytest.mark.parametrize(("width", "regions"), [(1, 2), (2, 4), (3, 7)])
@pytest.mark.parametrize("seed", range(4))
def test_lines_in_general_position_cut_the_plane_into_so_many_regions(width: int, regions: int, seed: int):
    rng = np.random.default_rng(seed)
    angles = np.pi * (np.arange(width) + rng.uniform(0.2, 0.8, width)) / width
    normals = np.stack([np.cos(angles), np.sin(angles)])
    offsets = rng.uniform(-0.2, 0.2, width)
    grid = np.stack(np.meshgrid(*[np.linspace(-60, 60, 1201)] * 2), -1).reshape(-1, 2)
    fine = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, 301)] * 2), -1).reshape(-1, 2)
    points = np.concatenate([grid, fine])
    codes = activation_code(np.maximum(points @ normals + offsets, 0))
    assert redundancy_ratio(codes) == pytest.approx(1 - regions / len(points), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 60), st.sampled_from([0.02, 0.5, 0.9]))
def test_packing_distances_and_groups_are_numpys(seed: int, width: int, n: int, p: float):
    bits = bits_of(seed, n, width, p)
    codes = PackedCodes.from_bits(bits)
    assert np.array_equal(codes.bits(), bits)
    assert np.array_equal(codes.packed, np.packbits(bits, axis=1))
    other = bits_of(seed + 1, 7, width, p)
    expected = np.rint(cdist(bits, other, "hamming") * width).astype(int)
    assert np.array_equal(hamming(codes, other), expected)
    distinct = len(np.unique(bits, axis=0))
    assert redundancy_ratio(bits) == pytest.approx((n - distinct) / n)
    groups = codes.groups()
    assert np.array_equal(groups[:, None] == groups, (bits[:, None] == bits).all(2))
    assert np.array_equal(codes.constant(), bits.all(0) | ~bits.any(0))


def test_equal_rows_and_no_bits():
    assert redundancy_ratio(np.ones((8, 3), bool)) == 7 / 8
    dropped = None
    with pytest.warns(UserWarning, match="every bit is constant"):
        dropped = activation_code(np.ones((8, 3)), drop_constant=True)
    assert dropped.n_bits == 0
    with pytest.warns(UserWarning, match="no bits"):
        assert redundancy_ratio(dropped) == 7 / 8


def test_zero_is_off_and_positions_are_bits_or_channels():
    values = np.zeros((2, 3, 2))  # sample, position, unit
    values[0, 1, 0], values[1, 2, 1] = 1, -1
    assert activation_code(values).n_bits == 6
    assert np.array_equal(activation_code(values, spatial="any").bits(), [[1, 0], [0, 0]])
    values[0, 0, 0] = -3
    assert np.array_equal(activation_code(values, spatial="any").bits(), [[1, 0], [0, 0]])
    assert np.array_equal(activation_code(values, spatial="sum").bits(), [[0, 0], [0, 0]])
    maps = np.moveaxis(values.reshape(2, 3, 1, 2), 3, 1)  # sample, channel, height, width
    for spatial in ("any", "sum"):
        assert np.array_equal(
            activation_code(maps, spatial=spatial).bits(), activation_code(values, spatial=spatial).bits()
        )


def test_layers_streams_and_constant_bits():
    rng = np.random.default_rng(0)
    acts = {"a": np.maximum(rng.standard_normal((50, 70)), 0), "b": np.maximum(rng.standard_normal((50, 5)), 0)}
    acts["a"][:, 3] = 0
    whole = activation_code(acts)
    parts = PackedCodes.concat(activation_code({k: v[i : i + 7] for k, v in acts.items()}) for i in range(0, 50, 7))
    assert parts == whole
    assert np.array_equal(whole.layer("b").bits(), acts["b"] > 0)
    assert np.array_equal(whole[10:20].bits(), whole.bits()[10:20])
    train, test = drop_constant(whole[:40], whole[40:])
    assert train.n_bits == test.n_bits == 74
    assert train.layers == {"a": slice(0, 69), "b": slice(69, 74)}
    assert np.array_equal(hamming(train, test), hamming(whole[:40], whole[40:]))
    lone = activation_code({"b": acts["b"]})
    for refused in (
        lambda: whole.layer("c"),
        lambda: whole.append(lone),
        lambda: drop_constant(whole, lone),
        lambda: hamming(whole, lone),
    ):
        with pytest.raises(InputError):
            refused()


def test_a_stream_is_counted_as_its_rows_are():
    bits = bits_of(3, 400, 9)
    one, two = DistinctCodes(), DistinctCodes()
    one.update(torch.from_numpy(bits[:150].astype(np.float32)))
    two.update(torch.from_numpy(bits[150:].astype(np.float32)))
    found = one.merge(two).result()
    assert found.n_distinct == len(np.unique(bits, axis=0))
    assert found.redundancy == pytest.approx(redundancy_ratio(bits))
    assert not found.constant.any()


@pytest.mark.parametrize("seed", range(3))
def test_votes_are_the_mean_over_all_ways_to_break_ties(seed: int):
    rng = np.random.default_rng(seed)
    bits, y = bits_of(seed, 40, 5), rng.integers(0, 3, 40)
    codes, k = PackedCodes.from_bits(bits), 7
    votes = knn_votes(codes, y, 3, codes, k, own=np.arange(40))
    drawn = np.zeros((40, 3))
    distance = (bits[:, None] != bits).sum(2).astype(float)
    np.fill_diagonal(distance, np.inf)
    for _ in range(3000):
        order = np.argsort(distance + 0.5 * rng.random((40, 40)), 1)[:, :k]
        np.add.at(drawn, (np.repeat(np.arange(40), k), y[order].ravel()), 1 / 3000)
    assert np.allclose(votes.sum(1), k)
    assert np.abs(votes - drawn).max() < 0.15
    with pytest.raises(InputError, match="fewer neighbours"):
        knn_votes(codes, y, 3, codes, 40, own=np.arange(40))


def test_the_finding():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    x = np.maximum(rng.standard_normal((3, 8))[labels] * 2 + rng.standard_normal((300, 8)), 0)
    found = neural_code(x, labels)
    bits = x > 0
    assert found.redundancy == pytest.approx(redundancy_ratio(bits))
    left = [redundancy_ratio(np.delete(bits, i, 0)) for i in range(300)]
    jackknife = np.sqrt(299 / 300 * ((np.array(left) - np.mean(left)) ** 2).sum())
    assert found.standard_error == pytest.approx(jackknife, rel=1e-9)
    drawn = [redundancy_ratio(bits[rng.permutation(300)[:40]]) for _ in range(2000)]
    assert found.rarefied([40, 300])[0] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 2000**0.5)
    assert found.rarefied([40, 300])[1] == pytest.approx(found.redundancy, abs=1e-9)
    assert found.knn is not None
    assert found.knn > 0.6 > (found.largest_class or 1)
    assert neural_code(x, rng.permutation(labels)).knn < 0.45  # type: ignore[operator]
    assert neural_code(x, np.zeros(300, int)).knn is None
    assert neural_code(x[:9], labels[:9]).knn is None
    with pytest.raises(InputError, match="at least one neighbour"):
        neural_code(x, labels, k=0)


def test_a_network_is_read_as_its_modules():
    torch.manual_seed(0)
    model, x = mlp(6, (9, 4), 2, random_state=0), torch.randn(30, 6)
    with torch.no_grad():
        first = torch.relu(model.get_submodule("fc1")(x))
        second = torch.relu(model.get_submodule("fc2")(first))
    assert network_codes(model, x) == activation_code({"act1": first, "act2": second})
    images = torch.rand(5, 1, 8, 8)
    assert network_codes(DigitsCNN(), images).n_bits == 16 * 64 + 32 * 16 + 64
    assert network_codes(DigitsCNN(), images, spatial="sum").n_bits == 16 + 32 + 64
    with pytest.raises(InputError, match="no ReLU-like"):
        network_codes(nn.Linear(6, 2), x)
    with pytest.warns(UserWarning, match="is smooth"):
        network_codes(nn.Sequential(nn.Linear(6, 2), nn.GELU()), x, ["1"])


def test_smooth_activations_are_noticed():
    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(0)) * 3
    for smooth in (nn.GELU(), nn.SiLU()):
        with pytest.warns(UserWarning, match="smooth"):
            activation_code(smooth(x))
        assert "choice" in neural_code(smooth(x)).paragraph()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (nn.ReLU(), nn.LeakyReLU(0.2), nn.Identity()):
            activation_code(other(x))


def test_bad_input_is_one_sentence():
    x = np.random.default_rng(0).random((10, 3))
    broken = x.copy()
    broken[2, 1] = np.nan
    with pytest.raises(NonFiniteError):
        activation_code(broken)
    cases = [
        lambda: redundancy_ratio(x), lambda: redundancy_ratio(np.full((3, 2), 2)), lambda: redundancy_ratio(np.zeros((0, 3), bool)),
        lambda: redundancy_ratio(np.zeros(3, bool)), lambda: activation_code([]), lambda: activation_code(x[:, 0]),
        lambda: activation_code([x, x[:5]]), lambda: activation_code(x, spatial="mean"),  # type: ignore[arg-type]
        lambda: activation_code(x[:0]), lambda: PackedCodes.concat([]),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
