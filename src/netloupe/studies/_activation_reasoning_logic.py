"""Random rules against truth tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from netloupe.core.study import Bar, Claim
from netloupe.lenses.control.formula import And, Atom, Formula, Not, Or, Xor, negate
from netloupe.lenses.control.rules import Rule, RuleBase

ATOMS = "abcdefgh"
WORLDS = {name: np.array([(world >> at) & 1 for world in range(256)], dtype=bool) for at, name in enumerate(ATOMS)}


def table(formula: Formula) -> np.ndarray:
    """Whether a formula is true in each of the 256 worlds."""
    if isinstance(formula, Atom):
        return WORLDS[formula.name]
    if isinstance(formula, Not):
        return ~table(formula.part)
    if isinstance(formula, Xor):
        return table(formula.one) ^ table(formula.other)
    tables = [table(part) for part in formula.parts]
    return np.all(tables, axis=0) if isinstance(formula, And) else np.any(tables, axis=0)


def horn(rng: np.random.Generator) -> RuleBase:
    """Three to nine rules with one to three antecedents; half of the bases without cycles."""
    acyclic, rules = rng.random() < 0.5, []
    for _ in range(rng.integers(3, 10)):
        at = int(rng.integers(1, 8))
        pool = ATOMS[:at] if acyclic else ATOMS.replace(ATOMS[at], "")
        body = rng.permutation(list(pool))[: rng.integers(1, 4)]
        rules.append(Rule(And(tuple(map(Atom, body))) if len(body) > 1 else Atom(str(body[0])), Atom(ATOMS[at])))
    return RuleBase(rules)


def connective(rng: np.random.Generator, depth: int = 2) -> Formula:
    """A random formula with ``and, or, not, xor``."""
    if not depth or rng.random() < 0.3:
        atom = Atom(str(rng.choice(list(ATOMS))))
        return Not(atom) if rng.random() < 0.4 else atom
    one, other = connective(rng, depth - 1), connective(rng, depth - 1)
    kind = rng.integers(3)
    return Xor(one, other) if kind == 2 else (And if kind else Or)((one, other))


def exact_claim(bases: tuple[int, int], seed: int) -> Claim:
    """Forward, goal-directed and open-world answers against brute force; reasoners without chaining as the control."""
    rng = np.random.default_rng(seed)
    agree: dict[str, list[bool]] = {name: [] for name in ("forward", "complex", "open world", "legacy", "simple")}
    for _ in range(bases[0]):
        base = horn(rng)
        facts = [str(one) for one in rng.permutation(list(ATOMS))[: rng.integers(1, 4)]]
        models = np.all([~table(r.antecedent) | table(r.consequent) for r in base.rules], axis=0)
        models &= np.all([WORLDS[one] for one in facts], axis=0)
        least = {one for one in ATOMS if WORLDS[one][models].all()}
        agree["forward"].append(set(base.closure(facts).steps) == least)
        agree["complex"].append({one for one in ATOMS if base.complex(one, facts).value} == least)
        for name, rules in (("legacy", base.legacy(facts)), ("simple", [rule for rule, _ in base.simple(facts)])):
            agree[name].append({*facts, *(head for rule in rules for head in rule.heads)} == least)
    for _ in range(bases[1]):
        base = RuleBase([Rule(connective(rng), connective(rng, 1)) for _ in range(5)])
        fact, goal = str(rng.choice(list(ATOMS))), connective(rng, 1)
        models = WORLDS[fact] & np.all([table(Or((negate(r.antecedent), r.consequent))) for r in base.rules], axis=0)
        values = set(table(goal)[models].tolist())
        expected = values.pop() if len(values) == 1 else None
        agree["open world"].append(base.prove(str(goal), [fact], world="open").value is expected)
    shares = {name: float(np.mean(values)) for name, values in agree.items()}

    def plot(axes: Any) -> None:
        axes.bar(list(shares), list(shares.values()), color=["C0"] * 3 + ["C1"] * 2)
        axes.set(ylabel="agreement with truth tables", ylim=(0, 1.05))
        axes.tick_params(axis="x", labelsize=6)

    return Claim(
        "exact reasoner",
        "what follows from random rules is what truth tables say (smallest share of bases answered exactly)",
        min(shares[name] for name in ("forward", "complex", "open world")),
        Bar("==", 1.0),
        max(shares["legacy"], shares["simple"]),
        "the same bases by the reasoners that do not chain (larger share; to be at most 0.9)",
        control_bar=Bar(">", 0.9),
        note=f"{bases[0]} Horn bases and {bases[1]} with connectives; "
        + ", ".join(f"{name} {value:.3f}" for name, value in shares.items()),
        plot=plot,
    )
