"""How queries meet atoms: squared distances to all of them, and weighted sums of what they are worth.

A *comparison* knows what a measurement is as a query and as a key, and gives the squared distances of queries to the
atoms of a chunk of images: the images themselves (S3), their shifts (S4), or their windows (S5):

==========================  ===========================================================================================
``RowComparison``           ‖Π(y - A x)‖ by a matrix product; atoms are whole images
``ShiftedRowComparison``    ‖B⁺T_g⁻¹v - Π A x‖ by a matrix product, any B: the general path of S4
``CircularComparison``      ‖ṽ - T_g κ̃‖ for all shifts at once, by FFT, where whitening commutes with the shifts (S4.2)
``DiagonalComparison``      ‖b⁺T_g⁻¹v - Π A x‖ for a diagonal B, by a sum and a correlation (S4.2)
``OneWhitener``             ‖Q_n⁺(v[ω_n'] - (B A x)[ω_n])‖ by a matrix product, one whitener for a stratum (S5.2)
``SeveralWhiteners``        the same by a product for each whitener
``ScaledWindows``           the same for a diagonal B, by one matrix product for all its whiteners
==========================  ===========================================================================================
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Complex, Float, Float64, Int64
from torch import Tensor

from ._factors import Factor, unchanged
from ._types import LOG_WEIGHT_FLOOR
from .operators import RowSpaceProjector
from .patches import shift_each
from .reductions import ArrayValues, Term, weighted_mean

__all__ = [
    "CircularComparison",
    "Comparison",
    "DiagonalComparison",
    "Keys",
    "OneWhitener",
    "RowComparison",
    "ScaledWindows",
    "SeveralWhiteners",
    "ShiftedRowComparison",
    "ShiftedValues",
    "WindowComparison",
    "WindowQueries",
    "WindowTerm",
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

SKIP_SHARE = 0.7
"""Queries that no atom of a term can move are skipped where those that are left are at most this share."""

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
) -> Float[Tensor, "q K"]:
    """Return the squared distances to the s atoms of each image, those near each query's smallest computed anew.

    Products and FFTs leave an error of about 4 eps times the terms of size ``cancelling`` whose difference r² is, which
    at a small sigma decides between near neighbours; differences, ``exact`` (query, atom), leave eps r². Where this
    cannot matter (REFINED_LOG_WEIGHT) or gains nothing (REFINED_SHARE), nothing is done, unless the ``listed`` nearest
    atoms are asked for by name, in their order. ``block`` pairs are computed at once.
    """
    cancelling, sigma = cancelling.double(), sigma.detach().reshape(len(d2), -1)  # an expanded query has many sigmas
    rounding = 4 * torch.finfo(d2.dtype).eps * cancelling
    refine_below = (rounding / (2 * REFINED_LOG_WEIGHT)).sqrt()
    matters = sigma.amin(1) < refine_below
    if not matters.any() and not listed:
        return d2.flatten(1)
    nearest = d2.detach().amin(2)  # of each image: most need not be looked at again
    reach = 2 * rounding + 2 * REFINED_REACH * torch.minimum(sigma.amax(1), refine_below).square()
    bound = (nearest.amin(1) + reach).minimum(REFINED_SHARE * cancelling).where(matters, -1.0)
    if listed:
        last = d2.detach().flatten(1).topk(min(listed, d2[0].numel()), dim=1, largest=False).values[:, -1]
        bound = torch.maximum(bound, last + 2 * rounding)
    query, image = (nearest <= bound[:, None]).nonzero().unbind(1)
    row, place = (d2.detach()[query, image] <= bound[query, None]).nonzero().unbind(1)
    query, atom = query[row], image[row] * d2.shape[2] + place
    if not len(atom):
        return d2.flatten(1)
    anew = [exact(*pairs).to(d2) for pairs in zip(query.split(block), atom.split(block), strict=True)]
    return d2.flatten(1).index_put((query, atom), torch.cat(anew))


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
    ) -> Float[Tensor, "q K"]:
        """Return r² of every query and atom, those near each query's smallest from differences."""
        return refined(
            self.squared_distances(queries, keys),
            lambda query, atom: self.exact(queries, keys, measured, query, atom),
            cancelling=self.cancelling(queries, keys),
            sigma=sigma,
            listed=listed,
            block=max(1, REFINED_BLOCK // self.key_size(queries)),
        )

    def key_size(self, queries: Tensor) -> int:
        """Return how many numbers a query compares with a key."""
        return queries[0].numel()


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
        images, which = (atom // self.atoms_per_image).unique(return_inverse=True)
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
        images, which = (atom // self.atoms_per_image).unique(return_inverse=True)
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
        if (gains == gains[:, :1]).all():  # channels alike: one sum serves them all
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


class WindowQueries(NamedTuple):
    """Windows of measurements, ``rows`` (q, ...) as keys meet them; a score is ``factor`` · (½‖q‖² - ½r²).

    ``own`` (q,) is ``factor`` · ½‖q‖², 0 where scores contain it; ``factor`` (q,) is 1/σ², or 1 where sigmas share
    the scores.
    """

    rows: Float[Tensor, "q r"]
    own: Float[Tensor, " q"]
    factor: Float[Tensor, " q"]


class WindowComparison(ABC):
    """How the windows of a stratum meet those of images: r = ‖Q_n⁺(v[ω_n'] - (B A x)[ω_n])‖ (S5.2).

    ``pixels`` (S,) are those of the stratum, ascending, and ``half_log_pdet`` (S,) is ½ ln |Q_n Q_nᵀ|₊ of each.
    ``atoms_at_once`` is how many atoms a term should have; ``key_entries`` the numbers that a key takes.
    """

    pixels: Int64[Tensor, " s"]
    half_log_pdet: Float[Tensor, " s"]
    atoms_at_once: int
    key_entries: int

    @cached_property
    def uniform(self) -> bool:
        """Return whether all windows have one pseudo-determinant: then the nearest is the heaviest."""
        return bool((self.half_log_pdet == self.half_log_pdet[0]).all())

    @abstractmethod
    def queries(self, windows: Float[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return windows of measurements as queries."""

    @abstractmethod
    def keys(self, windows: Float[Tensor, "k s d"]) -> Any:
        """Return the windows of images around the stratum's pixels as keys."""

    @abstractmethod
    def scores(self, queries: WindowQueries, keys: Any) -> Float[Tensor, "q K"]:
        """Return ``own`` - ``factor`` · ½r² of every query and atom, image-major."""


@final
class OneWhitener(WindowComparison):
    """Windows that one whitener serves: centred, whitened in the dtype that they come in, compared in ``dtype``.

    Queries (f q, f) and keys (k, -½‖k‖²) have their score f (⟨q, k⟩ - ½‖k‖²) as their inner product. ``centre`` (d,)
    is subtracted from both, where it cancels.
    """

    atoms_at_once = 2**10

    def __init__(
        self, pixels: Int64[Tensor, " s"], whitener: Any, centre: Float[Tensor, " d"] | None, dtype: torch.dtype
    ):
        self.pixels, self.whitener, self.centre, self.dtype = pixels, whitener, centre, dtype
        self.half_log_pdet = torch.full(pixels.shape, whitener.log_pdet / 2, dtype=dtype, device=pixels.device)
        self.key_entries = whitener.rank + 1

    def queries(self, windows: Float[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return (f q, f) of every window."""
        rows = self._whitened(windows)
        scaled = torch.cat([rows * factor[:, None], factor[:, None]], dim=1)
        return WindowQueries(scaled, factor * rows.square().sum(1) / 2, factor)

    def keys(self, windows: Float[Tensor, "k s d"]) -> Float[Tensor, "K r"]:
        """Return (k, -½‖k‖²) of every window."""
        rows = self._whitened(windows).flatten(0, 1)
        return torch.cat([rows, -0.5 * torch.linalg.vector_norm(rows, dim=1, keepdim=True).square()], dim=1)

    def scores(self, queries: WindowQueries, keys: Float[Tensor, "K r"]) -> Float[Tensor, "q K"]:
        """Return f (⟨q, k⟩ - ½‖k‖²) by one matrix product."""
        return queries.rows @ keys.T

    def _whitened(self, windows: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
        return self.whitener(windows if self.centre is None else windows - self.centre).to(self.dtype)


@final
class SeveralWhiteners(WindowComparison):
    """Windows of one image space whose pseudo-determinants or whiteners differ: a product for each class."""

    atoms_at_once = 2**16

    def __init__(self, classes: Sequence[OneWhitener]):
        self.classes = classes
        together = torch.cat([each.pixels for each in classes])
        self.order = together.argsort()
        self.pixels = together[self.order]
        self.half_log_pdet = torch.cat([each.half_log_pdet for each in classes])[self.order]
        self.places = [torch.searchsorted(self.pixels, each.pixels) for each in classes]
        self.key_entries = classes[0].key_entries

    def queries(self, windows: Float[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return the windows as they are: each class whitens them in its own way."""
        return WindowQueries(windows, torch.zeros_like(factor), factor)

    def keys(self, windows: Float[Tensor, "k s d"]) -> list[Tensor]:
        """Return the keys of each class."""
        return [each.keys(windows[:, place]) for each, place in zip(self.classes, self.places, strict=True)]

    def scores(self, queries: WindowQueries, keys: list[Tensor]) -> Float[Tensor, "q K"]:
        """Return -f · ½r² of every query and atom."""
        parts = []
        for each, rows in zip(self.classes, keys, strict=True):
            own = each.queries(queries.rows, queries.factor)
            parts.append((each.scores(own, rows) - own.own[:, None]).unflatten(1, (-1, len(each.pixels))))
        return torch.cat(parts, dim=2)[:, :, self.order].flatten(1)


@final
class ScaledWindows(WindowComparison):
    """Windows that are scaled, entry by entry, in a way of each pixel's own: r² = Σ_j s_nj² (v_j - k_j)².

    The windows of a stratum of a diagonal B: ``kept`` are the entries that it leaves, ``scales`` (S, r) whiten them.
    Σ s²v² is a product of queries with pixels and Σ s²vk one with all keys, whatever the number of different scales;
    both are in float64, as no centre of each pixel's own can be subtracted.
    """

    atoms_at_once = 2**14

    def __init__(
        self, pixels: Int64[Tensor, " s"], kept: Int64[Tensor, " r"], scales: Float64[Tensor, "s r"], dtype: torch.dtype
    ):
        self.pixels, self.kept, self.dtype = pixels, kept, dtype
        self.gains = scales.square()
        self.half_log_pdet = -scales.log().sum(1).to(dtype)
        self.key_entries = 2 * (scales.shape[1] + 1)

    def queries(self, windows: Float64[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return the entries that are left."""
        return WindowQueries(windows[:, self.kept], torch.zeros_like(factor), factor)

    def keys(self, windows: Float64[Tensor, "k s d"]) -> Float64[Tensor, "K r"]:
        """Return (s²k, -½ Σ s²k²) of every window."""
        windows = windows[..., self.kept]
        rows = self.gains * windows
        return torch.cat([rows, -0.5 * (rows * windows).sum(2, keepdim=True)], dim=2).flatten(0, 1)

    def scores(self, queries: WindowQueries, keys: Float64[Tensor, "K r"]) -> Float[Tensor, "q K"]:
        """Return -f · ½r² of every query and atom."""
        v = queries.rows
        own = 0.5 * v.square() @ self.gains.T  # (q, S)
        halves = (v @ keys[:, :-1].T + keys[:, -1]).unflatten(1, (-1, len(self.pixels))) - own[:, None]
        return (halves.flatten(1).clamp_max(0) * queries.factor.double()[:, None]).to(self.dtype)


@final
class WindowTerm(Term):
    """The windows of a stratum in some images, as q queries see them: scores, from which the rest follows.

    ``scores`` (q, K) and ``own`` (q,) as a ``WindowComparison`` gives them; ``inverse_variances`` (b,), 1/σ² of sigmas
    that share the scores (then a query for each of them, sigma-major), or ``None`` where the scores contain it.
    ``columns`` (c + 1, K) are the values, and 1. The log-weights are own - scores, over σ², less ``half_log_pdet``.
    """

    log_multiplicity = None

    def __init__(
        self,
        scores: Float[Tensor, "n K"],
        queries: WindowQueries,
        comparison: WindowComparison,
        columns: Float[Tensor, "c1 K"],
        *,
        inverse_variances: Float[Tensor, " b"] | None,
        first_image: int,
    ):
        self.scores, self.own, self.factor = scores, queries.own, queries.factor
        self.inverse_variances, self.columns, self.first_image = inverse_variances, columns, first_image
        self.pixels, self.half_log_pdet = comparison.pixels, comparison.half_log_pdet
        self._by_scores = comparison.uniform and not scores.requires_grad  # then log-weights are never made
        self.values = ArrayValues(columns[:-1].T)

    @cached_property
    def _depths(self) -> Float[Tensor, "n K"]:
        """Return r²/2, times 1/σ² where the scores contain it."""
        return (self.own[:, None] - self.scores).clamp_min(0)

    @cached_property
    def log_weights(self) -> Float[Tensor, "q K"]:
        """Return -r²/2σ² - ½ ln |Q_n Q_nᵀ|₊ of every query and atom."""
        if self.inverse_variances is None:
            scaled = self._depths
        else:
            scaled = (self.inverse_variances[:, None, None] * self._depths).flatten(0, 1)
        return (-scaled.unflatten(1, (-1, len(self.pixels))) - self.half_log_pdet).flatten(1)

    @cached_property
    def squared_distances(self) -> Float[Tensor, "q K"]:
        """Return r² of every query and atom."""
        d2 = 2 * self._depths / self.factor[:, None]
        return d2 if self.inverse_variances is None else d2.repeat(len(self.inverse_variances), 1)

    @cached_property
    def _top(self) -> Float[Tensor, " n"]:
        return self.scores.amax(1)

    @cached_property
    def peak(self) -> Float[Tensor, " q"]:
        """Return the largest log-weight that each query sees."""
        if not self._by_scores:
            return self.log_weights.amax(1).detach()
        depth = (self.own - self._top).clamp_min(0)
        scaled = depth if self.inverse_variances is None else (self.inverse_variances[:, None] * depth).flatten()
        return -scaled - self.half_log_pdet[0]

    def mean(self, floor: Float[Tensor, " q"]) -> tuple[Float[Tensor, " q"], Float[Tensor, "q c"]]:
        """Return the sum of the weights in units of the peak, and the weighted mean of the centre pixels."""
        if not self._by_scores:
            return weighted_mean(self.peak, self.log_weights, self.values)
        live = self.peak >= floor
        if self.inverse_variances is None:
            sums = self._sums(live, None)
        else:
            shared = zip(live.split(len(self.scores)), self.inverse_variances, strict=True)
            sums = torch.cat([self._sums(*each) for each in shared])
        mass = sums[:, -1]
        return mass, sums[:, :-1] / mass.where(mass > 0, 1.0)[:, None]

    def _sums(self, live: Bool[Tensor, " n"], factor: Float[Tensor, ""] | None) -> Float[Tensor, "n c1"]:
        """Return the weighted sums of values and of ones, in units of the peak; 0 where few queries are live."""
        count = int(live.sum())
        if count > SKIP_SHARE * len(live):
            return self._sums_of(self.scores, self._top, factor)
        sums = self.columns.new_zeros(len(live), len(self.columns))
        if count:
            sums[live] = self._sums_of(self.scores[live], self._top[live], factor)
        return sums

    def _sums_of(self, scores: Float[Tensor, "n K"], top: Float[Tensor, " n"], factor: Any) -> Float[Tensor, "n c1"]:
        relative = scores - top[:, None]
        if factor is not None:
            relative *= factor
        weights = relative.clamp_min_(LOG_WEIGHT_FLOOR).exp_()
        return (self.columns @ weights.T).T  # a product with few rows is three times as fast as one with few columns


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
