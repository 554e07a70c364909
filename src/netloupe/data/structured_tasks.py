"""Classification tasks whose input geometry and label geometry are both known, with an exact dial between them.

Source: Alleman, Lindsey and Fusi, "Task structure and nonlinearity jointly determine learned representational geometry", arXiv
2401.13558. Every task is a set of conditions: a sample is the mean of its condition and isotropic noise. The dial of
:func:`aligned_task` is a closed form with the same invariant as the paper's construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from netloupe.core.arrangement import centred_kernel
from netloupe.core.errors import InputError

MOST_BITS = 12


@dataclass(frozen=True, eq=False)
class StructuredTask:
    """Conditions with their means, their labels and the noise around the means.

    ``means`` float64 ``(condition, unit)``; ``labels`` float64 ``(condition, target)``, -1 and +1 (of :func:`random_kernel_task`
    without labels: any numbers); ``noise`` is a standard deviation, not a variance. ``seed`` is that of the task; samples have
    one of their own.
    """

    means: Float[np.ndarray, "condition unit"]
    labels: Float[np.ndarray, "condition target"]
    noise: float
    seed: int

    @property
    def n_conditions(self) -> int:
        """P."""
        return len(self.means)

    def sample(
        self, n: int, seed: int = 0
    ) -> tuple[Int[np.ndarray, " sample"], Float[np.ndarray, "sample unit"], Float[np.ndarray, "sample target"]]:
        """Conditions drawn uniformly, noisy inputs, and labels: int64 ``(n,)``, float64 ``(n, unit)`` and ``(n, target)``.

        ``seed`` numbers the draw: the same gives the same samples. Raises InputError for fewer than one.
        """
        if n < 1:
            raise InputError(f"{n} samples were asked for, at least 1 is needed")
        rng = np.random.default_rng((self.seed, seed))
        condition = rng.integers(0, self.n_conditions, n)
        inputs = self.means[condition]
        if self.noise:
            inputs = inputs + self.noise * rng.standard_normal(inputs.shape)
        return condition, inputs, self.labels[condition]


def unstructured_task(
    n_conditions: int = 4,
    dim: int = 120,
    noise: float = 0.3,
    dichotomies: int = 1,
    seed: int = 0,
    center: bool = False,
) -> StructuredTask:
    """Means drawn from N(0, I), labels that are balanced dichotomies: random inputs in general position.

    Args:
        n_conditions: P, even. dichotomies: targets m; the first is +1 for the first half of the conditions, the others are
            drawn, all different. center: subtract the mean over conditions.

    Raises InputError for an odd or too small P, or more targets than there are dichotomies.
    """
    _check(noise, dim)
    if n_conditions < 2 or n_conditions % 2:
        raise InputError(f"n_conditions is {n_conditions}, an even number is needed for labels that are balanced")
    rng = np.random.default_rng((seed, 1))
    means = rng.standard_normal((n_conditions, dim))
    first = np.where(np.arange(n_conditions) < n_conditions // 2, 1.0, -1.0)
    columns = [first]
    known = {tuple(first)}
    if n_conditions <= 16:
        rest = [
            np.where(np.isin(np.arange(n_conditions), [0, *chosen]), 1.0, -1.0)
            for chosen in combinations(range(1, n_conditions), n_conditions // 2 - 1)
        ]
        if dichotomies > len(rest):
            raise InputError(f"{dichotomies} dichotomies were asked for, {n_conditions} conditions have {len(rest)}")
        rest = [column for column in rest if tuple(column) not in known]
        columns += [rest[index] for index in rng.permutation(len(rest))[: dichotomies - 1]]
    while len(columns) < dichotomies:
        column = rng.permutation(first)
        column *= column[0]
        if tuple(column) not in known:
            known.add(tuple(column))
            columns.append(column)
    if dichotomies < 1:
        raise InputError(f"{dichotomies} dichotomies were asked for, at least 1 is needed")
    return StructuredTask(means - means.mean(0) if center else means, np.stack(columns, 1), float(noise), seed)


def separable_xor(dim: int = 120, eps: float = 0.25, noise: float = 0.3, seed: int = 0) -> StructuredTask:
    """XOR of two bits with a third direction along which it is linearly separable by ``eps``.

    ``mu = (2 u1 - 1) q1 + (2 u2 - 1) q2 + eps xor(u) q3`` with orthogonal q of squared length ``dim / 3``: disjoint blocks of
    ``|N(0, 1)|`` entries. ``eps = 0`` is pure XOR, at 1 the label is as separable as each bit. Conditions are the bits 00, 01,
    10, 11; the label is +1 for the two in the middle.

    Raises InputError for ``dim`` that is no multiple of 3, or ``eps`` below 0.
    """
    _check(noise, dim)
    if dim < 3 or dim % 3 or not 0 <= eps < np.inf:
        raise InputError(f"dim is {dim} and eps {eps}; a multiple of 3 and a number of at least 0 are needed")
    block = np.abs(np.random.default_rng((seed, 2)).standard_normal((3, dim // 3)))
    block *= np.sqrt(dim / 3) / np.linalg.norm(block, axis=1, keepdims=True)
    axes = np.zeros((3, dim))
    for index in range(3):
        axes[index, index * (dim // 3) : (index + 1) * (dim // 3)] = block[index]
    bits = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=float)
    xor = -bits[:, 0] * bits[:, 1]
    return StructuredTask(np.column_stack([bits, eps * xor]) @ axes, xor[:, None], float(noise), seed)


def parities(bits: int) -> Float[np.ndarray, "condition parity"]:
    """All ``2^bits - 1`` non-trivial parities of the bits of each condition, -1 and +1, those of fewer bits first.

    Columns are orthogonal to each other and to a constant: a Hadamard matrix without its first column.
    """
    if not 1 <= bits <= MOST_BITS:
        raise InputError(f"bits is {bits}, expected 1 to {MOST_BITS}")
    subsets = [chosen for size in range(1, bits + 1) for chosen in combinations(range(bits), size)]
    signs = 1.0 - 2.0 * ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1)
    return np.stack([signs[:, list(chosen)].prod(1) for chosen in subsets], axis=1)


def aligned_spectrum(
    n_components: int, n_targets: int, alignment: float, seed: int = 0
) -> Float[np.ndarray, " component"]:
    """Weights on the simplex whose cosine with the indicator of the first ``n_targets`` components is ``alignment``.

    ``pi = a u + (1 - a) z``: u uniform on the targets, z a flat Dirichlet draw on the others, and ``a / (1 - a) =
    c / sqrt(1 - c^2) sqrt(m) |z|``, which gives the cosine c exactly.
    """
    if not 0 <= alignment <= 1:
        raise InputError(f"alignment is {alignment}, expected a number from 0 to 1")
    if not 1 <= n_targets < n_components:
        raise InputError(
            f"n_targets is {n_targets} of {n_components} components; at least one, and one component that is no target, are needed"
        )
    z = np.random.default_rng((seed, 3)).dirichlet(np.ones(n_components - n_targets))
    ratio = np.sqrt(n_targets) * np.linalg.norm(z) * alignment
    other = np.sqrt((1 - alignment) * (1 + alignment))
    share = ratio / (ratio + other)
    return np.concatenate([np.full(n_targets, share / n_targets), (1 - share) * z])


def aligned_task(
    bits: int = 3, n_targets: int = 1, dim: int = 120, alignment: float = 0.5, noise: float = 0.3, seed: int = 0
) -> StructuredTask:
    """Orthogonal components: inputs and targets are parities of bits, and their centred kernel alignment is ``alignment``.

    With the parities H of ``2^bits`` conditions, inputs are ``H diag(sqrt(pi))`` on random orthonormal rows times ``sqrt(dim)``,
    targets the first ``n_targets`` columns of H, and pi is :func:`aligned_spectrum`. CKA of inputs and targets is then
    ``<pi, 1_T> / (|pi| sqrt(m))``. The paper's "signal" is ``(P - 1) alignment^2 / n_targets``.

    Raises InputError for an alignment outside [0, 1], ``dim`` below ``2^bits - 1``, or targets that leave no other component.
    """
    table = parities(bits)
    spectrum = aligned_spectrum(table.shape[1], n_targets, alignment, seed)
    _check(noise, dim, table.shape[1])
    means = _expanded(table * np.sqrt(spectrum), dim, np.random.default_rng((seed, 4)))
    return StructuredTask(means, table[:, :n_targets].copy(), float(noise), seed)


def aligned_kernel(
    target_kernel: Float[np.ndarray, "condition condition"] | Any,
    alignment: float,
    max_rank: int | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "condition condition"]:
    """A random positive semi-definite kernel, centred and of trace P, whose CKA with ``target_kernel`` is ``alignment``.

    A kernel with a random eigenbasis orthogonal to constants and a flat Dirichlet spectrum slides along the ray to the target
    (where its own alignment is too low) or to a random kernel orthogonal to the target (too high); where the cosine is met is a
    quadratic equation. With ``max_rank`` all of this happens in a random subspace of so many dimensions, which holds the
    target's unless ``alignment`` is 0.

    Raises InputError for an alignment outside [0, 1], a target that is not symmetric, positive and varying, or a rank that
    leaves no room.
    """
    y = centred_kernel(target_kernel)
    n = len(y)
    values, vectors = np.linalg.eigh((y + y.T) / 2)
    if np.abs(y - y.T).max() > 1e-9 * np.abs(y).max() or values[0] < -1e-9 * values[-1] or values[-1] <= 1e-12:
        raise InputError(
            "the target kernel is not symmetric, positive semi-definite and varying; give Y Y' of some labels"
        )
    if not 0 <= alignment <= 1:
        raise InputError(f"alignment is {alignment}, expected a number from 0 to 1")
    span = vectors[:, values > 1e-9 * values[-1]]
    own, rank = span.shape[1], n - 1 if max_rank is None else max_rank
    free = n - 1 - own  # dimensions that are neither constant nor the target's
    if rank > n - 1 or rank < 1 or (alignment == 0 and not free) or (alignment > 0 and rank < own):
        raise InputError(
            f"max_rank is {max_rank}; {n} conditions with a target of rank {own} leave room for {own if alignment else 1} to "
            f"{n - 1 if alignment else free}"
        )
    rng = np.random.default_rng((seed, 5))
    outside = np.linalg.qr(np.column_stack([np.ones(n), span, rng.standard_normal((n, free))]))[0][:, own + 1 :]
    extra = outside[:, : min(rank, free)] if alignment == 0 else outside[:, : rank - own]
    y = y * (n / np.trace(y))
    if alignment == 0:
        return _random_kernel(extra, rng)
    kernel = _random_kernel(np.column_stack([span, extra]), rng)
    cosine = float(np.vdot(kernel, y) / (np.linalg.norm(kernel) * np.linalg.norm(y)))
    if cosine > alignment and not extra.shape[1]:
        raise InputError(f"max_rank is {rank}, the target's own; a lower alignment needs at least one dimension more")
    goal = y if cosine <= alignment else _random_kernel(extra, rng)
    return _slide(kernel, goal, y, alignment)


def random_kernel_task(
    target_kernel: Float[np.ndarray, "condition condition"] | Any,
    alignment: float = 0.5,
    max_rank: int | None = None,
    seed: int = 0,
    *,
    labels: Float[np.ndarray, "condition target"] | Any = None,
    dim: int = 120,
    noise: float = 0.3,
) -> StructuredTask:
    """Inputs with a random kernel at an exact alignment with the targets' (:func:`aligned_kernel`).

    Args:
        target_kernel: ``(condition, condition)``, ``Y Y'``. labels: ``Y``, -1 and +1; by default eigenvectors of the centred
            kernel times the roots of its eigenvalues, which have that kernel but are no signs.

    Inputs are the kernel's eigenvectors times the roots of its eigenvalues on random orthonormal rows times ``sqrt(dim)``.
    Raises InputError as :func:`aligned_kernel`, for labels with another kernel, and for ``dim`` below the number of conditions.
    """
    kernel = aligned_kernel(target_kernel, alignment, max_rank, seed)
    target = np.asarray(target_kernel, dtype=np.float64)
    _check(noise, dim, len(kernel))
    if labels is None:
        given = _factor(centred_kernel(target))
    else:
        given = np.asarray(labels, dtype=np.float64)
        if given.ndim != 2 or given.shape[0] != len(kernel) or not np.allclose(given @ given.T, target, atol=1e-9):
            raise InputError(
                f"labels of shape {given.shape} do not have the target kernel Y Y'; give those it was made of"
            )
    means = _expanded(_factor(kernel), dim, np.random.default_rng((seed, 6)))
    return StructuredTask(means, given, float(noise), seed)


def _slide(kernel: np.ndarray, goal: np.ndarray, y: np.ndarray, alignment: float) -> np.ndarray:
    """The point of ``(1 - t) kernel + t goal`` whose cosine with ``y`` is ``alignment``."""
    step, length = goal - kernel, np.linalg.norm(y)
    a, b = float(np.vdot(kernel, y)), float(np.vdot(step, y))
    squares = [float(np.vdot(*pair)) for pair in ((kernel, kernel), (kernel, step), (step, step))]
    level = (alignment * length) ** 2
    roots = np.roots([b * b - level * squares[2], 2 * (a * b - level * squares[1]), a * a - level * squares[0]])
    inside = [float(t.real) for t in roots if abs(t.imag) < 1e-6 and -1e-9 <= t.real <= 1 + 1e-9]
    errors = {}
    for t in [*inside, 0.0, 1.0]:
        found = kernel + min(max(t, 0.0), 1.0) * step
        errors[t] = abs(float(np.vdot(found, y)) / (float(np.linalg.norm(found)) * length) - alignment)
    best = min(errors, key=errors.__getitem__)
    return kernel + min(max(best, 0.0), 1.0) * step


def _random_kernel(basis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Trace n, a Dirichlet spectrum, and eigenvectors turned at random inside ``basis``."""
    n, rank = basis.shape
    turn = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    vectors = basis @ turn
    return (vectors * (n * rng.dirichlet(np.ones(rank)))) @ vectors.T


def _factor(kernel: np.ndarray) -> np.ndarray:
    """``(condition, rank)`` with ``F F' = kernel``."""
    values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
    kept = values > 1e-12 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def _expanded(components: np.ndarray, dim: int, rng: np.random.Generator) -> np.ndarray:
    rows = np.linalg.qr(rng.standard_normal((dim, components.shape[1])))[0].T
    return components @ rows * np.sqrt(dim)


def _check(noise: float, dim: int, at_least: int = 1) -> None:
    if not 0 <= noise < np.inf or dim < at_least:
        raise InputError(
            f"noise is {noise} and dim {dim}; a standard deviation of at least 0 and at least {at_least} dimensions are needed"
        )
