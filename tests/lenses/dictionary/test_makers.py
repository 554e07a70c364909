"""One call, many ways: planted directions are found by all, positions become rows, padding is left out, bad calls are one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.rows import PositionRows
from netloupe.lenses.dictionary.makers import MAKERS, make_dictionary
from netloupe.lenses.dictionary.score import mmcs, score

QUICK = {
    "pca": {}, "snmf": {"max_iter": 150, "sparsity": 0.2}, "nmf": {"max_iter": 150}, "feast": {}, "relu": {"steps": 300, "rate": 3e-3},
    "topk": {"steps": 300, "k": 2, "rate": 3e-3}, "batchtopk": {"steps": 300, "k": 2, "rate": 3e-3},
    "jumprelu": {"steps": 300, "rate": 3e-3},
}  # fmt: skip


def _planted(n: int = 800, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Sums of two of eight non-negative directions of disjoint support, each at a random strength."""
    rng = np.random.default_rng(seed)
    directions = np.kron(np.eye(8), np.ones(2)) / np.sqrt(2)
    codes = np.zeros((n, 8))
    for row in codes:
        row[rng.choice(8, 2, replace=False)] = rng.uniform(1, 2, 2)
    return torch.from_numpy(codes @ directions).float(), directions


def test_every_maker_is_tried() -> None:
    assert set(QUICK) == set(MAKERS)


@pytest.mark.parametrize("maker", list(QUICK))
def test_a_dictionary_explains_and_knows_its_site(maker: str) -> None:
    x, true = _planted()
    made = make_dictionary(maker, x, 8, "block:in", random_state=1, **QUICK[maker])
    assert isinstance(made, Dictionary)
    assert len(made) == 8
    assert made.site == "block:in"
    if maker == "feast":  # one prototype a row: k-means with as many is the best that there could be
        found: Any = KMeans(8, random_state=0).fit(x.numpy())
        best = 1 - found.inertia_ / float((x - x.mean(0)).pow(2).sum())
        assert score(made, x).explained > 0.5 * best
    else:
        assert score(made, x).explained > 0.6
    again = make_dictionary(maker, x, 8, "block:in", random_state=1, **QUICK[maker])
    assert torch.equal(made.directions, again.directions)
    if maker in ("snmf", "nmf"):
        assert mmcs(true, made) > 0.9


@pytest.mark.parametrize("maker", ["pca", "nmf", "topk"])
def test_positions_are_rows_and_padding_does_not_count(maker: str) -> None:
    x, _ = _planted(600)
    padded = torch.cat([x.reshape(100, 6, 16), torch.full((100, 3, 16), 50.0)], 1)
    mask = torch.ones(100, 9, dtype=torch.bool)
    mask[:, 6:] = False
    flat = make_dictionary(maker, x, 8, **QUICK[maker])
    found = make_dictionary(maker, padded, 8, mask=mask, **QUICK[maker])
    torch.testing.assert_close(found.directions, flat.directions)
    without = make_dictionary(maker, padded, 8, **QUICK[maker])  # the padding is seen where it is not declared
    assert not torch.allclose(without.directions, flat.directions, atol=1e-3)


def test_rows_of_positions_are_what_the_array_holds() -> None:
    x = torch.randn(7, 5, 3)
    rows = PositionRows(x)
    assert rows.shape == (35, 3)
    torch.testing.assert_close(rows[4:17], x.reshape(-1, 3)[4:17])
    torch.testing.assert_close(rows[30:99], x.reshape(-1, 3)[30:])
    torch.testing.assert_close(rows[np.array([34, 0, 12, 0])], x.reshape(-1, 3)[[34, 0, 12, 0]])
    assert rows[5:5].shape == (0, 3)
    mask = torch.rand(7, 5) < 0.5
    kept = PositionRows(x, mask)
    torch.testing.assert_close(kept[: len(kept)], x[mask])
    torch.testing.assert_close(kept[torch.tensor([1, 0])], x[mask][[1, 0]])
    with pytest.raises(InputError, match="no position"):
        PositionRows(x, torch.zeros(7, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="position"):
        PositionRows(x[0])


def test_bad_calls_are_one_sentence() -> None:
    x, _ = _planted(50)
    with pytest.raises(InputError, match="expected one of pca"):
        make_dictionary("magic", x, 4)
    with pytest.raises(InputError, match="option 'stepz'"):
        make_dictionary("topk", x, 4, stepz=3)
    with pytest.raises(InputError, match="components"):
        make_dictionary("pca", x, 40)
    with pytest.raises(InputError, match="at least 2"):
        make_dictionary("pca", x[:1], 1)
    with pytest.raises(NonFiniteError):
        make_dictionary("pca", x * torch.nan, 4)


@pytest.mark.parametrize(
    ("maker", "option"),
    [("topk", {"k": "abc"}), ("topk", {"steps": 1.5}), ("relu", {"l1": None}), ("relu", {"rate": float("nan")}),
     ("snmf", {"sparsity": "x"}), ("snmf", {"max_iter": True}), ("nmf", {"tol": "x"}), ("nmf", {"init": "foo"}),
     ("nmf", {"batch_size": "x"}), ("topk", {"k": 2, "start": "foo"}), ("feast", {"eta": "x"}), ("relu", {"activation": "topk"})],
)  # fmt: skip
def test_options_of_another_kind_are_one_sentence(maker: str, option: dict[str, Any]) -> None:
    x, _ = _planted(50)
    with pytest.raises(InputError, match=list(option)[-1]) as refused:
        make_dictionary(maker, x, 4, **option)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", [0, -3, 2.5, "4", None, True])
@pytest.mark.parametrize("maker", ["pca", "snmf", "nmf", "topk"])
def test_a_number_of_features_that_makes_no_sense_is_refused(maker: str, wrong: Any) -> None:
    with pytest.raises(InputError, match="whole number of at least 1"):
        make_dictionary(maker, _planted(50)[0], wrong)


def test_whole_numbers_may_be_written_as_floats() -> None:
    x, _ = _planted(100)
    made = make_dictionary("topk", x, np.int64(4), k=2.0, steps=np.float64(5))  # pyright: ignore[reportArgumentType]
    assert (len(made), made.k) == (4, 2)
