"""The compiled weighing: the means of rows of scores, which matrix products have made (needs numba).

Beside a product of few columns, what follows it takes most of the time: the largest of a row, differences, exponentials
and their sums. Here they are one pass over scores that are still near the processor, and windows that cannot matter are
left out a few at a time. What makes vectors of these loops is said in ``lemmse._compiled``.
"""

import math
from typing import no_type_check

import numpy as np

from ._compiled import FLOOR, HALF, NOTHING, ZERO, compiled, dot, exponentials, index, keep_compiled, largest, reach

__all__ = ["NOTHING", "cut", "reach", "weigh"]

ATOMS = 256
"""Atoms whose weights are made, or left out, together."""


@compiled
@no_type_check
def cut(out, images, atoms, pixels, patch_size):
    """Set out[k] to (x, -½‖x‖²), x the window of atom k, colour by colour: atoms are numbered as in ``Merged``.

    ``images`` (D, c, h + p - 1, w + p - 1) go on beyond their border by half a window; ``pixels`` (s,) are row-major.
    """
    width = images.shape[3] - patch_size + 1
    for k in range(len(atoms)):
        pixel = pixels[atoms[k] % len(pixels)]
        row, column = index(pixel // width), index(pixel % width)
        key, image, total, entry = out[k], images[index(atoms[k] // len(pixels))], ZERO, index(0)
        for channel in range(len(image)):
            for a in range(patch_size):
                line = image[index(channel), row + index(a)]
                for b in range(patch_size):
                    number = line[column + index(b)]
                    key[entry] = number
                    total += number * number
                    entry += index(1)
        key[entry] = -HALF * total


@compiled
@no_type_check
def depth(weights, multiplicity, scores, top):
    """Return the sum of scores less ``top``, weighted."""
    total = ZERO
    for k in range(len(scores)):
        total += weights[k] * multiplicity[k] * (scores[k] - top)
    return total


@compiled
@no_type_check
def weigh(scores, columns, begin, factors, within, top, sums, depths):
    """Add the atoms of scores (q, K) to sums (q, b, m) of columns, which are in units of exp(factor · top).

    ``columns`` (m, >= K) are what atoms, from ``begin`` on, are worth, the first how many each stands for; ``factors``
    (b,) are 1/σ². Where
    ``depths`` (q, b) are asked for, they are the sums of scores less ``top``, else they are empty. Atoms further below
    ``top`` (q,) than ``within`` nats, a negative number, are left out. ``top`` rises as needed.
    """
    count, atoms = scores.shape
    m, lowest, with_depths = len(columns), within / factors.min(), len(depths) > 0
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
                        if with_depths:
                            depths[q, b] = (depths[q, b] + (old - best) * sums[q, b, 0]) * share
                        for column in range(m):
                            sums[q, b, column] *= share
            for b in range(len(factors)):
                if best < top[q] + within / factors[b]:
                    continue
                exponentials(out, some, top[q], factors[b])
                for column in range(m):
                    sums[q, b, column] += dot(out, columns[column][begin + first : begin + stop])
                if with_depths:
                    depths[q, b] += depth(out, columns[0][begin + first : begin + stop], some, top[q])


keep_compiled(weigh)
keep_compiled(cut)
