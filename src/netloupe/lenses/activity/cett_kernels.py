"""The compiled loop behind :class:`netloupe.lenses.activity.cett_curve.CettCurve` (arXiv 2411.02335)."""

from __future__ import annotations

import numpy as np
from numba import njit


def _compiled(function):
    """Reductions may be reordered here: they are sums of squares, and rounding is all that changes."""
    flags = {"reassoc", "nsz", "contract"}
    try:
        return njit(nogil=True, cache=True, fastmath=flags)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return njit(nogil=True, fastmath=flags)(function)


@_compiled
def dropped_errors(
    rows, start, stop, columns, lengths, log_lengths, first, per_octave, error, kept, scratch, bucket_of, order
):
    """Adds, for every level ``2^((first + k) / per_octave)``, the relative error of dropping shorter outputs.

    ``columns`` ``(unit, out)`` are the columns of the projection, ``lengths`` and ``log_lengths`` (base 2) theirs. A row's
    neurons are sorted into levels by counting, then added in that order to one running sum, whose length is
    known exactly after every level: all thresholds for the price of two dense products. ``error`` and ``kept`` hold
    differences between neighbouring levels (their running sums are the answers). Returns rows with no output at all.
    """
    n_units, width = columns.shape
    n_levels = error.shape[0] - 1
    begins = np.zeros(n_levels + 1, np.int64)
    lengths_at = np.empty(n_units + 1)
    level_at = np.empty(n_units + 1, np.int64)
    skipped = 0
    for row in range(start, stop):
        low, high, n_active = n_levels, -1, 0
        for unit in range(n_units):
            value = abs(rows[row, unit])
            if value > 0 and lengths[unit] > 0:
                level = int(np.floor((np.log2(value) + log_lengths[unit]) * per_octave)) - first
                level = min(max(level, 0), n_levels - 1)
                bucket_of[unit] = level
                low, high, n_active = min(low, level), max(high, level), n_active + 1
            else:
                bucket_of[unit] = -1
        if n_active == 0:
            skipped += 1
            continue
        for level in range(low, high + 2):
            begins[level] = 0
        for unit in range(n_units):
            if bucket_of[unit] >= 0:
                begins[bucket_of[unit] + 1] += 1
        for level in range(low, high + 1):
            kept[level + 1] -= begins[level + 1]
            begins[level + 1] += begins[level]
        kept[0] += n_active
        for unit in range(n_units):
            level = bucket_of[unit]
            if level >= 0:
                order[begins[level]] = unit
                begins[level] += 1
        for j in range(width):
            scratch[j] = 0
        n_steps, place = 0, 0
        while place < n_active:
            level = bucket_of[order[place]]
            while place < n_active and bucket_of[order[place]] == level:
                unit = order[place]
                value = rows[row, unit]
                for j in range(width):
                    scratch[j] += value * columns[unit, j]
                place += 1
            square = scratch[0] * 0
            for j in range(width):
                square += scratch[j] * scratch[j]
            lengths_at[n_steps], level_at[n_steps] = np.sqrt(square), level
            n_steps += 1
        whole = lengths_at[n_steps - 1]
        if not whole > 0:
            skipped += 1
            continue
        before = 0.0
        for step in range(n_steps):
            now = 1.0 if step == n_steps - 1 else lengths_at[step] / whole
            error[level_at[step] + 1] += now - before
            before = now
    return skipped
