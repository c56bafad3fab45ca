"""The fused kernel: posterior means over all pairs of windows of two images, with no array of pairs (needs numba).

Pair query pixel n' = (i, j) with the pixel n' + (s, t) of a training image. For a fixed t, the products of the two
images are an array over (i, j, s), and the inner products of windows are its sums over a box in (i, j), at a cost that
does not depend on the size of the window: a pair costs about a dozen operations on numbers that stay near the
processor, where a matrix product costs 2 c p², and exponentials only where a weight is above the clamp (S5.4, S12.2).
Images are transposed and stored twice over, so that s is the fastest axis and no index wraps. All of it is float32, but
for the sums over images.

Each box sum is that of a suffix of one block of rows and a prefix of the next, blocks being as large as the window:
three additions, all of numbers inside the window. So a pixel beyond a window changes not one bit of it.

What makes vectors of these loops: indices that numba knows to be unsigned, functions of one loop nest each, and leave
to add in any order.
"""

import math
from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np
import platformdirs

from ._types import LOG_WEIGHT_FLOOR

__all__ = ["WindowMeans", "keep_compiled"]

FLOOR = np.float32(LOG_WEIGHT_FLOOR)
NOTHING = np.float32(-1e20)
"""A score below all others: of windows that are not compared, and of queries that have met none."""

LOG2E, LN2, HALF, ONE, ZERO = (np.float32(x) for x in (1 / math.log(2), math.log(2), 0.5, 1, 0))
C2, C3, C4, C5 = (np.float32(1 / math.factorial(k)) for k in range(2, 6))

_compiled = numba.njit(
    nogil=True,
    inline="never",
    error_model="numpy",
    fastmath={"nsz", "arcp", "contract", "afn", "reassoc", "nnan", "ninf"},  # sums in any order; nothing is infinite
)
_index = np.uintp


@_compiled
@no_type_check
def _products(out, query, key, channel, i, t):
    """Set out[j, s] = Σ_c query[c, i, j] key[c, j + t, i + s] (``channel`` 0), or add one channel's product."""
    w, h = out.shape
    for j in range(w):
        column = _index(j) + t
        q = query[channel, i, j]
        if channel == 0:
            for s in range(h):
                out[j, s] = q * key[channel, column, i + _index(s)]
        else:
            for s in range(h):
                out[j, s] += q * key[channel, column, i + _index(s)]


@_compiled
@no_type_check
def _products_of_colours(out, query, key, i, t):
    """Set out[j, s] = Σ_c query[c, i, j] key[c, j + t, i + s] for three channels."""
    w, h = out.shape
    red, green, blue = _index(0), _index(1), _index(2)
    for j in range(w):
        column = _index(j) + t
        q_red, q_green, q_blue = query[red, i, j], query[green, i, j], query[blue, i, j]
        for s in range(h):
            row = i + _index(s)
            other = q_green * key[green, column, row] + q_blue * key[blue, column, row]
            out[j, s] = q_red * key[red, column, row] + other


@_compiled
@no_type_check
def _suffix_sums(out, rows, first, wraps):
    """Set out[a] to the sum of the rows around first + a up to the end of its block, wrapping or left out."""
    block, size = out.shape
    count, half = len(rows), block // 2
    for back in range(block):
        a = _index(block - 1 - back)
        e = first + block - 1 - back - half
        row, inside = _index(e % count), wraps or 0 <= e < count
        if back == 0:
            for k in range(size):
                out[a, k] = rows[row, k] if inside else ZERO
        elif inside:
            for k in range(size):
                out[a, k] = out[a + _index(1), k] + rows[row, k]
        else:
            for k in range(size):
                out[a, k] = out[a + _index(1), k]


@_compiled
@no_type_check
def _window_sums(out, suffixes, prefix, rows, first, stop, wraps):
    """Set out[j] for first <= j < stop, one block, to the sum of the rows in the window of first + a."""
    count, size, half = len(rows), len(prefix), len(suffixes) // 2
    for k in range(size):
        prefix[k] = ZERO
        out[_index(first), k] = suffixes[0, k]
    for a in range(1, stop - first):
        j, e = _index(first + a), first + a + half
        row = _index(e % count)
        if wraps or e < count:
            for k in range(size):
                total = prefix[k] + rows[row, k]
                prefix[k] = total
                out[j, k] = suffixes[a, k] + total
        else:
            for k in range(size):
                out[j, k] = suffixes[a, k] + prefix[k]


@_compiled
@no_type_check
def _window_sum(out, suffixes, prefix, rows, a, last, wraps):
    """Set out to the sum of one window, the next of its block: ``prefix`` holds the rows before ``last``."""
    size, count = len(out), len(rows)
    row = _index(last % count)
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


@_compiled
@no_type_check
def _scores(out, best, inner, half_norms, i, t):
    """Set out[j, s] = ⟨q, k⟩ - ½‖k‖² and best[j] to the largest of a row."""
    w, h = inner.shape
    for j in range(w):
        column = _index(j) + t
        largest = NOTHING
        for s in range(h):
            score = inner[j, s] - half_norms[column, i + _index(s)]
            out[j, s] = score
            largest = max(largest, score)
        best[j] = largest


@_compiled
@no_type_check
def _scores_within(out, best, inner, half_norms, query_strata, key_strata, i, t):
    """Do the same where only windows of one stratum are compared."""
    w, h = inner.shape
    for j in range(w):
        column = _index(j) + t
        stratum = query_strata[i, j]
        largest = NOTHING
        for s in range(h):
            row = i + _index(s)
            score = inner[j, s] - half_norms[column, row]
            score = score if key_strata[column, row] == stratum else NOTHING
            out[j, s] = score
            largest = max(largest, score)
        best[j] = largest


@_compiled
@no_type_check
def _weights(out, exponent, power, scores, j, top, factor):
    """Set out[s] = exp(factor (score - top)), clamped below, and return their sum; ``power`` is a view of exponent."""
    for s in range(len(out)):
        x = max((scores[j, s] - top) * factor, FLOOR) * LOG2E
        whole = np.int32(x - HALF)  # x <= 0: the nearest integer
        r = (x - np.float32(whole)) * LN2
        exponent[s] = (whole + 127) << 23
        out[s] = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * C5))))
    total = ZERO
    for s in range(len(out)):
        weight = out[s] * power[s]
        out[s] = weight
        total += weight
    return total


@_compiled
@no_type_check
def _weighted(weights, values, channel, column, row):
    total = ZERO
    for s in range(len(weights)):
        total += weights[s] * values[channel, column, row + _index(s)]
    return total


@_compiled
@no_type_check
def _twice_over(out, image):
    """Set out[j, i] = image[i, j], repeated along both axes."""
    h, w = image.shape
    for j in range(w):
        for i in range(h):
            out[j, i] = image[i, j]
        out[j, h:] = out[j, :h]
        out[w + j] = out[j]


@_compiled
@no_type_check
def _weigh_row(scores, best, reach, value, factors, i, t, top, masses, all_sums, room):
    """Add the windows of all rows s to the sums of the queries of row i, for one shift t of columns.

    ``masses`` and ``all_sums`` are those of all images and of this image, in units of exp(factor · top): where top
    rises, all that was summed counts in units of the new one (S12.6). ``room`` is what ``_weights`` works in.
    """
    weights, exponent, power = room
    mass, sums = masses[1], all_sums[1]
    for j in range(len(best)):
        old = top[i, j]
        if best[j] < old + reach or best[j] <= NOTHING:
            continue
        rises = best[j] > old
        if rises:
            top[i, j] = best[j]
        for b in range(len(factors)):
            if rises and old > NOTHING:
                share = math.exp(max((old - best[j]) * factors[b], 2 * FLOOR))
                masses[0][b, i, j] *= share
                mass[b, i, j] *= share
                for channel in range(len(value)):
                    all_sums[0][b, i, j, channel] *= share
                    sums[b, i, j, channel] *= share
            mass[b, i, j] += _weights(weights, exponent, power, scores, _index(j), top[i, j], factors[b])
            for channel in range(len(value)):
                sums[b, i, j, channel] += _weighted(weights, value, _index(channel), _index(j + t), _index(i))


@_compiled
@no_type_check
def _accumulate(query, keys, half_norms, values, strata, one_stratum, factors, patch_size, wraps, top, mass, sums):
    """Add the windows of all images to mass and sums, which are in units of exp(factor · top); top rises as needed."""
    count, c, h, w = keys.shape
    channels, half = values.shape[1], patch_size // 2
    key = np.empty((c, 2 * w, 2 * h), np.float32)
    value = np.empty((channels, 2 * w, 2 * h), np.float32)
    norms, key_strata = np.empty((2 * w, 2 * h), np.float32), np.empty((2 * w, 2 * h), np.int32)
    _twice_over(key_strata, strata)
    products, scores, inner = np.empty((w, h), np.float32), np.empty((w, h), np.float32), np.empty((w, h), np.float32)
    rows = np.empty((h, w, h), np.float32)
    flat_rows, flat_inner = rows.reshape(h, w * h), inner.reshape(w * h)
    along, along_prefix = np.empty((patch_size, h), np.float32), np.empty(h, np.float32)
    down, down_prefix = np.empty((patch_size, w * h), np.float32), np.empty(w * h, np.float32)
    best, exponent = np.empty(w, np.float32), np.empty(h, np.int32)
    room = np.empty(h, np.float32), exponent, exponent.view(np.float32)
    image_mass, image_sums = np.empty(mass.shape, np.float32), np.empty(sums.shape, np.float32)
    reach = FLOOR / factors.min()
    for d in range(count):
        for channel in range(c):
            _twice_over(key[channel], keys[d, channel])
        for channel in range(channels):
            _twice_over(value[channel], values[d, channel])
        _twice_over(norms, half_norms[d])
        image_mass[:] = 0
        image_sums[:] = 0
        for t in range(w):
            shift = _index(t)
            for i in range(h):
                row = _index(i)
                if c == 3:
                    _products_of_colours(products, query, key, row, shift)
                else:
                    for channel in range(c):
                        _products(products, query, key, _index(channel), row, shift)
                for first in range(0, w, patch_size):
                    _suffix_sums(along, products, first, wraps)
                    _window_sums(rows[i], along, along_prefix, products, first, min(first + patch_size, w), wraps)
            for i in range(h):
                row = _index(i)
                a = i % patch_size
                if a == 0:
                    _suffix_sums(down, flat_rows, i, wraps)
                _window_sum(flat_inner, down, down_prefix, flat_rows, _index(a), i + half, wraps)
                if one_stratum:
                    _scores(scores, best, inner, norms, row, shift)
                else:
                    _scores_within(scores, best, inner, norms, strata, key_strata, row, shift)
                _weigh_row(scores, best, reach, value, factors, i, t, top, (mass, image_mass), (sums, image_sums), room)
        mass += image_mass
        sums += image_sums


def keep_compiled(function: Any) -> None:
    """Keep what is compiled of a function in the user's cache folder, or in memory alone where none can be written."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before or platformdirs.user_cache_dir("lemmse")
    try:
        function.enable_caching()
    except RuntimeError:  # numba found no folder that it may write to
        pass
    finally:
        numba.config.CACHE_DIR = before


keep_compiled(_accumulate)


class Means(NamedTuple):
    """Per sigma and query pixel: the largest score, the weights' sum in its units, and the weighted mean."""

    top: np.ndarray  # (h, w)
    mass: np.ndarray  # (b, h, w), float64
    mean: np.ndarray  # (b, h, w, c), float64


class WindowMeans:
    """The windows of one image v (c, h, w), asked for the posterior means of their centre pixels.

    A score is ⟨q, k⟩ - ½‖k‖² of two windows, r² = ‖q‖² - 2 score, and the log-weight is -r²/2σ²; ``factors`` (b,) are
    1/σ², at most 1e12. ``strata`` (h, w) labels the pixels: windows of different labels are not compared.
    ``boundary`` is ``"circular"`` or ``"zero"``.
    """

    def __init__(self, v: np.ndarray, strata: np.ndarray, factors: np.ndarray, patch_size: int, boundary: str):
        self.v, self.strata, self.factors = v, strata.astype(np.int32), factors.astype(np.float32)
        self.one_stratum = bool((strata == strata[0, 0]).all())
        self.patch_size, self.wraps = patch_size, boundary == "circular"

    def over(self, keys: np.ndarray, half_norms: np.ndarray, values: np.ndarray, top: np.ndarray) -> Means:
        """Return ``Means`` over all windows of images; scores are taken relative to ``top`` (h, w) or better ones.

        ``keys`` (k, c, h, w), ``half_norms`` (k, h, w), ½‖k‖² of each window, and ``values`` (k, c, h, w) are float32.
        A query none of whose weights reaches the clamp below ``top`` has mass 0.
        """
        h, w = self.strata.shape
        top = np.maximum(top, NOTHING, dtype=np.float32)
        mass = np.zeros((len(self.factors), h, w))
        sums = np.zeros((len(self.factors), h, w, values.shape[1]))
        facts = (self.strata, self.one_stratum, self.factors, self.patch_size, self.wraps)
        _accumulate(self.v, keys, half_norms, values, *facts, top, mass, sums)
        return Means(top, mass, sums / np.where(mass > 0, mass, 1)[..., None])
