"""One fused update beside the torch and numpy operations that give the same numbers.

    python bench/core_statistics.py [--rows 2048] [--units 1536] [--repeats 15] [--threads 2]

Runs alternate, so that a busy machine slows all sides alike; the medians are printed in milliseconds, after checking
that the answers agree. "first" is an object's first batch (all top-k lists start empty), "later" its second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from netloupe.core.statistics import (
    Counts,
    Covariance,
    Histogram,
    LabelMoments,
    Moments,
    Quantiles,
    Statistic,
    TopK,
    average_precision,
    update_all,
)

K = 8


def fresh() -> list[Statistic]:
    """The set that a recording keeps for every site."""
    return [Moments(), Counts(), TopK(K), Quantiles()]


def with_torch(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers from torch's operations."""
    variance, mean = torch.var_mean(x.double(), dim=0, correction=0)
    low, high = x.aminmax(dim=0)
    values, samples = x.topk(K, dim=0)
    active = x > 0
    return {
        "mean": mean,
        "variance": variance,
        "minimum": low,
        "maximum": high,
        "active": active.sum(0),
        "zero": (x == 0).sum(0),
        "negative": (x < 0).sum(0),
        "rows": torch.bincount(active.sum(1), minlength=x.shape[1] + 1),
        "values": values.T,
        "samples": samples.T,
        "table": torch.bincount(x.view(torch.int16)[:, 1::2].flatten().int() & 0xFFFF, minlength=65536),
    }


def with_numpy(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same numbers from numpy's operations, with a partial sort for the largest values."""
    active = x > 0
    part = np.argpartition(-x, K, axis=0)[:K]
    order = np.argsort(-np.take_along_axis(x, part, 0), axis=0, kind="stable")
    samples = np.take_along_axis(part, order, 0)
    return {
        "mean": x.mean(0, dtype=np.float64),
        "variance": x.var(0, dtype=np.float64),
        "minimum": x.min(0),
        "maximum": x.max(0),
        "active": active.sum(0),
        "zero": (x == 0).sum(0),
        "negative": (x < 0).sum(0),
        "rows": np.bincount(active.sum(1), minlength=x.shape[1] + 1),
        "values": np.take_along_axis(x, samples, 0).T,
        "samples": samples.T,
        "table": np.bincount((x.view(np.uint32) >> 16).ravel(), minlength=65536),
    }


def check(statistics: list[Statistic], peers: dict, tied: bool) -> None:
    """Raise AssertionError where the fused pass and a peer disagree."""
    moments, counts, top, quantiles = statistics
    found = {
        **vars(moments.result()),
        **vars(counts.result()),
        **vars(top.result()),
        "variance": moments.result().variance,
        "rows": counts.result().rows_with_active,
        "table": quantiles.state()["table"],
    }
    for name, expected in peers.items():
        if name == "samples" and tied:
            continue  # peers break ties between equal values arbitrarily
        np.testing.assert_allclose(found[name], np.asarray(expected), rtol=1e-9, atol=1e-12, err_msg=name)


def timed(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each job, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(runs[1:])) for name, runs in seconds.items()}


def fused(x: torch.Tensor, repeats: int) -> None:
    """The set of four against torch and numpy."""
    statistics = fresh()
    update_all(statistics, x)
    first, tied = statistics[2].copy(), bool((x == 0).any(dim=0).all())
    check(statistics, {k: v.numpy() for k, v in with_torch(x).items()}, tied)
    check(statistics, with_numpy(x.numpy()), tied)
    assert first == statistics[2]
    another = x.roll(1, 0).roll(1, 1)
    jobs = {
        "netloupe, first batch": lambda: update_all(fresh(), x),
        "netloupe, later batch": lambda: update_all(statistics, another),
        "torch": lambda: with_torch(x),
        "numpy": lambda: with_numpy(x.numpy()),
    }
    found = timed(jobs, repeats)
    for name, ms in found.items():
        print(f"  {name:24s} {ms:9.2f} ms   {ms / found['netloupe, first batch']:7.1f} x the first batch")


def single(x: torch.Tensor, repeats: int) -> None:
    """Each statistic by itself beside its nearest torch operation."""
    labels = torch.arange(len(x)) % 10
    edges = np.linspace(0, 8, 65)
    pairs: list[tuple[str, Callable[[], object], str, Callable[[], object]]] = [
        ("Moments", lambda: Moments().update(x), "var_mean(float64)", lambda: torch.var_mean(x.double(), dim=0)),
        ("Moments", lambda: Moments().update(x), "sum(dtype=float64)", lambda: x.sum(0, dtype=torch.float64)),
        ("Counts", lambda: Counts().update(x), "count_nonzero", lambda: x.count_nonzero(dim=0)),
        ("TopK", lambda: TopK(K).update(x), "topk", lambda: x.topk(K, dim=0)),
        ("Quantiles", lambda: Quantiles().update(x), "sort", lambda: x.flatten().sort()),
        ("Histogram", lambda: Histogram(edges).update(x), "histc", lambda: x.histc(64, 0, 8)),
        ("LabelMoments", lambda: LabelMoments().update(x, labels=labels), "index_add",
         lambda: torch.zeros(10, x.shape[1], dtype=torch.float64).index_add_(0, labels, x.double())),
        ("Covariance", lambda: Covariance().update(x), "cov(float64)", lambda: torch.cov(x.double().T)),
    ]  # fmt: skip
    for mine, run, theirs, peer in pairs:
        found = timed({"mine": run, "peer": peer}, max(3, repeats // 3))
        ratio = found["peer"] / found["mine"]
        print(f"  {mine:14s} {found['mine']:9.2f} ms   torch {theirs:20s} {found['peer']:9.2f} ms   ratio {ratio:6.2f}")


def ranking(x: torch.Tensor, repeats: int) -> None:
    """Average precision of all units at once beside scikit-learn's loop."""
    from sklearn.metrics import average_precision_score

    few, positives = x[:, :64].contiguous(), torch.arange(len(x)) % 7 == 0

    def peer() -> list[float]:
        return [average_precision_score(positives.numpy(), column) for column in few.T.numpy()]

    np.testing.assert_allclose(average_precision(few, positives), peer(), rtol=1e-10)
    found = timed({"mine": lambda: average_precision(few, positives), "peer": peer}, max(3, repeats // 3))
    print(f"  average_precision, 64 units {found['mine']:.2f} ms   scikit-learn {found['peer']:.2f} ms   "
          f"ratio {found['peer'] / found['mine']:.1f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--units", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    z = torch.randn(options.rows, options.units)
    for name, x in (("ReLU", z.relu()), ("GELU", torch.nn.functional.gelu(z))):
        print(f"{name} activations {tuple(x.shape)}, {options.threads} threads: Moments + Counts + TopK + Quantiles")
        fused(x, options.repeats)
    print("each by itself, ReLU")
    single(z.relu(), options.repeats)
    ranking(z, options.repeats)


if __name__ == "__main__":
    main()
