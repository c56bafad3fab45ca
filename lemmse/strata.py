"""What image spaces the shifts and windows of a pre-inverse have: which atoms a query may be compared with (S2.4)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ._factors import Factor, check_dense, unchanged, unit
from ._progress import progress
from ._types import RANK_RTOL, SUBSPACE_ATOL
from .operators import LinearOperator
from .patches import shift_each, windows_at

__all__ = [
    "Mixing",
    "Selection",
    "Stratum",
    "Whitener",
    "WindowClass",
    "stabiliser",
    "strata_of_windows",
]

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


# -------------------------------------------------------------------------------------------------------------- windows


class Whitener(ABC):
    """S⁻¹Uᵀ of a window operator Q = U S Vᵀ: from windows (..., d) to (..., r), whose noise is white (S2.4)."""

    kind: str
    rank: int
    log_pdet: float

    @abstractmethod
    def __call__(self, windows: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
        """Return S⁻¹Uᵀ of every window."""

    @abstractmethod
    def project(self, windows: Float64[Tensor, "... d"]) -> Float64[Tensor, "... d"]:
        """Return U Uᵀ of every window: its part in Im Q."""

    def root(self, entries: int) -> Float64[Tensor, "d r"]:
        """Return U S, a root of Q Qᵀ whose columns are orthogonal, for windows of d entries."""
        transposed = self(torch.eye(entries, dtype=torch.float64))  # U S⁻¹
        return transposed / transposed.square().sum(0)


@final
class Selection(Whitener):
    """Of a Q whose rows are orthogonal: the rows that are not zero, over their lengths; ``lengths`` (d,)."""

    def __init__(self, lengths: Float64[Tensor, " d"], kept: Bool[Tensor, " d"]):
        self.kept, self.everything = kept.nonzero()[:, 0], bool(kept.all())
        self.scale = lengths[kept].reciprocal()
        self.unscaled = bool((self.scale == 1).all())
        self.kind = "none" if self.unscaled and self.everything else "selection" if self.unscaled else "diagonal"
        self.rank, self.log_pdet = len(self.kept), -2 * float(self.scale.log().sum())

    def __call__(self, windows: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
        """Return the kept entries, scaled."""
        windows = windows if self.everything else windows[..., self.kept]
        return windows if self.unscaled else windows * self.scale.to(windows)

    def project(self, windows: Float64[Tensor, "... d"]) -> Float64[Tensor, "... d"]:
        """Return the kept entries, and zeros."""
        return torch.zeros_like(windows).index_copy(-1, self.kept, windows[..., self.kept])


@final
class Mixing(Whitener):
    """Of any Q, by its SVD; with ``channels`` c the same matrix serves each channel of a window."""

    kind = "matrix"

    def __init__(self, u: Float64[Tensor, "d s"], s: Float64[Tensor, " s"], largest: float, channels: int = 1):
        kept = s > RANK_RTOL * largest
        self.channels, self.variances = channels, s[kept].square()
        self.matrix = (u[:, kept] / s[kept]).T
        self.rank, self.log_pdet = channels * int(kept.sum()), channels * 2 * float(s[kept].log().sum())

    def __call__(self, windows: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
        """Return the products with S⁻¹Uᵀ."""
        return (windows.unflatten(-1, (self.channels, -1)) @ self.matrix.T.to(windows)).flatten(-2)

    def project(self, windows: Float64[Tensor, "... d"]) -> Float64[Tensor, "... d"]:
        """Return U Uᵀ of every window."""
        return ((self(windows).unflatten(-1, (self.channels, -1)) * self.variances) @ self.matrix).flatten(-2)


@dataclass(frozen=True)
class WindowClass:
    """Pixels whose windows have one Q Qᵀ: one whitener and one pseudo-determinant serve them all."""

    pixels: Int64[Tensor, " m"]
    whitener: Whitener


@dataclass(frozen=True)
class Stratum:
    """Pixels whose windows have one image space Im Q, ascending: a query is compared with no other (S5.2)."""

    pixels: Int64[Tensor, " m"]
    classes: tuple[WindowClass, ...]

    @property
    def rank(self) -> int:
        """Return the dimension of Im Q."""
        return self.classes[0].whitener.rank

    @property
    def mixes(self) -> bool:
        """Return whether a matrix whitens some windows, rather than a scale for each entry."""
        return any(isinstance(member.whitener, Mixing) for member in self.classes)

    @property
    def evenly_scaled(self) -> bool:
        """Return whether one number whitens all entries that are left, in every window."""
        return (
            not self.mixes and len({scale for member in self.classes for scale in member.whitener.scale.tolist()}) < 2
        )

    @property
    def kept(self) -> Int64[Tensor, " r"]:
        """Return the entries of a window that are left where no matrix mixes them: the same for all classes."""
        return self.classes[0].whitener.kept

    def scales(self) -> Float64[Tensor, "m r"]:
        """Return the whitener of each pixel where no matrix mixes the entries: a scale for each that is left."""
        scales = torch.empty(int(self.pixels.max()) + 1, self.rank, dtype=torch.float64)
        for member in self.classes:
            scales[member.pixels] = member.whitener.scale
        return scales[self.pixels]


def strata_of_windows(
    pre_inverse: LinearOperator | None,
    measurement_shape: tuple[int, ...],
    image_shape: tuple[int, int, int],
    index: Int64[Tensor, "n p2"],
) -> tuple[Stratum, ...]:
    """Group the windows of B y by the image space of Q_n = Π_n B, and in it by Q_n Q_nᵀ, and return the strata (S5.2).

    ``image_shape`` (c, h, w) is that of B y, ``index`` names the pixels of the windows (``window_index``). Windows are
    told apart by what B declares: a circulant B Bᵀ makes them alike but for the boundary, a diagonal by its values in
    the window, a ``shift_period`` by their phase; of any other B each window is a class of its own. One threshold,
    RANK_RTOL of the largest singular value of all windows, decides all ranks.
    """
    c, h, w = image_shape
    inside = index < h * w
    symbol = torch.ones(h, w, dtype=torch.float64) if pre_inverse is None else pre_inverse.gram_symbol(h, w)
    if symbol is not None:
        labels = _labels(inside)
        whiteners = _whiteners_of_symbol(symbol, c, inside[_first_of_each(labels)])
    elif pre_inverse.diagonal is not None:
        diagonal = pre_inverse.diagonal.double().abs().broadcast_to(image_shape).cpu()
        lengths = windows_at(diagonal[None], index)[0]
        labels = _labels(lengths)
        lengths = lengths[_first_of_each(labels)]
        whiteners = [Selection(row, row > RANK_RTOL * diagonal.max()) for row in lengths]
    else:
        period = pre_inverse.shift_period
        if period is not None and h % period == w % period == 0:
            phase = (torch.arange(h) % period)[:, None] * period + torch.arange(w) % period
            labels = _labels(torch.cat([phase.reshape(-1, 1), inside], dim=1))
        else:
            labels = torch.arange(h * w)
        whiteners = _whiteners_of_rows(pre_inverse, measurement_shape, image_shape, index[_first_of_each(labels)])
    return _strata(labels, whiteners, c * index.shape[1])


def _labels(rows: Tensor) -> Int64[Tensor, " n"]:
    """Return the same label, counted from 0, for equal rows."""
    return rows.unique(dim=0, return_inverse=True)[1]


def _first_of_each(labels: Int64[Tensor, " n"]) -> Int64[Tensor, " k"]:
    """Return the first index of every label."""
    first = torch.full((int(labels.max()) + 1,), len(labels))
    return first.scatter_reduce(0, labels, torch.arange(len(labels)), "amin")


def _whiteners_of_symbol(symbol: Float64[Tensor, "h w"], channels: int, inside: Bool[Tensor, "k p2"]) -> list[Whitener]:
    """Return the whitener of each pattern of pixels inside the image, where B Bᵀ is circulant (S5.7).

    Q Qᵀ is a crop of B Bᵀ, and so is that of the symmetric root (B Bᵀ)^½: its SVD squares no condition number.
    """
    symbol = symbol.cpu()
    lengths = symbol.flatten()[:1].sqrt()
    if (symbol == symbol[0, 0]).all():
        rows = inside.repeat(1, channels)
        return [Selection(lengths.expand(len(row)), row & (lengths > 0)) for row in rows]
    kernel = torch.fft.ifft2(symbol.sqrt()).real
    side = math.isqrt(inside.shape[1])
    offsets = [(i, j) for i in range(side) for j in range(side)]
    root = torch.stack([kernel.roll(offset, (0, 1)).flatten() for offset in offsets])
    factors = [torch.linalg.svd(root * row[:, None], full_matrices=False)[:2] for row in inside]
    largest = max(float(s.max()) for _, s in factors)
    return [Mixing(u, s, largest, channels) for u, s in factors]


def _whiteners_of_rows(
    pre_inverse: LinearOperator,
    measurement_shape: tuple[int, ...],
    image_shape: tuple[int, int, int],
    index: Int64[Tensor, "k p2"],
) -> list[Whitener]:
    """Return the whitener of some windows of any B, from the rows of B that they see."""
    c, h, w = image_shape
    row_of = (torch.arange(c)[:, None] * (h * w + 1) + index[:, None]).flatten(1)  # of B y, padded like windows_at
    needed, place = row_of.unique(return_inverse=True)
    rows = _rows(pre_inverse, measurement_shape, image_shape, needed)
    factors = []
    for window in progress(place, description="image spaces of windows", unit="window"):
        factors.append(torch.linalg.svd(rows[window], full_matrices=False)[:2])
    largest = max(float(s.max()) for _, s in factors)
    return [Mixing(u, s, largest) for u, s in factors]


def _rows(
    pre_inverse: LinearOperator, measurement_shape: tuple[int, ...], image_shape: tuple[int, int, int], which: Tensor
) -> Float64[Tensor, "k M"]:
    """Return some rows of the matrix of B, as Bᵀ of single pixels; a row beyond the boundary is zero."""
    c, h, w = image_shape
    check_dense(len(which), math.prod(measurement_shape))
    factor = pre_inverse.factorisation(tuple(measurement_shape))
    pixels = torch.nn.functional.one_hot(which, c * (h * w + 1)).double().unflatten(1, (c, -1))[..., :-1]
    return factor.backward(unchanged, pixels.unflatten(2, (h, w))).flatten(1)


def _strata(labels: Int64[Tensor, " n"], whiteners: list[Whitener], size: int) -> tuple[Stratum, ...]:
    """Return the classes with one image space together, in the order of their first pixels."""
    probe = torch.randn(PROBES, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    marks = torch.stack([whitener.project(probe).flatten() for whitener in whiteners])  # U Uᵀ of random windows
    space = torch.empty(len(marks), dtype=torch.int64)
    for block in torch.arange(len(marks)).split(256):
        same = torch.cdist(marks[block], marks) <= SUBSPACE_ATOL * probe.norm()
        space[block] = same.int().argmax(1)  # the first class with the same image space
    pixels_of = [pixels.nonzero()[:, 0] for pixels in labels == torch.arange(len(whiteners))[:, None]]
    strata = []
    for first in space.unique():
        members = [WindowClass(pixels_of[k], whiteners[k]) for k in (space == first).nonzero()[:, 0].tolist()]
        strata.append(Stratum(torch.cat([member.pixels for member in members]).sort().values, tuple(members)))
    return tuple(sorted(strata, key=lambda stratum: int(stratum.pixels[0])))
