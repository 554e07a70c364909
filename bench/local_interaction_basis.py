"""The local interaction basis beside a direct form of the published procedure.

    python bench/local_interaction_basis.py --samples 500 1000 2000 4000

The peer pulls gradients back one feature at a time and sums with einsum, as the published code does (MIT, needs packages
that are not installed here), and makes edges and edge ablations the same way: one feature and one mask after another. Metric,
edges and ablated activations must agree before anything is timed. Also times a plain SVD of the activations, which is what
principal components cost.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from support.timing import alternate, exponent, print_table, ratio
from torch import Tensor

from netloupe.lenses.dictionary.lib import InteractionBasis, interaction_basis
from netloupe.lenses.dictionary.lib_edges import ablate_edges, edge_mask, interaction_edges
from netloupe.lenses.dictionary.lib_metric import jacobian_metric

BATCH = 512


def direct_metric(f, x: Tensor, basis: InteractionBasis) -> Tensor:
    """One feature after another; sums over samples and features with einsum."""
    C = basis.C[1][:-1]
    metric = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
    for rows in x.split(BATCH):
        z = rows.clone().requires_grad_()
        features = f(z) @ C
        grads = [torch.autograd.grad(features[:, i].sum(), z, retain_graph=True)[0] for i in range(C.shape[1])]
        J = torch.stack(grads, 1)
        metric += torch.einsum("bij,bik->jk", J, J)
    return metric / len(x)


def direct_edges(f, x: Tensor, basis: InteractionBasis) -> Tensor:
    back, readout = basis.back(0), basis.readout(1)
    edges = torch.zeros(readout.matrix.shape[1], len(back), dtype=x.dtype)
    for rows in x.split(BATCH):
        z = basis.encode(0, rows).requires_grad_()
        features = readout(f(z @ back))
        for i in range(features.shape[1]):
            (grad,) = torch.autograd.grad(features[:, i].sum(), z, retain_graph=True)
            edges[i] += (grad * z.detach()).pow(2).sum(0)
    return edges / len(x)


def direct_ablation(f, x: Tensor, basis: InteractionBasis, mask: Tensor) -> Tensor:
    z, made = basis.encode(0, x), torch.zeros(len(x), len(mask), dtype=x.dtype)
    masks, group = mask.unique(dim=0, return_inverse=True)
    for i, kept in enumerate(masks):
        output = basis.encode(1, f(torch.where(kept, z, 0.0) @ basis.back(0)))
        made[:, group == i] = output[:, group == i]
    return basis.decode(1, made)


def whole_basis(f, x: Tensor) -> InteractionBasis:
    return interaction_basis([x, f(x)], [f])


def measure(n: int, d: int, repeats: int, times: dict[str, list[float]]) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    W, V = (torch.randn(d, d, generator=draw, dtype=torch.float64) / d**0.5 for _ in range(2))

    def f(z: Tensor) -> Tensor:
        return torch.relu(torch.relu(z @ W) @ V)

    basis = whole_basis(f, x)
    readout = basis.readout(1)
    own = partial(jacobian_metric, f, x, readout, points=[(1.0, 1.0)])
    edges = interaction_edges(basis, 0, x, f)
    mask = edge_mask(basis, 0, edges, edges.numel() // 3)
    for name, one, two in (
        ("metrics", own(), direct_metric(f, x, basis)),
        ("edges", edges, direct_edges(f, x, basis)),
        ("ablated activations", ablate_edges(basis, 0, x, f, mask), direct_ablation(f, x, basis, mask)),
    ):
        if not torch.allclose(one, two, rtol=1e-8, atol=1e-10):
            raise SystemExit(f"the {name} differ")
    print(f"{n} samples of {d} units: same metric, edges and ablated activations")
    pairs = {
        "metric": (partial(direct_metric, f, x, basis), own),
        "edges": (partial(direct_edges, f, x, basis), partial(interaction_edges, basis, 0, x, f)),
        "edge ablation": (partial(direct_ablation, f, x, basis, mask), partial(ablate_edges, basis, 0, x, f, mask)),
    }
    for name, (peer, mine) in pairs.items():
        seconds = alternate({f"{name}, direct": peer, name: mine}, repeats)
        print_table(seconds, f"{name}, direct")
        times.setdefault(name, []).append(float(np.median(seconds[name])))
    sides = {
        "svd of activations": partial(torch.linalg.svd, x, full_matrices=False),
        "whole basis": partial(whole_basis, f, x),
    }
    seconds = alternate(sides, repeats)
    print_table(seconds, "svd of activations")
    print(f"  the basis costs {ratio(seconds['whole basis'], seconds['svd of activations']):.1f} times an SVD")
    times.setdefault("whole basis", []).append(float(np.median(seconds["whole basis"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=96)
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    for n in options.samples:
        measure(n, options.units, options.repeats, times)
    if len(options.samples) > 1:
        for name, values in times.items():
            print(f"{name:<16} grows as n^{exponent(np.array(options.samples), np.array(values)):.2f}")


if __name__ == "__main__":
    main()
