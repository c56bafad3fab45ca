"""The explorable of notebook 05: a shipped network beside the formula that it should compute (S5.2, S11)."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lemmse import figures, metrics, pretrained
from lemmse.estimators import LocalEquivariantMMSE
from lemmse.figures import Image, Picture, SignedMap
from lemmse.pretrained import Card, Problem
from lemmse.ui.backend import backend
from lemmse.ui.explorable import Explorable, compose
from lemmse.ui.painting import publish
from lemmse.ui.probing import probed
from lemmse.ui.threads import one_thread
from lemmse.ui.view import Choice, Control, Slider, View

__all__ = ["TheoryVsPractice", "network_and_formula", "theory_vs_practice"]

SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
IMAGES = {"test image 58": ("test", 58), "test image 119": ("test", 119), "test image 45": ("test", 45)}
IMAGES |= {"training image 3": ("train", 3)}

LIMIT = 0.2  # of intensity, where the map of differences has its full colour
EVEN = 0.1  # dB below which two estimates count as equally good
LISTED = 5  # source windows of the probe
MEMORY_LIMIT = 96 * 2**20  # bytes: a notebook has other things to hold, and larger blocks are no quicker

DATA_TEXTS = {"fashion_mnist": "Fashion-MNIST", "photo_crops": "photographs", "photo_crops_64": "larger photographs"}
PRE_INVERSE_TEXTS = {"identity": "B = Id", "pseudo-inverse": "B = A⁺", "tikhonov": "B = Tikhonov"}


# ---- Which networks there are ---------------------------------------------------------------------------------------


class _Key(NamedTuple):
    """What the controls tell networks apart by; joined, the name of a card."""

    data: str
    task: str
    network: str


def _key(card: Card) -> _Key:
    problem = card.problem
    pre_inverse = [] if problem.pre_inverse == "identity" else [problem.pre_inverse]
    task = "-".join([problem.operator, *pre_inverse])
    return _Key(problem.data, task, f"{card.architecture}-p{card.patch_size}")


@lru_cache(maxsize=1)
def _cards() -> dict[_Key, Card]:
    """Return the cards of the grid: local networks whose names tell nothing but data, task and architecture."""
    local = {_key(card): card for card in pretrained.cards() if card.patch_size is not None}
    named = {key: card for key, card in local.items() if card.name == "-".join(key)}
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


@lru_cache(maxsize=8)
def _network(name: str) -> torch.nn.Module:
    return pretrained.load(name)[0]


@lru_cache(maxsize=4)
def _formula(name: str) -> LocalEquivariantMMSE:
    return _card_named(name).estimator(memory_limit=MEMORY_LIMIT)


def _card_named(name: str) -> Card:
    return next(card for card in _cards().values() if card.name == name)


def _shared(card: Card) -> str:
    """Return the name of the first card with the same formula, so that they share it."""
    facts = (card.problem, card.patch_size, card.network["boundary"])
    same = (c for c in _cards().values() if (c.problem, c.patch_size, c.network["boundary"]) == facts)
    return next(same).name


class _Measured(NamedTuple):
    """A true image, its measurement, and what networks and formulas see of it."""

    x: Float[Tensor, "1 c h w"]
    y: Float[Tensor, "1 c h w"]
    v: Float[Tensor, "1 c h w"]


def _measured(problem: Problem, sigma: float, image: str) -> _Measured:
    """Measure an image, with the same draw of noise for all noise levels and operators."""
    split, index = IMAGES[image]
    x = problem.images(split, index + 1)[index:]
    y = problem.physics.A(x)
    y = y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return _Measured(x, y, problem.pre_inverted(y))


@lru_cache(maxsize=64)
@torch.no_grad()
@one_thread()
def _by_network(name: str, sigma: float, image: str) -> Float[Tensor, "1 c h w"]:
    return _network(name)(_measured(_card_named(name).problem, sigma, image).v, sigma)


@lru_cache(maxsize=64)
def _by_formula(name: str, sigma: float, image: str) -> Float[Tensor, "1 c h w"]:
    """Return the formula's answer, with all threads there are: it compares some 10⁸ pairs of windows."""
    return _formula(name)(_measured(_card_named(name).problem, sigma, image).y, sigma=sigma).mean


def compare(task: str, network: str, sigma: float, data: str, image: str) -> View:
    """Measure one image and return what formula and network make of it, their difference, and how far all are apart."""
    key = _Key(data, task, network)
    card = _cards().get(key)
    if card is None:
        return _nothing(key, sigma, image)
    measured, by_network = _measured(card.problem, sigma, image), _by_network(card.name, sigma, image)
    formula, x = _by_formula(_shared(card), sigma, image), measured.x
    distances = {
        "network–formula": metrics.psnr(by_network, formula).item(),
        "network–truth": metrics.psnr(by_network, x).item(),
        "formula–truth": metrics.psnr(formula, x).item(),
    }
    difference = SignedMap((by_network - formula).mean(1), LIMIT)
    return View(
        pictures=_seen(measured) | {"formula": formula, "network": by_network, "network − formula": difference},
        numbers={f"PSNR {name} (dB)": value for name, value in distances.items()},
        notes={"network − formula": f"RMS {_rms(distances['network–formula']):.3f}"},
        sentence=_said(card, distances) + (" Both know this image." if IMAGES[image][0] == "train" else ""),
    )


def compare_coarsely(task: str, network: str, sigma: float, data: str, image: str) -> View:
    """Return the network's answer alone: it takes milliseconds."""
    key = _Key(data, task, network)
    card = _cards().get(key)
    if card is None:
        return _nothing(key, sigma, image)
    measured, by_network = _measured(card.problem, sigma, image), _by_network(card.name, sigma, image)
    return View(
        pictures=_seen(measured) | {"network": by_network},
        numbers={"PSNR network–truth (dB)": metrics.psnr(by_network, measured.x).item()},
        sentence="The network alone for now; the formula, which looks at all training images, follows.",
    )


def _seen(measured: _Measured) -> dict[str, Image]:
    """Return the pictures of truth and measurement, and of B y where it is another one."""
    pictures: dict[str, Image] = {"x": measured.x, "y": measured.y}
    return pictures if measured.v is measured.y else pictures | {"B y": measured.v}


def _rms(decibels: float) -> float:
    return 10 ** (-decibels / 20)


def _said(card: Card, distances: dict[str, float]) -> str:
    """Say how far network and formula are apart, against how far both are from the truth, and who is nearer to it."""
    match, network, formula = distances.values()
    ratio = _rms(formula) / _rms(match)
    if ratio >= 1:
        compared = f"{ratio:.1f} times nearer to one another than the formula is to the truth"
    else:
        compared = f"{1 / ratio:.1f} times further from one another than the formula is from the truth"
    gain = network - formula
    verdict = "equally near to it"
    if abs(gain) > EVEN:
        verdict = f"the network {abs(gain):.1f} dB {'nearer to' if gain > 0 else 'further from'} it"
    return (
        f"Network ({card.architecture}) and formula ({card.problem.count} images) agree to {match:.1f} dB: they are "
        f"{compared}. To the truth the network has {network:.1f} dB and the formula {formula:.1f} dB, {verdict}."
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
    seen = _seen(_measured(replace(problem, data=wanted.data), sigma, image))
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
        estimator, y, sigma = problem
        told = self.probe.picture() if self.probe else probed(estimator, y, sigma=sigma, k=LISTED, pixel=self.pixel)
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
        estimator, y, sigma = problem
        if self.probe is None or self.probe.x_hat.shape != y.shape[1:]:
            from lemmse.ui import PixelProbe  # which one depends on the environment

            h, w = y.shape[2:]
            pixel = min(self.pixel[0], h - 1), min(self.pixel[1], w - 1)
            self.probe = PixelProbe(estimator, y, sigma=sigma, k=LISTED, pixel=pixel)
        elif not (self.probe.estimator is estimator and self.probe.sigma == sigma and torch.equal(self.probe.y, y)):
            self.probe.show(estimator, y, sigma=sigma)
        self._box.children = [self.explorable.widget, self.probe]

    def _explained(self) -> tuple[LocalEquivariantMMSE, Float[Tensor, "1 c h w"], float] | None:
        """Return what the probe explains, formula, measurement and noise level, unless there is no such network."""
        state = self.explorable.state
        card = _cards().get(_Key(state["data"], state["task"], state["network"]))
        if card is None:
            return None
        y = _measured(card.problem, state["sigma"], state["image"]).y
        return _formula(_shared(card)), y, state["sigma"]

    def _ipython_display_(self) -> None:
        if self.widget is not None:
            publish(self.widget, self.picture())
        else:
            from IPython.display import display  # IPython is there when this is called

            display(self.picture())

    def __repr__(self) -> str:
        """Its title and the line that restores its state."""
        return f"{self.explorable.title} | {self.state_line}"


def _checked(pixel: tuple[int, int], data: str) -> tuple[int, int]:
    h, w = Problem(data, 1, "denoising").image_shape[1:]
    if not (0 <= pixel[0] < h and 0 <= pixel[1] < w):
        raise ValueError(f"row and column of a pixel run from 0 to {h - 1} and {w - 1}; got {tuple(pixel)}.")
    return tuple(pixel)
