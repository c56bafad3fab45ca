"""The explorables of notebook 07: the true error beside all bounds of it, for an image and pixel by pixel (S7, S8)."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lemmse import bounds, data, figures
from lemmse.bounds import Injectivity, LocalBounds, WindowFacts
from lemmse.estimators import MMSE, LocalEquivariantMMSE
from lemmse.operators import Blur, Denoising, Downsampling, Inpainting, PseudoInverse, center_mask
from lemmse.optics import gaussian_psf
from lemmse.reductions import Moments, PosteriorMoments
from lemmse.ui.explorable import Explorable
from lemmse.ui.threads import one_thread
from lemmse.ui.view import Choice, Slider, View

__all__ = ["OPERATORS", "all_bounds", "pixel_certificates"]

OPERATORS = {
    "denoising": Denoising(),
    "inpainting": Inpainting(center_mask(28, 28, side=15)),
    "blur": Blur(gaussian_psf(1.0, size=(9, 9))),
    "downsampling by 2": Downsampling(2, gaussian_psf(1.0, size=(9, 9))),
}
"""What the explorables and the notebook measure with."""

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
COUNTS = (10, 100, 1000)
DELTA = 0.05
TRUTH = 58  # of the test images

PATCH_SIZE, ATOMS, SIDE = 5, 120, 28
RANGE = 1.0  # of intensities: a larger bound says nothing
LARGEST_ALPHA = 1e3  # shown of a pixel whose windows all have its own colour
LOCAL = {
    "denoising": OPERATORS["denoising"],
    "inpainting, B = A⁺": OPERATORS["inpainting"],
    "blur, B = Id": OPERATORS["blur"],
}


class Bound(NamedTuple):
    """The parts of a bound, which add up, in units of x: what no image near, noise and many images each cost."""

    nearest: float
    noise: float
    images: float

    @property
    def total(self) -> float:
        """The bound."""
        return sum(self)


# ---- An image -------------------------------------------------------------------------------------------------------


def all_bounds(operator: str = "denoising", sigma: float = 0.1, count: int = 1000) -> Explorable:
    """Return the explorable: the true error of an estimate, all bounds of it, and of what each is made."""
    return Explorable(
        compare,
        {
            "operator": Choice("operator A", tuple(OPERATORS), "denoising"),
            "sigma": Slider("noise level σ", SIGMAS, default=0.1),
            "count": Choice("images D", COUNTS, 1000),
        },
        title="How far from the truth can the estimate be?",
        name="recovery_bounds.all_bounds",
        state={"operator": operator, "sigma": sigma, "count": count},
    )


class Estimate(NamedTuple):
    """An estimate of a known truth, and what its bounds are made of."""

    x: Tensor
    y: Tensor
    moments: Moments
    known: Injectivity
    noise: float

    @property
    def error(self) -> float:
        """The true error, ‖x̂ - x‖."""
        return float((self.moments.mean - self.x).norm())


@lru_cache(maxsize=1)
def _images() -> Tensor:
    return data.fashion_mnist("train", count=COUNTS[-1]).double()


@lru_cache(maxsize=1)
def _truth() -> Tensor:
    return data.fashion_mnist("test", count=TRUTH + 1)[TRUTH:].double()


@lru_cache(maxsize=len(OPERATORS) * len(COUNTS))
@one_thread()
def _known(operator: str, count: int) -> Injectivity:
    return bounds.restricted_injectivity(_images()[:count], OPERATORS[operator], _truth())


def _noise(shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@lru_cache(maxsize=64)
@one_thread()
def estimate(operator: str, sigma: float, count: int) -> Estimate:
    """Estimate the image from its measurement, by D images."""
    x, physics = _truth(), OPERATORS[operator]
    clean = physics.A(x)
    e = sigma * _noise(clean.shape)
    moments = MMSE(_images()[:count], physics)(clean + e, sigma=sigma, reduction=PosteriorMoments())
    return Estimate(x, clean + e, moments, _known(operator, count), float(e.norm()))


def parts(found: Estimate, sigma: float, count: int) -> dict[str, Bound]:
    """Return every bound by name, each as a sum of what is left with nothing else, and what each thing adds to it."""
    alpha, r, noise = found.known.alpha, found.known.nearest, found.noise
    residual = bounds.nearest_squared_residual(found.moments, sigma).sqrt()
    nearest = float(r / alpha)
    whole = {
        "published (R1)": bounds.published_bound(alpha, r, noise, sigma, count),
        "sharp (R2)": bounds.sharp_bound(alpha, r, noise, sigma, count),
        "small bias (R3)": bounds.residual_bound(alpha, residual, noise, sigma, count),
        "certificate (R4)": bounds.certificate(alpha, found.moments.mean_squared_residual, noise),
        "Gaussian (R5)": bounds.gaussian_bound(alpha, r, sigma, count, DELTA),
    }
    alone = {
        "published (R1)": bounds.published_bound(alpha, r, noise, sigma, 1),
        "sharp (R2)": bounds.sharp_bound(alpha, r, noise, sigma, 1),
        "small bias (R3)": bounds.residual_bound(alpha, residual, noise, sigma, 1),
        "certificate (R4)": bounds.certificate(alpha, residual.square(), noise),
        "Gaussian (R5)": bounds.gaussian_bound(alpha, r, sigma, count, DELTA, excess=0.0),
    }
    return {
        name: Bound(nearest, max(0.0, float(alone[name]) - nearest), float(bound - alone[name]))
        for name, bound in whole.items()
    }


def compare(operator: str, sigma: float, count: int) -> View:
    """Return truth, measurement and estimate, and the bars of the true error and of all bounds."""
    found = estimate(operator, sigma, count)
    bars = parts(found, sigma, count)
    least = min(bars, key=lambda name: bars[name].total)
    excess, possible = float(bounds.residual_excess(found.moments)), float(bounds.largest_excess(count))
    pictures = {"x": found.x, "y": found.y, "x̂": found.moments.mean}
    first = bars["published (R1)"]
    costs = {"no image near": first.nearest, "noise": first.noise, "many images": first.images}
    dearest = max(costs, key=costs.get)
    return View(
        pictures=pictures,
        figure=_bars(found, bars),
        numbers={"true error": found.error, **{name: bar.total for name, bar in bars.items()}},
        sentence=(
            f"The estimate is {found.error:.2f} from the truth. The published bound says {first.total:.1f}, "
            f"{first.total / found.error:.1f} times as much, of which {dearest} costs {costs[dearest]:.1f}; the least, "
            f"{least}, says {bars[least].total:.1f}, {bars[least].total / found.error:.1f} times. α = "
            f"{float(found.known.alpha):.2f}; H + ln w₁ = {excess:.2f} nats where {possible:.1f} were possible."
        ),
    )


def _bars(found: Estimate, bars: dict[str, Bound]) -> Figure:
    drawing = figures.figure(7.4, 2.6)
    axes = drawing.subplots()
    names = list(bars)
    left = torch.zeros(len(names), dtype=torch.float64)
    told = ("nearest image, r*/α", "noise", "many images")
    for k, (label, colour, hatch) in enumerate(zip(told, figures.COLOURS, ("", "//", ".."), strict=False)):
        widths = torch.tensor([bars[name][k] for name in names])
        axes.barh(names, widths, left=left, color=colour, label=label, hatch=hatch, edgecolor="white")
        left = left + widths
    axes.axvline(found.error, color="black", linewidth=2, label="true error")
    axes.set(xlabel="‖x̂ − x‖, and what bounds it", xlim=(0, None))
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right")
    return drawing


# ---- Pixel by pixel -------------------------------------------------------------------------------------------------


def pixel_certificates(operator: str = "denoising", sigma: float = 0.05, row: int = 14, column: int = 14) -> Explorable:
    """Return the explorable: the true error of every pixel, its certificate, and what one pixel's is made of."""
    return Explorable(
        certify,
        {
            "operator": Choice("operator A, pre-inverse B", tuple(LOCAL), "denoising", folded=True),
            "sigma": Slider("noise level σ", SIGMAS, default=0.05),
            "row": Slider("row of the pixel", tuple(range(SIDE)), default=14),
            "column": Slider("column of the pixel", tuple(range(SIDE)), default=14),
        },
        title="Which pixels can be trusted?",
        name="recovery_bounds.pixel_certificates",
        state={"operator": operator, "sigma": sigma, "row": row, "column": column},
    )


class Certified(NamedTuple):
    """A local estimate of a known truth with the bounds of all its pixels."""

    x: Tensor
    y: Tensor
    moments: Moments
    facts: WindowFacts
    bounds: LocalBounds

    @property
    def error(self) -> Float64[Tensor, "h w"]:
        """The true error of every pixel."""
        return (self.moments.mean - self.x)[0].norm(dim=0)


@lru_cache(maxsize=len(LOCAL))
def _local(operator: str) -> LocalEquivariantMMSE:
    physics = LOCAL[operator]
    B = PseudoInverse(physics) if operator.endswith("A⁺") else None
    return LocalEquivariantMMSE(_images()[:ATOMS], physics, PATCH_SIZE, B)


@lru_cache(maxsize=len(LOCAL))
def _facts(operator: str) -> WindowFacts:
    """Compare the truth's windows with all others, with noise of standard deviation 1, which scales."""
    estimator = _local(operator)
    return bounds.window_facts(estimator, _truth(), _noise(_truth().shape))


@lru_cache(maxsize=32)
def certified(operator: str, sigma: float) -> Certified:
    """Estimate the image from its measurement, window by window, and bound the error of every pixel."""
    estimator, facts = _local(operator), _facts(operator)
    facts = replace(facts, noise=sigma * facts.noise, noise_spread=sigma**2 * facts.noise_spread)
    y = estimator.physics.A(_truth()) + sigma * _noise(_truth().shape)
    moments = estimator(y, sigma=sigma, reduction=PosteriorMoments())
    found = bounds.local_bounds(facts, moments, sigma=sigma, delta=DELTA / SIDE**2)
    return Certified(_truth(), y, moments, facts, found)


def certify(operator: str, sigma: float, row: int, column: int) -> View:
    """Return the estimate, maps of error and certificate, and the ingredients of one pixel."""
    found = certified(operator, sigma)
    error, bound = found.error, found.bounds.least[0]
    told = bound < RANGE
    facts = {name: float(getattr(found.facts, name)[0, row, column]) for name in ("alpha", "noise", "count")}
    residual = math.sqrt(float(found.moments.mean_squared_residual[0, row, column]))
    numbers = {"the pixel's error": float(error[row, column]), "√E_w r²": residual, "ε": facts["noise"]}
    numbers |= {"atoms K": facts["count"], "α": min(facts["alpha"], LARGEST_ALPHA)}
    whole = f"{float(told.double().mean()):.0%} of the pixels have a bound below 1, the range of intensities"
    if told.any():
        whole += f", in the middle {float((bound / error.clamp_min(1e-6))[told].median()):.0f} times their error"
    return View(
        pictures={"x": found.x, "y": found.y, "x̂": found.moments.mean},
        figure=_maps(error, bound, (row, column)),
        numbers=numbers,
        sentence=(
            f"{whole}. No error is above its bound: {bool((error <= bound).all())}. In row {row}, column {column} the "
            f"error is {float(error[row, column]):.3f}; {_said(found.bounds, row, column, residual, facts)}."
        ),
    )


def _said(found: LocalBounds, row: int, column: int, residual: float, facts: dict[str, float]) -> str:
    """Say which bound a pixel has, and what it is made of."""
    bound, by_certificate = (float(each[0, row, column]) for each in (found.least, found.certificate))
    if math.isinf(bound):
        return "nothing is certified there, as a window with another centre looks just like its own (α = 0)"
    which = "R4" if by_certificate <= bound else "R5"
    parts = f"√E_w r² = {residual:.2f}, ε = {facts['noise']:.2f} and α = {facts['alpha']:.2f}"
    return (
        f"its bound is {bound:.2f} ({which}), from {parts}" if which == "R4" else f"its bound is {bound:.2f} ({which})"
    )


def _maps(error: Tensor, bound: Tensor, here: tuple[int, int]) -> Figure:
    """Draw both maps on one scale; where a bound says nothing it is hatched, and the chosen pixel has a frame."""
    drawing = figures.figure(7.4, 3.2)
    panels = drawing.subplots(1, 2)
    for axes, (name, values) in zip(panels, {"true error": error, "bound": bound}.items(), strict=True):
        axes.set(title=name, xticks=[], yticks=[], facecolor="0.85")
        axes.grid(visible=False)
        everywhere = {"fill": False, "hatch": "///", "edgecolor": "0.5", "linewidth": 0, "zorder": 0.5}
        axes.add_patch(Rectangle((-0.5, -0.5), SIDE, SIDE, **everywhere))
        shown = axes.imshow(
            values.where(values < RANGE, torch.nan).numpy(), cmap="viridis", vmin=0, vmax=RANGE, zorder=1
        )
        for colour, width in (("black", 3.0), ("white", 1.4)):
            corner = here[1] - 0.5, here[0] - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=2))
    drawing.colorbar(shown, ax=panels, label="hatched: 1 or more says nothing")
    return drawing
