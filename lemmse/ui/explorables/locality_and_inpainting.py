"""The explorables of notebook 04: a patchwork of windows (S5.4), the price of a pre-inverse (S6), a painted hole."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lemmse import data, figures, metrics, optics
from lemmse.estimators import LocalEquivariantMMSE
from lemmse.explain import amplification_map, discrimination_map, effective_sources, patchwork
from lemmse.figures import HeatMap, Image, Picture
from lemmse.operators import (
    Adjoint,
    Blur,
    Denoising,
    EpsilonInverse,
    Inpainting,
    LinearOperator,
    PseudoInverse,
    Tikhonov,
    center_mask,
    half_mask,
    random_mask,
    stripe_mask,
)
from lemmse.reductions import PosteriorMoments
from lemmse.ui.backend import backend
from lemmse.ui.explorable import Explorable, compose
from lemmse.ui.explorables.equivariance_vs_augmentation import TRUTHS
from lemmse.ui.painting import as_mask, publish, rows_of
from lemmse.ui.probing import probed
from lemmse.ui.threads import one_thread
from lemmse.ui.view import Choice, Slider, View

__all__ = ["PaintedHole", "painted_hole", "patchwork_of_windows", "price_of_a_pre_inverse"]

SIDE = 28
EVEN = 0.1  # dB below which two estimates count as equally good


@lru_cache
def _images(count: int) -> Float32[Tensor, "D 1 h w"]:
    return data.fashion_mnist("train", count)


@lru_cache
def _truth(image: str) -> Float32[Tensor, "1 1 h w"]:
    if image == MEMBER:
        return _images(NUMBER + 1)[NUMBER:]
    return data.fashion_mnist("test", TRUTHS[image] + 1)[TRUTHS[image] :]


def _halved(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    return avg_pool2d(images, 2)


def _noise(x: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
    """Return one draw of noise with σ = 1, the same for all noise levels and operators."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


# ---- A patchwork of windows -----------------------------------------------------------------------------------------

MEMBER = "a training image"
NUMBER = 3  # which one
SIGMAS = (0.001, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0)
PATCH_SIZES = (1, 3, 5, 7, 11, 15)
COUNTS = (10, 20, 40)
MEAN = 0.9  # a share of all windows from which on the effective sources are nearly all of them
NEARLY = 0.95  # a share of the owned pixels from which on their owner has nearly all

DRAWN = 140  # pixels of the side of a drawn map: room for lines between its cells
FRAME = 6
OWNERS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#F0E442", "#CC79A7")  # of Okabe and Ito, for all eyes
OTHERS, NOBODY = "#666666", "#F4F4F4"
HATCH, BORDER = "#B8B8B8", "#000000"

PATCHWORK_CONTROLS = {
    "sigma": Slider("noise level σ", SIGMAS, default=0.1),
    "patch_size": Slider("patch size p", PATCH_SIZES, default=5),
    "count": Slider("training images D", COUNTS, default=10),
    "image": Choice("true image", (*TRUTHS, MEMBER), default="bag", folded=True),
}


def patchwork_of_windows(sigma: float = 0.1, patch_size: int = 5, count: int = 10, image: str = "bag") -> Explorable:
    """Return the explorable: a denoised image, who owns its pixels, and how many windows each mixes."""
    return Explorable(
        patch,
        PATCHWORK_CONTROLS,
        title="Whose pixels are these?",
        name="locality_and_inpainting.patchwork_of_windows",
        state={"sigma": sigma, "patch_size": patch_size, "count": count, "image": image},
        coarse=patch_coarsely,
    )


class _Denoised(NamedTuple):
    """One measurement, its estimate, who owns the pixels of that (-1: nobody), and how many windows each mixes."""

    x: Float32[Tensor, "1 1 h w"]
    y: Float32[Tensor, "1 1 h w"]
    x_hat: Float32[Tensor, "1 1 h w"]
    owner: Int64[Tensor, "h w"]
    sources: Float32[Tensor, "h w"]


@lru_cache(maxsize=18)
def _denoiser(count: int, patch_size: int, halved: bool) -> LocalEquivariantMMSE:
    images = _images(count)
    return LocalEquivariantMMSE(_halved(images) if halved else images, Denoising(), patch_size)


@lru_cache(maxsize=64)
@one_thread()
def _denoised(sigma: float, patch_size: int, count: int, image: str, halved: bool) -> _Denoised:
    x = _truth(image)
    y = x + sigma * _noise(x)
    if halved:  # means of 2 × 2 pixels: their noise is half as strong, and half a window sees as much
        x, y, sigma, patch_size = _halved(x), _halved(y), sigma / 2, patch_size // 4 * 2 + 1
    estimator = _denoiser(count, patch_size, halved)
    moments = estimator(y, sigma=sigma, reduction=PosteriorMoments())
    owner = patchwork(estimator, y, sigma=sigma).owner
    return _Denoised(x, y, moments.mean, owner[0], effective_sources(moments)[0])


def patch(sigma: float, patch_size: int, count: int, image: str) -> View:
    """Denoise one image and return it with the map of who owns its pixels, and with those who own most."""
    return _patchwork_view(_denoised(sigma, patch_size, count, image, halved=False), count, "")


def patch_coarsely(sigma: float, patch_size: int, count: int, image: str) -> View:
    """Return the same at half the resolution."""
    found = _denoised(sigma, patch_size, count, image, halved=True)
    return _patchwork_view(found, count, "At half the resolution for now. ")


def _patchwork_view(found: _Denoised, count: int, before: str) -> View:
    x, y, x_hat, owner, sources = found
    images = _images(count)
    owned = torch.bincount(owner[owner >= 0], minlength=count)
    first = owned.argsort(descending=True, stable=True)[: len(OWNERS)].tolist()
    portraits = {
        f"image {d}": _framed(images[d], colour) if owned[d] else images[d]
        for d, colour in zip(first, OWNERS, strict=True)
    }
    who, how_many = "who owns the pixels", "effective sources"
    owners = int((owned > 0).sum())
    notes = {who: f"{owners} owner{'' if owners == 1 else 's'}", how_many: "powers of ten"}
    return View(
        pictures={
            "x": x,
            "y": y,
            "x_hat": x_hat,
            who: draw_owners(owner, first),
            how_many: HeatMap(sources.log10(), 0, math.log10(count * owner.numel())),
        }
        | portraits,
        notes=notes | {f"image {d}": f"owns {int(owned[d])}" if owned[d] else "owns none" for d in first},
        numbers={
            "pixels with an owner": int(owned.sum()),
            "owners": owners,
            "effective sources, median": sources.median().item(),
        },
        sentence=before + _whose(owned, owner, sources, x),
    )


def draw_owners(owner: Int64[Tensor, "h w"], first: Sequence[int]) -> Float32[Tensor, "3 h2 w2"]:
    """Draw a map of owners and return it: the ``first`` in colours, others grey, nobody (-1) hatched, with borders."""
    kind = torch.full_like(owner, len(OWNERS)).where(owner >= 0, len(OWNERS) + 1)
    for k, d in enumerate(first):
        kind[owner == d] = k
    owner, kind = _enlarged(owner), _enlarged(kind)
    drawn = torch.stack([_rgb(colour) for colour in (*OWNERS, OTHERS, NOBODY)])[kind]
    rows, columns = (torch.arange(side) for side in owner.shape)
    drawn[(owner < 0) & ((rows[:, None] + columns) % 5 == 0)] = _rgb(HATCH)
    border = torch.zeros_like(owner, dtype=torch.bool)
    border[1:] |= owner[1:] != owner[:-1]
    border[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    drawn[border] = _rgb(BORDER)
    return drawn.movedim(2, 0)


def _framed(image: Float32[Tensor, "1 h w"], colour: str) -> Float32[Tensor, "3 h2 w2"]:
    """Return an image in a frame of its colour on the map."""
    drawn = _rgb(colour)[:, None, None].repeat(1, DRAWN, DRAWN)
    drawn[:, FRAME:-FRAME, FRAME:-FRAME] = _enlarged(image[0])[FRAME:-FRAME, FRAME:-FRAME]
    return drawn


def _enlarged(x: Tensor) -> Tensor:
    zoom = DRAWN // x.shape[0]
    return x.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)


def _rgb(colour: str) -> Float32[Tensor, "3"]:
    return torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _whose(
    owned: Int64[Tensor, " D"], owner: Int64[Tensor, "h w"], sources: Float32[Tensor, "h w"], x: Float32[Tensor, "..."]
) -> str:
    """Say whether the estimate comes from one image, is a patchwork of several or a mixture, and of how much."""
    total, having, owners = owner.numel(), int(owned.sum()), int((owned > 0).sum())
    windows, free = len(owned) * total, owner < 0
    if having == 0:
        mixed, mean = _number(sources.median().item()), sources.median() > MEAN * windows
        return (
            f"{'An average' if mean else 'A mixture'}: no image owns a pixel. A typical one mixes {mixed} of {windows} "
            f"windows{', so that it is nearly the mean of all training pixels whatever was measured' if mean else ''}."
        )
    best, most = int(owned.argmax()), int(owned.max())
    weight = "with over half of the weight"
    if 2 * having < total:
        images = "an image" if owners == 1 else f"one of {owners} images"
        what = f"Mostly a mixture: only {having} of {total} pixels are owned by {images}, {weight}"
    elif most >= NEARLY * having:
        nearly = "All" if owners == 1 else "Nearly all"
        what = f"{nearly} from one image, number {best}: it owns {most} of {total} pixels, {weight}"
    else:
        what = f"A patchwork: {owners} of {len(owned)} images own {having} of {total} pixels, {weight}"
        what += f"; number {best} owns most, {most}"
    if having == total:
        return f"{what}."
    mixed = _number(sources[free].median().item())
    if total - having == 1:
        return f"{what}. One pixel has no owner and mixes {mixed} of {windows} windows."
    black = ", most of them black," if 2 * (x[0, 0][free] == 0).sum() > total - having else ""
    return f"{what}. The {total - having} without an owner{black} mix {mixed} of {windows} windows (median)."


# ---- The price of a pre-inverse -------------------------------------------------------------------------------------

HALF = SIDE // 2
PRICE_IMAGES = 30
PRICE_SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
WEIGHT = 0.01  # of Tikhonov
ALIKE = 1.01  # a ratio of two numbers of look-alikes from which on one is larger
UNIFORM = 1e-6  # how far from 1 rounding takes an amplification of 1

OPERATORS = {
    "weak blur": Blur(optics.gaussian_psf(0.6, size=5)),
    "strong blur": Blur(optics.gaussian_psf(1.0, size=9)),
    "motion blur": Blur(torch.full((1, 5), 0.2, dtype=torch.float64)),
    "half in the shade": EpsilonInverse(half_mask(HALF, HALF), 0.3),
    "hole": Inpainting(center_mask(HALF, HALF, side=3)),
    "stripes": Inpainting(stripe_mask(HALF, HALF, period=4)),
    "random mask": Inpainting(random_mask(HALF, HALF, keep=0.6)),
}
PRE_INVERSES = ("Id", "Aᵀ", "A⁺", "Tikhonov")

PRICE_CONTROLS = {
    "operator": Choice("operator A", tuple(OPERATORS), default="motion blur"),
    "pre_inverse": Choice("pre-inverse B", PRE_INVERSES, default="A⁺"),
    "sigma": Slider("noise level σ", PRICE_SIGMAS, default=0.1),
    "patch_size": Choice("patch size p", (3, 5, 7), default=3, folded=True),
    "image": Choice("true image", tuple(TRUTHS), default="boot", folded=True),
}


def price_of_a_pre_inverse(
    operator: str = "motion blur",
    pre_inverse: str = "A⁺",
    sigma: float = 0.1,
    patch_size: int = 3,
    image: str = "boot",
) -> Explorable:
    """Return the explorable: one measurement, its estimates with a B and with B = Id, and why one of them is better."""
    state = {"operator": operator, "pre_inverse": pre_inverse, "sigma": sigma}
    return Explorable(
        price,
        PRICE_CONTROLS,
        title="What does a pre-inverse cost?",
        name="locality_and_inpainting.price_of_a_pre_inverse",
        state=state | {"patch_size": patch_size, "image": image},
    )


def inverse_of(operator: str, pre_inverse: str) -> LinearOperator:
    """Return the pre-inverse B of a name, for the operator A of a name."""
    A = OPERATORS[operator]
    named = {"Id": Denoising(), "Aᵀ": Adjoint(A), "A⁺": PseudoInverse(A), "Tikhonov": Tikhonov(A, WEIGHT)}
    return named[pre_inverse]


class _Prepared(NamedTuple):
    """What neither noise nor image changes: the estimator, how much B amplifies, and the atoms each pixel can take."""

    estimator: LocalEquivariantMMSE
    amplification: Float64[Tensor, "h w"]
    atoms: Int64[Tensor, "h w"]


@lru_cache(maxsize=48)
@one_thread()
def _prepared(operator: str, pre_inverse: str, patch_size: int) -> _Prepared:
    images = _halved(_images(PRICE_IMAGES))
    estimator = LocalEquivariantMMSE(images, OPERATORS[operator], patch_size, inverse_of(operator, pre_inverse))
    atoms = torch.empty(HALF**2, dtype=torch.int64)
    for stratum in estimator.strata:
        atoms[stratum.pixels] = len(images) * len(stratum.pixels)
    return _Prepared(estimator, amplification_map(estimator), atoms.unflatten(0, (HALF, HALF)))


class _Answer(NamedTuple):
    """An estimate, its PSNR and what it would be without the noise in y, and how many look-alikes each pixel has.

    A look-alike is a window at most as far from that of the pixel, noise aside, as chance may bridge (S6).
    """

    x_hat: Float32[Tensor, "1 1 h w"]
    psnr: float
    psnr_without_noise: float
    alike: Float32[Tensor, "h w"]


@lru_cache(maxsize=256)
@one_thread()
def _answer(operator: str, pre_inverse: str, sigma: float, patch_size: int, image: str) -> _Answer:
    estimator, _, atoms = _prepared(operator, pre_inverse, patch_size)
    x, y = _measured(operator, sigma, image)
    x_hats = estimator(torch.cat([y, estimator.physics.A(x)]), sigma=sigma).mean
    confusable = discrimination_map(estimator, x, sigma=sigma).confusable[0]
    return _Answer(x_hats[:1], *metrics.psnr(x_hats, x).tolist(), confusable * atoms)


def _measured(operator: str, sigma: float, image: str) -> tuple[Float32[Tensor, "1 1 h w"], Float32[Tensor, "1 1 h w"]]:
    x = _halved(_truth(image))
    return x, OPERATORS[operator].A(x) + sigma * _noise(x)


def price(operator: str, pre_inverse: str, sigma: float, patch_size: int, image: str) -> View:
    """Measure one image and return its estimates with B and with B = Id, and the two parts of η for both."""
    x, y = _measured(operator, sigma, image)
    chosen, plain = (_answer(operator, name, sigma, patch_size, image) for name in (pre_inverse, "Id"))
    B, same = _prepared(operator, pre_inverse, patch_size), pre_inverse == "Id"
    answers = {"B = Id": plain} if same else {"B = Id": plain, f"B = {pre_inverse}": chosen}
    amplified, every = B.amplification, PRICE_IMAGES * HALF**2
    gain, aside = chosen.psnr - plain.psnr, chosen.psnr_without_noise - plain.psnr_without_noise
    pictures: dict[str, Image] = {"x": x, "y": y} | ({} if same else {"B y": B.estimator.pre_inverted(y)})
    pictures |= {f"x_hat, {name}": answer.x_hat for name, answer in answers.items()}
    low, high = min(1.0, amplified.min().item()), max(2.0, amplified.max().item())
    pictures |= {"amplification": HeatMap(amplified, low, high)}
    alike = {f"look-alikes, {name}": answer.alike for name, answer in answers.items()}
    pictures |= {name: HeatMap(counts.clamp_min(1).log10(), 0, math.log10(every)) for name, counts in alike.items()}
    compared = {"gain (dB)": gain, "gain without noise (dB)": aside, "amplification, mean": amplified.mean().item()}
    return View(
        pictures=pictures,
        numbers={f"{name}, mean": counts.mean().item() for name, counts in alike.items()} | ({} if same else compared),
        notes=dict.fromkeys(alike, "powers of ten") | {"amplification": f"mean {_number(amplified.mean().item())}"},
        sentence=_alone(plain) if same else _compared(pre_inverse, plain, chosen, B),
    )


def _alone(plain: _Answer) -> str:
    """Say what an estimate is made of where there is none to compare it with."""
    return (
        f"B = Id: the network sees y itself. A pixel has {_number(plain.alike.mean().item())} look-alikes (mean) among "
        f"{PRICE_IMAGES * HALF**2} windows. Choose another B to compare."
    )


def _compared(pre_inverse: str, plain: _Answer, chosen: _Answer, B: _Prepared) -> str:
    """Say whether B is better than B = Id here, which part of η decides, and what B does to either part."""
    gain, aside = chosen.psnr - plain.psnr, chosen.psnr_without_noise - plain.psnr_without_noise
    verdict = f"B = {pre_inverse} is as good as B = Id"
    if abs(gain) > EVEN:
        verdict = f"B = {pre_inverse} {'wins' if gain > 0 else 'loses'} {abs(gain):.1f} dB {_over(gain)} B = Id"
    without = "they would tie"
    if abs(aside) > EVEN:
        without = f"it would {'win' if aside > 0 else 'lose'} {abs(aside):.1f} dB"
    amplified, alone = B.amplification, (B.amplification - 1).abs().max() < UNIFORM
    by_signal = alone or abs(aside) >= abs(gain - aside)
    if alone:
        noise, decides = (
            "Whitening undoes what B does to the noise (amplification 1)",
            ", so discrimination alone decides",
        )
    else:
        noise = f"B amplifies the noise {amplified.mean():.1f} times, at most {amplified.max():.1f}"
        decides = f", and {'discrimination' if by_signal else 'noise'} decides"
    if abs(gain) <= EVEN:
        decides = ""
    alike = _look_alikes(plain, chosen, B, gain, aside if by_signal else 0.0)
    return f"{verdict}; without noise in y {without}. {noise}{decides}: {alike}."


def _look_alikes(plain: _Answer, chosen: _Answer, B: _Prepared, gain: float, by_signal: float) -> str:
    """Say how many look-alikes a pixel has with B and with B = Id, and whether their number explains who wins."""
    many, few = chosen.alike.mean().item(), plain.alike.mean().item()
    among = f"{int(B.atoms.median())} windows"
    if len(B.estimator.strata) > 1:
        among += " that show the same pixels (median)"
    counts = f"{_number(many)} look-alikes among {among}, with B = Id {_number(few)}"
    explained = many > ALIKE * few if gain < 0 else ALIKE * many < few
    if explained or abs(gain) <= EVEN or by_signal == 0:
        return f"a pixel has {counts}"
    if gain * by_signal > 0:
        return f"not by their number, {counts}, but by how near the truth they are"
    return f"a pixel has {counts}, to average the noise over"


def _over(gain: float) -> str:
    return "over" if gain > 0 else "to"


# ---- A painted hole -------------------------------------------------------------------------------------------------

HOLE_IMAGES = 10  # one of each class: few enough to follow the brush
HOLE_PATCH = 5
HOLE_SIGMA = 0.1
HOLE_TRUTH = "boot"
LISTED = 5  # source windows of the probe


def painted_hole(mask: Sequence[str] | None = None, row: int = 13, column: int = 17) -> "PaintedHole":
    """Return the explorable: paint a hole, see it filled with B = Id and with B = A⁺, and ask what a pixel is made of.

    ``mask`` holds 28 rows of text, "1" where visible and "0" where hidden (``None``: a square is hidden); ``row`` and
    ``column`` are the pixel that is explained.
    """
    return PaintedHole(center_mask(SIDE, SIDE, side=9) if mask is None else as_mask(mask), (row, column))


class PaintedHole:
    """A test image with a hole that the reader paints, the two estimates that follow, and a probe into the second.

    Shown as a static picture and, where widgets work, as a ``painter`` (`MaskPainter`) above a ``probe`` (`PixelProbe`)
    in its place. ``state`` is JSON, ``state_line`` the line of Python that makes this again.

    Raises ``ValueError`` for a mask of another size and a pixel outside the image.
    """

    title = "Paint the hole"

    def __init__(self, mask: Float32[Tensor, "h w"], pixel: tuple[int, int]) -> None:
        self._mask, self._pixel = _checked(mask, pixel)
        self._widget: Any = None
        self.painter: Any = None
        self.probe: Any = None

    @property
    def mask(self) -> Float32[Tensor, "28 28"]:
        """The present mask, 1 where visible."""
        return self._mask if self.painter is None else self.painter.mask

    @property
    def pixel(self) -> tuple[int, int]:
        """The pixel that is explained, (row, column)."""
        return self._pixel if self.probe is None else self.probe.pixel

    @property
    def state(self) -> dict[str, Any]:
        """Mask, as rows of text, and pixel: JSON holds it. Setting it (whole or in part) moves the widget too."""
        return {"mask": rows_of(self.mask), "row": self.pixel[0], "column": self.pixel[1]}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        unknown = state.keys() - self.state.keys()
        if unknown:
            raise ValueError(f"{self.title}: no {sorted(unknown)} in its state; there are {list(self.state)}")
        state = self.state | state
        self._mask, self._pixel = _checked(as_mask(state["mask"]), (state["row"], state["column"]))
        if self._widget is not None:
            self.painter.mask, self.probe.pixel = self._mask, self._pixel

    @property
    def state_line(self) -> str:
        """One line of Python that makes this explorable again in its present state."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.state.items())
        return f"le.ui.explorables.locality_and_inpainting.painted_hole({arguments})"

    def look(self) -> View:
        """Compute the two estimates behind the present mask."""
        return fill(self.mask)

    def picture(self) -> Picture:
        """The estimates, and what the pixel is made of, as a static `Picture`."""
        answer = compose(self.look(), self.title)
        with one_thread():
            told = probed(*_explained(self.mask), sigma=HOLE_SIGMA, k=LISTED, pixel=self.pixel)
        return figures.stack([answer.figure, told.figure], alt=f"{answer.alt} {told.alt}")

    @property
    def widget(self) -> Any:
        """The painter above the probe, made when first asked for; ``None`` where only pictures work."""
        if self._widget is None and backend().name != "static":
            import ipywidgets  # where only pictures work it is not there

            from lemmse.ui import MaskPainter, PixelProbe  # which ones depends on the environment

            painter = MaskPainter(self._mask, image=_truth(HOLE_TRUTH), answer=fill, coarse=fill_coarsely)
            with one_thread():
                probe = PixelProbe(*_explained(self._mask), sigma=HOLE_SIGMA, k=LISTED, pixel=self._pixel)
            painter.observe(self._settled, names="settled")
            self.painter, self.probe, self._widget = painter, probe, ipywidgets.VBox([painter, probe])
        return self._widget

    @one_thread()
    def _settled(self, change: Any) -> None:
        self.probe.show(*_explained(change["new"]), sigma=HOLE_SIGMA)

    def _ipython_display_(self) -> None:
        publish(self.widget, self.picture())

    def __repr__(self) -> str:
        """Its title and the line that restores its state."""
        return f"{self.title} | {self.state_line}"


def _checked(mask: Float32[Tensor, "h w"], pixel: tuple[int, int]) -> tuple[Float32[Tensor, "28 28"], tuple[int, int]]:
    if tuple(mask.shape) != (SIDE, SIDE):
        raise ValueError(f"a mask of this image has {SIDE} rows of {SIDE} pixels; got {tuple(mask.shape)}.")
    if any(not 0 <= at < SIDE for at in pixel):
        raise ValueError(f"row and column of a pixel run from 0 to {SIDE - 1}; got {pixel}.")
    return mask, pixel


class _Fillers(NamedTuple):
    """The two estimators of one mask: B = Id, which does not know the hole, and B = A⁺, which does."""

    agnostic: LocalEquivariantMMSE
    aware: LocalEquivariantMMSE


def _fillers(mask: Float32[Tensor, "28 28"]) -> _Fillers:
    return _fillers_of(tuple(rows_of(mask)))


@lru_cache(maxsize=4)
def _fillers_of(rows: tuple[str, ...]) -> _Fillers:
    images, physics = _images(HOLE_IMAGES), Inpainting(as_mask(rows))
    aware = LocalEquivariantMMSE(images, physics, HOLE_PATCH, PseudoInverse(physics))
    return _Fillers(LocalEquivariantMMSE(images, physics, HOLE_PATCH), aware)


def _masked(mask: Float32[Tensor, "28 28"]) -> Float32[Tensor, "1 1 28 28"]:
    x = _truth(HOLE_TRUTH)
    return Inpainting(mask).A(x) + HOLE_SIGMA * _noise(x)


def _explained(mask: Float32[Tensor, "28 28"]) -> tuple[LocalEquivariantMMSE, Float32[Tensor, "1 1 28 28"]]:
    """Return what the probe explains: the estimator that knows the hole, and the measurement."""
    return _fillers(mask).aware, _masked(mask)


@one_thread()
def fill(mask: Float32[Tensor, "28 28"]) -> View:
    """Measure the image behind a mask and return the estimates with B = Id and with B = A⁺."""
    x, y, (agnostic, aware) = _truth(HOLE_TRUTH), _masked(mask), _fillers(mask)
    without, filled = (estimator(y, sigma=HOLE_SIGMA).mean for estimator in (agnostic, aware))
    hidden, blind = mask == 0, aware.ranks == 0
    return View(
        pictures={"x": x, "y": y, "x_hat, B = Id": without, "x_hat, B = A⁺": filled},
        numbers={"kinds of windows": len(aware.strata), "blind pixels": int(blind.sum())},
        sentence=_filled(hidden, blind, x, without, filled, len(aware.strata)),
    )


@one_thread()
def fill_coarsely(mask: Float32[Tensor, "28 28"]) -> View:
    """Return the estimate with B = Id alone: it sorts no windows, and is there before the brush has moved on."""
    y, estimator = _masked(mask), LocalEquivariantMMSE(_images(HOLE_IMAGES), Inpainting(mask), HOLE_PATCH)
    return View(
        pictures={"x": _truth(HOLE_TRUTH), "y": y, "x_hat, B = Id": estimator(y, sigma=HOLE_SIGMA).mean},
        sentence="B = Id alone for now; B = A⁺ follows when the brush rests.",
    )


def _filled(
    hidden: Bool[Tensor, "h w"],
    blind: Bool[Tensor, "h w"],
    x: Float32[Tensor, "1 1 h w"],
    agnostic: Float32[Tensor, "1 1 h w"],
    aware: Float32[Tensor, "1 1 h w"],
    kinds: int,
) -> str:
    """Say which estimate fills the hole better, what its windows are compared with, and how many see nothing."""
    if not hidden.any():
        psnr = metrics.psnr(aware, x).item()
        return f"Nothing is hidden: A = Id, so B = A⁺ is B = Id, and both denoise the whole image, to {psnr:.1f} dB."
    colour = f"{aware[0, 0][blind].mean():.2f}" if blind.any() else ""
    if hidden.all():
        return (
            "Everything is hidden: no window holds anything of the image, and both estimates are one constant colour, "
            f"{colour}, the mean of all training pixels."
        )
    of_id, of_aware = (metrics.psnr(each[..., hidden], x[..., hidden]).item() for each in (agnostic, aware))
    gain = of_aware - of_id
    verdict = "is as good as B = Id"
    if abs(gain) > EVEN:
        verdict = f"{'wins' if gain > 0 else 'loses'} {abs(gain):.1f} dB {_over(gain)} B = Id"
    count, window = int(blind.sum()), f"{HOLE_PATCH} × {HOLE_PATCH}"
    if count == 0:
        seen = "Every window sees something"
    else:
        pixels = "1 pixel sees nothing in its" if count == 1 else f"{count} pixels see nothing in their"
        seen = f"{pixels} {window} window{'' if count == 1 else 's'}: one constant colour, {colour}"
    return (
        f"In the hole, B = A⁺ {verdict}. It knows what is hidden and compares a window only with those that show the "
        f"same pixels, of {kinds} kinds; B = Id cannot tell hidden from black. {seen}."
    )
