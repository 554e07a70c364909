"""A text encoder in place of a language model: do a topic's feed-forward units carry the topic?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from netloupe.core.capture import run_all
from netloupe.core.errors import NetloupeError
from netloupe.core.splits import bootstrap, holdout
from netloupe.core.study import Bar, Claim
from netloupe.core.unit_sets import UnitSpace, pooled_responses
from netloupe.data.stdlib_text import stdlib_topics
from netloupe.lenses.control.deactivate import deactivate
from netloupe.lenses.naming.relation_units import rank_units
from netloupe.subjects.models import load_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOPICS = ("asyncio", "email", "tkinter", "unittest", "xml", "logging", "multiprocessing", "importlib")
SHARE, LENGTH, N_RANDOM = 0.03, 48, 4
NAME = "text encoder"
STATEMENT = (
    "in a text encoder a topic's best 3 % of feed-forward units, off, cost the probe of its topic more accuracy than random units "
    "do (lower end of the 95 % interval over texts)"
)
CONTROL = "one random 3 % against the others"


def text_claim(n_texts: int, seed: int) -> Claim:
    """MiniLM on documentation of eight packages, where it is installed."""
    bar = Bar(">", 0.0)
    if not n_texts:
        return Claim(NAME, STATEMENT, None, bar, None, CONTROL, note="the smallest preset reads no text encoder")
    try:
        subject = load_model("minilm")
    except NetloupeError as error:
        return Claim(NAME, STATEMENT, None, bar, None, CONTROL, note=str(error))
    texts, topics = stdlib_topics(TOPICS, n_texts, seed)
    tokens = [subject.tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text in texts]
    y = np.array(topics)
    fit, judge = (rows.numpy() for rows in holdout(len(y), 0.5, labels=y, random_state=seed))
    sites = [name for name, _ in subject.model.named_modules() if name.endswith("intermediate.dense")]
    responses, space = pooled_responses(subject.model, [tokens[row] for row in fit], sites)
    ranking = rank_units(responses, y[fit], random_state=seed)
    probe = LogisticRegression(max_iter=2000).fit(embed(subject.model, [tokens[row] for row in fit]), y[fit])
    asked = [tokens[row] for row in judge]
    k = round(SHARE * len(space))

    def right(units: np.ndarray | None) -> np.ndarray:
        return (probe.predict(embed(subject.model, asked, space, units)) == y[judge]).astype(float)

    base = right(None)
    own = np.zeros(len(judge))
    other = np.zeros(len(judge))
    for topic in ranking.groups:
        lost = base - right(ranking.top(int(topic), k))
        own[y[judge] == topic] = lost[y[judge] == topic]
        other[y[judge] != topic] += lost[y[judge] != topic] / (len(TOPICS) - 1)
    random = np.stack([base - right(space.random(k, seed + index)) for index in range(N_RANDOM)])
    means = (own.mean(), other.mean(), random.mean())
    return Claim(
        NAME, STATEMENT, lower_end(own - random.mean(0), seed), bar, lower_end(random[0] - random[1:].mean(0), seed), CONTROL,
        note=f"{len(judge)} texts, probe right for {base.mean():.3f}; accuracy lost with own units off {means[0]:.3f}, another topic's "
        f"{means[1]:.3f}, random {means[2]:.3f}. {k} of {len(space)} units.",
        plot=lambda axes: _bars(axes, means),
    )  # fmt: skip


def _bars(axes: Axes, means: tuple[float, float, float]) -> None:
    axes.bar(["own topic", "other topic", "random"], means)
    axes.set(ylabel="accuracy lost")


def embed(
    model: nn.Module, tokens: list[list[int]], space: UnitSpace | None = None, units: np.ndarray | None = None
) -> np.ndarray:
    """Mean last state of every text, of length 1, with a set of units off; texts of one length run together."""
    lengths = np.array([len(one) for one in tokens])
    found: np.ndarray | None = None
    with deactivate(model, {} if space is None or units is None else space.split(units)):
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            batch = torch.tensor([tokens[row] for row in rows])
            states = torch.cat([output.last_hidden_state.mean(1) for output, _ in run_all(model, batch)])
            states = torch.nn.functional.normalize(states, dim=1).cpu().numpy()
            found = np.empty((len(tokens), states.shape[1])) if found is None else found
            found[rows] = states
    assert found is not None
    return found


def lower_end(values: np.ndarray, seed: int, n_draws: int = 1000) -> float:
    """Lower end of the 95 % bootstrap interval of a mean."""
    means = [values[rows.numpy()].mean() for rows in bootstrap(len(values), n_draws, random_state=seed)]
    return float(np.quantile(means, 0.025))
