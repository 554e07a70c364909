"""Claims about programs on strings and about units that respond to words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from netloupe.core.errors import MissingExtraError
from netloupe.core.study import Bar, Claim
from netloupe.data.find_neurons import WordSpace, encoded_space, entity_responses, make_entities, word_space
from netloupe.data.find_strings import make_strings
from netloupe.data.stdlib_text import stdlib_docstrings
from netloupe.lenses.naming.find import NeighbourWords, Session
from netloupe.lenses.naming.find_scores import CHANCE, UnitTests, entity_triplets, score_strings, unit_tests
from netloupe.lenses.naming.find_strings import StringSearch
from netloupe.lenses.naming.proposals import embedding_judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TESTS = (
    "Notebook",
    "violet sky",
    "Quarter2Past9",
    "ABBA",
    "m",
    "rhythm",
    "  two words ",
    "JazzQuiz",
    "plain text here",
    "x1Y2z3",
)
# Concepts that Python's documentation speaks of; those that the space does not know are left out, and frequent words fill the list.
CONCEPTS = (
    "file", "thread", "socket", "email", "month", "directory", "encoding", "exception", "iterator", "process", "password", "color",
    "window", "parser", "date", "server", "random", "test", "archive", "locale", "float", "widget", "font", "mouse", "signal", "lock",
    "url", "hash", "import", "class", "decorator", "queue", "cookie", "header", "timezone", "database", "menu", "key", "token", "codec",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Sizes: functions ``generated``, ``curves`` corrupted, ``noisy`` curves, ``programs`` of each depth, ``concepts``.

    ``texts``: docstrings read (None: all). ``minilm``: entity units and judge live in MiniLM's space."""

    generated: int = 1000
    curves: int = 400
    noisy: int = 400
    programs: int = 400
    concepts: int = 60
    texts: int | None = 4000
    minilm: bool = False


def string_claim(setting: Setting, seed: int) -> Claim:
    """Two operations against one, at the same calls."""
    sets = {depth: make_strings(setting.programs, seed + depth, compose=float(depth == 2)) for depth in (1, 2)}
    right: dict[tuple[int, int], float] = {}
    exact: dict[tuple[int, int], float] = {}
    for known in (1, 2):
        interpreter = StringSearch(known)
        for depth, functions in sets.items():
            scores = [score_strings(one, interpreter(Session(one.fresh(), max_calls=20)), TESTS) for one in functions]
            right[known, depth] = float(np.mean([one.share for one in scores]))
            exact[known, depth] = float(np.mean([one.all_right for one in scores]))

    def plot(axes: Axes) -> None:
        for known in (1, 2):
            axes.plot([1, 2], [right[known, depth] for depth in (1, 2)], "o-", label=f"search of depth {known}")
        axes.set(
            xticks=[1, 2], xlabel="operations of the program", ylabel="share of test strings right", ylim=(0, 1.05)
        )
        axes.legend(frameon=False, fontsize=7)

    return Claim(
        "composition is harder", "programs of two operations are found less often with the same 20 calls "
        "(fall of the share of test strings right)",
        right[1, 1] - right[1, 2], Bar(">=", 0.1), right[2, 1] - right[2, 2], "a search that tries chains of two",
        note="; ".join(f"search {known}, program {depth}: {right[known, depth]:.1%} of strings, "
                       f"{exact[known, depth]:.1%} of programs wholly"
                       for known, depth in right),
        plot=plot,
    )  # fmt: skip


def make_space(setting: Setting) -> WordSpace:
    """Words of the standard library's documentation, counted; or the same words in MiniLM. Raises MissingExtraError without it."""
    counted = word_space(stdlib_docstrings(limit=setting.texts))
    if not setting.minilm:
        return counted
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "text", "the full preset of this study") from error
    model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
    return encoded_space(counted.words, lambda texts: model.encode(list(texts)))


def chosen_concepts(space: WordSpace, n: int) -> list[str]:
    """``n`` concepts that the space knows: the list, then frequent words."""
    known = [one for one in CONCEPTS if one in space.words]
    step = max((len(space.words) - 100) // (2 * n), 1)
    return list(dict.fromkeys([*known, *(w for w in space.words[100::step])]))[:n]


def hint_claims(setting: Setting, seed: int) -> Iterator[Claim]:
    """What words to begin with are worth."""
    space = make_space(setting)
    concepts = chosen_concepts(space, setting.concepts)
    units = make_entities(concepts, space, seed)
    responses = entity_responses(concepts, space)
    seen = [[*unit.hints, *unit.truth.params] for unit in units]
    triplets = entity_triplets(responses, space.words, without=seen, random_state=seed)
    judge = embedding_judge(lambda text: space.embed([text])[0], lambda words: space.embed(list(words)))
    found: dict[str, UnitTests] = {}
    for name, hints, rounds in (
        ("blind", False, 0),
        ("hints", True, 0),
        ("blind, searching", False, 2),
        ("hints, searching", True, 2),
    ):
        said = [
            NeighbourWords(space, n_rounds=rounds, random_state=1000 * seed + at)(
                Session(unit.fresh(), hints=hints)
            ).description
            for at, unit in enumerate(units)
        ]
        found[name] = unit_tests(said, triplets, judge, seed)
    own = {name: one.own.accuracy for name, one in found.items()}
    wrong = {name: one.shuffled.accuracy for name, one in found.items()}
    note = (
        f"{len(units)} units, {found['hints'].own.n} triplets; accuracy "
        + ", ".join(f"{name} {own[name]:.3f} (shuffled {wrong[name]:.3f})" for name in own)
        + f"; interval with hints {found['hints'].own.low:.3f} to {found['hints'].own.high:.3f}. "
        "Searching: two more rounds of ten neighbours"
    )
    space_said = "MiniLM" if setting.minilm else "words counted from documentation"
    yield Claim(
        "hints describe", "ten hints are enough to describe an entity unit (accuracy of unit tests, chance 1/3)",
        own["hints"], Bar(">=", 0.6), wrong["hints"], "descriptions of other units", note=f"{note}. Space: {space_said}.",
        plot=lambda axes: _accuracies(axes, own, wrong),
    )  # fmt: skip
    yield Claim(
        "hints help", "and better than ten words drawn at random (difference of accuracy)",
        own["hints"] - own["blind"], Bar(">=", 0.1), wrong["hints"] - wrong["blind"], "descriptions of other units",
        plot=lambda axes: _units(axes, found["hints"].each, found["blind"].each),
    )  # fmt: skip
    yield Claim(
        "shuffled is chance", "descriptions given to other units score what guessing does (distance of accuracy from 1/3)",
        abs(wrong["hints"] - CHANCE), Bar("<=", 0.05), abs(own["hints"] - CHANCE), "descriptions of the units themselves",
        plot=lambda axes: _accuracies(axes, own, wrong),
    )  # fmt: skip


def _accuracies(axes: Axes, own: dict[str, float], wrong: dict[str, float]) -> None:
    at = np.arange(len(own))
    axes.bar(at - 0.2, list(own.values()), 0.4, label="own description")
    axes.bar(at + 0.2, list(wrong.values()), 0.4, label="another's", color="0.7")
    axes.axhline(CHANCE, color="0.3", ls=":", lw=1)
    axes.set_xticks(at, [name.replace(", ", ",\n") for name in own], fontsize=7)
    axes.set(ylabel="accuracy of unit tests", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=6)


def _units(axes: Any, hints: Sequence[float], blind: Sequence[float]) -> None:
    axes.plot(np.sort(hints)[::-1], label="hints")
    axes.plot(np.sort(blind)[::-1], label="blind")
    axes.axhline(CHANCE, color="0.6", ls=":", lw=1)
    axes.set(xlabel="unit, best first", ylabel="accuracy of unit tests")
    axes.legend(frameon=False, fontsize=7)
