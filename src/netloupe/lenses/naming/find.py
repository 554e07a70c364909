"""An explainer in front of a black box: calls within a budget, then an answer that can be graded.

A :class:`Session` stands between an interpreter and a function of :mod:`netloupe.data.find`. An interpreter is any callable
``interpreter(session) -> Answer``. Those here need no network; :class:`LlmInterpreter` lets a language model take the part.
Source: arXiv 2309.03886. How answers are graded: :mod:`netloupe.lenses.naming.find_scores`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netloupe.core.errors import InputError
from netloupe.data.find import Function
from netloupe.data.find_code import SafeCode
from netloupe.data.find_neurons import WordSpace
from netloupe.data.find_strings import run_program

Interval = tuple[float, float]


class BudgetError(InputError):
    """An interpreter asked for more rounds or calls than it has."""


@dataclass(frozen=True)
class Answer:
    """What an interpreter found, and what it cost.

    ``description`` in words. ``code``: a callable, an expression or function in text (read by
    :class:`netloupe.data.find_code.SafeCode`, never run), or string operations ``((name, params), ...)``; None without one.
    ``interval``: where it says that the function behaves otherwise. ``calls``, ``distinct``, ``rounds``: used. ``share_inside``: of the
    distinct inputs, how many lay in the truly corrupted interval: an interval that nobody asked in cannot be found.
    """

    description: str
    code: Any = None
    interval: Interval | None = None
    calls: int = 0
    distinct: int = 0
    rounds: int = 0
    share_inside: float = 0.0

    def function(self) -> Callable[[Any], Any]:
        """The code as something to call. Raises InputError where there is none or it cannot be read."""
        if callable(self.code):
            return self.code
        if isinstance(self.code, str):
            return SafeCode(self.code, floats="def " not in self.code)
        if isinstance(self.code, tuple):
            return lambda text: run_program(self.code, text)
        raise InputError("the answer has no code; it can be graded by its description alone")


class Session:
    """Rounds of inputs and outputs with one function.

    Args:
        function: what to explain. max_rounds: calls of :meth:`ask`. per_round: most inputs a round, None for any number.
        max_calls: most inputs in all, None for any number. hints: whether :attr:`hints` shows the function's.
    """

    def __init__(
        self, function: Function, max_rounds: int = 20, per_round: int | None = None, max_calls: int | None = None, hints: bool = True
    ) -> None:  # fmt: skip
        self._function, self.max_rounds, self.per_round, self.max_calls = function, max_rounds, per_round, max_calls
        self.kind, self.domain = function.truth.kind, function.truth.domain
        self.hints = function.hints if hints else ()
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.rounds = 0
        self.answer: Answer | None = None

    @property
    def calls_left(self) -> float:
        """Inputs that can still be asked; infinity without a limit."""
        return np.inf if self.max_calls is None else self.max_calls - len(self.inputs)

    def ask(self, inputs: Sequence[Any]) -> list[Any]:
        """Outputs for these inputs; one round. Raises BudgetError over the budget, InputError for inputs of the wrong kind."""
        if self.rounds >= self.max_rounds:
            raise BudgetError(f"all {self.max_rounds} rounds are used; finish with what was seen")
        if self.per_round is not None and len(inputs) > self.per_round:
            raise BudgetError(f"{len(inputs)} inputs were asked in one round, which takes {self.per_round}; ask fewer")
        if len(inputs) > self.calls_left:
            raise BudgetError(
                f"{len(inputs)} inputs were asked and {self.calls_left:g} are left of {self.max_calls}; ask fewer"
            )
        found = self._function.many(list(inputs))
        self.rounds += 1
        self.inputs += list(inputs)
        self.outputs += found
        return found

    def finish(self, description: str, code: Any = None, interval: Interval | None = None) -> Answer:
        """Ends the session with an answer, which carries what was used."""
        distinct = list(dict.fromkeys(self.inputs))
        numeric = self.kind == "numeric" and len(distinct) > 0
        inside = float(np.mean(self._function.inside(np.array(distinct, dtype=np.float64)))) if numeric else 0.0
        self.answer = Answer(description, code, interval, len(self.inputs), len(distinct), self.rounds, inside)
        return self.answer


Interpreter = Callable[[Session], Answer]


def grid(domain: Interval, n: int) -> np.ndarray:
    """``n`` equally spaced inputs that avoid the ends of the domain by one half."""
    return np.linspace(domain[0] + 0.5, domain[1] - 0.5, n)


class GridInterpreter:
    """Asks ``n`` points of a grid and joins them by straight lines, held beyond the ends: what sampling alone gives."""

    def __init__(self, n: int = 20) -> None:
        self.n = n

    def __call__(self, session: Session) -> Answer:
        points = grid(session.domain, self.n)
        values = np.asarray(session.ask(points.tolist()), dtype=np.float64)
        kept = np.isfinite(values)
        if not kept.any():
            raise InputError(f"the function has no finite value at any of {self.n} points; there is nothing to join")
        return session.finish(
            f"piecewise linear through {kept.sum()} points", lambda x: np.interp(x, points[kept], values[kept])
        )


class ConstantInterpreter:
    """Says the mean of ``n`` points everywhere: the least that any explanation must beat."""

    def __init__(self, n: int = 20) -> None:
        self.n = n

    def __call__(self, session: Session) -> Answer:
        values = np.asarray(session.ask(grid(session.domain, self.n).tolist()), dtype=np.float64)
        mean = float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else 0.0
        return session.finish(f"about {mean:.4g} everywhere", lambda x: np.full(np.shape(x), mean))


class NeighbourWords:
    """Asks words, then neighbours of the best, and describes an entity unit by the words it responded to most.

    Args:
        space: vectors that say which words are neighbours; they may differ from the unit's own.
        n_words: asked in the first round: the hints, or drawn at random from the space where the session shows none.
        n_rounds: further rounds, each of ``n_words`` neighbours of the best word so far; 0 is a single-shot explainer.
        n_said: words in the description. random_state: of the blind start.
    """

    def __init__(
        self, space: WordSpace, n_words: int = 10, n_rounds: int = 0, n_said: int = 3, random_state: int = 0
    ) -> None:
        self.space, self.n_words, self.n_rounds, self.n_said, self.random_state = (
            space,
            n_words,
            n_rounds,
            n_said,
            random_state,
        )

    def __call__(self, session: Session) -> Answer:
        if session.kind != "entity":
            raise InputError(
                f"this interpreter explains entity units and was given a function of kind '{session.kind}'"
            )
        drawn = np.random.default_rng(self.random_state).permutation(len(self.space.words))[: self.n_words]
        asked = list(session.hints[: self.n_words]) or [self.space.words[at] for at in drawn]
        known = dict(zip(asked, session.ask(asked), strict=True))
        for _ in range(self.n_rounds):
            more = self.space.nearest(max(known, key=lambda word: known[word]), self.n_words, known)
            known |= dict(zip(more, session.ask(more), strict=True))
        best = sorted(known, key=lambda word: -known[word])[: self.n_said]
        strong = [word for word in best if known[word] >= 0.5] or best[:1]
        return session.finish(" ".join(strong))


_TASK = (
    "You are given a function that you can only call. Find out what it does by trying inputs; outputs "
    "may be noisy, and there may be an interval "
    "of inputs in which it behaves differently. To call it, answer with one line 'ASK:' and inputs separated by spaces. You have {rounds} "
    "rounds. When you know enough, answer with three parts: '[DESCRIPTION]:' what the function does, "
    "'[DOMAIN]:' the two ends of an interval of "
    "unusual behaviour, or none, and '[CODE]:' one expression in x (or a function of one argument) that computes it."
)


class LlmInterpreter:
    """Lets a language model explain: any callable from messages ``[{"role", "content"}]`` to a reply.

    Each reply either asks (a line ``ASK: 1 2 3``) or ends with ``[DESCRIPTION]:``, ``[DOMAIN]:``, ``[CODE]:``. A reply that does
    neither ends
    the session as a description. After the last round one reply more is asked for, which must be the answer.
    """

    def __init__(self, generate: Callable[[list[dict[str, str]]], str]) -> None:
        self.generate = generate

    def __call__(self, session: Session) -> Answer:
        hints = f" Some inputs to begin with: {' '.join(session.hints)}." if session.hints else ""
        messages = [{"role": "user", "content": _TASK.format(rounds=session.max_rounds) + hints}]
        while True:
            reply = self.generate(messages)
            asked = re.search(r"^ASK:(.*)$", reply, re.MULTILINE)
            if asked is None or session.rounds >= session.max_rounds:
                return self._finished(session, reply)
            try:
                inputs: list[Any] = [float(one) if session.kind == "numeric" else one for one in asked[1].split()]
                outputs = session.ask(inputs)
                said = "\n".join(f"({one}, {other})" for one, other in zip(inputs, outputs, strict=True))
            except ValueError as error:  # BudgetError too: the model reads what was wrong and may go on
                said = f"That was not possible: {error}"
                session.rounds += 1  # a refused request is a round too, or a stubborn model would ask for ever
            left = session.max_rounds - session.rounds
            messages += [
                {"role": "assistant", "content": reply},
                {
                    "role": "user",
                    "content": f"{said}\n{left} rounds are left." + ("" if left > 0 else " Give your answer now."),
                },
            ]

    @staticmethod
    def _finished(session: Session, reply: str) -> Answer:
        parts = re.split(r"\[(DESCRIPTION|DOMAIN|CODE)\]:?", reply)
        found = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=False)}
        ends = [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", found.get("DOMAIN", ""))]
        code = re.sub(r"^```(?:python)?|```$", "", found.get("CODE", ""), flags=re.MULTILINE).strip()
        interval = (min(ends[:2]), max(ends[:2])) if len(ends) >= 2 else None
        return session.finish(found.get("DESCRIPTION", reply.strip()), code or None, interval)
