"""The steps of semi-non-negative matrix factorisation, one pass over the samples an iteration.

Source: Ding, Li and Jordan, "Convex and Semi-Nonnegative Matrix Factorizations", 2010; with winner-take-all columns as in
arXiv 2506.10920.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.progress import bar
from netloupe.core.rows import Rows

Init = Literal["random", "svd", "kmeans"]
FLOOR = 1e-6  # of the non-negative factor's start, and in the denominator of its step
IN_MEMORY = 2**31  # bytes of activations that are kept in memory instead of being read again in each iteration


class Samples(NamedTuple):
    """Activations read batch by batch in one number type, as often as needed; ``total`` is their sum of squares."""

    batches: Callable[[], Iterator[tuple[slice, Tensor]]]
    n: int
    d: int
    total: float
    dead_units: Int[np.ndarray, " dead"]


def samples(rows: Rows, dtype: torch.dtype) -> Samples:
    """Prepares activations, which are checked once; what fits stays in memory."""
    small = rows.n_samples * rows.n_units * dtype.itemsize <= IN_MEMORY
    kept = rows.array().detach().to(dtype) if small else None

    def batches() -> Iterator[tuple[slice, Tensor]]:
        size = rows.batch_size
        for start in range(0, rows.n_samples, size):
            part = slice(start, min(start + size, rows.n_samples))
            yield part, (torch.as_tensor(rows.source[part]).detach().to(dtype) if kept is None else kept[part])

    alive, total = torch.zeros(rows.n_units, dtype=torch.bool), 0.0
    for batch in rows:
        alive |= (batch.values != 0).any(0)
        total += float(batch.values.double().pow(2).sum())
    if total == 0:
        raise InputError("all activations are 0, so there is nothing to factorise; choose another site or other data")
    return Samples(batches, rows.n_samples, rows.n_units, total, np.flatnonzero(~alive.numpy()))


def start(
    data: Samples, k: int, init: Init, dtype: torch.dtype, seed: int, official: bool = False
) -> Float[Tensor, "sample feature"]:
    """The non-negative factor to begin with; the first step solves for the other.

    ``random`` uniform in [0, 1]; ``svd`` the positive part of the leading right singular vectors times the root of their
    singular values; ``kmeans`` one-hot after 15 Lloyd steps. All at least ``FLOOR``. ``official`` takes the
    signs of the singular vectors as they come.
    """
    draw = torch.Generator().manual_seed(seed)
    if init == "random":
        return torch.rand(data.n, k, generator=draw).to(dtype).clamp_min(FLOOR)
    if init == "kmeans":
        return _kmeans(data, k, dtype, draw)
    if official:
        whole = torch.cat([x for _, x in data.batches()])
        _, size, right = torch.linalg.svd(whole.T, full_matrices=False)
        return (size[:k].sqrt()[:, None] * right[:k]).T.contiguous().clamp_min(FLOOR)
    gram = torch.zeros(data.d, data.d, dtype=torch.float64)
    for _, x in data.batches():
        gram += x.double().T @ x.double()
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    roots = values.clamp_min(0).sqrt()
    keep = roots > 1e-10 * roots[0]
    right = vectors * torch.where(keep, roots.clamp_min(1e-300) ** -0.5, torch.zeros_like(roots))
    codes = torch.full((data.n, k), FLOOR, dtype=dtype)
    for part, x in data.batches():
        codes[part, : right.shape[1]] = (x.double() @ right).to(dtype)
    # a singular vector's sign is free: the one whose positive part is heavier keeps more of it
    turned = torch.where(codes.clamp_min(0).norm(dim=0) >= (-codes).clamp_min(0).norm(dim=0), 1.0, -1.0).to(dtype)
    return (codes * turned).clamp_min(FLOOR)


def _kmeans(data: Samples, k: int, dtype: torch.dtype, draw: torch.Generator) -> Float[Tensor, "sample feature"]:
    first = torch.randperm(data.n, generator=draw)[:k]
    centres = pick(data, first)
    labels = torch.zeros(data.n, dtype=torch.long)
    for _ in range(15):
        sums, counts = torch.zeros_like(centres), torch.zeros(k, dtype=torch.long)
        lengths = centres.pow(2).sum(1)
        for part, x in data.batches():
            labels[part] = (lengths - 2 * x @ centres.T).argmin(1)
            sums.index_add_(0, labels[part], x)
            counts += torch.bincount(labels[part], minlength=k)
        centres = sums / counts.clamp_min(1)[:, None]
        empty = torch.nonzero(counts == 0).flatten()
        if len(empty):
            centres[empty] = pick(data, torch.randint(0, data.n, (len(empty),), generator=draw))
    codes = torch.full((data.n, k), FLOOR, dtype=dtype)
    codes[torch.arange(data.n), labels] = 1.0
    return codes


def pick(data: Samples, wanted: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen unit"]:
    """Some samples, in the order asked for."""
    found = torch.empty(0)
    for part, x in data.batches():
        if not len(found):
            found = torch.empty(len(wanted), x.shape[1], dtype=x.dtype)
        inside = (wanted >= part.start) & (wanted < part.stop)
        found[inside] = x[wanted[inside] - part.start]
    return found


def winners(directions: Float[Tensor, "unit feature"], sparsity: float) -> Float[Tensor, "unit feature"]:
    """Each column's ``ceil(sparsity d)`` entries of largest size, ties kept; the rest 0."""
    keep = max(1, math.ceil(sparsity * len(directions)))
    if keep >= len(directions):
        return directions
    size = directions.abs()
    border = size.topk(keep, dim=0).values[-1]
    return directions * (size >= border)


class Factors(NamedTuple):
    """``X ~ codes directions.T``: the best found, the loss after each iteration, and the iteration it was found at."""

    directions: Float[Tensor, "unit feature"]
    codes: Float[Tensor, "sample feature"]
    loss_path: Float[np.ndarray, " iteration"]
    best: int


def factorise(
    data: Samples,
    codes: Float[Tensor, "sample feature"],
    sparsity: float,
    max_iter: int,
    patience: int,
    tol: float,
    ridge: float,
    progress: bool = False,
) -> Factors:
    """Alternates the exact least squares of the directions with one multiplicative step of the codes.

    The products that an iteration needs of the new codes are summed while the old batch is at hand, so an iteration reads
    the activations once. The loss needs no residual: ``|X|^2 - 2 <P, G> + <G^T G, Q>``.
    """
    k = codes.shape[1]
    eye = ridge * torch.eye(k, dtype=codes.dtype)
    cross, gram = torch.zeros(data.d, k, dtype=codes.dtype), codes.T @ codes
    for part, x in data.batches():
        cross += x.T @ codes[part]
    best = Factors(cross, codes, np.empty(0), 0)
    path: list[float] = []
    lowest = math.inf
    with bar("factorising", max_iter, progress) as shown:
        for step in range(max_iter):
            size = codes_length(gram)
            found = torch.linalg.solve(gram + eye, cross.T).T
            directions = winners(found, sparsity) * size
            p_codes, cross, gram = _pass(data, codes, directions, size)
            q = directions.T @ directions
            path.append(data.total - 2 * p_codes + float((gram * q).sum(dtype=torch.float64)))
            shown.advance(shown.task_ids[0])
            if path[-1] < lowest - tol:
                lowest = path[-1]
                best = Factors(directions, codes.clone(), np.empty(0), step)
            elif step - best.best >= patience:
                break
    return best._replace(loss_path=np.array(path))


def codes_length(gram: Float[Tensor, "feature feature"]) -> Float[Tensor, " feature"]:
    """Lengths of the codes' columns, by which they are divided and the directions multiplied."""
    return gram.diagonal().clamp_min(0).sqrt().clamp_min(1e-8)


def _pass(data: Samples, codes: Tensor, directions: Tensor, size: Tensor) -> tuple[float, Tensor, Tensor]:
    """Rescales and steps the codes in place; returns ``<P, G>``, ``X^T G`` and ``G^T G`` of the new ones."""
    q = directions.T @ directions
    q_up, q_down = q.clamp_min(0), (-q).clamp_min(0)
    cross, gram = torch.zeros_like(directions), torch.zeros_like(q)
    inner = 0.0
    for part, x in data.batches():
        p, old = x @ directions, codes[part] / size
        ratio = (old @ q_down).add_(p.clamp_min(0)).div_((old @ q_up).add_((-p).clamp_min_(0)).add_(FLOOR))
        new = old.mul_(ratio.sqrt_())
        codes[part] = new
        inner += float((p * new).sum(dtype=torch.float64))
        cross += x.T @ new
        gram += new.T @ new
    return inner, cross, gram


def mapped(codes: Float[Tensor, "sample feature"], path: str | Path | None) -> Float[Tensor, "sample feature"]:
    """The same codes in a memory-mapped file where a path is given, for more samples than fit."""
    if path is None:
        return codes
    kind = np.float64 if codes.dtype == torch.float64 else np.float32
    file: Any = np.lib.format.open_memmap(path, "w+", kind, tuple(codes.shape))
    file[:] = codes.numpy()
    return torch.from_numpy(file)
