"""Packed codes beside numpy and scikit-learn on bytes: distinct codes, K-NN in Hamming distance, memory.

    python bench/hash_encoders.py [--bits 128] [--samples 5000 10000 20000 40000] [--queries 2000]

Peers: ``numpy.unique(axis=0)`` on int8 and ``KNeighborsClassifier(metric="hamming")``, as the published code has them. The
answers are compared before anything is timed; votes may differ where neighbours tie, which scikit-learn breaks by chance. The
limits are one read of ``n U / 8`` bytes, and ``n m U / 64`` counts of bits.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from support.timing import alternate, exponent, print_table, ratio
from threadpoolctl import threadpool_limits

from netloupe.lenses.geometry.code_neighbours import knn_votes
from netloupe.lenses.geometry.codes import PackedCodes, hamming, redundancy_ratio

K = 9


def by_numpy(bits: np.ndarray) -> float:
    return (len(bits) - len(np.unique(bits, axis=0))) / len(bits)


def by_sklearn(train: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return KNeighborsClassifier(K, metric="hamming").fit(train, y).predict(queries)


def by_packing(bits: np.ndarray) -> float:
    return redundancy_ratio(PackedCodes.from_bits(bits.view(bool)))


def material(n: int, n_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of ten classes, a tenth of them repeated."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, n)
    bits = rng.random((n, n_bits)) < (0.2 + 0.6 * rng.random((10, n_bits)))[y]
    again = rng.integers(0, n // 2, n // 10)
    bits[-len(again) :], y[-len(again) :] = bits[again], y[again]
    return bits.astype(np.int8), y


def measure(n: int, n_bits: int, n_queries: int, repeats: int, times: dict[str, list[float]]) -> None:
    bits, y = material(n + n_queries, n_bits)
    train, queries, y_train = bits[:n], bits[n:], y[:n]
    codes, asked = PackedCodes.from_bits(train), PackedCodes.from_bits(queries)
    if redundancy_ratio(codes) != by_numpy(train):
        raise SystemExit("the redundancies differ")
    votes = knn_votes(codes, y_train, 10, asked, K)
    nearest = np.sort(hamming(asked, codes), 1)[:, :K]
    theirs, _ = KNeighborsClassifier(K, metric="hamming").fit(train, y_train).kneighbors(queries)
    if not np.array_equal(np.rint(theirs * n_bits).astype(int), nearest):
        raise SystemExit("the nearest distances differ")
    agree = (votes.argmax(1) == by_sklearn(train, y_train, queries)).mean()
    if agree < 0.9:
        raise SystemExit(f"only {agree:.3f} of the answers are alike")
    print(f"{n} codes of {n_bits} bits; same redundancy, same nine distances, {agree:.4f} of the classes alike (ties)")
    print(f"  memory: {train.nbytes / codes.words.nbytes:.1f} times less than int8")
    sides = {
        "numpy.unique": partial(by_numpy, train),
        "redundancy_ratio, packing too": partial(by_packing, train),
        "redundancy_ratio": partial(redundancy_ratio, codes),
    }
    seconds = alternate(sides, repeats)
    print_table(seconds, "numpy.unique")
    neighbours = {
        "KNeighborsClassifier": partial(by_sklearn, train, y_train, queries),
        "knn_votes": partial(knn_votes, codes, y_train, 10, asked, K),
    }
    seconds |= alternate(neighbours, repeats)
    print_table({name: seconds[name] for name in neighbours}, "KNeighborsClassifier")
    speed = n * n_queries * -(-n_bits // 64) / np.median(seconds["knn_votes"]) / 1e9
    print(
        f"  {speed:.2f} billion words of 64 bits a second; {1 / ratio(seconds['knn_votes'], seconds['KNeighborsClassifier']):.1f} times faster"
    )
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs="+", default=[5000, 10000, 20000, 40000])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {}
    with threadpool_limits(1):
        for n in options.samples:
            measure(n, options.bits, options.queries, options.repeats, times)
    if len(options.samples) > 1:
        for name, values in times.items():
            print(f"{name:<30} grows as n^{exponent(np.array(options.samples), np.array(values)):.2f}")


if __name__ == "__main__":
    main()
