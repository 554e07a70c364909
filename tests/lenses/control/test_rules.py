"""Rules: reading, checking, deriving and proving, against truth tables and sympy."""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy.logic.inference import satisfiable

from netloupe.core.errors import InputError, StoreError
from netloupe.core.finding import Finding
from netloupe.lenses.control.derivation import GIVEN, Proof, saturate
from netloupe.lenses.control.entailment import Statement, refutation
from netloupe.lenses.control.formula import (
    And,
    Atom,
    Formula,
    Not,
    Or,
    RuleError,
    Xor,
    atoms,
    literals,
    negate,
    parse,
    strength,
    tokenise,
)  # fmt: skip
from netloupe.lenses.control.rules import Rule, RuleBase

NAMES = "abcdefg"


def _formula(rng: np.random.Generator, depth: int = 2, names: str = NAMES) -> Formula:
    kind = rng.integers(5) if depth else 0
    if kind <= 1:
        atom = Atom(str(rng.choice(list(names))))
        return Not(atom) if kind and rng.random() < 0.5 else atom
    one, other = _formula(rng, depth - 1, names), _formula(rng, depth - 1, names)
    if kind == 2:
        return Xor(one, other)
    return (And if kind == 3 else Or)((one, negate(other)))


def _truth(formula: Formula, world: dict[str, bool]) -> bool:
    if isinstance(formula, Atom):
        return world[str(formula)]
    if isinstance(formula, Not):
        return not _truth(formula.part, world)
    if isinstance(formula, Xor):
        return _truth(formula.one, world) != _truth(formula.other, world)
    return (all if isinstance(formula, And) else any)(_truth(part, world) for part in formula.parts)


def _worlds(names: str = NAMES) -> list[dict[str, bool]]:
    return [dict(zip(names, values, strict=True)) for values in itertools.product((False, True), repeat=len(names))]


def _symbolic(formula: Formula):
    if isinstance(formula, Atom):
        return sympy.Symbol(str(formula))
    if isinstance(formula, Not):
        return sympy.Not(_symbolic(formula.part))
    if isinstance(formula, Xor):
        return sympy.Xor(_symbolic(formula.one), _symbolic(formula.other))
    return (sympy.And if isinstance(formula, And) else sympy.Or)(*(_symbolic(part) for part in formula.parts))


def _horn(rng: np.random.Generator, n: int = 8) -> RuleBase:
    rules = []
    for _ in range(n):
        body = rng.choice(list(NAMES), size=rng.integers(1, 4), replace=False)
        rules.append(f"{' and '.join(body)} is {rng.choice(list(NAMES))}")
    return RuleBase(rules)


def _valid(proof: Proof, base: RuleBase) -> bool:
    """Whether every step of a forward proof follows by a rule of the base from its premises alone."""
    by_why: dict[str, list[Rule]] = {}
    for rule in base.instances():
        by_why.setdefault(rule.why, []).append(rule)
    for text, why, value, premises in proof.steps:
        if why == GIVEN:
            continue
        known = defaultdict(float, {proof.steps[one][0]: proof.steps[one][2] for one in premises})
        fits = [r for r in by_why[why] if text in r.heads and strength(r.antecedent, known.__getitem__) == value]
        if not fits:
            return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_horn_closure_is_what_every_world_agrees_on_and_every_proof_is_valid(seed: int):
    rng = np.random.default_rng(seed)
    worlds = _worlds()
    for _ in range(25):
        base = _horn(rng)
        facts = [str(one) for one in rng.choice(list(NAMES), size=2, replace=False)]
        models = [
            w for w in worlds if all(w[f] for f in facts)
            and all(not _truth(r.antecedent, w) or _truth(r.consequent, w) for r in base.rules)
        ]  # fmt: skip
        least = {name for name in NAMES if all(w[name] for w in models)}
        found = base.closure(facts)
        assert set(found.steps) == least
        for name in NAMES:
            answer = base.complex(name, facts)
            assert answer.value is (name in least)
            assert base.prove(name, facts).value is (name in least)
            if answer.proof is not None:
                assert _valid(answer.proof, base)
                assert _valid(found.proof(name), base)
                assert answer.proof.depth == found.proof(name).depth


@pytest.mark.parametrize("seed", range(3))
def test_open_world_is_entailment_by_truth_tables_and_by_sympy(seed: int):
    rng = np.random.default_rng(100 + seed)
    names, worlds = "abcde", _worlds("abcde")
    values = set()
    for trial in range(25):
        base = RuleBase([Rule(_formula(rng, 2, names), _formula(rng, 1, names)) for _ in range(4)])
        fact = str(rng.choice(list(names)))
        theory = [_implication(rule) for rule in base.rules]
        models = [w for w in worlds if w[fact] and all(_truth(one, w) for one in theory)]
        goal = _formula(rng, 1, names)
        truths = {_truth(goal, w) for w in models}
        expected = truths.pop() if len(truths) == 1 else None
        found = base.prove(str(goal), [fact], world="open")
        assert found.value is expected
        assert (found.proof is None) == (expected is None and bool(models))
        values.add(expected)
        if trial < 5:
            whole = sympy.And(*(_symbolic(one) for one in [*theory, Atom(fact)]))
            yes = satisfiable(sympy.And(whole, sympy.Not(_symbolic(goal)))) is False
            no = satisfiable(sympy.And(whole, _symbolic(goal))) is False
            assert found.value is (None if yes == no else yes)
    assert values == {True, False, None}


def _implication(rule: Rule) -> Formula:
    return Or((negate(rule.antecedent), rule.consequent))


@pytest.mark.parametrize("seed", range(3))
def test_closed_world_is_the_perfect_model(seed: int):
    """Rules in layers a < b < ... so that every negation is about an earlier concept."""
    rng = np.random.default_rng(200 + seed)
    for _ in range(30):
        rules = [Rule(_formula(rng, 2, NAMES[:at]), Atom(NAMES[at])) for at in range(1, len(NAMES)) for _ in range(2)]
        base = RuleBase(rules)
        facts = [one for one in NAMES[:3] if rng.random() < 0.5]
        world = {name: name in facts for name in NAMES}
        for name in NAMES[1:]:
            world[name] |= any(_truth(r.antecedent, world) for r in base.rules if str(r.consequent) == name)
        found = base.closure(facts, world="closed")
        assert {one for one in found.steps if not one.startswith("not ")} == {one for one in NAMES if world[one]}
        goal = _formula(rng, 2)
        assert base.prove(str(goal), facts).value is _truth(goal, world)


def test_negation_through_a_cycle_is_refused_in_a_closed_world_and_undecided_in_an_open_one():
    base = RuleBase(["not a is b", "not b is a"])
    with pytest.raises(InputError, match=r"its own absence \((a -> b -> a|b -> a -> b)\)"):
        base.closure(world="closed")
    assert base.prove("a", world="open").value is None
    assert base.prove("a or b", world="open").value is True


def test_activation_is_the_weakest_antecedent_of_the_strongest_proof_and_the_shallowest_is_kept():
    base = RuleBase(["a and b is c", "d is c", "c is e", "a is e"])
    found = base.closure({"a": 0.9, "b": 0.4, "d": 0.2})
    assert found.activation("c") == 0.4
    assert found.activation("e") == 0.9
    assert found.proof("e").depth == 1
    assert found.activation("unknown") == 0.0
    chained = RuleBase(["a is b", "b is c", "c is d", "a is d"])
    assert chained.closure("a").proof("d").rules == ("a is d",)
    assert RuleBase(["a or b is c"]).closure({"a": 0.3, "b": 0.7}).proof("c").facts == ("b",)


def test_both_sides_of_a_conflict_are_kept():
    base = RuleBase(["a is b", "a is not b", "b is c"])
    found = base.closure("a")
    assert found.conflicts == ("b",)
    assert "c" in found
    assert "not b" in found
    answer = base.prove("c", "a", world="open")
    assert answer.value is None
    assert answer.proof is not None
    assert answer.proof.conclusion == "contradiction"


def test_a_chain_has_as_many_steps_as_rules_and_is_printed_and_stored(tmp_path: Path):
    base = RuleBase([f"c{i} is c{i + 1}" for i in range(5)])
    proof = base.closure({"c0": 0.5}).proof("c5")
    assert proof.depth == 5
    assert len(proof.rules) == 5
    assert proof.facts == ("c0",)
    lines = str(proof).splitlines()
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 6, 8, 10]
    assert lines[0].startswith("c5  [c4 is c5, 0.5]")
    assert lines[-1].endswith("c0  [given, 0.5]")
    stored = json.loads(json.dumps(proof.document()))
    assert stored["conclusion"] == "c5"
    assert stored["steps"][0] == {"conclusion": "c0", "why": "given", "activation": 0.5, "premises": []}
    assert Finding.load(proof.save(tmp_path / "proof")) == proof
    assert proof.summary() == {"depth": 5.0, "n_rules": 5.0, "n_facts": 1.0, "activation": 0.5}


def test_a_proof_draws_every_step():
    proof = RuleBase(["a is b", "a is c", "b and c is d"]).closure("a").proof("d")
    figure, axes = plt.subplots()
    proof.plot(axes)
    figure.canvas.draw()
    assert {one.get_text() for one in axes.texts} >= {"a", "b", "c", "d"}
    plt.close(figure)


def test_what_is_used_twice_is_printed_once():
    proof = RuleBase(["a is b", "b is c", "b is d", "c and d is e"]).closure("a").proof("e")
    assert str(proof).count("[a is b]") == 1
    assert "see above" in str(proof)
    assert len(proof.steps) == 5


def test_ten_thousand_rules_take_less_than_a_second_of_processor_time():
    """Counting what a rule waits for makes this linear; looking at every rule again would take hours."""
    n = 10_000
    base = RuleBase([f"c{i} is c{i + 1}" for i in range(n)])
    started = time.process_time()
    found = base.closure("c0")
    assert time.process_time() - started < 1
    assert len(found.derived) == n
    assert found.proof(f"c{n}").depth == n


# --- text ------------------------------------------------------------------------------------------------------------


def test_precedence_and_parentheses():
    text = Rule.parse("not a b and c or d xor e is f")
    expected = Xor(Or((And((Not(Atom("a")), Atom("b"), Atom("c"))), Atom("d"))), Atom("e"))
    assert text == Rule(expected, Atom("f"))
    assert Rule.parse("not a b is c", official=True).antecedent == Not(And((Atom("a"), Atom("b"))))
    assert Rule.parse(("not", ("a", "or", "b"), "is", "c")) == Rule.parse("not (a or b) is c")
    assert Rule.parse("not not a is b") == Rule.parse("a do b") == Rule.parse("a => b") == Rule.parse("a have b")
    assert Rule.parse("a is b is c").antecedent == Or((Not(Atom("a")), Atom("b")))
    assert Rule.parse('"black gold" is "is"(Max)').consequent == Atom("is", "Max")


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**9))
def test_what_is_written_is_read_again(seed: int):
    rng = np.random.default_rng(seed)
    base = RuleBase([Rule(_formula(rng, 3), _formula(rng, 1)) for _ in range(3)], facts=["not a", "b(Max)"])
    again = RuleBase.parse(str(base))
    assert again.facts == base.facts
    for one, other in zip(base.rules, again.rules, strict=True):
        for world in _worlds()[::7]:
            assert _truth(one.antecedent, world) == _truth(other.antecedent, world)
            assert _truth(one.consequent, world) == _truth(other.consequent, world)


def test_a_file_with_declarations_comments_and_the_variable(tmp_path: Path):
    path = tmp_path / "zoo.rules"
    path.write_text("""# what we know
concept wumpus, tumpus, "sour lemon"
subject Max, Polly

wumpus(x) is tumpus(x)   # for all
tumpus(x) is "sour lemon"(x)
wumpus(Max)
""")
    base = RuleBase.load(path)
    assert base.concepts == ("wumpus", "tumpus", "sour lemon")
    assert base.subjects == ("Max", "Polly")
    found = base.closure(["wumpus(Kim)"])
    assert found.derived == ("tumpus(Max)", "tumpus(Kim)", '"sour lemon"(Max)', '"sour lemon"(Kim)')
    assert "line 5: wumpus(Max) is tumpus(Max)" in str(found.proof('"sour lemon"(Max)'))
    assert base.prove("tumpus(Polly)").value is False


def test_the_variable_alone_stands_for_a_subject_too():
    base = RuleBase([("x", "wumpus", "is", "tumpus")], subjects=["Max"])
    assert base.closure(["Max", "wumpus"]).derived == ("tumpus",)
    assert base.closure(["wumpus"]).derived == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "concept wumpus, tumpus\nwumpus is tumpsu",
            "line 2, column 11: there is no concept 'tumpsu'; did you mean 'tumpus'",
        ),
        ("a is b\n\na and is c", "line 3, column 7: a concept was expected and 'is' found"),
        ("a (b or c is d", "line 1"),
        ("(a is b", "line 1, column 8: '\\)' was expected"),
        ("a is", "line 1, column 3: nothing stands after 'is'"),
        ("is a", "line 1, column 1: nothing stands before 'is'"),
        ("a ) is b", "line 1, column 3: '\\)' does not fit here"),
        ('a is b "c', "line 1, column 8"),
        ("a or b", "a fact is a concept"),
        ("concept a\nb(Max)", "line 2, column 1: there is no concept 'b'"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(text: str, message: str):
    with pytest.raises(RuleError, match=message):
        RuleBase.parse(text)


def test_files_facts_and_goals_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(StoreError, match="cannot be read as text"):
        RuleBase.load(tmp_path / "none.rules")
    (tmp_path / "bad.rules").write_text("a is b\na is or")
    with pytest.raises(RuleError, match=r"bad.rules, line 2, column 6"):
        RuleBase.load(tmp_path / "bad.rules")
    base = RuleBase(["a is b"], concepts=["a", "b"])
    for facts in ("c", ["a or b"], {"a": float("nan")}, [""]):
        with pytest.raises(InputError):
            base.closure(facts)
    with pytest.raises(InputError, match="open or closed"):
        base.closure("a", world="other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not follow"):
        base.closure("a").proof("not b")
    with pytest.raises(InputError, match="leaves a choice"):
        base.complex("a or b", "a")
    with pytest.raises(RuleError, match="leaves a choice"):
        RuleBase(["a is b or c"]).closure("a")
    with pytest.raises(RuleError, match="no 'is' splits"):
        Rule.parse("a and b")
    assert RuleBase().closure("a").facts == ("a",)
    assert base.closure({"a": 0.0}).derived == ()


def test_an_undeclared_list_of_tuples_is_checked_too():
    with pytest.raises(RuleError, match="did you mean 'wumpus'"):
        RuleBase([("wumpos", "is", "tumpus")], concepts=["wumpus", "tumpus"])


# --- the other reasoners ---------------------------------------------------------------------------------------------


def test_legacy_wants_the_order_and_simple_the_overlap():
    base = RuleBase(["red and white and blue is netherlands", "blue and white and red is france"])
    assert [str(r.consequent) for r in base.legacy(["blue", "white", "red"])] == ["france"]
    assert [str(r.consequent) for r in base.legacy(["red", "white", "red", "blue"])] == ["netherlands"]
    assert [score for _, score in base.simple(["red", "white", "blue"])] == [1.0, 1.0]
    assert base.simple(["red"], 0.5) == []
    assert [round(score, 3) for _, score in base.simple(["red", "white"])] == [0.667, 0.667]
    twice = RuleBase(["red and white and red and white is banner"])
    assert not twice.legacy(["red", "white", "red"])
    assert twice.legacy(["red", "white", "red"], official=True)  # goes on behind the first red


def test_complex_takes_facts_above_the_published_threshold():
    base = RuleBase(["a is b"])
    assert base.complex("b", {"a": 0.31}).value is True
    assert base.complex("b", {"a": 0.3}).value is False


def test_a_refutation_shows_the_cases():
    base = RuleBase(["a is b or c", "b is d", "c is d"])
    found = base.prove("d", "a", world="open")
    assert found.value is True
    assert found.proof is not None
    text = str(found.proof)
    assert "the opposite is impossible" in text
    assert "not d" in text
    assert "given" in text
    nested = RuleBase(["a xor (b xor (c xor d)) is e", "e is not a"])
    assert nested.prove("b xor (c xor d)", "e", world="open").value is None
    assert refutation([Statement(parse(tokenise("a xor a")), "odd")]) is not None
    with pytest.raises(InputError, match="cases had to be tried"):
        hard = [Statement(_formula(np.random.default_rng(s), 3, "abcdefghij"), "") for s in range(3)]
        refutation([*hard, *(Statement(parse(tokenise(f"v{i} xor w{i}")), "") for i in range(20))], limit=1)


def test_small_pieces():
    assert literals(parse(tokenise("a and not b"))) == ("a", "not b")
    assert literals(parse(tokenise("a or b"))) is None
    assert [str(one) for one in atoms(parse(tokenise("a xor not (b c(Max))")))] == ["a", "b", "c(Max)"]
    assert saturate([], {"a": 1.0}, closed=True).facts == ("a",)
