"""The compiled loops of ``TopK``."""

from __future__ import annotations

import numpy as np

from netloupe.core.statistics.kernels import compiled, inlined


@compiled
def strip_maxima(rows, start, stop, strip, sign, maxima):
    """The largest key of each unit in each strip of rows, into rows of ``maxima``."""
    n_units = rows.shape[1]
    for index in range((stop - start + strip - 1) // strip):
        first = start + index * strip
        last = min(first + strip, stop)
        for unit in range(n_units):
            maxima[index, unit] = rows[first, unit] * sign
        whole = first + (last - first) // 4 * 4
        for row in range(first, whole, 4):
            for unit in range(n_units):
                a = max(rows[row, unit] * sign, rows[row + 1, unit] * sign)
                b = max(rows[row + 2, unit] * sign, rows[row + 3, unit] * sign)
                maxima[index, unit] = max(maxima[index, unit], max(a, b))
        for row in range(whole, last):
            for unit in range(n_units):
                maxima[index, unit] = max(maxima[index, unit], rows[row, unit] * sign)


@inlined
def better(key, sample, position, other_key, other_sample, other_position):
    """Whether the first entry comes before the second: larger key, then smaller sample, then smaller position."""
    return key > other_key or (
        key == other_key and (sample < other_sample or (sample == other_sample and position < other_position))
    )


@inlined
def offer(keys, samples, positions, key, sample, position, distinct):
    """Put an entry into one unit's sorted list if it belongs there."""
    slot = len(keys) - 1
    enters = better(key, sample, position, keys[slot], samples[slot], positions[slot])
    if enters and distinct:
        for i in range(len(keys)):
            if samples[i] == sample:
                slot = i
                enters = better(key, sample, position, keys[i], sample, positions[i])
                break
    if enters:
        while slot > 0 and better(key, sample, position, keys[slot - 1], samples[slot - 1], positions[slot - 1]):
            keys[slot], samples[slot], positions[slot] = keys[slot - 1], samples[slot - 1], positions[slot - 1]
            slot -= 1
        keys[slot], samples[slot], positions[slot] = key, sample, position


@compiled
def merge_lists(keys, samples, positions, other_keys, other_samples, other_positions, distinct):
    """Offer every entry of the other lists, unit by unit."""
    for unit in range(keys.shape[0]):
        for i in range(keys.shape[1]):
            if other_samples[unit, i] >= 0:
                offer(
                    keys[unit], samples[unit], positions[unit],
                    other_keys[unit, i], other_samples[unit, i], other_positions[unit, i], distinct,
                )  # fmt: skip


@compiled
def kth_largest(tops, unit, best):
    """The k-th largest of ``tops[:, unit]``, k the length of ``best``; -inf when there are fewer."""
    k = len(best)
    best[:] = -np.inf
    for group in range(tops.shape[0]):
        top = tops[group, unit]
        if top > best[k - 1]:
            slot = k - 1
            while slot > 0 and top > best[slot - 1]:
                best[slot] = best[slot - 1]
                slot -= 1
            best[slot] = top
    return best[k - 1]


@compiled
def load_tile(maxima, groups, first, width, tile, tops):
    """Copy ``width`` units' strip maxima from unit ``first`` into ``tile``, and their maxima by group."""
    tops[:] = -np.inf
    for strip in range(maxima.shape[0]):
        group = groups[strip]
        for i in range(width):
            tile[strip, i] = maxima[strip, first + i]
        if group >= 0:
            for i in range(width):
                tops[group, i] = max(tops[group, i], tile[strip, i])


@compiled
def offer_strips(
    rows, sign, starts, maxima, groups, n_groups, row_samples, row_positions, first_unit, last_unit, in_order,
    distinct, keys, samples, positions,
):  # fmt: skip
    """Offer to units ``first_unit`` to ``last_unit`` the rows of every strip whose maximum may enter.

    ``in_order`` promises that every row comes after all rows in the lists and before: a tie then never enters.
    """
    k, n_strips, width = keys.shape[1], maxima.shape[0], 16
    best = np.empty(k, maxima.dtype)
    tile, tops = np.empty((n_strips, width), maxima.dtype), np.empty((n_groups, width), maxima.dtype)
    own_keys, own_samples, own_positions = np.empty(k), np.empty(k, np.int64), np.empty(k, np.int64)
    for first in range(first_unit, last_unit, width):
        last = min(first + width, last_unit)
        load_tile(maxima, groups, first, last - first, tile, tops)
        for unit in range(first, last):
            candidates, worst = 0, keys[unit, k - 1]
            for strip in range(n_strips):
                candidates += tile[strip, unit - first] >= worst
            if candidates == 0:
                continue
            bound = kth_largest(tops, unit - first, best) if candidates > k else best.dtype.type(-np.inf)
            own_keys[:], own_samples[:], own_positions[:] = keys[unit], samples[unit], positions[unit]
            for strip in range(n_strips):
                top, worst = tile[strip, unit - first], own_keys[k - 1]
                if top < bound or top < worst or (in_order and top == worst):
                    continue
                for row in range(starts[strip], starts[strip + 1]):
                    key = rows[row, unit] * sign
                    if key >= bound and key >= own_keys[k - 1]:
                        sample, position = row_samples[row], row_positions[row]
                        offer(own_keys, own_samples, own_positions, np.float64(key), sample, position, distinct)
            keys[unit], samples[unit], positions[unit] = own_keys, own_samples, own_positions
