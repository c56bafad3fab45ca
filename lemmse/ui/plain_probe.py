"""The pixel probe where anywidget is missing: two sliders choose the pixel, its ingredients are one PNG."""

from typing import Any

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from lemmse.estimators import LocalEquivariantMMSE
from lemmse.reductions import Posterior
from lemmse.ui.plain import PlainGrid
from lemmse.ui.probing import Probing

__all__ = ["PlainProbe"]


class PlainProbe(Probing, ipywidgets.VBox):
    """A `PixelProbe` whose pixel is chosen by two sliders."""

    def __init__(
        self,
        estimator: LocalEquivariantMMSE,
        y: Float[Tensor, "1 ..."],
        *,
        sigma: float,
        k: int = 5,
        pixel: tuple[int, int] | None = None,
        posterior: Posterior | None = None,
        **kwargs: Any,
    ) -> None:
        """Make the sliders and show the pixel."""
        self.grid = PlainGrid()
        super().__init__(**kwargs)
        self._begin(estimator, y, sigma, k, pixel, posterior)
        self.row, self.column = (
            ipywidgets.IntSlider(value=at, min=0, max=size - 1, description=name, continuous_update=False)
            for at, size, name in zip(self.pixel, self.x_hat.shape[-2:], ("row", "column"), strict=True)
        )
        for slider in (self.row, self.column):
            slider.observe(self._moved, names="value")
        self.children = [self.row, self.column, self.grid]
        self._follow()

    def _moved(self, _: Any) -> None:
        self.pixel = (self.row.value, self.column.value)

    def _follow(self) -> None:
        place = self.pixel
        for slider, at in zip((self.row, self.column), place, strict=True):
            slider.unobserve(self._moved, names="value")
            slider.value = at
            slider.observe(self._moved, names="value")
        self.grid.show(self.look())
