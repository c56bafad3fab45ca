"""The explorables of notebook 04: a patchwork of windows (S5.4), the price of a pre-inverse (S6), a painted hole."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lemmse import data, figures, metrics, optics
from lemmse.estimators import LocalEquivariantMMSE
from lemmse.explain import Patchwork, amplification_map, discrimination_map, effective_sources
from lemmse.figures import HeatMap, Picture
from lemmse.operators import (
    Adjoint,
    Blur,
    Denoising,
    Inpainting,
    LinearOperator,
    Matrix,
    PseudoInverse,
    Tikhonov,
    center_mask,
    random_mask,
    stripe_mask,
)
from lemmse.reductions import PosteriorMoments, TopImages
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
def _truths() -> Float32[Tensor, "b c h w"]:
    return data.fashion_mnist("test", max(TRUTHS.values()) + 1)[list(TRUTHS.values())]


def _halved(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    return avg_pool2d(images, 2)


def _noise(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 c h w"]:
    """Return one draw of noise with σ = 1, the same for all noise levels and operators."""
    return torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)


def _percent(share: float) -> str:
    return "100%" if share == 1 else f"{share:.0%}" if 0.1 <= share < 0.995 else f"{100 * share:.3g}%"


# ---- A patchwork of windows -----------------------------------------------------------------------------------------

MEMBER = "one it has seen"  # a true image that is in the training set
COPY = 3  # its number there
SIGMAS = (0.001, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0)
PATCH_SIZES = (1, 3, 5, 7, 11, 15)
COUNTS = (10, 20, 40)
MEAN = 0.9  # a share of all windows from which on the effective sources are nearly all of them
BLOCK = 140  # pixels of a drawn map, so that lines fit between its cells

PALETTE = (
    "#4477AA",
    "#EE6677",
    "#228833",
    "#CCBB44",
    "#66CCEE",
    "#AA3377",
)  # Paul Tol's: safe for colour-blind readers
OTHER, NOBODY, HATCH, LINE = "#777777", "#F4F4F4", "#B8B8B8", "#000000"

PATCHWORK_CONTROLS = {
    "sigma": Slider("noise level σ", SIGMAS, default=0.1),
    "patch_size": Slider("patch size p", PATCH_SIZES, default=5),
    "count": Slider("training images D", COUNTS, default=20),
    "image": Choice("true image", (*TRUTHS, MEMBER), default="bag", folded=True),
}


def patchwork_of_windows(sigma: float = 0.1, patch_size: int = 5, count: int = 20, image: str = "bag") -> Explorable:
    """Return the explorable: a denoised image, who owns its pixels, and how many windows each mixes."""
    return Explorable(
        patch,
        PATCHWORK_CONTROLS,
        title="Whose pixels are these?",
        name="locality_and_inpainting.patchwork_of_windows",
        state={"sigma": sigma, "patch_size": patch_size, "count": count, "image": image},
        coarse=patch_coarsely,
    )


@lru_cache
def _scene(image: str) -> Float32[Tensor, "1 c h w"]:
    if image == MEMBER:
        return data.fashion_mnist("train", COPY + 1)[COPY:]
    return _truths()[[list(TRUTHS).index(image)]]


@lru_cache(maxsize=16)
def _denoiser(count: int, patch_size: int, halved: bool) -> LocalEquivariantMMSE:
    images = data.fashion_mnist("train", count)
    return LocalEquivariantMMSE(_halved(images) if halved else images, Denoising(), patch_size)


def patch(sigma: float, patch_size: int, count: int, image: str) -> View:
    """Denoise one image and return it with the map of who owns its pixels, and the owners."""
    x = _scene(image)
    return _patch(_denoiser(count, patch_size, halved=False), x, x + sigma * _noise(x), sigma, "")


def patch_coarsely(sigma: float, patch_size: int, count: int, image: str) -> View:
    """Return the same at half the resolution: means of 2 × 2 pixels, whose noise is half as strong, half the window."""
    x = _scene(image)
    y = x + sigma * _noise(x)
    estimator = _denoiser(count, max(1, patch_size // 4 * 2 + 1), halved=True)
    return _patch(estimator, _halved(x), _halved(y), sigma / 2, "At half the resolution, for now: ")


@one_thread()
def _patch(estimator: LocalEquivariantMMSE, x: Tensor, y: Tensor, sigma: float, before: str) -> View:
    moments = estimator(y, sigma=sigma, reduction=PosteriorMoments())
    count = estimator.images.shape[0]
    best = estimator(y, sigma=sigma, reduction=TopImages(1))
    owner = Patchwork(best.image[..., 0], best.weight[..., 0]).owner[0]
    sources, atoms = effective_sources(moments)[0], count * owner.numel()
    owned = torch.bincount(owner[owner >= 0], minlength=count)
    shown = owned.argsort(descending=True, stable=True)[: len(PALETTE)].tolist()
    pictures = {
        "x": x,
        "y": y,
        "x_hat": moments.mean,
        "who owns each pixel": _map_of_owners(owner, shown),
        "effective sources": HeatMap(sources.log10(), 0, torch.tensor(float(atoms)).log10().item()),
    }
    framed = {d: f"image {d}" for d in shown}
    pictures |= {framed[d]: _framed(estimator.images[d], PALETTE[k]) for k, d in enumerate(shown) if owned[d]}
    pictures |= {framed[d]: estimator.images[d] for d in shown if not owned[d]}
    median = sources.median().item()
    return View(
        pictures=pictures,
        notes={
            "who owns each pixel": f"{int((owned > 0).sum())} owners",
            "effective sources": "powers of ten",
        }
        | {framed[d]: f"owns {int(owned[d])}" if owned[d] else "owns none" for d in shown},
        numbers={
            "pixels with an owner": int(owned.sum()),
            "owners": int((owned > 0).sum()),
            "effective sources (median)": median,
        },
        sentence=before + _whose(owned, owner, sources, x, estimator.patch_size),
    )


def _colour(code: str) -> Float32[Tensor, "3"]:
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _map_of_owners(owner: Int64[Tensor, "h w"], shown: Sequence[int]) -> Float32[Tensor, "3 h2 w2"]:
    """Return the picture of a map of owners: those shown in colour, others grey, no owner hatched, with borders."""
    zoom = BLOCK // owner.shape[0]
    codes = torch.full_like(owner, len(PALETTE)).where(owner >= 0, len(PALETTE) + 1)
    for k, d in enumerate(shown):
        codes[owner == d] = k
    large = codes.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    drawn = torch.stack([_colour(code) for code in (*PALETTE, OTHER, NOBODY)])[large]
    rows, columns = torch.meshgrid(torch.arange(large.shape[0]), torch.arange(large.shape[1]), indexing="ij")
    drawn[(large == len(PALETTE) + 1) & ((rows + columns) % 5 == 0)] = _colour(HATCH)
    owners = owner.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    border = torch.zeros_like(owners, dtype=torch.bool)
    border[1:] |= owners[1:] != owners[:-1]
    border[:, 1:] |= owners[:, 1:] != owners[:, :-1]
    drawn[border] = _colour(LINE)
    return drawn.movedim(2, 0)


def _framed(image: Float[Tensor, "c h w"], code: str) -> Float32[Tensor, "3 h2 w2"]:
    """Return an image in a frame of its colour on the map."""
    zoom = BLOCK // image.shape[1]
    drawn = image.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).expand(3, -1, -1).clone()
    inside = torch.zeros(drawn.shape[1:], dtype=torch.bool)
    inside[6:-6, 6:-6] = True
    return drawn.where(inside, _colour(code)[:, None, None])


def _whose(
    owned: Int64[Tensor, " D"], owner: Int64[Tensor, "h w"], sources: Float[Tensor, "h w"], x: Tensor, p: int
) -> str:
    """Say whether the estimate is a copy, a patchwork or an average, and of how much."""
    total, having, owners = owner.numel(), int(owned.sum()), int((owned > 0).sum())
    atoms, median = len(owned) * total, sources.median().item()
    best, most = int(owned.argmax()), int(owned.max())
    if having == 0:
        if median > MEAN * atoms:
            return (
                f"An average: a typical pixel mixes {_count(median)} of all {atoms} windows, nearly the mean of the "
                "training set, whatever was measured."
            )
        return f"A mixture: no image owns a pixel; a typical one mixes {_count(median)} of {atoms} {p} × {p} windows."
    free = owner < 0
    if owners == 1:
        whole = "A copy" if having == total else "One owner"
        what = f"{whole}: image {best} holds more than half of the weight in {having} of {total} pixels"
    else:
        whole = f"A patchwork: {owners} of {len(owned)} images own {having} of {total} pixels"
        what = f"{whole}, image {best} the most, {most}"
    if having == total:
        return f"{what}."
    black = int((x[0].sum(0)[free] == 0).sum())
    few = int(free.sum())
    rest = (
        f"{few} pixels have no owner and mix {_count(sources[free].median().item())} windows each (median); {black} "
        f"of them are black in x, as many training pixels are"
    )
    return f"{what}. {rest}."


def _count(value: float) -> str:
    return f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


# ---- The price of a pre-inverse -------------------------------------------------------------------------------------

HALF = SIDE // 2
PRICE_IMAGES = 50
PRICE_SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
WEIGHT = 0.01  # of Tikhonov
UNIFORM = 1e-6  # above rounding, below all amplifications that are not 1


def _shade() -> Matrix:
    light = torch.linspace(1.0, 0.2, HALF, dtype=torch.float64).expand(HALF, HALF)
    return Matrix(torch.diag(light.flatten()), (1, HALF, HALF), (1, HALF, HALF))


OPERATORS = {
    "weak blur": Blur(optics.gaussian_psf(0.6, size=5)),
    "strong blur": Blur(optics.gaussian_psf(1.0, size=9)),
    "motion blur": Blur(torch.full((1, 5), 0.2, dtype=torch.float64)),
    "shade from left to right": _shade(),
    "hole": Inpainting(center_mask(HALF, HALF, side=3)),
    "stripes": Inpainting(stripe_mask(HALF, HALF, period=4)),
    "random mask": Inpainting(random_mask(HALF, HALF, keep=0.6)),
}
PRE_INVERSES = ("Id", "Aᵀ", "A⁺", "Tikhonov")

PRICE_CONTROLS = {
    "operator": Choice("operator A", tuple(OPERATORS), default="motion blur"),
    "pre_inverse": Choice("pre-inverse B", PRE_INVERSES, default="A⁺"),
    "sigma": Slider("noise level σ", PRICE_SIGMAS, default=0.1),
    "image": Choice("true image", tuple(TRUTHS), default="boot", folded=True),
    "patch_size": Choice("patch size p", (3, 5, 7), default=3, folded=True),
}


def price_of_a_pre_inverse(
    operator: str = "motion blur",
    pre_inverse: str = "A⁺",
    sigma: float = 0.1,
    image: str = "boot",
    patch_size: int = 3,
) -> Explorable:
    """Return the explorable: one measurement, its estimates with and without a pre-inverse, and why one is better."""
    state = {"operator": operator, "pre_inverse": pre_inverse, "sigma": sigma}
    return Explorable(
        price,
        PRICE_CONTROLS,
        title="What does a pre-inverse cost?",
        name="locality_and_inpainting.price_of_a_pre_inverse",
        state=state | {"image": image, "patch_size": patch_size},
    )


def inverse_of(operator: str, pre_inverse: str) -> LinearOperator | None:
    """Return the pre-inverse B of a name, for the operator A of a name; ``None`` for B = Id."""
    A = OPERATORS[operator]
    named: dict[str, Callable[[], LinearOperator | None]] = {
        "Id": lambda: None,
        "Aᵀ": lambda: Adjoint(A),
        "A⁺": lambda: PseudoInverse(A),
        "Tikhonov": lambda: Tikhonov(A, WEIGHT),
    }
    return named[pre_inverse]()


class _Prepared(NamedTuple):
    """What neither noise nor image changes."""

    estimator: LocalEquivariantMMSE
    amplification: Float64[Tensor, "h w"]


@lru_cache(maxsize=48)
def _prepared(operator: str, pre_inverse: str, patch_size: int) -> _Prepared:
    images = _halved(data.fashion_mnist("train", PRICE_IMAGES).double())
    estimator = LocalEquivariantMMSE(images, OPERATORS[operator], patch_size, inverse_of(operator, pre_inverse))
    return _Prepared(estimator, amplification_map(estimator))


class _Answer(NamedTuple):
    """An estimate, its PSNR with and without the noise in y, and the share of windows that look alike to each pixel."""

    x_hat: Float64[Tensor, "1 c h w"]
    psnr: float
    psnr_without_noise: float
    confusable: Float64[Tensor, "h w"]


def _answer(estimator: LocalEquivariantMMSE, x: Tensor, y: Tensor, sigma: float) -> _Answer:
    noisy, clean = estimator(torch.cat([y, estimator.physics.A(x)]), sigma=sigma).mean.split(1)
    psnrs = metrics.psnr(torch.cat([noisy, clean]), x).tolist()
    return _Answer(noisy, *psnrs, discrimination_map(estimator, x, sigma=sigma).confusable[0])


@one_thread()
def price(operator: str, pre_inverse: str, sigma: float, image: str, patch_size: int) -> View:
    """Measure one image and return the estimates with B and with B = Id, and the two parts of η for both."""
    x = _halved(_truths()[[list(TRUTHS).index(image)]].double())
    plain, chosen = (_prepared(operator, name, patch_size) for name in ("Id", pre_inverse))
    y = plain.estimator.physics.A(x) + sigma * _noise(x)
    of_id = _answer(plain.estimator, x, y, sigma)
    of_b = of_id if pre_inverse == "Id" else _answer(chosen.estimator, x, y, sigma)
    amplified = chosen.amplification
    pictures: dict[str, Any] = {"x": x, "y": y}
    if pre_inverse != "Id":
        pictures |= {"B y": chosen.estimator.pre_inverted(y)}
    pictures |= {"x_hat, B = Id": of_id.x_hat}
    if pre_inverse != "Id":
        pictures |= {f"x_hat, B = {pre_inverse}": of_b.x_hat}
    pictures |= {"alike, B = Id": HeatMap(of_id.confusable, 0, 1)}
    if pre_inverse != "Id":
        pictures |= {f"alike, B = {pre_inverse}": HeatMap(of_b.confusable, 0, 1)}
    pictures |= {
        "amplification": HeatMap(amplified, min(1.0, amplified.min().item()), max(2.0, amplified.max().item()))
    }
    numbers = {"alike, B = Id": of_id.confusable.mean().item()}
    if pre_inverse != "Id":
        signal = of_b.psnr_without_noise - of_id.psnr_without_noise
        numbers |= {
            "alike, B": of_b.confusable.mean().item(),
            "gain (dB)": of_b.psnr - of_id.psnr,
            "by discrimination": signal,
            "by noise": of_b.psnr - of_id.psnr - signal,
        }
    return View(pictures=pictures, numbers=numbers, sentence=_price(pre_inverse, of_id, of_b, chosen))


def _price(pre_inverse: str, of_id: _Answer, of_b: _Answer, chosen: _Prepared) -> str:
    if pre_inverse == "Id":
        return (
            f"With B = Id, at {of_id.psnr:.1f} dB, {_percent(of_id.confusable.mean().item())} of all windows look "
            "alike to that of a typical pixel. Choose another B to see what it changes."
        )
    gain, signal = of_b.psnr - of_id.psnr, of_b.psnr_without_noise - of_id.psnr_without_noise
    verdict = (
        f"wins {gain:.1f} dB over" if gain > EVEN else f"loses {-gain:.1f} dB against" if gain < -EVEN else "equals"
    )
    part = "discrimination" if abs(signal) >= abs(gain - signal) else "noise"
    mean, peak = chosen.amplification.mean().item(), chosen.amplification.max().item()
    if (chosen.amplification - 1).abs().max() < UNIFORM:
        noise = "The noise is amplified nowhere"
    else:
        noise = f"The noise is amplified {mean:.1f} times, up to {peak:.1f}"
    return (
        f"B = {pre_inverse} {verdict} B = Id; {part} decides: without noise in y the difference would be "
        f"{signal:+.1f} dB. {_percent(of_b.confusable.mean().item())} of the windows look alike, with B = Id "
        f"{_percent(of_id.confusable.mean().item())}. {noise}."
    )


# ---- A painted hole -------------------------------------------------------------------------------------------------

HOLE_IMAGES = 20
HOLE_PATCH = 5
HOLE_SIGMA = 0.1
LISTED = 5  # source windows in the probe


def painted_hole(mask: Sequence[str] | None = None, row: int = 14, column: int = 9) -> "PaintedHole":
    """Return the explorable: paint a hole, see it filled with B = Id and B = A⁺, and ask what a pixel is made of."""
    start = center_mask(SIDE, SIDE, side=9) if mask is None else as_mask(mask)
    return PaintedHole(start, (row, column))


class PaintedHole:
    """A test image with a hole that the reader paints, the two estimates that follow, and a probe into the second."""

    title = "Paint the hole"

    def __init__(self, mask: Float32[Tensor, "h w"], pixel: tuple[int, int]) -> None:
        self._mask, self._pixel = mask, pixel
        self._widget: Any = None

    @property
    def state(self) -> dict[str, Any]:
        """The mask, as rows of text, and the pixel that is explained; JSON holds it. Setting it moves the widget."""
        if self._widget is not None:
            self._mask, self._pixel = self.painter.mask, self.probe.pixel
        return {"mask": rows_of(self._mask), "row": self._pixel[0], "column": self._pixel[1]}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        state = self.state | state
        self._mask, self._pixel = as_mask(state["mask"]), (state["row"], state["column"])
        if self._widget is not None:
            self.painter.mask, self.probe.pixel = self._mask, self._pixel

    @property
    def state_line(self) -> str:
        """One line of Python that makes this explorable again in its present state."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.state.items())
        return f"le.ui.explorables.locality_and_inpainting.painted_hole({arguments})"

    def look(self) -> View:
        """Compute the two estimates for the present mask."""
        return fill(as_mask(self.state["mask"]))

    def picture(self) -> Picture:
        """Return the estimates and the ingredients of the pixel as one static `Picture`."""
        view, y = self.look(), _measured(as_mask(self.state["mask"]))
        above = compose(view, self.title)
        estimator = _fillers(tuple(self.state["mask"]))[1]
        below = probed(estimator, y, sigma=HOLE_SIGMA, k=LISTED, pixel=self._pixel)
        return figures.stack([above.figure, below.figure], alt=f"{above.alt} {below.alt}")

    @property
    def widget(self) -> Any:
        """The painter above the probe; ``None`` where only pictures work."""
        if self._widget is None and backend().name != "static":
            import ipywidgets  # not there where only pictures work

            from lemmse import ui

            self.painter = ui.MaskPainter(self._mask, image=_hole_truth(), answer=fill, coarse=fill_coarsely)
            self.probe = ui.PixelProbe(*self._explained(self._mask), sigma=HOLE_SIGMA, k=LISTED, pixel=self._pixel)
            self.painter.observe(self._settled, names="settled")
            self._widget = ipywidgets.VBox([self.painter, self.probe])
        return self._widget

    def _explained(self, mask: Float32[Tensor, "h w"]) -> tuple[LocalEquivariantMMSE, Tensor]:
        return _fillers(tuple(rows_of(mask)))[1], _measured(mask)

    @one_thread()
    def _settled(self, change: Any) -> None:
        self.probe.show(*self._explained(change["new"]), sigma=HOLE_SIGMA)

    def _ipython_display_(self) -> None:
        if self.widget is None:
            from IPython.display import display

            display(self.picture())
        else:
            publish(self.widget, self.picture())

    def __repr__(self) -> str:
        """Its title and the line that restores its state."""
        return f"{self.title} | {self.state_line}"


def _hole_truth() -> Float32[Tensor, "1 c h w"]:
    return _truths()[[list(TRUTHS).index("boot")]]


def _measured(mask: Float32[Tensor, "h w"]) -> Float32[Tensor, "1 c h w"]:
    x = _hole_truth()
    return mask * x + HOLE_SIGMA * _noise(x)


@lru_cache(maxsize=8)
def _fillers(rows: tuple[str, ...]) -> tuple[LocalEquivariantMMSE, LocalEquivariantMMSE]:
    images, physics = data.fashion_mnist("train", HOLE_IMAGES), Inpainting(as_mask(list(rows)))
    return (
        LocalEquivariantMMSE(images, physics, HOLE_PATCH),
        LocalEquivariantMMSE(images, physics, HOLE_PATCH, PseudoInverse(physics)),
    )


@one_thread()
def fill(mask: Float32[Tensor, "h w"]) -> View:
    """Return the estimates behind a mask with B = Id and with B = A⁺."""
    x, y = _hole_truth(), _measured(mask)
    agnostic, aware = _fillers(tuple(rows_of(mask)))
    without, filled = agnostic(y, sigma=HOLE_SIGMA).mean, aware(y, sigma=HOLE_SIGMA).mean
    hidden, blind = mask == 0, aware.ranks == 0
    return View(
        pictures={"x": x, "y": y, "x_hat, B = Id": without, "x_hat, B = A⁺": filled},
        numbers={"blind pixels": int(blind.sum()), "patterns": len(aware.strata)},
        sentence=_filled(hidden, blind, x, without, filled, len(aware.strata)),
    )


@one_thread()
def fill_coarsely(mask: Float32[Tensor, "h w"]) -> View:
    """Return the estimate with B = Id alone, which is there before a brush has moved on."""
    x, y = _hole_truth(), _measured(mask)
    physics = Inpainting(mask)
    without = LocalEquivariantMMSE(data.fashion_mnist("train", HOLE_IMAGES), physics, HOLE_PATCH)(y, sigma=HOLE_SIGMA)
    return View(
        pictures={"x": x, "y": y, "x_hat, B = Id": without.mean},
        sentence="With B = Id for now; B = A⁺ follows once the brush rests.",
    )


def _filled(
    hidden: Bool[Tensor, "h w"], blind: Bool[Tensor, "h w"], x: Tensor, without: Tensor, filled: Tensor, patterns: int
) -> str:
    """Say what each estimate makes of the hole, and how many pixels see nothing."""
    p = HOLE_PATCH
    if not hidden.any():
        psnr = metrics.psnr(filled, x).item()
        return f"Nothing is hidden, so A = Id and B = A⁺ is B = Id: both denoise, at {psnr:.1f} dB."
    colour = f"{filled[0, 0][blind].mean():.2f}" if blind.any() else ""
    if hidden.all():
        return (
            "Everything is hidden: no window says anything, and both estimates are one constant colour, the mean of "
            f"all training pixels, {colour}."
        )
    of_id, of_b = (metrics.psnr(each[..., hidden], x[..., hidden]).item() for each in (without, filled))
    gain = of_b - of_id
    verdict = (
        f"{gain:.1f} dB nearer to the truth than"
        if gain > EVEN
        else f"{-gain:.1f} dB further from the truth than"
        if gain < -EVEN
        else "as near to the truth as"
    )
    seen = f"{int(blind.sum())} pixels see nothing in their {p} × {p} windows and share one colour, {colour}."
    return (
        f"In the hole, the estimate with B = A⁺ is {verdict} that with B = Id: windows show {patterns} patterns of "
        f"visible pixels, and each is compared with its like. {seen if blind.any() else 'Every window sees something.'}"
    )
