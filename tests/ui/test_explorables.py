"""Every explorable of the series, through its widget, without a browser."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lemmse import ui
from lemmse.pretrained import Card
from lemmse.ui import shipped
from ui.sweep import makers, sweep

FEW = 40
"""Images that formulas of shipped networks average here: what they say of all is asked elsewhere."""


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    whole = Card.estimator

    def few(card, **how):
        problem = replace(card.problem, count=min(FEW, card.problem.count))
        return whole(replace(card, problem=problem), **how)

    monkeypatch.setattr(Card, "estimator", few)
    shipped.forget()
    yield
    shipped.forget()


@pytest.mark.parametrize("module", ui.explorables.__all__)
def test_sweep(module, generator):
    """No control, at any end or option, raises, shows a number that is not finite, or loses its state."""
    assert makers(module), f"{module} has no public function in its __all__"
    for name, make in makers(module).items():
        explorable = make()
        assert isinstance(explorable, ui.Explorable)
        assert explorable.name == name
        assert explorable.widget is not None  # so that every state of the sweep goes through the widget, too
        assert sweep(explorable, generator) > len(explorable.controls)
        frame = explorable._widget.front.grid.frame
        assert frame["sentence"] == explorable.look().sentence
        assert frame["error"] == ""


@pytest.mark.parametrize("module", ui.explorables.__all__)
def test_static_picture_says_what_it_shows(module):
    """The picture that stands above the widget shows the default state, and its text holds the sentence."""
    for make in makers(module).values():
        explorable = make()
        picture = explorable.picture()
        assert explorable.look().sentence in picture.alt
        assert explorable.title in picture.alt
        assert picture.png.startswith(b"\x89PNG")


FAULTS = {
    "raises at one end": (lambda s, n: 1 / (s - 1.0), ZeroDivisionError),
    "a number that is not finite": (lambda s, n: float("inf") if s == 0.0 else s, ValueError),
    "an answer that changes while the state does not": (lambda s, n: float(n), AssertionError),
}


def explorable_of(number):
    """An explorable whose one number is a function of the state and of how often it was asked."""
    asked = itertools.count()

    def look(s: float) -> ui.View:
        return ui.View({"x": torch.zeros(5, 7)}, {"n": number(s, next(asked))}, "A sentence.")

    def make(**state) -> ui.Explorable:
        controls = {"s": ui.Slider("s", [0.0, 0.5, 1.0], 0.5)}
        return ui.Explorable(look, controls, title="t", name="fake.make", state=state)

    return make


def test_the_sweep_passes_what_is_sound(monkeypatch, generator):
    make = explorable_of(lambda s, n: s)
    monkeypatch.setattr(ui.explorables, "fake", SimpleNamespace(make=make), raising=False)
    assert sweep(make(), generator) == 6


@pytest.mark.parametrize("fault", FAULTS)
def test_the_sweep_finds(monkeypatch, generator, fault):
    """A sweep that could not fail would prove nothing."""
    number, error = FAULTS[fault]
    make = explorable_of(number)
    monkeypatch.setattr(ui.explorables, "fake", SimpleNamespace(make=make), raising=False)
    with pytest.raises(error):
        sweep(make(), generator)


def test_the_sweep_finds_a_line_that_restores_another_state(monkeypatch, generator):
    make = explorable_of(lambda s, n: s)
    forgetful = SimpleNamespace(make=lambda **state: make())
    monkeypatch.setattr(ui.explorables, "fake", forgetful, raising=False)
    with pytest.raises(AssertionError, match=r"fake\.make"):
        sweep(make(), generator)
