"""A dictionary of a site from a network and data: recorded, learned, scored, saved; interrupted, it goes on where it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from netloupe.core.capture import list_sites
from netloupe.core.dictionary import Dictionary, LossRecovered
from netloupe.core.errors import InputError
from netloupe.core.finding import plain
from netloupe.core.recording import record
from netloupe.core.rows import PositionRows
from netloupe.lenses.dictionary.makers import MAKERS, checked_options, make_dictionary
from netloupe.lenses.dictionary.sae import SparseAutoencoder
from netloupe.lenses.dictionary.score import Scores, score
from netloupe.nn.sparse_coder import ACTIVATIONS
from netloupe.subjects import Data, Subject

CHECKPOINTS = 10  # of a training, at most


@dataclass(frozen=True)
class Learned:
    """A saved dictionary with its scores; ``loss`` is None where the data define none."""

    dictionary: Dictionary
    scores: Scores
    loss: LossRecovered | None
    n_rows: int
    path: Path

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        made = self.dictionary
        return plain(
            {
                "path": str(self.path), "site": made.site, "made_by": made.made_by, "rule": made.rule, "n_features": len(made),
                "n_units": made.n_units, "n_rows": self.n_rows, "scores": self.scores._asdict(),
                "loss": None if self.loss is None else self.loss._asdict(),
            }
        )  # fmt: skip


def learn_dictionary(
    subject: Subject,
    data: Data,
    site: str,
    maker: str,
    n_features: int,
    out: str | Path,
    *,
    random_state: int = 0,
    progress: bool = False,
    **options: Any,
) -> Learned:
    """Records ``site`` over ``data``, makes a dictionary of it (:func:`~netloupe.lenses.dictionary.makers.make_dictionary`) and saves it.

    Recording and training keep what they have in a hidden folder beside ``out`` until the file is written; the same call after an
    interruption goes on from there to the same result. What was recorded takes ``4 n d`` bytes meanwhile.

    Raises InputError for an unknown maker or option, SiteError for an unknown site, StoreError where nothing can be written.
    """
    if maker not in MAKERS:
        raise InputError(f"the maker is '{maker}', expected one of {', '.join(MAKERS)}")
    options = checked_options(maker, options)
    target = Path(out)
    key = json.dumps(
        plain([subject.identity, data.identity, site, maker, n_features, random_state, options]), sort_keys=True
    )
    kept = target.parent / f".{target.name}-{xxhash.xxh3_64_hexdigest(key.encode())}"
    infos = list_sites(subject.model, data.batches, [site])
    if len(infos) != 1:
        raise InputError(
            f"'{site}' names {len(infos)} sites ({', '.join(i.name for i in infos[:3])}, ...); give one site's name"
        )
    name = infos[0].name
    store = record(
        subject.model,
        data.batches,
        [name],
        to=kept / "recording",
        resume=(kept / "recording").exists(),
        progress=progress,
    )
    values = store[name]
    rows = (
        PositionRows(values, store.mask if _masks(values, store.mask) else None) if len(values.shape) == 3 else values
    )
    if maker in ACTIVATIONS:
        every = max(1, int(options.get("steps", SparseAutoencoder(n_features).steps)) // CHECKPOINTS)
        options = {"checkpoint": str(kept / "checkpoint"), "checkpoint_every": every, "progress": progress, **options}
    try:
        made = make_dictionary(maker, rows, n_features, name, random_state=random_state, **options)
    except InputError:  # the same call would be refused again, so there is nothing to go on from
        shutil.rmtree(kept, ignore_errors=True)
        raise
    scores = score(made, rows)
    try:
        loss = made.loss_recovered(subject.model, data.batches)
    except InputError:
        loss = None
    path = made.save(target)
    shutil.rmtree(kept, ignore_errors=True)
    return Learned(made, scores, loss, int(rows.shape[0]), path)


def _masks(values: Any, mask: Any) -> bool:
    return mask is not None and tuple(mask.shape) == tuple(values.shape[:2])
