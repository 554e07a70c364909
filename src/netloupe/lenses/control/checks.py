"""What is looked at before rules run: contradictions, cycles, rules that never fire and heads that detection gives anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from netloupe.lenses.control.derivation import Derivation, Ground, Proof, components, cycle_through, saturate
from netloupe.lenses.control.formula import Formula, atoms, literals, negation


class RuleLike(Protocol):
    """What is asked of a rule here."""

    @property
    def antecedent(self) -> Formula: ...
    @property
    def consequent(self) -> Formula: ...
    @property
    def heads(self) -> tuple[str, ...]: ...
    @property
    def why(self) -> str: ...
    @property
    def line(self) -> int: ...


class Problem(NamedTuple):
    """Something to know before the rules run: ``kind`` is ``contradiction``, ``cycle``, ``unreachable`` or ``answer in facts``.

    ``line`` in the file (0: none), ``message`` in words, ``proofs`` of both sides of a contradiction. A contradiction is an error; the
    other kinds may be meant.
    """

    kind: str
    line: int
    message: str
    proofs: tuple[Proof, ...] = ()


def grounded(rules: Iterable[RuleLike]) -> list[Ground]:
    """Rules with one head each. Raises RuleError for a rule that leaves a choice."""
    return [Ground(rule.antecedent, head, rule.why) for rule in rules for head in rule.heads]


def problems(
    rules: Sequence[RuleLike], facts: Mapping[str, float], detectable: Sequence[str] | None = None
) -> list[Problem]:
    """All of them, errors first; see :meth:`netloupe.lenses.control.rules.RuleBase.check`."""
    definite = [rule for rule in rules if literals(rule.consequent) is not None]
    ground = grounded(definite)
    found = [*_contradictions(ground, definite, facts), *_cycles(rules)]
    if detectable is not None:
        found += _reach(definite, ground, facts, detectable)
    return found


def _contradictions(
    ground: Sequence[Ground], rules: Sequence[RuleLike], facts: Mapping[str, float]
) -> Iterator[Problem]:
    told: set[str] = set()
    derived = saturate(ground, facts)
    yield from _clashes(derived, "the facts", 0, told)
    heads = {rule.head for rule in ground}
    if not any(negation(head) in heads for head in heads):
        return
    for rule in rules:
        body = literals(rule.antecedent)
        if body is None:
            continue
        clash = saturate(ground, dict.fromkeys(body, 1.0))
        if not any(negation(one) in body for one in body):
            yield from _clashes(clash, f"'{rule.antecedent}' alone", rule.line, told)


def _clashes(derived: Derivation, whose: str, line: int, told: set[str]) -> Iterator[Problem]:
    for concept in derived.conflicts:
        if concept in told:
            continue
        told.add(concept)
        proofs = (derived.proof(concept), derived.proof(f"not {concept}"))
        how = [" then ".join(proof.rules) or "given" for proof in proofs]
        message = f"from {whose} follow both {concept} ({how[0]}) and not {concept} ({how[1]})"
        yield Problem("contradiction", line, message, proofs)


def _cycles(rules: Sequence[RuleLike]) -> Iterator[Problem]:
    for way in cycles(rules):
        forward = way[::-1]
        line = next(
            (r.line for r in rules
             if forward[0] in map(str, atoms(r.antecedent)) and forward[1] in map(str, atoms(r.consequent))), 0,
        )  # fmt: skip
        yield Problem("cycle", line, f"these follow from each other: {' -> '.join(forward)}")


def _reach(
    rules: Sequence[RuleLike], ground: Sequence[Ground], facts: Mapping[str, float], detectable: Sequence[str]
) -> Iterator[Problem]:
    heads = {rule.head.removeprefix("not ") for rule in ground}
    names = {atom.name for rule in rules for atom in atoms(rule.consequent)}
    given = {one.removeprefix("not ") for one in facts} | heads
    for rule in rules:
        for atom in atoms(rule.antecedent):
            if str(atom) not in given and atom.name not in detectable:
                message = f"'{rule}' can never fire: nothing gives {atom}, neither detection nor another rule"
                yield Problem("unreachable", rule.line, message)
                break
    for name in sorted(names & set(detectable)):
        yield Problem(
            "answer in facts", 0, f"{name} is derived by rules and detected as well, so the rules may not be needed"
        )


def graph(rules: Iterable[RuleLike]) -> dict[str, set[str]]:
    """From each head to the concepts that its rules name."""
    edges: dict[str, set[str]] = {}
    for rule in rules:
        for head in atoms(rule.consequent):
            edges.setdefault(str(head), set()).update(str(atom) for atom in atoms(rule.antecedent))
    return edges


def cycles(rules: Iterable[RuleLike]) -> list[list[str]]:
    """One way round for each group of concepts that rest on each other, as ``a, b, ..., a`` (each follows from the next)."""
    edges = graph(rules)
    found = []
    for part in components(edges):
        start = min(part)
        inside = {one: edges.get(one, set()) & set(part) for one in part}
        if len(part) == 1 and start not in inside[start]:
            continue
        ways = [cycle_through(inside, start, other) for other in sorted(inside[start])]
        found.append(min((way for way in ways if way), key=len))
    return found
