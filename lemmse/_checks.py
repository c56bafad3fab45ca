"""What estimators ask of their input, and what they say where it is not so."""

import warnings
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .image_sets import CENTRE_SAMPLE, ChunkedImages, ImageSet, checked_values
from .operators import LinearOperator, Nonlinear, check_declarations
from .reductions import Moments, PosteriorMean, Reduction

__all__ = [
    "check_measurements",
    "check_tolerance",
    "checked_measured",
    "checked_moments",
    "checked_pre_inverted",
    "checked_reduction",
    "checked_sample",
    "checked_sigma",
    "positive_integer",
]

RANGE_ATOL = 1e-4
"""Images may leave [0, 1] by this much, the rounding of a resize, before a warning says so."""


def checked_sample(images: Tensor | ImageSet) -> Float[Tensor, "k c h w"]:
    """Return the first CENTRE_SAMPLE images; raises ``ValueError`` unless images can serve as a training set."""
    shape = getattr(images, "shape", None)
    if shape is None or len(shape) != 4 or min(shape) < 1:
        came = type(images).__name__ if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"images must be (D, c, h, w) with at least one image, one channel and one pixel: got {came}.")
    if isinstance(images, ChunkedImages):
        looked_at = images.head
    else:
        looked_at = checked_values(images if isinstance(images, Tensor) else images[0:CENTRE_SAMPLE])
    low, high = (float(bound) for bound in looked_at.detach().aminmax())
    if low < -RANGE_ATOL or high > 1 + RANGE_ATOL:
        warnings.warn(
            f"images are expected in [0, 1], these run from {low:g} to {high:g}: sigma and PSNR refer to that range.",
            stacklevel=3,
        )
    return looked_at[0:CENTRE_SAMPLE]


def checked_measured(physics: LinearOperator | Nonlinear, images: Float[Tensor, "k c h w"]) -> Float[Tensor, "k ..."]:
    """Return A x, or raise ``ValueError`` unless it keeps batch, dtype and device of the images and is finite."""
    try:
        measured = physics.A(images)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{physics!r} does not take images {tuple(images.shape)} of {images.dtype} on {images.device}: {error}"
        ) from error
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


def checked_pre_inverted(
    pre_inverse: LinearOperator | Nonlinear, measured: Float[Tensor, "1 ..."]
) -> Float[Tensor, "1 ..."]:
    """Return B of a random measurement, once B has shown that it takes one and is what it declares to be.

    Raises ``TypeError`` where B is nonlinear, and ``ValueError`` where it refuses measurements, returns something else
    than finite tensors, or declares what a random vector refutes.
    """
    if isinstance(pre_inverse, Nonlinear):
        raise TypeError(f"pre_inverse must be linear: got {pre_inverse!r}. Noise mapped by it would not be Gaussian.")
    probe = torch.randn(measured.shape, generator=torch.Generator().manual_seed(0), dtype=measured.dtype)
    probe = probe.to(measured.device)
    try:
        v = pre_inverse.A(probe)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"pre_inverse must take what physics.A gives, (b, {', '.join(map(str, measured.shape[1:]))}), and "
            f"{pre_inverse!r} does not: {error}"
        ) from error
    if not isinstance(v, Tensor) or v.ndim < 2 or len(v) != 1 or not v.isfinite().all():
        came = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
        raise ValueError(f"pre_inverse must return finite tensors (b, ...): {pre_inverse!r} returns {came} for b = 1.")
    check_declarations(pre_inverse, probe)
    return v


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


def checked_moments(moments: Any, asked: str) -> Moments:
    """Return the moments; raises ``TypeError``, which names who asked, for what is none."""
    if not isinstance(moments, Moments):
        raise TypeError(f"{asked} needs Moments: got {type(moments).__name__}. Ask with reduction=PosteriorMoments().")
    return moments


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


def positive_integer(value: Any, counts: str) -> int:
    """Return the value as an ``int``; raises ``ValueError`` unless it is a positive integer."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{counts}, a positive integer: got {value!r}.")
    return int(value)
