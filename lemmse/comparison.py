"""How near a network comes to its formula: both answer the same measurements, and each is held against the truth.

On training images the comparison is a theorem, too: by S5.3 the mean squared error of any network of the formula's
class, less that of the formula, is in expectation the mean squared distance of the two. It is what more training, or
more capacity, would bring, and zero for a network that computes the formula.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ._checks import checked_measured, positive_integer
from ._progress import progress
from .estimators import Estimator

__all__ = ["Comparison", "Interval", "compare", "interval", "rank_correlation"]

CEILING = 150.0
"""Decibels of what agrees to the rounding of single precision and better: its logarithm may be infinite."""


class Interval(NamedTuple):
    """A mean, and the half-width of its 95 % confidence interval, 1.96 standard errors over images."""

    mean: Float64[Tensor, " s"]
    half_width: Float64[Tensor, " s"]


@final
@dataclass(frozen=True)
class Comparison:
    """Mean squared errors between network, formula and truth, one per noise level and image, (s, b).

    Squared intensity, a mean over pixels and channels. ``formula_square`` is the mean square of the formula's output,
    which relative errors are relative to. ``sigma`` (s,) are the noise levels.
    """

    sigma: Float64[Tensor, " s"]
    network_formula: Float64[Tensor, "s b"]
    network_truth: Float64[Tensor, "s b"]
    formula_truth: Float64[Tensor, "s b"]
    formula_square: Float64[Tensor, "s b"]

    @property
    def psnr_network_formula(self) -> Float64[Tensor, "s b"]:
        """Return the PSNR of network against formula in dB, peak 1, at most CEILING."""
        return _decibels(self.network_formula)

    @property
    def psnr_network_truth(self) -> Float64[Tensor, "s b"]:
        """Return the PSNR of network against truth in dB, peak 1, at most CEILING."""
        return _decibels(self.network_truth)

    @property
    def psnr_formula_truth(self) -> Float64[Tensor, "s b"]:
        """Return the PSNR of formula against truth in dB, peak 1, at most CEILING."""
        return _decibels(self.formula_truth)

    @property
    def relative_error(self) -> Float64[Tensor, "s b"]:
        """Return ‖network - formula‖ / ‖formula‖."""
        return self.relative_squared_error.sqrt()

    @property
    def relative_squared_error(self) -> Float64[Tensor, "s b"]:
        """Return ‖network - formula‖² / ‖formula‖²."""
        return self.network_formula / self.formula_square

    @property
    def excess(self) -> Float64[Tensor, "s b"]:
        """Return the network's squared error less the formula's.

        On training images its expectation is that of ``network_formula`` (S5.3), which is the more precise estimate; on
        others it has either sign.
        """
        return self.network_truth - self.formula_truth


def interval(values: Float64[Tensor, "s b"]) -> Interval:
    """Return the mean over images and its 95 % confidence interval."""
    return Interval(values.mean(1), 1.96 * values.std(1) / math.sqrt(values.shape[1]))


def rank_correlation(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """Return Spearman's rank correlation of two tensors of as many numbers, in [-1, 1]; equal numbers share a rank.

    Raises ``ValueError`` for other sizes, and where all numbers of a tensor are equal. Source: S11, E2.
    """
    if a.numel() != b.numel():
        raise ValueError(f"rank_correlation: takes as many numbers of each: got {a.numel()} and {b.numel()}.")
    ranks = torch.stack([_ranks(each.flatten()) for each in (a, b)])
    if (ranks.amin(1) == ranks.amax(1)).any():
        raise ValueError("rank_correlation: the numbers of one side are all equal, so they have no order.")
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Return the place of each number in their order, the mean of their places for equal ones."""
    _, which, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[which]


@torch.no_grad()
def compare(
    net: nn.Module,
    estimator: Estimator,
    x: Float[Tensor, "b c h w"],
    *,
    sigmas: Any,
    generator: torch.Generator,
    batch_size: int = 8,
) -> Comparison:
    """Let network and formula answer the same measurements y = A x + σ e and return how far they are apart.

    ``net(v, sigma)`` is any ``torch.nn.Module`` that maps v = B y to images; it is put in eval mode. ``estimator`` is
    the formula, with its operator and pre-inverse: ``LocalEquivariantMMSE`` with the net's receptive field as
    ``patch_size`` for a local network (``networks.check_receptive_field`` says whether it is so). ``sigmas`` are noise
    levels, (s,); noise is drawn from the generator for each of them anew. Images go in batches of ``batch_size``.

    Raises ``ValueError`` for images of another shape than the estimator's or fewer than two, and for a net that returns
    no images. Source: S5.3, S11.
    """
    sigma = torch.as_tensor(sigmas, dtype=torch.float64).reshape(-1)
    if tuple(x.shape[1:]) != tuple(estimator.images.shape[1:]):
        raise ValueError(
            f"compare: x must be images like the estimator's, (b, {', '.join(map(str, estimator.images.shape[1:]))}): "
            f"got {tuple(x.shape)}."
        )
    if len(x) < 2:
        raise ValueError(f"compare: intervals take at least two images: got {len(x)}.")
    positive_integer(batch_size, "batch_size counts images")
    net.eval()
    clean = checked_measured(estimator.physics, x)
    steps = [(level, part) for level in sigma.tolist() for part in torch.arange(len(x)).split(batch_size)]
    noise = [torch.randn(clean.shape, generator=generator, dtype=clean.dtype) for _ in sigma]
    found = []
    for index, (level, part) in enumerate(progress(steps, description="compare", unit="batch")):
        y = clean[part] + level * noise[index * len(sigma) // len(steps)][part].to(clean.device)
        found.append(_errors(net, estimator, x[part], y, level))
    errors = torch.cat(found, 1).unflatten(1, (len(sigma), len(x)))
    return Comparison(sigma, *errors)


def _errors(
    net: nn.Module, estimator: Estimator, x: Float[Tensor, "b c h w"], y: Tensor, sigma: float
) -> Float64[Tensor, "4 b"]:
    """Return the mean squares of network - formula, network - truth, formula - truth and formula."""
    formula = estimator(y, sigma=sigma).mean
    weight = next(net.parameters(), y)
    image = net(estimator.pre_inverted(y).to(weight.device, weight.dtype), sigma)
    if not isinstance(image, Tensor) or image.shape != x.shape:
        came = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"compare: net(v, sigma) must return images {tuple(x.shape)}: got {came}.")
    truth, formula, image = (each.to(formula.device, torch.float64) for each in (x, formula, image))
    pairs = image - formula, image - truth, formula - truth, formula
    return torch.stack([each.square().flatten(1).mean(1) for each in pairs]).cpu()


def _decibels(squares: Float64[Tensor, "s b"]) -> Float64[Tensor, "s b"]:
    return (-10 * torch.log10(squares)).clamp_max(CEILING)
