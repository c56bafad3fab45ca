"""Which front end an explorable gets, decided in one place that can say why.

The ladder: canvases drawn by our own modules (anywidget) → ipywidgets controls beside a PNG → a static picture.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from lemmse.ui.explorable import Explorable
from lemmse.ui.view import View

__all__ = ["Backend", "Live", "backend", "make_widget"]

VARIABLE = "LEMMSE_UI"
"""The environment variable that forces a rung of the ladder."""

RUNGS = ("anywidget", "image", "static")


@dataclass(frozen=True)
class Backend:
    """The rung of the ladder in use and the reason for it."""

    name: Literal["anywidget", "image", "static"]
    reason: str


def backend() -> Backend:
    """The best front end that this environment can show, and why: see `Backend`.

    The environment variable ``LEMMSE_UI`` forces one; raises ``ValueError`` if it names none of the three.
    """
    forced = os.environ.get(VARIABLE)
    if forced:
        if forced not in RUNGS:
            raise ValueError(f"{VARIABLE}={forced!r}: the front ends are {', '.join(RUNGS)}")
        return Backend(forced, f"{VARIABLE} asks for it")
    if find_spec("ipywidgets") is None:
        return Backend("static", "ipywidgets is not installed: pip install 'ipywidgets>=7.7.1' 'anywidget>=0.9'")
    if find_spec("anywidget") is None:
        return Backend("image", "anywidget is not installed, so pictures travel as PNG: pip install 'anywidget>=0.9'")
    return Backend("anywidget", "ipywidgets and anywidget are installed")


class Front(Protocol):
    """What a rung of the ladder gives: a root widget that shows states and views and reports the reader's moves."""

    root: Any

    def set_state(self, explorable: Explorable) -> None:
        """Move the controls and the state line to the explorable's present state."""

    def show(self, view: View) -> None:
        """Show a view."""

    def fail(self, message: str) -> None:
        """Show a message instead of a view."""


class Live:
    """Carries the state from a front end to its explorable and the view back."""

    def __init__(self, explorable: Explorable, make_front: Callable[["Live"], Front]) -> None:
        """Connect the two and show the present state."""
        self.explorable = explorable
        self.front = make_front(self)
        self.follow()

    @property
    def root(self) -> Any:
        """The widget to display."""
        return self.front.root

    def follow(self) -> None:
        """Show the explorable's present state, set from Python; what its view raises goes to the caller too."""
        self.front.set_state(self.explorable)
        self._rest()

    def moved(self, state: dict[str, Any], *, resting: bool = True) -> None:
        """Take a state from the reader's controls; the coarse view answers while they move, where there is one."""
        if state != self.explorable.state:
            self.explorable._accept(state)
            self.front.set_state(self.explorable)
        try:
            if resting or self.explorable.coarse is None:
                self._rest()
            else:
                self._do(lambda **state: self.front.show(self.explorable.coarse(**state)))
        except Exception:  # already on the page, and nobody sees a callback's traceback
            return

    def _rest(self) -> None:
        """Show the full view, then what follows it."""
        self._do(lambda **state: self.front.show(self.explorable.view(**state)))
        if self.explorable.then is not None:
            self._do(self.explorable.then)

    def _do(self, work: Callable[..., None]) -> None:
        """Do something with the present state; where that raises, say so on the page."""
        try:
            work(**self.explorable.state)
        except Exception as error:
            self.front.fail(f"{type(error).__name__}: {error}")
            raise


def make_widget(explorable: Explorable) -> Live | None:
    """Connect an explorable to the best front end and return the connection, or ``None`` where only pictures work."""
    name = backend().name
    if name == "static":
        return None
    if name == "anywidget":
        from lemmse.ui.image_grid import CanvasFront  # each rung needs packages that the others do without

        return Live(explorable, CanvasFront)
    from lemmse.ui.plain import PlainFront

    return Live(explorable, PlainFront)
