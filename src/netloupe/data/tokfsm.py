"""A finite state machine written in digits: sequences whose law, and whose best possible predictor, are known.

Source: the TokFSM task of Tamkin, Taufeeque and Goodman, "Codebook Features", arXiv 2310.17230. A network that reads it has to
find the states, of which there may be more than it has units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from netloupe.core.errors import InputError
from netloupe.core.isolation import device_of, guest


class TokFSM:
    """Every state has ``n_edges`` distinct successors drawn at random, of equal probability; states are written in digits.

    ``successors`` int64 ``(state, edge)``; state ``i`` is ``n_digits`` digits in base ``base``, the first token of a sequence is
    ``bos = base``, so there are ``vocab = base + 1`` tokens. Raises InputError for sizes below 1 and more edges than states.
    """

    def __init__(self, n_states: int = 100, n_edges: int = 10, base: int = 10, seed: int = 0) -> None:
        if n_states < 2 or base < 2 or not 1 <= n_edges <= n_states:
            raise InputError(
                f"n_states is {n_states}, n_edges {n_edges} and base {base}, expected two states or more, base 2 or more and "
                "1 to n_states edges"
            )
        draw = np.random.default_rng(seed)
        self.n_states, self.n_edges, self.base = n_states, n_edges, base
        self.successors: Int[Tensor, "state edge"] = torch.from_numpy(
            np.stack([draw.choice(n_states, size=n_edges, replace=False) for _ in range(n_states)])
        )
        self.n_digits = 1
        while base**self.n_digits < n_states:
            self.n_digits += 1
        self.bos, self.vocab = base, base + 1

    @cached_property
    def law(self) -> Float[Tensor, "state state"]:
        """Probability of each next state, float64."""
        law = torch.zeros(self.n_states, self.n_states, dtype=torch.float64)
        return law.scatter_(1, self.successors, 1 / self.n_edges)

    @cached_property
    def digits(self) -> Int[Tensor, "state digit"]:
        """How every state is written, the highest digit first."""
        powers = self.base ** torch.arange(self.n_digits - 1, -1, -1)
        return torch.arange(self.n_states)[:, None] // powers % self.base

    def sample(self, n: int, length: int, generator: torch.Generator | int = 0) -> Int[Tensor, "sample position"]:
        """Sequences of ``length`` tokens, BOS included, from a first state drawn evenly; the last state may be cut."""
        if n < 1 or length < 1:
            raise InputError(f"{n} sequences of {length} tokens were asked for, expected at least one of one")
        draw = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
        n_steps = -(-(length - 1) // self.n_digits)
        states = torch.empty(n, max(1, n_steps), dtype=torch.int64)
        states[:, 0] = torch.randint(self.n_states, (n,), generator=draw)
        edges = torch.randint(self.n_edges, (n, states.shape[1]), generator=draw)
        for step in range(1, states.shape[1]):
            states[:, step] = self.successors[states[:, step - 1], edges[:, step]]
        written = self.digits[states].flatten(1)
        return torch.cat([torch.full((n, 1), self.bos), written], 1)[:, :length]

    def batches(self, n: int, length: int) -> Callable[[int, torch.Generator], Int[Tensor, "sample position"]]:
        """Endless fresh sequences for :func:`netloupe.core.training.train`."""
        return lambda step, generator: self.sample(n, length, generator)

    def states(self, tokens: Int[Tensor, "sample position"]) -> Int[Tensor, "sample position"]:
        """The state that ends at each position, -1 where none does (BOS, first digits); sequences begin with BOS."""
        found = torch.full_like(tokens, -1)
        for last in range(self.n_digits, tokens.shape[1], self.n_digits):
            value = torch.zeros_like(tokens[:, 0])
            for token in tokens[:, last - self.n_digits + 1 : last + 1].T:
                value = value * self.base + token
            found[:, last] = value
        return found

    def prompts(self) -> Int[Tensor, "state position"]:
        """BOS and the digits of each state."""
        return torch.cat([torch.full((self.n_states, 1), self.bos), self.digits], 1)

    def next_states(
        self, predict: nn.Module | Callable[[Tensor], Tensor], prompts: Int[Tensor, "prompt position"] | None = None
    ) -> Float[Tensor, "prompt state"]:
        """A network's law of the next state after each prompt (default: after each state), digit by digit, float64.

        ``p(e_1 | prompt) p(e_2 | prompt e_1) ...``, of every state, not normalised over them. ``predict`` gives logits ``(sample,
        position, vocab)``, as they are or as ``logits``. Cost: one pass over ``prompts * base^digit`` sequences a digit.
        """
        context = self.prompts() if prompts is None else prompts
        n, total = len(context), torch.zeros(len(context), 1, dtype=torch.float64)
        for _ in range(self.n_digits):
            logits = _logits(predict, context)[:, -1].double().cpu()
            share = logits.log_softmax(-1)[:, : self.base].view(n, -1, self.base)
            total = (total[..., None] + share).flatten(1)
            tails = torch.arange(self.base).repeat(len(context))[:, None]
            context = torch.cat([context.repeat_interleave(self.base, 0), tails], 1)
        return total[:, : self.n_states].exp()

    def transition_accuracy(self, predict: nn.Module | Callable[[Tensor], Tensor]) -> float:
        """Share of true successors among the ``n_edges`` likeliest next states, mean over states: exact, nothing is drawn."""
        return self.accuracy_of(self.next_states(predict))

    def accuracy_of(self, law: Float[Tensor, "state state"]) -> float:
        """The same of a table of next-state laws. Raises InputError for another shape."""
        if tuple(law.shape) != (self.n_states, self.n_states):
            raise InputError(f"laws of shape {tuple(law.shape)} were given, expected {(self.n_states, self.n_states)}")
        top = law.topk(self.n_edges, 1).indices
        return float(self.legal.gather(1, top).double().mean())

    @cached_property
    def legal(self) -> Bool[Tensor, "state state"]:
        """Which transitions there are."""
        return self.law > 0

    def legal_share(self, tokens: Int[Tensor, "sample position"]) -> float:
        """Share of legal transitions in sequences, such as a network has written; NaN where there is none to judge."""
        ends = self.states(tokens)[:, self.n_digits :: self.n_digits]
        whole = (tokens[:, 1:] < self.base).unfold(1, self.n_digits, self.n_digits).all(-1) & (ends < self.n_states)
        both = whole[:, :-1] & whole[:, 1:]
        judged = self.legal[ends.clamp(0, self.n_states - 1)[:, :-1], ends.clamp(0, self.n_states - 1)[:, 1:]]
        return float(judged[both].double().mean()) if bool(both.any()) else float("nan")

    def entropy_floor(self, length: int) -> float:
        """Least possible loss a token of sequences of ``length`` tokens that start with BOS, in nats: exact.

        The mean over the ``length - 1`` tokens predicted of their entropy given all that came before. A whole state costs ``ln
        n_edges``, the first ``ln n_states``; a state that is cut costs the entropy of its first digits.
        """
        if length < 2:
            raise InputError(f"sequences have {length} tokens, expected at least 2, of which the first is BOS")
        whole, cut = divmod(length - 1, self.n_digits)
        share = torch.full((self.n_states,), 1 / self.n_states, dtype=torch.float64)
        total = math.log(self.n_states) if whole else 0.0
        total += max(0, whole - 1) * math.log(self.n_edges)
        if cut:
            rows = share[None] if not whole else self.law
            for _ in range(whole - 1):
                share = share @ self.law
            prefix = torch.arange(self.n_states) // self.base ** (self.n_digits - cut)
            heads = torch.zeros(len(rows), int(prefix.max()) + 1, dtype=torch.float64).index_add_(1, prefix, rows)
            entropy = -torch.special.xlogy(heads, heads).sum(1)
            total += float(entropy[0] if not whole else share @ entropy)
        return total / (length - 1)

    def bigram_accuracy(self, length: int) -> float:
        """Transition accuracy of the best predictor that sees one token and not where it stands.

        What is left of a network whose attention carries nothing. Its law of the next token given one is the mean over the
        pairs of neighbours in sequences of ``length`` tokens.
        """
        share = torch.full((self.n_states,), 1 / self.n_states, dtype=torch.float64)
        counts = torch.zeros(self.vocab, self.vocab, dtype=torch.float64)
        for position in range(1, length - 1):
            place = (position - 1) % self.n_digits
            if place < self.n_digits - 1:
                counts.index_put_((self.digits[:, place], self.digits[:, place + 1]), share, accumulate=True)
            else:
                joint = share[:, None] * self.law
                first = self.digits[:, 0].expand(self.n_states, -1)
                counts.index_put_((self.digits[:, -1:].expand_as(first), first), joint, accumulate=True)
                share = share @ self.law
        table = (counts / counts.sum(1, keepdim=True).clamp_min(1e-300)).clamp_min(1e-300).log()
        return self.transition_accuracy(lambda tokens: table[tokens])


def _logits(predict: nn.Module | Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    with torch.no_grad():
        if isinstance(predict, nn.Module):
            with guest(predict):
                found = predict(tokens.to(device_of(predict)))
        else:
            found = predict(tokens)
    return found if isinstance(found, Tensor) else found.logits
