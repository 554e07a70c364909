"""Collecting exemplars beside the plain way, and beam search beside one sequence at a time.

    python bench/milan.py [--images 2000 4000 8000] [--units 256]

The first peer keeps all activations of a site, sorts every unit's images fully, takes ``numpy.quantile`` of every unit over all positions
and runs the backbone once for every exemplar; ours streams, and runs it once for every distinct image. Same images, thresholds within
the sketch's 0.4 %, same features for the same masks. The second is the search as it is usually written: each unit's sequences one by one,
the same answers.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
from support.timing import alternate, print_growth, print_table
from torch import nn
from torch.nn.functional import interpolate

from netloupe.lenses.naming.captions import Vocabulary
from netloupe.lenses.naming.exemplars import Exemplars
from netloupe.lenses.naming.milan_networks import Captioner, beam_search
from netloupe.lenses.naming.region_features import region_features

K = 15


def network(n_units: int) -> nn.Sequential:
    """A small stack whose last map is 8 x 8."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, n_units, 3, 2, 1), nn.ReLU())


def plain(model: nn.Module, data: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, thresholds and maps by full sorts over everything."""
    with torch.no_grad():
        maps = torch.cat([model(data[i : i + 64]) for i in range(0, len(data), 64)]).numpy()
    order = np.argsort(-maps.max((2, 3)), axis=0, kind="stable")[:K].T
    thresholds = np.quantile(maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1), 0.99, axis=1, method="inverted_cdf")
    return order, thresholds, maps[order, np.arange(maps.shape[1])[:, None]]


def collect(model: nn.Module, data: torch.Tensor) -> Exemplars:
    return Exemplars.collect(model, "3", data, k=K)


def exemplars(n_units: int, repeats: int, n: int, times: dict[str, list[float]]) -> None:
    model, data = network(n_units).eval(), torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours, (order, thresholds, maps) = collect(model, data), plain(model, data)
    gap = float(np.max(np.abs(ours.thresholds - thresholds) / np.abs(thresholds).clip(min=1e-12)))
    if not np.array_equal(ours.indices, order) or gap > 2**-8 or not np.allclose(ours.maps, maps, atol=1e-6):
        raise SystemExit(f"the answers differ: thresholds by {gap:.1e}")
    print(f"{n} images, {n_units} units; same images and maps, thresholds within {gap:.1e}")
    seconds = alternate(
        {"full sorts": partial(plain, model, data), "Exemplars": partial(collect, model, data)}, repeats
    )
    print_table(seconds, "full sorts")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def features(n_units: int, repeats: int, n: int, times: dict[str, list[float]]) -> None:
    """Region features of all exemplars of ``n`` images."""
    model, data = network(n_units).eval(), torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = collect(model, data)
    rows, masks = found.indices.reshape(-1), torch.from_numpy(found.masks.reshape(-1, 32, 32)).float()

    def one_each() -> torch.Tensor:
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), 64):
                x, part = data[rows[start : start + 64]], masks[start : start + 64]
                levels = [model[:2](x), model(x)]
                joined = []
                for level in levels:
                    weight = interpolate(part[:, None], size=level.shape[-2:], mode="bilinear", align_corners=False)
                    total = weight.sum((-1, -2), keepdim=True)
                    joined.append(
                        (level * torch.where(total > 0, weight / total.clamp_min(1e-12), weight)).sum((-1, -2))
                    )
                parts.append(torch.cat(joined, -1))
        return torch.cat(parts)

    ours = partial(region_features, model, data, ["1", "3"], rows, masks)
    if not torch.allclose(ours(), one_each(), atol=1e-4):
        raise SystemExit("the region features differ")
    seconds = alternate({"each exemplar": one_each, "region_features": ours}, repeats)
    print(f"{n} images, {len(rows)} regions of {len(np.unique(rows))} distinct ones; same features")
    print_table(seconds, "each exemplar")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def one_by_one(
    network: Captioner, regions: torch.Tensor, vocabulary: Vocabulary, beam: int, length: int
) -> list[tuple[float, tuple[int, ...]]]:
    """The best sequence of every unit, its beam kept as a list."""
    found = []
    for unit in regions[:, None]:
        keys = network.key(unit)
        live: list[tuple[float, tuple[int, ...], Any]] = [(0.0, (), network.begin(unit))]
        for _ in range(length):
            grown = []
            for score, tokens, state in live:
                if tokens and tokens[-1] == vocabulary.stop:
                    grown.append((score, tokens, state))
                    continue
                last = torch.tensor([tokens[-1] if tokens else vocabulary.start])
                logp, _, after = network.step(last, state, unit, keys)
                values, chosen = logp[0].topk(min(beam, logp.shape[1]))
                grown += [
                    (score + v, (*tokens, t), after) for v, t in zip(values.tolist(), chosen.tolist(), strict=True)
                ]
            live = sorted(grown, key=lambda one: -one[0])[:beam]
        found.append((live[0][0], live[0][1]))
    return found


def searches(beam: int, repeats: int, n: int, times: dict[str, list[float]]) -> None:
    """Descriptions of ``n`` units."""
    vocabulary = Vocabulary(tuple(f"w{i}" for i in range(60)))
    torch.manual_seed(0)
    model = Captioner(len(vocabulary), 112, 64, 32).eval()
    regions = 3 * torch.randn(n, K, 112)
    keys = model.key(regions)

    def together() -> Any:
        def step(tokens: torch.Tensor, state: Any) -> Any:
            logp, _, after = model.step(tokens, state, regions, keys)
            return logp, after

        return beam_search(step, model.begin(regions), vocabulary.start, vocabulary.stop, 6, beam)

    apart = partial(one_by_one, model, regions, vocabulary, beam, 6)
    with torch.no_grad():
        if not np.allclose(together().scores[:, 0], [score for score, _ in apart()], atol=1e-3):
            raise SystemExit("the searches differ")
        seconds = alternate({"one by one": apart, "beam_search": together}, repeats)
    print(f"{n} units, beam {beam}; same best sequences")
    print_table(seconds, "one by one")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 4000, 8000])
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--described", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--beam", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print_growth(
        [
            (partial(exemplars, options.units, options.repeats), options.images),
            (partial(features, options.units, options.repeats), options.images[:2]),
            (partial(searches, options.beam, options.repeats), options.described),
        ]
    )


if __name__ == "__main__":
    main()
