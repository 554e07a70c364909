"""The compiled inner loops of binary codes: grouping equal rows, Hamming distances, votes of the nearest."""

from __future__ import annotations

import numpy as np

from netloupe.core.statistics.kernels import compiled, inlined

BLOCK = 4096  # rows whose running distances stay in a core's cache


@inlined
def popcount(x):
    """Number of ones in 64 bits; written so that compilers turn it into the processor's own instruction."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@compiled
def group_rows(words, table, groups):
    """Numbers equal rows alike, in order of first appearance; returns how many there are.

    ``table`` holds -1 at 2**k places, more than twice the rows: open addressing, rows compared word by word.
    """
    n, width = words.shape
    mask = np.uint64(len(table) - 1)
    found = 0
    for row in range(n):
        mixed = np.uint64(0x9E3779B97F4A7C15)
        for w in range(width):
            mixed = (mixed ^ words[row, w]) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = mixed ^ (mixed >> np.uint64(29))
        place = (mixed * np.uint64(0x94D049BB133111EB)) >> np.uint64(17)
        while True:
            place = place & mask
            known = table[place]
            if known < 0:
                table[place] = row
                groups[row] = found
                found += 1
                break
            same = True
            for w in range(width):
                if words[row, w] != words[known, w]:
                    same = False
                    break
            if same:
                groups[row] = groups[known]
                break
            place += np.uint64(1)
    return found


@compiled
def distances(one, columns, out):
    """``out[i, j]``: bits in which row i of ``one`` differs from column j of ``columns`` (words, row)."""
    width, n = columns.shape
    for i in range(len(one)):
        for start in range(0, n, 4096):
            stop = min(start + 4096, n)
            for j in range(start, stop):
                out[i, j] = 0
            for w in range(width):
                word = one[i, w]
                for j in range(start, stop):
                    out[i, j] += np.int32(popcount(word ^ columns[w, j]))


@compiled
def nearest_votes(queries, own, columns, labels, k, buffer, nearest, tied, votes):
    """Class votes of the k nearest columns of every query; those tied for the last places share them equally.

    ``own[i]`` is the column that is query i itself and has no vote, or -1. ``buffer`` (column,), ``nearest`` (k,) and
    ``tied`` (class,) are working memory.
    """
    width, n = columns.shape
    far = np.int32(2147483647)
    for i in range(len(queries)):
        for j in range(k):
            nearest[j] = far
        for start in range(0, n, 4096):
            stop = min(start + 4096, n)
            for j in range(start, stop):
                buffer[j] = 0
            for w in range(width):
                word = queries[i, w]
                for j in range(start, stop):
                    buffer[j] += np.int32(popcount(word ^ columns[w, j]))
            if start <= own[i] < stop:
                buffer[own[i]] = far
            for j in range(start, stop):
                value = buffer[j]
                if value < nearest[k - 1]:
                    place = k - 1
                    while place > 0 and nearest[place - 1] > value:
                        nearest[place] = nearest[place - 1]
                        place -= 1
                    nearest[place] = value
        last = nearest[k - 1]
        left = 0
        for j in range(k):
            if nearest[j] == last:
                left += 1
        n_tied = 0
        for c in range(len(tied)):
            tied[c] = 0
        for j in range(n):
            if buffer[j] < last:
                votes[i, labels[j]] += 1.0
            elif buffer[j] == last:
                tied[labels[j]] += 1
                n_tied += 1
        for c in range(len(tied)):
            votes[i, c] += left * (tied[c] / n_tied)
