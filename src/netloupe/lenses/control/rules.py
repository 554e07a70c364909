"""Rules over concepts in a small readable file, checked before they run.

A file holds one statement a line; ``#`` starts a comment::

    concept wumpus, tumpus, orange, red, white, austria
    subject Max, Polly
    wumpus(x) is tumpus(x)                  # for every subject
    tumpus(x) and not orange(x) is red(x)
    (red or orange) white is austria        # names side by side: and
    wumpus(Max)                             # a fact

Syntax: :mod:`netloupe.lenses.control.formula`. ``concept`` and ``subject`` lines are optional; where there is a ``concept`` line every
concept must be declared. The variable ``x`` stands for every subject: declared, named in a rule, or named in the facts of a question.
Source: arXiv 2510.18184.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from netloupe.core.errors import InputError, StoreError
from netloupe.lenses.control.checks import Problem, grounded, problems
from netloupe.lenses.control.derivation import ABSENT, GIVEN, Derivation, Ground, Proof, saturate
from netloupe.lenses.control.entailment import Statement, refutation
from netloupe.lenses.control.formula import (
    SPLITS,
    Atom,
    Formula,
    Or,
    RuleError,
    Token,
    atoms,
    flat,
    formula_of,
    last_split,
    literals,
    negate,
    parse,
    quoted,
    read_facts,
    strength,
    substitute,
    tokenise,
    words,
)  # fmt: skip

World = Literal["open", "closed"]
Facts = Mapping[str, float] | Iterable[str] | str


class Answer(NamedTuple):
    """``value`` True, False or None (neither follows, or both do); ``proof`` of the goal, or of its opposite where it is False.

    A None because of a contradiction has the contradiction's proof, any other None has no proof.
    """

    value: bool | None
    proof: Proof | None


@dataclass(frozen=True)
class Rule:
    """``antecedent`` makes ``consequent`` hold; ``line`` of the file, 0 where there is none."""

    antecedent: Formula
    consequent: Formula
    line: int = 0

    @classmethod
    def parse(cls, text: str | Sequence[object], line: int = 0, official: bool = False) -> Self:
        """A rule from text or from a tuple of words, in which tuples are parentheses; the last ``is`` splits it.

        ``official`` as in :func:`netloupe.lenses.control.formula.parse`. Raises RuleError with the place of what cannot be read.
        """
        tokens = tokenise(text, line) if isinstance(text, str) else flat(text)
        at = last_split(tokens)
        if at < 0:
            raise RuleError(f"no 'is' splits a rule in '{_joined(tokens)}'", line, 1)
        for part, column, word in ((tokens[:at], 1, "before"), (tokens[at + 1 :], tokens[at].column, "after")):
            if not part:
                raise RuleError(f"nothing stands {word} '{tokens[at].text}'", line, column)
        return cls(parse(tokens[:at], line, official, tokens[at]), parse(tokens[at + 1 :], line, official), line)

    @property
    def heads(self) -> tuple[str, ...]:
        """The literals that the rule makes hold. Raises RuleError where it leaves a choice, such as ``a or b``."""
        found = literals(self.consequent)
        if found is None:
            raise RuleError(
                f"'{self}' leaves a choice, so nothing definite follows step by step; ask prove(goal, world='open')",
                self.line,
            )
        return found

    @property
    def why(self) -> str:
        """What a proof calls it."""
        return f"line {self.line}: {self}" if self.line else str(self)

    def __str__(self) -> str:
        parts = (self.antecedent, self.consequent)
        return " is ".join(f"({part})" if isinstance(part, Or) else str(part) for part in parts)


class RuleBase:
    """Rules with what they speak of.

    Args:
        rules: rules, or what :meth:`Rule.parse` reads. facts: literals that always hold, or a mapping to how strongly.
        concepts: names that may be used; empty: any. subjects: what the variable stands for. variable: its name.

    Raises RuleError for text that is no rule and for a concept that is not among ``concepts``, with the nearest that is.
    """

    def __init__(
        self,
        rules: Iterable[Rule | str | Sequence[object]] = (),
        *,
        facts: Facts = (),
        concepts: Iterable[str] = (),
        subjects: Iterable[str] = (),
        variable: str = "x",
        official: bool = False,
    ) -> None:
        made = [rule if isinstance(rule, Rule) else Rule.parse(rule, official=official) for rule in rules]
        self.rules: tuple[Rule, ...] = tuple(dict.fromkeys(made))
        self.variable = variable
        self.declared = tuple(dict.fromkeys(concepts))
        self.facts = read_facts(facts)
        spoken = [atom for rule in self.rules for part in (rule.antecedent, rule.consequent) for atom in atoms(part)]
        spoken += [atom for fact in self.facts for atom in atoms(formula_of(fact))]
        self.subjects = tuple(dict.fromkeys([*subjects, *(atom.subject for atom in spoken if atom.subject)]))
        self.subjects = tuple(one for one in self.subjects if one != variable)
        self._ground: dict[tuple[str, ...], list[Ground]] = {}
        self._asked: tuple[Any, list[Statement], Derivation, Proof | None] | None = None
        for rule in self.rules:
            for atom in (*atoms(rule.antecedent), *atoms(rule.consequent)):
                self._require(atom, rule.line)
        for fact in self.facts:
            for atom in atoms(formula_of(fact)):
                self._require(atom)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names that are declared or used, without subjects and the variable."""
        used = (atom.name for rule in self.rules for part in (rule.antecedent, rule.consequent) for atom in atoms(part))
        return tuple(
            one for one in dict.fromkeys([*self.declared, *used]) if one not in (*self.subjects, self.variable)
        )

    def _require(self, atom: Atom, line: int = 0, column: int = 0) -> None:
        known = (*self.declared, *self.subjects, self.variable)
        if self.declared and atom.name not in known:
            raise RuleError(_unknown(atom.name, known), line, column)

    @classmethod
    def parse(cls, text: str, *, variable: str = "x", official: bool = False) -> Self:
        """Rules from the text of a file. Raises RuleError with line and column; a line that cannot be read comes first."""
        rules: list[Rule] = []
        declared: dict[str, list[Token]] = {"concept": [], "subject": []}
        facts: dict[str, float] = {}
        places: list[tuple[str, Token, int]] = []
        for line, written in enumerate(text.splitlines(), start=1):
            kind = written.split()[0] if written.split() else ""
            if kind in declared and last_split(tokenise(written, line, listed=True)) < 0:
                declared[kind] += tokenise(written, line, listed=True)[1:]
                continue
            tokens = tokenise(written, line)
            if not tokens:
                continue
            places += [((*words(token.text), "")[0], token, line) for token in tokens]
            if last_split(tokens) >= 0:
                rules.append(Rule.parse(written, line, official))
                continue
            found = literals(parse(tokens, line, official))
            if found is None:
                raise RuleError("a fact is a concept, 'not' a concept, or several of these with 'and'", line, 1)
            facts |= dict.fromkeys(found, 1.0)
        names = {kind: [token.text.strip('"') for token in tokens] for kind, tokens in declared.items()}
        base = cls(rules, facts={}, subjects=names["subject"], variable=variable)
        known = (*names["concept"], *base.subjects, variable, *SPLITS, "xor", "or", "and", "not", "", ")")
        for name, token, line in places if names["concept"] else ():
            if name not in known:
                raise RuleError(_unknown(name, known), line, token.column)
        return cls(rules, facts=facts, concepts=names["concept"], subjects=names["subject"], variable=variable)

    @classmethod
    def load(cls, path: str | Path, *, variable: str = "x", official: bool = False) -> Self:
        """Rules from a UTF-8 file. Raises StoreError where it cannot be read and RuleError, with its name, where it is no rule file."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"'{path}' cannot be read as text: {getattr(error, 'strerror', None) or error}") from error
        try:
            return cls.parse(text, variable=variable, official=official)
        except RuleError as error:
            placed = RuleError(error.message, error.line, error.column)
            placed.args = (f"{Path(path).name}, {error}",)
            raise placed from None

    def __str__(self) -> str:
        lines = [f"concept {', '.join(map(quoted, self.declared))}"] * bool(self.declared)
        lines += [f"subject {', '.join(map(quoted, self.subjects))}"] * bool(self.subjects)
        return "\n".join([*lines, *map(str, self.rules), *self.facts]) + "\n"

    def __len__(self) -> int:
        return len(self.rules)

    def _all_facts(self, facts: Facts) -> dict[str, float]:
        found = read_facts(facts)
        for fact in found:
            for atom in atoms(formula_of(fact)):
                self._require(atom)
        return {**self.facts, **found}

    def _subjects_with(self, facts: Iterable[str]) -> tuple[str, ...]:
        named = (atom.subject for fact in facts if "(" in fact for atom in atoms(formula_of(fact)))
        return tuple(dict.fromkeys([*self.subjects, *(one for one in named if one)]))

    def instances(self, subjects: Sequence[str] = ()) -> list[Rule]:
        """Every rule, those with the variable once for each subject; one whose variable has no subject is left out."""
        found: list[Rule] = []
        for rule in self.rules:
            used = {
                word for part in (rule.antecedent, rule.consequent) for a in atoms(part) for word in (a.name, a.subject)
            }
            if self.variable not in used:
                found.append(rule)
                continue
            for one in subjects or self.subjects:
                before, after = (substitute(part, self.variable, one) for part in (rule.antecedent, rule.consequent))
                found.append(Rule(before, after, rule.line))
        return list(dict.fromkeys(found))

    def ground(self, subjects: Sequence[str] = ()) -> list[Ground]:
        """Instances with one head each. Raises RuleError for a rule that leaves a choice."""
        key = tuple(subjects)
        if key not in self._ground:
            self._ground = {key: grounded(self.instances(key))}
        return self._ground[key]

    def closure(self, facts: Facts = (), world: World = "open") -> Derivation:
        """Everything that follows from facts step by step, each with its proof (the *forward* reasoner).

        Args:
            facts: literals (``red``, ``not red``, ``wumpus(Max)``), or a mapping to activations, of which positive ones count.
            world: whether what nobody derives is false (``closed``) or unknown (``open``).

        A conclusion is as strong as its weakest antecedent. A concept and its opposite may both follow: ``conflicts`` names them.
        Cost: linear in the size of the rules times a logarithm. Raises InputError where a closed world decides nothing, RuleError for
        rules that leave a choice and for concepts that are not declared.
        """
        return self._closure(self._all_facts(facts), world)

    def _closure(self, facts: Mapping[str, float], world: World) -> Derivation:
        if world not in ("open", "closed"):
            raise InputError(f"world is '{world}', expected open or closed")
        return saturate(self.ground(self._subjects_with(facts)), facts, world == "closed")

    def prove(self, goal: str, facts: Facts = (), world: World = "closed", limit: int = 100_000) -> Answer:
        """Whether a goal, any formula, holds.

        ``closed``: True where it follows and False where it does not. ``open``: True where rules and facts entail it, False where they
        entail its opposite, None where neither or where they contradict each other; rules may then leave choices, and are also
        used backwards. Cost: ``closed`` as :meth:`closure`; ``open`` exponential in the worst case (``limit`` cases).
        """
        wanted, known = self._goal(goal), self._all_facts(facts)
        if world == "open":
            return self._entailed(wanted, known, limit)
        found = self._closure(known, world)
        named = {str(atom) for atom in atoms(wanted)}
        absent = {f"not {one}" for one in named if one not in found and f"not {one}" not in found}
        whole = Derivation({**found.steps, **saturate([], dict.fromkeys(sorted(absent), 1.0)).steps})
        for formula, value in ((wanted, True), (negate(wanted), False)):
            if strength(formula, whole.activation) > 0:
                proof = whole.explain(formula)
                return Answer(value, None if proof is None else _as_absent(proof, absent))
        return Answer(False, None)

    def _entailed(self, goal: Formula, facts: Mapping[str, float], limit: int) -> Answer:
        key = (tuple(facts.items()), limit)
        if self._asked is None or self._asked[0] != key:  # questions mostly come several to a set of facts
            instances = self.instances(self._subjects_with(facts))
            statements = [Statement(formula_of(fact), GIVEN) for fact in facts]
            statements += [Statement(Or((negate(rule.antecedent), rule.consequent)), rule.why) for rule in instances]
            definite = [one for one in instances if literals(one.consequent) is not None]
            forward = saturate(grounded(definite), facts)
            self._asked = (key, statements, forward, refutation(statements, limit=limit))
        _, statements, forward, clash = self._asked
        if clash is not None:
            return Answer(None, clash)
        for value, formula in ((True, goal), (False, negate(goal))):
            proof = forward.explain(formula) or refutation(statements, formula, limit)
            if proof is not None:
                return Answer(value, proof)
        return Answer(None, None)

    def complex(self, goal: str, facts: Facts = (), threshold: float = 0.3) -> Answer:
        """Backward from the goal: only rules that can bear on it are used, and the shallowest proof is kept.

        A fact counts as true above ``threshold`` (.3 as published). Cycles do no harm: rules are collected with a visited set, then the
        least fixed point is taken among them. Not found is False. Raises InputError for a goal that is not a conjunction of literals.
        """
        wanted = literals(self._goal(goal))
        if wanted is None:
            raise InputError(f"the goal '{goal}' leaves a choice; give a concept, its opposite or several with 'and'")
        facts = {one: 1.0 for one, value in self._all_facts(facts).items() if value > threshold}
        by_head: dict[str, list[Ground]] = {}
        for rule in self.ground(self._subjects_with(facts)):
            by_head.setdefault(rule.head, []).append(rule)
        visited, queue = set(wanted), list(wanted)
        for literal in queue:
            for rule in by_head.get(literal, ()):
                body = literals(rule.body)
                needed = body or tuple(w for atom in atoms(rule.body) for w in (str(atom), f"not {atom}"))
                queue += [one for one in dict.fromkeys(needed) if one not in visited]
                visited.update(needed)
        found = saturate([rule for literal in queue for rule in by_head.get(literal, ())], facts)
        proof = found.explain(self._goal(goal))
        return Answer(proof is not None, proof)

    def simple(self, detected: Iterable[str], threshold: float = 0.5) -> list[tuple[Rule, float]]:
        """Rules whose concepts overlap the detected ones: Jaccard index at least ``threshold``, best first. No chaining."""
        seen, found = set(detected), []
        for rule in self.instances():
            asked = {str(atom) for atom in atoms(rule.antecedent)}
            score = len(asked & seen) / len(asked | seen)
            if score >= threshold:
                found.append((rule, score))
        return sorted(found, key=lambda one: -one[1])

    def legacy(self, detected: Sequence[str], official: bool = False) -> list[Rule]:
        """Rules whose concepts occur among the detected ones in the order in which the rule names them. No chaining.

        ``official``: after each concept the search goes on behind its *first* occurrence, as the published code does.
        """
        return [
            rule for rule in self.instances()
            if _in_order([str(atom) for atom in atoms(rule.antecedent)], list(detected), official)
        ]  # fmt: skip

    def _goal(self, goal: str) -> Formula:
        found = formula_of(goal)
        for atom in atoms(found):
            self._require(atom)
        return found

    def check(self, facts: Facts = (), detectable: Iterable[str] | None = None) -> list[Problem]:
        """What to know before the rules run; empty where there is nothing.

        - ``contradiction``: the facts, or a single rule's antecedent, derive a concept and its opposite (with both proofs).
        - ``cycle``: concepts that rest on each other, with the way round. Allowed: nothing follows from itself.
        - ``unreachable``: a rule that can never fire because nothing gives a concept of it (with ``detectable``, the names that
          detection can give).
        - ``answer in facts``: a head that detection can give too, so that the rules are not needed for it.

        Cost: one :meth:`closure`, and one for each rule where some concept and its opposite are both heads.
        """
        known = self._all_facts(facts)
        return problems(
            self.instances(self._subjects_with(known)), known, None if detectable is None else tuple(detectable)
        )


def _joined(tokens: Sequence[Token]) -> str:
    return " ".join(token.text for token in tokens)


def _unknown(name: str, known: Iterable[str]) -> str:
    names = [one for one in dict.fromkeys(known) if one not in (*SPLITS, "xor", "or", "and", "not", "", ")", "x")]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"there is no concept '{name}'; " + (f"did you mean '{near[0]}'?" if near else "declare it with 'concept'")


def _as_absent(proof: Proof, absent: set[str]) -> Proof:
    """What is false for want of a proof, said so."""
    named = ((ABSENT if step[0] in absent and step[1] == GIVEN else step[1], step) for step in proof.steps)
    return Proof(tuple((step[0], why, step[2], step[3]) for why, step in named))


def _in_order(wanted: Sequence[str], detected: list[str], official: bool) -> bool:
    at = 0
    for one in wanted:
        if one not in detected[at:]:
            return False
        at = detected.index(one, 0 if official else at) + 1
    return True
