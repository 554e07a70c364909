"""A network with codebooks at some of its sites (arXiv 2310.17230): trained, saved and read like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from netloupe.core.dictionary import Dictionary
from netloupe.core.errors import InputError, SiteError
from netloupe.core.hooks import Visit, attach, require_readable, unwrap
from netloupe.core.isolation import device_of
from netloupe.core.sites import module_paths, parse, select
from netloupe.core.store.names import near_misses
from netloupe.core.values import Side, entries_of, exchange, main_key
from netloupe.nn.codebook import Codebook, Forced


class CodebookModel(nn.Module):
    """``model`` with codebooks at its sites; what :func:`wrap_codebooks` returns.

    Sites of the network keep their names below ``model.`` and hold what goes into a codebook; what comes out is the site
    ``codebooks.<site>`` with ``/`` for every dot. The network itself is not changed: it is attached to while this one runs.
    """

    def __init__(self, model: nn.Module, codebooks: Mapping[str, Codebook]) -> None:
        super().__init__()
        self.model = model
        self.codebooks = nn.ModuleDict({_key(site): codebook for site, codebook in codebooks.items()})
        self.sites = tuple(codebooks)

    def __getitem__(self, site: str) -> Codebook:
        if _key(site) not in self.codebooks:
            raise SiteError(f"there is no codebook at '{site}'; {near_misses(site, self.sites)}")
        found = self.codebooks[_key(site)]
        assert isinstance(found, Codebook)
        return found

    def items(self) -> list[tuple[str, Codebook]]:
        """Sites and their codebooks."""
        return [(site, self[site]) for site in self.sites]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What ``model`` gives, with nothing but codes passing at the sites."""
        with self.attached():
            return self.model(*args, **kwargs)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The network itself runs with codebooks inside the block, for methods other than a call (``model.generate``)."""
        inner = unwrap(self.model)
        targets: dict[tuple[str, Side], Codebook] = {}
        for site, codebook in self.items():
            address = parse(site)[0]
            targets[address.path, address.side] = codebook

        def visit(seen: Visit) -> Any:
            codebook = targets.get((seen.path, seen.side))
            if codebook is None:
                return None
            found = dict(entries_of(seen.value, seen.side))
            key = main_key(list(found.items()))
            if key is None:
                raise SiteError(f"site '{seen.path}' gives nothing that holds a tensor, so it can have no codebook")
            return exchange(seen.value, seen.side, key, codebook(found[key]))

        with attach(inner, list(targets), visit):
            yield

    @contextmanager
    def force(self, codes: Mapping[str, Forced]) -> Iterator[None]:
        """:meth:`Codebook.force` at several sites."""
        with ExitStack() as stack:
            for site, ids in codes.items():
                stack.enter_context(self[site].force(ids))
            yield

    @property
    def ids(self) -> dict[str, Int[Tensor, "*rows group k"]]:
        """Codes of the last call at every site that ran."""
        return {site: codebook.ids for site, codebook in self.items() if codebook.ids is not None}

    def dictionary(self, site: str) -> Dictionary:
        """The codebook at a site as a :class:`~netloupe.core.dictionary.Dictionary` of ``model``'s site."""
        return self[site].dictionary(site)


def wrap_codebooks(model: nn.Module, sites: Mapping[str, Mapping[str, Any]]) -> CodebookModel:
    """Puts a codebook at each site of a network.

    Args:
        model: any network; what it computes elsewhere, and its weights, stay as they are.
        sites: name to the arguments of :class:`~netloupe.nn.codebook.Codebook`, ``dim`` included. Before an attention block's output
            projection it is ``"<projection>:in"`` with one group a head; the output of a feed-forward block is its path.

    Raises SiteError for unknown sites, globs and sites inside scripted modules; InputError for two sites of one module, single
    calls, and arguments that do not fit.

    Example: ``wrap_codebooks(gpt, {"blocks.0.attn.out:in": {"dim": 96, "n_codes": 400, "groups": 4}})``.
    """
    if not isinstance(model, nn.Module) or not sites:
        raise InputError(
            f"a network and at least one site are needed, got a {type(model).__name__} and {len(sites)} sites"
        )
    inner = unwrap(model)
    paths, seen, made = module_paths(inner), {}, {}
    for place, (site, arguments) in enumerate(sites.items()):
        address, is_glob = parse(site)
        if is_glob or address.call is not None or address.key is not None:
            raise InputError(f"'{site}' names several sites or a part of one; give each codebook one whole site")
        select(inner, site)  # an unknown site is an error that names the near misses
        require_readable(inner, address.path)
        same = seen.setdefault((id(paths[address.path]), address.side), site)
        if same != site:
            raise InputError(f"sites '{same}' and '{site}' are one module under two names; give it one codebook")
        try:
            made[site] = Codebook(**{"random_state": place, **arguments}).to(device_of(inner))
        except TypeError as error:
            raise InputError(f"the codebook at '{site}' cannot be made of {dict(arguments)}: {error}") from error
    return CodebookModel(model, made)


def codebook_param_groups(
    model: CodebookModel, lr: float, weight_decay: float = 0.01, factor: float = 1.0
) -> list[dict]:
    """Parameter groups for an optimiser: codebooks without weight decay, the network with ``weight_decay`` at ``factor * lr``."""
    own = {id(parameter) for parameter in model.codebooks.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    return [
        {"params": list(model.codebooks.parameters()), "lr": lr, "weight_decay": 0.0},
        {"params": rest, "lr": factor * lr, "weight_decay": weight_decay},
    ]


def _key(site: str) -> str:
    return site.replace(".", "/")
