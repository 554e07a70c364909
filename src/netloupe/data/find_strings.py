"""Programs on strings: some sixty operations, alone or two chained.

The operations are those of the published set (arXiv 2309.03886), with its behaviour in odd cases: shifting a last letter wraps only at
``z``, "subtracting" an index from a letter adds it, and the positions of digits speak of the last character alone. Operations that draw a
random position at each call are left out: they are no functions. Where the published code would fail on an empty string, the
result is empty.
"""

from __future__ import annotations

import string as letters
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from netloupe.core.errors import InputError
from netloupe.data.find import Function, Truth

VOWELS = "aeiouAEIOU"
_SPELLED = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty"""
_WORDS = _SPELLED.split()
_WORDS += [f"twenty-{one}" for one in _WORDS[1:10]] + ["thirty"]
_CONSONANTS = set(letters.ascii_letters) - set("eiouAEIOU")  # the published list has "a" in it
Operation = Callable[..., str]


def spelled(number: int) -> str:
    """A count in words up to thirty."""
    return _WORDS[number] if 0 <= number < len(_WORDS) else "unknown"


def _turned(char: str, by: int) -> str:
    if not char.isalpha() or not char.isascii():
        return char
    base = ord("a" if char.islower() else "A")
    return chr((ord(char) - base + by) % 26 + base)


def _all_turned(text: str, by: int) -> str:
    return "".join(_turned(char, by) for char in text)


def _by_letter_at(text: str, place: int, sign: int) -> str:
    if len(text) <= place:
        return text
    order = sign * (ord(text[place].lower()) - ord("a"))
    return "".join(_turned(char.lower(), order) if char.isalpha() else char for char in text)


def _middle_turned(text: str, by: int) -> str:
    return text if len(text) % 2 == 0 or len(text) < 3 else _one_turned(text, len(text) // 2, by)


def _one_turned(text: str, place: int, by: int) -> str:
    return text[:place] + _turned(text[place], by) + text[place + 1 :]


def _index_added(text: str, one: int, other: int) -> str:
    return text if len(text) <= max(one, other) else _one_turned(text, other, one)


def _middle(text: str) -> str:
    half = len(text) // 2
    return text[half - 1 : half + 1] if text and len(text) % 2 == 0 else text[half : half + 1]


def _inserted(text: str, what: Any) -> str:
    half = len(text) // 2
    return text[:half] + str(what) + text[half:]


def _vowels_by(text: str, char: str) -> str:
    return "".join(char if one in VOWELS else one for one in text)


def _vowels_reversed(text: str) -> str:
    found = [char for char in text if char in VOWELS]
    return "".join(found.pop() if char in VOWELS else char for char in text)


def _count(text: str, test: Callable[[str], bool]) -> str:
    return spelled(sum(map(test, text)))


def _kept(text: str, test: Callable[[str], bool]) -> str:
    return "".join(filter(test, text))


def _swapped(text: str, one: int, other: int) -> str:
    if len(text) <= max(one, other):
        return text
    chars = list(text)
    chars[one], chars[other] = chars[other], chars[one]
    return "".join(chars)


def _ordinal(char: str) -> str:
    lower = char.lower()
    return spelled(ord(lower) - ord("a") + 1) if lower in letters.ascii_lowercase and lower else "zero"


def _nudged(text: str, first: bool, by: int, wraps: str) -> str:
    """One letter at an end moved by ``by`` places in the code table; only the last letter of the alphabet wraps, to the first."""
    char = text[:1] if first else text[-1:]
    if not char.isalpha():
        return text
    found = {wraps[0]: wraps[1], wraps[0].upper(): wraps[1].upper()}.get(char) or chr(max(ord(char) + by, 0))
    return found + text[1:] if first else text[:-1] + found


def _digit_at_end(text: str) -> str:
    return spelled(text.find(text[-1])) if text and text[-1].isdigit() else ""


def _ind_of_count(text: str) -> str:
    return _vowels_by(text, text[sum(char in VOWELS for char in text) - 1]) if text else text


def _find(text: str, part: str) -> str:
    at = text.find(part)
    return "none" if at < 0 else spelled(at)


def _alternating(text: str) -> str:
    return "".join(char.lower() if at % 2 else char.upper() for at, char in enumerate(text))


OPERATIONS: dict[str, Operation] = {
    "convert_to_lowercase": str.lower,
    "convert_to_uppercase": str.upper,
    "capitalize_string": str.capitalize,
    "reverse_string": lambda s: s[::-1],
    "reverse_string_first_half": lambda s: s[: len(s) // 2][::-1] + s[len(s) // 2 :],
    "reverse_string_last_half": lambda s: s[: len(s) // 2] + s[len(s) // 2 :][::-1],
    "extract_digits": lambda s: " ".join(_WORDS[int(char)] for char in s if char in letters.digits),
    "remove_digits": lambda s: _kept(s, lambda char: not char.isdigit()),
    "extract_uppers": lambda s: _kept(s, str.isupper),
    "remove_whitespace": lambda s: "".join(s.split()),
    "get_string_length": lambda s: spelled(len(s)),
    "get_digit_indexes": _digit_at_end,
    "get_alpha_indexes": lambda s: " ".join(spelled(s.find(char)) for char in s if char.isalpha()),
    "get_first_character": lambda s: s[:1],
    "get_last_character": lambda s: s[-1:],
    "get_mid_character": _middle,
    "remove_duplicates": lambda s: "".join(dict.fromkeys(s)),
    "reverse_words": lambda s: " ".join(word[::-1] for word in s.split()),
    "count_vowels": lambda s: _count(s, VOWELS.__contains__),
    "replace_vowels_with_character": _vowels_by,
    "replace_vowels_with_first": lambda s: _vowels_by(s, s[:1]),
    "replace_vowels_with_last": lambda s: _vowels_by(s, s[-1:]),
    "replace_vowels_with_mid": lambda s: s if len(s) < 2 else _vowels_by(s, s[len(s) // 2]),
    "replace_vowels_with_ind_of_count": _ind_of_count,
    "reverse_vowels": _vowels_reversed,
    "capitalize_alternating_letters": _alternating,
    "count_consonants": lambda s: _count(s, _CONSONANTS.__contains__),
    "count_uppercase": lambda s: _count(s, str.isupper),
    "count_lowercase": lambda s: _count(s, str.islower),
    "count_character_repetitions": lambda s, char: spelled(s.count(char)),
    "string_strip": str.strip,
    "string_lstrip": str.lstrip,
    "string_rstrip": str.rstrip,
    "add_number_to_string": _all_turned,
    "subtract_number_to_string": lambda s, by: _all_turned(s, -by),
    "advance_by_character_order": lambda s, place: _by_letter_at(s, place, 1),
    "substract_by_character_order": lambda s, place: _by_letter_at(s, place, -1),
    "add_len_to_string": lambda s: _all_turned(s, len(s)),
    "add_number_to_middle": _middle_turned,
    "subtract_middle_character": lambda s, by: _middle_turned(s, -by),
    "add_len_to_middle": lambda s: _middle_turned(s, len(s)),
    "add_order_of_inx1_to_inx2": _index_added,
    "sub_order_of_inx1_to_inx2": _index_added,
    "insert_number": _inserted,
    "insert_letter": _inserted,
    "add_letter_if_needed": lambda s, char: s if s.endswith(char) else s + char,
    "split_string": lambda s, char: " ".join(s.split(char)),
    "string_concatenate": lambda s, tail: s + tail,
    "count_substring": lambda s, part: spelled(s.count(part)),
    "find_string": _find,
    "remove_substring": lambda s, part: s.replace(part, ""),
    "replace_substring": lambda s, old, new: s.replace(old, new),
    "duplicate_first_letter": lambda s: s + s[:1],
    "duplicate_last_letter": lambda s: s + s[-1:],
    "duplicate_mid_letter": lambda s: s + s[len(s) // 2 : len(s) // 2 + 1],
    "swap_first_last": lambda s: s if len(s) < 2 else s[-1] + s[1:-1] + s[0],
    "swap_rand": _swapped,
    "map_string": lambda s, table: "".join(
        table[ord(c.lower()) - 97] if c.lower() in letters.ascii_lowercase else c for c in s
    ),
    "get_first_character_ordinality": lambda s: _ordinal(s[:1]),
    "get_last_character_ordinality": lambda s: _ordinal(s[-1:]),
    "get_mid_character_ordinality": lambda s: _ordinal(s[len(s) // 2 : len(s) // 2 + 1]),
    "shift_last_letter_rand": lambda s, by: _nudged(s, False, by, "za"),
    "shift_first_letter_rand": lambda s, by: _nudged(s, True, by, "za"),
    "shift_last_letter_predecessor_rand": lambda s, by: _nudged(s, False, -by, "az"),
    "shift_first_letter_predecessor_rand": lambda s, by: _nudged(s, True, -by, "az"),
}
DIGITS = ("add_number_to_string", "subtract_number_to_string", "insert_number", "add_number_to_middle", "subtract_middle_character",
          "advance_by_character_order", "substract_by_character_order")  # fmt: skip
LETTERS = ("add_letter_if_needed", "insert_letter", "count_character_repetitions", "split_string", "count_substring", "find_string",
           "remove_substring", "replace_vowels_with_character")  # fmt: skip
PLACES = ("swap_rand", "add_order_of_inx1_to_inx2", "sub_order_of_inx1_to_inx2")
SHIFTS = tuple(name for name in OPERATIONS if name.startswith("shift_"))
# Operations that leave little or nothing for a second one to do; what follows them is not another of their kind.
_SPELLS = ("extract_digits", "get_string_length", "get_digit_indexes", "get_alpha_indexes", "count_vowels", "count_consonants",
           "count_uppercase", "count_lowercase", "count_character_repetitions", "count_substring", "find_string",
           "get_first_character_ordinality", "get_last_character_ordinality", "get_mid_character_ordinality")  # fmt: skip
_CASES = ("convert_to_lowercase", "convert_to_uppercase", "extract_uppers", "count_uppercase", "count_lowercase")
_REPLACING = ("reverse_vowels", "count_vowels", *(name for name in OPERATIONS if name.startswith("replace_vowels")))
_SPACES = ("remove_whitespace", "string_strip", "string_lstrip", "string_rstrip")
_SINGLE = ("get_first_character", "get_last_character", "get_mid_character", "map_string")  # not in chains


def avoided(outer: str, inner: str) -> bool:
    """Whether two operations are not chained: one undoes or hides the other, or leaves one letter."""
    if outer == inner or outer in _SINGLE or inner in _SINGLE:
        return True
    if inner in _SPELLS:  # what comes out is a number in words
        return outer in (
            *_SPELLS,
            *_CASES[:1],
            *_SPACES,
            "remove_digits",
            "replace_vowels_with_ind_of_count",
            *PLACES[1:],
        )
    return any(outer in group and inner in group for group in (_CASES, _REPLACING, _SPACES)) or {outer, inner} == {
        "remove_digits", "extract_digits",
    }  # fmt: skip


def draw_operation(name: str, rng: np.random.Generator) -> tuple[Any, ...]:
    """Parameters of an operation: digits 1 to 9, letters, suffixes of 1 to 5 letters, places 0 to 9, shifts 0 to 25."""

    def some(n: int) -> str:
        return "".join(rng.choice(list(letters.ascii_letters), n))

    if name in DIGITS:
        return (int(rng.integers(1, 10)),)
    if name in LETTERS:
        return (some(1),)
    if name in PLACES:
        return tuple(int(one) for one in rng.permutation(10)[:2])
    if name in SHIFTS:
        return (int(rng.integers(0, 26)),)
    if name == "string_concatenate":
        return (some(int(rng.integers(1, 6))),)
    if name == "replace_substring":
        return tuple(str(one) for one in rng.permutation(list(letters.ascii_letters))[:2])
    if name == "map_string":
        return ("".join(rng.permutation(list(letters.ascii_lowercase))),)
    return ()


def apply(name: str, text: str, *params: Any) -> str:
    """One operation on a text. Raises InputError for an unknown name."""
    if name not in OPERATIONS:
        raise InputError(f"there is no operation '{name}'; see OPERATIONS")
    return OPERATIONS[name](text, *params)


def run_program(steps: Any, text: str) -> str:
    """Operations ``((name, params), ...)``, the last one first, as in ``f(g(text))``."""
    for name, params in reversed(tuple(steps)):
        text = apply(name, text, *params)
    return text


def program(truth: Truth) -> Function:
    """The function that a truth of kind ``string`` describes."""
    return Function(truth, partial(run_program, truth.params))


def make_strings(n: int, seed: int = 0, compose: float = 0.7) -> list[Function]:
    """``n`` programs, a share ``compose`` of them two operations; the parameters of :class:`Truth` are ``((name, params), ...)``.

    Raises InputError for n < 1 or a share outside 0 to 1.
    """
    if n < 1 or not 0 <= compose <= 1:
        raise InputError(f"n is {n} and compose {compose:g}; at least one function and a share are needed")
    found, names = [], list(OPERATIONS)
    for at in range(n):
        rng = np.random.default_rng([seed, at, 7])
        chosen = [str(rng.choice(names))]
        if rng.random() < compose:
            chosen = [str(one) for one in rng.choice(names, 2)]
            while avoided(*chosen):
                chosen = [str(one) for one in rng.choice(names, 2)]
        steps = tuple((name, draw_operation(name, rng)) for name in chosen)
        found.append(program(Truth("string", ";".join(chosen), steps, seed=1_000_003 * seed + at)))
    return found
