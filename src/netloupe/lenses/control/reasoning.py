"""Reading concepts in a running network, reasoning over them, and pushing the network towards what follows.

``h_last <- h_last + factor |h_last| v / |v|`` with ``v = sum over derived concepts, sum_i w_i unit(direction_i)``. Source: arXiv
2510.18184, and its code for the ways to join rules. All changes go through :mod:`netloupe.core.intervene`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netloupe.core.capture import capture, run_all
from netloupe.core.dictionary import Dictionary
from netloupe.core.edits import Edit, replace_with
from netloupe.core.errors import InputError
from netloupe.core.intervene import intervene
from netloupe.core.losses import logits_of
from netloupe.core.unit_sets import by_length
from netloupe.lenses.control.concepts import ConceptDictionary
from netloupe.lenses.control.derivation import Derivation, Proof
from netloupe.lenses.control.detection import log_decay
from netloupe.lenses.control.formula import quoted
from netloupe.lenses.control.rules import Answer, RuleBase, World

How = Literal["sum_shift", "mean_shift", "max_shift", "strongest"]
Tokens = Int[Tensor, "text position"]


@dataclass(frozen=True, eq=False)
class Reading:
    """One text, read. ``detected``: concept to activation; ``sequence``: what was active at each token in turn, without immediate
    repetitions; ``local`` ``(token, concept)``; ``facts`` that went into the ``derivation``."""

    detected: Mapping[str, float]
    sequence: tuple[str, ...]
    local: Float[np.ndarray, "token concept"]
    facts: Mapping[str, float]
    derivation: Derivation
    rules: RuleBase

    def proof(self, literal: str) -> Proof:
        """Why a conclusion holds. Raises InputError where it does not."""
        return self.derivation.proof(literal)

    def answer(self, goal: str, world: World = "closed") -> Answer:
        """Whether a goal holds, straight from what was derived."""
        return self.rules.prove(goal, self.facts, world)

    def heads(self, k: int = 10) -> dict[str, float]:
        """Derived concepts to push towards (1) or away from (-1), the ``k`` strongest, without subjects."""
        derived = sorted(self.derivation.derived, key=lambda one: -self.derivation.activation(one))[:k]
        signs: dict[str, float] = {}
        for one in derived:
            name = one.removeprefix("not ").split("(")[0].strip('"')
            signs.setdefault(name, -1.0 if one.startswith("not ") else 1.0)
        return signs


@dataclass(frozen=True, eq=False)
class Generated:
    """``tokens``: prompt and continuation of each text; ``readings`` of the prompts; ``pushed``: concept to sign for each text."""

    tokens: list[list[int]]
    readings: list[Reading]
    pushed: list[dict[str, float]]


def steering_vector(
    directions: Dictionary | Float[Tensor, "feature unit"],
    concepts: ConceptDictionary,
    wanted: Mapping[str, float] | Sequence[str],
    how: How = "sum_shift",
    k: int = 10,
    strengths: Mapping[str, float] | None = None,
) -> Float[Tensor, " unit"]:
    """The direction towards concepts (and away from those whose sign is negative), of no particular length.

    Args:
        directions: of the latents, from a dictionary or as rows. wanted: concepts, or concept to sign.
        how: each concept gives its first ``k`` latents' unit directions, weighted by :func:`log_decay` with mean ``1/k``.
            ``sum_shift`` adds them all, ``mean_shift`` averages them, ``max_shift`` takes the largest value of each coordinate, as the
            published code does, ``strongest`` keeps the first concept by ``strengths`` alone. The first two differ in length only.

    Raises InputError for a concept without latents, an unknown ``how``, nothing wanted, and latents beyond the directions.
    """
    signs = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 1.0)
    rows = (
        directions.unit_directions()
        if isinstance(directions, Dictionary)
        else nn.functional.normalize(directions, dim=-1)
    )
    if how not in ("sum_shift", "mean_shift", "max_shift", "strongest") or not signs:
        raise InputError(
            f"how is '{how}' with {len(signs)} concepts; expected sum_shift, mean_shift, max_shift or strongest, and one"
        )
    if len(rows) < concepts.n_latents_:
        raise InputError(
            f"there are {len(rows)} directions and {concepts.n_latents_} latents; give the dictionary that encoded them"
        )
    if how == "strongest":
        first = max(signs, key=lambda one: (strengths or {}).get(one, 0.0))
        signs = {first: signs[first]}
    parts = []
    for concept, sign in signs.items():
        latents = concepts.steering_latents(concept, k)
        if not len(latents):
            raise InputError(
                f"'{concept}' has no latent whose presence speaks for it, so there is no direction to push along"
            )
        weights = torch.from_numpy(log_decay(len(latents), 1 / len(latents))).to(rows)
        parts.append(sign * weights[:, None] * rows[torch.from_numpy(latents).to(rows.device)])
    every = torch.cat(parts)
    return every.amax(0) if how == "max_shift" else every.mean(0) if how == "mean_shift" else every.sum(0)


def steering_edit(
    site: str,
    vectors: Float[Tensor, "item unit"],
    factor: float = 0.5,
    last: Int[Tensor, " item"] | Sequence[int] | None = None,
    norm: Literal[1, 2, "off"] = 2,
) -> Edit:
    """Adds to every item its own vector, from position ``last`` (of the prompt) on; None: at the final position alone.

    ``h <- h + factor |h| v / |v|`` in the given norm; ``off``: ``h + factor v``. An item whose vector is 0, and every item where
    ``factor`` is 0, stays bit for bit. Vectors belong to the items of one batch in order: a batch of another size is refused.
    """
    if vectors.ndim != 2 or not bool(torch.isfinite(vectors).all()) or norm not in (1, 2, "off"):
        raise InputError(
            f"vectors have shape {tuple(vectors.shape)} and norm is {norm}; finite (item, unit) and 1, 2 or 'off' are needed"
        )

    def change(h: Tensor) -> Tensor:
        if h.ndim != 3 or len(h) != len(vectors) or h.shape[-1] != vectors.shape[1]:
            raise InputError(
                f"vectors of shape {tuple(vectors.shape)} do not fit site '{site}' of shape {tuple(h.shape)}"
            )
        v = vectors.to(h)[:, None]
        if norm != "off":
            v = v / v.norm(p=norm, dim=-1, keepdim=True).clamp_min(1e-8) * h.norm(p=norm, dim=-1, keepdim=True)
        start = torch.full((len(h),), h.shape[1] - 1) if last is None else torch.as_tensor(last)
        chosen = (torch.arange(h.shape[1]) >= start[:, None]).to(h.device) & bool(factor)
        chosen = chosen & vectors.to(h).any(-1)[:, None]
        return torch.where(chosen[..., None], h + factor * v, h)

    return replace_with(site, change)


class ActivationReasoner:
    """A network with a layer of logic on the features of one site.

    Args:
        model, site: where concepts are read and pushed. encoder: the dictionary whose codes ``concepts`` was fitted on.
        concepts, rules: what can be detected, and what follows from it.
        tokenize: texts to lists of token numbers; without it, ``read`` takes token numbers.
        scope: what counts as a fact: a concept active at some ``token`` (by its largest activation there), or in the mean of the ``text``.
        facts: instead of ``scope``: a function of ``(local activations (token, concept), names)`` that gives the facts of a text.
        special: token numbers that are never looked at (begin, end). world: for derivations. steer_by: the
            dictionary whose latents are pushed, where it is another (found in whole sentences, say); default ``concepts``.

    Raises InputError for widths that do not fit, rules that name a concept nothing gives, and rules that contradict themselves.
    """

    def __init__(
        self,
        model: nn.Module,
        site: str,
        encoder: Dictionary,
        concepts: ConceptDictionary,
        rules: RuleBase,
        *,
        tokenize: Callable[[Sequence[str]], Sequence[Sequence[int]]] | None = None,
        scope: Literal["token", "text"] = "token",
        facts: Callable[[np.ndarray, tuple[str, ...]], Mapping[str, float]] | None = None,
        special: Collection[int] = (),
        world: World = "open",
        steer_by: ConceptDictionary | None = None,
        batch_size: int = 64,
    ) -> None:
        if len(encoder) != concepts.n_latents_:
            raise InputError(
                f"the encoder has {len(encoder)} features, the concepts were searched among {concepts.n_latents_}"
            )
        if scope not in ("token", "text"):
            raise InputError(f"scope is '{scope}', expected token or text")
        found = rules.check(detectable=concepts.names_)
        stops = [one for one in found if one.kind == "contradiction" or (one.kind == "unreachable" and facts is None)]
        if stops:
            raise InputError("; ".join(f"line {one.line}: {one.message}" for one in stops[:3]))
        self.model, self.site, self.encoder, self.concepts, self.rules = model, site, encoder, concepts, rules
        self.tokenize, self.scope, self.facts, self.special = tokenize, scope, facts, tuple(special)
        self.world: World = world
        self.steer_by, self.batch_size = steer_by or concepts, batch_size

    def read(
        self, texts: Sequence[str] | Sequence[Sequence[int]] | Tokens, rules: Sequence[RuleBase] | None = None
    ) -> list[Reading]:
        """Concepts, facts and what follows, for every text; ``rules``: one base for each text instead of the reasoner's.

        Cost: one pass of the network, and encoding. Raises InputError for texts without a tokeniser and for empty ones.
        """
        lists = self._lists(texts)
        if rules is not None and len(rules) != len(lists):
            raise InputError(f"{len(rules)} rule bases were given for {len(lists)} texts")
        found: list[Reading | None] = [None] * len(lists)
        for rows, tokens in by_length(lists).items():
            kept = ~torch.isin(tokens, torch.tensor(self.special, dtype=tokens.dtype))
            for captured in capture(self.model, tokens, [self.site], batch_size=self.batch_size):
                used = kept[captured.samples.cpu()]
                codes = self.encoder.encode(captured[self.site].cpu()[used])
                owner = torch.nonzero(used)[:, 0].numpy()
                active = self.concepts.activations(codes, owner)
                for at, sample in enumerate(captured.samples.tolist()):
                    row = rows[sample]
                    base = self.rules if rules is None else rules[row]
                    found[row] = self._reading(active.local[owner == at], active.overall[at], base)
        return [one for one in found if one is not None]

    def _reading(self, local: np.ndarray, overall: np.ndarray, rules: RuleBase) -> Reading:
        names = self.concepts.names_
        sequence = [names[c] for row in local for c in np.flatnonzero(row > 0)]
        kept = tuple(one for at, one in enumerate(sequence) if at == 0 or sequence[at - 1] != one)
        best = local.max(0) if self.scope == "token" else overall
        detected = {name: float(value) for name, value in zip(names, best, strict=True) if value > 0}
        said = {quoted(name): value for name, value in detected.items()}
        facts = said if self.facts is None else dict(self.facts(local, names))
        return Reading(detected, kept, local, facts, rules.closure(facts, self.world), rules)

    def steering(
        self, readings: Sequence[Reading], how: How = "sum_shift", top: int = 10, k: int = 10
    ) -> tuple[Float[Tensor, "text unit"], list[dict[str, float]]]:
        """One direction for each text, towards its derived concepts; and which these are.

        A derived concept that has no latents of its own cannot be pushed and is left out; a text without any gets zeros.
        """
        vectors, pushed = torch.zeros(len(readings), self.encoder.n_units), []
        for row, reading in enumerate(readings):
            signs = {one: sign for one, sign in reading.heads(top).items() if one in self.steer_by.names_}
            strengths = {one: reading.derivation.activation(one) for one in signs}
            if signs:
                vectors[row] = steering_vector(self.encoder, self.steer_by, signs, how, k, strengths).float()
            pushed.append(signs)
        return vectors, pushed

    def generate(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]] | Tokens,
        n_tokens: int = 20,
        factor: float = 0.5,
        how: How = "sum_shift",
        *,
        detect: Literal["input", "output", "full"] = "input",
        norm: Literal[1, 2, "off"] = 2,
    ) -> Generated:
        """Continues every text greedily while its last position, and every later one, is pushed towards what follows from it.

        ``detect``: read concepts in the prompt, in what was generated so far, or in both; other than ``input`` reads again at every
        token. Cost: ``n_tokens`` passes over texts of growing length. Raises InputError for a network without logits.
        """
        rows = self._lists(texts)
        lengths = [len(row) for row in rows]
        last = torch.tensor(lengths) - 1
        readings = self.read(rows)
        vectors, pushed = self.steering(readings, how)
        for step in range(n_tokens):
            if detect != "input" and step:
                seen = [row if detect == "full" else row[n:] for row, n in zip(rows, lengths, strict=True)]
                vectors, pushed = self.steering(self.read(seen), how)
            width = max(map(len, rows))
            padded = torch.tensor(
                [[*row, *[0] * (width - len(row))] for row in rows]
            )  # on the right: nothing looks at it
            with intervene(self.model, steering_edit(self.site, vectors, factor, last, norm)):
                ((output, _),) = run_all(self.model, padded, batch_size=len(padded))
            logits = logits_of(output)
            if logits is None or logits.ndim != 3:
                raise InputError(
                    "the network gives no logits (sample, position, token); a causal language model is needed"
                )
            for at, row in enumerate(rows):
                row.append(int(logits[at, len(row) - 1].argmax()))
        return Generated(rows, readings, pushed)

    def _lists(self, texts: Any) -> list[list[int]]:
        """Token numbers of every text; InputError where there are none to look at."""
        if not isinstance(texts, Tensor) and len(texts) and isinstance(texts[0], str):
            if self.tokenize is None:
                raise InputError("texts were given and no tokenize; give one to the reasoner, or token numbers")
            texts = self.tokenize(list(texts))
        lists = [[int(token) for token in one] for one in texts]
        if not lists or not all(set(one) - set(self.special) for one in lists):
            raise InputError("a text has no token to look at, or there is no text; give at least one token each")
        return lists
