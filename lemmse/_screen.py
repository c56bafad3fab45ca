"""The compiled loops of the screen: find the atoms whose bound reaches the floor, and weigh those alone (needs numba).

What makes vectors of these loops is said in ``lemmse._compiled``.
"""

import math
from typing import no_type_check

import numpy as np

from ._compiled import NOTHING, compiled, index, keep_compiled

__all__ = ["LANES", "NOTHING", "weigh"]

LANES = 64
"""Bounds are searched in sets of every so-many-th: the largest of each set takes vector operations only."""

GROWTH = 1.1
"""A floor is looked at again when the mass has grown by so much, or the largest score."""


@compiled
@no_type_check
def _largest(out, bounds):
    """Set out[s] to the largest of bounds[m, s] over m, two of them at a time."""
    count, lanes = bounds.shape
    for s in range(lanes):
        out[s] = bounds[count - 1, s]
    for m in range(0, count - 1, 2):
        row, next_row = index(m), index(m + 1)
        for s in range(lanes):
            out[s] = max(out[s], max(bounds[row, s], bounds[next_row, s]))


@compiled
@no_type_check
def _products(out, window, images, image, row, column):
    """Set out[s] to the products of a window with a part of an image, added up over the window's rows."""
    for s in range(len(out)):
        out[s] = window[0, s] * images[image, row, column + index(s)]
    for a in range(1, len(window)):
        line = row + index(a)
        for s in range(len(out)):
            out[s] += window[a, s] * images[image, line, column + index(s)]


@compiled
@no_type_check
def _sum(x):
    total = x[0]
    for s in range(1, len(x)):
        total += x[s]
    return total


@compiled
@no_type_check
def _add(mass, sums, top, score, factors, values, image, pixel):
    """Add an atom to the sums of weights and of weighted values, which are in units of exp(factor · top)."""
    channels = values.shape[1]
    for b in range(len(factors)):
        weight = math.exp(-abs(score - top) * factors[b])
        if score > top:
            mass[b] = mass[b] * weight + 1
            for channel in range(channels):
                sums[b, channel] = sums[b, channel] * weight + values[image, channel, pixel]
        else:
            mass[b] += weight
            for channel in range(channels):
                sums[b, channel] += weight * values[image, channel, pixel]


@compiled
@no_type_check
def _reaching(out, bounds, largest, limit, count):
    """Set the first entries of out to the places of those of the first ``count`` bounds that reach a limit."""
    rows, lanes = bounds.shape
    found = 0
    for s in range(lanes):
        if largest[s] >= limit:
            for m in range(rows):
                place = index(m * lanes + s)
                out[found] = place
                found += bounds[m, s] >= limit and place < count
    return found


@compiled
@no_type_check
def weigh(
    bounds,
    windows,
    lacks,
    slack,
    floor,
    top,
    mass,
    sums,
    compared,
    atoms,
    images,
    half_norms,
    values,
    first,
    step,
    count,
    slack_rate,
    margin,
    factors,
):
    """Weigh those of ``count`` atoms that reach the floor of a query, which rises with its mass.

    ``bounds`` (q, m, LANES) are those of atoms ``first``, ``first + step``, ...: an image has as many as ``atoms``
    (3, S), the row of each pixel of the stratum, its column times channels, and its index. An atom whose bound reaches
    the floor is compared, and weighed if its score does, too, but for ``slack`` and ``slack_rate`` times half the
    squared norm of its window. See ``lemmse.screen`` for the others.
    """
    size = index(atoms.shape[1])
    largest = np.empty(bounds.shape[2], bounds.dtype)
    places = np.empty(bounds.shape[1] * bounds.shape[2] + 1, np.uintp)
    products = np.empty(windows.shape[2], windows.dtype)
    widest = factors.min()
    for q in range(len(bounds)):
        window, of_mass, of_sums = windows[q], mass[q], sums[q]
        _largest(largest, bounds[q])
        found = _reaching(places, bounds[q], largest, floor[q] - slack[q], count)
        compared[q] += found
        looked = of_mass[-1]
        for i in range(found):
            atom = first + places[i] * index(step)
            image, place = atom // size, atom % size
            _products(products, window, images, image, index(atoms[0, place]), index(atoms[1, place]))
            half_norm = half_norms[image, place]
            score = _sum(products) - lacks[q] - half_norm
            if score < floor[q] - slack[q] - slack_rate * half_norm:
                continue
            _add(of_mass, of_sums, top[q], score, factors, values, image, atoms[2, place])
            if score > top[q] or of_mass[-1] > GROWTH * looked:
                top[q] = max(top[q], score)
                looked = of_mass[-1]
                floor[q] = max(floor[q], top[q] + (math.log(of_mass.min()) - margin) / widest)


keep_compiled(weigh)
