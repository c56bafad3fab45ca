"""The estimators: each feeds the terms of its own atoms to a reduction (``lemmse.reductions``), and nothing else."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ._progress import progress
from .operators import LinearOperator, Nonlinear, as_operator, rank, row_space_projector
from .reductions import ArrayValues, Layout, Moments, Posterior, PosteriorMean, Reduction, Sources, Term, reduce

__all__ = ["DEFAULT_MEMORY_LIMIT", "MMSE", "ImageSet", "Plan"]

DEFAULT_MEMORY_LIMIT = 256 * 2**20
"""Bytes that the temporary arrays of a chunk may take where the caller names no limit: small beside Binder's 2 GB."""

PAIR_ENTRIES = 20
"""Numbers that a reduction holds at once for each pair of a query and an atom, at most (``TopImages``, in float64)."""

REFINED_BLOCK = 2**22
"""Numbers of differences that are held at once when distances are computed anew."""

REFINED_LOG_WEIGHT = 1e-3
"""Where rounding could move a log-weight by more than this many nats, distances near the smallest are computed anew."""

REFINED_REACH = 20.0
"""... those of atoms within so many nats of the heaviest: an error of a lighter one is lost in rounding."""

RANGE_ATOL = 1e-4
"""Images may leave [0, 1] by this much, the rounding of a resize, before a warning says so."""

CENTRE_SAMPLE = 64
"""Queries and keys are centred on the mean key of so many images, which spares digits (S13, precision budget)."""

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

    Raises ``ValueError`` for images that are empty, of a wrong shape or not finite, and ``TypeError`` for what is no
    operator, or a nonlinear ``pre_inverse``; warns where images leave [0, 1].
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
        sample = checked_sample(images)
        self.images = images
        self.physics = as_operator(physics)
        self.pre_inverse = None if pre_inverse is None else as_operator(pre_inverse)
        self.chunk_size = None if chunk_size is None else _positive_integer(chunk_size, "chunk_size counts images")
        self.memory_limit = _positive_integer(memory_limit, "memory_limit counts bytes")
        measured = checked_measured(self.physics, self.physics.A(sample), sample)
        self.measurement_shape, self.dtype, self.device = tuple(measured.shape[1:]), measured.dtype, measured.device
        self._project = _projector(self.pre_inverse, measured[:1])
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
        finite, a sigma that is not positive, or a positive tolerance with a reduction that cannot honour it, and
        ``TypeError`` for what is no reduction.
        """
        reduction = checked_reduction(reduction)
        check_measurements(y, self.measurement_shape, self.dtype, self.device)
        sigma = checked_sigma(sigma, len(y), y.device)
        check_tolerance(tolerance, reduction)
        layout = Layout((len(y),), tuple(self.images.shape[1:]), self.dtype, self.device)
        return reduce(self._terms(y, sigma), reduction, layout)

    def log_density(self, posterior: Any, sigma: float | Tensor) -> Float[Tensor, " b"]:
        """Complete a log-partition with its constants and return the log-density of Π y, in nats, shape (b,).

        L - ln D - (rank/2) ln 2πσ², with respect to the Hausdorff measure of Im Bᵀ, of dimension ``rank`` (S2.1).
        ``posterior`` is a ``Posterior`` or ``Moments`` of this estimator at this ``sigma``; else ``TypeError``.
        """
        if not isinstance(posterior, Posterior):
            raise TypeError(f"log_density completes a Posterior or Moments: got {type(posterior).__name__}.")
        dimension = math.prod(self.measurement_shape)
        if self.pre_inverse is not None:
            dimension = rank(self.pre_inverse, self.measurement_shape)
        variance = checked_sigma(sigma, len(posterior.log_partition), self.device).square()
        constants = math.log(self.images.shape[0]) + 0.5 * dimension * (2 * math.pi * variance).log()
        return posterior.log_partition - constants.to(posterior.log_partition)

    def _terms(self, y: Tensor, sigma: Tensor) -> Iterator[Term]:
        """Yield a term per chunk of images (S3.1)."""
        same_y = len(y) > 1 and y.stride(0) == 0
        queries = (self._project(y[:1] if same_y else y) - self._centre).flatten(1)
        largest = -torch.finfo(self.dtype).max / 2**30  # so that its product with any squared distance is finite
        scale = (-0.5 / sigma.square()).clamp_min(largest).to(self.dtype)[:, None]
        for start, stop in self._chunks(len(y)):
            images = self._images(start, stop)
            keys = _Keys(*(x[start:stop] for x in self._keys)) if self._keys is not None else self._make_keys(images)
            d2 = refined(squared_distances(queries, *keys), queries, keys, sigma).expand(len(y), -1)
            yield Term(scale * d2, d2, ArrayValues(images), first_image=start)

    def _images(self, start: int, stop: int) -> Float[Tensor, "k c h w"]:
        """Return the images of a chunk; those made on demand are checked as they come."""
        images = self.images[start:stop]
        return images if self._keys is not None else checked_values(images)

    def _make_keys(self, images: Float[Tensor, "k c h w"]) -> "_Keys":
        measured = checked_measured(self.physics, self.physics.A(images), images)
        return _Keys.of((self._project(measured) - self._centre).flatten(1))

    def _stored_keys(self) -> "_Keys":
        """Compute the keys of all images once and return them."""
        rows = torch.empty(len(self.images), math.prod(self.measurement_shape), dtype=self.dtype, device=self.device)
        for start, stop in self._chunks(0):
            rows[start:stop] = self._make_keys(self.images[start:stop]).rows
        return _Keys.of(rows)

    def _chunks(self, n_queries: int) -> Iterator[tuple[int, int]]:
        count, *image_shape = self.images.shape
        # a chunk's images and their squares; their measurements, projected, centred, and as keys
        entries = PAIR_ENTRIES * n_queries + 2 * math.prod(image_shape) + 4 * math.prod(self.measurement_shape)
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


def refined(
    d2: Float[Tensor, "q k"], queries: Float[Tensor, "q m"], keys: "_Keys", sigma: Float[Tensor, " b"]
) -> Float[Tensor, "q k"]:
    """Return the squared distances with those near each query's smallest computed anew, from differences.

    The matrix product leaves an error of about eps (‖q‖² + ‖k‖²), which at a small sigma decides between near
    neighbours; differences leave eps r². Where this cannot matter (REFINED_LOG_WEIGHT), nothing is done.
    """
    rounding = 4 * torch.finfo(d2.dtype).eps * float((queries.square().sum(1).max() + keys.norms.max()).detach())
    sigma, refine_below = sigma.detach(), (rounding / (2 * REFINED_LOG_WEIGHT)) ** 0.5
    if float(sigma.min()) >= refine_below:
        return d2
    reach = 2 * rounding + 2 * REFINED_REACH * min(float(sigma.max()), refine_below) ** 2
    near = (d2 <= d2.amin(1, keepdim=True) + reach).nonzero()
    block = max(1, REFINED_BLOCK // queries.shape[1])
    exact = [(queries[i] - keys.rows[j]).square().sum(1) for i, j in (pairs.unbind(1) for pairs in near.split(block))]
    return d2.index_put(tuple(near.unbind(1)), torch.cat(exact))


def checked_sample(images: Tensor | ImageSet) -> Float[Tensor, "k c h w"]:
    """Return the first CENTRE_SAMPLE images; raises ``ValueError`` unless images can serve as a training set."""
    shape = getattr(images, "shape", None)
    if shape is None or len(shape) != 4 or min(shape) < 1:
        came = type(images).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"images must be (D, c, h, w) with at least one image, one channel and one pixel: got {came}.")
    looked_at = checked_values(images if isinstance(images, Tensor) else images[0:CENTRE_SAMPLE])
    low, high = (float(bound) for bound in looked_at.detach().aminmax())
    if low < -RANGE_ATOL or high > 1 + RANGE_ATOL:
        warnings.warn(
            f"images are expected in [0, 1], these run from {low:g} to {high:g}: sigma and PSNR refer to that range.",
            stacklevel=3,
        )
    return looked_at[0:CENTRE_SAMPLE]


def checked_values(images: Any) -> Float[Tensor, "k c h w"]:
    """Return the images, or raise ``ValueError`` unless they are a tensor of finite float32 or float64 numbers."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor: got {type(images).__name__}. torch.from_numpy turns arrays.")
    if images.dtype not in (torch.float32, torch.float64):
        how = "images.float()" if images.is_floating_point() else "images.float() / 255 for 8-bit images"
        raise ValueError(f"images must be float32 or float64: got {images.dtype}. Convert them, with {how}.")
    low, high = images.aminmax()
    if not (low.isfinite() and high.isfinite()):
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"images must be finite: {len(bad)} of {len(images)} hold NaN or infinity, first image {bad[0]}."
        )
    return images


def checked_measured(physics: LinearOperator | Nonlinear, measured: Any, images: Tensor) -> Float[Tensor, "k ..."]:
    """Return A x, or raise ``ValueError`` unless it keeps batch, dtype and device of the images and is finite."""
    if not isinstance(measured, Tensor):
        raise ValueError(f"{physics!r} must return torch tensors: got {type(measured).__name__}.")
    if measured.ndim < 2 or len(measured) != len(images):
        raise ValueError(
            f"{physics!r} turns {len(images)} images of {tuple(images.shape[1:])} into {tuple(measured.shape)}: it "
            "must keep the batch, (b, c, h, w) -> (b, ...)."
        )
    if measured.dtype != images.dtype or measured.device != images.device:
        raise ValueError(
            f"{physics!r} turns images of {images.dtype} on {images.device} into {measured.dtype} on "
            f"{measured.device}: move the operator's own tensors to the dtype and device of the images."
        )
    if not measured.isfinite().all():
        raise ValueError(f"{physics!r} turns finite images into NaN or infinity: mend the operator.")
    return measured


def check_measurements(y: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raise ``ValueError`` unless y is a batch of finite measurements of the given shape, dtype and device."""
    if not isinstance(y, Tensor):
        raise ValueError(f"y must be a torch tensor: got {type(y).__name__}. torch.from_numpy turns arrays.")
    wanted = f"(b, {', '.join(map(str, shape))})"
    if y.ndim < 1 or len(y) < 1 or tuple(y.shape[1:]) != shape:
        hint = " One measurement alone is y[None]." if tuple(y.shape) == shape else ""
        raise ValueError(f"y must have the shape of physics.A(x), {wanted}: got {tuple(y.shape)}.{hint}")
    if y.dtype != dtype or y.device != device:
        raise ValueError(
            f"y is {y.dtype} on {y.device}, the images' measurements are {dtype} on {device}: "
            f"convert one of them, e.g. y.to({dtype}).to('{device}')."
        )
    if not y.isfinite().all():
        bad = int((~y.isfinite()).sum())
        raise ValueError(f"y must be finite: {bad} of its {y.numel()} entries are NaN or infinite.")


def checked_sigma(sigma: float | Tensor, count: int, device: torch.device) -> Float64[Tensor, " b"]:
    """Return sigma as one number per query; raises ``ValueError`` unless positive, finite, of shape () or (b,)."""
    try:
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"sigma must be a number or one per query, ({count},): got {sigma!r}.") from None
    if sigma.ndim > 1 or sigma.numel() not in (1, count):
        raise ValueError(f"sigma must be a number or one per query, ({count},): got shape {tuple(sigma.shape)}.")
    if not ((sigma > 0) & sigma.isfinite()).all():
        raise ValueError(f"sigma is the noise's standard deviation, positive and finite: got {sigma.tolist()}.")
    return sigma.expand(count)


def checked_reduction(reduction: Any) -> Reduction:
    """Return the reduction, ``PosteriorMean()`` for ``None``; raises ``TypeError`` for what is no reduction."""
    if reduction is None:
        return PosteriorMean()
    if isinstance(reduction, type) or not isinstance(reduction, Reduction):
        came = f"the class {reduction.__name__}" if isinstance(reduction, type) else repr(reduction)
        raise TypeError(f"reduction must be an object such as PosteriorMean() or TopSources(5): got {came}.")
    return reduction


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


def _positive_integer(value: Any, counts: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{counts}, a positive integer: got {value!r}.")
    return int(value)


def _projector(pre_inverse: LinearOperator | Nonlinear | None, measured: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the projector of measurements onto Im Bᵀ, once B has shown that it takes such measurements."""
    if pre_inverse is None:
        return _unchanged
    if isinstance(pre_inverse, Nonlinear):
        raise TypeError(f"pre_inverse must be linear: got {pre_inverse!r}. Noise mapped by it would not be Gaussian.")
    try:
        pre_inverse.A(torch.zeros_like(measured))
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"pre_inverse must take what physics.A gives, (b, {', '.join(map(str, measured.shape[1:]))}), and "
            f"{pre_inverse!r} does not: {error}"
        ) from error
    return row_space_projector(pre_inverse, tuple(measured.shape[1:]))


def _unchanged(y: Tensor) -> Tensor:
    return y
