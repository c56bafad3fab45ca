"""The fused kernel: posterior means over all pairs of windows of two images, with no array of pairs (needs numba).

Pair query pixel n' = (i, j) with the pixel n' + (s, t) of a training image. For a fixed t, the products of the two
images are an array over (i, j, s), and the inner products of windows are its sums over a box in (i, j), at a cost that
does not depend on the size of the window: a pair costs about a dozen operations on numbers that stay near the
processor, where a matrix product costs 2 c p², and exponentials only where a weight is above the clamp (S5.4, S12.2).
Images are transposed and stored twice over, so that s is the fastest axis and no index wraps. All of it is float32, but
for the sums over images.

Along j, a box sum is made of sums of 2, 4, 8, ... numbers, in loops over all (j, s) at once; along i, it is that of a
suffix of one block of rows and a prefix of the next, blocks being as large as the window, so that the last rows stay in
the cache. All that is ever added lies inside the window: a pixel beyond it changes not one bit. The exponentials of all
rows of which a weight can matter are one loop, too.

What makes vectors of these loops is said in ``lemmse._compiled``.
"""

import itertools
import math
from typing import NamedTuple, no_type_check

import numpy as np

from ._compiled import FLOOR, NOTHING, ZERO, compiled, exponentials, index, keep_compiled, larger, reach

__all__ = ["WindowMeans", "sums_of"]

LANES = 8
"""Numbers in a vector of AVX2: loops over a multiple of them leave no remainder."""


@compiled
@no_type_check
def _products(out, query, key, channel, i, t):
    """Set out[j, s] = Σ_c query[c, i, j] key[c, j + t, i + s] (``channel`` 0), or add one channel's product."""
    w, h = out.shape
    for j in range(w):
        column = index(j) + t
        q = query[channel, i, j]
        if channel == 0:
            for s in range(h):
                out[j, s] = q * key[channel, column, i + index(s)]
        else:
            for s in range(h):
                out[j, s] += q * key[channel, column, i + index(s)]


@compiled
@no_type_check
def _products_of_colours(out, query, key, i, t):
    """Set out[j, s] = Σ_c query[c, i, j] key[c, j + t, i + s] for three channels."""
    w, h = out.shape
    red, green, blue = index(0), index(1), index(2)
    for j in range(w):
        column = index(j) + t
        q_red, q_green, q_blue = query[red, i, j], query[green, i, j], query[blue, i, j]
        for s in range(h):
            row = i + index(s)
            other = q_green * key[green, column, row] + q_blue * key[blue, column, row]
            out[j, s] = q_red * key[red, column, row] + other


@compiled
@no_type_check
def _copy(out, a):
    for k in range(len(out)):
        out[k] = a[k]


@compiled
@no_type_check
def _add(out, a, b):
    for k in range(len(out)):
        out[k] = a[k] + b[k]


@compiled
@no_type_check
def _add_three(out, a, b, c):
    for k in range(len(out)):
        out[k] = a[k] + (b[k] + c[k])


@compiled
@no_type_check
def _add_four(out, a, b, c, d):
    for k in range(len(out)):
        out[k] = (a[k] + b[k]) + (c[k] + d[k])


@compiled
@no_type_check
def _part(levels, part, span, size):
    """Return the sums that a row of ``Sums.parts`` names."""
    level = levels[part[0]]
    return level[part[1] * span : part[1] * span + size]


@compiled
@no_type_check
def _sums_along(out, levels, doublings, parts, span):
    """Set out[k] to the sum of entries of levels[0] from k on, ``span`` apart, made as ``sums_of`` says.

    levels[m] becomes the sums of 2^m entries.
    """
    length, size, first = levels.shape[1], len(out), _part(levels, parts[0], span, len(out))
    for m in range(doublings):
        before, after, step = levels[m], levels[m + 1], span << m
        length -= step
        _add(after[:length], before[:length], before[step : step + length])
    if len(parts) == 1:
        _copy(out, first)
    elif len(parts) == 2:
        _add(out, first, _part(levels, parts[1], span, size))
    elif len(parts) == 3:
        _add_three(out, first, _part(levels, parts[1], span, size), _part(levels, parts[2], span, size))
    else:
        second, third = _part(levels, parts[1], span, size), _part(levels, parts[2], span, size)
        _add_four(out, first, second, third, _part(levels, parts[3], span, size))
    for n in range(4, len(parts)):
        _add(out, out, _part(levels, parts[n], span, size))


@compiled
@no_type_check
def _continue_beyond(products, half):
    """Copy what lies beyond the first and the last of the rows from the other end."""
    size, w = products.shape[1], len(products) - 2 * half
    for a in range(half):
        before, after = index(a), index(half + w + a)
        other_before, other_after = index(w + a), index(half + a)
        for k in range(size):
            products[before, k] = products[other_before, k]
            products[after, k] = products[other_after, k]


@compiled
@no_type_check
def _suffix_sums(out, rows, first, wraps):
    """Set out[a] to the sum of the rows around first + a up to the end of its block, wrapping or left out."""
    block, size = out.shape
    count, half = len(rows), block // 2
    for back in range(block):
        a = index(block - 1 - back)
        e = first + block - 1 - back - half
        row, inside = index(e % count), wraps or 0 <= e < count
        if back == 0:
            for k in range(size):
                out[a, k] = rows[row, k] if inside else ZERO
        elif inside:
            for k in range(size):
                out[a, k] = out[a + index(1), k] + rows[row, k]
        else:
            for k in range(size):
                out[a, k] = out[a + index(1), k]


@compiled
@no_type_check
def _window_sum(out, suffixes, prefix, rows, a, last, wraps):
    """Set out to the sum of one window, the next of its block: ``prefix`` holds the rows before ``last``."""
    size, count = len(out), len(rows)
    row = index(last % count)
    if a == 0:
        for k in range(size):
            prefix[k] = ZERO
            out[k] = suffixes[0, k]
    elif wraps or last < count:
        for k in range(size):
            total = prefix[k] + rows[row, k]
            prefix[k] = total
            out[k] = suffixes[a, k] + total
    else:
        for k in range(size):
            out[k] = suffixes[a, k] + prefix[k]


@compiled
@no_type_check
def _scores(out, best, inner, half_norms, beyond, i, t):
    """Set out[j, s] = ⟨q, k⟩ - ½‖k‖² and best[j] to the largest of a row; ``beyond`` is a penalty of each s."""
    w, h = inner.shape
    for j in range(w):
        column = index(j) + t
        largest = NOTHING
        for s in range(h):
            score = inner[j, s] - (half_norms[column, i + index(s)] + beyond[s])
            out[j, s] = score
            largest = larger(largest, score)
        best[j] = largest


@compiled
@no_type_check
def _scores_within(out, best, inner, half_norms, beyond, query_strata, key_strata, i, t):
    """Do the same where only windows of one stratum are compared."""
    w, h = inner.shape
    for j in range(w):
        column = index(j) + t
        stratum = query_strata[i, j]
        largest = NOTHING
        for s in range(h):
            row = i + index(s)
            score = inner[j, s] - (half_norms[column, row] + beyond[s])
            score = score if key_strata[column, row] == stratum else NOTHING
            out[j, s] = score
            largest = larger(largest, score)
        best[j] = largest


@compiled
@no_type_check
def _over_and_over(out, image):
    """Set out[j, i] = image[i, j], repeated along both axes."""
    h, w = image.shape
    for j in range(w):
        for i in range(h):
            out[j, i] = image[i, j]
        for i in range(h, out.shape[1]):
            out[j, i] = out[j, i - h]
        out[w + j] = out[j]


@compiled
@no_type_check
def _live_rows(live, best, top, lowest):
    """List the rows j whose windows can matter to one sigma, and return their number.

    ``top`` (w,) is the largest score that each query has met, this row included.
    """
    count = 0
    for j in range(len(best)):
        if best[j] >= top[j] + lowest and best[j] > NOTHING:
            live[count] = j
            count += 1
    return count


@compiled
@no_type_check
def _depths(out, scores, top, live, count):
    """Set out[n, s] to the scores of each live row less the largest."""
    h = scores.shape[1]
    for n in range(count):
        row, j = index(n), live[n]
        highest = top[j]
        for s in range(h):
            out[row, s] = scores[j, s] - highest


@compiled
@no_type_check
def _raise(best, top, factors, mass, image_mass, sums, image_sums, i):
    """Let the largest scores rise; all that was summed then counts in units of the new ones (S12.6)."""
    for j in range(len(best)):
        old = top[j]
        if best[j] > old:
            top[j] = best[j]
            if old > NOTHING:
                for b in range(len(factors)):
                    share = math.exp(max((old - best[j]) * factors[b], 2 * FLOOR))
                    mass[b, i, j] *= share
                    image_mass[b, i, j] *= share
                    for channel in range(sums.shape[3]):
                        sums[b, i, j, channel] *= share
                        image_sums[b, i, j, channel] *= share


@compiled
@no_type_check
def _add_masses(mass, weights, live, count):
    """Add the weights of each live row to mass[j]."""
    h = weights.shape[1]
    for n in range(count):
        row, total = index(n), ZERO
        for s in range(h):
            total += weights[row, s]
        mass[live[row]] += total


@compiled
@no_type_check
def _add_values(sums, weights, live, count, value, channel, i, t):
    """Add the weighted values of each live row to sums[j, channel]."""
    h = weights.shape[1]
    for n in range(count):
        row, total = index(n), ZERO
        j = live[row]
        column = j + t
        for s in range(h):
            total += weights[row, s] * value[channel, column, i + index(s)]
        sums[j, channel] += total


@compiled
@no_type_check
def _add_colours(mass, sums, weights, live, count, value, i, t):
    """Add the weights of each live row to mass[j], and the weighted values of three channels to sums[j]."""
    h = weights.shape[1]
    red, green, blue = index(0), index(1), index(2)
    for n in range(count):
        row, total, reds, greens, blues = index(n), ZERO, ZERO, ZERO, ZERO
        j = live[row]
        column = j + t
        for s in range(h):
            weight, k = weights[row, s], i + index(s)
            total += weight
            reds += weight * value[red, column, k]
            greens += weight * value[green, column, k]
            blues += weight * value[blue, column, k]
        mass[j] += total
        sums[j, red] += reds
        sums[j, green] += greens
        sums[j, blue] += blues


@compiled
@no_type_check
def _accumulate(
    query,
    keys,
    half_norms,
    values,
    strata,
    one_stratum,
    factors,
    within,
    patch_size,
    doublings,
    parts,
    wraps,
    top,
    mass,
    sums,
):
    """Add the windows of all images to mass and sums, which are in units of exp(factor · top); top rises as needed."""
    count, c, h, w = keys.shape
    channels, half = values.shape[1], patch_size // 2
    shifts = -(-h // LANES) * LANES  # in whole vectors, if few are added: they repeat others, and count for nothing
    shifts = shifts if shifts <= h + h // 6 else h
    beyond = np.zeros(shifts, np.float32)
    beyond[h:] = -NOTHING
    key = np.empty((c, 2 * w, h + shifts), np.float32)
    value = np.empty((channels, 2 * w, h + shifts), np.float32)
    norms, key_strata = np.empty((2 * w, h + shifts), np.float32), np.empty((2 * w, h + shifts), np.int32)
    _over_and_over(key_strata, strata)
    size, margin = w * shifts, half * shifts
    levels = np.zeros((doublings + 1, size + 2 * margin), np.float32)
    flat_products = levels[0]  # and, before and after, what lies beyond: nothing, or itself
    products = flat_products.reshape((w + 2 * half, shifts))
    inside = products[half : half + w]
    rows, scores, inner = np.empty((h, size), np.float32), np.empty((w, shifts), np.float32), np.empty(size, np.float32)
    inner_of = inner.reshape((w, shifts))
    down, down_prefix = np.empty((patch_size, size), np.float32), np.empty(size, np.float32)
    best, live = np.empty(w, np.float32), np.empty(w, np.uintp)
    depths, weights = np.empty(size, np.float32), np.empty(size, np.float32)
    depths_of, weights_of = depths.reshape((w, shifts)), weights.reshape((w, shifts))
    image_mass, image_sums = np.empty(mass.shape, np.float32), np.empty(sums.shape, np.float32)
    for d in range(count):
        for channel in range(c):
            _over_and_over(key[channel], keys[d, channel])
        for channel in range(channels):
            _over_and_over(value[channel], values[d, channel])
        _over_and_over(norms, half_norms[d])
        image_mass[:] = 0
        image_sums[:] = 0
        for t in range(w):
            shift = index(t)
            for i in range(h):
                row = index(i)
                if c == 3:
                    _products_of_colours(inside, query, key, row, shift)
                else:
                    for channel in range(c):
                        _products(inside, query, key, index(channel), row, shift)
                if wraps:
                    _continue_beyond(products, half)
                _sums_along(rows[i], levels, doublings, parts, shifts)
            for i in range(h):
                row = index(i)
                a = i % patch_size
                if a == 0:
                    _suffix_sums(down, rows, i, wraps)
                _window_sum(inner, down, down_prefix, rows, index(a), i + half, wraps)
                if one_stratum:
                    _scores(scores, best, inner_of, norms, beyond, row, shift)
                else:
                    _scores_within(scores, best, inner_of, norms, beyond, strata, key_strata, row, shift)
                _raise(best, top[i], factors, mass, image_mass, sums, image_sums, row)
                known = 0
                for b in range(len(factors)):
                    found = _live_rows(live, best, top[i], within / factors[b])
                    if found != known:  # the rows of one sigma are among those of a larger one: as many are the same
                        _depths(depths_of, scores, top[i], live, found)
                        known = found
                    if found:
                        exponentials(weights[: found * shifts], depths[: found * shifts], ZERO, factors[b])
                        if channels == 3:
                            _add_colours(image_mass[b, i], image_sums[b, i], weights_of, live, found, value, row, shift)
                        else:
                            _add_masses(image_mass[b, i], weights_of, live, found)
                            for channel in range(channels):
                                _add_values(
                                    image_sums[b, i], weights_of, live, found, value, index(channel), row, shift
                                )
        mass += image_mass
        sums += image_sums


keep_compiled(_accumulate)


class Means(NamedTuple):
    """Per sigma and query pixel: the largest score, the weights' sum in its units, and the weighted mean."""

    top: np.ndarray  # (h, w)
    mass: np.ndarray  # (b, h, w), float64
    mean: np.ndarray  # (b, h, w, c), float64


class Sums(NamedTuple):
    """How a sum of entries is made of sums of 2, 4, 8, ... of them."""

    doublings: int
    parts: np.ndarray  # (n, 2): m, and the first entry of a sum of 2^m


def sums_of(count: int) -> Sums:
    """Return how to sum ``count`` entries: with as few doublings as leave at most four parts, if any do."""

    def widths(m: int) -> list[int]:
        return [m] * (count >> m) + [k for k in reversed(range(m)) if count >> k & 1]

    most = count.bit_length() - 1
    doublings = next((m for m in range(most) if len(widths(m)) <= 4), most)
    ends = itertools.accumulate(2**m for m in widths(doublings))
    parts = [(m, end - 2**m) for m, end in zip(widths(doublings), ends, strict=True)]
    return Sums(doublings, np.array(parts, np.int64))


class WindowMeans:
    """The windows of one image v (c, h, w), asked for the posterior means of their centre pixels.

    A score is ⟨q, k⟩ - ½‖k‖² of two windows, r² = ‖q‖² - 2 score, and the log-weight is -r²/2σ²; ``factors`` (b,) are
    1/σ², at most 1e12. ``strata`` (h, w) labels the pixels: windows of different labels are not compared.
    ``boundary`` is ``"circular"`` or ``"zero"``.
    """

    def __init__(self, v: np.ndarray, strata: np.ndarray, factors: np.ndarray, patch_size: int, boundary: str):
        self.v, self.strata, self.factors = v, strata.astype(np.int32), factors.astype(np.float32)
        self.one_stratum = bool((strata == strata[0, 0]).all())
        self.patch_size, self.sums, self.wraps = patch_size, sums_of(patch_size), boundary == "circular"

    def over(self, keys: np.ndarray, half_norms: np.ndarray, values: np.ndarray, top: np.ndarray) -> Means:
        """Return ``Means`` over all windows of images; scores are taken relative to ``top`` (h, w) or better ones.

        ``keys`` (k, c, h, w), ``half_norms`` (k, h, w), ½‖k‖² of each window, and ``values`` (k, c, h, w) are float32.
        A query none of whose weights reaches the clamp below ``top`` has mass 0.
        """
        h, w = self.strata.shape
        top = np.maximum(top, NOTHING, dtype=np.float32)
        mass = np.zeros((len(self.factors), h, w))
        sums = np.zeros((len(self.factors), h, w, values.shape[1]))
        within = np.float32(reach(len(keys) * h * w))
        facts = (self.strata, self.one_stratum, self.factors, within, self.patch_size, *self.sums, self.wraps)
        _accumulate(self.v, keys, half_norms, values, *facts, top, mass, sums)
        return Means(top, mass, sums / np.where(mass > 0, mass, 1)[..., None])
