"""Forward chaining beside sympy's satisfiability and a plain loop over the rules: same answers, ratio, growth.

    python bench/activation_reasoning.py [--chain 1000 2000 4000] [--atoms 20]

The peers: sweeps over all rules until nothing is new, as forward chaining is usually written (on a chain in the worst order), and, on
small random bases, ``sympy.satisfiable`` of the rules with the goal's opposite. The limit is linear in the size of the rules.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import sympy
from support.timing import alternate, print_growth, print_table
from sympy.logic.inference import satisfiable

from netloupe.lenses.control.rules import RuleBase


def sweeps(rules: list[tuple[tuple[str, ...], str]], facts: set[str]) -> set[str]:
    """All rules again and again."""
    known = set(facts)
    while True:
        new = {head for body, head in rules if head not in known and all(one in known for one in body)}
        if not new:
            return known
        known |= new


def chain(n: int, times: dict[str, list[float]]) -> None:
    rules = [((f"c{at}",), f"c{at + 1}") for at in reversed(range(n))]
    base = RuleBase([f"{body[0]} is {head}" for body, head in rules])
    base.ground(base.subjects)
    if set(base.closure("c0").steps) != sweeps(rules, {"c0"}):
        raise SystemExit("the closures differ")
    seconds = alternate({"sweeps": partial(sweeps, rules, {"c0"}), "closure": partial(base.closure, "c0")}, 3)
    print(f"a chain of {n} rules, same closure")
    print_table(seconds, "sweeps")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def entail(n: int, times: dict[str, list[float]]) -> None:
    rng = np.random.default_rng(n)
    names = [f"a{at}" for at in range(n)]
    rules = [(tuple(rng.choice(names, 2, replace=False)), str(rng.choice(names))) for _ in range(2 * n)]
    base, facts = RuleBase([f"{one} and {other} is {head}" for (one, other), head in rules]), names[: n // 3]
    symbols = {name: sympy.Symbol(name) for name in names}
    theory = [sympy.Implies(sympy.And(*(symbols[one] for one in body)), symbols[head]) for body, head in rules]
    known = sympy.And(*theory, *(symbols[one] for one in facts))

    def peer() -> list[bool]:
        return [satisfiable(sympy.And(known, sympy.Not(symbols[name]))) is False for name in names]

    def ours() -> list[bool]:
        return [base.prove(name, facts, world="open").value is True for name in names]

    if peer() != ours():
        raise SystemExit("the entailments differ")
    print(f"{n} concepts, {2 * n} rules: which are entailed, same answers")
    seconds = alternate({"sympy": peer, "prove open": ours}, 3)
    print_table(seconds, "sympy")
    for name, values in seconds.items():
        times.setdefault(name, []).append(float(np.median(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--atoms", type=int, nargs="+", default=[6, 12, 24])
    options = parser.parse_args()
    print_growth([(chain, options.chain), (entail, options.atoms)])


if __name__ == "__main__":
    main()
