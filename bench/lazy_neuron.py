"""Top-k layers, the product that skips zeros, and the sparsity lens, each beside its peers.

    python bench/lazy_neuron.py [--rows 256 512 1024 2048] [--d-ff 3072] [--d-model 768] [--k 16 128] [--repeats 5] [--threads 1]

Peers of the layer: ``torch.topk`` with a scatter, and a threshold at the k-th value. Peer of the gather-based product:
the dense one. Peers of the lens: counting with torch's operations; the limit is one read of the activations. Every
answer is compared before it is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from support.timing import alternate, exponent, print_table, ratio
from torch import Tensor

from netloupe.lenses.activity.sparsity import sparsity
from netloupe.nn import TopK

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


def by_scatter(x: Tensor, k: int) -> Tensor:
    """The k largest written into zeros; which of equal values survive is the sort's choice."""
    values, places = x.topk(k, -1)
    return torch.zeros_like(x).scatter(-1, places, values)


def by_threshold(x: Tensor, k: int) -> Tensor:
    """Everything that reaches the k-th largest value; ties at the border all survive."""
    return torch.where(x >= x.kthvalue(x.shape[-1] - k + 1, -1, keepdim=True).values, x, 0.0)


def layers(k: int) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "TopK": TopK(k),
        "TopK, blocks": TopK(k, exact=False),
        "topk and scatter": lambda x: by_scatter(x, k),
        "k-th value": lambda x: by_threshold(x, k),
    }


def show_ties(d_ff: int, k: int) -> None:
    """How many positive units survive where many are equal: bfloat16 values of few bits."""
    x = torch.randn(64, d_ff).relu().to(torch.bfloat16).float().mul(4).round().div(4)
    first = TopK(k)(x)
    print(f"ties: survivors of {int((x > 0).sum(1).float().mean())} active units on a coarse grid, k = {k}")
    for name, layer in layers(k).items():
        kept = layer(x)
        same = bool(torch.equal(kept, first))
        print(f"  {name:<17} {float((kept > 0).sum(1).float().mean()):7.1f}   same places as TopK: {same}")


def time_layers(rows: list[int], d_ff: int, k: int, repeats: int) -> None:
    """The layers on untied rows, and how their time grows with the number of rows."""
    found: dict[str, list[float]] = {}
    for n_rows in rows:
        x = (torch.randn(n_rows, d_ff).argsort(-1) - d_ff / 2).relu()  # half positive, and no two of them equal
        wanted = by_scatter(x, k)
        for name, layer in layers(k).items():
            shared = float(((layer(x) > 0) & (wanted > 0)).sum() / (wanted > 0).sum())
            if name == "TopK, blocks":
                print(f"  blocks find {shared:.3f} of the k largest (promised on average: 0.95)")
            elif not torch.equal(layer(x), wanted):
                raise SystemExit(f"{name} differs from topk and scatter")
        seconds = alternate({name: partial(layer, x) for name, layer in layers(k).items()}, repeats)
        print(f"layer on {n_rows} rows of {d_ff} units, k = {k}")
        print_table(seconds, "topk and scatter")
        for name, values in seconds.items():
            found.setdefault(name, []).append(float(values.min()))
    grow(rows, found)


def time_product(n_rows: int, d_model: int, d_ff: int, repeats: int) -> None:
    """The second product over the survivors alone, beside the dense one; where they cross."""
    weight = torch.randn(d_ff, d_model)
    transposed = weight.T.contiguous()  # a linear layer's own layout, (d_model, d_ff)
    ratios = []
    for share in SHARES:
        values, places = torch.randn(n_rows, d_ff).relu().topk(max(1, round(share * d_ff)), -1)
        sparse = torch.zeros(n_rows, d_ff).scatter(-1, places, values)
        sides: dict[str, Callable[[], Tensor]] = {
            "dense": lambda sparse=sparse: F.linear(sparse, transposed),
            "gather": lambda values=values, places=places: F.embedding_bag(
                places, weight, per_sample_weights=values, mode="sum"
            ),
        }
        torch.testing.assert_close(sides["dense"](), sides["gather"](), rtol=1e-3, atol=1e-3)
        seconds = alternate(sides, repeats)
        ratios.append(ratio(seconds["gather"], seconds["dense"]))
        print(f"  k = {places.shape[1]:4d} ({share:.1%} of {d_ff}): gather takes {ratios[-1]:6.2f} x dense")
    if ratios[0] < 1 < ratios[-1]:
        crossover = float(np.exp(np.interp(0.0, np.log(ratios), np.log(SHARES))))
        print(f"second product, {n_rows} rows: gathering wins below {crossover:.1%} of the units")
    else:
        print(f"second product, {n_rows} rows: gathering {'always' if ratios[-1] < 1 else 'never'} wins here")


def by_torch(a: Tensor) -> dict[str, np.ndarray]:
    """The lens's numbers with torch's operations."""
    active = a > 0
    per_row = torch.bincount(active.sum(1), minlength=a.shape[1] + 1)
    return {
        "frequency": active.sum(0).double().div(len(a)).numpy(), "active_per_row": per_row.numpy(),
        "zero_fraction": np.array(float((a == 0).double().mean())),
    }  # fmt: skip


def time_lens(rows: list[int], d_ff: int, repeats: int) -> None:
    """The sparsity lens beside plain counting and beside one read of the activations."""
    found: dict[str, list[float]] = {}
    for n_rows in (8 * n for n in rows):
        a = torch.randn(n_rows, d_ff).relu()
        answer, wanted = sparsity(a), by_torch(a)
        for name, values in wanted.items():
            np.testing.assert_allclose(getattr(answer, name), values, rtol=1e-12)
        sides = {"sparsity": partial(sparsity, a), "torch": partial(by_torch, a), "one read": a.sum}
        seconds = alternate(sides, repeats)
        print(f"lens on {n_rows} rows of {d_ff} units")
        print_table(seconds, "torch")
        for name, values in seconds.items():
            found.setdefault(name, []).append(float(values.min()))
    grow(rows, found)


def grow(rows: list[int], seconds: dict[str, list[float]]) -> None:
    """The fitted exponent in the number of rows, from each side's fastest round."""
    if len(rows) > 1:
        for name, values in seconds.items():
            print(f"  {name:<17} time grows as n^{exponent(np.array(rows), np.array(values)):.2f}")


def main() -> None:
    """Run all three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--d-ff", type=int, default=3072)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--k", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    show_ties(options.d_ff, options.k[-1])
    for k in options.k:
        time_layers(options.rows, options.d_ff, k, options.repeats)
    for n_rows in (1, 64, 512):
        time_product(n_rows, options.d_model, options.d_ff, options.repeats)
    time_lens(options.rows, options.d_ff, options.repeats)


if __name__ == "__main__":
    main()
