"""What one pixel of a local estimate is made of: the windows, weights and colours behind it. No front end."""

import threading
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
import traitlets
from jaxtyping import Float, Float64, Int64
from matplotlib.patches import Rectangle
from torch import Tensor

from lemmse import figures
from lemmse.estimators import LocalEquivariantMMSE
from lemmse.explain import contributions
from lemmse.reductions import Posterior, Sources, TopSources
from lemmse.ui.explorable import compose
from lemmse.ui.painting import publish
from lemmse.ui.traits import AbstractTraits
from lemmse.ui.view import View

__all__ = ["Ingredients", "Probing", "as_shown", "colour_text", "percent_text", "probed"]

TITLE = "What is this pixel made of?"
SMALL = 5e-4  # a share of the weight that one decimal of a percentage no longer shows


@dataclass(frozen=True)
class Ingredients:
    """What the heaviest sources give to one output pixel, as ``explain.contributions`` finds it, ready to be shown.

    ``mean`` (c,) is the pixel in row ``row`` and column ``column``; ``image``, ``source`` (row, column) and ``weight``
    name the sources, heaviest first; ``remainder`` is the weight of all others. ``colour`` (k, c) are the sources'
    centre pixels, ``contribution`` weight · colour, ``running_sum`` its sums, ``remainder_share`` what all others give.
    ``window`` (c, p, p) is what the estimator sees, (B y)[ω_n']; ``measured`` (k, c, p, p) what it is compared with,
    (B A x_d)[ω_n]; ``stored`` the same windows of the images themselves, x_d[ω_n]. ``rank`` counts the independent
    numbers that the window holds, and ``image_pixels`` (k, c, h, w) are the images of the sources.
    """

    row: int
    column: int
    mean: Float64[Tensor, " c"]
    image: Int64[Tensor, " k"]
    source: Int64[Tensor, "k 2"]
    weight: Float64[Tensor, " k"]
    remainder: float
    colour: Float[Tensor, "k c"]
    contribution: Float64[Tensor, "k c"]
    running_sum: Float64[Tensor, "k c"]
    remainder_share: Float64[Tensor, " c"]
    window: Float[Tensor, "c_v p p"]
    measured: Float[Tensor, "k c_v p p"]
    stored: Float[Tensor, "k c p p"]
    image_pixels: Float[Tensor, "k c h w"]
    rank: int

    @property
    def sentence(self) -> str:
        """Return the same in words."""
        size, side = self.window.numel(), self.window.shape[-1]
        k, listed = len(self.weight), float(self.weight.sum())
        pixel = f"The pixel in row {self.row}, column {self.column} of x̂ is {colour_text(self.mean)}."
        if self.rank == 0:
            return (
                f"{pixel} Nothing in its {side} × {side} window was measured, so all windows as blind as this one "
                "weigh the same, and the pixel is the mean of their centres."
            )
        held = f"{size} measured numbers" if self.rank == size else f"{self.rank} independent numbers instead of {size}"
        best = (
            f"The window most like it lies around row {int(self.source[0, 0])}, column {int(self.source[0, 1])} of "
            f"training image {int(self.image[0])} and has {percent_text(float(self.weight[0]))} of the weight"
        )
        if k == 1:
            together = f" and gives {colour_text(self.contribution[0])}"
        else:
            together = (
                f"; the {k} best have {percent_text(listed)} together and give {colour_text(self.running_sum[-1])}"
            )
        rest = "" if self.remainder < SMALL else f"; all others give the other {colour_text(self.remainder_share)}"
        return f"{pixel} Its {side} × {side} window holds {held}. {best}{together}{rest}."


class Probing(AbstractTraits):
    """One output pixel, chosen by the reader, and its ingredients: what each front end of `PixelProbe` shares.

    ``pixel`` is a trait, (row, column): ``observe(function, names="pixel")`` follows it, and setting it moves the
    probe. ``state`` is the same as JSON.
    """

    pixel = traitlets.Any((0, 0))

    def _begin(
        self,
        estimator: LocalEquivariantMMSE,
        y: Float[Tensor, "1 ..."],
        sigma: float,
        k: int,
        pixel: tuple[int, int] | None,
        posterior: Posterior | None,
    ) -> None:
        """Compute the estimate once; the sources of a pixel follow when it is asked for."""
        self._lock = threading.RLock()  # JupyterLab delivers requests in a thread of their own, beside the cells
        self._estimate(estimator, y, sigma, k, posterior)
        h, w = self.x_hat.shape[-2:]
        self.pixel = (h // 2, w // 2) if pixel is None else pixel
        self.observe(lambda change: self._follow(), names="pixel")

    def _estimate(
        self, estimator: LocalEquivariantMMSE, y: Tensor, sigma: float, k: int, posterior: Posterior | None
    ) -> None:
        if not isinstance(estimator, LocalEquivariantMMSE):
            raise TypeError(
                "PixelProbe explains the pixels of a LocalEquivariantMMSE, which sees one window per pixel; "
                f"got {type(estimator).__name__}."
            )
        if not isinstance(y, Tensor) or len(y) != 1:
            came = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"PixelProbe explains one estimate: y is one measurement, (1, ...); got {came}.")
        posterior = estimator(y, sigma=sigma) if posterior is None else posterior
        self.estimator, self.y, self.sigma, self.k = estimator, y, sigma, k
        self.x_hat, self.v = posterior.mean[0], estimator.pre_inverted(y)[0]
        self._posterior = replace(posterior, mean=posterior.mean.double())  # sums of many keep their digits
        self._sources: dict[tuple[int, int], Sources] = {}

    def show(
        self,
        estimator: LocalEquivariantMMSE,
        y: Float[Tensor, "1 ..."],
        *,
        sigma: float,
        posterior: Posterior | None = None,
    ) -> None:
        """Explain another estimate of the same size, such as that for another mask, at the pixel of the present one.

        ``posterior`` is the answer of ``estimator`` to ``y`` where it is known: then it is not computed again. Raises
        ``ValueError`` for an estimate of another size, and what the constructor raises.
        """
        h, w = self.x_hat.shape[-2:]
        if tuple(estimator.images.shape[2:]) != (h, w):
            raise ValueError(f"show: this probe's has {h} × {w} pixels; got {tuple(estimator.images.shape[2:])}.")
        with self._lock:
            self._estimate(estimator, y, sigma, self.k, posterior)
            self._restart()

    def explains(self, estimator: LocalEquivariantMMSE, y: Float[Tensor, "1 ..."], *, sigma: float) -> bool:
        """Return whether this is the estimate that is explained now."""
        return self.estimator is estimator and self.sigma == sigma and torch.equal(self.y, y)

    def _restart(self) -> None:
        """Show another estimate."""
        self._follow()

    @abstractmethod
    def _follow(self) -> None:
        """Show the present pixel; each front end does it in its own way."""

    @traitlets.validate("pixel")
    def _checked(self, proposal: Any) -> tuple[int, int]:
        return self._place(proposal["value"])

    def _place(self, pixel: Any) -> tuple[int, int]:
        h, w = self.x_hat.shape[-2:]
        try:
            row, column = (int(number) for number in pixel)
        except (TypeError, ValueError):
            raise ValueError(f"pixel: a row and a column, such as (3, 5); got {pixel!r}.") from None
        if not (0 <= row < h and 0 <= column < w):
            raise ValueError(f"pixel: rows run from 0 to {h - 1}, columns from 0 to {w - 1}; got {(row, column)}.")
        return row, column

    @property
    def state(self) -> dict[str, int]:
        """The chosen pixel as JSON. Setting it moves the probe."""
        return {"row": self.pixel[0], "column": self.pixel[1]}

    @state.setter
    def state(self, state: dict[str, int]) -> None:
        if set(state) != {"row", "column"}:
            raise ValueError(f"the state of a probe is {{'row': ..., 'column': ...}}; got the keys {sorted(state)}.")
        self.pixel = (state["row"], state["column"])

    def explain(self, pixel: tuple[int, int] | None = None) -> Ingredients:
        """Look up what a pixel (``None``: the chosen one) is made of and return its `Ingredients`.

        The weights are those of the estimator's own ``TopSources``, found when a pixel is first asked for. Raises
        ``ValueError`` for a pixel outside the image. Source: S5.2.
        """
        with self._lock:
            return self._explain(*(self.pixel if pixel is None else self._place(pixel)))

    def _explain(self, row: int, column: int) -> Ingredients:
        found = contributions(self.estimator, self.y, self._posterior, self._sources_of(row, column), (row, column))
        listed, w = found.image[0] >= 0, self.x_hat.shape[-1]
        image, source = found.image[0, listed], found.pixel[0, listed]
        return Ingredients(
            row=row,
            column=column,
            mean=found.mean[0],
            image=image,
            source=torch.stack([source // w, source % w], 1),
            weight=found.weight[0, listed],
            remainder=float(found.remainder[0]),
            colour=found.colour[0, listed],
            contribution=found.contribution[0, listed],
            running_sum=found.running_sum[0, listed],
            remainder_share=found.remainder_share[0],
            window=found.window[0],
            measured=found.measured[0, listed],
            stored=found.stored[0, listed],
            image_pixels=torch.cat([self.estimator.images[d : d + 1] for d in image.tolist()]),
            rank=int(self.estimator.ranks[row, column]),
        )

    def _sources_of(self, row: int, column: int) -> Sources:
        """Return the sources of a pixel, found once."""
        if (row, column) not in self._sources:
            asked = {"sigma": self.sigma, "reduction": TopSources(self.k)}
            found = self.estimator.at_pixels(self.y, [(row, column)], **asked)
            weight, remainder = found.weight.double(), found.remainder.double()
            self._sources[row, column] = replace(found, weight=weight, remainder=remainder)
        return self._sources[row, column]

    @property
    def wraps(self) -> bool:
        """Whether windows go on at the other side of the image."""
        return self.estimator.boundary == "circular"

    @property
    def name_of_v(self) -> str:
        """What the windows are cut from: the measurement, or B of it."""
        return "y" if self.estimator.pre_inverse is None else "B y"

    def look(self) -> View:
        """Draw the ingredients of the chosen pixel and return them as a `View`, in one figure."""
        found = self.explain()
        k, side = len(found.weight), self.estimator.patch_size
        figure = figures.figure(max(3, k) * 1.9, 4.4)
        axes = figure.subplots(2, max(3, k), squeeze=False)
        for plate in axes.flat:
            plate.set_axis_off()
        here = [(found.row, found.column)]
        _draw(axes[0, 0], self.v, self.name_of_v, self._boxes(here, side))
        _draw(axes[0, 1], self.x_hat, f"x̂: {colour_text(found.mean)}", self._boxes(here, 1))
        _draw(axes[0, 2], found.window, f"window of {self.name_of_v}", [])
        for j in range(k):
            note = f"{percent_text(float(found.weight[j]))}: image {int(found.image[j])}"
            _draw(axes[1, j], found.image_pixels[j], note, self._boxes([tuple(found.source[j].tolist())], side))
        numbers = {"weight listed": float(found.weight.sum()), "weight of all others": found.remainder}
        return View({}, numbers, found.sentence, figure)

    def _boxes(self, places: list[tuple[int, int]], side: int) -> list[tuple[float, float, int]]:
        (h, w), half = self.x_hat.shape[-2:], side // 2
        over = (-1, 0, 1) if self.wraps else (0,)
        return [
            (column - half + b * w - 0.5, row - half + a * h - 0.5, side)
            for row, column in places
            for a in over
            for b in over
        ]

    def picture(self) -> figures.Picture:
        """Return the present view as a static `Picture`, whose text is its sentence."""
        return compose(self.look(), TITLE)

    def _ipython_display_(self) -> None:
        publish(self, self.picture())


def _draw(plate: Any, image: Tensor, title: str, boxes: list[tuple[float, float, int]]) -> None:
    plate.imshow(as_shown(image), interpolation="nearest")
    plate.set_title(title, fontsize=8.5)
    h, w = image.shape[-2:]
    plate.set_xlim(-0.5, w - 0.5)
    plate.set_ylim(h - 0.5, -0.5)
    for left, top, side in boxes:
        for colour, width in (("black", 3.0), ("white", 1.4)):  # two tones: seen on any picture
            plate.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=width))


def as_shown(image: Float[Tensor, "c h w"]) -> Any:
    """Return the RGBA bytes (h, w, 4) of an image, in grey where its channels are not those of a colour."""
    return figures.rgba(image if image.shape[0] in (1, 3) else image.mean(0))


def colour_text(colour: Float[Tensor, " c"]) -> str:
    """Return a grey value or a colour in words, to three decimals."""
    values = [f"{value:.3f}".replace("-0.000", "0.000").replace("-", "−") for value in colour.tolist()]
    return values[0] if len(values) == 1 else f"({', '.join(values)})"


def percent_text(share: float) -> str:
    """Return a share of the weight as a percentage; neither nothing nor everything is said of what is only close."""
    if 0 < share < SMALL:
        return "less than 0.1%"
    if 1 - SMALL < share < 1 - 1e-6:
        return "more than 99.9%"
    return f"{share:.1%}"


class _Still(Probing):
    """A probe that shows nothing: the source of a static picture."""

    def __init__(
        self,
        estimator: LocalEquivariantMMSE,
        y: Tensor,
        sigma: float,
        k: int,
        pixel: tuple[int, int] | None,
        posterior: Posterior | None,
    ) -> None:
        super().__init__()
        self._begin(estimator, y, sigma, k, pixel, posterior)

    def _follow(self) -> None:
        """Show nothing."""


def probed(
    estimator: LocalEquivariantMMSE,
    y: Float[Tensor, "1 ..."],
    *,
    sigma: float,
    k: int = 5,
    pixel: tuple[int, int] | None = None,
    posterior: Posterior | None = None,
) -> figures.Picture:
    """Return the static `Picture` that stands for a `PixelProbe` where no widget works."""
    return _Still(estimator, y, sigma, k, pixel, posterior).picture()
