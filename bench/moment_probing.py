"""The moment head beside global covariance pooling, and the streaming second moments beside a plain notebook.

    python bench/moment_probing.py [--batch 32] [--positions 196] [--dim 768] [--samples 250 500 1000 2000] [--repeats 5]

Peer of the head: the full covariance of 512 projected channels with a matrix square root by five Newton-Schulz steps
(iSQRT-COV) and a linear classifier of its upper triangle. Peer of the statistic: numpy's einsum for all samples at once
followed by the same cut to neighbouring heads. Peer of the probes: scikit-learn's logistic regression over a grid with its
own cross-validated search. Answers are compared before anything is timed.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from support.timing import alternate, exponent, print_table, ratio
from torch import Tensor, nn

from netloupe.lenses.information.probes import STRENGTHS, LinearProbe
from netloupe.lenses.information.token_moments import TokenMoments, orthonormal
from netloupe.nn.moment_head import CrossMoments, MomentHead


class CovariancePooling(nn.Module):
    """Projection, covariance over tokens, matrix square root, linear classifier."""

    def __init__(self, dim: int, n_classes: int, hidden: int = 512, n_steps: int = 5) -> None:
        super().__init__()
        self.projection, self.n_steps = nn.Linear(dim, hidden), n_steps
        self.classifier = nn.Linear(hidden * (hidden + 1) // 2, n_classes)
        self.upper = torch.triu_indices(hidden, hidden)

    def covariance(self, tokens: Tensor) -> Tensor:
        values = self.projection(tokens)
        centred = values - values.mean(1, keepdim=True)
        return centred.transpose(1, 2) @ centred / tokens.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        c = self.covariance(tokens)
        eye = torch.eye(c.shape[-1])
        trace = c.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        y, z = c / trace, eye.expand_as(c)
        for _ in range(self.n_steps):
            t = 0.5 * (3 * eye - z @ y)
            y, z = y @ t, t @ z
        return self.classifier((y * trace.sqrt())[:, self.upper[0], self.upper[1]])


def time_heads(batch: int, positions: int, dim: int, repeats: int) -> None:
    """Forward passes, and that the head's maps are blocks of the covariance."""
    tokens = torch.randn(batch, positions, dim)
    ours, peer = MomentHead(dim, 100, first="mean").eval(), CovariancePooling(dim, 100).eval()
    with torch.no_grad():
        peer.projection.load_state_dict(ours.projection.state_dict())
        maps = CrossMoments(4, center="token", normalise="none")(ours.projection(tokens))
        whole = peer.covariance(tokens)
        gap = max(
            float((maps[:, i] - whole[:, 128 * i : 128 * (i + 1), 128 * (i + 1) : 128 * (i + 2)]).abs().max())
            for i in range(3)
        )
        if gap > 1e-4:
            raise SystemExit(f"the maps differ from the covariance's blocks by {gap:.1e}")
        seconds = alternate(
            {"covariance pooling": partial(peer, tokens), "moment head": partial(ours, tokens)}, repeats
        )
    flops = 2 * batch * positions * (dim * 512 + 3 * 128 * 128)
    print(f"forward, batch {batch}, {positions} tokens of {dim} units; same maps within {gap:.0e}")
    print_table(seconds, "covariance pooling")
    print(f"  moment head: {flops / 1e9 / np.median(seconds['moment head']):.1f} GFLOP/s of its matrix products")
    inputs = [ours.first_order.in_features + ours.second_order.in_features, peer.classifier.in_features]
    print(f"  classifier inputs {inputs[0]} and {inputs[1]}, {inputs[1] / inputs[0]:.0f} times fewer")


def by_einsum(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As one would in a notebook: project, centre, all cross-products, cut."""
    projected = tokens.astype(np.float64) @ orthonormal(tokens.shape[-1], 32, 0)
    centred = projected - projected.mean(1, keepdims=True)
    whole = np.einsum("blp,blq->bpq", centred, centred, optimize=True) / tokens.shape[1]
    maps = [whole[:, 8 * i : 8 * i + 8, 8 * i + 8 : 8 * i + 16].reshape(len(tokens), -1) for i in range(3)]
    return projected.mean(1), np.hstack(maps)


def time_statistic(samples: list[int], repeats: int) -> None:
    """One streaming pass, in batches of 64, beside everything at once."""
    found: dict[str, list[float]] = {}
    for n in samples:
        tokens = np.random.default_rng(0).standard_normal((n, 64, 64)).astype(np.float32)
        labels = np.arange(n) % 10

        def ours(tokens: np.ndarray = tokens, labels: np.ndarray = labels) -> TokenMoments:
            made = TokenMoments()
            for start in range(0, len(tokens), 64):
                made.update(tokens[start : start + 64], labels=labels[start : start + 64])
            return made

        result, (first, second) = ours().result(), by_einsum(tokens)
        gap = max(np.abs(result.first - first).max(), np.abs(result.second - second).max())
        if gap > 1e-10:
            raise SystemExit(f"the statistic differs from einsum by {gap:.1e}")
        seconds = alternate({"einsum": partial(by_einsum, tokens), "TokenMoments": ours}, repeats)
        for name, values in seconds.items():
            found.setdefault(name, []).append(float(np.median(values)))
        print(
            f"{n} samples of 64 positions, 64 units: same moments within {gap:.0e}; einsum / ours {ratio(seconds['einsum'], seconds['TokenMoments']):.2f}"
        )
    if len(samples) > 1:
        for name, values in found.items():
            print(f"  {name:<12} grows as n^{exponent(np.array(samples), np.array(values)):.2f}")


def time_probe(samples: list[int], repeats: int) -> None:
    """The linear probe beside scikit-learn's search over the same strengths on as large an inner split."""
    times: list[float] = []
    for n in samples:
        rng = np.random.default_rng(0)
        x, labels = rng.standard_normal((n, 224)), np.arange(n) % 10
        x[:, :10] += 1.5 * np.eye(10)[labels]
        scaled = (x - x.mean(0)) / x.std(0)

        def peer(scaled: np.ndarray = scaled, labels: np.ndarray = labels) -> np.ndarray:
            search = GridSearchCV(
                LogisticRegression(max_iter=200), {"C": list(STRENGTHS)}, scoring="neg_log_loss",
                cv=ShuffleSplit(1, test_size=0.2, random_state=0),
            )  # fmt: skip
            return search.fit(scaled, labels).predict_proba(scaled)

        def ours(x: np.ndarray = x, labels: np.ndarray = labels) -> np.ndarray:
            return LinearProbe().fit(x, labels).predict_proba(x)

        gap = float(np.abs(peer() - ours()).max())
        seconds = alternate({"scikit-learn search": peer, "LinearProbe": ours}, repeats)
        times.append(float(np.median(seconds["LinearProbe"])))
        print(
            f"linear probe, {n} samples, 224 units: probabilities within {gap:.0e}; peer / ours {ratio(seconds['scikit-learn search'], seconds['LinearProbe']):.2f}"
        )
    if len(samples) > 1:
        print(f"  LinearProbe grows as n^{exponent(np.array(samples), np.array(times)):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--positions", type=int, default=196)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--samples", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    time_heads(options.batch, options.positions, options.dim, options.repeats)
    time_statistic(options.samples, options.repeats)
    time_probe(options.samples, options.repeats)


if __name__ == "__main__":
    main()
