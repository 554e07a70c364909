"""Rules as people and editors write them: odd names, byte order marks, numbers of other libraries, very long and deep formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from netloupe.core.errors import InputError
from netloupe.lenses.control.formula import RuleError
from netloupe.lenses.control.rules import RuleBase


def test_names_may_hold_parentheses_commas_and_keywords():
    base = RuleBase.parse(
        'concept "red (dark)", "a, b", "is", plain\nsubject Max\n"red (dark)"(x) is "a, b"(x)\n"a, b"(x) is "is"(x)\n'
    )
    assert base.declared == ("red (dark)", "a, b", "is", "plain")
    assert base.prove('"is"(Max)', ['"red (dark)"(Max)']).value is True
    assert RuleBase.parse(str(base)).rules == base.rules
    kinds = [(one.kind, one.message.split(" is derived")[0]) for one in base.check(detectable=["red (dark)", "a, b"])]
    assert kinds == [("answer in facts", "a, b")]


def test_an_arrow_needs_no_spaces():
    base = RuleBase.parse("a=>b\nb and c=>not d")
    assert [str(rule) for rule in base.rules] == ["a is b", "b and c is not d"]
    assert RuleBase.parse('"a=>b" is c').prove("c", ['"a=>b"']).value is True


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_files_of_other_editors_are_read(tmp_path, ending):
    path = tmp_path / "größe.rules"
    path.write_bytes(ending.join(["\ufeffconcept\ta,\tgröße", "a\tis\tgröße", ""]).encode())
    assert RuleBase.load(path).prove("größe", ["a"]).value is True


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(1), np.bool_(True), torch.tensor(0.25), 1])
def test_activations_may_be_numbers_of_any_library(number):
    assert RuleBase.parse("a is b").closure({"a": number}).activation("b") == float(number)


@pytest.mark.parametrize("wrong", ["0.5", None, float("nan"), np.ones(3)])
def test_activations_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(InputError, match="expected a number"):
        RuleBase.parse("a is b").closure({"a": wrong})


@pytest.mark.parametrize("n", [3, 60, 200])
def test_a_long_xor_is_a_parity_and_takes_no_time(n):
    rng = np.random.default_rng(n)
    base = RuleBase([" xor ".join(f"c{i}" for i in range(n)) + " is z"])
    for _ in range(3):
        on = rng.random(n) < 0.5
        facts = [f"{'' if one else 'not '}c{i}" for i, one in enumerate(on)]
        assert base.prove("z", facts, world="closed").value is bool(on.sum() % 2)
        assert base.prove("z", facts, world="open").value is (True if on.sum() % 2 else None)


def test_thousands_of_open_choices_need_no_recursion():
    base = RuleBase([f"a is c{i} or d{i}" for i in range(1500)])
    assert base.prove("c0", ["a"], world="open").value is None
    assert base.prove("c0", ["a", "not d0"], world="open").value is True


@pytest.mark.parametrize(
    "text",
    ["(" * 300 + "a" + ")" * 300, "not " * 3000 + "a", " xor ".join(["a", "b"] * 500), " => ".join(["a", "b"] * 500)],
)
def test_formulas_that_are_nested_too_deep_are_refused_in_a_sentence(text):
    with pytest.raises(RuleError, match=r"line 2, column .*by another rule"):
        RuleBase.parse(f"a is b\n({text}) is z")
