"""The explorable of notebook 05: a shipped network beside the formula that it should compute (S5.2, S11)."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from lemmse import figures, metrics, pretrained
from lemmse.estimators import LocalEquivariantMMSE
from lemmse.figures import Picture
from lemmse.pretrained import Card, Problem
from lemmse.ui import shipped
from lemmse.ui.backend import backend
from lemmse.ui.explorable import Explorable, compose
from lemmse.ui.painting import publish
from lemmse.ui.probing import probed
from lemmse.ui.shipped import IMAGES, SIGMAS
from lemmse.ui.view import Choice, Control, Slider, View

__all__ = ["TheoryVsPractice", "network_and_formula", "theory_vs_practice"]

LISTED = 5  # source windows of the probe

DATA_TEXTS = {"fashion_mnist": "Fashion-MNIST", "photo_crops": "photographs", "photo_crops_64": "larger photographs"}
PRE_INVERSE_TEXTS = {"identity": "B = Id", "pseudo-inverse": "B = A⁺", "tikhonov": "B = Tikhonov"}


# ---- Which networks there are ---------------------------------------------------------------------------------------


class _Key(NamedTuple):
    """What the controls tell networks apart by; joined, the name of a card."""

    data: str
    task: str
    network: str


def _key(card: Card) -> _Key:
    return _Key(card.problem.data, card.problem.task, f"{card.architecture}-p{card.patch_size}")


@lru_cache(maxsize=1)
def _cards() -> dict[_Key, Card]:
    """Return the cards of the grid: local networks whose names tell nothing but data, task and architecture."""
    named = {_key(card): card for card in pretrained.cards() if card.name == "-".join(_key(card))}
    if not named:
        raise ValueError("no local network ships with this package: install it anew, or train some (make train).")
    return named


def _texts(cards: dict[_Key, Card]) -> dict[str, str]:
    """Return what the reader sees for the values of the choices."""
    told = {}
    for key, card in cards.items():
        problem, side = card.problem, card.patch_size
        told[key.data] = DATA_TEXTS.get(key.data, key.data)
        plain = problem.operator == "denoising"
        told[key.task] = problem.operator if plain else f"{problem.operator}, {PRE_INVERSE_TEXTS[problem.pre_inverse]}"
        told[key.network] = f"{card.architecture}, {side} × {side}"
    return told


def _controls() -> dict[str, Control]:
    cards = _cards()
    texts = _texts(cards)

    def choice(label: str, column: int, *, folded: bool = False) -> Choice:
        values = list(dict.fromkeys(key[column] for key in _in_order(cards)))
        return Choice(label, values, values[0], [texts[value] for value in values], folded)

    return {
        "task": choice("operator A, pre-inverse B", 1),
        "network": choice("network, windows", 2),
        "sigma": Slider("noise level σ", SIGMAS, default=0.2),
        "data": choice("images", 0, folded=True),
        "image": Choice("true image", tuple(IMAGES), default="test image 58", folded=True),
    }


def _in_order(cards: dict[_Key, Card]) -> list[_Key]:
    """Return the keys as the choices list them: denoising first, then as operators and pre-inverses are declared."""
    operators, inverses = list(pretrained.OPERATORS), list(pretrained.PRE_INVERSES)

    def rank(key: _Key) -> tuple:
        card = cards[key]
        problem = card.problem
        return operators.index(problem.operator), inverses.index(problem.pre_inverse), card.patch_size, key

    return sorted(cards, key=rank)


# ---- Network and formula --------------------------------------------------------------------------------------------


def network_and_formula(**state: Any) -> Explorable:
    """Return the explorable without its probe: a measurement, and what formula and network make of it.

    ``state`` sets any of ``task``, ``network``, ``sigma``, ``data`` and ``image``. The choices are those of the
    networks that ship; where there is none of some combination, the sentence says so.
    """
    return _explorable("network_and_formula", state, None)


def _explorable(name: str, state: dict[str, Any], then: Callable[..., None] | None) -> Explorable:
    return Explorable(
        compare,
        _controls(),
        title="Does the formula predict the network?",
        name=f"theory_vs_practice.{name}",
        state=state,
        coarse=compare_coarsely,
        then=then,
    )


def _of_the_controls(look: Callable[[Card, float, str], View]) -> Callable[..., View]:
    """Return a look at a network by its card as one by the values of the controls, which may name none that ships."""

    def at(task: str, network: str, sigma: float, data: str, image: str) -> View:
        key = _Key(data, task, network)
        card = _cards().get(key)
        return _nothing(key, sigma, image) if card is None else look(card, sigma, image)

    return at


@_of_the_controls
def compare(card: Card, sigma: float, image: str) -> View:
    """Measure one image and return what formula and network make of it, their difference, and how far all are apart."""
    found = shipped.distances(card, sigma, image)
    both = f"Network ({card.architecture}) and formula ({card.problem.count} images)"
    known = " Both know this image." if IMAGES[image][0] == "train" else ""
    return View(
        pictures=shipped.compared(card, sigma, image),
        numbers={f"PSNR {name} (dB)": value for name, value in found.items()},
        notes={"network − formula": f"RMS {shipped.rms(found['network–formula']):.3f}"},
        sentence=f"{both} {shipped.said(found)}{known}",
    )


@_of_the_controls
def compare_coarsely(card: Card, sigma: float, image: str) -> View:
    """Return the network's answer alone: it takes milliseconds."""
    measured, by_network = shipped.measured(card.problem, sigma, image), shipped.by_network(card, sigma, image)
    return View(
        pictures=shipped.seen(measured) | {"network": by_network},
        numbers={"PSNR network–truth (dB)": metrics.psnr(by_network, measured.x).item()},
        sentence="The network alone for now; the formula, which looks at all training images, follows.",
    )


def _nothing(wanted: _Key, sigma: float, image: str) -> View:
    """Show the measurement and say that there is no such network, and which there are."""
    cards = _cards()
    problem = next(card.problem for key, card in cards.items() if key.task == wanted.task)
    texts = _texts(cards)
    others = [key for key in _in_order(cards) if (key.data, key.task) == (wanted.data, wanted.task)]
    words = f"{texts[wanted.network]}, for {texts[wanted.task]} on {texts[wanted.data]}"
    there = "; ".join(texts[key.network] for key in others)
    instead = f"For these images and this operator: {there}." if there else "Choose other images or another operator."
    seen = shipped.seen(shipped.measured(replace(problem, data=wanted.data), sigma, image))
    return View(seen, {}, f"No such network ships: {words}. {instead}")


# ---- With a probe ---------------------------------------------------------------------------------------------------


def theory_vs_practice(row: int = 6, column: int = 12, **state: Any) -> "TheoryVsPractice":
    """Return the explorable: network and formula, and below them which windows a pixel of the formula is made of.

    ``state`` sets any of ``task``, ``network``, ``sigma``, ``data`` and ``image``; ``row`` and ``column`` are the pixel
    that is explained.
    """
    return TheoryVsPractice(state, (row, column))


class TheoryVsPractice:
    """An `Explorable` (``explorable``) above a `PixelProbe` (``probe``): what is a pixel of the formula made of?

    Shown as a static picture and, where widgets work, as widgets in its place; the probe follows once the controls
    rest. ``state`` is JSON, ``state_line`` the line of Python that makes this again.

    Raises ``ValueError`` for a state that no control has and a pixel outside the image.
    """

    def __init__(self, state: dict[str, Any], pixel: tuple[int, int]) -> None:
        self.explorable = _explorable("theory_vs_practice", state, self._follow)
        self.probe: Any = None
        self._pixel, self._box = _checked(pixel, self.explorable.state["data"]), None

    @property
    def pixel(self) -> tuple[int, int]:
        """The pixel that is explained, (row, column)."""
        return self._pixel if self.probe is None else self.probe.pixel

    @property
    def state(self) -> dict[str, Any]:
        """The controls' values and the pixel; JSON holds it. Setting it (whole or in part) moves the widgets too."""
        return {**self.explorable.state, "row": self.pixel[0], "column": self.pixel[1]}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        state = self.state | state
        pixel = _checked((state.pop("row"), state.pop("column")), state["data"])
        self.explorable.state = state
        self._pixel = pixel
        if self.probe is not None:
            self.probe.pixel = pixel

    @property
    def state_line(self) -> str:
        """One line of Python that makes this again in its present state."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.state.items())
        return f"le.ui.explorables.theory_vs_practice.theory_vs_practice({arguments})"

    def look(self) -> View:
        """Compute the view of the present state."""
        return self.explorable.look()

    def picture(self) -> Picture:
        """The comparison, and what the pixel of the formula is made of, as a static `Picture`."""
        answer, problem = compose(self.look(), self.explorable.title), self._explained()
        if problem is None:
            return answer
        estimator, y, facts = problem
        told = self.probe.picture() if self.probe else probed(estimator, y, **facts, k=LISTED, pixel=self.pixel)
        return figures.stack([answer.figure, told.figure], alt=f"{answer.alt} {told.alt}")

    @property
    def widget(self) -> Any:
        """The controls and the comparison above the probe, made when first asked for; ``None`` without widgets."""
        if self._box is None and backend().name != "static":
            import ipywidgets  # where only pictures work it is not there

            self._box = ipywidgets.VBox([self.explorable.widget])
            self._follow()
        return self._box

    def _follow(self, **state: Any) -> None:
        """Let the probe explain the present estimate; images of another size need another probe."""
        if self._box is None:
            return
        problem = self._explained()
        if problem is None:
            self._box.children = [self.explorable.widget]
            return
        estimator, y, facts = problem
        if self.probe is None or self.probe.x_hat.shape != y.shape[1:]:
            from lemmse.ui import PixelProbe  # which one depends on the environment

            h, w = y.shape[2:]
            pixel = min(self.pixel[0], h - 1), min(self.pixel[1], w - 1)
            self.probe = PixelProbe(estimator, y, **facts, k=LISTED, pixel=pixel)
        elif not self.probe.explains(estimator, y, sigma=facts["sigma"]):
            self.probe.show(estimator, y, **facts)
        self._box.children = [self.explorable.widget, self.probe]

    def _explained(self) -> tuple[LocalEquivariantMMSE, Float[Tensor, "1 c h w"], dict[str, Any]] | None:
        """Return formula, measurement, and σ and posterior, which the probe explains, unless no such network ships."""
        state = self.explorable.state
        card = _cards().get(_Key(state["data"], state["task"], state["network"]))
        if card is None:
            return None
        sigma, image = state["sigma"], state["image"]
        facts = {"sigma": sigma, "posterior": shipped.posterior(card, sigma, image)}
        return shipped.estimator(card), shipped.measured(card.problem, sigma, image).y, facts

    def _ipython_display_(self) -> None:
        publish(self.widget, self.picture())

    def __repr__(self) -> str:
        """Its title and the line that restores its state."""
        return f"{self.explorable.title} | {self.state_line}"


def _checked(pixel: tuple[int, int], data: str) -> tuple[int, int]:
    h, w = Problem(data, 1, "denoising").image_shape[1:]
    if not (0 <= pixel[0] < h and 0 <= pixel[1] < w):
        raise ValueError(f"row and column of a pixel run from 0 to {h - 1} and {w - 1}; got {tuple(pixel)}.")
    return tuple(pixel)
