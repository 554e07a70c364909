"""Where each code fires, on disk: contexts of a code, and codes that fire where a pattern stands in the text.

Source: the code search of Tamkin, Taufeeque and Goodman, "Codebook Features", arXiv 2310.17230.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from netloupe.core.errors import InputError, StoreError
from netloupe.lenses.dictionary.codes import CodeScores, scores_of

_CHUNK = 1 << 20  # positions read at a time
_FORMAT = "netloupe-codes-1"


class CodeContext(NamedTuple):
    """One firing: sample and position, and the tokens around it (``tokens[at]`` is where it fired)."""

    sample: int
    position: int
    tokens: tuple[int, ...]
    at: int


class CodeMatch(NamedTuple):
    """A code that fires where a pattern stands."""

    group: int
    code: int
    precision: float
    recall: float
    fired: int


class CodeIndex:
    """Codes of a corpus at one site, with inverted lists; made by :meth:`build`, opened by ``CodeIndex(folder)``.

    The folder holds ``ids.npy`` ``(position, group, k)``, ``tokens.npy`` ``(position,)``, ``starts.npy`` (where each sample starts, and
    the end), ``offsets.npy`` and ``places.npy`` (for code ``g C + c`` the positions ``places[offsets[.]:offsets[. + 1]]``, rising) and
    ``manifest.json``. All of it is memory-mapped. Raises StoreError for a folder that is no index.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            if manifest["format"] != _FORMAT:
                raise ValueError("it has another format")
            self.n_codes: int = manifest["n_codes"]
            self.ids, self.tokens, self.starts, self.offsets, self.places = (
                np.load(path / f"{name}.npy", mmap_mode="r")
                for name in ("ids", "tokens", "starts", "offsets", "places")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"'{path}' is no index of codes ({str(error).splitlines()[0]}); make one with CodeIndex.build"
            ) from error
        self.n_groups = self.ids.shape[1]

    @classmethod
    def build(cls, folder: str | Path, batches: Iterable[tuple[Any, ...]], n_codes: int) -> CodeIndex:
        """Writes an index, whole or not at all, and opens it.

        Args:
            folder: must not exist. n_codes: rows of each table.
            batches: ``(tokens, ids)`` or ``(tokens, ids, mask)``: ``(sample, position)``, ``(sample, position, group, k)`` and bool
                ``(sample, position)``, False where there is padding, which is left out. Ids of -1 (not computed) fire nowhere.

        Cost: two passes over the ids, on disk; memory for one batch, one number a code and the tokens. Raises InputError for shapes
        that do not fit and ids out of range, StoreError where the folder exists or cannot be written.
        """
        target = Path(folder)
        if target.exists():
            raise StoreError(f"'{target}' exists already; give the index another folder or remove it")
        partial = target.with_name(f"{target.name}.partial{os.getpid()}")
        try:
            partial.mkdir(parents=True)
            _write(partial, batches, n_codes)
            os.replace(partial, target)
        except OSError as error:
            raise StoreError(f"the index could not be written to '{target}': {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(target)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> Int[np.ndarray, "group code"]:
        """How often each code fired."""
        return np.diff(self.offsets).reshape(self.n_groups, self.n_codes)

    def positions(self, code: int, group: int = 0) -> Int[np.ndarray, " firing"]:
        """Where a code fired: positions in the whole corpus, rising."""
        if not (0 <= code < self.n_codes and 0 <= group < self.n_groups):
            raise InputError(
                f"code {code} of group {group} was asked for, there are {self.n_codes} codes in {self.n_groups} groups"
            )
        row = group * self.n_codes + code
        return np.asarray(self.places[self.offsets[row] : self.offsets[row + 1]])

    def contexts(self, code: int, group: int = 0, n: int = 10, width: int = 8) -> list[CodeContext]:
        """Up to ``n`` firings, evenly spread over all of them, with ``width`` tokens of the same sample on either side."""
        found = self.positions(code, group)
        chosen = found[np.arange(min(n, len(found))) * len(found) // max(1, min(n, len(found)))]
        samples = np.searchsorted(self.starts, chosen, side="right") - 1
        made = []
        for place, sample in zip(chosen.tolist(), samples.tolist()):
            first, last = (
                max(int(self.starts[sample]), place - width),
                min(int(self.starts[sample + 1]), place + width + 1),
            )
            tokens = tuple(self.tokens[first:last].tolist())
            made.append(CodeContext(sample, place - int(self.starts[sample]), tokens, place - first))
        return made

    def token_entropy(self, code: int, group: int = 0) -> float:
        """Entropy of the tokens on which a code fires, in bits: 0 where it is always the same; NaN where it never fired."""
        found = self.positions(code, group)
        if not len(found):
            return float("nan")
        share = np.unique(self.tokens[found], return_counts=True)[1] / len(found)
        return float(abs(-(share * np.log2(share)).sum()))

    def precision_recall(self, mask: Any) -> CodeScores:
        """Every code as a detector of chosen positions: bool ``(position,)`` over the whole corpus. Cost: one pass over the ids."""
        wanted = np.asarray(mask)
        if wanted.dtype != np.bool_ or wanted.shape != (len(self),) or not wanted.any():
            raise InputError(
                f"the mask is {wanted.dtype} of shape {wanted.shape}, expected bool ({len(self)},) with one position chosen at least"
            )
        hits = np.zeros(self.n_groups * self.n_codes, dtype=np.int64)
        shift = np.arange(self.n_groups)[:, None] * self.n_codes
        for first in range(0, len(self), _CHUNK):
            ids = np.asarray(self.ids[first : first + _CHUNK])[wanted[first : first + _CHUNK]].astype(np.int64)
            hits += np.bincount((ids + shift)[ids >= 0], minlength=len(hits))
        return scores_of(self.counts, hits.reshape(self.n_groups, self.n_codes), int(wanted.sum()))

    def matches(self, pattern: str, decode: Callable[[int], str] = chr) -> Bool[np.ndarray, " position"]:
        """Positions whose token lies in a match of a regular expression, in the text of each sample.

        ``decode`` gives each token's text; the default is for bytes and characters. Raises InputError for a broken pattern.
        """
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise InputError(f"'{pattern}' is no regular expression: {error}") from error
        found = np.zeros(len(self), dtype=bool)
        words: dict[int, str] = {}
        for sample in range(len(self.starts) - 1):
            first, last = int(self.starts[sample]), int(self.starts[sample + 1])
            pieces = [words.setdefault(token, decode(token)) for token in self.tokens[first:last].tolist()]
            ends = np.cumsum([len(piece) for piece in pieces])
            for match in wanted.finditer("".join(pieces)):
                if match.end() > match.start():
                    begin = np.searchsorted(ends, match.start(), side="right")
                    found[first + begin : first + np.searchsorted(ends, match.end() - 1, side="right") + 1] = True
        return found

    def search(
        self, pattern: str, decode: Callable[[int], str] = chr, *, min_precision: float = 0.5, min_recall: float = 0.01
    ) -> list[CodeMatch]:
        """Codes that fire where a regular expression stands in the text, the most precise first (of equal ones those of higher recall).

        A topic's codes have a precision of half at least; one may want more. An empty list where nothing matches.
        """
        mask = self.matches(pattern, decode)
        if not mask.any():
            return []
        precision, recall, _ = self.precision_recall(mask)
        good = np.argwhere((precision >= min_precision) & (recall > min_recall))
        made = [
            CodeMatch(int(g), int(c), float(precision[g, c]), float(recall[g, c]), int(self.counts[g, c]))
            for g, c in good
        ]
        return sorted(made, key=lambda one: (-one.precision, -one.recall, one.group, one.code))


def _write(folder: Path, batches: Iterable[tuple[Any, ...]], n_codes: int) -> None:
    """Two passes: batches to disk with counts, then every position to its code's list."""
    lengths: list[int] = []
    tokens: list[np.ndarray] = []
    kind = np.dtype(np.int16 if n_codes <= np.iinfo(np.int16).max else np.int32)
    shape: tuple[int, int] | None = None
    counts = np.zeros(0, dtype=np.int64)
    with (folder / "ids.raw").open("wb") as file:
        for batch in batches:
            text, ids, kept = _batch(batch, n_codes, shape)
            shape = ids.shape[2], ids.shape[3]
            counts = counts if len(counts) else np.zeros(shape[0] * n_codes, dtype=np.int64)
            rows = ids[kept].astype(np.int64)
            counts += np.bincount((rows + np.arange(shape[0])[:, None] * n_codes)[rows >= 0], minlength=len(counts))
            file.write(rows.astype(kind).tobytes())
            tokens.append(text[kept].astype(np.int32))
            lengths += kept.sum(1).tolist()
    if shape is None or not sum(lengths):
        raise InputError("the batches hold no positions; give at least one")
    whole = np.memmap(folder / "ids.raw", dtype=kind, mode="r", shape=(sum(lengths), *shape))
    np.save(folder / "ids.npy", whole)
    np.save(folder / "tokens.npy", np.concatenate(tokens))
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    places = np.lib.format.open_memmap(folder / "places.npy", "w+", np.dtype(np.int64), (int(offsets[-1]),))
    cursor, shift = offsets[:-1].copy(), np.arange(shape[0])[:, None] * n_codes
    for first in range(0, len(whole), _CHUNK):
        rows = np.asarray(whole[first : first + _CHUNK]).astype(np.int64)
        fired = rows >= 0
        codes = (rows + shift)[fired]
        order = np.argsort(codes, kind="stable")
        codes, at = codes[order], first + np.nonzero(fired)[0][order]
        new = np.bincount(codes, minlength=len(cursor))
        rank = np.arange(len(codes)) - (np.cumsum(new) - new)[codes]
        places[cursor[codes] + rank] = at
        cursor += new
    places.flush()
    del whole
    (folder / "ids.raw").unlink()
    (folder / "manifest.json").write_text(json.dumps({"format": _FORMAT, "n_codes": n_codes}), encoding="utf-8")


def _batch(
    batch: tuple[Any, ...], n_codes: int, shape: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text, ids, *rest = (np.asarray(one.detach().cpu() if isinstance(one, Tensor) else one) for one in batch)
    kept = rest[0] if rest else np.ones(text.shape, dtype=bool)
    fits = text.ndim == 2 and ids.ndim == 4 and ids.shape[:2] == text.shape == kept.shape and kept.dtype == np.bool_
    if (
        not fits
        or text.dtype.kind not in "iu"
        or ids.dtype.kind not in "iu"
        or (shape or ids.shape[2:]) != ids.shape[2:]
    ):
        raise InputError(
            f"a batch has tokens {text.shape}, ids {ids.shape} and mask {kept.shape}; expected (sample, position), the same with "
            "(group, k) behind it, and bool, alike in all batches"
        )
    if ids.size and not -1 <= int(ids.min()) <= int(ids.max()) < n_codes:
        raise InputError(f"ids go from {int(ids.min())} to {int(ids.max())}, expected -1 to {n_codes - 1}")
    return text, ids, kept
