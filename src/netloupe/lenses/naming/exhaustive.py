"""Names from a list of phrases and any space that texts and regions share: nothing is trained.

The same choice as in :mod:`netloupe.lenses.naming.milan`, ``log p(d | E) - lam log p(d)``, with probabilities from cosines (Hernandez
et al., arXiv 2201.11114, who re-rank descriptions by such a space too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.lenses.naming.milan import Description, pmi_rank
from netloupe.lenses.naming.naming import Judge

Embed = Callable[[Sequence[Any]], Any]


def exhaustive_pmi(
    candidates: Sequence[str],
    regions: Sequence[Sequence[Any]],
    embed_text: Embed,
    embed_region: Embed | None = None,
    *,
    lam: float = 0.2,
    temperature: float = 0.05,
    prior: Float[np.ndarray, " candidate"] | None = None,
) -> list[list[Description]]:
    """All candidates for every unit, best first.

    ``log p(d | E)`` is the log-softmax over candidates of the mean cosine of ``d`` with the unit's regions, divided by ``temperature``;
    ``p(d)`` is its mean over the units given, so that a phrase that fits all of them alike says nothing (information 0 at ``lam`` 1).

    Args:
        candidates: phrases. regions: ``(unit, exemplar, feature)`` in the common space, or for each unit what ``embed_region`` embeds.
        embed_text, embed_region: from a list to rows of numbers: the two towers of a CLIP-like network, or one sentence encoder.
        prior: ``log p(d)`` where it is known better, ``(candidate,)``, such as a language model's.

    Cost: one embedding a phrase and region, ``unit * exemplar * candidate`` products. Raises InputError for an empty list, a single unit
    without a prior, and embeddings of different width; NonFiniteError for NaN.
    """
    if not candidates or not len(regions) or temperature <= 0:
        raise InputError(
            f"{len(candidates)} candidates, {len(regions)} units, temperature {temperature}; at least one each, above 0"
        )
    if prior is None and len(regions) < 2:
        raise InputError("one unit alone says nothing about how common a phrase is; give several units, or a prior")
    texts = _unit_rows(embed_text(list(candidates)), len(candidates), "phrases")
    means = []
    for some in regions:
        rows = _unit_rows(some if embed_region is None else embed_region(list(some)), len(some), "regions")
        if rows.shape[1] != texts.shape[1]:
            raise InputError(
                f"phrases have {texts.shape[1]} numbers and regions {rows.shape[1]}; embed both in one space"
            )
        means.append(rows.mean(0))
    logp = np.asarray(log_softmax(np.stack(means) @ texts.T / temperature, axis=1))
    common = (
        np.asarray(logsumexp(logp, axis=0)) - np.log(len(logp))
        if prior is None
        else np.asarray(prior, dtype=np.float64)
    )
    found = []
    for row in logp:
        order, score = pmi_rank(row, common, lam)
        found.append([Description(str(candidates[i]), float(row[i]), float(common[i]), float(score[i])) for i in order])
    return found


def _unit_rows(values: Any, n: int, what: str) -> Float[np.ndarray, "row feature"]:
    rows = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != n or not n:
        raise InputError(f"{what} were embedded as {rows.shape}, expected ({n}, feature) with at least one row")
    if not np.isfinite(rows).all():
        raise NonFiniteError(f"the embeddings of {what} hold NaN or infinity")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-300)


def rank_by_judge(
    candidates: Sequence[Description],
    judge: Judge,
    regions: Sequence[Any],
    images: Sequence[Any] | None = None,
    lam: float = 0.5,
) -> list[Description]:
    """A unit's candidates, ranked by how well a judge finds that they fit its regions; best first, ties in the order given.

    The score is ``(1 - lam) sum_i judge(d, region_i) + lam sum_i judge(d, image_i)``, with the whole images where they are given:
    the published re-ranker, whose judge is CLIP with attention masked to the region (``lam`` .5 and, by default there, 1; candidates from a
    beam of 1000). The candidates keep their log-probabilities.

    Raises InputError for an empty list, or ``lam`` outside [0, 1].
    """
    if not candidates or not len(regions) or not 0 <= lam <= 1:
        raise InputError(
            f"{len(candidates)} candidates, {len(regions)} regions, lam {lam}; at least one each and 0 to 1 are needed"
        )
    total = np.array(
        [
            (1 - lam if images is not None else 1.0) * float(np.sum(judge(one.text, regions)))
            + (lam * float(np.sum(judge(one.text, images))) if images is not None else 0.0)
            for one in candidates
        ]
    )
    return [candidates[i] for i in np.argsort(-total, kind="stable")]
