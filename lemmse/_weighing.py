"""The compiled weighing: the means of rows of scores, which matrix products have made (needs numba).

Beside a product of few columns, what follows it takes most of the time: the largest of a row, differences, exponentials
and their sums. Here they are one pass over scores that are still near the processor, and windows that cannot matter are
left out a few at a time. What makes vectors of these loops is said in ``lemmse._compiled``.
"""

import math
from typing import no_type_check

import numpy as np

from ._compiled import FLOOR, NOTHING, compiled, dot, exponentials, keep_compiled, largest, reach

__all__ = ["NOTHING", "reach", "weigh"]

ATOMS = 256
"""Atoms whose weights are made, or left out, together."""


@compiled
@no_type_check
def weigh(scores, columns, factors, within, top, mass, sums):
    """Add the atoms of scores (q, K) to mass (q, b) and sums (q, b, c), which are in units of exp(factor · top).

    ``columns`` (c + 1, K) are what atoms are worth, and how many each stands for; ``factors`` (b,) are 1/σ². Atoms
    further below ``top`` (q,) than ``within`` nats, a negative number, are left out. ``top`` rises as needed.
    """
    count, atoms = scores.shape
    c, lowest = len(columns) - 1, within / factors.min()
    weights = np.empty(ATOMS, np.float32)
    for q in range(count):
        row = scores[q]
        for first in range(0, atoms, ATOMS):
            stop = min(first + ATOMS, atoms)
            some, out = row[first:stop], weights[: stop - first]
            best, old = largest(some), top[q]
            if best < old + lowest:
                continue
            if best > old:
                top[q] = best
                if old > NOTHING:
                    for b in range(len(factors)):
                        share = math.exp(max((old - best) * factors[b], 2 * FLOOR))
                        mass[q, b] *= share
                        for channel in range(c):
                            sums[q, b, channel] *= share
            for b in range(len(factors)):
                if best < top[q] + within / factors[b]:
                    continue
                exponentials(out, some, top[q], factors[b])
                mass[q, b] += dot(out, columns[c][first:stop])
                for channel in range(c):
                    sums[q, b, channel] += dot(out, columns[channel][first:stop])


keep_compiled(weigh)
