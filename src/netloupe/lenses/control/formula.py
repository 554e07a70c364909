"""Formulas over concepts: how they are read, written and evaluated. Pure Python, no network.

Words, from the loosest to the tightest: ``is`` (also ``do``, ``have``, ``=>``), ``xor``, ``or``, ``and``, two names side by side
(which is ``and``), ``not``. The last ``is`` splits a rule. Grammar of arXiv 2510.18184, with parentheses and subjects of our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from netloupe.core.errors import InputError

SPLITS = ("is", "do", "have", "=>")
KEYWORDS = (*SPLITS, "xor", "or", "and", "not")
_LETTERS = r'(?:(?!=>)[^\s()",#])+'
_NAME = rf'(?:"[^"]+"|{_LETTERS})'
_TOKEN = re.compile(rf"(?P<space>\s+)|(?P<atom>{_NAME}\({_NAME}\))|(?P<mark>[()]|=>)|(?P<name>{_NAME})")
_PLAIN = re.compile(_LETTERS)
_DEEPEST, _LONGEST_XOR = 50, 200  # what the recursion below reads and evaluates without trouble


class RuleError(InputError):
    """Text that is no rule, or a concept that nobody declared; ``line`` and ``column`` count from 1, 0 where there is none."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        where = ", ".join(f"{word} {at}" for word, at in (("line", line), ("column", column)) if at)
        super().__init__(f"{where}: {message}" if where else message)
        self.message, self.line, self.column = message, line, column


@dataclass(frozen=True, slots=True)
class Atom:
    """A concept, or a concept said of a subject: ``wumpus``, ``wumpus(Max)``."""

    name: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{quoted(self.name)}({quoted(self.subject)})" if self.subject else quoted(self.name)


@dataclass(frozen=True, slots=True)
class Not:
    """True where ``part`` is false."""

    part: Formula

    def __str__(self) -> str:
        return f"not {_inside(self.part)}"


@dataclass(frozen=True, slots=True)
class And:
    """True where all parts are."""

    parts: tuple[Formula, ...]

    def __str__(self) -> str:
        return " and ".join(_inside(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """True where a part is."""

    parts: tuple[Formula, ...]

    def __str__(self) -> str:
        return " or ".join(_inside(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Xor:
    """True where one part is and the other is not."""

    one: Formula
    other: Formula

    def __str__(self) -> str:
        return f"{_inside(self.one)} xor {_inside(self.other)}"


Formula = Atom | Not | And | Or | Xor


class Token(NamedTuple):
    """A piece of text and its column, from 1."""

    text: str
    column: int


def quoted(name: str) -> str:
    """A name as it is written in a file: in quotes where it has spaces or is a keyword."""
    return name if _PLAIN.fullmatch(name) and name not in KEYWORDS else f'"{name}"'


def negate(formula: Formula) -> Formula:
    """The opposite; two negations cancel."""
    return formula.part if isinstance(formula, Not) else Not(formula)


def negation(literal: str) -> str:
    """The opposite of a literal that is written out: ``red`` and ``not red``."""
    return literal[4:] if literal.startswith("not ") else f"not {literal}"


def atoms(formula: Formula) -> Iterator[Atom]:
    """Every atom, from left to right, with repetitions."""
    if isinstance(formula, Atom):
        yield formula
    elif isinstance(formula, Not):
        yield from atoms(formula.part)
    else:
        for part in (formula.one, formula.other) if isinstance(formula, Xor) else formula.parts:
            yield from atoms(part)


def literals(formula: Formula) -> tuple[str, ...] | None:
    """The literals of a conjunction of literals, written out; None for any other formula."""
    if isinstance(formula, And):
        found = [literals(part) for part in formula.parts]
        return None if None in found else tuple(one for part in found for one in part or ())
    if isinstance(formula, Atom) or (isinstance(formula, Not) and isinstance(formula.part, Atom)):
        return (str(formula),)
    return None


def substitute(formula: Formula, variable: str, subject: str) -> Formula:
    """The formula with a subject in place of the variable, both where it stands alone and where it is spoken of."""
    if isinstance(formula, Atom):
        return Atom(*(subject if word == variable else word for word in (formula.name, formula.subject)))
    if isinstance(formula, Not):
        return Not(substitute(formula.part, variable, subject))
    if isinstance(formula, Xor):
        return Xor(substitute(formula.one, variable, subject), substitute(formula.other, variable, subject))
    return type(formula)(tuple(substitute(part, variable, subject) for part in formula.parts))


def strength(formula: Formula, of: Callable[[str], float], positive: bool = True) -> float:
    """How strongly a formula (or, not ``positive``, its opposite) holds: ``and`` is the weakest part, ``or`` the strongest.

    ``of`` tells it of a literal, 0 where it does not hold. A concept and its opposite count apart, so nothing is taken for
    false because it was not said. Nested ``xor`` is evaluated and never expanded.
    """
    return _strengths(formula, of)[0 if positive else 1]


def _strengths(formula: Formula, of: Callable[[str], float]) -> tuple[float, float]:
    """Of a formula and of its opposite at once: each part is looked at once, however deep ``xor`` is nested."""
    if isinstance(formula, Atom):
        return of(str(formula)), of(f"not {formula}")
    if isinstance(formula, Not):
        true, false = _strengths(formula.part, of)
        return false, true
    if isinstance(formula, Xor):
        one, other = _strengths(formula.one, of), _strengths(formula.other, of)
        return (
            max(min(one[0], other[1]), min(one[1], other[0])),
            max(min(one[0], other[0]), min(one[1], other[1])),
        )  # fmt: skip
    true, false = zip(*[_strengths(part, of) for part in formula.parts], strict=True)
    return (min(true), max(false)) if isinstance(formula, And) else (max(true), min(false))


def support(formula: Formula, of: Callable[[str], float], positive: bool = True) -> tuple[str, ...]:
    """The literals that :func:`strength` rests on, each once; of alternatives the strongest, the first among equals."""
    return tuple(dict.fromkeys(_support(formula, of, positive)))


def _support(formula: Formula, of: Callable[[str], float], positive: bool) -> Iterator[str]:
    if isinstance(formula, Atom):
        yield str(formula) if positive else f"not {formula}"
    elif isinstance(formula, Not):
        yield from _support(formula.part, of, not positive)
    elif isinstance(formula, Xor):
        ways = [(True, not positive), (False, positive)]
        best = max(
            ways, key=lambda way: min(strength(formula.one, of, way[0]), strength(formula.other, of, way[1]))
        )  # fmt: skip
        yield from _support(formula.one, of, best[0])
        yield from _support(formula.other, of, best[1])
    elif isinstance(formula, And) == positive:
        for part in formula.parts:
            yield from _support(part, of, positive)
    else:
        yield from _support(max(formula.parts, key=lambda part: strength(part, of, positive)), of, positive)


def tokenise(text: str, line: int = 0, listed: bool = False) -> list[Token]:
    """Names, keywords and parentheses of a line, a comment left out; ``listed``: commas may stand between them.

    Raises RuleError with the place of what cannot be read.
    """
    found, at = [], 0
    while at < len(text) and text[at] != "#":
        if listed and text[at] == ",":
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise RuleError(f"{text[at:][:12]!r} cannot be read; names with spaces go in quotes", line, at + 1)
        if match.lastgroup == "atom" and match.group().split("(")[0] in KEYWORDS:
            found.append(Token(match.group().split("(")[0], at + 1))
            at += len(found[-1].text)
            continue
        if match.lastgroup != "space":
            found.append(Token(match.group(), at + 1))
        at = match.end()
    return found


def words(token: str) -> list[str]:
    """The name, and the subject if there is one, that a token spells; a keyword is itself and a parenthesis nothing."""
    return [token] if token in KEYWORDS else [word.strip('"') for word in re.findall(_NAME, token)]


def flat(parts: Iterable[object], column: int = 1) -> list[Token]:
    """Tokens of a tuple of words, in which a tuple is a parenthesis."""
    found: list[Token] = []
    for part in parts:
        inner = [Token("(", 0), *flat(part), Token(")", 0)] if isinstance(part, (tuple, list)) else None
        text = str(part)
        found += inner or [Token(text if text in (*KEYWORDS, "(", ")") or "(" in text else quoted(text), 0)]
    return [token._replace(column=column + index) for index, token in enumerate(found)]


def parse(tokens: list[Token], line: int = 0, official: bool = False, end: Token | None = None) -> Formula:
    """The formula that tokens spell. Raises RuleError with the place of what does not fit.

    ``official``: ``not a b`` negates both names, as the published code reads it; else ``not`` takes the next name alone.
    ``end``: what stands behind the tokens, for messages.
    """
    reader = _Reader(tokens, line, official, end)
    found = reader.implication()
    if reader.here is not None:
        raise RuleError(f"'{reader.here.text}' does not fit here", line, reader.here.column)
    return found


def last_split(tokens: list[Token]) -> int:
    """Where the last ``is`` outside parentheses stands; -1 where there is none."""
    depth, found = 0, -1
    for index, token in enumerate(tokens):
        depth += (token.text == "(") - (token.text == ")")
        if token.text in SPLITS and depth == 0:
            found = index
    return found


def read_facts(facts: Mapping[str, float] | Iterable[str] | str) -> dict[str, float]:
    """Facts as literals with activations; those that are not positive do not hold.

    Raises InputError for text that is no literal and for activations that are no numbers.
    """
    given = facts if isinstance(facts, Mapping) else dict.fromkeys([facts] if isinstance(facts, str) else facts, 1.0)
    found: dict[str, float] = {}
    for text, value in given.items():
        try:  # numbers of numpy and torch too
            number = float("nan" if isinstance(value, str) else value)
        except (TypeError, ValueError, RuntimeError):
            number = float("nan")
        if number != number:
            raise InputError(f"the activation of '{text}' is {value!r}, expected a number")
        parts = literals(formula_of(text))
        if parts is None:
            raise InputError(f"'{text}' is no fact; give a concept or 'not' a concept")
        if number > 0:
            found |= dict.fromkeys(parts, number)
    return found


def formula_of(text: str) -> Formula:
    """A formula from text. Raises InputError for what is none."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{text!r} is no formula; give text such as 'red and not white'")
    return parse(tokenise(text))


class _Reader:
    """Recursive descent over tokens, one method a level."""

    def __init__(self, tokens: list[Token], line: int, official: bool, end: Token | None) -> None:
        self.tokens, self.line, self.official, self.end, self.at = tokens, line, official, end, 0
        self.depth = 0

    @property
    def here(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def takes(self, *words: str) -> bool:
        if self.here is not None and self.here.text in words:
            self.at += 1
            return True
        return False

    def implication(self) -> Formula:
        parts = [self.xor()]
        while self.takes(*SPLITS):
            parts.append(self.xor())
        if len(parts) > _DEEPEST:
            self.too_deep(f"'is' joins {len(parts)} parts, at most {_DEEPEST} can be read")
        found = parts[0]
        for part in parts[1:]:
            found = Or((negate(found), part))
        return found

    def xor(self) -> Formula:
        parts = [self.several(Or, "or", lambda: self.several(And, "and", self.run))]
        while self.takes("xor"):
            parts.append(self.several(Or, "or", lambda: self.several(And, "and", self.run)))
        if len(parts) > _LONGEST_XOR:
            self.too_deep(f"'xor' joins {len(parts)} parts, at most {_LONGEST_XOR} can be read")
        found = parts.pop()
        while parts:
            found = Xor(parts.pop(), found)
        return found

    def several(self, kind: type[And] | type[Or], word: str, part: Callable[[], Formula]) -> Formula:
        parts = [part()]
        while self.takes(word):
            parts.append(part())
        return _joined(kind, parts)

    def run(self) -> Formula:
        parts = [self.unary()]
        while self.here is not None and self.here.text not in (*SPLITS, "xor", "or", "and", ")"):
            parts.append(self.unary())
        return _joined(And, parts)

    def unary(self) -> Formula:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.too_deep(f"formulas that are nested more than {_DEEPEST} deep cannot be read")
        found = self.part()
        self.depth -= 1
        return found

    def part(self) -> Formula:
        if self.takes("not"):
            return negate(self.run() if self.official else self.unary())
        if self.takes("("):
            found = self.implication()
            if not self.takes(")"):
                self.refuse("')'")
            return found
        token = self.here
        if token is None or token.text in (*KEYWORDS, ")"):
            self.refuse("a concept")
        assert token is not None
        self.at += 1
        return Atom(*words(token.text))

    def too_deep(self, why: str) -> None:
        column = self.tokens[min(self.at, len(self.tokens) - 1)].column
        raise RuleError(f"{why}; give a part a name of its own by another rule", self.line, column)

    def refuse(self, wanted: str) -> None:
        last = self.tokens[-1] if self.tokens else Token("", 1)
        at = self.here or self.end or Token("the end", last.column + len(last.text))
        raise RuleError(f"{wanted} was expected and {at.text!r} found", self.line, at.column)


def _joined(kind: type[And] | type[Or], parts: list[Formula]) -> Formula:
    if len(parts) == 1:
        return parts[0]
    inner = (part.parts if isinstance(part, kind) else (part,) for part in parts)
    return kind(tuple(one for group in inner for one in group))


def _inside(formula: Formula) -> str:
    return str(formula) if isinstance(formula, (Atom, Not)) else f"({formula})"
