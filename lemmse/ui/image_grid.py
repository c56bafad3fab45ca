"""The anywidget front end: `ImageGrid` draws a view on canvases, `Controls` holds native, labelled inputs."""

from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import matplotlib.colors
import traitlets

from lemmse import figures
from lemmse.ui.backend import Live
from lemmse.ui.explorable import Explorable
from lemmse.ui.traits import Buffer
from lemmse.ui.view import Slider, View, position, texts

__all__ = ["CanvasFront", "Controls", "ImageGrid"]

_HERE = Path(__file__).parent


class ImageGrid(anywidget.AnyWidget):
    """A view on the page: one canvas for each picture, its plot, its numbers, and its sentence in a live region.

    ``frame`` is JSON (titles, notes, sizes, the sentence), ``pixels`` the RGBA bytes of the pictures one after another
    and then the PNG of the plot; each cell of the frame says where its bytes start.
    """

    _esm = _HERE / "image_grid.mjs"
    _css = _HERE / "style.css"
    frame = traitlets.Dict().tag(sync=True)
    pixels = Buffer().tag(sync=True)

    def __init__(self, view: View | None = None, **kwargs: Any) -> None:
        """Make a grid that shows ``view``, or nothing yet."""
        super().__init__(**kwargs)
        if view is not None:
            self.show(view)

    def show(self, view: View) -> None:
        """Send a view to the page, in one message."""
        frame, pixels = encode(view)
        self._push(frame, pixels)

    def fail(self, message: str) -> None:
        """Show a message above the last pictures."""
        self._push({**self.frame, "error": message}, self.pixels)

    def _push(self, frame: dict[str, Any], pixels: bytes) -> None:
        with self.hold_sync():
            self.pixels = pixels
            self.frame = {**frame, "revision": self.frame.get("revision", 0) + 1}  # so that the page always hears of it


def encode(view: View) -> tuple[dict[str, Any], bytes]:
    """A view as the frame (JSON) and the bytes that `ImageGrid` sends to the page."""
    chunks: list[bytes] = []
    images = figures.split(view.pictures) if view.pictures else {}
    notes = figures.annotate(images, view.reference, view.notes)
    cells = []
    for name, singles in images.items():
        for index, (image, note) in enumerate(zip(singles, notes[name], strict=True)):
            pixels = figures.rgba(image, view.scale)
            title = figures.title(name) + (f" {index + 1}" if len(singles) > 1 else "")
            cell = {"title": title, "note": note, "height": pixels.shape[0], "width": pixels.shape[1]}
            cells.append({**cell, "start": sum(map(len, chunks)), "bar": _bar(image)})
            chunks.append(pixels.tobytes())
    plot = None
    if view.figure is not None:
        png = figures.render(view.figure, density=1.5, compression=1)
        plot = {"start": sum(map(len, chunks)), "length": len(png), "width": round(view.figure.get_figwidth() * 100)}
        chunks.append(png)
    numbers = [[name, f"{value:.4g}".replace("-", "−")] for name, value in view.numbers.items()]
    joined = b"".join(chunks)
    facts = {"numbers": numbers, "sentence": view.sentence, "error": "", "bytes": len(joined)}
    return {"cells": cells, "plot": plot, **facts}, joined


def _bar(image: figures.Image) -> dict[str, Any] | None:
    """The colour bar of a map: its colours at nine places and the values at its ends."""
    if not isinstance(image, (figures.SignedMap, figures.HeatMap)):
        return None
    colours = matplotlib.colormaps[image.colours]
    low, high = (f"{value:.3g}".replace("-", "−") for value in image.scale)
    return {"low": low, "high": high, "colours": [matplotlib.colors.to_hex(colours(i / 8)) for i in range(9)]}


class Controls(anywidget.AnyWidget):
    """The controls of an explorable as native inputs with labels, its reset button and its state line.

    ``request`` holds the position of each control in its list of values, whether the controls rest, and who moved them.
    """

    _esm = _HERE / "controls.mjs"
    _css = _HERE / "style.css"
    title = traitlets.Unicode().tag(sync=True)
    controls = traitlets.List().tag(sync=True)
    request = traitlets.Dict().tag(sync=True)
    settles = traitlets.Bool(False).tag(sync=True)
    state_line = traitlets.Unicode().tag(sync=True)


class CanvasFront:
    """The best rung: an explorable's `Controls` above its `ImageGrid`."""

    def __init__(self, live: Live) -> None:
        """Make both widgets and listen to the controls."""
        self._live, explorable = live, live.explorable
        self.grid = ImageGrid()
        self.controls = Controls(
            title=explorable.title,
            controls=[
                {
                    "key": key,
                    "kind": "slider" if isinstance(control, Slider) else "choice",
                    "label": control.label,
                    "texts": texts(control),
                    "default": position(control, control.default),
                    "folded": control.folded,
                }
                for key, control in explorable.controls.items()
            ],
            settles=explorable.coarse is not None,
        )
        self.set_state(explorable)
        self.controls.observe(self._asked, names="request")
        self.root = ipywidgets.VBox([self.controls, self.grid])
        self.root.add_class("lemmse-explorable")

    def _asked(self, change: Any) -> None:
        request = change["new"]
        if request["by"] == "page":
            controls = self._live.explorable.controls
            state = {key: control.values[request["positions"][key]] for key, control in controls.items()}
            self._live.moved(state, resting=request["resting"])

    def set_state(self, explorable: Explorable) -> None:
        """Move the controls and the state line to the explorable's present state."""
        state = explorable.state
        positions = {key: position(control, state[key]) for key, control in explorable.controls.items()}
        self.controls.state_line = explorable.state_line
        if self.controls.request.get("positions") != positions:
            self.controls.request = {"positions": positions, "resting": True, "by": "python"}

    def show(self, view: View) -> None:
        """Show a view in the grid."""
        self.grid.show(view)

    def fail(self, message: str) -> None:
        """Show a message above the last view."""
        self.grid.fail(message)
