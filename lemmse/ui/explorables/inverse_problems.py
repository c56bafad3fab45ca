"""The explorable of notebook 00: one measurement, and the two answers that a training set gives to it (S1.2)."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lemmse import data, metrics, optics
from lemmse.estimators import MMSE
from lemmse.operators import Blur, Denoising, Downsampling, Inpainting, center_mask
from lemmse.reductions import PosteriorMoments, TopSources
from lemmse.ui.explorable import Explorable
from lemmse.ui.view import Choice, Slider, View

__all__ = ["inverse_problems"]

IMAGES = 2000  # the training set: all that the package carries
SIDE = 28
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
TRUTHS = {"handbag": 58, "T-shirt": 0, "boot": 59, "sandal": 5}  # indices of test images
COPY = 0.99  # the weight of one image from which no eye could tell a mixture from a copy of it
NEARER = 0.1  # dB by which one picture must be nearer to the truth than another before that is worth saying

OPERATORS = {
    "denoising": Denoising(),
    "inpainting": Inpainting(center_mask(SIDE, SIDE, side=15)),
    "deblurring": Blur(optics.gaussian_psf(2.0, size=13)),
    "downsampling": Downsampling(4, optics.gaussian_psf(2.0, size=13)),
}
MEASURED = {
    "denoising": "Every pixel is measured",
    "inpainting": "The central square is hidden",
    "deblurring": "Every pixel is measured, blurred",
    "downsampling": "49 numbers stand for 784 pixels",
}

CONTROLS = {
    "operator": Choice("operator A", tuple(OPERATORS), default="inpainting"),
    "sigma": Slider("noise level σ", SIGMAS, default=0.7),
    "image": Choice("true image", tuple(TRUTHS), default="handbag", folded=True),
}


def inverse_problems(operator: str = "inpainting", sigma: float = 0.7, image: str = "handbag") -> Explorable:
    """Make the explorable of y = A x + e, its nearest training image (MAP) and its posterior mean (MMSE); return it."""
    return Explorable(
        view,
        CONTROLS,
        title="What was measured, and what can be said about the image?",
        name="inverse_problems.inverse_problems",
        state={"operator": operator, "sigma": sigma, "image": image},
    )


class _Experiment(NamedTuple):
    """What no slider changes: the estimator of one operator, A x for each true image, and one noise with σ = 1."""

    estimator: MMSE
    measured: Float[Tensor, "b ..."]
    noise: Float[Tensor, "1 ..."]


@lru_cache
def _truths() -> Float[Tensor, "b c h w"]:
    return data.fashion_mnist("test", max(TRUTHS.values()) + 1)[list(TRUTHS.values())]


@lru_cache
def _experiment(operator: str) -> _Experiment:
    physics = OPERATORS[operator]
    measured = physics.A(_truths())
    noise = torch.randn(measured[:1].shape, generator=torch.Generator().manual_seed(1))
    return _Experiment(MMSE(data.fashion_mnist("train", IMAGES), physics), measured, noise)


def view(operator: str, sigma: float, image: str) -> View:
    """Measure one true image and return it with y, the nearest training image and the posterior mean."""
    index = list(TRUTHS).index(image)
    estimator, measured, noise = _experiment(operator)
    x, y = _truths()[[index]], measured[[index]] + sigma * noise  # the same noise, scaled: σ moves nothing else
    moments = estimator(y, sigma=sigma, reduction=PosteriorMoments())
    nearest = estimator(y, sigma=sigma, reduction=TopSources(1))
    x_map = estimator.images[nearest.image[:, 0]]
    weight, count = nearest.weight.item(), moments.entropy.exp().item()
    return View(
        pictures={"x": x, "y": y, "x_hat MAP": x_map, "x_hat MMSE": moments.mean},
        numbers={"weight of MAP": weight, "effective number of images": count},
        sentence=_sentence(
            operator,
            weight=weight,
            count=count,
            psnr_map=metrics.psnr(x_map, x).item(),
            psnr_mmse=metrics.psnr(moments.mean, x).item(),
            psnr_y=metrics.psnr(y, x).item() if y.shape == x.shape else -math.inf,
        ),
    )


def _sentence(operator: str, *, weight: float, count: float, psnr_map: float, psnr_mmse: float, psnr_y: float) -> str:
    """Say whether MMSE is a copy or a mixture, whether it or MAP is nearer to the truth, and whether y itself is."""
    if weight >= COPY:
        same = "is" if f"{psnr_mmse:.1f}" == f"{psnr_map:.1f}" else "is all but"
        answers = (
            f"One training image holds {weight:.0%} of the weight, so MMSE {same} MAP: a copy, at {psnr_mmse:.1f} dB."
        )
    else:
        share = f"{weight:.0%}" if weight >= 0.01 else "less than 1%"
        gain = psnr_mmse - psnr_map
        side = "nearer to the truth" if gain > 0 else "further from the truth"
        answers = (
            f"MAP is the training image with the largest weight, {share}; MMSE mixes about "
            f"{count:.{0 if count >= 10 else 1}f} of them and is "
            f"{f'{abs(gain):.1f} dB {side}' if abs(gain) >= NEARER else 'as near to the truth'}."
        )
    nearer = psnr_y - psnr_mmse >= NEARER
    better = f" The measurement itself is nearer to the truth, at {psnr_y:.1f} dB." if nearer else ""
    return f"{MEASURED[operator]}. {answers}{better}"
