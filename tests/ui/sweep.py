"""Every explorable at the ends, at a random value and at every option of each of its controls."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

import lemmse as le
from lemmse.ui import Explorable, Slider, View, explorables


def makers(module: str) -> dict[str, Callable[..., Explorable]]:
    """Every public function of a module of `lemmse.ui.explorables` that makes one, by its dotted name."""
    room = getattr(explorables, module)
    public = {f"{module}.{name}": getattr(room, name) for name in room.__all__}
    return {name: made for name, made in public.items() if inspect.isfunction(made) and _makes_one(made)}


def _makes_one(made: Callable[..., Any]) -> bool:
    """What is painted rather than moved by controls says so where it declares what it returns."""
    return inspect.signature(made).return_annotation in (Explorable, inspect.Signature.empty)


def states(explorable: Explorable, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """The default; each control alone at its ends and a random value, or at every option; all at first and at last."""
    yield explorable.defaults
    for key, control in explorable.controls.items():
        values = list(control.values)
        if isinstance(control, Slider):
            values = [values[0], values[int(torch.randint(len(values), (), generator=generator))], values[-1]]
        for value in values:
            yield {**explorable.defaults, key: value}
    for end in (0, -1):
        yield {key: control.values[end] for key, control in explorable.controls.items()}


def sweep(explorable: Explorable, generator: torch.Generator) -> int:
    """Look at all these states, check each, and return how many there were."""
    count, view, seen = 0, explorable.view, []

    def seeing(**state: Any) -> View:
        seen.append(view(**state))
        return seen[-1]

    explorable.view = seeing
    for state in states(explorable, generator):
        seen.clear()
        explorable.state = state  # and its widget, where it has one, shows the view
        while len(seen) < 2:
            explorable.look()
        check(explorable, state, seen[0], seen[-1])
        count += 1
    explorable.view = view
    return count


def check(explorable: Explorable, state: dict[str, Any], view: View, again: View) -> None:
    """One state: it is taken, the view is computed twice the same, its facts are sound, and its line restores it."""
    assert explorable.state == state
    assert all(math.isfinite(value) for value in view.numbers.values()), (state, view.numbers)
    assert view.sentence.strip().endswith((".", "!", "?")), (state, view.sentence)
    assert "nan" not in view.sentence.lower().split(), (state, view.sentence)
    assert (again.sentence, again.numbers) == (view.sentence, view.numbers), (state, "the view is no pure function")
    restored = eval(explorable.state_line, {"le": le})
    assert restored.state == state, explorable.state_line
