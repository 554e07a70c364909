"""Iterative feature merging beside the loop that computes all distances anew for every merge, as the authors' code does.

    python bench/iterative_feature_merging.py [--repeats 3]

Same network and merges, one thread, float64; a time is the median of runs in turn.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np
import torch
from support.timing import alternate, exponent, print_table, ratio
from threadpoolctl import threadpool_limits
from torch import nn

from netloupe.core.units import unit_groups
from netloupe.lenses.similarity.feature_merging import MergeResult, merge_features

State = dict[str, torch.Tensor]


def network(width: int, depth: int = 3, seed: int = 0) -> nn.Sequential:
    """3 x 3 convolutions of one width, every second unit near to its neighbour."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    for i, (a, b) in enumerate(pairwise([3] + [width] * depth)):
        net.add_module(f"c{i}", nn.Conv2d(a, b, 3, padding=1))
        net.add_module(f"r{i}", nn.ReLU())
    for name, part in (("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("fc", nn.Linear(width, 10))):
        net.add_module(name, part)
    with torch.no_grad():
        for i in range(depth):
            weight = net.get_submodule(f"c{i}").weight
            weight[1::2] = weight[::2] + 0.2 * weight[1::2]  # type: ignore[index, operator]
    return net.double().eval()


def anew(net: nn.Module, beta: float, max_ratio: float) -> tuple[State, list[tuple[int, int, int]]]:
    """The same merges, with every distance of a layer computed again each time."""
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    layers = [name for name, part in net.named_children() if isinstance(part, (nn.Conv2d, nn.Linear))]
    sizes = [torch.ones(len(state[f"{name}.weight"])) for name in layers[:-1]]
    widths, merges, sweep = [len(each) for each in sizes], [], 0
    while True:
        some = False
        for layer, (name, reader) in enumerate(pairwise(layers)):
            w, v = state[f"{name}.weight"], state[f"{reader}.weight"]
            n = len(w)
            if n < 2 or sweep >= max_ratio * widths[layer]:
                continue
            one, two = w.reshape(n, -1), v.movedim(1, 0).reshape(n, -1)
            inner = one @ one.T + two @ two.T
            table = inner.diag()[:, None] + inner.diag() - 2 * inner
            largest = table.max()
            table.fill_diagonal_(float("inf"))
            if table.min() > beta * largest:
                continue
            i, j = sorted(divmod(int(table.argmin()), n))
            others = [k for k in range(n) if k not in (i, j)]
            c = sizes[layer]
            state[f"{name}.weight"] = torch.cat([w[others], (w[i] + w[j])[None]])
            bias = state[f"{name}.bias"]
            state[f"{name}.bias"] = torch.cat([bias[others], (bias[i] + bias[j])[None]])
            merged = (c[i] * v[:, i] + c[j] * v[:, j]) / (c[i] + c[j])
            state[f"{reader}.weight"] = torch.cat([v[:, others], merged[:, None]], 1)
            sizes[layer] = torch.cat([c[others], (c[i] + c[j])[None]])
            merges.append((layer, i, j))
            some = True
        sweep += 1
        if not some:
            return state, merges


def difference(found: MergeResult, state: State, merges: list[tuple[int, int, int]]) -> float:
    """Largest difference of a weight; infinite where other units were merged."""
    if [(int(m.group.removeprefix("c")), m.first, m.second) for m in found.merges] != merges:
        return float("inf")
    return max(float(np.abs(found.tensors[name] - state[name].numpy()).max()) for name in found.tensors)


def main() -> None:
    """Print times, ratios, differences and the fitted growth with the width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    options = parser.parse_args()
    torch.set_num_threads(1)
    example, times = torch.rand(1, 3, 8, 8).double(), {"kept": [], "anew": []}
    with threadpool_limits(1):
        for width in options.widths:
            net = network(width)
            sides = {
                "kept": lambda net=net: merge_features(net, example, 0.5, 0.5, limit="sweeps"),
                "anew": lambda net=net: anew(net, 0.5, 0.5),
            }
            gap = difference(merge_features(net, example, 0.5, 0.5, limit="sweeps"), *anew(net, 0.5, 0.5))
            seconds = alternate(sides, options.repeats)
            print(f"three convolutions of {width} units, {len(anew(net, 0.5, 0.5)[1])} merges; difference {gap:.1e}")
            print_table(seconds, "anew")
            if gap > 1e-9:
                raise SystemExit(f"the two differ by {gap:.1e}")
            for name, each in seconds.items():
                times[name].append(float(np.median(each)))
            print(f"  kept / anew {ratio(seconds['kept'], seconds['anew']):.3f}")
        for name, each in times.items():
            print(f"{name} grows as width^{exponent(np.array(options.widths), np.array(each)):.2f}")
        tracing = alternate({"tracing": lambda: unit_groups(network(96), example)}, options.repeats)
        print(f"tracing three convolutions: {1e3 * np.median(tracing['tracing']):.0f} ms")


if __name__ == "__main__":
    main()
