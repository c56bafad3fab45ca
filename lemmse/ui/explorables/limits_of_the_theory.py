"""The explorable of notebook 06: how match and errors change with the data and the window (S11, E3)."""

from functools import lru_cache
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lemmse import figures, metrics, pretrained
from lemmse.pretrained import Card, Problem
from lemmse.ui import shipped
from lemmse.ui.explorable import Explorable
from lemmse.ui.shipped import IMAGES, SIGMAS
from lemmse.ui.view import Choice, Slider, View

__all__ = ["curves"]

BESIDE = Problem("fashion_mnist", 1000, "denoising")
ARCHITECTURE, SIDE = "PatchMLP", 5

DECIBELS = 10, 48  # the same axis at all noise levels

LINES = {
    "network to formula": (lambda card, s: card.psnr["test"][s], figures.COLOURS[0], "o-"),
    "network to truth": (lambda card, s: card.psnr_to_truth["test"]["network"][s], figures.COLOURS[1], "s--"),
    "formula to truth": (lambda card, s: card.psnr_to_truth["test"]["formula"][s], figures.COLOURS[2], "^:"),
}
"""What is drawn, in dB: of a card at a noise level; colour, marker and line."""


class _Point(NamedTuple):
    """Where a network stands on the two curves, which meet."""

    count: int
    side: int

    @property
    def text(self) -> str:
        """What the reader sees."""
        return f"D = {self.count}, {self.side} × {self.side}"


@lru_cache(maxsize=1)
def _points() -> dict[_Point, Card]:
    """Return the networks of both curves: alike but for the number of their images, or the side of their windows."""
    found = {}
    for card in pretrained.cards():
        alike = (card.problem.data, card.problem.task, card.architecture) == (BESIDE.data, BESIDE.task, ARCHITECTURE)
        point = _Point(card.problem.count, card.patch_size or 0)
        on_a_curve = point.side == SIDE or point.count == BESIDE.count
        if alike and on_a_curve and card.psnr_to_truth and "seed" not in card.name:
            found[point] = card
    if _Point(BESIDE.count, SIDE) not in found:
        raise ValueError("the networks of the curves do not ship with this package: install it anew (or make train).")
    return dict(sorted(found.items()))


def curves(point: str | None = None, sigma: float = 0.2, image: str = "test image 58") -> Explorable:
    """Return the explorable: match and errors by number of images and side of windows, and the pictures of a point.

    ``point`` is the text of one, such as ``"D = 1000, 5 × 5"``.
    """
    texts = [point.text for point in _points()]
    middle = _Point(BESIDE.count, SIDE).text
    return Explorable(
        look,
        {
            "point": Choice("images D, windows", texts, middle),
            "sigma": Slider("noise level σ", SIGMAS, default=0.2),
            "image": Choice("true image", tuple(IMAGES), default="test image 58", folded=True),
        },
        title="Where does the match end?",
        name="limits_of_the_theory.curves",
        state={"point": point or middle, "sigma": sigma, "image": image},
        coarse=look_coarsely,
    )


def look(point: str, sigma: float, image: str) -> View:
    """Return the curves at a noise level, and what the network and the formula of one point make of an image."""
    card = _card(point)
    found = shipped.distances(card, sigma, image)
    return View(
        pictures=shipped.compared(card, sigma, image),
        figure=drawn(point, sigma),
        numbers={f"PSNR {name} (dB)": value for name, value in found.items()},
        notes={"network − formula": f"RMS {shipped.rms(found['network–formula']):.3f}"},
        sentence=f"{_trends(sigma)} On this image, network and formula of {point} {shipped.said(found)}",
    )


def look_coarsely(point: str, sigma: float, image: str) -> View:
    """Return the curves, and the network's answer alone."""
    card = _card(point)
    measured, by_network = shipped.measured(card.problem, sigma, image), shipped.by_network(card, sigma, image)
    return View(
        pictures=shipped.seen(measured) | {"network": by_network},
        figure=drawn(point, sigma),
        numbers={"PSNR network–truth (dB)": metrics.psnr(by_network, measured.x).item()},
        sentence=f"{_trends(sigma)} The formula's pictures follow.",
    )


def _card(text: str) -> Card:
    return next(card for point, card in _points().items() if point.text == text)


def _by_count() -> dict[_Point, Card]:
    return {point: card for point, card in _points().items() if point.side == SIDE}


def _by_side() -> dict[_Point, Card]:
    return {point: card for point, card in _points().items() if point.count == BESIDE.count}


def drawn(point: str, sigma: float) -> Figure:
    """Draw both families of curves at a noise level, means over 20 test images; a ring marks the point."""
    drawing = figures.figure(7.4, 2.9)
    left, right = drawing.subplots(1, 2, sharey=True)
    _draw(left, {p.count: card for p, card in _by_count().items()}, sigma, _card(point))
    counts = [point.count for point in _by_count()]
    left.set(xscale="log", xlabel=f"training images D (windows {SIDE} × {SIDE})", ylabel="PSNR, dB", ylim=DECIBELS)
    left.set_xticks(counts, [str(count) for count in counts])
    left.minorticks_off()
    _draw(right, {p.side: card for p, card in _by_side().items()}, sigma, _card(point))
    right.set(xlabel=f"side of windows p (D = {BESIDE.count})", xticks=[p.side for p in _by_side()])
    left.legend(fontsize=8)
    return drawing


def _draw(axes: Axes, cards: dict[int, Card], sigma: float, chosen: Card) -> None:
    for name, (decibels, colour, line) in LINES.items():
        heights = {at: decibels(card, f"{sigma:g}") for at, card in cards.items()}
        axes.plot(list(heights), list(heights.values()), line, color=colour, label=name)
        for at, card in cards.items():
            if card.name == chosen.name:
                axes.plot(at, heights[at], "o", markersize=13, markerfacecolor="none", markeredgecolor=colour)


def _trends(sigma: float) -> str:
    """Say what the curves do between their ends."""
    s = f"{sigma:g}"
    told = []
    for cards, more, name in (
        (_by_count(), "more images", lambda point: f"D = {point.count}"),
        (_by_side(), "larger windows", lambda point: f"p = {point.side}"),
    ):
        matches = [(card.psnr["test"][s], name(point)) for point, card in cards.items()]
        (low, first), (high, last) = matches[0], matches[-1]
        told.append(f"from {low:.1f} dB at {first} to {high:.1f} dB at {last} with {more}")
    return f"At σ = {s} the match goes {told[0]}, and {told[1]} (means over 20 test images)."
