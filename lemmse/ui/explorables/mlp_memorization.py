"""The explorable of notebook 02: how many training images stand behind the unconstrained estimate (S3, S7)."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from lemmse import data, metrics, optics
from lemmse.estimators import MMSE
from lemmse.operators import Blur, Denoising, Downsampling, Inpainting, half_mask
from lemmse.reductions import PosteriorMoments, TopSources
from lemmse.ui.explorable import Explorable
from lemmse.ui.explorables.inverse_problems import COPY, NEARER
from lemmse.ui.view import Choice, Slider, View

__all__ = ["mlp_memorization"]

SIDE = 28
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
COUNTS = (10, 50, 200, 500, 1000, 2000)
TRUTHS = {"T-shirt": 120, "bag": 128, "sandal": 45, "pullover": 102}  # indices of test images
RANKS = ("nearest image", "second image", "third image")  # what the row shows of the training set
MEAN = 0.9  # a share of the training set from which on the effective sources are nearly all of them

OPERATORS = {
    "denoising": Denoising(),
    "inpainting": Inpainting(half_mask(SIDE, SIDE)),
    "deblurring": Blur(optics.gaussian_psf(2.0, size=13)),
    "downsampling": Downsampling(4, optics.gaussian_psf(2.0, size=13)),
}

CONTROLS = {
    "sigma": Slider("noise level σ", SIGMAS, default=0.2),
    "operator": Choice("operator A", tuple(OPERATORS), default="denoising"),
    "count": Slider("training images D", COUNTS, default=2000),
    "image": Choice("true image", tuple(TRUTHS), default="T-shirt", folded=True),
}


def mlp_memorization(
    sigma: float = 0.2, operator: str = "denoising", count: int = 2000, image: str = "T-shirt"
) -> Explorable:
    """Return the explorable: an estimate, the training images that it is made of, and why they are so few."""
    return Explorable(
        view,
        CONTROLS,
        title="Whose copy is this?",
        name="mlp_memorization.mlp_memorization",
        state={"sigma": sigma, "operator": operator, "count": count, "image": image},
    )


@lru_cache
def _truths() -> Float[Tensor, "b c h w"]:
    return data.fashion_mnist("test", max(TRUTHS.values()) + 1)[list(TRUTHS.values())]


@lru_cache
def _estimator(operator: str, count: int) -> MMSE:
    return MMSE(data.fashion_mnist("train", count), OPERATORS[operator])


@lru_cache
def _measured(operator: str) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
    """Return A x of every true image, and noise of σ = 1 to be scaled: the same for all noise levels."""
    clean = OPERATORS[operator].A(_truths())
    return clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def view(sigma: float, operator: str, count: int, image: str) -> View:
    """Measure one true image and return its estimate beside the training images that hold the most weight."""
    index = list(TRUTHS).index(image)
    estimator, (clean, noise) = _estimator(operator, count), _measured(operator)
    x, y = _truths()[[index]], clean[[index]] + sigma * noise[[index]]
    moments = estimator(y, sigma=sigma, reduction=PosteriorMoments())
    sources = estimator(y, sigma=sigma, reduction=TopSources(len(RANKS)))
    nearest, weights = estimator.images[sources.image[0]], sources.weight[0].tolist()
    first, second = (estimator.physics.A(nearest[:2]) - y).flatten(1).square().sum(1).tolist()
    numbers = {
        "effective sources": moments.entropy.exp().item(),
        "gap r₂² − r₁²": max(second - first, 0.0),  # rounding can swap two that tie
        "2σ² ln(D/δ)": 2 * sigma**2 * math.log(count / (1 - COPY)),
    }
    return View(
        pictures={"x": x, "y": y, "x_hat": moments.mean} | dict(zip(RANKS, nearest, strict=True)),
        notes={rank: f"weight {weight:.1%}" for rank, weight in zip(RANKS, weights, strict=True)},
        numbers=numbers,
        sentence=_sentence(
            count,
            *numbers.values(),
            weights=weights,
            psnr=metrics.psnr(moments.mean, x).item(),
            psnr_y=metrics.psnr(y, x).item() if y.shape == x.shape else -math.inf,
        ),
    )


def _sentence(
    count: int, effective: float, gap: float, threshold: float, *, weights: list[float], psnr: float, psnr_y: float
) -> str:
    """Say whether the estimate is a copy, a mixture of few or the mean of all, why, and what it is worth."""
    copy = weights[0] >= COPY
    if copy:
        what = f"A copy: one of {count} training images holds {weights[0]:.1%} of the weight"
    elif effective < MEAN * count:
        shown = f"those shown hold {sum(weights):.0%} of the weight"
        what = f"A mixture of about {_digits(effective)} of {count} training images; {shown}"
    else:
        what = f"Nearly the mean of all {count} training images, whatever was measured"
    if gap > threshold:
        side, so = "above", "so a copy is certain"
    else:  # the bound is sufficient, not necessary: S7
        side, so = "below", "a bound that suffices for a copy but is not needed" if copy else "so nothing forces a copy"
    gap_shown, threshold_shown = _apart(gap, threshold)
    why = f"The gap to the runner-up, r₂² − r₁² = {gap_shown}, is {side} 2σ² ln(D/δ) = {threshold_shown}"
    better = f", and y itself is nearer, at {psnr_y:.1f} dB" if psnr_y - psnr >= NEARER else ""
    return f"{what}. {why} with δ = {1 - COPY:.0%}, {so}. The PSNR is {psnr:.1f} dB{better}."


def _apart(a: float, b: float) -> tuple[str, str]:
    """Return both numbers with as few more digits than usual as tell them apart."""
    pairs = [(_digits(a, more), _digits(b, more)) for more in range(4)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])


def _digits(value: float, more: int = 0) -> str:
    return f"{value:.{more}f}" if value >= 10 else f"{value:.{2 + more}g}"
