"""Reading small pieces of code without running them: expressions and functions walked as syntax trees.

Answers of an interpreter, and the files of published function sets, are code that nobody vouches for. They are parsed, every node is
checked against a list of what is allowed, and the tree is evaluated step by step: no import is made, no attribute is looked up on an
object that the list does not name, and steps and sizes are limited.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from netloupe.core.errors import InputError

MAX_STEPS = 200_000
MAX_LENGTH = 100_000  # characters or elements that a value may have
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Is: operator.is_, ast.IsNot: operator.is_not, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_, ast.Invert: operator.invert,
}  # fmt: skip
_SAME = ("sin", "cos", "tan", "tanh", "exp", "sqrt", "log", "log2", "log10", "abs", "sign", "floor", "ceil", "where", "maximum", "minimum",
         "heaviside", "ones_like", "zeros_like", "sinh", "cosh", "arctan", "clip")  # fmt: skip
_MATH: dict[str, Any] = {name: getattr(np, name) for name in _SAME} | {"pi": math.pi, "e": math.e, "power": np.power}
_PLAIN: dict[str, Any] = {
    "len": len, "str": str, "ord": ord, "chr": chr, "int": int, "float": float, "list": list, "set": set, "sorted": sorted,
    "range": range, "sum": sum, "any": any, "all": all, "enumerate": enumerate, "reversed": reversed, "round": round,
    "max": max, "min": min, "abs": np.abs, "True": True, "False": False,
}  # fmt: skip
_WORDS = """lower upper capitalize title swapcase isdigit isalpha isupper islower isalnum isspace startswith endswith
find index count split join replace strip lstrip rstrip"""
_TEXT = frozenset(_WORDS.split())
_METHODS: dict[type, frozenset[str]] = {
    str: _TEXT,
    list: frozenset({"append", "index", "count"}),
    dict: frozenset({"get", "keys", "values", "items"}),
}  # fmt: skip


class ForbiddenError(InputError):
    """Code that uses something outside the allowed list, or more steps than allowed."""


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class SafeCode:
    """A module of functions, or one expression in ``x`` (or ``string``), evaluated from its syntax tree.

    Allowed: arithmetic, comparisons, conditions, loops, comprehensions, strings, lists and dictionaries, the functions of ``np`` and
    ``math`` that are curves, and methods of strings that change no case outside them. Numbers in an expression are 64-bit floats when
    ``floats`` is set, so that no power grows without limit.

    Args:
        source: text of the code. floats: integers become floats, for numeric curves.
        random: draws for ``random.randint(low, high)`` and ``np.random.normal/uniform/poisson``; without it these are refused.

    Raises ForbiddenError for what is not allowed, InputError for text that is no code.
    """

    def __init__(self, source: str, floats: bool = False, random: np.random.Generator | None = None) -> None:
        self.floats, self.random, self._steps = floats, random, 0
        try:
            self.tree = ast.parse(source.strip())
        except (SyntaxError, ValueError, RecursionError) as error:
            raise InputError(f"the code cannot be parsed ({error}); give one expression or functions") from error
        self.functions = {node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        body = [node for node in self.tree.body if isinstance(node, ast.Expr)]
        self.expression = body[-1].value if body and not self.functions else None
        if not self.functions and self.expression is None:
            raise InputError("the code holds neither an expression nor a function; give one of the two")

    @property
    def main(self) -> str:
        """The function that answers: ``function``, or the last one."""
        return "function" if "function" in self.functions else next(reversed(self.functions))

    def __call__(self, value: Any) -> Any:
        """The result for one input (or, for curves, an array of inputs)."""
        self._steps = 0
        with np.errstate(all="ignore"):
            if self.expression is not None:
                return self._value(self.expression, {"x": value, "string": value})
            return self._call(self.functions[self.main], [value])

    def _call(self, node: ast.FunctionDef, values: list[Any]) -> Any:
        names = [one.arg for one in node.args.args]
        defaults = [self._value(one, {}) for one in node.args.defaults]
        missing = len(names) - len(values)
        if missing:
            values = [*values, *defaults[len(defaults) - missing :]]
        if len(values) != len(names):
            raise ForbiddenError(
                f"'{node.name}' takes {len(names)} inputs and was given {len(values)}; one is expected"
            )
        try:
            self._run(node.body, dict(zip(names, values, strict=True)))
        except _Return as answer:
            return answer.value
        return None

    def _run(self, body: list[ast.stmt], names: dict[str, Any]) -> None:
        for node in body:
            self._count()
            match node:
                case ast.Return(value=value):
                    raise _Return(None if value is None else self._value(value, names))
                case ast.Assign(targets=[target], value=value):
                    self._assign(target, self._value(value, names), names)
                case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                    names[name] = self._binary(op, names[name], self._value(value, names))
                case ast.If(test=test, body=yes, orelse=no):
                    self._run(yes if self._value(test, names) else no, names)
                case ast.For(target=target, iter=over, body=inner):
                    for value in self._sized(self._value(over, names)):
                        self._assign(target, value, names)
                        self._run(inner, names)
                case ast.While(test=test, body=inner):
                    while self._value(test, names):
                        self._run(inner, names)
                case ast.Expr(value=value):
                    self._value(value, names)
                case ast.Pass() | ast.Import() | ast.ImportFrom():
                    continue  # nothing is imported: names that modules would bring are known or refused where they are used
                case _:
                    raise ForbiddenError(
                        f"a {type(node).__name__} is not allowed in code that is read; use plain expressions"
                    )

    def _assign(self, target: ast.expr, value: Any, names: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = value
            case ast.Tuple(elts=parts):
                for part, one in zip(parts, list(value), strict=True):
                    self._assign(part, one, names)
            case ast.Subscript(value=holder, slice=place):
                into = self._value(holder, names)
                if not isinstance(into, (list, dict)):
                    raise ForbiddenError("only elements of lists and dictionaries can be assigned to")
                into[self._value(place, names)] = value
            case _:
                raise ForbiddenError(f"a {type(target).__name__} cannot be assigned to in code that is read")

    def _value(self, node: ast.AST, names: dict[str, Any]) -> Any:
        self._count()
        match node:
            case ast.Constant(value=value):
                return (
                    np.float64(value)
                    if self.floats and isinstance(value, (int, float)) and not isinstance(value, bool)
                    else value
                )
            case ast.Name(id=name):
                return self._named(name, names)
            case ast.Attribute(value=ast.Name(id="np" | "numpy" | "math"), attr=name) if name in _MATH:
                return _MATH[name]
            case ast.Attribute(attr="shape"):
                return None  # the size of noise is that of its input
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(op, self._value(left, names), self._value(right, names))
            case ast.UnaryOp(op=op, operand=operand):
                return _UNARY[type(op)](self._value(operand, names))
            case ast.BoolOp(op=op, values=values):
                stops = isinstance(op, ast.Or)
                for one in values:
                    found = self._value(one, names)
                    if bool(found) is stops:
                        return found
                return found
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compare(self._value(left, names), ops, others, names)
            case ast.IfExp(test=test, body=yes, orelse=no):
                return self._value(yes if self._value(test, names) else no, names)
            case ast.Subscript(value=holder, slice=place):
                return self._value(holder, names)[self._value(place, names)]
            case ast.Slice(lower=low, upper=high, step=step):
                return slice(*(None if one is None else self._value(one, names) for one in (low, high, step)))
            case ast.List(elts=parts):
                return [self._value(one, names) for one in parts]
            case ast.Tuple(elts=parts):
                return tuple(self._value(one, names) for one in parts)
            case ast.Dict(keys=keys, values=values):
                return {
                    self._value(k, names): self._value(v, names)
                    for k, v in zip(keys, values, strict=True)
                    if k is not None
                }
            case ast.ListComp(elt=what, generators=[one]) | ast.GeneratorExp(elt=what, generators=[one]):
                return self._comprehended(what, one, names)
            case ast.Call():
                return self._called(node, names)
        raise ForbiddenError(f"a {type(node).__name__} is not allowed in code that is read; use plain expressions")

    def _named(self, name: str, names: dict[str, Any]) -> Any:
        for known in (names, self.functions, _PLAIN, _MATH):
            if name in known:
                return known[name]
        raise ForbiddenError(
            f"the name '{name}' is not allowed in code that is read; use x and functions of np or math"
        )

    def _comprehended(self, what: ast.expr, one: ast.comprehension, names: dict[str, Any]) -> list[Any]:
        found, inner = [], dict(names)
        for value in self._sized(self._value(one.iter, names)):
            self._assign(one.target, value, inner)
            if all(self._value(test, inner) for test in one.ifs):
                found.append(self._value(what, inner))
        return found

    def _binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(op, ast.Pow):
            return np.power(np.asarray(left, dtype=np.float64), right)
        if type(op) not in _BINARY:
            raise ForbiddenError(f"the operator {type(op).__name__} is not allowed in code that is read")
        if isinstance(op, ast.Mult) and any(isinstance(one, (str, list, tuple)) for one in (left, right)):
            size = max(len(one) for one in (left, right) if isinstance(one, (str, list, tuple)))
            times = next((one for one in (left, right) if isinstance(one, (int, float))), 1)
            if size * times > MAX_LENGTH:
                raise ForbiddenError(
                    f"a value of {size * times:g} elements is larger than the {MAX_LENGTH} that are allowed"
                )
        return self._sized(_BINARY[type(op)](left, right))

    def _compare(self, left: Any, ops: list[ast.cmpop], others: list[ast.expr], names: dict[str, Any]) -> Any:
        found: Any = True
        for op, other in zip(ops, others, strict=True):
            right = self._value(other, names)
            found = (
                np.logical_and(found, _COMPARE[type(op)](left, right))
                if len(ops) > 1
                else _COMPARE[type(op)](left, right)
            )
            left = right
        return found

    def _called(self, node: ast.Call, names: dict[str, Any]) -> Any:
        said = ast.unparse(node.func)
        keys = {str(one.arg): self._value(one.value, names) for one in node.keywords if not said.endswith("sorted")}
        if self.random is not None and said in (
            "np.random.normal",
            "np.random.uniform",
            "np.random.poisson",
            "random.randint",
        ):
            values = [self._value(one, names) for one in node.args]
            if said == "random.randint":
                return int(self.random.integers(values[0], values[1] + 1))
            return getattr(self.random, said.rsplit(".", 1)[1])(
                *values, **{k: v for k, v in keys.items() if k != "size"}
            )
        if isinstance(node.func, ast.Attribute) and not said.startswith(("np.", "numpy.", "math.")):
            return self._method(node.func, [self._value(one, names) for one in node.args], names)
        function = self._value(node.func, names)
        values = [self._value(one, names) for one in node.args]
        if isinstance(function, ast.FunctionDef):
            return self._call(function, values)
        if not callable(function) or keys:
            raise ForbiddenError(f"'{said}' cannot be called like this in code that is read")
        if function is sorted and node.keywords:
            by = node.keywords[0].value
            if not isinstance(by, ast.Attribute) or by.attr != "index":
                raise ForbiddenError("only .index may be the key of a sort")
            return sorted(values[0], key=self._value(by.value, names).index)
        return self._sized(function(*values))

    def _method(self, node: ast.Attribute, values: list[Any], names: dict[str, Any]) -> Any:
        holder = self._value(node.value, names)
        if node.attr not in _METHODS.get(type(holder), frozenset()):
            raise ForbiddenError(f"the method '{node.attr}' is not allowed in code that is read")
        if node.attr == "join" and sum(map(len, values[0])) + len(holder) * len(values[0]) > MAX_LENGTH:
            raise ForbiddenError(f"a text of more than {MAX_LENGTH} characters is not allowed in code that is read")
        if node.attr == "replace" and len(holder) * (len(values[1]) + 1) > MAX_LENGTH:
            raise ForbiddenError(f"a text of more than {MAX_LENGTH} characters is not allowed in code that is read")
        return self._sized(getattr(holder, node.attr)(*values))

    @staticmethod
    def _sized(value: Any) -> Any:
        if isinstance(value, (list, tuple, dict, set, range)) and len(value) > MAX_LENGTH:
            raise ForbiddenError(f"a value of {len(value)} elements is larger than the {MAX_LENGTH} that are allowed")
        if isinstance(value, str) and len(value) > MAX_LENGTH:
            raise ForbiddenError(f"a text of {len(value)} characters is larger than the {MAX_LENGTH} that are allowed")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 64:
            raise ForbiddenError("integers above 64 bits are not allowed in code that is read")
        return value

    def _count(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise ForbiddenError(f"the code took more than {MAX_STEPS} steps; give one that ends")
