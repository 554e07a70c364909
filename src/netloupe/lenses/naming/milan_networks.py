"""The two networks of MILAN: a captioner that attends over image regions, and a language model of its captions.

Source: Hernandez et al., arXiv 2201.11114; the captioner follows Xu et al., "Show, Attend and Tell", arXiv 1502.03044.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""what a network keeps between tokens; the first axis of every part is the sequence"""


class Captioner(nn.Module):
    """``p(d | E)``: an LSTM that at every word looks at each of the exemplars' region features ``V`` with learned weights.

    ``h_0, c_0 = tanh(W mean_i V_i)``; at each step ``e_i = w . tanh(W_v V_i + W_h h)``, ``alpha = softmax(e)``, ``context =
    sigmoid(W_g h) * sum_i alpha_i V_i``, then an LSTM cell on ``[embedding of the last word, context]`` and a linear map to words.

    Args:
        n_tokens: of the vocabulary with its special ones. feature_dim: units of a region's features. hidden, embedding: sizes.
        attention: size of the space that features and state meet in; by default the smaller of ``hidden`` and ``feature_dim``.
        dropout: before the last map.
    """

    def __init__(
        self, n_tokens: int, feature_dim: int, hidden: int = 512, embedding: int = 128, attention: int | None = None, dropout: float = 0.5
    ) -> None:  # fmt: skip
        super().__init__()
        width = attention or min(hidden, feature_dim)
        self.init_h, self.init_c = nn.Linear(feature_dim, hidden), nn.Linear(feature_dim, hidden)
        self.embedding = nn.Embedding(n_tokens, embedding)
        self.query, self.key, self.energy = nn.Linear(hidden, width), nn.Linear(feature_dim, width), nn.Linear(width, 1)
        self.gate = nn.Linear(hidden, feature_dim)
        self.cell = nn.LSTMCell(embedding + feature_dim, hidden)
        self.dropout, self.output = nn.Dropout(dropout), nn.Linear(hidden, n_tokens)

    def begin(self, regions: Float[Tensor, "unit exemplar feature"]) -> State:
        """State before the first word."""
        mean = regions.mean(1)
        return torch.tanh(self.init_h(mean)), torch.tanh(self.init_c(mean))

    def attend(
        self, state: Float[Tensor, "sequence hidden"], keys: Float[Tensor, "unit exemplar width"]
    ) -> Float[Tensor, "unit beam exemplar"]:
        """Weights of the exemplars, of sum 1; the sequences are those of the first unit, then of the second, and so on."""
        query = self.query(state).reshape(len(keys), -1, 1, keys.shape[-1])
        return self.energy(torch.tanh(query + keys[:, None]))[..., 0].softmax(-1)

    def step(
        self, tokens: Int[Tensor, " sequence"], state: State, regions: Tensor, keys: Tensor
    ) -> tuple[Float[Tensor, "sequence token"], Float[Tensor, "sequence exemplar"], State]:
        """Log-probabilities of the next token, the exemplars' weights, the new state; ``keys`` are ``self.key(regions)``.

        There may be several sequences a unit, next to each other.
        """
        weights = self.attend(state[0], keys)
        context = torch.bmm(weights, regions).flatten(0, 1) * torch.sigmoid(self.gate(state[0]))
        h, c = self.cell(torch.cat([self.embedding(tokens), context], -1), (state[0], state[1]))
        return self.output(self.dropout(h)).log_softmax(-1), weights.flatten(0, 1), (h, c)

    def forward(
        self, regions: Float[Tensor, "caption exemplar feature"], given: Int[Tensor, "caption step"]
    ) -> tuple[Float[Tensor, "caption step token"], Float[Tensor, "caption step exemplar"]]:
        """Log-probabilities of every next token after the ``given`` ones (the first is start), and the exemplars' weights."""
        state, keys = self.begin(regions), self.key(regions)
        found, weights = [], []
        for at in range(given.shape[1]):
            logp, alpha, state = self.step(given[:, at], state, regions, keys)
            found.append(logp)
            weights.append(alpha)
        return torch.stack(found, 1), torch.stack(weights, 1)


class WordModel(nn.Module):
    """``p(d)``: an LSTM of ``layers`` layers over words."""

    def __init__(
        self, n_tokens: int, padding: int, hidden: int = 512, embedding: int = 128, layers: int = 2, dropout: float = 0.5
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, embedding, padding_idx=padding)
        self.lstm = nn.LSTM(embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0, batch_first=True)
        self.output = nn.Linear(hidden, n_tokens)

    def begin(self, n: int) -> State:
        """State before the first word of ``n`` sequences."""
        zero = self.output.weight.new_zeros(n, self.lstm.num_layers, self.lstm.hidden_size)
        return zero, zero

    def step(self, tokens: Int[Tensor, " sequence"], state: State) -> tuple[Float[Tensor, "sequence token"], State]:
        """Log-probabilities of the next token, and the new state."""
        h, c = (part.transpose(0, 1).contiguous() for part in state)
        found, (h, c) = self.lstm(self.embedding(tokens)[:, None], (h, c))
        return self.output(found[:, 0]).log_softmax(-1), (h.transpose(0, 1), c.transpose(0, 1))

    def forward(self, given: Int[Tensor, "caption step"]) -> Float[Tensor, "caption step token"]:
        """Log-probabilities of every next token."""
        return self.output(self.lstm(self.embedding(given))[0]).log_softmax(-1)


class Found(NamedTuple):
    """What a search found, best first: ``tokens`` int64 ``(unit, beam, step)`` and their ``scores`` ``(unit, beam)``."""

    tokens: Int[Tensor, "unit beam step"]
    scores: Float[Tensor, "unit beam"]


Step = Callable[[Tensor, State], tuple[Tensor, State]]


def beam_search(step: Step, state: State, start: int, stop: int, length: int, beam: int) -> Found:
    """The ``beam`` best sequences that greedy extension of the best beginnings finds, for all units at once.

    A sequence that has stopped stays as it is and goes on competing. With ``beam`` at least the number of all sequences the answer is
    exhaustive; with 1 it is greedy.

    Args:
        step: from tokens ``(unit * beam,)`` and a state to log-probabilities (or other sums) of the next token and a new state.
        state: before the first token, its parts with the unit as first axis.

    Cost: ``length`` steps of ``unit * beam`` sequences.
    """
    n = len(state[0])
    rows = torch.arange(n)[:, None]
    logp, state = step(torch.full((n,), start), state)
    n_tokens = logp.shape[1]
    scores, tokens = _best(logp, beam)
    parents = torch.zeros_like(tokens)
    history = tokens[..., None]
    for _ in range(1, length):
        if bool((history[..., -1] == stop).all()):
            break
        n_kept = parents.shape[1]
        spread = (rows * (len(state[0]) // n) + parents).reshape(-1)
        logp, state = step(history[..., -1].reshape(-1), tuple(part[spread] for part in state))
        logp = logp.reshape(n, n_kept, n_tokens)
        ended = history[..., -1] == stop
        only_stop = torch.full((n_tokens,), -torch.inf, dtype=logp.dtype)
        only_stop[stop] = 0
        total = scores[..., None] + torch.where(ended[..., None], only_stop, logp)
        scores, chosen = _best(total.reshape(n, -1), beam)
        parents = chosen // n_tokens
        history = torch.cat([history[rows, parents], (chosen % n_tokens)[..., None]], -1)
    return Found(history, scores)


def _best(values: Tensor, beam: int) -> tuple[Tensor, Tensor]:
    """The largest finite ``beam`` values of each row (at most as many columns as some row has finite ones)."""
    n_finite = int(torch.isfinite(values).sum(1).max())
    return values.topk(min(beam, max(1, n_finite)), 1)


def sampled(step: Step, state: State, start: int, stop: int, length: int, random_state: int) -> Found:
    """One sequence a unit, each token drawn from its probabilities."""
    generator = torch.Generator().manual_seed(random_state)
    n = len(state[0])
    tokens, ended = torch.full((n,), start), torch.zeros(n, dtype=torch.bool)
    history, scores = [], torch.zeros(n)
    for _ in range(length):
        logp, state = step(tokens, state)
        tokens = torch.multinomial(logp.exp(), 1, generator=generator)[:, 0]
        tokens = torch.where(ended, torch.full_like(tokens, stop), tokens)
        scores = scores + torch.where(ended, torch.zeros_like(scores), logp.gather(1, tokens[:, None])[:, 0])
        ended |= tokens == stop
        history.append(tokens)
    return Found(torch.stack(history, 1)[:, None], scores[:, None])


def until_stop(tokens: Int[Tensor, "sequence step"], stop: int, beyond: int = 0) -> Bool[Tensor, "sequence step"]:
    """True up to and with the first stop, and for ``beyond`` tokens after it."""
    after = (tokens == stop).cumsum(-1).clamp(max=1).cumsum(-1)
    return after <= 1 + beyond
