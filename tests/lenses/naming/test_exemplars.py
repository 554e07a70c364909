"""Exemplars against a full sort and numpy's quantiles; region features against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

from netloupe.core.errors import InputError, SiteError
from netloupe.core.finding import Finding
from netloupe.lenses.naming.exemplars import Exemplars, threshold_maps
from netloupe.lenses.naming.region_features import mask_pooling, region_features


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def images(n: int = 70, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, 16, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_top_images_thresholds_and_maps(seed: int):
    model, data = network(seed), images(seed=seed + 5)
    found = Exemplars.collect(model, "3", data, k=9, quantile=0.9, batch_size=16)
    with torch.no_grad():
        maps = model[:4](data).numpy()  # (image, unit, 4, 3)
    peaks = maps.max((2, 3)).T
    order = np.argsort(-peaks, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(peaks, order, 1), rtol=1e-6)
    for unit in range(8):
        np.testing.assert_allclose(found.maps[unit], maps[order[unit], unit], atol=1e-6)
        values = np.sort(maps[:, unit].ravel())
        exact = values[int(np.ceil(0.9 * len(values))) - 1]
        assert abs(found.thresholds[unit] - exact) <= 2**-8 * abs(exact)
        assert abs(np.searchsorted(values, found.thresholds[unit]) / len(values) - 0.9) < 0.01
    assert not found.dead.any()
    assert found.size == (16, 12)
    axes = Figure().subplots()
    found.plot(axes)
    assert len(axes.lines) == 8 + 1
    larger = (
        interpolate(torch.from_numpy(found.maps), size=(16, 12), mode="bilinear", align_corners=False).double().numpy()
    )
    np.testing.assert_array_equal(found.masks, larger > found.thresholds[:, None, None, None])
    np.testing.assert_array_equal(found.mask(3), found.masks[3])
    np.testing.assert_array_equal(found.masked(data, 2), data.numpy()[order[2]] * found.mask(2)[:, None])


def test_mean_ranking_loaders_labels_and_batches():
    model, data = network(), images()
    loader = DataLoader(TensorDataset(data, torch.zeros(len(data), dtype=torch.int64)), batch_size=13)
    for reduce in ("max", "mean"):
        ways = [
            Exemplars.collect(model, "1", given, k=4, reduce=reduce, batch_size=size)
            for given, size in (
                (data, 7),
                (data.numpy(), 64),
                ((data, torch.zeros(len(data), dtype=torch.int64)), 32),
                (loader, 1),
            )
        ]
        for other in ways[1:]:
            np.testing.assert_array_equal(ways[0].indices, other.indices)
            np.testing.assert_allclose(ways[0].maps, other.maps, atol=1e-6)
            np.testing.assert_array_equal(ways[0].thresholds, other.thresholds)
    with torch.no_grad():
        means = model[:2](data).mean((2, 3)).T
    np.testing.assert_array_equal(ways[0].indices[:, 0], means.argmax(1))
    with pytest.raises(InputError, match="read only once"):
        Exemplars.collect(model, "1", (batch for batch in [data]), k=2)


def test_units_without_positions_and_dead_units():
    model, data = network(), images()
    flat = Exemplars.collect(model, "6", data, k=5)
    assert flat.masks.all()
    assert flat.masks.shape == (5, 5, 16, 12)
    assert not flat.dead.any()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, -1  # never above zero
        model[0].weight[4], model[0].bias[4] = 0, 0.3  # constant
    dead = Exemplars.collect(model, "1", data, k=5)
    assert dead.dead.tolist() == [False, False, True, False, True, False]
    assert not dead.mask(2).any()
    summary = dead.summary()
    assert summary["dead"] == pytest.approx(2 / 6)
    assert set(summary) == set(Exemplars.meanings)
    assert next(iter(summary)) == "area"
    assert summary["area"] == pytest.approx(dead.masks[~dead.dead].mean())


class Tokens(nn.Module):
    """One special token, then a grid of 4 x 3 patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.mlp = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5)

    def forward(self, x):
        grid = self.patch(x).flatten(2).mT
        return self.mlp(torch.cat([grid.mean(1, keepdim=True) + 100, grid], 1)).mean(1)


def test_tokens_as_a_grid():
    model, data = Tokens(), images()
    found = Exemplars.collect(model, "mlp", data, k=3, grid=(4, 3), n_special=1)
    with torch.no_grad():
        maps = model.mlp(model.patch(data).permute(0, 2, 3, 1)).permute(3, 0, 1, 2).numpy()
    np.testing.assert_array_equal(found.indices[:, 0], maps.max((2, 3)).argmax(1))
    np.testing.assert_allclose(found.maps[1, 0], maps[1, found.indices[1, 0]], atol=1e-5)
    with pytest.raises(InputError, match="12 positions after 1"):
        Exemplars.collect(model, "mlp", data, k=3, n_special=1)
    with pytest.raises(InputError, match="13 positions"):
        Exemplars.collect(model, "mlp", data, k=3)


def test_masks_of_the_published_code():
    """Numbers of places above .3 that the published up-sampling gives; ours keeps the border's value instead of fading to zero."""
    maps = torch.sin(torch.arange(2 * 5 * 7).double() * 0.9).float().reshape(2, 1, 5, 7).numpy()
    official = threshold_maps(maps, np.array([0.3, 0.3]), (20, 21), official=True)
    assert official.sum((1, 2, 3)).tolist() == [163, 171]
    ours = threshold_maps(maps, np.array([0.3, 0.3]), (20, 21))
    assert (official != ours).sum() == 8
    assert (ours & ~official).sum() == 8


@pytest.mark.parametrize("seed", range(3))
def test_region_features(seed: int):
    rng = np.random.default_rng(seed)
    backbone, data = network(seed), images(9)
    rows, masks = rng.integers(0, 9, 11), torch.from_numpy((rng.random((11, 16, 12)) < 0.3).astype(np.float32))
    masks[4] = 0
    masks[5] = 1
    found = region_features(backbone, data, ["1", "3"], rows, masks, batch_size=4)
    assert found.shape == (11, 14)
    with torch.no_grad():
        levels = [backbone[:2](data), backbone[:4](data)]
    for at, row in enumerate(rows):
        parts = []
        for level in levels:
            weight = interpolate(masks[at][None, None], size=level.shape[-2:], mode="bilinear", align_corners=False)[
                0, 0
            ]
            weight = weight / weight.sum() if weight.sum() > 0 else weight
            parts.append((level[row] * weight).sum((-1, -2)))
        torch.testing.assert_close(found[at], torch.cat(parts), atol=1e-5, rtol=1e-4)
    assert not found[4].any()
    torch.testing.assert_close(found[5, :6], levels[0][rows[5]].mean((-1, -2)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mask_pooling(levels[1][rows], masks), found[:, 6:], atol=1e-5, rtol=1e-4)
    scaled = region_features(backbone, data, ["1"], rows, masks, mean=[0.1, 0.2, 0.3], std=[2.0, 1.0, 0.5])
    other = (data - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([2.0, 1.0, 0.5])[:, None, None]
    torch.testing.assert_close(scaled, region_features(backbone, other, ["1"], rows, masks))


def test_region_features_of_exemplars():
    model, backbone, data = network(), network(4), images()
    found = Exemplars.collect(model, "1", data, k=4, quantile=0.9)
    features = found.region_features(backbone, data, ["1", "3"])
    plain = region_features(
        backbone, data, ["1", "3"], found.indices.reshape(-1), torch.from_numpy(found.masks.reshape(-1, 16, 12)).float()
    )
    torch.testing.assert_close(features.reshape(24, -1), plain)
    torch.testing.assert_close(found.region_features(backbone, list(data), ["1", "3"], units=[2, 5]), features[[2, 5]])
    listed = found.region_features(backbone, TensorDataset(data), ["1", "3"], units=[2])
    torch.testing.assert_close(listed, features[[2]])


def test_bad_input(tmp_path):
    model, data = network(), images(10)
    with pytest.raises(InputError, match="k is 11, but there are 10 images"):
        Exemplars.collect(model, "1", data, k=11)
    for broken in ({"k": 0}, {"quantile": 1.0}, {"reduce": "sum"}, {"n_special": -1}):
        with pytest.raises(InputError, match="expected k of at least 1"):
            Exemplars.collect(model, "1", data, **{"k": 3, **broken})
    with pytest.raises(SiteError):
        Exemplars.collect(model, "nothing", data, k=3)
    with pytest.raises(InputError, match="names 2 sites"):
        Exemplars.collect(model, "[13]", data, k=3)
    with pytest.raises(InputError, match=r"NaN|finite"):
        Exemplars.collect(model, "1", data * torch.nan, k=3)
    with pytest.raises(InputError, match="say the masks' size"):
        Exemplars.collect(nn.Sequential(nn.Linear(3, 4)), "0", torch.randn(9, 4, 3), k=3)
    one = Exemplars.collect(model, "1", data[:1], k=1)
    assert one.indices.tolist() == [[0]] * 6
    path = one.save(tmp_path / "exemplars")
    again = Finding.load(path)
    assert again == one
    for sites, word in ((["6"], "no height and width"),):
        with pytest.raises(InputError, match=word):
            region_features(model, data, sites, [0], torch.ones(1, 16, 12))
    with pytest.raises(InputError, match="must name"):
        region_features(model, data, ["1"], [10], torch.ones(1, 16, 12))
    with pytest.raises(InputError, match="2 masks for 1"):
        region_features(model, data, ["1"], [0], torch.ones(2, 16, 12))
