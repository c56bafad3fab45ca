"""The mask painter on canvases (anywidget): `PaintCanvas` takes strokes, `MaskPainter` adds the answer below it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import torch
import traitlets
from torch import Tensor

from lemmse import figures
from lemmse.ui.image_grid import ImageGrid
from lemmse.ui.painting import PERCENTS, PRESETS, Painting, describe_mask, rows_of
from lemmse.ui.traits import Buffer
from lemmse.ui.view import View

__all__ = ["MaskPainter", "PaintCanvas"]

_HERE = Path(__file__).parent


class PaintCanvas(anywidget.AnyWidget):
    """A mask over a picture that takes brush and eraser by pointer and keyboard, and buttons for all other orders.

    ``rows`` is the mask, a string for each row; ``backdrop`` the RGBA bytes of the picture under it; ``facts`` what is
    said. The page sends orders as messages, in sequence, and sends more of a stroke once ``heard`` names the last one.
    Where ``settles``, it tells by an order of its own that the mask rests: not the end of a stroke, but a pause.
    """

    _esm = _HERE / "mask_painter.mjs"
    _css = _HERE / "style.css"
    rows = traitlets.List().tag(sync=True)
    backdrop = Buffer().tag(sync=True)
    facts = traitlets.Dict().tag(sync=True)
    presets = traitlets.List().tag(sync=True)
    percents = traitlets.List().tag(sync=True)
    heard = traitlets.Unicode().tag(sync=True)
    settles = traitlets.Bool(False).tag(sync=True)


class MaskPainter(Painting, ipywidgets.VBox):
    """A mask (h, w), 1 where visible, that the reader paints by pointer or keyboard; the answer follows.

    ``image`` (c, h, w) lies under the mask. ``answer`` is a function from the mask to a `View`, shown below and
    computed anew after each change; ``coarse``, a quicker one, answers while the reader paints, and ``answer`` once the
    mask rests. ``generator`` draws the random preset (``None``: seed 0). ``painter.mask`` is a trait:
    ``painter.observe(function, names="mask")`` follows it, setting it paints; ``painter.settled`` follows once a stroke
    has ended, or rests; ``painter.state`` is the mask as JSON. `undo`, `invert` and `preset` are the buttons.

    Raises ``ValueError`` for a mask that is not one of zeros and ones, or an image of another size.
    """

    def __init__(
        self,
        mask: Any,
        *,
        image: Tensor | None = None,
        answer: Callable[[Tensor], View] | None = None,
        coarse: Callable[[Tensor], View] | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> None:
        """Make the canvas and show the mask and the answer to it."""
        self.canvas = PaintCanvas(
            presets=[{"name": name, "label": label} for name, label in PRESETS.items()],
            percents=list(PERCENTS),
            settles=coarse is not None,
        )
        self.grid = None if answer is None else ImageGrid()
        super().__init__([self.canvas] if self.grid is None else [self.canvas, self.grid], **kwargs)
        self._begin(mask, image, answer, coarse, generator)
        h, w = self.mask.shape
        under = torch.ones(h, w) if self.image is None else self.image
        self.canvas.backdrop = figures.rgba(under).tobytes()
        self.canvas.on_msg(self._hear)
        self.add_class("lemmse-painter")
        self._follow()

    def _follow(self) -> None:
        with self.canvas.hold_sync():
            self.canvas.rows = rows_of(self.mask)
            self._say("")
        if self.grid is None:
            return
        try:
            self.grid.show(self.look())
        except Exception as error:
            self.grid.fail(f"{type(error).__name__}: {error}")
            raise

    def _say(self, error: str) -> None:
        self.canvas.facts = {"sentence": describe_mask(self.mask), "error": error, "can_undo": self.can_undo}

    def _hear(self, _: Any, order: Any, buffers: Any) -> None:
        try:
            self.obey(order)
        except Exception as error:  # nobody sees a callback's traceback; a failing answer stands in the grid already
            if self.grid is None or not self.grid.frame.get("error"):
                self._say(f"{type(error).__name__}: {error}")
        finally:
            self.canvas.heard = str(order.get("serial", "")) if isinstance(order, dict) else ""
