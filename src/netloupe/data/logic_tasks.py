"""Texts that need rules: concepts in sentences, chains of categories, trains of coloured wagons, three-valued questions.

Every item is text with the places of its concepts, rules as text (the language of :mod:`netloupe.lenses.control.rules`), a goal and the
answer, which is known by construction. After the tasks of arXiv 2510.18184: PrOntoQA, Rail2Country and ProverQA; the sentences
are ours. Files of PrOntoQA and ProverQA can be read.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netloupe.core.errors import InputError, SubjectError

COLOURS = ("red", "blue", "green", "yellow", "black", "white")
CONCEPTS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"), "blue": ("blue", "navy", "azure"), "green": ("green", "emerald", "olive"),
    "yellow": ("yellow", "golden", "amber"), "black": ("black", "ebony", "inky"), "white": ("white", "ivory", "snowy"),
    "dog": ("dog", "hound", "puppy"), "cat": ("cat", "kitten", "tabby"), "bird": ("bird", "sparrow", "finch"),
    "car": ("car", "truck", "van"), "tree": ("tree", "oak", "pine"), "house": ("house", "cottage", "villa"),
}  # fmt: skip
OBJECTS: dict[str, tuple[str, ...]] = {
    "red": ("tomato", "cherry", "ruby"), "blue": ("sky", "ocean", "sapphire"), "green": ("grass", "frog", "lettuce"),
    "yellow": ("lemon", "banana", "canary"), "black": ("coal", "raven", "tar"), "white": ("milk", "salt", "chalk"),
}  # fmt: skip
TRAIN_TEMPLATES = (
    "we saw the {} near the river today", "there was a {} in the picture", "my sister likes the {} very much",
    "they talked about the {} all evening", "a {} can be found behind the hill", "he painted the {} last summer",
    "the {} was the first thing on the list", "nobody knew where the {} had gone", "please look at the {} again",
    "once more the {} made everyone smile", "she wrote a letter about the {} yesterday", "the children asked for the {}",
)  # fmt: skip
TEST_TEMPLATES = (
    "we never expected a {} on the road", "in the morning the {} was still there", "who could forget the {} of last year",
    "it was the {} that they remembered", "at the market he asked about the {}", "the story begins with a {} in the rain",
    "everyone should look for the {} tomorrow", "behind the door there was the {}",
)  # fmt: skip
FICTION = (
    "wumpus", "tumpus", "vumpus", "lorpus", "zumpus", "numpus", "dumpus", "rompus", "jompus", "yumpus", "impus", "gorpus", "sterpus",
    "brimpus", "shumpus", "grimpus", "lempus", "borpus", "twimpus", "prilpus", "felpus", "timpus", "hilpus", "storpus", "worpus",
)  # fmt: skip
COUNTRIES: dict[str, tuple[str, str, str]] = {
    "france": ("blue", "white", "red"), "italy": ("green", "white", "red"), "netherlands": ("red", "white", "blue"),
    "austria": ("red", "white", "red"), "hungary": ("red", "white", "green"), "russia": ("white", "blue", "red"),
    "germany": ("black", "red", "yellow"), "belgium": ("black", "yellow", "red"), "lithuania": ("yellow", "green", "red"),
    "romania": ("blue", "yellow", "red"), "bulgaria": ("white", "green", "red"),
}  # fmt: skip
PLACES = ("first", "second", "third")


@dataclass(frozen=True)
class LogicItem:
    """``words`` of the text; ``spans``: ``(first, last + 1, concept)``; ``segments``: ``(first, last + 1, subject)`` where parts of the
    text speak of different subjects; ``rules`` in text; ``facts`` that are true; ``goal`` and ``answer`` (True, False, None or a name);
    ``proof_length``: rules on the way to the goal, 0 where nothing leads there."""

    words: tuple[str, ...]
    spans: tuple[tuple[int, int, str], ...]
    rules: str = ""
    facts: tuple[str, ...] = ()
    goal: str = ""
    answer: bool | str | None = None
    proof_length: int = 0
    segments: tuple[tuple[int, int, str], ...] = ()


def concept_sentences(
    templates: Sequence[str] = TRAIN_TEMPLATES, objects: bool = True, concepts: Sequence[str] = tuple(CONCEPTS)
) -> list[LogicItem]:
    """Every word of every concept in every template; ``objects``: also things that have the colour."""
    found = []
    for template in templates:
        for concept in concepts:
            for word in (*CONCEPTS[concept], *(OBJECTS.get(concept, ()) if objects else ())):
                words = template.split()
                at = words.index("{}")
                words[at] = word
                found.append(LogicItem(tuple(words), ((at, at + 1, concept),), facts=(concept,)))
    return found


def pronto_like(
    n: int, hops: int, seed: int = 0, distractors: int = 1, templates: Sequence[str] = TEST_TEMPLATES
) -> list[LogicItem]:
    """True or false questions over chains of invented categories, half of them true.

    Each item has rules of its own: one chain of ``hops`` rules from the concept that its first sentence shows, and ``distractors``
    equally long ones from other concepts. The goal is the end of one chain. No goal is a concept, so only rules can lead to it.

    Raises InputError for sizes below 1 and for more categories than there are names (25).
    """
    if n < 1 or hops < 1 or not 1 <= distractors <= 11 or hops * (distractors + 1) > len(FICTION):
        raise InputError(
            f"n is {n}, hops {hops} and distractors {distractors}; positive numbers and at most {len(FICTION)} categories are possible"
        )
    rng, found = np.random.default_rng(seed), []
    for index in range(n):
        names = list(rng.permutation(list(CONCEPTS))[: distractors + 1])
        fiction = list(rng.permutation(FICTION)[: hops * (distractors + 1)])
        chains = [[root, *fiction[at * hops : (at + 1) * hops]] for at, root in enumerate(names)]
        rules = [(one, other) for chain in chains for one, other in itertools.pairwise(chain)]
        rules = [rules[at] for at in rng.permutation(len(rules))]
        words = str(rng.choice(templates)).split()
        at = words.index("{}")
        words[at] = str(rng.choice(CONCEPTS[names[0]]))
        answer = index % 2 == 0
        goal = str(chains[0][-1] if answer else chains[1 + int(rng.integers(distractors))][-1])
        spoken = " ".join(f"every {one} is a {other} ." for one, other in rules)
        text = (*words, ".", *spoken.split(), *f"true or false : it is a {goal}".split())
        written = "\n".join(f"{one} is {other}" for one, other in rules)
        found.append(
            LogicItem(
                text, ((at, at + 1, str(names[0])),), written, (str(names[0]),), goal, answer, hops if answer else 0
            )
        )
    return found


def rail2country_like(n: int, meta: bool = False, seed: int = 0) -> list[LogicItem]:
    """Trains of three wagons whose colours, in order, are a country's flag; ``meta``: colours as those of things.

    The rules speak of the wagons as subjects: ``red(first) and white(second) and red(third) is austria``. Raises InputError for
    ``n`` below 1.
    """
    if n < 1:
        raise InputError(f"n is {n}, expected at least 1")
    rng, found, rules = np.random.default_rng(seed), [], country_rules()
    for _ in range(n):
        country = str(rng.choice(list(COUNTRIES)))
        words: list[str] = []
        spans, segments = [], []
        for place, colour in zip(PLACES, COUNTRIES[country], strict=True):
            start = len(words)
            words += [*("the", place, "wagon"), *(["has", "the", "colour", "of", "a"] if meta else ("is",))]
            words.append(str(rng.choice((OBJECTS if meta else CONCEPTS)[colour])))
            spans.append((len(words) - 1, len(words), colour))
            segments.append((start, len(words), place))
            words.append(".")
        facts = tuple(f"{colour}({place})" for place, colour in zip(PLACES, COUNTRIES[country], strict=True))
        found.append(LogicItem(tuple(words), tuple(spans), rules, facts, country, country, 1, tuple(segments)))
    return found


def country_rules(swap: tuple[str, str] | None = None) -> str:
    """The flags as rules; ``swap``: with two colours exchanged."""
    other = {} if swap is None else {swap[0]: swap[1], swap[1]: swap[0]}
    lines = []
    for country, flag in COUNTRIES.items():
        parts = (f"{other.get(colour, colour)}({place})" for colour, place in zip(flag, PLACES, strict=True))
        lines.append(f"{' and '.join(parts)} is {country}")
    return "\n".join(lines)


def prover_like(n: int, hops: int = 3, seed: int = 0) -> list[LogicItem]:
    """Three-valued questions, a third each true, false and undecided.

    A chain of rules, each with a condition beside the link: ``a and c``, ``a or c``, or ``a xor c`` with ``not c`` given; the goal is the
    end of the chain, its end says the opposite (false), or the chain lacks its beginning (undecided). Raises InputError for sizes below 1.
    """
    if n < 1 or not 1 <= hops <= len(FICTION) // 2 - 1:
        raise InputError(f"n is {n} and hops {hops}, expected 1 or more, and at most {len(FICTION) // 2 - 1} hops")
    rng, found = np.random.default_rng(seed), []
    for index in range(n):
        names = [str(one) for one in rng.permutation(FICTION)[: 2 * hops + 1]]
        chain, sides = names[: hops + 1], names[hops + 1 :]
        answer = (True, False, None)[index % 3]
        facts = [] if answer is None else [f"{chain[0]}(Max)"]
        lines = []
        for at, side in enumerate(sides):
            kind = str(rng.choice(("and", "or", "xor")))
            facts += [f"{side}(Max)"] * (kind == "and") + [f"not {side}(Max)"] * (kind == "xor")
            head = f"{'not ' * (answer is False and at == hops - 1)}{chain[at + 1]}(x)"
            lines.append(f"{chain[at]}(x) {kind} {side}(x) is {head}")
        lines = [lines[at] for at in rng.permutation(hops)]
        goal = f"{chain[-1]}(Max)"
        text = re.sub(r"[()]", " ", " . ".join([*lines, *facts, f"true false or uncertain : {goal}"])).split()
        found.append(
            LogicItem(tuple(text), (), "\n".join(lines), tuple(facts), goal, answer, 0 if answer is None else hops)
        )
    return found


def load_prontoqa(path: str | Path) -> list[LogicItem]:
    """Test examples of a PrOntoQA file (Saparov and He, arXiv 2210.01240): rules and facts parsed from its fixed sentences.

    Raises SubjectError for another file and for sentences of another form.
    """
    found = []
    for example in _document(path).values():
        one = example.get("test_example", example)
        try:
            sentences = [s.strip() for s in str(one["question"]).split(".") if s.strip()]
            query = str(one["query"]).split(":")[-1].strip().rstrip(".")
            answer = str(one["answer"]).strip().lower() == "true"
            steps = len(one.get("chain_of_thought", ())) // 2
        except (KeyError, TypeError, AttributeError):
            raise SubjectError(f"'{path}' is no PrOntoQA file (question, query, answer)") from None
        lines = [_sentence(sentence) for sentence in sentences]
        rules = "\n".join(line for line in lines if " is " in line)
        facts = tuple(line for line in lines if " is " not in line)
        words = tuple(re.findall(r"[\w'-]+|[.:]", f"{one['question']} {one['query']}"))
        found.append(LogicItem(words, (), rules, facts, _sentence(query), answer, steps))
    return found


def _sentence(text: str) -> str:
    """``Every a is not a b`` and ``As are bs`` as a rule with the variable, ``Max is a b`` as a fact."""
    every = re.fullmatch(r"(?:Every|Each) ([\w-]+) is (not )?(?:an? )?([\w-]+)", text)
    plural = re.fullmatch(r"([\w-]+) are (not )?([\w-]+)", text)
    fact = re.fullmatch(r"([\w-]+) is (not )?(?:an? )?([\w-]+)", text)
    match = every or plural or fact
    if match is None:
        raise SubjectError(f"'{text}' is no sentence of PrOntoQA (Every a is a b; As are bs; Max is a b)")
    subject, negated, kind = match[1], match[2] or "", match[3]
    if match is fact and not every:
        return f"{negated}{_singular(kind)}({subject})"
    return f"{_singular(subject)}(x) is {negated}{_singular(kind)}(x)"


def _singular(word: str) -> str:
    word = word.lower()
    return (
        word[:-2]
        if word.endswith("puses")
        else word[:-1]
        if word.endswith("s") and not word.endswith(("us", "ss"))
        else word
    )


def load_proverqa(path: str | Path) -> list[LogicItem]:
    """A ProverQA file (Qi et al., arXiv 2502.06563): formulas of its ``nl2fol`` and ``conclusion_fol`` in the language of rules.

    Raises SubjectError for another file.
    """
    found = []
    for one in _document(path).values():
        try:
            formulas = [_formula(text) for text in one["nl2fol"].values()]
            goal, answer = _formula(one["conclusion_fol"]), {"A": True, "B": False, "C": None}[str(one["answer"])]
            words = tuple(re.findall(r"[\w'-]+|[.:?]", f"{one['context']} {one['question']}"))
        except (KeyError, TypeError, AttributeError):
            raise SubjectError(f"'{path}' is no ProverQA file (nl2fol, conclusion_fol, answer)") from None
        choices = [text for text in formulas if re.search(r" is | or | xor ", text)]
        facts = tuple(text for text in formulas if text not in choices)
        lines = (
            text if " is " in text else f"not ({text}) is ({text})" for text in choices
        )  # "if not, then it is": it is
        found.append(LogicItem(words, (), "\n".join(lines), facts, goal, answer))
    return found


def _formula(text: str) -> str:
    for sign, word in (("→", " is "), ("∧", " and "), ("∨", " or "), ("⊕", " xor "), ("¬", " not ")):
        text = text.replace(sign, word)
    text = re.sub(r"∀\s*x", "", text).strip()
    inner = re.fullmatch(r"\((.*)\)", text)
    if inner and " is " in text and _balanced(inner[1]):
        text = inner[1]
    return " ".join(text.split())


def _balanced(text: str) -> bool:
    depth = 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return False
    return depth == 0


def _document(path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SubjectError(f"'{path}' cannot be read as JSON: {str(error).splitlines()[0]}") from None
    items = found if isinstance(found, dict) else dict(enumerate(found)) if isinstance(found, list) else {}
    if not items or not all(isinstance(one, dict) for one in items.values()):
        raise SubjectError(f"'{path}' holds no examples; a JSON list or object of them is expected")
    return {str(key): value for key, value in items.items()}
