"""The estimators: each feeds the terms of its own atoms to a reduction (``lemmse.reductions``), and nothing else."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from ._checks import (
    ImageSet,
    check_measurements,
    check_pre_inverse,
    check_tolerance,
    checked_measured,
    checked_reduction,
    checked_sample,
    checked_sigma,
    checked_values,
    positive_integer,
)
from ._progress import progress
from .kernels import (
    FEW_SHIFTS,
    CircularComparison,
    Comparison,
    DiagonalComparison,
    Keys,
    RowComparison,
    ShiftedRowComparison,
    ShiftedValues,
    unchanged,
)
from .operators import as_operator, gram_whitener, rank, row_space_projector
from .reductions import (
    ArrayValues,
    Layout,
    Moments,
    Posterior,
    Reduction,
    Sources,
    Term,
    Values,
    accumulate,
    join,
)
from .strata import stabiliser

__all__ = ["DEFAULT_MEMORY_LIMIT", "MMSE", "EquivariantMMSE", "Estimator", "ImageSet", "Plan"]

DEFAULT_MEMORY_LIMIT = 256 * 2**20
"""Bytes that the temporary arrays of a chunk may take where the caller names no limit: small beside Binder's 2 GB."""

PAIR_ENTRIES = 20
"""Numbers that a reduction holds at once for each pair of a query and an atom, at most (``TopImages``, in float64)."""

CACHED_PAIRS = 2**19
"""Pairs of a query and a shifted image in a chunk: few enough to stay in a processor's cache, enough to fill it."""


@dataclass(frozen=True)
class Plan:
    """Which path an estimator takes, found once from what its operators declare; ``shifts`` of an image are atoms."""

    path: str
    strata: int
    whitener: str
    keys: str
    shifts: int = 1

    def __str__(self) -> str:
        shifts = "" if self.shifts == 1 else f"; shifts: {self.shifts}"
        return f"path: {self.path}; strata: {self.strata}; whitener: {self.whitener}; keys: {self.keys}{shifts}"


class Estimator(ABC):
    """What the estimators share: checked input, chunks of images, blocks of queries, constants of the density."""

    def __init__(
        self,
        images: Float[Tensor, "D c h w"] | ImageSet,
        physics: Any,
        *,
        pre_inverse: Any = None,
        chunk_size: int | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
    ):
        sample = checked_sample(images)
        self.images = images
        self.physics = as_operator(physics)
        self.pre_inverse = None if pre_inverse is None else as_operator(pre_inverse)
        self.chunk_size = None if chunk_size is None else positive_integer(chunk_size, "chunk_size counts images")
        self.memory_limit = positive_integer(memory_limit, "memory_limit counts bytes")
        measured = checked_measured(self.physics, self.physics.A(sample), sample)
        self.measurement_shape, self.dtype, self.device = tuple(measured.shape[1:]), measured.dtype, measured.device
        if self.pre_inverse is not None:
            check_pre_inverse(self.pre_inverse, measured[:1])
        self._comparison = self._choose_comparison(measured)
        self._keys = self._stored_keys() if isinstance(images, Tensor) else None

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""

    @abstractmethod
    def _choose_comparison(self, measured: Float[Tensor, "k ..."]) -> Comparison:
        """Return how queries are compared with atoms, once B has shown that it takes such measurements."""

    @abstractmethod
    def _values(self, images: Float[Tensor, "k c h w"], keys: Keys) -> Values:
        """Return what the atoms of a chunk are worth."""

    @property
    @abstractmethod
    def _components(self) -> int:
        """Return the number of components of the mixture that y is drawn from, admissible or not."""

    def __repr__(self) -> str:
        d, c, h, w = self.images.shape
        operators = f"{self.physics!r}, pre_inverse={self.pre_inverse!r}"
        return f"{type(self).__name__}({d} images of {c}×{h}×{w}, {operators}; {self.plan})"

    def __call__(
        self,
        y: Float[Tensor, "b ..."],
        *,
        sigma: float | Tensor,
        reduction: Reduction | None = None,
        tolerance: float = 0.0,
    ) -> Posterior | Moments | Sources:
        """Reduce the posterior of every measurement and return what ``reduction`` makes of it (default: ``Posterior``).

        ``y`` (b, ...) has the shape of ``physics.A(x)``; ``sigma`` is a number or one per query, (b,), in units of y. A
        ``y`` expanded along its batch (stride 0) computes its distances once for all its sigmas. The answer is exact
        whatever the ``tolerance``. Raises ``ValueError`` for a wrong shape, dtype or device, values that are not
        finite, a sigma that is not positive, or a positive tolerance with a reduction that cannot honour it, and
        ``TypeError`` for what is no reduction.
        """
        reduction = checked_reduction(reduction)
        check_measurements(y, self.measurement_shape, self.dtype, self.device)
        sigma = checked_sigma(sigma, len(y), y.device)
        check_tolerance(tolerance, reduction)
        blocks = [slice(at, at + self._queries_at_once) for at in range(0, len(y), self._queries_at_once)]
        chunks = self._chunks(min(len(y), self._queries_at_once))
        steps = progress(range(len(blocks) * len(chunks)), description=type(self).__name__, unit="chunk")
        listed = getattr(reduction, "atoms_listed", 0)
        states = [
            accumulate(
                self._terms(y[block], sigma[block], listed, zip(chunks, steps, strict=False)),
                reduction,
                self._layout(y[block]),
            )
            for block in blocks
        ]
        return reduction.finish(join(states), self._layout(y))

    def log_density(self, posterior: Any, sigma: float | Tensor) -> Float[Tensor, " b"]:
        """Complete a log-partition with its constants and return the log-density of Π y, in nats, shape (b,).

        L - ln K - (rank/2) ln 2πσ², K the number of atoms: D, or D·h·w where they are shifts, admissible or not. It is
        a density with respect to the Hausdorff measure of Im Bᵀ, of dimension ``rank`` (S2.1). ``posterior`` is a
        ``Posterior`` or ``Moments`` of this estimator at this ``sigma``; else ``TypeError``.
        """
        if not isinstance(posterior, Posterior):
            raise TypeError(f"log_density completes a Posterior or Moments: got {type(posterior).__name__}.")
        dimension = math.prod(self.measurement_shape)
        if self.pre_inverse is not None:
            dimension = rank(self.pre_inverse, self.measurement_shape)
        variance = checked_sigma(sigma, len(posterior.log_partition), self.device).square()
        constants = math.log(self._components) + 0.5 * dimension * (2 * math.pi * variance).log()
        return posterior.log_partition - constants.to(posterior.log_partition)

    def _layout(self, y: Tensor) -> Layout:
        has_pixels = self._comparison.shifts is not None
        return Layout((len(y),), tuple(self.images.shape[1:]), self.dtype, self.device, has_pixels)

    def _terms(self, y: Tensor, sigma: Tensor, listed: int, chunks: Iterator) -> Iterator[Term]:
        """Yield a term per chunk of images: r² and -r²/2σ² of all its atoms."""
        comparison = self._comparison
        same_y = len(y) > 1 and y.stride(0) == 0
        queries = comparison.queries(y[:1] if same_y else y)
        largest = -torch.finfo(self.dtype).max / 2**30  # so that its product with any squared distance is finite
        scale = (-0.5 / sigma.square()).clamp_min(largest).to(self.dtype)[:, None]
        for (start, stop), _ in chunks:
            images = self._images(start, stop)
            keys = Keys(*(x[start:stop] for x in self._keys)) if self._keys is not None else self._make_keys(images)
            measured = _Measured(self, images)
            d2 = comparison.refined_distances(queries, keys, measured, sigma=sigma, listed=listed)
            d2 = d2.to(self.dtype).expand(len(y), -1)
            yield Term(scale * d2, d2, self._values(images, keys), first_image=start, pixels=comparison.shifts)

    def _images(self, start: int, stop: int) -> Float[Tensor, "k c h w"]:
        """Return the images of a chunk; those made on demand are checked as they come."""
        images = self.images[start:stop]
        return images if self._keys is not None else checked_values(images)

    def _measure(self, images: Float[Tensor, "k c h w"]) -> Float[Tensor, "k ..."]:
        return checked_measured(self.physics, self.physics.A(images), images)

    def _make_keys(self, images: Float[Tensor, "k c h w"]) -> Keys:
        return self._comparison.keys(self._measure(images))

    def _stored_keys(self) -> Keys:
        """Compute the keys of all images once and return them."""
        kept = None
        for start, stop in progress(self._chunks(0), description=type(self).__name__, unit="chunk"):
            keys = self._make_keys(self.images[start:stop])
            if kept is None:
                kept = Keys(*(x.new_empty(len(self.images), *x.shape[1:]) for x in keys))
            for whole, part in zip(kept, keys, strict=True):
                whole[start:stop] = part
        return kept

    @property
    def _image_entries(self) -> int:
        """Return how many numbers an image takes in a chunk: itself, its squares, and all that becomes its key."""
        return 2 * math.prod(self.images.shape[1:]) + self._comparison.key_entries

    @property
    def _queries_at_once(self) -> int:
        """Return how many queries fit into the memory limit beside one image."""
        per_query = self._comparison.query_entries + PAIR_ENTRIES * self._comparison.atoms_per_image
        return max(1, (self.memory_limit // self.dtype.itemsize - self._image_entries) // per_query)

    def _chunks(self, n_queries: int) -> list[tuple[int, int]]:
        """Return the first image of every chunk, and that after its last."""
        count, atoms = self.images.shape[0], self._comparison.atoms_per_image
        room = self.memory_limit // self.dtype.itemsize - self._comparison.query_entries * n_queries
        chosen = room // (self._image_entries + PAIR_ENTRIES * n_queries * atoms)
        if atoms > 1:
            chosen = min(chosen, CACHED_PAIRS // (max(1, n_queries) * atoms))
        size = min(count, max(1, chosen) if self.chunk_size is None else self.chunk_size)
        return [(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class _Measured:
    """The measurements A x of some images of a chunk, made when they are asked for."""

    estimator: Estimator
    images: Float[Tensor, "k c h w"]

    def __call__(self, index: Tensor) -> Float[Tensor, "n ..."]:
        return self.estimator._measure(self.images[index])


@final
class MMSE(Estimator):
    """The unconstrained minimum-mean-square-error estimator over a finite set of images: what an MLP would learn (S3).

    x̂ = Σ_d w_d x_d with w_d ∝ exp(-r_d²/2σ²), r_d = ‖Π (y - A x_d)‖ and Π the projector onto Im Bᵀ; ``log_partition``
    is the logsumexp of -r_d²/2σ², one per query.

    ``images`` (D, c, h, w) with values in [0, 1], a tensor or an ``ImageSet``; ``physics`` any operator, also
    ``Nonlinear``; ``pre_inverse`` any linear map of measurements (``None``: the identity). ``chunk_size`` (images) or
    ``memory_limit`` (bytes of temporary arrays) bound memory and do not change the answer. The keys Π A x_d of a
    tensor are computed once and kept; those of an ``ImageSet`` are made chunk by chunk in every call.

    Raises ``ValueError`` for images that are empty, of a wrong shape or not finite, and ``TypeError`` for what is no
    operator, or a nonlinear ``pre_inverse``; warns where images leave [0, 1].
    Source: S1, S3 (arXiv 2601.10334).

    >>> images = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1)
    >>> estimator = MMSE(images, Denoising())
    >>> estimator(torch.full((1, 1, 1, 1), 0.5), sigma=0.1).mean.item()
    0.5
    """

    @property
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""
        projected = "‖y - A x‖" if self.pre_inverse is None else "‖Π(y - A x)‖, Π onto Im Bᵀ"
        return Plan(projected, 1, "none", _kept(self._keys))

    def _choose_comparison(self, measured: Float[Tensor, "k ..."]) -> Comparison:
        return RowComparison(_projector(self), measured)

    def _values(self, images: Float[Tensor, "k c h w"], keys: Keys) -> Values:
        return ArrayValues(images)

    @property
    def _components(self) -> int:
        return self.images.shape[0]


@final
class EquivariantMMSE(Estimator):
    """The best estimator that commutes with all circular shifts: what a CNN that sees the whole image would learn (S4).

    x̂ = Σ_{d,g} w_{d,g} T_g x_d with w_{d,g} ∝ exp(-r²/2σ²), r = ‖B⁺(T_g⁻¹B y - B A x_d)‖, over all images and those
    shifts g that preserve the image space of B: ``admissible_shifts``, a map (h, w), ``True`` at [g_row, g_column].
    ``log_partition`` is the logsumexp of -r²/2σ². ``TopSources`` names image and shift:
    ``pixel`` is g_row · w + g_column.

    Arguments as for ``MMSE``; what B makes of a measurement must be an image of h × w pixels, with any number of
    channels. Which path is taken (``plan``) follows from what B declares. Where B Bᵀ is circulant, or a declared
    ``shift_period`` names the admissible shifts, weights and means of all shifts of an image cost one FFT each
    (O(N log N)), and for a diagonal B two; any other B takes matrix products, O(N M) an image.

    Raises what ``MMSE`` raises, and ``ValueError`` where B y is no image of the size of x.
    Source: S4 (arXiv 2601.10334; the support condition is S4.1).

    >>> images = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)
    >>> y = torch.tensor([0.1, -0.2, 1.0]).reshape(1, 1, 1, 3)
    >>> EquivariantMMSE(images, Denoising())(y, sigma=0.1).mean.flatten()
    tensor([0., 0., 1.])
    """

    @property
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""
        comparison = self._comparison
        return Plan(comparison.path, 1, comparison.whitener, _kept(self._keys), comparison.atoms_per_image)

    def _choose_comparison(self, measured: Float[Tensor, "k ..."]) -> Comparison:
        """Find the admissible shifts and return how they are compared, from what B declares."""
        B, (h, w) = self.pre_inverse, self.images.shape[2:]
        self._check_image(measured if B is None else B.A(measured[:1]))
        if B is None:
            self.admissible_shifts = torch.ones(h, w, dtype=torch.bool, device=self.device)
            return CircularComparison(unchanged, measured, stride=1, full_width=w)
        self.admissible_shifts = stabiliser(B, self.measurement_shape, (h, w)).to(self.device)
        if (whiten := gram_whitener(B, self.measurement_shape)) is not None:
            return CircularComparison(whiten, measured, stride=1, full_width=w)
        shifts = self.admissible_shifts.flatten().nonzero()[:, 0]
        if (period := B.shift_period) is not None:
            grid = (h // period, w // period)
            if self.measurement_shape[1:] == grid and len(shifts) == math.prod(grid):
                return CircularComparison(_projector(self), measured, stride=period, full_width=w)
        factor = B.factorisation(self.measurement_shape)
        if B.diagonal is not None and (len(shifts) == h * w or len(shifts) > FEW_SHIFTS):
            return DiagonalComparison(factor, shifts, measured)
        return ShiftedRowComparison(factor, shifts, measured)

    def _check_image(self, v: Float[Tensor, "k ..."]) -> None:
        """Raise ``ValueError`` unless the images' shifts act on B y too."""
        h, w = self.images.shape[2:]
        if v.ndim != 4 or v.shape[2:] != (h, w):
            given = f"physics {self.physics!r}" if self.pre_inverse is None else f"pre_inverse {self.pre_inverse!r}"
            raise ValueError(
                f"EquivariantMMSE shifts B y, so B y must be an image of {h} × {w} pixels: {given} gives (b, "
                f"{', '.join(map(str, v.shape[1:]))}). A pre_inverse such as Adjoint(physics) makes an image of y."
            )

    def _values(self, images: Float[Tensor, "k c h w"], keys: Keys) -> Values:
        return ShiftedValues(images, self._comparison.shifts)

    @property
    def _components(self) -> int:
        return self.images.shape[0] * math.prod(self.images.shape[2:])


def _kept(keys: Keys | None) -> str:
    return "made in every call" if keys is None else "stored"


def _projector(estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """Return the projector of measurements onto Im Bᵀ."""
    if estimator.pre_inverse is None:
        return unchanged
    return row_space_projector(estimator.pre_inverse, estimator.measurement_shape)
