"""Reads a published set of functions from its folder: from syntax trees, nothing in it is run."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from netloupe.core.errors import InputError, SubjectError
from netloupe.data.find import Function, Truth
from netloupe.data.find_code import SafeCode
from netloupe.data.find_neurons import WordSpace, make_entities
from netloupe.data.find_numeric import curve, domain_of

CODE = "code"  # the family of a function that is known by its code alone


def load_find(folder: str | Path, space: WordSpace | None = None) -> list[Function]:
    """The functions of a folder that holds ``f00000/function_code.py`` and so on, in order.

    What a file is - curve, approximation, program, unit - is told from its tree. Family, parameters and domain come from
    ``data.json`` beside
    the folders where there is one; the value comes from the code itself. Entity units respond in ``space``; without one, they and
    relation units (which the set leaves to a language model) are described but refuse calls.

    Raises SubjectError for a folder without functions and for code outside the subset that can be read.
    """
    root = Path(folder)
    files = sorted(root.glob("f*/function_code.py"))
    if not files:
        raise SubjectError(f"'{root}' holds no f*/function_code.py; give the folder of one kind of functions")
    rows: dict[str, dict[str, Any]] = {}
    if (root / "data.json").is_file():
        rows = {Path(str(row["dir"])).name: row for row in json.loads((root / "data.json").read_text(encoding="utf-8"))}
    found = []
    for at, path in enumerate(files):
        try:
            found.append(_read(path, rows.get(path.parent.name, {}), space, at))
        except (InputError, SyntaxError, KeyError, OSError) as error:
            raise SubjectError(f"'{path}' cannot be read as a function: {error}") from error
    return found


def _read(path: Path, row: dict[str, Any], space: WordSpace | None, seed: int) -> Function:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    weights = path.with_name("mlp_approx_model.pt")
    name = str(row.get("name", CODE)).split("(")[0]
    if any(isinstance(node, ast.ClassDef) for node in tree.body) and weights.is_file():
        truth = Truth(
            "numeric", name, _tuples(row.get("params", ())), "approximated", domain=domain_of(name), seed=seed
        )
        return curve(_with_weights(truth, weights))
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    hints = tuple(row.get("initial", ()))
    if "concept" in constants or "concept1" in constants:
        return _entity([str(constants[key]) for key in sorted(constants) if key.startswith("concept")], space, hints)
    if "con1" in constants:
        odd = tuple(str(value) for key, value in sorted(constants.items()) if key.startswith("exc"))
        said = Truth(
            "relation", f"{constants['con1']} -> {constants.get('con2', '')}", odd, "inside" if odd else "clean"
        )
        return Function(said, _refuse, hints)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if functions[-1].args.args[0].arg == "x":
        return _curve(functions[-1], name, _tuples(row.get("params", ())), seed)
    source = "\n".join(ast.unparse(node) for node in functions)
    code = SafeCode(source, random=np.random.default_rng(seed))
    return Function(Truth("string", CODE, (source,), seed=seed), code)


def _refuse(_: str) -> Any:
    raise InputError(
        "this unit is a language model's answer in the published set; give a word space, or make_relations a table"
    )


def _entity(concepts: list[str], space: WordSpace | None, hints: tuple[str, ...]) -> Function:
    if space is None:
        return Function(Truth("entity", "concept", tuple(concepts)), _refuse, hints)
    made = make_entities([tuple(concepts)], space)[0]
    return Function(made.truth, made.clean, hints)


def _with_weights(truth: Truth, path: Path) -> Truth:
    import torch

    state = torch.load(
        path, weights_only=True, map_location="cpu"
    )  # tensors only: a pickle of anything else is refused
    return replace(truth, network=tuple(tuple(one.double().flatten().tolist()) for one in state.values()))


def _curve(function: ast.FunctionDef, name: str, params: Any, seed: int) -> Function:
    """A curve from its last return statement, without the noise or the corruption that is written into it."""
    value = next(node.value for node in reversed(function.body) if isinstance(node, ast.Return))
    if value is None:
        raise InputError("the function returns nothing")
    nuisance, interval, level = "clean", None, 0.0
    match value:
        case ast.BinOp(left=clean, op=ast.Add(), right=ast.Call() as noise) if "np.random" in ast.unparse(noise.func):
            value, nuisance = clean, ast.unparse(noise.func).rsplit(".", 1)[1]
        case ast.Call(args=[test, one, other]) if "np.random.normal" in ast.unparse(value):
            flipped = "np.random.normal" in ast.unparse(one)
            value, drawn = (other, one) if flipped else (one, other)
            nuisance, interval = _interval(test)
            level = _keyword(drawn, "loc")
    body = [*function.body[:-1], ast.Return(value)]
    kept = [node for node in body if not isinstance(node, (ast.If, ast.Import, ast.ImportFrom))]
    source = ast.unparse(ast.FunctionDef("function", function.args, kept, [], lineno=1))
    code = SafeCode(source, floats=True)
    truth = Truth("numeric", name, params or (source,), nuisance, interval, level, domain_of(name), seed)
    return Function(truth, lambda x: code(np.asarray(x, dtype=np.float64)))


def _keyword(call: ast.expr, name: str) -> float:
    if not isinstance(call, ast.Call):
        raise InputError("the corrupted part is no call of np.random.normal")
    return float(ast.literal_eval(next(one.value for one in call.keywords if one.arg == name)))


def _interval(test: ast.expr) -> tuple[str, tuple[float, float]]:
    match test:
        case ast.Compare(ops=[ast.Gt()], comparators=[end]):
            return "smaller", (-np.inf, float(ast.literal_eval(end)))
        case ast.Compare(ops=[ast.Lt()], comparators=[end]):
            return "larger", (float(ast.literal_eval(end)), np.inf)
        case ast.BinOp(left=ast.Compare(comparators=[low]), right=ast.Compare(comparators=[high])):
            return "inside", (float(ast.literal_eval(low)), float(ast.literal_eval(high)))
    raise InputError(f"'{ast.unparse(test)}' is no interval")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value if value is not None else ()
