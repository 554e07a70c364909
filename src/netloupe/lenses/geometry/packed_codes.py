"""Binary codes, eight bits to a byte: which units are on, sample by sample.

Source of their use: He et al., "Neural networks behave as hash encoders: An empirical study", arXiv 2101.05490.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, UInt8, UInt64

from netloupe.core.errors import InputError
from netloupe.lenses.geometry.code_kernels import distances, group_rows

_BLOCK_BYTES = 2**26  # unpacked bits that are held at a time


class PackedCodes:
    """``n`` codes of ``n_bits`` bits, with the bits of each layer beside each other.

    Rows are kept in words of 64 bits (the last one filled with zeros), n U / 8 bytes in all where U is a multiple of 64.
    Made by :func:`netloupe.lenses.geometry.codes.activation_code` or from bits by :meth:`from_bits`.

    Attributes:
        words: ``(sample, word)`` uint64. n_bits: U. layers: name of each layer to its slice of bits.
    """

    def __init__(self, words: UInt64[np.ndarray, "sample word"], n_bits: int, layers: Mapping[str, slice]) -> None:
        self._buffer, self._n = words, len(words)
        self.n_bits, self.layers = n_bits, dict(layers)

    @classmethod
    def from_bits(cls, bits: Any, layers: Mapping[str, slice] | None = None) -> Self:
        """From ``(sample, unit)`` of booleans or of whole numbers 0 and 1.

        Raises InputError for fractional numbers (activations are not bits: use ``activation_code``), other whole numbers,
        another shape and no samples.
        """
        array = bits.detach().cpu().numpy() if isinstance(bits, torch.Tensor) else np.asarray(bits)
        if array.ndim != 2 or len(array) == 0:
            raise InputError(f"codes have shape {array.shape}, expected (sample, unit) with at least one sample")
        if array.dtype.kind not in "biu":
            raise InputError(f"codes have dtype {array.dtype}, expected bits; make them with activation_code first")
        if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
            raise InputError("codes hold numbers other than 0 and 1; make bits with activation_code first")
        return cls(pack(array.astype(bool)), array.shape[1], layers or {"0": slice(0, array.shape[1])})

    @property
    def words(self) -> UInt64[np.ndarray, "sample word"]:
        """The codes, 64 bits a word."""
        return self._buffer[: self._n]

    @property
    def packed(self) -> UInt8[np.ndarray, "sample byte"]:
        """The codes as ``ceil(U / 8)`` bytes, in the order of ``numpy.packbits``."""
        return self.words.view(np.uint8).reshape(self._n, -1)[:, : -(-self.n_bits // 8)]

    def __len__(self) -> int:
        return self._n

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedCodes):
            return NotImplemented
        return self.n_bits == other.n_bits and self.layers == other.layers and np.array_equal(self.words, other.words)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # codes can be appended

    def __repr__(self) -> str:
        return f"<PackedCodes: {self._n} codes of {self.n_bits} bits, layers {', '.join(self.layers)}>"

    def __getitem__(self, rows: Any) -> PackedCodes:
        """Codes of some samples."""
        chosen = self.words[rows]
        return PackedCodes(chosen[None] if chosen.ndim == 1 else np.ascontiguousarray(chosen), self.n_bits, self.layers)

    def bits(self) -> Bool[np.ndarray, "sample unit"]:
        """All bits, a byte each."""
        return unpack(self.words, self.n_bits)

    def layer(self, name: str) -> PackedCodes:
        """The codes of one layer alone."""
        if name not in self.layers:
            raise InputError(f"there is no layer '{name}' in these codes; there are {', '.join(self.layers)}")
        part = self.layers[name]
        columns = np.arange(part.start, part.stop)
        return PackedCodes(_columns(self.words, self.n_bits, columns), len(columns), {name: slice(0, len(columns))})

    def append(self, more: PackedCodes) -> Self:
        """Adds samples at the end, in place; the memory doubles when it is full, so that a stream costs one copy."""
        if (more.n_bits, more.layers) != (self.n_bits, self.layers):
            raise InputError(
                f"codes of {more.n_bits} bits were given, these have {self.n_bits}; codes of the same layers are needed"
            )
        n = self._n + len(more)
        if n > len(self._buffer):
            larger = np.empty((max(n, 2 * self._n), self._buffer.shape[1]), np.uint64)
            larger[: self._n] = self.words
            self._buffer = larger
        self._buffer[self._n : n] = more.words
        self._n = n
        return self

    @staticmethod
    def concat(parts: Iterable[PackedCodes]) -> PackedCodes:
        """Codes of several batches, one after the other."""
        found: PackedCodes | None = None
        for part in parts:
            found = part[:] if found is None else found.append(part)
        if found is None:
            raise InputError("no codes were given; at least one batch is needed")
        return found

    def constant(self) -> Bool[np.ndarray, " unit"]:
        """Which bits are the same in every sample: found by AND and OR over the rows."""
        every, some = np.bitwise_and.reduce(self.words), np.bitwise_or.reduce(self.words)
        return unpack(every[None], self.n_bits)[0] | ~unpack(some[None], self.n_bits)[0]

    def groups(self) -> Int[np.ndarray, " sample"]:
        """A number for each sample, the same for equal codes, counted from 0 in order of first appearance. Exact.

        Cost: one read of n U / 8 bytes and a table of 32 n bytes.
        """
        found = np.empty(self._n, np.int64)
        words = self.words if self.words.shape[1] else np.zeros((self._n, 1), np.uint64)
        group_rows(words, np.full(1 << (2 * self._n).bit_length(), -1, np.int64), found)
        return found


def as_codes(codes: Any) -> PackedCodes:
    """Packed codes, or bits ``(sample, unit)`` that are packed here."""
    return codes if isinstance(codes, PackedCodes) else PackedCodes.from_bits(codes)


def pack(bits: Bool[np.ndarray, "sample unit"]) -> UInt64[np.ndarray, "sample word"]:
    """Rows of bits as words; what is left of the last word is zero."""
    packed = np.packbits(bits, axis=1)
    words = np.zeros((len(bits), -(-bits.shape[1] // 64)), np.uint64)
    words.view(np.uint8).reshape(len(bits), -1)[:, : packed.shape[1]] = packed
    return words


def unpack(words: UInt64[np.ndarray, "sample word"], n_bits: int) -> Bool[np.ndarray, "sample unit"]:
    """Rows of words as bits."""
    if not n_bits:
        return np.zeros((len(words), 0), bool)
    octets = np.ascontiguousarray(words).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=n_bits).view(bool)


def _columns(words: np.ndarray, n_bits: int, kept: np.ndarray) -> np.ndarray:
    rows = max(1, _BLOCK_BYTES // max(n_bits, 1))
    parts = [pack(unpack(words[i : i + rows], n_bits)[:, kept]) for i in range(0, len(words), rows)]
    return np.concatenate(parts)


def drop_constant(*codes: PackedCodes) -> tuple[PackedCodes, ...]:
    """The same codes without the bits that are constant over all of them together.

    Neither Hamming distances within the given codes nor their uniqueness change. Give training and test codes in one call:
    dropped apart, the two would not speak of the same units. Warns where nothing is left.

    Raises InputError where the codes have different numbers of bits.
    """
    if len({code.n_bits for code in codes}) != 1:
        raise InputError(f"codes have {', '.join(str(code.n_bits) for code in codes)} bits; the same units are needed")
    every = np.bitwise_and.reduce([np.bitwise_and.reduce(code.words) for code in codes])
    some = np.bitwise_or.reduce([np.bitwise_or.reduce(code.words) for code in codes])
    n_bits = codes[0].n_bits
    kept = np.flatnonzero(~unpack(every[None], n_bits)[0] & unpack(some[None], n_bits)[0])
    if not len(kept):
        warnings.warn(
            "every bit is constant, so that nothing is left of the codes: all samples are alike", stacklevel=2
        )
    layers, start = {}, 0
    for name, part in codes[0].layers.items():
        size = int(((kept >= part.start) & (kept < part.stop)).sum())
        layers[name] = slice(start, start + size)
        start += size
    return tuple(PackedCodes(_columns(code.words, n_bits, kept), len(kept), layers) for code in codes)


def hamming(one: Any, other: Any) -> Int32[np.ndarray, "sample sample_other"]:
    """In how many bits every code of ``one`` differs from every code of ``other``.

    Args:
        one, other: packed codes, or bits ``(sample, unit)``, of the same units.

    Cost: n m U / 64 exclusive ors and counts of bits; 4 n m bytes. Raises InputError for different numbers of bits.
    """
    a, b = as_codes(one), as_codes(other)
    same_bits(a, b)
    out = np.empty((len(a), len(b)), np.int32)
    distances(a.words, np.ascontiguousarray(b.words.T), out)
    return out


def same_bits(a: PackedCodes, b: PackedCodes) -> None:
    """Refuses codes of different units."""
    if a.n_bits != b.n_bits:
        raise InputError(f"codes have {a.n_bits} and {b.n_bits} bits; codes of the same units are needed")
