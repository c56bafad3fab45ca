"""Explorables: pictures that answer to controls, in JupyterLab, Notebook, VS Code and Colab.

The contract: an explorable is a pure function ``state -> View``, tested without a browser; the widget only carries the
state one way and the view the other. No formula lives here.
"""

from importlib import import_module
from typing import Any

from lemmse.ui import explorables
from lemmse.ui.backend import Backend, backend
from lemmse.ui.explorable import Explorable
from lemmse.ui.view import Choice, Slider, View

__all__ = ["Backend", "Choice", "Explorable", "ImageGrid", "MaskPainter", "PixelProbe", "Slider", "View", "backend"]
__all__ += ["explorables"]

_RUNGS = {
    "ImageGrid": {"anywidget": "image_grid.ImageGrid", "image": "plain.PlainGrid", "static": "explorable.compose"},
    "MaskPainter": {
        "anywidget": "mask_painter.MaskPainter",
        "image": "plain_painter.PlainPainter",
        "static": "painting.painted",
    },
    "PixelProbe": {
        "anywidget": "pixel_probe.PixelProbe",
        "image": "plain_probe.PlainProbe",
        "static": "probing.probed",
    },
}
"""What answers to the name of a widget on each rung of the ladder: all take the same arguments."""


def __getattr__(name: str) -> Any:
    if name not in _RUNGS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, found = _RUNGS[name][backend().name].split(".")
    return getattr(import_module(f"{__name__}.{module}"), found)
