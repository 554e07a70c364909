"""The threshold search beside the one of the authors' algorithm, and the whole curve of errors beside single probes.

    python bench/sparsing_law.py [--tokens 1024 2048 4096 8192] [--d-ff 1024] [--d-model 384] [--repeats 5] [--threads 1]

The peer, written here from the paper's algorithm: 65,536 candidates up to the 99 % quantile of the neurons' output lengths, then a
bisection over them, each step with a copy of the activations and one product with the projection. Both thresholds' errors
are measured by the definition and must meet the target; ours must not be farther from it. The limit is one product for
each error that is looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from support.timing import alternate, exponent, print_table, ratio
from torch import Tensor

from netloupe.lenses.activity.cett import CettCurve, cett_at, cett_threshold, neuron_output_norms

TARGETS = (0.05, 0.2, 0.4)


def layer(n_tokens: int, d_model: int, d_ff: int) -> tuple[Tensor, Tensor]:
    """What a random gated ReLU layer's projection reads, and the projection."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(n_tokens, d_ff, generator=draw).relu() * torch.randn(n_tokens, d_ff, generator=draw)
    return a, torch.randn(d_model, d_ff, generator=draw)


def by_candidates(a: Tensor, w_out: Tensor, target: float) -> float:
    """The last of evenly spaced candidates whose error does not exceed the target."""
    norms = neuron_output_norms(a, w_out)
    top = norms.view(-1)[:: max(norms.numel() // 65536, 1)].quantile(0.99)
    candidates = torch.linspace(float(norms.min()), float(top), 65536)
    whole = (a @ w_out.T).norm(dim=-1)
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        weak = a.clone()
        weak[norms > candidates[middle]] = 0
        error = ((weak @ w_out.T).norm(dim=-1) / whole).mean()
        if error > target:
            high = middle
        else:
            low = middle + 1
    return float(candidates[max(low - 1, 0)])


def require_same(a: Tensor, w_out: Tensor) -> None:
    """Both meet every target; prints by how much."""
    for target in TARGETS:
        ours, theirs = cett_threshold(a, w_out, target), by_candidates(a, w_out, target)
        off, other = (abs(cett_at(a, w_out, eps) - target) for eps in (ours, theirs))
        print(f"  target {target}: thresholds {ours:.4f} and {theirs:.4f}, errors off by {off:.1e} and {other:.1e}")
        if off > max(other, 2e-5) or abs(ours / theirs - 1) > 1e-3:
            raise SystemExit("the two searches disagree")


def sides(a: Tensor, w_out: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed: one threshold by either search, all thresholds at once, and the limit."""
    weight = w_out.numpy()
    return {
        "candidates and bisection": lambda: by_candidates(a, w_out, 0.2),
        "cett_threshold": lambda: cett_threshold(a, w_out, 0.2),
        "curve of all thresholds": lambda: CettCurve(weight).update(a).result(),
        "one dense product": lambda: a @ w_out.T,
    }


def main() -> None:
    """Print thresholds, times, ratios and the growth with the number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--d-ff", type=int, default=1024)
    parser.add_argument("--d-model", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table: dict[str, list[float]] = {}
    for n_tokens in options.tokens:
        a, w_out = layer(n_tokens, options.d_model, options.d_ff)
        print(f"{n_tokens} tokens, {options.d_ff} neurons, {options.d_model} outputs, {options.threads} thread(s)")
        require_same(a, w_out)
        times = alternate(sides(a, w_out), options.repeats)
        print_table(times, "candidates and bisection")
        print(f"  peer / cett_threshold: {ratio(times['candidates and bisection'], times['cett_threshold']):.2f}")
        for name, seconds in times.items():
            table.setdefault(name, []).append(float(np.median(seconds)))
    if len(options.tokens) > 1:
        for name, seconds in table.items():
            print(f"{name}: time grows as tokens^{exponent(np.array(options.tokens), np.array(seconds)):.2f}")


if __name__ == "__main__":
    main()
