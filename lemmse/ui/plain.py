"""The front end for places without anywidget: ipywidgets' own controls beside one PNG."""

import html
from typing import Any

import ipywidgets

from lemmse.ui.backend import Live
from lemmse.ui.explorable import Explorable, compose
from lemmse.ui.view import Control, Slider, View, position, texts

__all__ = ["PlainFront", "PlainGrid"]


class PlainGrid(ipywidgets.VBox):
    """A view as one PNG with its numbers and sentence below; the sentence is its text twin."""

    def __init__(self, view: View | None = None, **kwargs: Any) -> None:
        """Make a grid that shows ``view``, or nothing yet."""
        self._image, self._text = ipywidgets.Image(format="png"), ipywidgets.HTML()
        super().__init__([self._image, self._text], **kwargs)
        if view is not None:
            self.show(view)

    def show(self, view: View) -> None:
        """Send a view to the page."""
        picture = compose(view)
        self._image.value = picture.png
        self._image.width = str(picture.width)
        numbers = " · ".join(f"{html.escape(name)} <b>{value:.4g}</b>" for name, value in view.numbers.items())
        self._text.value = f"<div>{numbers}</div><p aria-live='polite'>{html.escape(view.sentence)}</p>"

    def fail(self, message: str) -> None:
        """Show a message below the last pictures."""
        self._text.value = f"<p role='alert'><b>{html.escape(message)}</b></p>"


class PlainFront:
    """The second rung: ipywidgets' controls, a reset button, the state line, and a `PlainGrid`."""

    def __init__(self, live: Live) -> None:
        """Make the widgets and listen to the controls."""
        self._live, explorable = live, live.explorable
        self.grid = PlainGrid()
        self.controls = {key: _widget(control) for key, control in explorable.controls.items()}
        self._line = ipywidgets.HTML()
        reset = ipywidgets.Button(description="Reset")
        reset.on_click(lambda _: explorable.reset())
        for widget in self.controls.values():
            widget.observe(self._moved, names="index")
        in_sight = [widget for key, widget in self.controls.items() if not explorable.controls[key].folded]
        folded = [widget for key, widget in self.controls.items() if explorable.controls[key].folded]
        more = [ipywidgets.Accordion([ipywidgets.VBox(folded)], selected_index=None)] if folded else []
        for accordion in more:
            accordion.set_title(0, "More")
        title = ipywidgets.HTML(f"<b>{html.escape(explorable.title)}</b>")
        state = ipywidgets.HBox([self._line, reset])
        self.root = ipywidgets.VBox([title, *in_sight, *more, state, self.grid])

    def _moved(self, change: Any) -> None:
        controls = self._live.explorable.controls
        state = {key: controls[key].values[widget.index] for key, widget in self.controls.items()}
        if state != self._live.explorable.state:
            self._live.moved(state)

    def set_state(self, explorable: Explorable) -> None:
        """Move the controls and the state line to the explorable's present state."""
        self._line.value = f"<code>{html.escape(explorable.state_line)}</code>"
        for key, widget in self.controls.items():
            widget.unobserve(self._moved, names="index")
            widget.index = position(explorable.controls[key], explorable.state[key])
            widget.observe(self._moved, names="index")

    def show(self, view: View) -> None:
        """Show a view in the grid."""
        self.grid.show(view)

    def fail(self, message: str) -> None:
        """Show a message below the last view."""
        self.grid.fail(message)


def _widget(control: Control) -> ipywidgets.DOMWidget:
    kind = ipywidgets.SelectionSlider if isinstance(control, Slider) else ipywidgets.Dropdown
    options = list(zip(texts(control), range(len(control.values)), strict=True))
    return kind(
        options=options,
        index=position(control, control.default),
        description=control.label,
        style={"description_width": "initial"},
        layout={"width": "34em"},
    )
