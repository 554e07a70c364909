"""How far features of one class have bunched up, and how regularly the classes stand: the neural-collapse numbers.

Late in training the penultimate features of a class gather at its mean (NC1), the class means form a simplex (NC2),
the classifier's rows point along them (NC3) and the network decides for the nearest class mean (NC4). All four
numbers are zero at full collapse. Source: the perturbation analysis of neural collapse, arXiv 2210.16658, for NC1
and NC2; NC3 and NC4 as in the neural-collapse literature.

Three ways in, same numbers: :func:`neural_collapse` for arrays and stored sites; :func:`collapse_of_moments` on
``LabelMoments`` gathered in one pass; and :class:`CollapseSecondPass`, which reads the data again and so needs neither
the ``d x d`` scatter for NC1 nor anything but the data for NC4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError
from netloupe.core.lens import lens
from netloupe.core.rows import as_rows
from netloupe.core.statistics import LabelMoments, LabelMomentsResult
from netloupe.lenses.geometry.collapse_finding import NeuralCollapse, as_classifier, assemble, check_counts, frame_of
from netloupe.lenses.geometry.collapse_pass import CollapseSecondPass

__all__ = ["CollapseSecondPass", "NeuralCollapse", "collapse_metrics", "collapse_of_moments", "neural_collapse"]


def collapse_of_moments(
    moments: LabelMomentsResult,
    weight: Float[Tensor, "class unit"] | np.ndarray | None = None,
) -> NeuralCollapse:
    """The collapse numbers that one pass over the data can give: all but NC4.

    ``LabelMoments(second="full")`` gives NC1 for ``8 d^2`` bytes of memory; with ``"diagonal"`` or ``"trace"``, which
    need next to none, ``nc1`` is None. Definitions, weighting and errors as in :func:`neural_collapse`.

    Args:
        moments: per-class counts, means and pooled within-class scatter.
        weight: the classifier's weight ``(class, unit)``, for NC3.

    Cost O(K^2 d), and O(K d^2) for NC1.
    """
    check_counts(moments.counts)
    frame = frame_of(moments.means)
    rows, _ = as_classifier(weight, None, (moments.means.shape[0], moments.means.shape[1]))
    nc1 = None
    if moments.second == "full":
        along = np.einsum("iu,iu->i", frame.directions @ moments.within_covariance, frame.directions)
        nc1 = float(np.sum(along / frame.spread**2))
    within = moments.within_total / moments.count
    return assemble(frame, moments.counts, nc1=nc1, within=within, weight=rows, nc4=None)


@lens(
    question="How far has each class gathered at its mean, and how regularly do the means stand?",
    needs=("features", "labels"),
    optional=("weight", "bias"),
    pooled=True,
    min_samples=4,
    invariances=("unit permutation", "sample permutation", "rotation", "scale", "translation"),
)
def neural_collapse(
    features: Float[Tensor, "sample unit"] | Any,
    labels: Int[Tensor, " sample"] | Any,
    weight: Float[Tensor, "class unit"] | np.ndarray | None = None,
    bias: Float[Tensor, " class"] | np.ndarray | None = None,
) -> NeuralCollapse:
    """How collapsed features are: NC1 to NC4, all zero at full collapse.

    With class means ``m_k``, their plain mean ``m``, centred means ``M`` of shape ``(class, unit)``, within scatter
    ``S_w = (1/N) sum (h - m_k)(h - m_k)'`` and between scatter ``S_b = (1/K) sum (m_k - m)(m_k - m)'``:

    * ``nc1 = trace(S_w S_b^+) / K`` and ``nc1_trace = trace(S_w) / trace(S_b)``;
    * ``nc2 = | G / |G| - (I - 11'/K) / sqrt(K - 1) |`` with ``G = M M'`` and Frobenius norms;
    * ``nc3 = | W / |W| - M / |M| |``;
    * ``nc4``: share of samples where ``argmax(W h + b)`` is not the nearest class mean.

    The pseudo-inverse drops directions whose Gram eigenvalue is below ``K`` times float64's rounding of the largest.
    Unbalanced classes: every class weighs the same in ``m`` and ``S_b``, every sample the same in ``S_w`` and ``nc4``.

    Args:
        features: tensor, array or stored site ``(sample, unit)``, or ``(sample, position, unit)`` where every position
            counts as a sample. Take them from training data, in evaluation mode and without augmentation: in training
            mode batch norm changes them. Arithmetic is float64 whatever they come in.
        labels: ``(sample,)`` integers ``0..K-1``, at least two samples of each.
        weight: the classifier's weight ``(class, unit)``.
        bias: the classifier's bias ``(class,)``; needs a weight.

    Without a weight ``nc3`` and ``nc4`` are None. ``nc3`` compares with *centred* means: the bias-free minimiser of
    squared error has an orthogonal frame of means, so its ``nc3`` is ``sqrt(2 - 2 sqrt((K - 1) / K))``, not zero.
    ``nc1`` grows without bound as class means become collinear; read it with ``rank``.

    Cost: two passes, O(N K d + K^2 d) time; O(K d) memory and some 300 MB at most beyond the input; streams. Raises
    InputError for fewer than two classes, a class with fewer than two samples, labels with gaps or none, equal class
    means or shapes that do not fit, NonFiniteError for NaN, infinity or squares that overflow.
    """
    rows = as_rows(features, labels, min_samples=4)
    if rows.labels is None:
        raise InputError("no labels were given, but collapse is measured between classes; give one label per sample.")
    first = LabelMoments(second="trace")
    for batch in rows:
        first.update(batch.values, labels=batch.labels, samples=batch.samples)
    second = CollapseSecondPass.of(first.result(), weight, bias)
    for batch in rows:
        second.update(batch.values, labels=batch.labels, samples=batch.samples)
    return second.result()


collapse_metrics = neural_collapse
