"""Exchanging modules inside any network, with an account of what was exchanged and what was not."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from netloupe.core.errors import InputError

Matcher = type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Replacement:
    """Module paths in the order of ``named_modules()``; a module used under several names is listed under each.

    ``matched`` were exchanged. ``unmatched`` are the modules without children that stayed, parts of exchanged ones
    left out; with functional calls (``F.relu``), which no exchange can see, this is where to look for what is missing.
    """

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        return f"replaced {len(self.matched)} modules ({', '.join(self.matched)}), left {len(self.unmatched)}"


def replace(model: nn.Module, matcher: Matcher, factory: Callable[[nn.Module], nn.Module]) -> Replacement:
    """Exchanges every matching module of ``model``, in place, for what ``factory`` makes of it.

    Args:
        model: any network; it is changed. The network itself cannot be exchanged, only what is in it.
        matcher: a module class (or several), a shell glob on module paths such as ``"blocks.*.act"``, or a function
            ``(path, module) -> bool``.
        factory: takes the old module, which it may build into the new one. A module used in several places is
            exchanged once, so that its places go on sharing. The new module takes over train/eval mode.

    What lies inside an exchanged module is not searched. Raises InputError when nothing matches or the factory's
    answer is no module.
    """
    paths = dict(model.named_modules(remove_duplicate=False))
    matches = _matches(matcher)
    made: dict[int, nn.Module] = {}
    old: list[nn.Module] = []  # keeps ids from being used again
    matched, unmatched, done = [], [], set()
    for path, module in paths.items():
        if not path or _inside(path, done):
            continue
        if matches(path, module):
            if id(module) not in made:
                old.append(module)
                made[id(module)] = _made(factory, path, module)
            matched.append(path)
            done.add(path)
        elif not any(True for _ in module.children()):
            unmatched.append(path)
    if not matched:
        kinds = sorted({type(module).__name__ for path, module in paths.items() if path})
        raise InputError(
            f"no module of the network matches {_told(matcher)}; it holds {', '.join(kinds) or 'no modules'}: name one "
            "of these, and mind that functional calls cannot be replaced"
        )
    for path in matched:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made[id(paths[path])])
    return Replacement(tuple(matched), tuple(unmatched))


def _matches(matcher: Matcher) -> Callable[[str, nn.Module], bool]:
    if isinstance(matcher, str):
        return lambda path, module: fnmatch.fnmatchcase(path, matcher)
    if isinstance(matcher, (type, tuple)):
        return lambda path, module: isinstance(module, matcher)
    if not callable(matcher):
        raise InputError(
            f"matcher is a {type(matcher).__name__}, expected a module class, a glob or a function of path and module"
        )
    return matcher


def _inside(path: str, done: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:depth]) in done for depth in range(1, len(parts)))


def _made(factory: Callable[[nn.Module], nn.Module], path: str, module: nn.Module) -> nn.Module:
    new = factory(module)
    if not isinstance(new, nn.Module):
        raise InputError(f"the factory made a {type(new).__name__} of '{path}', expected a torch.nn.Module")
    return new if new is module else new.train(module.training)


def _told(matcher: Matcher) -> str:
    if isinstance(matcher, str):
        return f"'{matcher}'"
    if isinstance(matcher, tuple):
        return " or ".join(kind.__name__ for kind in matcher)
    return matcher.__name__ if isinstance(matcher, type) else "the given function"
