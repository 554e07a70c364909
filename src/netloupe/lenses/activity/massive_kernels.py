"""The compiled loops behind :class:`netloupe.lenses.activity.massive_tracker.MassiveTracker` (arXiv 2508.03616).

Without their sign bit floats order as unsigned numbers do, and comparing and counting those takes vector instructions:
all loops below run over the bits.
"""

from __future__ import annotations

import numpy as np

from netloupe.core.statistics.kernels import compiled

BLOCK = 256  # values whose maximum is taken at once; only blocks that can hold a new entry are looked through
SAMPLED = 64  # values that tell where a rank will be
AROUND = 14  # sampled ranks to either side of it: 3.5 standard deviations
FEW = 128  # so many values are sorted


@compiled
def largest(bits, k, top, places):
    """The ``k`` largest of one row with their places, largest first, of equal ones the first; place -1 where there are fewer."""
    n = bits.shape[0]
    filled, least = 0, bits[0] * 0
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        highest = bits[start]
        for place in range(start, stop):
            highest = max(highest, bits[place])
        if filled == k and highest <= least:
            continue
        for place in range(start, stop):
            value = bits[place]
            if filled < k or value > least:
                slot = min(filled, k - 1)
                while slot > 0 and top[slot - 1] < value:
                    top[slot], places[slot] = top[slot - 1], places[slot - 1]
                    slot -= 1
                top[slot], places[slot] = value, place
                filled = min(filled + 1, k)
                least = top[filled - 1]
    for slot in range(filled, k):
        top[slot], places[slot] = 0, -1


@compiled
def select(bits, rank, least, most, held, sample):
    """The value of a rank (from 0) among ``bits``; ``held`` has room for as many values as ``bits``.

    A few evenly spaced values bracket it, what lies in the bracket is kept, and so on until few are left or the bracket
    takes nothing off. ``least`` and ``most`` are the bounds of the type of ``bits``.
    """
    source, n = bits, bits.shape[0]
    while n > FEW:
        for index in range(SAMPLED):
            sample[index] = source[(index * n + n // 2) // SAMPLED]
        ordered = np.sort(sample)
        near = rank * SAMPLED // n
        low, high = least, most
        if near >= AROUND:
            low = ordered[near - AROUND]
        if near + AROUND < SAMPLED:
            high = ordered[near + AROUND]
        below, up_to = 0, 0
        for index in range(n):
            below += source[index] < low
            up_to += source[index] <= high
        if rank < below:
            low, high, below, up_to = least, low - 1, 0, below
        elif rank >= up_to:
            low, high, below, up_to = high + 1, most, up_to, n
        if low == high:
            return low
        inside = up_to - below
        if inside >= n:
            break
        count = 0
        for index in range(n):
            value = source[index]
            held[count] = value
            count += (value >= low) & (value <= high)
        source, n, rank = held, inside, rank - below
    return np.sort(source[:n])[rank]


@compiled
def largest_of_rows(bits, mask, k, top, places, absolute):
    """For each row of ``bits`` its largest entries; ``mask`` takes the sign off."""
    for row in range(bits.shape[0]):
        for place in range(bits.shape[1]):
            absolute[place] = bits[row, place] & mask
        largest(absolute, k, top[row], places[row])


@compiled
def largest_and_median(bits, mask, most, k, top, places, middle, absolute, held, sample):
    """For each row of ``bits`` its largest entries and the two middle ones (the same where their number is odd).

    ``mask`` takes the sign off, ``most`` is the largest value of the type. All answers are bits.
    """
    n = bits.shape[1]
    least = mask - mask
    low_rank, high_rank = (n - 1) // 2, n // 2
    for row in range(bits.shape[0]):
        for place in range(n):
            absolute[place] = bits[row, place] & mask
        largest(absolute, k, top[row], places[row])
        low = select(absolute, low_rank, least, most, held, sample)
        high = low
        if high_rank != low_rank:
            up_to, above = 0, most
            for place in range(n):
                value = absolute[place]
                up_to += value <= low
                above = min(above, value if value > low else most)
            if up_to <= high_rank:
                high = above
        middle[row, 0], middle[row, 1] = low, high
