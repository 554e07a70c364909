"""The massive-activation probe: definitions, places, merging, the base repository's numbers, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netloupe.core.capture import capture, observe
from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.finding import Finding
from netloupe.core.intervene import intervene
from netloupe.core.statistics import restore
from netloupe.lenses.activity.massive import (
    MassiveTracker,
    gaussian_reference,
    is_massive,
    massive,
    massive_of,
    massive_stats,
    pin,
)
from netloupe.lenses.activity.massive_tracker import extremes
from netloupe.models.gpt import ByteGPT


def states(seed: int = 0, shape: tuple[int, ...] = (5, 7, 12)) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_t(3, shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 7, 64, 255, 256, 257, 300, 1000, 4097, 20_000])
def test_selection_is_exact_whatever_the_values(dtype: type, n: int):
    draw = np.random.default_rng(n)
    plain = draw.standard_normal((3, n))
    for values in (
        plain, np.round(plain), np.where(draw.random((3, n)) < 0.7, 0, plain), np.sort(plain, axis=1), np.zeros((3, n)),
        np.sort(plain, axis=1)[:, ::-1], plain * 10.0 ** draw.integers(-30, 30, (3, n)), np.where(draw.random((3, n)) < 0.5, 1, 2),
    ):  # fmt: skip
        given_ = np.ascontiguousarray(values.astype(dtype))
        k = min(3, n)
        top, places, median = extremes(given_, k)
        absolute = np.abs(given_)
        order = np.argsort(-absolute, axis=1, kind="stable")[:, :k]
        assert np.array_equal(places, order), "of equal values the first counts"
        assert np.array_equal(top, np.take_along_axis(absolute, order, 1).astype(float))
        assert np.allclose(median, np.median(absolute.astype(float), axis=1), rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", [(5, 7, 12), (4, 3, 5), (2, 40, 30)])
def test_stats_are_numpys(shape: tuple[int, ...]):
    h = states(1, shape)
    found = massive_stats(h)
    flat = h.abs().flatten(1).numpy()
    assert np.allclose(found["top"], np.sort(flat, 1)[:, ::-1][:, :3])
    assert np.allclose(found["median"], np.median(flat, 1))
    assert np.allclose(found["ratio"], flat.max(1) / np.median(flat, 1))
    for sample, places in enumerate(found["where"]):
        assert torch.equal(h[sample].abs()[places[:, 0], places[:, 1]], found["top"][sample])
    swapped = massive_stats(h.transpose(1, 2), dims=(-1, -2))
    assert torch.equal(swapped["where"], found["where"])
    assert massive_stats(h[0])["median"].shape == ()


# the base repository's layer-wise numbers (three largest, torch's lower median) of states(seed, shape) in float32
OFFICIAL = {
    (0, (1, 7, 9)): (4.562441825866699, 4.1683549880981445, 3.55749773979187, 0.9530417919158936),
    (1, (1, 16, 32)): (12.547333717346191, 11.414701461791992, 11.261722564697266, 0.7989004254341125),
}


@pytest.mark.parametrize("case", OFFICIAL)
def test_probe_agrees_with_the_base_repository(case: tuple[int, tuple[int, ...]]):
    h, (*top, lower) = states(*case).float(), OFFICIAL[case]
    found, tracked = massive_stats(h[0]), massive(h)
    assert found["top"].tolist() == pytest.approx(top, rel=1e-7)
    assert tracked.top.tolist() == pytest.approx(top, rel=1e-6)
    ordered = np.sort(h.abs().flatten().numpy())
    n = len(ordered)
    assert ordered[(n - 1) // 2] == pytest.approx(lower, rel=1e-7)
    ours = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2  # numpy's convention: the same for odd numbers of values
    assert float(found["median"]) == pytest.approx(float(ours), rel=1e-6)
    assert tracked.median == pytest.approx(float(ours), rel=1e-6)
    assert n % 2 == 0 or tracked.median == pytest.approx(lower, rel=1e-6)


def test_reference_is_what_normal_numbers_give():
    draw = np.random.default_rng(0)
    for n in (1, 2, 10, 1000):
        largest = np.abs(draw.standard_normal((4000, n))).max(1).mean() / 0.6744897501960817
        assert gaussian_reference(n) == pytest.approx(largest, rel=0.02)
    assert gaussian_reference(10_000) == pytest.approx(6.0, abs=0.05)
    asymptote = math.sqrt(2 * math.log(10**12)) / 0.6745
    assert gaussian_reference(10**12) == pytest.approx(asymptote, rel=0.05)
    found = massive(torch.tensor(draw.standard_normal((200, 10, 20))))
    assert found.summary()["ratio_to_gaussian"] == pytest.approx(1, abs=0.03)
    with pytest.raises(InputError):
        gaussian_reference(0)


def test_finding_is_a_ratio_of_means_with_its_error():
    h = states(2, (400, 6, 5))
    flat = h.abs().flatten(1).numpy()
    top, median = flat.max(1), np.median(flat, 1)
    found = massive(h)
    assert found.ratio == pytest.approx(top.mean() / median.mean())
    assert found.ratio != pytest.approx((top / median).mean(), rel=1e-3)
    draw = np.random.default_rng(0)
    boot = [top[rows].mean() / median[rows].mean() for rows in draw.integers(0, 400, (2000, 400))]
    assert found.error == pytest.approx(float(np.std(boot)), rel=0.1)
    assert next(iter(found.summary())) == "ratio"


def test_planted_scalars_are_located_and_counted():
    h = states(3, (20, 6, 8)).float().clamp(-3, 3)
    h[3, 0, 5], h[7, 0, 5], h[9, 2, 1] = -4000.0, 3000.0, 5000.0
    found = massive(h)
    assert found.values[:3].tolist() == [5000, -4000, 3000]
    assert list(zip(found.samples[:3], found.positions[:3], found.units[:3])) == [(9, 2, 1), (3, 0, 5), (7, 0, 5)]
    assert found.massive_units.tolist() == [5, 1]
    assert found.massive_counts.tolist() == [0, 1, 0, 0, 0, 2, 0, 0]
    assert found.n_massive_samples == 3
    assert "Units 5, 1 hold massive values" in found.paragraph()
    flags = is_massive(h)
    assert flags.nonzero().tolist() == [[3, 0, 5], [7, 0, 5], [9, 2, 1]]
    assert not is_massive(h.clamp(-99, 99)).any(), "below 100 nothing is massive"
    assert not is_massive(h * 0 + 1e4).any(), "nor what is not a thousand medians"
    clear = massive(states(3).clamp(-3, 3))
    assert clear.n_massive_samples == 0
    assert "None is massive" in clear.paragraph()


def test_histograms_count_samples():
    h = states(4, (50, 6, 8))
    places = h.abs().flatten(1).argmax(1)
    found = massive(h)
    assert np.array_equal(found.unit_counts, np.bincount(places % 8, minlength=8))
    assert np.array_equal(found.position_counts, np.bincount(places // 8, minlength=6)[: len(found.position_counts)])


@pytest.mark.parametrize("masked", [False, True])
def test_merging_gives_what_one_pass_gives(masked: bool):
    h = states(5, (30, 6, 8))
    mask = torch.rand(30, 6, generator=torch.Generator().manual_seed(0)) < 0.7 if masked else torch.ones(30, 6).bool()
    mask[:, 0] = True
    whole = MassiveTracker().update(h, mask=mask, samples=torch.arange(30))
    parts = [
        MassiveTracker().update(h[rows], mask=mask[rows], samples=torch.arange(30)[rows])
        for rows in (slice(20, 30), slice(0, 20))
    ]
    merged, one = parts[0].merge(parts[1]).result(), whole.result()
    for name in (
        "top",
        "largest_values",
        "largest_samples",
        "largest_positions",
        "largest_units",
        "unit_counts",
        "position_counts",
        "massive_counts",
    ):
        assert np.allclose(getattr(merged, name), getattr(one, name)), name
    assert (merged.median, merged.error, merged.reference) == pytest.approx((one.median, one.error, one.reference))
    assert restore(whole.state()) == whole


def test_padding_is_left_out():
    h = states(6, (10, 6, 8))
    padded = torch.cat([h, 1e6 + 0 * h], 1)
    mask = torch.tensor([[True] * 6 + [False] * 6] * 10)
    assert massive(padded, mask).summary() == pytest.approx(massive(h).summary())
    assert massive(padded, mask).values.tolist() == massive(h).values.tolist()
    ragged = mask.clone()
    ragged[0, 3:] = False
    sample = massive_stats(h[0, :3])
    both = MassiveTracker().update(padded[:1], mask=ragged[:1]).result()
    assert both.top == pytest.approx(sample["top"].numpy())
    assert both.median == pytest.approx(float(sample["median"]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3))
def test_ratio_ignores_scale_and_order(seed: int, factor: float):
    h = states(seed, (6, 4, 5))
    draw = torch.Generator().manual_seed(seed)
    expected = massive(h).ratio
    assert massive(factor * h).ratio == pytest.approx(expected)
    assert massive(
        h[:, torch.randperm(4, generator=draw)][..., torch.randperm(5, generator=draw)]
    ).ratio == pytest.approx(expected)
    assert massive(-h).ratio == pytest.approx(expected)


def test_rectified_and_dead_sites_have_no_ratio(tmp_path: Path):
    sparse = states(7).clamp_min(2)
    sparse[sparse == 2] = 0
    found = massive(sparse)
    assert found.ratio == math.inf
    assert "ratio" not in found.summary()
    assert "More than half" in found.paragraph()
    assert found.zero_share == pytest.approx(float((sparse == 0).double().mean()))
    half = massive(states(8).clamp_min(-0.3).clamp_min(0) + 0.0)
    assert half.zero_share == pytest.approx(float((states(8) <= 0).double().mean()))
    shifted = states(9)
    shifted[shifted.abs() < 0.3] = 0
    assert "exactly zero, as behind a ReLU" in massive(shifted).paragraph()
    assert "ReLU" not in massive(states(9)).paragraph()
    dead = massive(torch.zeros(3, 4, 5))
    assert dead.dead
    assert "dead" in dead.paragraph()
    assert float(massive_stats(sparse)["ratio"].max()) == math.inf
    for each in (found, dead):
        assert Finding.load(each.save(tmp_path / "f")) == each


def test_pinned_scalars_in_a_network():
    model = ByteGPT(16, 2, 2, 24, 8, random_state=0)
    tokens = torch.randint(256, (3, 8), generator=torch.Generator().manual_seed(0))

    def second(*edits) -> torch.Tensor:
        with torch.no_grad(), intervene(model, *edits):
            (captured,) = capture(model, tokens, ["blocks.0", "blocks.1"])
        return captured["blocks.1"][:, 0].norm(dim=-1)

    with intervene(model, *pin("blocks.0", {(0, 5): 900.0})):
        (captured,) = capture(model, tokens, ["blocks.0"])
    assert (captured["blocks.0"][:, 0, 5] == 900).all()
    assert massive_stats(captured["blocks.0"], 1)["where"].flatten(1).tolist() == [[0, 5]] * 3
    planted = second(*pin("blocks.0", [(0, 5, 900.0)]))
    assert (second(*pin("blocks.0", {(0, 5): 900.0}), *pin("blocks.0", {(0, 5): 0.0})) < 0.1 * planted).all()
    with pytest.raises(InputError, match="no scalars"):
        pin("blocks.0", {})


def test_it_runs_while_a_network_is_recorded():
    model = ByteGPT(16, 2, 2, 24, 8, random_state=0)
    tokens = torch.randint(256, (10, 8), generator=torch.Generator().manual_seed(0))
    seen = observe(model, tokens, {"massive": MassiveTracker}, ["blocks.0", "blocks.1"], batch_size=4)
    (captured,) = capture(model, tokens, ["blocks.1"])
    alone = massive(captured["blocks.1"])
    assert massive_of(seen.result("blocks.1", "massive")).summary() == pytest.approx(alone.summary(), rel=1e-6)


def test_bad_input_is_one_sentence():
    h = states()
    nan = h.clone()
    nan[1, 2, 3] = math.nan
    cases = [
        (lambda: massive_stats(h[0, 0]), InputError, "two axes"),
        (lambda: massive_stats(h, dims=(1, 1)), InputError, "two axes"),
        (lambda: massive_stats(h, k=0), InputError, "k is 0"),
        (lambda: massive_stats(h, k=85), InputError, "k is 85"),
        (lambda: massive_stats(h[:, :1, :1]), InputError, "has 1 values"),
        (lambda: massive_stats(nan), NonFiniteError, "NaN"),
        (lambda: massive(nan), NonFiniteError, "nan"),
        (lambda: massive(h[:, :1, :2]), InputError, "a sample has 2 values"),
        (lambda: massive(h[:0]), InputError, "at least one sample"),
        (lambda: massive(h, k=0), InputError, "k is 0"),
        (lambda: MassiveTracker(abs_min=-1.0), InputError, "abs_min -1"),
        (lambda: MassiveTracker().update(h[:1, :2], mask=torch.tensor([[True, False]])).update(h[:1, :, :3]), InputError, "units"),
        (lambda: MassiveTracker().result(), InputError, "no rows"),
    ]  # fmt: skip
    for call, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
