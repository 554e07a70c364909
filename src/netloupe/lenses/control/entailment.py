"""What must be true in every world in which the rules and facts are: entailment with a refutation as its proof.

The open world of arXiv 2510.18184 as logic defines it: a goal is undecided exactly where neither it nor its opposite is entailed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from netloupe.core.errors import InputError
from netloupe.lenses.control.derivation import GIVEN, Proof
from netloupe.lenses.control.formula import And, Atom, Formula, Not, Xor, atoms, negate, negation

CONTRADICTION = "contradiction"


class Statement(NamedTuple):
    """A formula that is true, and what a proof calls it."""

    formula: Formula
    why: str


def refutation(statements: Sequence[Statement], goal: Formula | None = None, limit: int = 100_000) -> Proof | None:
    """A proof that statements entail ``goal`` (without one: that they contradict each other); None where they do not.

    The opposite of the goal is assumed; what follows is propagated through the formulas as they stand (nothing is multiplied out),
    and where nothing follows, both values of a concept are tried. A step of the proof is a literal with the statement that forces it,
    ``assumed``, or a contradiction of two cases. Exponential in the number of cases in the worst case, and linear where none is needed.

    Raises InputError after ``limit`` cases.
    """
    assumed = [] if goal is None else [Statement(negate(goal), "assumed")]
    search = _Search([*statements, *assumed], limit)
    last = search.run({}, list(range(len(search.statements))))
    if last is None:
        return None
    steps = search.steps
    if goal is not None:
        steps = [*steps, (str(goal), "the opposite is impossible", 1.0, (last,))]
    return _pruned(steps)


class _Case(NamedTuple):
    """A concept of which both values are tried: how much was known before, the formula that left it open, how the first ended."""

    name: str
    known: int
    place: int
    first: int | None = None


class _Search:
    """One search; ``steps`` grows with everything that was concluded on the way, ``known`` maps literals to steps."""

    def __init__(self, statements: Sequence[Statement], limit: int) -> None:
        self.statements, self.limit, self.cases = list(statements), limit, 0
        self.steps: list[tuple[str, str, float, tuple[int, ...]]] = []
        self.places: dict[str, list[int]] = defaultdict(list)
        for number, statement in enumerate(self.statements):
            for name in dict.fromkeys(map(str, atoms(statement.formula))):
                self.places[name].append(number)

    def run(self, known: dict[str, int], dirty: Sequence[int]) -> int | None:
        """The step that is a contradiction, or None where a world is possible. ``known`` is changed."""
        clash = self.propagate(known, deque(dirty))
        cases: list[_Case] = []  # no recursion, for there may be thousands
        while True:
            if clash is None:
                name, place = self.undecided(known, cases[-1].place if cases else 0)
                if name is None:
                    return None
                self.cases += 1
                if self.cases > self.limit:
                    raise InputError(
                        f"more than {self.limit} cases had to be tried; ask about fewer rules or raise limit"
                    )
                cases.append(_Case(name, len(known), place))
                literal = name
            else:
                while cases and cases[-1].first is not None:
                    case = cases.pop()
                    clash = self.add(CONTRADICTION, f"either way of {case.name}", (case.first or 0, clash))
                if not cases:
                    return clash
                cases[-1] = case = cases[-1]._replace(first=clash)
                while len(known) > case.known:  # a dictionary gives back last what came last
                    known.popitem()
                literal = f"not {case.name}"
            known[literal] = self.add(literal, "assumed", ())
            clash = self.propagate(known, deque(self.places[cases[-1].name]))

    def add(self, text: str, why: str, premises: tuple[int, ...]) -> int:
        self.steps.append((text, why, 1.0, premises))
        return len(self.steps) - 1

    def propagate(self, known: dict[str, int], queue: deque[int]) -> int | None:
        while queue:
            statement = self.statements[queue.popleft()]
            for forced in _forced(statement.formula, True, known):
                used = tuple(known[one] for one in dict.fromkeys(forced.because))
                if not forced.literal:
                    return self.add(CONTRADICTION, statement.why, used)
                if forced.literal in known:
                    continue
                step = self.add(forced.literal, statement.why, used)
                if negation(forced.literal) in known:
                    return self.add(CONTRADICTION, "both hold", (step, known[negation(forced.literal)]))
                known[forced.literal] = step
                queue.extend(self.places[forced.literal.removeprefix("not ")])
        return None

    def undecided(self, known: dict[str, int], first: int) -> tuple[str | None, int]:
        """A concept without a value in the first formula that is not yet true, and that formula's place; those before are."""
        for place in range(first, len(self.statements)):
            if _value(self.statements[place].formula, known)[0] is None:
                for name in map(str, atoms(self.statements[place].formula)):
                    if name not in known and f"not {name}" not in known:
                        return name, place
        return None, len(self.statements)


class _Forced(NamedTuple):
    """A literal that must hold because of others; without a literal, a contradiction."""

    literal: str
    because: tuple[str, ...]


def _value(formula: Formula, known: dict[str, int]) -> tuple[bool | None, tuple[str, ...]]:
    """True, false or open (Kleene's logic), and the literals that decide it."""
    if isinstance(formula, Atom):
        name = str(formula)
        if name in known:
            return True, (name,)
        return (False, (f"not {name}",)) if f"not {name}" in known else (None, ())
    if isinstance(formula, Not):
        value, because = _value(formula.part, known)
        return (None if value is None else not value), because
    parts = (formula.one, formula.other) if isinstance(formula, Xor) else formula.parts
    values = [_value(part, known) for part in parts]
    together = tuple(one for _, because in values for one in because)
    if isinstance(formula, Xor):
        (one, _), (other, _) = values
        return (None, ()) if one is None or other is None else (one != other, together)
    decisive = not isinstance(formula, And)
    for value, because in values:
        if value is decisive:
            return decisive, because
    return (None, ()) if any(value is None for value, _ in values) else (not decisive, together)


def _forced(formula: Formula, wanted: bool, known: dict[str, int]) -> Iterator[_Forced]:
    """What must hold for the formula to have the wanted value."""
    if isinstance(formula, Not):
        yield from _forced(formula.part, not wanted, known)
        return
    value, because = _value(formula, known)
    if value is wanted:
        return
    if value is not None:
        yield _Forced("", because)
    elif isinstance(formula, Atom):
        yield _Forced(str(formula) if wanted else f"not {formula}", ())
    elif isinstance(formula, Xor):
        for part, rest in ((formula.one, formula.other), (formula.other, formula.one)):
            other, why = _value(rest, known)
            if other is not None:
                yield from _because(_forced(part, other != wanted, known), why)
    elif isinstance(formula, And) == wanted:
        for part in formula.parts:
            yield from _forced(part, wanted, known)
    else:
        values = [_value(part, known) for part in formula.parts]
        if sum(value is None for value, _ in values) == 1:
            why = tuple(one for value, used in values if value is not None for one in used)
            (part,) = (part for part, (value, _) in zip(formula.parts, values, strict=True) if value is None)
            yield from _because(_forced(part, wanted, known), why)


def _because(forced: Iterator[_Forced], why: tuple[str, ...]) -> Iterator[_Forced]:
    for one in forced:
        yield _Forced(one.literal, (*why, *one.because))


def _pruned(steps: Sequence[tuple[str, str, float, tuple[int, ...]]]) -> Proof:
    """The steps that the last one rests on."""
    needed = [False] * len(steps)
    needed[-1] = True
    for number in range(len(steps) - 1, -1, -1):
        if needed[number]:
            for one in steps[number][3]:
                needed[one] = True
    numbers = {old: new for new, old in enumerate(old for old, kept in enumerate(needed) if kept)}
    return Proof(tuple((*steps[old][:3], tuple(numbers[one] for one in steps[old][3])) for old in numbers))


def given(facts: Sequence[str], parsed: Sequence[Formula]) -> list[Statement]:
    """Facts as statements."""
    return [Statement(formula, GIVEN) for _, formula in zip(facts, parsed, strict=True)]
