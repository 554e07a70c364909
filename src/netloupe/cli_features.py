"""The commands about features: ``netloupe dictionary`` learns one, ``netloupe feature`` shows one of its features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from netloupe.core.errors import InputError
from netloupe.terminal import OUT, Json, Positional, require_folder, short, subject_and_data, tell

Maker = Literal["pca", "snmf", "nmf", "feast", "relu", "topk", "batchtopk", "jumprelu"]


@dataclass
class DictionaryCommand:
    """Learn a dictionary of a site's features, score it and save it."""

    model: Positional[str]
    """as for inspect"""
    site: Annotated[str, tyro.conf.arg(aliases=["-s"])]
    """where, one site's name"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """the file to write (.safetensors); an interrupted call goes on when it is given again"""
    data: str | None = None
    """as for inspect"""
    maker: Maker = "topk"
    features: int = 256
    """how many"""
    option: tuple[str, ...] = ()
    """settings of the maker, such as k=16 steps=4000 l1=0.5 sparsity=0.05"""
    seed: int = 0
    samples: int | None = None
    batch_size: int = 64
    weights: str | None = None
    download: bool = False
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """Scores and path."""
        from netloupe.report.dictionaries import learn_dictionary

        require_folder(self.out.parent)
        if self.out.is_dir():
            raise InputError(f"'{self.out}' is a folder, expected the name of a file to write")
        options = dict(_option(text) for text in self.option)
        subject, data = subject_and_data(self, default=False)
        found = learn_dictionary(
            subject, data, self.site, self.maker, self.features, self.out, random_state=self.seed, progress=True, **options
        )  # fmt: skip
        document = found.document()
        tell(lambda: OUT.print(_said(document)), self.as_json)
        return document


@dataclass
class CardCommand:
    """Show one feature of a dictionary: samples, name with its score, what it does, who resembles it."""

    model: Positional[str]
    """as for inspect"""
    dictionary: Positional[Path]
    """a file of netloupe dictionary, a folder of SAELens or Sparsify, or 'units' for the units of --site themselves"""
    feature: Positional[int]
    data: str | None = None
    """as for inspect"""
    site: str = ""
    """where the dictionary belongs; what it says itself by default"""
    others: tuple[Path, ...] = ()
    """further dictionaries in which to look for neighbours"""
    kl: tuple[float, ...] = (0.1, 0.25)
    """how far outputs are pushed along the feature, in nats"""
    share: float = 0.05
    """of the samples that count as active when the name is scored"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("reports")
    """folder for the card: a picture and a JSON file"""
    samples: int | None = None
    batch_size: int = 64
    weights: str | None = None
    download: bool = False
    as_json: Json = False

    def run(self) -> dict[str, Any]:
        """The card's document and the paths of its files."""
        from netloupe.report.feature_card import feature_card

        require_folder(self.out)
        if (units := str(self.dictionary) == "units") and not self.site:
            raise InputError("'units' needs --site, whose units they are")
        known = None if units else _load(self.dictionary)
        others = {path.stem: _load(path) for path in self.others}
        subject, data = subject_and_data(self)
        dictionary = known or _units(subject, data, self.site)
        card = feature_card(
            subject, data, dictionary, self.feature, site=self.site, others=others, kl_targets=self.kl, share=self.share,
            progress=True,
        )  # fmt: skip
        written, picture = card.save(self.out)
        tell(lambda: OUT.print(f"{card.paragraph()}\n{picture}\n{written}", markup=False), self.as_json)
        return {**card.document(), "files": [str(written), str(picture)]}


def _load(path: Path) -> Any:
    from netloupe.core.dictionary import Dictionary
    from netloupe.lenses.dictionary.sae import load_saelens, load_sparsify

    if not path.is_dir():
        return Dictionary.load(path)
    return load_sparsify(path) if (path / "sae.safetensors").exists() else load_saelens(path)


def _units(subject: Any, data: Any, site: str) -> Any:
    from netloupe.core.capture import list_sites
    from netloupe.core.dictionary import unit_dictionary

    found = list_sites(subject.model, data.batches, [site])
    if len(found) != 1:
        raise InputError(
            f"'{site}' names {len(found)} sites ({', '.join(i.name for i in found[:3])}, ...); give one site's name"
        )
    info = found[0]
    return unit_dictionary(info.n_units, info.name)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--option is '{text}', expected name=value, such as k=16")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, {"true": True, "false": False}.get(value.lower(), value)


def _said(document: dict[str, Any]) -> str:
    scores, loss = document["scores"], document["loss"]
    recovered = f", {short(loss['recovered'])} of the loss recovered when it is spliced in" if loss else ""
    return (
        f"{document['n_features']} features of {document['site']} ({document['made_by']}) from {document['n_rows']} rows: "
        f"{short(scores['explained'])} of the variance explained, {short(scores['l0'])} features active a row, "
        f"{short(scores['dead'])} never{recovered}\n{document['path']}"
    )
