"""What follows from facts by rules, and why: the least fixed point with a proof of every conclusion.

Source: the forward reasoner of arXiv 2510.18184. Pure Python on written-out literals, no network.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from netloupe.core.errors import InputError
from netloupe.core.finding import Finding
from netloupe.lenses.control.formula import Atom, Formula, Not, Xor, atoms, literals, negation, strength, support

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIVEN, ABSENT = "given", "nothing derives it (closed world)"
_DEEPEST_INDENT = 30


class Ground(NamedTuple):
    """One rule for certain subjects and one head: ``body`` makes the literal ``head`` hold; ``why`` is what a proof calls it."""

    body: Formula
    head: str
    why: str


class Step(NamedTuple):
    """Why a literal holds: a fact (``given``), a rule, or that nothing derives its opposite; from which others; how strongly."""

    why: str
    premises: tuple[str, ...]
    activation: float
    depth: int


@dataclass(frozen=True, eq=False)
class Proof(Finding):
    """Why one conclusion holds.

    ``steps``: ``(conclusion, why, activation, premises)``, premises as numbers of earlier steps; the last step is the conclusion.
    A step that several others rest on is there once. ``str(proof)`` is an indented tree, :meth:`document` what JSON can hold.
    """

    steps: tuple[tuple[str, str, float, tuple[int, ...]], ...]

    meanings: ClassVar[dict[str, str]] = {
        "depth": "number of rules between the conclusion and the fact farthest from it",
        "n_rules": "number of rules that were applied",
        "n_facts": "number of given facts that it rests on",
        "activation": "of the conclusion: the weakest of the facts that it rests on",
    }

    @property
    def conclusion(self) -> str:
        """The literal that was proved."""
        return self.steps[-1][0]

    @property
    def facts(self) -> tuple[str, ...]:
        """The given facts it rests on."""
        return tuple(text for text, why, _, _ in self.steps if why == GIVEN)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules applied, in order."""
        return tuple(why for _, why, _, premises in self.steps if premises)

    @property
    def depth(self) -> int:
        """Longest way from the conclusion to a fact, in rules."""
        depths: list[int] = []
        for _, _, _, premises in self.steps:
            depths.append(1 + max(depths[one] for one in premises) if premises else 0)
        return depths[-1]

    def summary(self) -> dict[str, float]:
        """The numbers that ``meanings`` explains."""
        return {
            "depth": float(self.depth),
            "n_rules": float(len(self.rules)),
            "n_facts": float(len(self.facts)),
            "activation": self.steps[-1][2],
        }

    def paragraph(self) -> str:
        """The answer in plain words."""
        return (
            f"{self.conclusion} holds at {self.steps[-1][2]:.3g}, by {len(self.rules)} rules, {self.depth} deep, "
            f"from {', '.join(self.facts) or 'no fact'}."
        )

    def document(self) -> dict[str, Any]:
        """As JSON: the conclusion and its steps, premises by number (a tree would repeat what is used twice)."""
        names = ("conclusion", "why", "activation", "premises")
        return {"conclusion": self.conclusion, "steps": [dict(zip(names, step, strict=True)) for step in self.steps]}

    def __str__(self) -> str:
        lines, shown, open_ = [], set(), [(len(self.steps) - 1, 0)]
        while open_:
            number, depth = open_.pop()
            text, why, activation, premises = self.steps[number]
            again = number in shown and premises
            reason = "see above" if again else f"{why}{'' if activation == 1 else f', {activation:.3g}'}"
            lines.append(f"{'  ' * min(depth, _DEEPEST_INDENT)}{text}  [{reason}]")
            if not again:
                shown.add(number)
                open_ += [(one, depth + 1) for one in reversed(premises)]
        return "\n".join(lines)

    def plot(self, axes: Axes) -> None:
        """The tree, facts at the bottom, with an arrow from each premise to what follows."""
        depths: list[int] = []
        for _, _, _, premises in self.steps:
            depths.append(1 + max(depths[one] for one in premises) if premises else 0)
        rows: dict[int, list[int]] = defaultdict(list)
        for number, depth in enumerate(depths):
            rows[depth].append(number)
        place = {one: ((at + 0.5) / len(row), depth) for depth, row in rows.items() for at, one in enumerate(row)}
        for number, (text, why, _, premises) in enumerate(self.steps):
            for one in premises:
                axes.annotate(
                    "",
                    place[number],
                    place[one],
                    arrowprops={"arrowstyle": "->", "color": "0.6", "shrinkA": 9, "shrinkB": 9},
                )
            box = {
                "boxstyle": "round",
                "facecolor": "C0" if why == GIVEN else "w",
                "edgecolor": "C0",
                "alpha": 0.25 if why == GIVEN else 1,
            }
            axes.text(*place[number], text, ha="center", va="center", fontsize=7, bbox=box)
        axes.set(xlim=(0, 1), ylim=(-0.5, max(depths) + 0.5), xticks=[], ylabel="rules away from the facts")


@dataclass(frozen=True, eq=False)
class Derivation:
    """Everything that follows. ``steps``: literal to :class:`Step`, in the order found, strongest first."""

    steps: Mapping[str, Step]

    def __contains__(self, literal: object) -> bool:
        return literal in self.steps

    @property
    def facts(self) -> tuple[str, ...]:
        """What was given."""
        return tuple(one for one, step in self.steps.items() if step.why == GIVEN)

    @property
    def derived(self) -> tuple[str, ...]:
        """What rules added."""
        return tuple(one for one, step in self.steps.items() if step.why not in (GIVEN, ABSENT))

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Concepts that hold together with their opposites; both are kept."""
        return tuple(one for one in self.steps if not one.startswith("not ") and negation(one) in self.steps)

    def activation(self, literal: str) -> float:
        """How strongly a literal holds; 0 where it does not."""
        return self.steps[literal].activation if literal in self.steps else 0.0

    def proof(self, literal: str) -> Proof:
        """Why a literal holds. Raises InputError where it does not."""
        if literal not in self.steps:
            raise InputError(
                f"'{literal}' does not follow; what follows is {', '.join(list(self.steps)[:8]) or 'nothing'}"
            )
        return _proof([(literal, self.steps[literal])], self.steps)

    def explain(self, goal: Formula, why: str = "its parts hold") -> Proof | None:
        """Why a formula holds, by the literals that make it hold; None where it does not."""
        value = strength(goal, self.activation)
        if value <= 0:
            return None
        single = literals(goal)
        if single is not None and len(single) == 1:
            return self.proof(single[0])
        premises = support(goal, self.activation)
        return _proof([(str(goal), Step(why, premises, value, 0))], self.steps)


def _proof(roots: Sequence[tuple[str, Step]], known: Mapping[str, Step]) -> Proof:
    """Steps under a root, each after what it rests on. No recursion, for chains may be long."""
    numbers: dict[str, int] = {}
    done: list[tuple[str, str, float, tuple[int, ...]]] = []
    waiting = [(text, step, False) for text, step in roots]
    while waiting:
        text, step, ready = waiting.pop()
        if text in numbers:
            continue
        if not ready:
            waiting.append((text, step, True))
            waiting += [(one, known[one], False) for one in reversed(step.premises) if one not in numbers]
            continue
        numbers[text] = len(done)
        done.append((text, step.why, step.activation, tuple(numbers[one] for one in step.premises)))
    return Proof(tuple(done))


def saturate(rules: Sequence[Ground], facts: Mapping[str, float], closed: bool = False) -> Derivation:
    """The least fixed point: every rule whose body holds adds its head, until nothing is new.

    A conclusion is as strong as the weakest premise of its strongest proof, and among proofs of one strength the shallowest is kept
    (exactly so where facts are equally strong): conclusions are settled strongest first, as in Knuth's generalisation of Dijkstra's
    algorithm. ``not a`` holds where it is given or derived; ``closed``: also where nothing derives ``a``, the rules then being taken
    level by level. Cost O(size log size) for conjunctions: each literal knows the rules that wait for it.

    Raises InputError for ``closed`` where a concept depends on its own absence, with the way round.
    """
    if not closed:
        return Derivation(_settle(rules, facts, {}))
    settled: dict[str, Step] = {}
    for level in levels(rules):
        named = {str(atom) for rule in level for atom in negative_atoms(rule.body)}
        absent = [one for one in sorted(named) if one not in settled and one not in facts]
        start = {f"not {one}": Step(ABSENT, (), 1.0, 0) for one in absent if f"not {one}" not in {*settled, *facts}}
        settled = _settle(level, {} if settled else facts, {**settled, **start})
    return Derivation(settled or _settle((), facts, {}))


def _settle(rules: Sequence[Ground], facts: Mapping[str, float], known: Mapping[str, Step]) -> dict[str, Step]:
    bodies = [literals(rule.body) for rule in rules]
    missing = [0 if body is None else len(set(body)) for body in bodies]
    waiting: dict[str, list[int]] = defaultdict(list)
    for number, (rule, body) in enumerate(zip(rules, bodies, strict=True)):
        for one in (
            set(body) if body is not None else {w for atom in atoms(rule.body) for w in (str(atom), f"not {atom}")}
        ):
            waiting[one].append(number)
    settled: dict[str, Step] = {}
    heap = [(-value, 0, at, one, Step(GIVEN, (), value, 0)) for at, (one, value) in enumerate(facts.items())]
    heap += [(-step.activation, step.depth, len(heap) + at, one, step) for at, (one, step) in enumerate(known.items())]
    heapq.heapify(heap)
    count = len(heap)
    fired = [False] * len(rules)

    def of(literal: str) -> float:
        return settled[literal].activation if literal in settled else 0.0

    while heap:
        _, _, _, literal, step = heapq.heappop(heap)
        if literal in settled:
            continue
        settled[literal] = step
        for number in waiting.get(literal, ()):
            body = bodies[number]
            missing[number] -= 1
            if fired[number] or (body is not None and missing[number]):
                continue
            value = min(of(one) for one in body) if body is not None else strength(rules[number].body, of)
            if value <= 0:
                continue
            fired[number] = True
            premises = tuple(dict.fromkeys(body)) if body is not None else support(rules[number].body, of)
            new = Step(rules[number].why, premises, value, 1 + max(settled[one].depth for one in premises))
            heapq.heappush(heap, (-value, new.depth, count, rules[number].head, new))
            count += 1
    return settled


def negative_atoms(formula: Formula, positive: bool = True) -> set[Atom]:
    """Atoms whose falsehood can help the formula (or, not ``positive``, its opposite) to hold."""
    if isinstance(formula, Atom):
        return set() if positive else {formula}
    if isinstance(formula, Not):
        return negative_atoms(formula.part, not positive)
    if isinstance(formula, Xor):
        return set(atoms(formula))
    return {atom for part in formula.parts for atom in negative_atoms(part, positive)}


def levels(rules: Sequence[Ground]) -> list[list[Ground]]:
    """Rules in layers, so that what a layer takes for absent was settled before. Raises InputError where there are none."""
    edges: dict[str, set[str]] = defaultdict(set)
    negative: set[tuple[str, str]] = set()
    for rule in rules:
        head = rule.head.removeprefix("not ")
        for atom in atoms(rule.body):
            edges[head].add(str(atom))
        negative |= {(head, str(atom)) for atom in negative_atoms(rule.body)}
    parts = components(edges)
    member = {one: number for number, part in enumerate(parts) for one in part}
    height = [0] * len(parts)
    for number, part in enumerate(parts):  # what a part rests on comes before it
        for one in part:
            for other in edges.get(one, ()):
                inside = member[other] == number
                if inside and (one, other) in negative:
                    way = " -> ".join(cycle_through(edges, one, other))
                    raise InputError(
                        f"{one} depends on its own absence ({way}), so a closed world does not decide it; use world='open'"
                    )
                height[number] = max(height[number], height[member[other]] + ((one, other) in negative))
    layers: dict[int, list[Ground]] = defaultdict(list)
    for rule in rules:
        layers[height[member[rule.head.removeprefix("not ")]]].append(rule)
    return [layers[at] for at in sorted(layers)]


def components(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected parts, each after those it points to (Tarjan's algorithm without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(sorted(edges.get(root, ()))))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(sorted(edges.get(other, ())))))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part = [stack.pop()]
                    while part[-1] != node:
                        part.append(stack.pop())
                    on_stack.difference_update(part)
                    found.append(part)
    return found


def cycle_through(edges: Mapping[str, Iterable[str]], one: str, other: str) -> list[str]:
    """A shortest way ``one -> other -> ... -> one``; empty where there is none."""
    before: dict[str, str] = {other: one}
    queue = [other]
    for node in queue:
        if node == one:
            break
        for following in sorted(edges.get(node, ())):
            if following not in before:
                before[following] = node
                queue.append(following)
    if one not in before:
        return []
    way, node = [one], before[one]
    while node != one:
        way.append(node)
        node = before[node]
    return [one, *way[:0:-1], one]
