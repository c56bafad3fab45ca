"""The estimators: each feeds the terms of its own atoms to a reduction (``lemmse.reductions``), and nothing else."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ._progress import progress
from .operators import LinearOperator, Nonlinear, as_operator, rank, row_space_projector
from .reductions import ArrayValues, Layout, Moments, Posterior, PosteriorMean, Reduction, Sources, Term, reduce

__all__ = ["DEFAULT_MEMORY_LIMIT", "MMSE", "ImageSet", "Plan"]

DEFAULT_MEMORY_LIMIT = 256 * 2**20
"""Bytes that the temporary arrays of a chunk may take where the caller names no limit: small beside Binder's 2 GB."""

RANGE_ATOL = 1e-4
"""Images may leave [0, 1] by this much, the rounding of a resize, before a warning says so."""

CENTRE_SAMPLE = 64
"""Queries and keys are centred on the mean key of so many images: it keeps distances and spares digits (S5, step 3)."""

CENTRE_GRID = 256
"""The centre is rounded to multiples of 1/256, so that images of dyadic values keep exact distances."""


@runtime_checkable
class ImageSet(Protocol):
    """Images that may be made on demand: a ``shape`` (D, c, h, w), and slices that are tensors."""

    shape: tuple[int, int, int, int]

    def __getitem__(self, index: slice) -> Float[Tensor, "k c h w"]:
        """Return the images of a slice."""


@dataclass(frozen=True)
class Plan:
    """Which path an estimator takes, found once from what its operators declare."""

    path: str
    strata: int
    whitener: str
    keys: str

    def __str__(self) -> str:
        return f"path: {self.path}; strata: {self.strata}; whitener: {self.whitener}; keys: {self.keys}"


class MMSE:
    """The unconstrained minimum-mean-square-error estimator over a finite set of images: what an MLP would learn (S3).

    x̂ = Σ_d w_d x_d with w_d ∝ exp(-r_d²/2σ²), r_d = ‖Π (y - A x_d)‖ and Π the projector onto Im Bᵀ; ``log_partition``
    is the logsumexp of -r_d²/2σ², one per query.

    ``images`` (D, c, h, w) with values in [0, 1], a tensor or an ``ImageSet``; ``physics`` any operator, also
    ``Nonlinear``; ``pre_inverse`` any linear map of measurements (``None``: the identity). ``chunk_size`` (images) or
    ``memory_limit`` (bytes of temporary arrays) bound memory and do not change the answer. The keys Π A x_d of a
    tensor are computed once and kept; those of an ``ImageSet`` are made chunk by chunk in every call.

    Raises ``ValueError`` for images that are empty, of a wrong shape or not finite; warns once where they leave [0, 1].
    Source: S1, S3 (arXiv 2601.10334).

    >>> images = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1)
    >>> estimator = MMSE(images, Denoising())
    >>> estimator(torch.full((1, 1, 1, 1), 0.5), sigma=0.1).mean.item()
    0.5
    """

    def __init__(
        self,
        images: Float[Tensor, "D c h w"] | ImageSet,
        physics: Any,
        *,
        pre_inverse: Any = None,
        chunk_size: int | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
    ):
        check_images(images)
        self.images = images
        self.physics = as_operator(physics)
        self.pre_inverse = None if pre_inverse is None else as_operator(pre_inverse)
        self.chunk_size = _checked_chunk_size(chunk_size)
        self.memory_limit = memory_limit
        sample = images[0:CENTRE_SAMPLE]
        measured = self.physics.A(sample)
        check_same_kind(measured, sample)
        self.measurement_shape, self.dtype, self.device = tuple(measured.shape[1:]), measured.dtype, measured.device
        self._project = _projector(self.pre_inverse, self.measurement_shape)
        self._centre = (self._project(measured).mean(0) * CENTRE_GRID).round() / CENTRE_GRID
        self._keys = self._stored_keys() if isinstance(images, Tensor) else None

    @property
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""
        projected = "‖y - A x‖" if self.pre_inverse is None else "‖Π(y - A x)‖, Π onto Im Bᵀ"
        return Plan(projected, 1, "none", "made in every call" if self._keys is None else "stored")

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
        finite, a sigma that is not positive, or a positive tolerance with a reduction that cannot honour it.
        """
        reduction = PosteriorMean() if reduction is None else reduction
        check_measurements(y, self.measurement_shape, self.dtype, self.device)
        sigma = checked_sigma(sigma, y)
        check_tolerance(tolerance, reduction)
        layout = Layout((len(y),), tuple(self.images.shape[1:]), self.dtype, self.device)
        return reduce(self._terms(y, sigma), reduction, layout)

    def log_density(self, posterior: Posterior, sigma: float | Tensor) -> Float[Tensor, " b"]:
        """Complete a log-partition with its constants and return the log-density of Π y, in nats, shape (b,).

        L - ln D - (rank/2) ln 2πσ², with respect to the Hausdorff measure of Im Bᵀ, of dimension ``rank`` (S2.1).
        """
        dimension = math.prod(self.measurement_shape)
        if self.pre_inverse is not None:
            dimension = rank(self.pre_inverse, self.measurement_shape)
        variance = torch.as_tensor(sigma, dtype=torch.float64, device=self.device) ** 2
        constants = math.log(self.images.shape[0]) + 0.5 * dimension * (2 * math.pi * variance).log()
        return posterior.log_partition - constants.to(posterior.log_partition)

    def _terms(self, y: Tensor, sigma: Tensor) -> Iterator[Term]:
        """Yield a term per chunk of images: Implements S3.1."""
        same_y = len(y) > 1 and y.stride(0) == 0
        queries = (self._project(y[:1] if same_y else y) - self._centre).flatten(1)
        scale = (-0.5 / sigma.double() ** 2).to(self.dtype)[:, None]
        for start, stop in self._chunks(len(y)):
            d2 = squared_distances(queries, *self._chunk_keys(start, stop)).expand(len(y), -1)
            yield Term(scale * d2, d2, ArrayValues(self.images[start:stop]), first_image=start)

    def _stored_keys(self) -> "_Keys":
        """Compute the keys of all images once and return them."""
        rows = torch.empty(len(self.images), math.prod(self.measurement_shape), dtype=self.dtype, device=self.device)
        for start, stop in self._chunks(0):
            rows[start:stop] = self._key_rows(start, stop)
        return _Keys.of(rows)

    def _chunk_keys(self, start: int, stop: int) -> "_Keys":
        if self._keys is None:
            return _Keys.of(self._key_rows(start, stop))
        return _Keys(*(x[start:stop] for x in self._keys))

    def _key_rows(self, start: int, stop: int) -> Float[Tensor, "k m"]:
        return (self._project(self.physics.A(self.images[start:stop])) - self._centre).flatten(1)

    def _chunks(self, n_queries: int) -> Iterator[tuple[int, int]]:
        count, *image_shape = self.images.shape
        entries = 6 * n_queries + 2 * math.prod(image_shape) + 4 * math.prod(self.measurement_shape)
        chosen = self.memory_limit // (entries * self.dtype.itemsize)
        size = min(count, max(1, chosen) if self.chunk_size is None else self.chunk_size)
        starts = range(0, count, size)
        for start in progress(starts, description=type(self).__name__, unit="chunk"):
            yield start, min(start + size, count)


# --------------------------------------------------------------------------------------------- shared by all estimators


class _Keys(NamedTuple):
    """What queries are compared with, one row per atom, and the squared norms of the rows."""

    rows: Float[Tensor, "k m"]
    norms: Float[Tensor, " k"]

    @classmethod
    def of(cls, rows: Float[Tensor, "k m"]) -> "_Keys":
        return cls(rows, torch.linalg.vector_norm(rows, dim=1).square())


def squared_distances(
    queries: Float[Tensor, "q m"], rows: Float[Tensor, "k m"], norms: Float[Tensor, " k"]
) -> Float[Tensor, "q k"]:
    """Return ‖q - k‖² of every pair by one matrix product, never negative; ``norms`` are the ‖k‖²."""
    return torch.addmm(queries.square().sum(1)[:, None] + norms, queries, rows.T, alpha=-2).clamp_min(0)


def check_images(images: Tensor | ImageSet) -> None:
    """Raise ``ValueError`` (or ``TypeError``) unless images can serve as a training set; warn where they leave [0,
    1].
    """
    shape = getattr(images, "shape", None)
    if shape is None or len(shape) != 4 or min(shape) < 1:
        came = type(images).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"images must be (D, c, h, w) with at least one image, one channel and one pixel: got {came}.")
    if not isinstance(images, Tensor):
        return
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64, got {images.dtype}: divide 8-bit images by 255.0 first.")
    low, high = images.aminmax()
    if not (low.isfinite() and high.isfinite()):
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"images must be finite: {len(bad)} of {len(images)} hold NaN or infinity, first image {bad[0]}."
        )
    if low < -RANGE_ATOL or high > 1 + RANGE_ATOL:
        warnings.warn(
            f"images are expected in [0, 1], these run from {low:g} to {high:g}: sigma and PSNR refer to that range.",
            stacklevel=3,
        )


def check_same_kind(measured: Tensor, images: Tensor) -> None:
    """Raise ``ValueError`` unless the operator keeps the dtype and the device of the images."""
    if measured.dtype != images.dtype or measured.device != images.device:
        raise ValueError(
            f"physics.A turns images of {images.dtype} on {images.device} into {measured.dtype} on {measured.device}: "
            "move the operator's own tensors to the dtype and device of the images."
        )


def check_measurements(y: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raise ``ValueError`` unless y is a batch of finite measurements of the given shape, dtype and device."""
    wanted = f"(b, {', '.join(map(str, shape))})"
    if not isinstance(y, Tensor) or tuple(y.shape[1:]) != shape or y.ndim < 1 or len(y) < 1:
        came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        hint = " One measurement alone is y[None]." if isinstance(y, Tensor) and tuple(y.shape) == shape else ""
        raise ValueError(f"y must have the shape of physics.A(x), {wanted}: got {came}.{hint}")
    if y.dtype != dtype or y.device != device:
        raise ValueError(
            f"y is {y.dtype} on {y.device}, the images' measurements are {dtype} on {device}: "
            f"convert one of them, e.g. y.to({dtype}).to('{device}')."
        )
    if not y.isfinite().all():
        bad = int((~y.isfinite()).sum())
        raise ValueError(f"y must be finite: {bad} of its {y.numel()} entries are NaN or infinite.")


def checked_sigma(sigma: float | Tensor, y: Tensor) -> Float[Tensor, " b"]:
    """Return sigma as one number per query; raises ``ValueError`` unless it is positive, finite and of shape () or
    (b,).
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=y.device)
    if sigma.ndim > 1 or sigma.numel() not in (1, len(y)):
        raise ValueError(f"sigma must be a number or one per query, ({len(y)},): got shape {tuple(sigma.shape)}.")
    if not ((sigma > 0) & sigma.isfinite()).all():
        raise ValueError(f"sigma is the noise's standard deviation, positive and finite: got {sigma.tolist()}.")
    return sigma.expand(len(y))


def check_tolerance(tolerance: float, reduction: Reduction) -> None:
    """Raise ``ValueError`` unless the tolerance is zero, or positive with a reduction that can honour it."""
    if not tolerance >= 0:
        raise ValueError(
            f"tolerance is the largest error per pixel that is allowed, zero or positive: got {tolerance}."
        )
    if tolerance > 0 and not reduction.honours_tolerance:
        raise ValueError(
            f"tolerance={tolerance} certifies the error of the posterior mean only; {type(reduction).__name__} needs "
            f"the "
            "exact weights: use tolerance=0, or PosteriorMean()."
        )


def _checked_chunk_size(chunk_size: int | None) -> int | None:
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size counts images, a positive integer or None: got {chunk_size!r}.")
    return chunk_size


def _projector(pre_inverse: LinearOperator | None, measurement_shape: tuple[int, ...]):
    if pre_inverse is None:
        return lambda y: y
    if isinstance(pre_inverse, Nonlinear):
        raise TypeError(f"pre_inverse must be linear: got {pre_inverse!r}. Noise mapped by it would not be Gaussian.")
    return row_space_projector(pre_inverse, measurement_shape)
