"""The mask painter where anywidget is missing: rectangles by ipywidgets' own sliders, the picture as one PNG."""

from collections.abc import Callable
from typing import Any

import ipywidgets
import torch
from torch import Tensor

from lemmse.ui.painting import PERCENTS, PRESETS, Painting, describe_mask
from lemmse.ui.plain import PlainGrid
from lemmse.ui.view import View

__all__ = ["PlainPainter"]


class PlainPainter(Painting, ipywidgets.VBox):
    """A `MaskPainter` that hides or shows rectangles, chosen by two range sliders, with the same presets and undo."""

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
        """Make the sliders and buttons and show the mask and the answer to it."""
        self.grid = PlainGrid()
        self._said = ipywidgets.HTML()
        super().__init__(**kwargs)
        self._begin(mask, image, answer, coarse, generator)
        h, w = self.mask.shape
        self.rows, self.columns = (_range(name, size) for name, size in (("rows", h), ("columns", w)))
        self.percent = ipywidgets.Dropdown(options=PERCENTS, value=50, description="random, % hidden", style=_WIDE)
        self.buttons = {
            "hide": self._button("Hide", lambda: self._rectangle(visible=False)),
            "show": self._button("Show", lambda: self._rectangle(visible=True)),
            "undo": self._button("Undo", self.undo),
            "invert": self._button("Invert", self.invert),
        }
        for name, label in PRESETS.items():
            self.buttons[name] = self._button(label, lambda name=name: self.preset(name, self.percent.value))
        strokes, presets = list(self.buttons.values())[:4], list(self.buttons.values())[4:]
        lines = [ipywidgets.HBox(strokes), ipywidgets.HBox(presets), self.percent, self._said]
        self.children = [self.rows, self.columns, *lines, self.grid]
        self._follow()

    def _button(self, label: str, act: Callable[[], None]) -> Any:
        def pressed(_: Any) -> None:
            try:
                act()
            except Exception as error:  # nobody sees a callback's traceback
                self.grid.fail(f"{type(error).__name__}: {error}")

        button = ipywidgets.Button(description=label)
        button.on_click(pressed)
        return button

    def _rectangle(self, *, visible: bool) -> None:
        (top, bottom), (left, right) = self.rows.value, self.columns.value
        w = self.mask.shape[1]
        pixels = [i * w + j for i in range(top, bottom + 1) for j in range(left, right + 1)]
        self.paint(pixels, visible=visible)

    def _follow(self) -> None:
        self._said.value = "" if self.answer is None else f"<p aria-live='polite'>{describe_mask(self.mask)}</p>"
        try:
            self.grid.show(self.look())
        except Exception as error:
            self.grid.fail(f"{type(error).__name__}: {error}")
            raise


_WIDE = {"description_width": "initial"}


def _range(name: str, size: int) -> Any:
    middle = (size // 4, max(size // 4, 3 * size // 4 - 1))
    return ipywidgets.IntRangeSlider(
        value=middle, min=0, max=size - 1, description=name, style=_WIDE, layout={"width": "34em"}
    )
