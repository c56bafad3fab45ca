"""What the compiled loops share: how numba compiles them and keeps what it made, and exponentials (needs numba).

What makes vectors of these loops: indices that numba knows to be unsigned, functions of one loop nest each, integers of
32 bits throughout, and leave to add in any order.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, no_type_check

import numba
import numpy as np
import platformdirs
from numba.core import types
from numba.extending import intrinsic

from ._types import LOG_WEIGHT_FLOOR

__all__ = [
    "FLOOR",
    "HALF",
    "NOTHING",
    "ZERO",
    "compiled",
    "dot",
    "exponentials",
    "index",
    "keep_compiled",
    "larger",
    "largest",
    "reach",
]

NOTHING = np.float32(-1e20)
"""A score below all others: of windows that are not compared, and of queries that have met none."""

FLOOR, ZERO = np.float32(LOG_WEIGHT_FLOOR), np.float32(0)

UNSEEN = 20.0
"""Atoms that together weigh less than exp(-UNSEEN) of the rest, a thirtieth of float32's rounding, need not be met."""

compiled = numba.njit(
    nogil=True,
    inline="never",
    error_model="numpy",
    fastmath={"nsz", "arcp", "contract", "afn", "reassoc", "nnan", "ninf"},  # sums in any order; nothing is infinite
)
index = np.uintp

LOG2E, OCTAVES, HALF = np.float32(1 / math.log(2)), np.float32(LOG_WEIGHT_FLOOR / math.log(2)), np.float32(0.5)
C0, C1, C2, C3, C4, C5 = (np.float32(math.log(2) ** k / math.factorial(k)) for k in range(6))
EXPONENT = np.int32(2**23)

STATE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def reach(atoms: int) -> float:
    """Return how many nats below the largest log-weight those of all of so many atoms can be left out (UNSEEN)."""
    return max(-(UNSEEN + math.log(atoms)), LOG_WEIGHT_FLOOR)


@intrinsic
@no_type_check
def _bits(typing_context, x):
    """Return the bits of a float32 as an int32."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], context.get_value_type(types.int32)
    )


@intrinsic
@no_type_check
def _number(typing_context, bits):
    """Return the float32 of these bits, an int32."""
    return types.float32(types.int32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], context.get_value_type(types.float32)
    )


@intrinsic
@no_type_check
def larger(typing_context, a, b):
    """Return the larger of two float32 numbers: as ``max`` does, but so that its loops become vectors."""

    def make(context, builder, signature, arguments):
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *arguments, flags=flags), *arguments, flags=flags)

    return types.float32(types.float32, types.float32), make


@compiled
@no_type_check
def exponentials(out, scores, top, factor):
    """Set out[s] = exp(factor (score - top)), clamped below, for scores of at most ``top``.

    2^x = 2^r 2^k, k the nearest integer: a polynomial of r, within 3e-6, to whose exponent k is added.
    """
    octaves = factor * LOG2E
    for s in range(len(out)):
        x = max((scores[s] - top) * octaves, OCTAVES)
        k = np.int32(x - HALF)  # x <= 0
        r = x - np.float32(k)
        power = C0 + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * C5))))
        out[s] = _number(np.int32(_bits(power) + np.int32(k * EXPONENT)))


@compiled
@no_type_check
def largest(scores):
    """Return the largest of a row of scores, or NOTHING."""
    found = NOTHING
    for s in range(len(scores)):
        found = larger(found, scores[s])
    return found


@compiled
@no_type_check
def dot(a, b):
    """Return Σ a[s] b[s]."""
    total = ZERO
    for s in range(len(a)):
        total += a[s] * b[s]
    return total


def keep_compiled(function: Any) -> None:
    """Keep what is compiled of a function in the user's cache folder, or in memory alone where none can be written.

    numba compiles a function anew where its file has changed, but knows nothing of this one: hence a folder for each
    state of it.
    """
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = before or str(Path(platformdirs.user_cache_dir("lemmse"), STATE))
    try:
        function.enable_caching()
    except RuntimeError:  # numba found no folder that it may write to
        pass
    finally:
        numba.config.CACHE_DIR = before
