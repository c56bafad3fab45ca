"""How queries meet atoms: squared distances to all of them, and weighted sums of what they are worth.

A *comparison* knows what a measurement is as a query and as a key, and gives the squared distances of queries to the
atoms of a chunk of images: the images themselves (S3), or their shifts (S4). Windows (S5) are in ``lemmse.windows``.

==========================  ===========================================================================================
``RowComparison``           ‖Π(y - A x)‖ by a matrix product; atoms are whole images
``ShiftedRowComparison``    ‖B⁺T_g⁻¹v - Π A x‖ by a matrix product, any B: the general path of S4
``CircularComparison``      ‖ṽ - T_g κ̃‖ for all shifts at once, by FFT, where whitening commutes with the shifts (S4.2)
``DiagonalComparison``      ‖b⁺T_g⁻¹v - Π A x‖ for a diagonal B, by a sum and a correlation (S4.2)
==========================  ===========================================================================================
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Complex, Float, Float64, Int64
from torch import Tensor

from . import _device
from ._factors import Factor, unchanged
from ._types import LOG_WEIGHT_FLOOR
from .operators import RowSpaceProjector
from .patches import shift_each

__all__ = [
    "CircularComparison",
    "Comparison",
    "DiagonalComparison",
    "Keys",
    "RowComparison",
    "ShiftedRowComparison",
    "ShiftedValues",
    "centre_of",
    "refined",
    "squared_distances",
]

REFINED_BLOCK = 2**22
"""Numbers of differences that are held at once when distances are computed anew."""

REFINED_LOG_WEIGHT = 1e-3
"""Where rounding could move a log-weight by more than this many nats, distances near the smallest are computed anew."""

REFINED_REACH = 20.0
"""... those of atoms within so many nats of the heaviest: an error of a lighter one is lost in rounding."""

REFINED_UNSEEN = 64
"""... where none is looked at: so many of each query's nearest."""

REFINED_SHARE = 0.25
"""... and only while they are at most this share of the terms that cancel in them: else differences round as much."""

CENTRE_GRID = 256
"""Centres are rounded to multiples of 1/256, so that images of dyadic values keep exact distances."""

FEW_SHIFTS = 64
"""Up to so many shifts of an image are summed shift by shift; for more of them the FFT is faster."""

FEW_ATOMS = 32
"""Up to so many atoms of any weight, per query, are summed one by one: without the rounding of an FFT."""

SHIFT_BLOCK = 2**20
"""Numbers of shifted images that are held at once."""

Whitener = Callable[[Tensor], Tensor]
"""From measurements, (b, ...), to what is compared."""


def centre_of(images: Float[Tensor, "k c h w"]) -> Float[Tensor, "c 1 1"]:
    """Return the mean colour of images, rounded to CENTRE_GRID: every shift preserves it, and differences cancel it."""
    return (images.mean((0, 2, 3))[:, None, None] * CENTRE_GRID).round() / CENTRE_GRID


def squared_distances(
    queries: Float[Tensor, "q m"], rows: Float[Tensor, "k m"], norms: Float[Tensor, " k"]
) -> Float[Tensor, "q k"]:
    """Return ‖q - k‖² of every pair by one matrix product, never negative; ``norms`` are the ‖k‖²."""
    return torch.addmm(queries.square().sum(1)[:, None] + norms, queries, rows.T, alpha=-2).clamp_min(0)


def refined(
    d2: Float[Tensor, "q k s"],
    exact: Callable[[Int64[Tensor, " n"], Int64[Tensor, " n"]], Float[Tensor, " n"]],
    *,
    cancelling: Float[Tensor, " q"],
    sigma: Float[Tensor, " b"],
    listed: int = 0,
    block: int = REFINED_BLOCK,
    missed: list[Tensor] | None = None,
) -> Float[Tensor, "q K"]:
    """Return the squared distances to the s atoms of each image, those near each query's smallest computed anew.

    Products and FFTs leave an error of about 4 eps times the terms of size ``cancelling`` whose difference r² is, which
    at a small sigma decides between near neighbours; differences, ``exact`` (query, atom), leave eps r². Where this
    cannot matter (REFINED_LOG_WEIGHT) or gains nothing (REFINED_SHARE), nothing is done, unless the ``listed`` nearest
    atoms are asked for by name, in their order. ``block`` pairs are computed at once.

    With a list ``missed``, nothing is looked at: so many of the nearest are computed anew (REFINED_UNSEEN), and whether
    there were more to be is appended.
    """
    cancelling, sigma = cancelling.double(), sigma.detach().reshape(len(d2), -1)  # an expanded query has many sigmas
    rounding = 4 * torch.finfo(d2.dtype).eps * cancelling
    refine_below = (rounding / (2 * REFINED_LOG_WEIGHT)).sqrt()
    matters = sigma.amin(1) < refine_below
    if missed is None and not listed and not matters.any():
        return d2.flatten(1)
    nearest = d2.detach().amin(2)  # of each image: most need not be looked at again
    reach = 2 * rounding + 2 * REFINED_REACH * torch.minimum(sigma.amax(1), refine_below).square()
    bound = (nearest.amin(1) + reach).minimum(REFINED_SHARE * cancelling).where(matters, -1.0)
    if listed:
        last = d2.detach().flatten(1).topk(min(listed, d2[0].numel()), dim=1, largest=False).values[:, -1]
        bound = torch.maximum(bound, last + 2 * rounding)
    if missed is not None:
        return _refined_unseen(d2.flatten(1), exact, bound[:, None], REFINED_UNSEEN + listed, block, missed)
    query, image = (nearest <= bound[:, None]).nonzero().unbind(1)
    row, place = (d2.detach()[query, image] <= bound[query, None]).nonzero().unbind(1)
    query, atom = query[row], image[row] * d2.shape[2] + place
    if not len(atom):
        return d2.flatten(1)
    anew = [exact(*pairs).to(d2) for pairs in zip(query.split(block), atom.split(block), strict=True)]
    return d2.flatten(1).index_put((query, atom), torch.cat(anew))


def _refined_unseen(
    d2: Float[Tensor, "q K"],
    exact: Callable[[Int64[Tensor, " n"], Int64[Tensor, " n"]], Float[Tensor, " n"]],
    bound: Float64[Tensor, "q 1"],
    most: int,
    block: int,
    missed: list[Tensor],
) -> Float[Tensor, "q K"]:
    """Return squared distances, up to so many of each query's computed anew where they are within the bound."""
    nearest = d2.detach().topk(min(most, d2.shape[1]), dim=1, largest=False)
    atom = nearest.indices
    query = torch.arange(len(d2), device=d2.device)[:, None].expand_as(atom)
    pairs = zip(query.flatten().split(block), atom.flatten().split(block), strict=True)
    anew = torch.cat([exact(*each).to(d2) for each in pairs]).reshape(atom.shape)
    missed.append(((d2.detach() <= bound).sum(1) > most).any())
    return d2.scatter(1, atom, torch.where(nearest.values <= bound, anew, d2.gather(1, atom)))


# ---------------------------------------------------------------------------------------------------------- comparisons


class Keys(NamedTuple):
    """What queries are compared with, one per image: rows or spectra, and the squared norm of each."""

    rows: Tensor
    norms: Float[Tensor, " k"]


class Comparison(ABC):
    """The squared distances of queries to the atoms of a chunk, ordered image-major.

    ``shifts`` (S,) are the row-major indices of the shifts that make atoms of an image, ascending; ``None`` where atoms
    are whole images. ``path`` and ``whitener`` say in words what is done; ``key_entries`` and ``query_entries`` are the
    numbers that an image and a query take at once.
    """

    path: str
    whitener: str
    shifts: Int64[Tensor, " s"] | None = None
    key_entries: int
    query_entries: int

    @property
    def atoms_per_image(self) -> int:
        """Return the number S of atoms of an image."""
        return 1 if self.shifts is None else len(self.shifts)

    @abstractmethod
    def queries(self, y: Float[Tensor, "q ..."]) -> Tensor:
        """Return what measurements are as queries, (q, ...)."""

    @abstractmethod
    def keys(self, measured: Float[Tensor, "k ..."]) -> Keys:
        """Return what the measurements of images are as keys."""

    @abstractmethod
    def squared_distances(self, queries: Tensor, keys: Keys) -> Float[Tensor, "q k s"]:
        """Return r² of every query and atom, never negative."""

    @abstractmethod
    def cancelling(self, queries: Tensor, keys: Keys) -> Float[Tensor, " q"]:
        """Return about the size of the terms whose difference each query's smallest squared distance is."""

    @abstractmethod
    def exact(
        self,
        queries: Tensor,
        keys: Keys,
        measured: Callable[[Int64[Tensor, " n"]], Tensor],
        query: Int64[Tensor, " n"],
        atom: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Return r² of some pairs from differences; ``measured`` gives A x of images of the chunk, computed again."""

    def refined_distances(
        self,
        queries: Tensor,
        keys: Keys,
        measured: Callable[[Int64[Tensor, " n"]], Tensor],
        *,
        sigma: Float[Tensor, " b"],
        listed: int,
        missed: list[Tensor] | None = None,
    ) -> Float[Tensor, "q K"]:
        """Return r² of every query and atom, those near each query's smallest from differences."""
        return refined(
            self.squared_distances(queries, keys),
            lambda query, atom: self.exact(queries, keys, measured, query, atom),
            cancelling=self.cancelling(queries, keys),
            sigma=sigma,
            listed=listed,
            block=max(1, REFINED_BLOCK // self.key_size(queries)),
            missed=missed,
        )

    def key_size(self, queries: Tensor) -> int:
        """Return how many numbers a query compares with a key."""
        return queries[0].numel()

    def _images_of(self, atom: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " n"]]:
        """Return the images that some atoms belong to, and which of them each atom does."""
        images = atom // self.atoms_per_image
        if _device.asynchronous(atom):
            return images, torch.arange(len(images), device=images.device)
        return images.unique(return_inverse=True)


class RowComparison(Comparison):
    """Queries Π y and keys Π A x, centred on the mean key of a sample."""

    path, whitener = "matrix products", "none"

    def __init__(self, project: Whitener, sample: Float[Tensor, "k ..."]):
        self.project = project
        self.centre = (project(sample).mean(0) * CENTRE_GRID).round() / CENTRE_GRID
        self.key_entries, self.query_entries = 4 * self.centre.numel(), 2 * self.centre.numel()

    def queries(self, y: Float[Tensor, "q ..."]) -> Float[Tensor, "q 1 m"]:
        """Return Π y as rows."""
        return (self.project(y) - self.centre).flatten(1)[:, None]

    def keys(self, measured: Float[Tensor, "k ..."]) -> Keys:
        """Return Π A x as rows."""
        rows = (self.project(measured) - self.centre).flatten(1)
        return Keys(rows, torch.linalg.vector_norm(rows, dim=1).square())

    def squared_distances(self, queries: Float[Tensor, "q s m"], keys: Keys) -> Float[Tensor, "q k s"]:
        """Return ‖q - k‖² of every pair, by one matrix product."""
        count = queries.shape[1]
        return squared_distances(queries.flatten(0, 1), *keys).unflatten(0, (-1, count)).mT

    def cancelling(self, queries: Float[Tensor, "q s m"], keys: Keys) -> Float[Tensor, " q"]:
        """Return ‖q‖² + ‖k‖²; a shift that takes a query far from the origin is far from every key, and no matter."""
        return (queries.square().sum(2).amin(1) + keys.norms.max()).detach()

    def key_size(self, queries: Float[Tensor, "q s m"]) -> int:
        """Return how many numbers a query compares with a key."""
        return queries.shape[2]

    def exact(self, queries: Tensor, keys: Keys, measured: Callable, query: Tensor, atom: Tensor) -> Tensor:
        """Return ‖q - k‖² of some pairs."""
        image, place = atom // queries.shape[1], atom % queries.shape[1]
        return (queries[query, place] - keys.rows[image]).square().sum(1)


@final
class ShiftedRowComparison(RowComparison):
    """Queries B⁺T_g⁻¹v for every shift g and keys Π A x: any B, by its factorisation (S4.2, general path).

    Queries are made in float64 and rounded once, as B⁺ amplifies rounding.
    """

    path, whitener = "general: matrix products", "B⁺ after every shift"

    def __init__(self, factor: Factor, shifts: Int64[Tensor, " s"], sample: Float[Tensor, "k ..."]):
        super().__init__(RowSpaceProjector(factor), sample)
        self.factor, self.shifts = factor, shifts
        self.query_entries *= len(shifts)

    def queries(self, y: Float[Tensor, "q ..."]) -> Float[Tensor, "q s m"]:
        """Return B⁺T_g⁻¹ B y as rows, one per shift."""
        v = self.factor.forward(unchanged, y.double())
        block = max(1, SHIFT_BLOCK // v.numel())
        rows = [self._rows(v, shifts, y.dtype) for shifts in self.shifts.split(block)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _rows(self, v: Float64[Tensor, "q c h w"], shifts: Int64[Tensor, " s"], dtype: torch.dtype) -> Tensor:
        back = shift_each(v.repeat_interleave(len(shifts), 0), -shifts.repeat(len(v)))
        rows = (self.factor.backward(torch.reciprocal, back) - self.centre.double()).flatten(1).to(dtype)
        return rows.unflatten(0, (len(v), len(shifts)))


@final
class CircularComparison(Comparison):
    """Queries ṽ and keys κ̃ that are images on a grid, where whitening commutes with the shifts: r = ‖ṽ - T_g κ̃‖.

    ``whiten`` maps measurements to images (c, h/s, w/s); a shift by (i, j) pixels of that grid is one by (s i, s j)
    pixels of the full image (``stride`` s, ``full_width`` w). Both are centred on one colour, the mean of a sample,
    which every shift preserves. All shifts of an image cost one inverse FFT.
    """

    path = "fast: one FFT per image"

    def __init__(self, whiten: Whitener, sample: Float[Tensor, "k ..."], *, stride: int, full_width: int):
        self.whiten = whiten
        self.whitener = "none" if whiten is unchanged else "spectral"
        whitened = whiten(sample)
        self.colour = centre_of(whitened)
        self.size = tuple(whitened.shape[-2:])
        rows, columns = (stride * torch.arange(side, device=sample.device) for side in self.size)
        self.shifts = (rows[:, None] * full_width + columns).flatten()
        self.key_entries = self.query_entries = 4 * whitened[0].numel()

    def queries(self, y: Float[Tensor, "q ..."]) -> Float[Tensor, "q c h w"]:
        """Return ṽ, whitened and centred."""
        return self.whiten(y) - self.colour

    def keys(self, measured: Float[Tensor, "k ..."]) -> Keys:
        """Return the spectra of κ̃, whitened and centred."""
        whitened = self.whiten(measured) - self.colour
        return Keys(torch.fft.rfft2(whitened), whitened.square().sum((1, 2, 3)))

    def squared_distances(self, queries: Float[Tensor, "q c h w"], keys: Keys) -> Float[Tensor, "q k s"]:
        """Return ‖ṽ - T_g κ̃‖² of every pair and shift, by one correlation per pair."""
        constant = queries.square().sum((1, 2, 3))[:, None] + keys.norms
        return _from_correlation(constant[..., None, None], queries, keys.rows).flatten(2)

    def cancelling(self, queries: Float[Tensor, "q c h w"], keys: Keys) -> Float[Tensor, " q"]:
        """Return ‖ṽ‖² + ‖κ̃‖²."""
        return (queries.square().sum((1, 2, 3)) + keys.norms.max()).detach()

    def exact(self, queries: Tensor, keys: Keys, measured: Callable, query: Tensor, atom: Tensor) -> Tensor:
        """Return ‖ṽ - T_g κ̃‖² of some pairs; shifts that give equal images give equal distances, to the last bit."""
        images, which = self._images_of(atom)
        whitened = self.whiten(measured(images)) - self.colour
        return (queries[query] - shift_each(whitened[which], atom % self.atoms_per_image)).square().sum((1, 2, 3))


@final
class DiagonalComparison(Comparison):
    """Queries v = b y and keys b⁺ A x of a diagonal B, in float64, as b⁺ amplifies rounding (S4.2).

    r² = Σ_n b⁺² (T_g⁻¹v)² - 2 ⟨T_g⁻¹v, b⁺ A x⟩ + ‖Π A x‖²: the first term is one sum per shift, whatever the number of
    images, and the second is a correlation. Shifts that do not preserve the support of b are left out. b and b⁺ come
    from the factor, which has decided what of b is zero.
    """

    path, whitener = "fast: a sum of every shift and one FFT per image", "diagonal"

    def __init__(self, factor: Factor, shifts: Int64[Tensor, " s"], sample: Float[Tensor, "k c h w"]):
        ones = torch.ones_like(sample[:1], dtype=torch.float64)
        self.diagonal = factor.forward(unchanged, ones)[0]
        self.inverse = factor.backward(torch.reciprocal, ones)[0]
        self.shifts, self.size = shifts, tuple(sample.shape[-2:])
        self.alike = bool((self.inverse == self.inverse[:1]).all())  # all channels: one sum of a shift serves them
        self.key_entries = self.query_entries = 8 * ones.numel()

    def queries(self, y: Float[Tensor, "q c h w"]) -> Float64[Tensor, "q c h w"]:
        """Return v = b y."""
        return self.diagonal * y.double()

    def keys(self, measured: Float[Tensor, "k c h w"]) -> Keys:
        """Return the spectra of b⁺ A x, and ‖Π A x‖²."""
        kept = self._kept(measured)
        return Keys(torch.fft.rfft2(self.inverse * kept), kept.square().sum((1, 2, 3)))

    def squared_distances(self, queries: Float64[Tensor, "q c h w"], keys: Keys) -> Float64[Tensor, "q k s"]:
        """Return ‖b⁺T_g⁻¹v - Π A x‖² of every pair and shift."""
        size = math.prod(self.size)
        constant = queries.new_zeros(len(queries), size).index_copy(1, self.shifts, self._norms_of_shifts(queries))
        constant = (constant[:, None] + keys.norms[:, None]).unflatten(2, self.size)
        return _from_correlation(constant, queries, keys.rows).flatten(2)[:, :, self.shifts]

    def cancelling(self, queries: Float64[Tensor, "q c h w"], keys: Keys) -> Float64[Tensor, " q"]:
        """Return 2 ‖v‖ ‖b⁺ A x‖ + ‖Π A x‖², the norm of b⁺ A x by Parseval from half of its spectrum."""
        spectra = keys.rows.abs().square().sum((1, 2, 3)).max() * 2 / math.prod(self.size)
        norm = queries.square().sum((1, 2, 3)).sqrt()
        return (2 * norm * spectra.sqrt() + keys.norms.max()).detach()

    def exact(self, queries: Tensor, keys: Keys, measured: Callable, query: Tensor, atom: Tensor) -> Tensor:
        """Return ‖T_g b⁺ (v - T_g b A x)‖² of some pairs; shifts that change neither b nor the image tie, exactly."""
        images, which = self._images_of(atom)
        shifts = self.shifts[atom % self.atoms_per_image]
        atoms = shift_each((self.diagonal * measured(images).double())[which], shifts)
        gains = shift_each(self.inverse.expand(len(shifts), -1, -1, -1), shifts)
        return (gains * (queries[query] - atoms)).square().sum((1, 2, 3))

    def _kept(self, measured: Float[Tensor, "k c h w"]) -> Float64[Tensor, "k c h w"]:
        """Return Π A x."""
        return measured.double() * (self.inverse != 0)

    def _norms_of_shifts(self, v: Float64[Tensor, "q c h w"]) -> Float64[Tensor, "q s"]:
        """Return ‖b⁺T_g⁻¹v‖² for every shift: sums of squares, as an FFT would spread the error of the largest."""
        gains, squared = self.inverse.square()[None], v.square()
        if self.alike:
            gains, squared = gains[:, :1], squared.sum(1, keepdim=True)
        blocks = self.shifts.split(max(1, SHIFT_BLOCK // gains.numel()))
        shifted = (shift_each(gains.expand(len(g), -1, -1, -1), g).flatten(1) for g in blocks)
        return torch.cat([squared.flatten(1) @ rows.T for rows in shifted], dim=1)


def _from_correlation(
    constant: Float[Tensor, "q k ..."], queries: Float[Tensor, "q c h w"], spectra: Complex[Tensor, "k c h w2"]
) -> Float[Tensor, "q k h w"]:
    """Return constant - 2 ⟨query, T_g key⟩ for every shift g, never negative."""
    seen = -2 * torch.fft.rfft2(queries)
    product = sum(spectra[:, channel].conj() * seen[:, None, channel] for channel in range(spectra.shape[1]))
    return (constant + torch.fft.irfft2(product, s=queries.shape[-2:])).clamp_min(0)


# --------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class ShiftedValues:
    """The shifts T_g x of images (k, c, h, w), ``shifts`` (s,) row-major indices: values of k·s atoms, never made.

    A weighted sum is a convolution of the images with their weights, by FFT; few shifts are summed shift by shift, and
    few atoms of any weight (above exp(LOG_WEIGHT_FLOOR)) one by one.
    """

    images: Float[Tensor, "k c h w"]
    shifts: Int64[Tensor, " s"]

    def weighted_sum(self, weights: Float[Tensor, "q K"]) -> Float[Tensor, "q c h w"]:
        """Return Σ w T_g x."""
        return self._sum(weights, self.images)

    def weighted_sum_of_squares(self, weights: Float[Tensor, "q K"]) -> Float[Tensor, "q c h w"]:
        """Return Σ w (T_g x)², entry by entry."""
        return self._sum(weights, self.images.square())

    def _sum(self, weights: Tensor, images: Tensor) -> Tensor:
        if _device.asynchronous(weights):
            return self._sum_of_all(weights, images)
        live = weights.detach() > math.exp(LOG_WEIGHT_FLOOR)
        if int(live.sum()) <= FEW_ATOMS * len(weights):
            return self._sum_of_atoms(weights, images, live)
        if len(self.shifts) <= FEW_SHIFTS:
            return self._sum_of_shifts(weights, images)
        chosen = live.unflatten(1, (-1, len(self.shifts))).any(2).any(0)
        weights = weights.unflatten(1, (-1, len(self.shifts)))
        if not chosen.all():
            weights, images = weights[:, chosen], images[chosen]
        return self._convolution(weights, images)

    def _sum_of_all(self, weights: Tensor, images: Tensor) -> Tensor:
        if len(self.shifts) <= FEW_SHIFTS:
            return self._sum_of_shifts(weights, images)
        return self._convolution(weights.unflatten(1, (-1, len(self.shifts))), images)

    def _sum_of_atoms(self, weights: Tensor, images: Tensor, live: Tensor) -> Tensor:
        query, atom = live.nonzero().unbind(1)
        image, place = atom // len(self.shifts), atom % len(self.shifts)
        values = weights[query, atom][:, None, None, None] * shift_each(images[image], self.shifts[place])
        return values.new_zeros(len(weights), *images.shape[1:]).index_add(0, query, values)

    def _sum_of_shifts(self, weights: Tensor, images: Tensor) -> Tensor:
        per_shift = weights.unflatten(1, (-1, len(self.shifts))).permute(2, 0, 1)  # (s, q, k)
        sums = (per_shift @ images.flatten(1)).unflatten(2, images.shape[1:])
        return sum(shift_each(part, g.expand(len(part))) for part, g in zip(sums, self.shifts, strict=True))

    def _convolution(self, weights: Tensor, images: Tensor) -> Tensor:
        h, w = images.shape[-2:]
        if len(self.shifts) < h * w:
            weights = weights.new_zeros(*weights.shape[:2], h * w).index_copy(2, self.shifts, weights)
        weighted, spectra = torch.fft.rfft2(weights.unflatten(2, (h, w))), torch.fft.rfft2(images)
        sums = [(weighted * spectra[:, channel]).sum(1) for channel in range(spectra.shape[1])]
        return torch.fft.irfft2(torch.stack(sums, dim=1), s=(h, w))
