"""A name in open words for a vision unit: the phrase that is most informative about the image regions that drive it.

``d* = argmax_d log p(d | E) - lam log p(d)``: likely for these regions ``E``, but not likely anyway. ``p(d | E)`` is a captioner over
region features, ``p(d)`` a language model of the same captions; ``lam = 0`` is the most likely description, ``lam = 1`` pointwise
mutual information. Source: Hernandez et al., "Natural Language Descriptions of Deep Visual Features", arXiv 2201.11114.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from netloupe.core.errors import InputError, NonFiniteError
from netloupe.core.isolation import guest
from netloupe.lenses.naming.captions import Vocabulary
from netloupe.lenses.naming.milan_fitting import Stop, fit_captioner, fit_words
from netloupe.lenses.naming.milan_networks import Captioner, Found, State, WordModel, beam_search, sampled, until_stop
from netloupe.lenses.naming.naming import Evidence, Proposal, Proposer

Strategy = Literal["rerank", "beam", "greedy", "sample", "stepwise"]
STRATEGIES = ("rerank", "beam", "greedy", "sample", "stepwise")
Regions = Float[Tensor, "unit exemplar feature"] | Float[np.ndarray, "unit exemplar feature"]


class Description(NamedTuple):
    """A phrase with ``logp = log p(d | E)``, ``lm_logp = log p(d)`` (both in nats, summed over words and stop) and the weighted
    information ``pmi = logp - lam * lm_logp`` that chose it."""

    text: str
    logp: float
    lm_logp: float
    pmi: float


def pmi_rank(
    cond_logp: Float[np.ndarray, " candidate"], lm_logp: Float[np.ndarray, " candidate"], lam: float = 0.2
) -> tuple[Int[np.ndarray, " candidate"], Float[np.ndarray, " candidate"]]:
    """Candidates, best first, and ``log p(d | E) - lam log p(d)`` of each in the order given; ties keep their order.

    Raises InputError for arrays of different or zero length, NonFiniteError for NaN; warns where ``lam`` is outside [0, 1].
    """
    conditional, prior = np.asarray(cond_logp, dtype=np.float64), np.asarray(lm_logp, dtype=np.float64)
    if conditional.shape != prior.shape or conditional.ndim != 1 or not len(prior):
        raise InputError(
            f"log-probabilities have shapes {conditional.shape} and {prior.shape}; one of each for a candidate is needed"
        )
    if np.isnan(conditional).any() or not np.isfinite(prior).all():
        raise NonFiniteError(
            "log-probabilities hold NaN or an infinite prior; every candidate needs a prior above zero"
        )
    score = conditional - _weight(lam) * prior
    return np.argsort(-score, kind="stable"), score


def _weight(lam: float) -> float:
    if not np.isfinite(lam):
        raise InputError(f"lam is {lam}, expected a number from 0 to 1")
    if not 0 <= lam <= 1:
        warnings.warn(
            f"lam is {lam:g}; below 0 common phrases are preferred, above 1 rare ones at any price", stacklevel=3
        )
    return float(lam)


class LanguageModel:
    """``p(d)``, learned from captions alone.

    Args:
        vocabulary: known words; made from the captions at ``fit`` where None. min_count: rarer words count as unknown.
        hidden, embedding, layers, dropout: of :class:`netloupe.lenses.naming.milan_networks.WordModel`.
        batch_size, learning_rate, max_epochs, patience, holdout: AdamW; training ends when the loss on held-out captions has not fallen for
            ``patience`` epochs, and the best epoch's weights are kept.
    """

    def __init__(
        self, vocabulary: Vocabulary | None = None, *, hidden: int = 512, embedding: int = 128, layers: int = 2, dropout: float = 0.5,
        batch_size: int = 128, learning_rate: float = 1e-3, max_epochs: int = 100, patience: int = 4, holdout: float = 0.1,
        min_count: int = 1, random_state: int = 0,
    ) -> None:  # fmt: skip
        self.vocabulary, self.min_count, self.random_state = vocabulary, min_count, random_state
        self.sizes = {"hidden": hidden, "embedding": embedding, "layers": layers, "dropout": dropout}
        self.training = {
            "batch_size": batch_size, "learning_rate": learning_rate, "max_epochs": max_epochs, "patience": patience,
            "holdout": holdout, "random_state": random_state,
        }  # fmt: skip
        self.network_: WordModel | None = None

    def fit(self, captions: Sequence[str]) -> Self:
        """Learns from single captions. Raises InputError for fewer than two, or for captions without words."""
        if len(captions) < 2:
            raise InputError(
                f"there are {len(captions)} captions; at least two are needed, one of them to stop training by"
            )
        self.vocabulary = self.vocabulary or Vocabulary.of(captions, self.min_count)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.network_ = WordModel(len(self.vocabulary), self.vocabulary.padding, **self.sizes)
        self.history_ = fit_words(self.network_, self.vocabulary, captions, **self.training)
        return self

    def score(self, captions: Sequence[str], *, official: bool = False) -> Float[np.ndarray, " caption"]:
        """``log p(d)`` of each caption in nats, its end included; not divided by length.

        The published code counts one token too many, the filling after the end, for all but the longest of the captions that are scored
        together; ``official=True`` does so too.
        """
        _, vocabulary = self._fitted()
        return (
            self.score_tokens(vocabulary.encode(captions), official=official).numpy() if len(captions) else np.zeros(0)
        )

    def score_tokens(
        self, tokens: Int[Tensor, "sequence step"], *, official: bool = False
    ) -> Float[Tensor, " sequence"]:
        """The same for token numbers without start; what follows stop does not count. float64."""
        network, vocabulary = self._fitted()
        with guest(network), torch.no_grad():
            logp = network(_shifted(tokens, vocabulary.start))
        return _summed(logp, tokens, vocabulary.stop, int(official))

    def _fitted(self) -> tuple[WordModel, Vocabulary]:
        if self.network_ is None or self.vocabulary is None:
            raise InputError("the language model has learned nothing yet; call fit first")
        return self.network_, self.vocabulary


class MilanDescriber:
    """Describes units by the regions that drive them.

    Args:
        vocabulary: known words, or None to take those of the captions. feature_dim: units of a region's features; None: those of ``fit``.
        hidden, embedding, attention, dropout: of :class:`netloupe.lenses.naming.milan_networks.Captioner`.
        regularisation: weight of ``mean_i (1 - sum_t alpha_ti)^2``, which asks for equal attention to all exemplars over a caption.
        official: as in the published code the sum of attention goes on over padding. False: over each caption's own words.
        stop: ``loss`` on held-out units, or a function ``(descriptions, references) -> number``, larger better, such as BLEU from
            sacrebleu; published is BLEU.
        language: options of :class:`LanguageModel`, or one that is fitted already with the same vocabulary.
    """

    def __init__(
        self, vocabulary: Vocabulary | None = None, feature_dim: int | None = None, hidden: int = 512, *, embedding: int = 128,
        attention: int | None = None, dropout: float = 0.5, batch_size: int = 64, learning_rate: float = 1e-3, max_epochs: int = 100,
        patience: int = 4, holdout: float = 0.1, regularisation: float = 1.0, official: bool = False, stop: Stop = "loss",
        min_count: int = 1, length: int = 15, language: LanguageModel | dict[str, Any] | None = None, random_state: int = 0,
    ) -> None:  # fmt: skip
        self.vocabulary, self.feature_dim, self.min_count, self.length = vocabulary, feature_dim, min_count, length
        self.sizes = {"hidden": hidden, "embedding": embedding, "attention": attention, "dropout": dropout}
        self.training = {
            "batch_size": batch_size, "learning_rate": learning_rate, "max_epochs": max_epochs, "patience": patience, "holdout": holdout,
            "regularisation": regularisation, "official": official, "stop": stop, "random_state": random_state,
        }  # fmt: skip
        self.language, self.random_state = language, random_state
        self.network_: Captioner | None = None

    def fit(self, regions: Regions, captions: Sequence[Sequence[str] | str]) -> Self:
        """Learns from region features ``(unit, exemplar, feature)`` and each unit's captions (one or several).

        Whole units are held out to stop by. Cost: an epoch is one pass over all captions. Raises InputError for other shapes, fewer than
        two units or captions without words; NonFiniteError for NaN.
        """
        given = _regions(regions)
        several = [[one] if isinstance(one, str) else list(one) for one in captions]
        if len(several) != len(given) or len(given) < 2 or not all(several):
            raise InputError(
                f"there are captions of {len(several)} units for regions of {len(given)}; every unit needs one, two units at least"
            )
        if self.feature_dim not in (None, given.shape[2]):
            raise InputError(f"regions have {given.shape[2]} features, but feature_dim is {self.feature_dim}")
        every = [one for some in several for one in some]
        vocabulary = self.vocabulary = self.vocabulary or Vocabulary.of(every, self.min_count)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self.network_ = Captioner(len(vocabulary), given.shape[2], **self.sizes)
        self.history_ = fit_captioner(self.network_, vocabulary, given, several, self._greedy, **self.training)
        if not isinstance(self.language, LanguageModel):
            options = {"random_state": self.random_state, **(self.language or {})}
            self.language = LanguageModel(vocabulary, **options).fit(every)
        elif self.language.vocabulary != vocabulary:
            raise InputError("the language model has another vocabulary than the captions; fit it with this one")
        return self

    def describe(
        self,
        regions: Regions,
        strategy: Strategy = "rerank",
        beam: int = 50,
        lam: float = 0.2,
        length: int | None = None,
        *,
        official: bool = False,
    ) -> list[Description]:
        """One description a unit.

        Args:
            strategy: ``rerank``, as published, ranks a beam of ``p(d | E)`` by information; ``beam`` and ``greedy`` take the most likely;
                ``sample`` draws; ``stepwise`` searches by ``log p(w | ., E) - lam log p(w | .)`` word by word.
            beam: candidates a unit (``stepwise`` with 1 is greedy). lam: 0 is likelihood, 1 pointwise mutual information.
            length: most words, the stop included. official: see :meth:`LanguageModel.score`.

        Cost: ``length`` steps of ``unit * beam`` sequences. Raises InputError before ``fit`` and for unknown strategies; warns where
        ``lam`` is outside [0, 1].
        """
        best = self.candidates(regions, strategy, beam, lam, length, official=official)
        return [some[0] for some in best]

    def candidates(
        self,
        regions: Regions,
        strategy: Strategy = "rerank",
        beam: int = 50,
        lam: float = 0.2,
        length: int | None = None,
        *,
        official: bool = False,
    ) -> list[list[Description]]:
        """All that the search kept, for each unit, best first."""
        given, weight = _regions(regions), _weight(lam)
        if strategy not in STRATEGIES or beam < 1 or (length or self.length) < 1:
            raise InputError(
                f"strategy {strategy!r} with beam {beam} is unknown; expected one of {', '.join(STRATEGIES)} and at least 1"
            )
        network, vocabulary, language = self._fitted()
        found: list[list[Description]] = []
        size = max(1, 4096 // beam)
        for start in range(0, len(given), size):
            part = given[start : start + size]
            with guest(network), torch.no_grad():
                sequences = self._search(part, strategy, beam, weight, length or self.length)
            flat = sequences.tokens.flatten(0, 1)
            logp = self._score(part, sequences.tokens)
            prior = language.score_tokens(flat, official=official).reshape(logp.shape)
            found += [
                _ranked(vocabulary, one, seen.numpy(), before.numpy(), order.numpy(), weight, strategy)
                for one, seen, before, order in zip(sequences.tokens, logp, prior, sequences.scores, strict=True)
            ]
        return found

    def score(self, regions: Regions, captions: Sequence[str]) -> Float[np.ndarray, "unit caption"]:
        """``log p(d | E)`` of every caption for every unit, in nats, the end included."""
        given = _regions(regions)
        _, vocabulary, _ = self._fitted()
        tokens = vocabulary.encode(captions)
        return self._score(given, tokens[None].expand(len(given), -1, -1)).numpy()

    def proposer(
        self, n_proposals: int = 5, beam: int = 50, lam: float = 0.2, stack: Callable[[Sequence[Any]], Any] = np.stack
    ) -> Proposer:
        """A source of names for :func:`netloupe.lenses.naming.naming.name_feature`: the best descriptions of the top samples.

        A sample is a region's features ``(feature,)``, or what ``stack`` makes features ``(sample, feature)`` of (images with masks, say).
        """

        def propose(seen: Evidence) -> list[Proposal]:
            (found,) = self.candidates(np.asarray(stack(seen.samples))[None], "rerank", beam, lam)
            kept = {one.text: one.pmi for one in reversed(found) if one.text}
            return sorted((Proposal(*item) for item in kept.items()), key=lambda p: -p.score)[:n_proposals]

        return propose

    def judge(self, text: str, samples: Sequence[Any]) -> Float[np.ndarray, " sample"]:
        """``log p(d | {sample})``, each sample an exemplar by itself: how well the phrase fits it.

        A captioner that proposes and judges grades itself; give :func:`netloupe.lenses.naming.naming.name_feature` another judge where
        there is one.
        """
        return self.score(np.stack([np.asarray(one) for one in samples])[:, None], [text])[:, 0].astype(np.float64)

    def _greedy(self, regions: Tensor) -> list[str]:
        network, vocabulary = self.network_, self.vocabulary
        assert network is not None
        assert vocabulary is not None
        found = beam_search(
            _likely(network, regions), network.begin(regions), vocabulary.start, vocabulary.stop, self.length, 1
        )
        return [vocabulary.decode(row) for row in found.tokens[:, 0].tolist()]

    def _search(self, regions: Tensor, strategy: Strategy, beam: int, lam: float, length: int) -> Found:
        network, vocabulary, language = self._fitted()
        ends = (vocabulary.start, vocabulary.stop, length)
        if strategy == "sample":
            return sampled(_likely(network, regions), network.begin(regions), *ends, self.random_state)
        if strategy != "stepwise":
            return beam_search(
                _likely(network, regions), network.begin(regions), *ends, 1 if strategy == "greedy" else beam
            )
        words, keys = language._fitted()[0], network.key(regions)

        def informative(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            logp, _, seen = network.step(tokens, (state[0], state[1]), regions, keys)
            prior, before = words.step(tokens, (state[2], state[3]))
            return logp - lam * prior, (*seen, *before)

        with guest(words):
            return beam_search(informative, (*network.begin(regions), *words.begin(len(regions))), *ends, beam)

    def _score(self, regions: Tensor, tokens: Int[Tensor, "unit beam step"]) -> Float[Tensor, "unit beam"]:
        network, vocabulary, _ = self._fitted()
        n_units, n_each, n_steps = tokens.shape
        step, given = _likely(network, regions), _shifted(tokens.flatten(0, 1), vocabulary.start)
        with guest(network), torch.no_grad():
            state: State = tuple(part.repeat_interleave(n_each, 0) for part in network.begin(regions))
            found = []
            for at in range(n_steps):
                logp, state = step(given[:, at], state)
                found.append(logp)
        return _summed(torch.stack(found, 1), tokens.flatten(0, 1), vocabulary.stop).reshape(n_units, n_each)

    def _fitted(self) -> tuple[Captioner, Vocabulary, LanguageModel]:
        if self.network_ is None or self.vocabulary is None or not isinstance(self.language, LanguageModel):
            raise InputError("the describer has learned nothing yet; call fit first")
        return self.network_, self.vocabulary, self.language


def _likely(network: Captioner, regions: Tensor) -> Callable[[Tensor, State], tuple[Tensor, State]]:
    keys = network.key(regions)

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logp, _, after = network.step(tokens, state, regions, keys)
        return logp, after

    return step


def _ranked(
    vocabulary: Vocabulary, tokens: Tensor, logp: np.ndarray, prior: np.ndarray, searched: np.ndarray, lam: float, strategy: Strategy
) -> list[Description]:  # fmt: skip
    kept = np.flatnonzero(np.isfinite(searched))
    score = logp - lam * prior
    by = score if strategy == "rerank" else searched
    order = kept[np.argsort(-by[kept], kind="stable")]
    return [
        Description(vocabulary.decode(tokens[at].tolist()), float(logp[at]), float(prior[at]), float(score[at]))
        for at in order
    ]


def _shifted(tokens: Int[Tensor, "sequence step"], start: int) -> Int[Tensor, "sequence step"]:
    """What is given at each step: start, then every token but the last."""
    return torch.cat([torch.full_like(tokens[:, :1], start), tokens[:, :-1]], 1)


def _summed(
    logp: Tensor, tokens: Int[Tensor, "sequence step"], stop: int, beyond: int = 0
) -> Float[Tensor, " sequence"]:
    own = logp.double().gather(-1, tokens[..., None])[..., 0]
    return torch.where(until_stop(tokens, stop, beyond), own, torch.zeros_like(own)).sum(-1)


def _regions(regions: Any) -> Float[Tensor, "unit exemplar feature"]:
    given = torch.as_tensor(regions).detach().float().cpu()
    if given.ndim != 3 or 0 in given.shape:
        raise InputError(
            f"regions have shape {tuple(given.shape)}, expected (unit, exemplar, feature), none of them empty"
        )
    if not bool(torch.isfinite(given).all()):
        raise NonFiniteError("region features hold NaN or infinity; look for an overflow in the backbone")
    return given
