"""Which latents stand for which concepts: a dictionary from labelled tokens, and when a concept is active.

Source: arXiv 2510.18184, with the defaults of its code (github ml-research/ActivationReasoning). Codes of any feature map come in:
a :class:`netloupe.core.dictionary.Dictionary`, a probe, neurons. No network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.metrics import roc_curve
from sklearn.tree import DecisionTreeClassifier, export_text

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.statistics.ranking import best_threshold
from netloupe.lenses.control.detection import Detected, Detection, log_decay

Mode = Literal["single", "multi", "relation"]
Order = Literal["unique_first", "unique_only", "original_order"]
_BLOCK = 4096  # tokens scored at a time


class ConceptDictionary(BaseEstimator):
    """Latents for each concept, and the thresholds above which the concept counts as active.

    ``score(f) = mean over texts of (mean code on the concept's tokens - mean code on the other tokens)``. ``single``: the latent of
    the highest score. ``multi``: the best ``k``, weighted by :func:`log_decay`. ``relation``: a decision tree on codes, so a
    concept may need several latents or the absence of one.

    Args:
        mode: as above. k: latents of ``multi``. order: of latents that several concepts want: ``unique_first`` ranks by how few
            do, then by score; ``unique_only`` leaves shared ones out; ``original_order`` ranks by score alone.
        search_top, top: latents kept per token, the largest, in search (10) and in detection (2); None keeps all.
        multi: whether several concepts may be active at one token; else only the strongest is.
        tau: ``auto``: the threshold of best balanced accuracy on the fitted tokens and texts, half-way between two scores; or a number.
        depth: of the trees, which are fitted on tokens with balanced class weights. random_state: of their ties.
        official: as the published code computes: scores averaged over all texts, also those without the concept; ``auto`` at the
            score itself; weights of several latents applied twice to tokens; ``multi`` ignored in scores; trees fitted on each
            text's mean over the concept's tokens and over the others, which is not what they are asked about.

    Negative codes count as 0. Attributes: ``names_``, ``scores_`` ``(concept, latent)``, ``latents_`` and ``weights_`` (one array a
    concept), ``trees_``, ``threshold_`` and ``overall_threshold_`` ``(concept,)``, ``collisions_``: latents of several concepts.
    Cost: O(tokens * search_top * concepts), memory O(tokens * search_top + concepts * latents).
    """

    def __init__(
        self,
        mode: Mode = "single",
        k: int = 10,
        order: Order = "unique_first",
        search_top: int | None = 10,
        top: int | None = 2,
        multi: bool = False,
        tau: float | Literal["auto"] = "auto",
        depth: int = 5,
        official: bool = False,
        random_state: int = 0,
    ) -> None:
        self.mode, self.k, self.order, self.search_top, self.top, self.multi = mode, k, order, search_top, top, multi
        self.tau, self.depth, self.official, self.random_state = tau, depth, official, random_state

    def fit(
        self,
        codes: Float[np.ndarray, "token latent"] | Any,
        labels: Bool[np.ndarray, "token concept"] | Any,
        samples: Int[np.ndarray, " token"] | Any,
        names: Sequence[str],
    ) -> Self:
        """Searches latents and fits thresholds. ``samples``: the text of each token. Leave out padding and special tokens.

        Raises InputError for shapes that do not fit, a concept without a token and options that make no sense.
        """
        z, seen, texts = self._checked(codes, labels, samples)
        if seen.shape[1] != len(names) or len(set(names)) != len(names) or not len(names):
            raise InputError(
                f"{len(names)} names and {seen.shape[1]} columns of labels were given; give one distinct name each"
            )
        absent = [name for name, any_ in zip(names, np.atleast_1d(seen.any(0)).tolist(), strict=True) if not any_]
        if absent:
            raise InputError(f"no token shows {', '.join(absent)}; give examples of every concept")
        self.names_, self.n_latents_ = tuple(names), z.shape[1]
        kept = _largest(z, self.search_top)
        pooled = [_pooled(seen[:, c], texts, self.official) for c in range(len(names))]
        self.scores_ = np.stack([_mean_row(pos @ kept) - _mean_row(neg @ kept) for pos, neg in pooled])
        self._choose()
        pairs = [
            (p @ kept, n @ kept) if self.official else (kept[s], kept[~s])
            for (p, n), s in zip(pooled, seen.T, strict=True)
        ]
        self.trees_ = [self._tree(*pair) for pair in pairs] if self.mode == "relation" else []
        self.digests_ = frozenset(_digests(z, texts))
        local, overall = self.scores(z), self.scores(z, overall=True)
        present = _any_by(seen, texts)
        self.threshold_ = np.array([self._threshold(local[:, c], seen[:, c]) for c in range(len(names))])
        means = _means_by(overall, texts)
        self.overall_threshold_ = np.array([self._threshold(means[:, c], present[:, c]) for c in range(len(names))])
        return self

    def _checked(self, codes: Any, labels: Any, samples: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z = _codes(codes)
        seen, texts = np.asarray(labels), np.asarray(samples)
        if seen.dtype != np.bool_ or seen.ndim != 2 or len(seen) != len(z) or texts.shape != (len(z),):
            raise InputError(
                f"labels are {seen.dtype} of shape {seen.shape} and samples of shape {texts.shape}; codes of shape {z.shape} need bool "
                f"({len(z)}, concept) and ({len(z)},)"
            )
        if (
            self.mode not in ("single", "multi", "relation")
            or self.k < 1
            or (self.tau != "auto" and not np.isfinite(self.tau))
        ):
            raise InputError(
                f"mode is '{self.mode}', k {self.k} and tau {self.tau}; expected single, multi or relation, 1, 'auto'"
            )
        if self.order not in ("unique_first", "unique_only", "original_order"):
            raise InputError(f"order is '{self.order}', expected unique_first, unique_only or original_order")
        return z, seen, np.unique(texts, return_inverse=True)[1]

    def _choose(self) -> None:
        """The latents of every concept in order, and their weights."""
        pool = min(self.search_top or 10, self.n_latents_)
        pool = min(max(pool, self.k if self.mode == "multi" else 1), self.n_latents_)
        ranked = np.argsort(-self.scores_, axis=1, kind="stable")[:, :pool]
        used, counts = np.unique(ranked, return_counts=True)
        shared = dict(zip(used.tolist(), counts.tolist(), strict=True))
        self.latents_: list[np.ndarray] = []
        for c, row in enumerate(ranked):
            good = row if self.official else row[self.scores_[c, row] > 0]
            how_many = np.array([shared[one] for one in good.tolist()])
            if self.order != "original_order":
                good = good[np.argsort(how_many, kind="stable")]
            if self.order == "unique_only":
                good = np.array([one for one in good.tolist() if shared[one] == 1], dtype=good.dtype)
            if not len(good) and self.mode != "relation":
                raise InputError(
                    f"no latent is higher on '{self.names_[c]}' than elsewhere; give more examples or another order"
                )
            self.latents_.append(good)
        wanted = [one[: self.k if self.mode == "multi" else 1] for one in self.latents_]
        self.weights_ = [log_decay(len(one)) if len(one) else np.zeros(0) for one in wanted]
        used, counts = np.unique(np.concatenate(wanted), return_counts=True)
        self.collisions_ = {
            int(one): tuple(name for name, mine in zip(self.names_, wanted, strict=True) if one in mine)
            for one in used[counts > 1]
        }

    def _tree(self, positive: Any, negative: Any) -> DecisionTreeClassifier:
        rows = [part[np.diff(part.indptr) > 0] for part in (positive.tocsr(), negative.tocsr())]
        if min(part.shape[0] for part in rows) < 1:
            raise InputError("a concept has no active latent on it or beside it; give more examples")
        y = np.repeat([1, 0], [part.shape[0] for part in rows])
        tree = DecisionTreeClassifier(max_depth=self.depth, class_weight="balanced", random_state=self.random_state)
        return tree.fit(sparse.vstack(rows).tocsr(), y)

    def _threshold(self, scores: np.ndarray, positive: np.ndarray) -> float:
        if self.tau != "auto":
            return float(self.tau)
        if positive.all() or not positive.any():
            return 0.0
        if not self.official:
            return float(best_threshold(scores[:, None], positive)[0][0])
        false, true, values = roc_curve(positive, scores)
        return float(values[np.argmax(0.5 * (true + 1 - false))])

    def scores(
        self, codes: Float[np.ndarray, "token latent"] | Any, overall: bool = False
    ) -> Float[np.ndarray, "token concept"]:
        """Activation of each concept at each token before the threshold; ``overall``: as it enters the mean of a text."""
        z = _codes(codes)
        if z.shape[1] != self.n_latents_:
            raise InputError(f"codes have {z.shape[1]} latents, the concepts were searched among {self.n_latents_}")
        return np.concatenate([self._scored(z[at : at + _BLOCK], overall) for at in range(0, len(z), _BLOCK)])

    def _scored(self, z: np.ndarray, overall: bool) -> np.ndarray:
        kept = _largest(z, self.top)
        found = np.zeros((len(z), len(self.names_)))
        if self.mode == "relation":
            some = np.flatnonzero(np.diff(kept.indptr) > 0)
            for c, tree in enumerate(self.trees_):
                if len(some):
                    found[some, c] = np.asarray(tree.predict_proba(kept[some]))[:, 1]
        else:
            for c, weights in enumerate(self.weights_):
                w = weights**2 if self.official and not overall else weights
                found[:, c] = kept[:, self.latents_[c][: len(w)]] @ w
        if not self.multi and not self.official:
            best = found.argmax(1)
            found = np.where(np.arange(found.shape[1]) == best[:, None], found, 0.0)
        return found

    def activations(
        self, codes: Float[np.ndarray, "token latent"] | Any, samples: Int[np.ndarray, " token"] | Any | None = None
    ) -> Detected:
        """``max(score - threshold, 0)`` of every token, and of every text's mean score (one text without ``samples``)."""
        local, spread = self.scores(codes), self.scores(codes, overall=True)
        texts = (
            np.zeros(len(local), dtype=int)
            if samples is None
            else np.unique(np.asarray(samples), return_inverse=True)[1]
        )
        means = _means_by(spread, texts)
        return Detected(np.maximum(local - self.threshold_, 0), np.maximum(means - self.overall_threshold_, 0))

    def evaluate(self, codes: Any, labels: Any, samples: Any) -> Detection:
        """Balanced accuracy of every concept on labelled tokens; says how many of these texts were fitted on."""
        z, seen, texts = self._checked(codes, labels, samples)
        found = self.activations(z, texts)
        pairs = [(found.local > 0, seen), (found.overall > 0, _any_by(seen, texts))]
        local, overall = (
            np.array([_balanced(said[:, c], is_[:, c]) for c in range(len(self.names_))]) for said, is_ in pairs
        )
        digests = _digests(z, texts)
        leaked = sum(one in self.digests_ for one in digests) / len(digests)
        return Detection(local, overall, self.threshold_, self.names_, leaked)

    def steering_latents(self, concept: str, k: int = 10) -> Int[np.ndarray, " latent"]:
        """The first ``k`` latents of a concept; of a tree those whose presence speaks for it, from the root down.

        Raises InputError for a concept that is not in the dictionary.
        """
        if concept not in self.names_:
            raise InputError(f"'{concept}' is no concept of the dictionary; there are {', '.join(self.names_)}")
        c = self.names_.index(concept)
        if self.mode != "relation":
            return self.latents_[c][:k]
        tree = self.trees_[c].tree_
        for_it = [
            int(tree.feature[node]) for node in range(tree.node_count)
            if tree.feature[node] >= 0 and np.argmax(tree.value[tree.children_right[node]][0]) == 1
        ]  # fmt: skip
        return np.array(list(dict.fromkeys(for_it))[:k], dtype=int)

    def explain(self, concept: str) -> str:
        """The rule by which a concept is told, as text: its latents with weights, or the paths of its tree."""
        chosen = self.steering_latents(concept, self.k)
        c = self.names_.index(concept)
        if self.mode == "relation":
            return export_text(self.trees_[c], feature_names=[f"latent {one}" for one in range(self.n_latents_)])
        parts = [f"{w:.3g} x latent {one}" for w, one in zip(self.weights_[c], chosen, strict=False)]
        return f"{concept}: {' + '.join(parts)} > {self.threshold_[c]:.4g}"


def _codes(codes: Any) -> np.ndarray:
    z = np.asarray(codes.detach().cpu() if hasattr(codes, "detach") else codes, dtype=np.float64)
    if z.ndim != 2 or 0 in z.shape:
        raise InputError(f"codes have shape {z.shape}, expected (token, latent) with at least one of each")
    if not np.isfinite(z).all():
        raise NonFiniteError("codes hold NaN or infinity; look for an overflow in the network")
    return z


def _largest(z: np.ndarray, k: int | None) -> Any:
    """The ``k`` largest positive codes of each token, sparse."""
    if k is None or k >= z.shape[1]:
        return sparse.csr_matrix(np.maximum(z, 0))
    chosen = np.argpartition(-z, k - 1, axis=1)[:, :k]
    values = np.maximum(np.take_along_axis(z, chosen, 1), 0)
    found = sparse.csr_matrix((values.ravel(), chosen.ravel(), np.arange(0, chosen.size + 1, k)), shape=z.shape)
    found.eliminate_zeros()
    found.sort_indices()
    return found


def _pooled(seen: np.ndarray, texts: np.ndarray, official: bool) -> tuple[Any, Any]:
    """Matrices ``(text, token)`` that average a text's tokens with the concept, and the others.

    A text without such tokens has no row, or (``official``) a row of zeros.
    """
    found = []
    for mask in (seen, ~seen):
        counts = np.bincount(texts[mask], minlength=texts.max() + 1)
        rows, at = texts[mask], np.flatnonzero(mask)
        matrix = sparse.csr_matrix((1 / counts[rows], (rows, at)), shape=(len(counts), len(texts)))
        found.append(matrix if official else matrix[np.flatnonzero(counts > 0)])
    return found[0], found[1]


def _mean_row(rows: Any) -> np.ndarray:
    return np.asarray(rows.sum(0)).ravel() / max(rows.shape[0], 1)


def _means_by(values: np.ndarray, texts: np.ndarray) -> np.ndarray:
    counts = np.bincount(texts)
    return np.stack([np.bincount(texts, weights=column) for column in values.T], axis=1) / counts[:, None]


def _any_by(seen: np.ndarray, texts: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(texts, weights=column) > 0 for column in seen.T], axis=1)


def _balanced(said: np.ndarray, true: np.ndarray) -> float:
    if true.all() or not true.any():
        return float("nan")
    return float((said[true].mean() + 1 - said[~true].mean()) / 2)


def _digests(z: np.ndarray, texts: np.ndarray) -> list[str]:
    order = np.argsort(texts, kind="stable")
    parts = np.split(z[order], np.flatnonzero(np.diff(texts[order])) + 1)
    return [hashlib.sha256(np.ascontiguousarray(np.round(part, 6)).tobytes()).hexdigest() for part in parts]
