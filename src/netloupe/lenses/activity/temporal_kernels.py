"""The compiled loop behind :mod:`netloupe.lenses.activity.temporal` (arXiv 2107.07305): every value is read once.

Sums are kept for each unit, so that the loop over units has no chain of additions and becomes vector instructions.
"""

from __future__ import annotations

from netloupe.core.statistics.kernels import compiled


@compiled
def count_changes(rows, kept, tol, changed, nonzero, step_changed, step_valid, sizes, levels):
    """Adds one batch ``(sample, position, unit)`` of consecutive samples to the counts.

    ``changed``, ``nonzero`` int32 ``(unit,)``; ``step_changed``, ``step_valid`` int64 ``(sample - 1,)``; float64 ``(unit,)``:
    ``sizes`` of changes, ``levels`` the sizes of both values that were compared. ``tol`` is of the rows' type.
    """
    n_samples, n_positions, n_units = rows.shape
    for sample in range(n_samples):
        for position in range(n_positions):
            if not kept[sample, position]:
                continue
            now = rows[sample, position]
            if sample == 0 or not kept[sample - 1, position]:
                for unit in range(n_units):
                    nonzero[unit] += now[unit] != 0
                continue
            before = rows[sample - 1, position]
            count = 0
            for unit in range(n_units):
                size = abs(now[unit] - before[unit])
                moved = size > tol
                changed[unit] += moved
                nonzero[unit] += now[unit] != 0
                count += moved
                sizes[unit] += size
                levels[unit] += abs(now[unit]) + abs(before[unit])
            step_changed[sample - 1] += count
            step_valid[sample - 1] += n_units
