"""Entropy of a symmetric matrix' spectrum without the spectrum: by Lanczos quadrature, or by Chebyshev moments.

Both are approximate. The first is stochastic Lanczos quadrature (Ubaru, Chen and Saad, doi 10.1137/16M1104974); the second
is what the code of arXiv 2312.04823 offers, and its authors advise against it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from scipy import linalg
from scipy.sparse.linalg import eigsh

Square = Float[np.ndarray, "sample sample"]


def lanczos_entropy(
    matrix: Square, t: float = 1, n_top: int = 32, n_steps: int = 30, n_probes: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Approximate spectral entropy without the whole spectrum, and its standard error over probes.

    ``H = log2 Z - tr f(M) / Z`` with ``Z = tr |M|^t`` and ``f(x) = |x|^t log2 |x|^t``. The ``n_top`` largest eigenvalues
    enter as they are; what they leave of both traces comes from Gauss quadrature of Lanczos runs, fully
    re-orthogonalised, started at random signs (stochastic Lanczos quadrature). O(n^2) for each product with the matrix.
    A matrix of at most ``4 n_top`` rows is decomposed.
    """
    n, draw = len(matrix), np.random.default_rng(seed)
    if n <= 4 * n_top:
        powered, logged = _terms(linalg.eigvalsh(matrix), t)
        return float(np.log2(powered.sum()) - logged.sum() / powered.sum()), 0.0
    top, vectors = eigsh(matrix, n_top, v0=draw.standard_normal(n))
    known = np.array([each.sum() for each in _terms(top, t)])
    signs = draw.choice([-1.0, 1.0], (n, n_probes))
    traces = np.array([
        [weights @ each for each in _terms(nodes, t)] for nodes, weights in _quadratures(matrix, vectors, signs, n_steps)
    ])  # fmt: skip
    total, logged = known + traces.mean(0)
    # the ratio's error by the delta method: the two traces of a probe vary together
    slope = np.array([1 / (total * np.log(2)) + logged / total**2, -1 / total])
    error = float(np.sqrt(max(slope @ np.cov(traces.T) @ slope, 0.0) / n_probes)) if n_probes > 1 else float("nan")
    return float(np.clip(np.log2(total) - logged / total, 0, np.log2(n))), error


def chebyshev_spectrum(
    matrix: Square, n_moments: int = 50, n_probes: int = 100, n_grid: int = 1001, drop: float = 1e-3, seed: int = 0
) -> Float[np.ndarray, " value"]:
    """Approximate eigenvalues from a density of states in Chebyshev polynomials; coarse, and kept for comparison.

    Entries below ``drop`` are taken as 0; moments ``tr T_k(M)`` come from random signs; each cell of the grid on
    [-1, 1] holds its rounded share of the eigenvalues.
    """
    thinned = np.where(np.abs(matrix) < drop, 0.0, matrix)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (len(matrix), n_probes))
    before, current = signs, thinned @ signs
    moments = [np.mean((signs * before).sum(0)), np.mean((signs * current).sum(0))]
    for _ in range(n_moments - 2):
        before, current = current, 2 * (thinned @ current) - before
        moments.append(np.mean((signs * current).sum(0)))
    grid = np.linspace(-1 + 1e-8, 1 - 1e-8, n_grid)
    angle = np.arccos(grid)
    orders = np.arange(1, n_moments)
    cumulative = moments[0] * (np.pi - angle) - 2 * (np.sin(np.outer(angle, orders)) / orders) @ np.array(moments[1:])
    density = np.append(np.diff(cumulative), 0.0)
    counts = np.rint(len(matrix) * density / density.sum()).astype(int)
    return np.repeat(grid, np.maximum(counts, 0))


def _terms(eigenvalues: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    powered = np.abs(eigenvalues) ** t
    return powered, powered * np.log2(powered, out=np.zeros_like(powered), where=powered > 0)


def _quadratures(
    matrix: Square, known: Float[np.ndarray, "sample top"], signs: Float[np.ndarray, "sample probe"], n_steps: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Nodes and weights of the Gauss quadrature of each probe, in the complement of the known eigenvectors."""
    n, n_probes = signs.shape
    start = signs - known @ (known.T @ signs)
    lengths = np.linalg.norm(start, axis=0)
    n_steps = min(n_steps, n - known.shape[1])
    basis = np.zeros((n_steps, n, n_probes))
    basis[0] = start / lengths
    diagonal, off = np.zeros((n_steps, n_probes)), np.zeros((n_steps, n_probes))
    for step in range(n_steps):
        vector = matrix @ basis[step]
        diagonal[step] = (vector * basis[step]).sum(0)
        if step == n_steps - 1:
            break
        for _again in range(2):
            vector -= known @ (known.T @ vector)
            vector -= np.einsum("sp,snp->np", np.einsum("snp,np->sp", basis[: step + 1], vector), basis[: step + 1])
        size = np.linalg.norm(vector, axis=0)
        # a run that has found an invariant subspace stays there: its weight on later nodes is 0
        off[step] = np.where(size > 1e-12, size, 0.0)
        basis[step + 1] = np.where(size > 1e-12, vector / np.where(size > 1e-12, size, 1.0), 0.0)
    for probe in range(n_probes):
        nodes, vectors = linalg.eigh_tridiagonal(diagonal[:, probe], off[:-1, probe])
        yield nodes, lengths[probe] ** 2 * vectors[0] ** 2
