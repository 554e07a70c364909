"""Mutual information of many pairs of binned units, without a histogram in memory."""

from __future__ import annotations

import numpy as np

from netloupe.core.statistics.kernels import compiled


@compiled
def pair_information(codes_a, codes_b, pairs, bins, entropy_terms):
    """Nats for each pair of rows of ``codes_a`` and ``codes_b`` ``(unit, row)``; ``entropy_terms[c] = c log c``.

    Rows go in turn to four histograms, so that equal neighbours do not wait for each other's increment.
    """
    n = codes_a.shape[1]
    found = np.empty(len(pairs))
    size = bins * bins
    counts = np.empty((4, size), np.int64)
    rows, columns = np.empty(bins, np.int64), np.empty(bins, np.int64)
    whole = n - n % 4
    for index in range(len(pairs)):
        a, b = codes_a[pairs[index, 0]], codes_b[pairs[index, 1]]
        counts[:] = 0
        for row in range(0, whole, 4):
            counts[0, a[row] * bins + b[row]] += 1
            counts[1, a[row + 1] * bins + b[row + 1]] += 1
            counts[2, a[row + 2] * bins + b[row + 2]] += 1
            counts[3, a[row + 3] * bins + b[row + 3]] += 1
        for row in range(whole, n):
            counts[0, a[row] * bins + b[row]] += 1
        rows[:] = 0
        columns[:] = 0
        total = entropy_terms[n]
        for i in range(bins):
            for j in range(bins):
                place = i * bins + j
                count = counts[0, place] + counts[1, place] + counts[2, place] + counts[3, place]
                rows[i] += count
                columns[j] += count
                total += entropy_terms[count]
        for i in range(bins):
            total -= entropy_terms[rows[i]] + entropy_terms[columns[i]]
        found[index] = total / n
    return found
