"""What image spaces the shifts and windows of a pre-inverse have: which atoms a query may be compared with (S2.4)."""

import math

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ._factors import Factor, unit
from ._progress import progress
from ._types import SUBSPACE_ATOL
from .operators import LinearOperator
from .patches import shift_each

__all__ = ["stabiliser"]

PROBES = 4
"""Random vectors of Im B that are shifted; that all of them stay in Im B by chance has probability about 1e-20."""

PROBE_BLOCK = 2**22
"""Numbers of shifted probes that are held at once."""


def stabiliser(
    pre_inverse: LinearOperator, measurement_shape: tuple[int, ...], size: tuple[int, int]
) -> Bool[Tensor, "h w"]:
    """Find the shifts g with T_g Im B = Im B and return them as a map, ``True`` at [g_row, g_column] (S4.1).

    ``size`` is that of the images that B makes of measurements of ``measurement_shape`` (without batch). Where B
    declares that B Bᵀ is circulant, all shifts; a diagonal B is asked for the shifts that preserve its support; of any
    other, random vectors of Im B are shifted, and those shifts count that move none of them out of Im B by more than
    SUBSPACE_ATOL of its length. A declared ``shift_period`` s spares all shifts but those below s.
    """
    h, w = size
    period = pre_inverse.shift_period
    if period == 1 or pre_inverse.gram_symbol(h, w) is not None:
        return torch.ones(h, w, dtype=torch.bool)
    factor = pre_inverse.factorisation(tuple(measurement_shape))
    if pre_inverse.diagonal is not None:
        return _shifts_of_support(factor.kept.broadcast_to(measurement_shape).cpu())
    if factor.rank == math.prod(factor.forward(unit, torch.zeros(1, *measurement_shape, dtype=torch.float64)).shape):
        return torch.ones(h, w, dtype=torch.bool)
    below = (period, period) if period is not None and h % period == w % period == 0 else size
    rows, columns = (torch.arange(side) for side in below)
    candidates = (rows[:, None] * w + columns).flatten()
    kept = torch.zeros(h * w, dtype=torch.bool)
    kept[_preserving(factor, measurement_shape, candidates)] = True
    return kept.unflatten(0, size)[: below[0], : below[1]].repeat(h // below[0], w // below[1])


def _shifts_of_support(support: Bool[Tensor, "c h w"]) -> Bool[Tensor, "h w"]:
    """Return the shifts that map a set of pixels to itself: those that overlap with it in all of its pixels."""
    spectrum = torch.fft.rfft2(support.double())
    overlap = torch.fft.irfft2(spectrum.abs().square().sum(0), s=support.shape[1:])
    return (overlap - support.sum()).abs() < 0.5


def _preserving(factor: Factor, measurement_shape: tuple[int, ...], shifts: Int64[Tensor, " s"]) -> Int64[Tensor, " t"]:
    """Return those of the shifts that leave every probe in Im B."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(PROBES):
        probe = torch.randn(1, *measurement_shape, generator=generator, dtype=torch.float64)
        inside = factor.forward(unit, probe)
        block = max(1, PROBE_BLOCK // math.prod(inside.shape))
        parts = shifts.split(block)
        steps = progress(parts, description="shifts that preserve Im B", unit="block")
        shifts = torch.cat([part[_leaves(factor, inside, part) <= SUBSPACE_ATOL * inside.norm()] for part in steps])
    return shifts


def _leaves(factor: Factor, inside: Float64[Tensor, "1 c h w"], shifts: Int64[Tensor, " s"]) -> Float64[Tensor, " s"]:
    """Return how far each shift moves a vector of Im B out of it."""
    shifted = shift_each(inside.expand(len(shifts), -1, -1, -1), shifts)
    return (shifted - factor.forward(unit, factor.backward(unit, shifted))).flatten(1).norm(dim=1)
