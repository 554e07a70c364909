"""A describer as one safetensors file: both networks, the words they know, and their sizes.

Tensors: ``captioner.*``, ``language.*`` and whatever the caller adds under ``extra.*``. Metadata: ``format`` =
``netloupe-describer``, ``version`` = ``1`` and ``describer`` (JSON: vocabulary, feature_dim, length, sizes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from netloupe.core.errors import StoreError
from netloupe.core.tensorfile import read_tensors, write_tensors
from netloupe.lenses.naming.captions import Vocabulary
from netloupe.lenses.naming.milan import LanguageModel, MilanDescriber
from netloupe.lenses.naming.milan_networks import Captioner, WordModel

FORMAT, VERSION = "netloupe-describer", "1"


def save_describer(describer: MilanDescriber, path: str | Path, extra: Mapping[str, Tensor] | None = None) -> Path:
    """Writes a fitted describer, whole or not at all; returns its path. Raises InputError before ``fit``, StoreError where it cannot."""
    captioner, vocabulary, language = describer._fitted()
    words, _ = language._fitted()
    tensors = {f"captioner.{name}": value for name, value in captioner.state_dict().items()}
    tensors |= {f"language.{name}": value for name, value in words.state_dict().items()}
    tensors |= {f"extra.{name}": value for name, value in (extra or {}).items()}
    meta = {
        "vocabulary": list(vocabulary.tokens), "feature_dim": captioner.init_h.in_features, "length": describer.length,
        "captioner": describer.sizes, "language": language.sizes, "random_state": describer.random_state,
    }  # fmt: skip
    words_of_it = {"format": FORMAT, "version": VERSION, "describer": json.dumps(meta)}
    return write_tensors(tensors, path, words_of_it, "describer")


def load_describer(path: str | Path) -> tuple[MilanDescriber, dict[str, Tensor]]:
    """What :func:`save_describer` wrote: the describer, and what was added under its names. Raises StoreError for another file."""
    tensors, meta = read_tensors(path)
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise StoreError(f"'{path}' is no netloupe describer of version {VERSION}")
    told = json.loads(meta["describer"])
    vocabulary = Vocabulary(tuple(told["vocabulary"]))
    language = LanguageModel(vocabulary, **told["language"], random_state=told["random_state"])
    language.network_ = WordModel(len(vocabulary), vocabulary.padding, **told["language"])
    language.network_.load_state_dict(_part(tensors, "language."))
    made = MilanDescriber(
        vocabulary, told["feature_dim"], **told["captioner"], length=told["length"], language=language, random_state=told["random_state"]
    )  # fmt: skip
    made.network_ = Captioner(len(vocabulary), told["feature_dim"], **told["captioner"])
    made.network_.load_state_dict(_part(tensors, "captioner."))
    made.network_.eval()
    language.network_.eval()
    return made, _part(tensors, "extra.")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
