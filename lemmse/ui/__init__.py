"""Explorables: pictures that answer to controls, in JupyterLab, Notebook, VS Code and Colab.

The contract: an explorable is a pure function ``state -> View``, tested without a browser; the widget only carries the
state one way and the view the other. No formula lives here.
"""

from typing import Any

from lemmse.ui import explorables
from lemmse.ui.backend import Backend, backend
from lemmse.ui.explorable import Explorable
from lemmse.ui.view import Choice, Slider, View

__all__ = ["Backend", "Choice", "Explorable", "ImageGrid", "Slider", "View", "backend", "explorables"]


def __getattr__(name: str) -> Any:
    if name != "ImageGrid":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    rung = backend().name
    if rung == "anywidget":
        from lemmse.ui.image_grid import ImageGrid
    elif rung == "image":
        from lemmse.ui.plain import PlainGrid as ImageGrid
    else:
        from lemmse.ui.explorable import compose as ImageGrid
    return ImageGrid
