"""The compiled inner loops of the statistics: rows in, per-unit numbers out, without the interpreter lock.

Loops run over units innermost and take eight rows at a time, so that a compiler can keep them in vector registers
and touch each accumulator once per eight rows. Every kernel reads rows ``start`` to ``stop`` of ``rows``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

FLOAT32_BITS = {4: np.uint32, 8: np.uint64}


def compiled(function: F) -> F:
    """Compile without the interpreter lock; remember the machine code on disk where there is a place for it."""
    try:
        return cast(F, njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return cast(F, njit(nogil=True)(function))


def inlined(function: F) -> F:
    """For a small function called in a kernel's innermost loop: copied into it, as passing arrays is not free."""
    return cast(F, njit(inline="always")(function))


@compiled
def all_finite_32(bits, start, stop):
    """Whether float32 values, seen as uint32, have no exponent of ones (NaN and infinity)."""
    largest = np.uint32(0)
    for row in range(start, stop):
        for unit in range(bits.shape[1]):
            largest = max(largest, bits[row, unit] & np.uint32(0x7FFFFFFF))
    return largest < np.uint32(0x7F800000)


@compiled
def all_finite_64(bits, start, stop):
    """Whether float64 values, seen as uint64, have no exponent of ones (NaN and infinity)."""
    largest = np.uint64(0)
    for row in range(start, stop):
        for unit in range(bits.shape[1]):
            largest = max(largest, bits[row, unit] & np.uint64(0x7FFFFFFFFFFFFFFF))
    return largest < np.uint64(0x7FF0000000000000)


@compiled
def block_moments(rows, start, stop, total, square, low, high):
    """Sums of (x - x0) and its square per unit, x0 the block's first row, and the extremes."""
    n_units = rows.shape[1]
    for unit in range(n_units):
        total[unit] = 0.0
        square[unit] = 0.0
        low[unit] = rows[start, unit]
        high[unit] = rows[start, unit]
    whole = start + (stop - start) // 4 * 4
    for row in range(start, whole, 4):
        for unit in range(n_units):
            shift = np.float64(rows[start, unit])
            x0, x1, x2, x3 = rows[row, unit], rows[row + 1, unit], rows[row + 2, unit], rows[row + 3, unit]
            a, b, c, d = x0 - shift, x1 - shift, x2 - shift, x3 - shift
            total[unit] += (a + b) + (c + d)
            square[unit] += (a * a + b * b) + (c * c + d * d)
            low[unit] = min(min(low[unit], min(x0, x1)), min(x2, x3))
            high[unit] = max(max(high[unit], max(x0, x1)), max(x2, x3))
    for row in range(whole, stop):
        for unit in range(n_units):
            x = rows[row, unit]
            a = x - np.float64(rows[start, unit])
            total[unit] += a
            square[unit] += a * a
            low[unit] = min(low[unit], x)
            high[unit] = max(high[unit], x)


@compiled
def combine_moments(rows, step, total, square, count, mean, m2):
    """Chan's update of ``count``, ``mean`` and ``m2`` with every block's sums, in block order."""
    n_rows, n_units = rows.shape
    for block in range(total.shape[0]):
        start = block * step
        n = min(start + step, n_rows) - start
        both = count + n
        for unit in range(n_units):
            offset = total[block, unit] / n
            delta = rows[start, unit] + offset - mean[unit]
            scatter = square[block, unit] - offset * total[block, unit]
            mean[unit] += delta * (n / both)
            m2[unit] += max(scatter, 0.0) + delta * delta * (n * (count / both))
        count = both
    return count


@compiled
def block_counts(rows, start, stop, threshold, absolute, active, zero, negative, rows_active):
    """Add, per unit, how often it is active, zero and negative; per row, how many units are active."""
    n_units = rows.shape[1]
    whole = start + (stop - start) // 4 * 4
    for row in range(start, whole, 4):
        n0, n1, n2, n3 = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
        for unit in range(n_units):
            x0, x1, x2, x3 = rows[row, unit], rows[row + 1, unit], rows[row + 2, unit], rows[row + 3, unit]
            zero[unit] += np.int32(x0 == 0) + np.int32(x1 == 0) + np.int32(x2 == 0) + np.int32(x3 == 0)
            negative[unit] += np.int32(x0 < 0) + np.int32(x1 < 0) + np.int32(x2 < 0) + np.int32(x3 < 0)
            if absolute:
                x0, x1, x2, x3 = abs(x0), abs(x1), abs(x2), abs(x3)
            on0, on1, on2, on3 = (
                np.int32(x0 > threshold), np.int32(x1 > threshold), np.int32(x2 > threshold), np.int32(x3 > threshold)
            )  # fmt: skip
            active[unit] += on0 + on1 + on2 + on3
            n0, n1, n2, n3 = np.int32(n0 + on0), np.int32(n1 + on1), np.int32(n2 + on2), np.int32(n3 + on3)
        rows_active[n0] += 1
        rows_active[n1] += 1
        rows_active[n2] += 1
        rows_active[n3] += 1
    for row in range(whole, stop):
        n0 = 0
        for unit in range(n_units):
            x = rows[row, unit]
            on = np.int32((abs(x) if absolute else x) > threshold)
            n0 += on
            active[unit] += on
            zero[unit] += np.int32(x == 0)
            negative[unit] += np.int32(x < 0)
        rows_active[n0] += 1


@compiled
def block_bits(halves, start, stop, drop, table):
    """Count values by the high bits of their float32 pattern; return not 0 where any other bit was set.

    ``halves`` is the pattern as uint16, ``(row, 2 * unit)``, low half first; ``drop`` of the high half's bits are
    ignored. Four tables are used in turn: equal neighbours (zeros after a ReLU) would otherwise wait for one
    another's store.
    """
    t0, t1, t2, t3 = table[0], table[1], table[2], table[3]
    width = halves.shape[1]
    whole = width // 8 * 8
    seen, rest = np.uint16(0), np.uint16((1 << drop) - 1)
    for row in range(start, stop):
        for i in range(0, whole, 8):
            t0[halves[row, i + 1] >> drop] += 1
            t1[halves[row, i + 3] >> drop] += 1
            t2[halves[row, i + 5] >> drop] += 1
            t3[halves[row, i + 7] >> drop] += 1
        for i in range(whole, width, 2):
            t0[halves[row, i + 1] >> drop] += 1
        if not seen:
            for i in range(0, width, 2):
                seen |= halves[row, i] | (halves[row, i + 1] & rest)
    return seen


@compiled
def count_bits(halves, drop, table):
    """The same counts of all rows, one by one, into a single table."""
    seen, rest = np.uint16(0), np.uint16((1 << drop) - 1)
    for row in range(halves.shape[0]):
        for i in range(0, halves.shape[1], 2):
            low, high = halves[row, i], halves[row, i + 1]
            seen |= low | (high & rest)
            table[high >> drop] += 1
    return seen


@compiled
def add_tables(tables, counts):
    """Add all ``tables[worker, lane, bin]`` to ``counts[bin]``."""
    for worker in range(tables.shape[0]):
        for lane in range(tables.shape[1]):
            for i in range(len(counts)):
                counts[i] += tables[worker, lane, i]


@compiled
def block_bits_per_unit(halves, start, stop, drop, first_unit, last_unit, table):
    """The same counts for units ``first_unit`` to ``last_unit``, each into its own ``table[unit, bin]``."""
    seen, rest = np.uint16(0), np.uint16((1 << drop) - 1)
    for row in range(start, stop):
        for unit in range(first_unit, last_unit):
            low, high = halves[row, 2 * unit], halves[row, 2 * unit + 1]
            seen |= low | (high & rest)
            table[unit, high >> drop] += 1
    return seen


@compiled
def bin_of(x, edges, scale):
    """0 below the first edge, i + 1 in bin i, ``len(edges)`` above the last edge; ``scale`` 0 for uneven edges."""
    last = len(edges) - 1
    if not x >= edges[0]:  # also NaN, which must not reach the arithmetic below before it is refused
        return 0
    if x >= edges[last]:
        return last if x == edges[last] else last + 1
    if scale > 0.0:
        # The product may round to a neighbouring bin; the edges themselves decide.
        i = min(np.int64((x - edges[0]) * scale), last - 1)
        while x < edges[i]:
            i -= 1
        while x >= edges[i + 1]:
            i += 1
        return i + 1
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        if x >= edges[middle]:
            low = middle
        else:
            high = middle
    return low + 1


@compiled
def block_histogram(rows, start, stop, edges, scale, table):
    """Count all values by bin."""
    for row in range(start, stop):
        for unit in range(rows.shape[1]):
            table[bin_of(np.float64(rows[row, unit]), edges, scale)] += 1


@compiled
def block_histogram_per_unit(rows, first_unit, last_unit, edges, scale, table):
    """Count the values of units ``first_unit`` to ``last_unit`` into their rows of ``table``."""
    for row in range(rows.shape[0]):
        for unit in range(first_unit, last_unit):
            table[unit, bin_of(np.float64(rows[row, unit]), edges, scale)] += 1


@compiled
def average_precision_of(values, hits, found):
    """Average precision per row of ``values`` sorted in rising order, ties taken together."""
    n = values.shape[1]
    for unit in range(values.shape[0]):
        total, seen, group, area = 0, 0, 0, 0.0
        for i in range(n - 1, -1, -1):
            group += hits[unit, i]
            if i == 0 or values[unit, i - 1] != values[unit, i]:
                seen += group
                area += group * (seen / (n - i))
                total += group
                group = 0
        found[unit] = area / total


@compiled
def best_threshold_of(values, hits, threshold, accuracy):
    """Threshold of best balanced accuracy per row of ``values`` sorted in rising order."""
    n = values.shape[1]
    for unit in range(values.shape[0]):
        n_true = 0
        for i in range(n):
            n_true += hits[unit, i]
        n_false = n - n_true
        # Nothing is called positive above the largest value; then values join from the top.
        threshold[unit], accuracy[unit] = np.float64(values[unit, n - 1]), 0.5
        called_true = 0
        for i in range(n - 1, 0, -1):
            called_true += hits[unit, i]
            low, high = np.float64(values[unit, i - 1]), np.float64(values[unit, i])
            if low == high:
                continue
            called_false = n - i - called_true
            score = 0.5 * (called_true / n_true + 1.0 - called_false / n_false)
            if score > accuracy[unit]:
                middle = low + 0.5 * (high - low)
                threshold[unit], accuracy[unit] = (middle if middle < high else low), score


@compiled
def class_means(rows, classes, counts, first_unit, last_unit, means):
    """Mean of each class's rows for units ``first_unit`` to ``last_unit``, summed around the first row."""
    means[:, first_unit:last_unit] = 0.0
    for row in range(rows.shape[0]):
        c = classes[row]
        for unit in range(first_unit, last_unit):
            means[c, unit] += rows[row, unit] - np.float64(rows[0, unit])
    for c in range(means.shape[0]):
        for unit in range(first_unit, last_unit):
            means[c, unit] = rows[0, unit] + means[c, unit] / counts[c]


@compiled
def class_squares(rows, classes, means, first_unit, last_unit, squares):
    """Sum of squared deviations from the class mean, per class and unit."""
    squares[:, first_unit:last_unit] = 0.0
    for row in range(rows.shape[0]):
        c = classes[row]
        for unit in range(first_unit, last_unit):
            offset = rows[row, unit] - means[c, unit]
            squares[c, unit] += offset * offset
