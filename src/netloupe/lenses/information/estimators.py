"""Entropy and mutual information of a layer, in bits: by bins of equal entropy, by fixed bins, by Gaussian noise.

Source: Chelombiev, Houghton and O'Donnell, "Adaptive Estimators Show Information Compression in Deep Neural Networks",
arXiv 1902.09037; the bounds on the entropy of a mixture are those of Kolchinsky and Tracey, arXiv 1706.02419.

For a deterministic network and continuous values the true ``I(X;T)`` is infinite, or the entropy of the data. Every
number here is the information that survives the noise that the estimator imposes: its bins, or its Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.rows import Rows, as_rows
from netloupe.lenses.information.distinct import LIMIT, Distinct

N_BINS = 30
PAIRWISE_LIMIT = 20_000
"""most samples of the estimators that compare every sample with every other"""
_NO_WEIGHT = -700.0
"""exponents below this add nothing to a sum that holds 1, and their exponentials are slow to compute"""
Bound = Literal["upper", "lower"]
Scaling = Literal["max", "max2", "none", "official"]
Matrix = Float[Tensor, "sample unit"] | Float[np.ndarray, "sample unit"] | Any
Labels = Int[Tensor, " sample"] | Int[np.ndarray, " sample"] | Any


class Information(NamedTuple):
    """``i_xt``: bits about the input; ``i_ty``: bits about the label."""

    i_xt: float
    i_ty: float


class Edges(NamedTuple):
    """Bin edges, and whether they come from all different values or from a sample of them."""

    values: Float[np.ndarray, " edge"]
    exact: bool


def ebab_edges(
    t: Matrix, n_bins: int = N_BINS, low: float | None = None, limit: int = LIMIT
) -> Float[np.ndarray, " edge"]:
    """Edges between which lie equally many *different* values of a layer: entropy-based adaptive binning.

    ``u`` are the ``m`` different values of all units and samples, without ``low``, ascending; the edges are ``low``,
    ``u[floor(k m / n_bins)]`` for ``k < n_bins``, and ``u[m - 1]``: with exact zeros and ``low = 0`` the zeros have a
    bin of their own, and the largest value sits alone in the last. A layer without any value but ``low`` has the one
    edge ``low``. Source: arXiv 1902.09037 and its code.

    Args:
        t: ``(sample, unit)``; tensor, array or stored site. The units of a layer share their edges.
        n_bins: bins of equal content.
        low: where the bins begin. Default 0 for a layer without negative values (ReLU, softplus), and just under the
            smallest value for any other. The paper's code takes -1.000001 for tanh and ELU, which is the same.
        limit: up to so many different values the edges are exact, above they come from a sample of them.

    Cost: one sort of n d values, read batch by batch. Raises InputError for other shapes, NonFiniteError for NaN,
    InputError for ``n_bins`` below 1 or a ``low`` above the smallest value.
    """
    return adaptive_edges(t, n_bins, low, limit).values


def adaptive_edges(t: Matrix, n_bins: int = N_BINS, low: float | None = None, limit: int = LIMIT) -> Edges:
    """:func:`ebab_edges`, and whether they are exact."""
    if n_bins < 1:
        raise InputError(f"n_bins is {n_bins}, at least 1 is needed")
    distinct = Distinct(limit)
    for batch in as_rows(t, ndim=(2,)):
        distinct.update(batch.values)
    found = distinct.result()
    smallest = found.values[0]
    if low is None:
        low = 0.0 if smallest >= 0 else float(np.nextafter(smallest, -np.inf))
    if smallest < low:
        raise InputError(f"low is {low:g} but the layer's smallest value is {smallest:g}; leave low out or lower it")
    u = found.values[found.values != low]
    if len(u) == 0:
        return Edges(np.array([low]), found.exact)
    chosen = np.arange(n_bins) * len(u) // n_bins
    return Edges(np.concatenate([[low], u[chosen], u[-1:]]), found.exact)


def fixed_edges(low: float, high: float, n_bins: int = N_BINS) -> Float[np.ndarray, " edge"]:
    """``n_bins`` equally spaced edges from ``low`` to ``high``: [-1, 1] for tanh, [0, largest activation] for ReLU.

    Values below ``low`` share a bin, and so do values of at least ``high``. Raises InputError unless ``low < high``
    and there are at least two edges.
    """
    if n_bins < 2 or not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"edges from {low} to {high} in {n_bins}; low < high and at least 2 edges are needed")
    return np.linspace(low, high, n_bins)


def range_edges(
    maxima: Float[np.ndarray, "step layer"], kind: Literal["global", "epoch", "running"], n_bins: int = N_BINS
) -> Float[np.ndarray, "step layer edge"]:
    """The baselines for unbounded activations: edges from 0 to a largest activation.

    ``global``: the largest of all layers and steps. ``epoch``: of all layers at this step. ``running``: of this layer
    so far. ``maxima[s, l]`` is the largest activation of layer ``l`` at step ``s``; where there was none above zero,
    the edges run to 1.
    """
    maxima = np.asarray(maxima, np.float64)
    if maxima.ndim != 2 or kind not in ("global", "epoch", "running"):
        raise InputError(f"maxima of shape {maxima.shape} and kind '{kind}'; (step, layer) and global, epoch, running")
    top = {
        "global": lambda: np.full_like(maxima, maxima.max()),
        "epoch": lambda: np.broadcast_to(maxima.max(1, keepdims=True), maxima.shape),
        "running": lambda: np.maximum.accumulate(maxima, axis=0),
    }[kind]()
    return np.linspace(0.0, np.where(top > 0, top, 1.0), n_bins, axis=-1)


def row_symbols(t: Matrix, edges: Float[np.ndarray, " edge"]) -> Int[np.ndarray, " sample"]:
    """One integer for each sample, equal where all units fall into the same bins; ``(sample,)`` int64.

    A value's bin is the number of edges at or below it. The row of bins is hashed to 64 bits by a universal hash (a
    sum of bins times random odd numbers), so two of ``n`` different rows are confused with a probability of about
    ``n^2 / 2^64``. One pass; 8 bytes a sample.
    """
    edges = np.asarray(edges, np.float64)
    if edges.ndim != 1 or len(edges) == 0 or not (np.diff(edges) >= 0).all():
        raise InputError(f"edges of shape {edges.shape} were given, expected one ascending row")
    parts = []
    for batch in as_rows(t, ndim=(2,)):
        values = numbers(batch.values)
        bins = np.searchsorted(edges, values.reshape(-1), side="right").reshape(values.shape)
        parts.append((bins.astype(np.uint64) * _multipliers(values.shape[1])).sum(1, dtype=np.uint64))
    return np.concatenate(parts).view(np.int64)


def entropy_of_counts(counts: Int[np.ndarray, " symbol"]) -> float:
    """Plug-in entropy in bits, ``log2 n - (1/n) sum c log2 c``; the same to the last bit in any order of symbols."""
    n = counts.sum()
    repeats = np.bincount(counts)
    sizes = np.flatnonzero(repeats)
    return float(max(np.log2(n) - (repeats[sizes] * sizes) @ np.log2(np.maximum(sizes, 1)) / n, 0.0))


def symbol_entropy(symbols: Int[np.ndarray, " sample"]) -> float:
    """Plug-in entropy in bits of the symbols."""
    return entropy_of_counts(np.unique(symbols, return_counts=True)[1])


def symbol_information(symbols: Int[np.ndarray, " sample"], other: Int[np.ndarray, " sample"]) -> float:
    """Plug-in mutual information in bits: ``H(S) - sum_o p(o) H(S | o)``."""
    s, n_s = _numbered(symbols)
    o, n_o = _numbered(other)
    joint = np.bincount(s * n_o + o) if n_s * n_o <= 1 << 24 else np.unique(s * n_o + o, return_counts=True)[1]
    total = entropy_of_counts(np.bincount(s)) + entropy_of_counts(np.bincount(o))
    return max(total - entropy_of_counts(joint), 0.0)


def binned_mi(
    t: Matrix, y: Labels, edges: Float[np.ndarray, " edge"], x_ids: Labels | None = None, base: float = 2
) -> Information:
    """``I(X;T)`` and ``I(T;Y)`` of a binned layer, by the plug-in entropies of its rows of bins.

    ``I(X;T) = H(T) - H(T|X)``, where ``H(T|X) = 0`` for distinct inputs, and ``I(T;Y) = H(T) - sum_y p(y) H(T|Y=y)``
    with the same edges in both terms. Both are at most ``log n``, which a layer that gives every sample a symbol of
    its own reaches: then they carry no information (see :func:`saturated`). Source: arXiv 1902.09037.

    Args:
        t: ``(sample, unit)`` of distinct, equally likely inputs. y: labels ``(sample,)``.
        edges: from :func:`ebab_edges`, :func:`fixed_edges` or :func:`range_edges`.
        x_ids: which input each sample is, ``(sample,)``, where inputs repeat.
        base: 2 for bits.

    Cost: O(n d log bins), one pass, 8 bytes a sample. Raises InputError for shapes that do not fit and classes of
    fewer than two samples.
    """
    labels = class_labels(as_rows(t, y, ndim=(2,)))
    symbols = row_symbols(t, edges)
    i_xt = symbol_entropy(symbols) if x_ids is None else symbol_information(symbols, _ids(x_ids, len(symbols)))
    unit = float(np.log2(base))
    return Information(i_xt / unit, symbol_information(symbols, labels) / unit)


def kde_mi(t: Matrix, y: Labels, s2: float, bound: Bound = "upper", block: int = 512) -> Information:
    """``I(X;T + noise)`` and ``I(T + noise;Y)`` in bits, the noise Gaussian of variance ``s2`` in every unit.

    The noisy layer is a mixture of ``n`` Gaussians. Both bounds on its entropy give
    ``I(X;T) = log n - (1/n) sum_i log sum_j exp(-|t_i - t_j|^2 / (2 v))`` with ``v = s2`` (upper) or ``4 s2``
    (lower), and ``I(T;Y)`` is that minus its mean within the classes. Source: arXiv 1902.09037, 1706.02419.

    Args:
        t: ``(sample, unit)``. y: labels ``(sample,)``. s2: above 0, in squared units of the activations.
        block: rows of the n x n matrix that are held at once.

    Cost: O(n^2 d) time, O(block n) memory, in float64; up to 20,000 samples. Raises InputError above that, for
    ``s2`` of 0 or less, and as :func:`binned_mi`.
    """
    labels = class_labels(as_rows(t, y, ndim=(2,)))
    i_xt, i_ty = kde_labelings(t, labels[None], s2, bound, block)
    return Information(i_xt, float(i_ty[0]))


def kde_labelings(
    t: Matrix, labelings: Int[np.ndarray, "labeling sample"], s2: float, bound: Bound = "upper", block: int = 512
) -> tuple[float, Float[np.ndarray, " labeling"]]:
    """:func:`kde_mi` for several labelings of the same samples, with one look at every pair of samples."""
    if bound not in ("upper", "lower") or not (np.isfinite(s2) and s2 > 0) or block < 1:
        raise InputError(f"s2 is {s2}, bound '{bound}' and block {block}; s2 > 0, upper or lower, and block >= 1")
    rows = all_rows(t, "the kernel estimator")
    variance = float(s2) * (1 if bound == "upper" else 4)
    n, starts = len(rows), np.cumsum([0, *(labeling.max() + 1 for labeling in labelings)])
    columns = torch.from_numpy(labelings + starts[:-1, None])
    member = torch.zeros(n, int(starts[-1]), dtype=torch.float64).scatter_(1, columns.T, 1.0)
    centred = rows - rows.mean(0)
    lengths = (centred * centred).sum(1, keepdim=True)
    left = torch.cat([2 * centred, -lengths, -torch.ones_like(lengths)], 1) / (2 * variance)
    right = torch.cat([centred, torch.ones_like(lengths), lengths], 1).T.contiguous()
    total, within = 0.0, torch.zeros(len(labelings), dtype=torch.float64)
    for start in range(0, n, block):
        stop = min(start + block, n)
        exponents = (left[start:stop] @ right).clamp_(_NO_WEIGHT, 0.0)
        exponents.diagonal(start).zero_()
        sums = exponents.exp_() @ member
        total += float((sums[:, : int(starts[1])].sum(1) / n).log2().sum())
        own = sums.gather(1, columns.T[start:stop]) / member.sum(0)[columns.T[start:stop]]
        within += own.log2().sum(0)
    return max(-total / n, 0.0), (within.numpy() - total) / n


def noise_variance(t: Matrix, s0: float = 1e-3, scaling: Scaling = "max") -> float:
    """The noise of :func:`akde_mi`: ``s0 max|t|`` (max), ``s0 max|t|^2`` (max2), ``s0`` (none), 0.01 (official).

    A layer of zeros, which says nothing under any noise, gets ``s0``.
    """
    if scaling not in ("max", "max2", "none", "official") or not (np.isfinite(s0) and s0 > 0):
        raise InputError(f"s0 is {s0} and scaling '{scaling}'; s0 > 0 and max, max2, none or official are expected")
    if scaling == "official":
        return 0.01
    if scaling == "none":
        return s0
    largest = max(float(batch.values.double().abs().max()) for batch in as_rows(t, ndim=(2,)))
    return s0 * largest ** (1 if scaling == "max" else 2) or s0


def akde_mi(
    t: Matrix, y: Labels, s0: float = 1e-3, scaling: Scaling = "max", bound: Bound = "upper", random_state: int = 0
) -> Information:
    """:func:`kde_mi` whose noise grows with the layer's own activity: ``s2 = s0 max|t|`` by default.

    The paper scales the noise with the layer's largest activation at that step; its constant is not published and
    its code does not scale, so ``s0`` is ours: look at several. ``scaling="max2"`` is the one that does not change when
    the layer is rescaled. ``"official"`` does what the code does: ``s2 = 0.01``, and the estimate is of the absolute
    values of the layer with real noise of standard deviation 0.01 added. Source: arXiv 1902.09037.

    Shapes ``(sample, unit)`` and ``(sample,)``; cost and errors as :func:`kde_mi`.
    """
    s2 = noise_variance(t, s0, scaling)
    if scaling == "official":
        rows = all_rows(t, "the kernel estimator")
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(random_state), dtype=torch.float64)
        t = (rows + 0.01 * noise).abs()
    return kde_mi(t, y, s2, bound)


def saturated(entropy: float, n_samples: int) -> bool:
    """Whether (nearly) every sample is its own symbol, so that the estimate says nothing: ``H >= log2 n - 0.1``."""
    return bool(entropy >= np.log2(n_samples) - 0.1)


def class_labels(rows: Rows) -> Int[np.ndarray, " sample"]:
    """Labels as 0..K-1 in order; refuses absent labels and classes of one sample."""
    if rows.labels is None:
        raise InputError("labels are missing; give one class index for each sample")
    names, labels, counts = np.unique(rows.labels.cpu().numpy(), return_inverse=True, return_counts=True)
    if counts.min() < 2:
        raise InputError(
            f"class {names[counts.argmin()]} has one sample, but at least 2 of each are needed; drop the rare classes"
        )
    return labels.reshape(-1)


def all_rows(t: Matrix, what: str, limit: int = PAIRWISE_LIMIT) -> Float[Tensor, "sample unit"]:
    """Everything in float64, for an estimator that looks at every pair of samples."""
    return as_rows(t, ndim=(2,)).array(limit, what).double()


def numbers(values: Tensor) -> np.ndarray:
    """A batch as float32 or float64, whichever holds it without rounding."""
    small = values.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.bool, torch.int8, torch.uint8)
    return (values.float() if small else values.double()).detach().cpu().numpy()


def _multipliers(n_units: int) -> np.ndarray:
    return np.random.default_rng(0x6E65746C).integers(0, 2**63, n_units, dtype=np.uint64) * 2 + 1


def _numbered(symbols: Iterable[int]) -> tuple[Int[np.ndarray, " sample"], int]:
    names, index = np.unique(np.asarray(symbols), return_inverse=True)
    return index.reshape(-1), len(names)


def _ids(x_ids: Labels, n_samples: int) -> Int[np.ndarray, " sample"]:
    ids = np.asarray(x_ids)
    if ids.shape != (n_samples,) or ids.dtype.kind not in "iu":
        raise InputError(f"x_ids have shape {ids.shape} and dtype {ids.dtype}, expected {n_samples} whole numbers")
    return ids
