"""The pixel probe on canvases (anywidget): choose a pixel of the estimate, see what it is made of."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets
from jaxtyping import Float
from torch import Tensor

from lemmse.estimators import LocalEquivariantMMSE
from lemmse.reductions import Posterior
from lemmse.ui.probing import TITLE, Ingredients, Probing, as_shown, colour_text, percent_text
from lemmse.ui.traits import Buffer

__all__ = ["PixelProbe"]

_HERE = Path(__file__).parent


class PixelProbe(Probing, anywidget.AnyWidget):
    """An estimate whose every pixel can be asked what it is made of, by hovering, clicking or arrow keys.

    ``estimator`` and the measurement ``y`` (1, ...) at noise level ``sigma`` are those of the estimate; the ``k``
    heaviest source windows are listed, drawn in their images, with weights, colours, contributions and their running
    sum; weights and contributions add up, with those of all other windows, to 1 and to the pixel. ``pixel`` (row,
    column), the middle at first, is a trait that Python may follow and set; ``state`` is the same as JSON. `explain`
    returns the numbers, `show` explains another estimate. ``posterior`` is the estimator's answer where it is known
    already.

    ``view`` (JSON) and ``view_pixels`` (RGBA bytes) hold B y and the estimate, ``facts`` and ``pixels`` what belongs to
    one pixel; the page asks for one by ``request``. Raises ``TypeError`` for an estimator that is not local,
    ``ValueError`` for several measurements at once or a pixel outside the image, and what the estimator raises.
    """

    _esm = _HERE / "pixel_probe.mjs"
    _css = _HERE / "style.css"
    title = traitlets.Unicode(TITLE).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    view_pixels = Buffer().tag(sync=True)
    facts = traitlets.Dict().tag(sync=True)
    pixels = Buffer().tag(sync=True)
    request = traitlets.Dict().tag(sync=True)

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
        """Compute the estimate, and show what one of its pixels is made of."""
        super().__init__(**kwargs)
        self._begin(estimator, y, sigma, k, pixel, posterior)
        self.observe(self._asked, names="request")
        self._restart()

    def _restart(self) -> None:
        shown = {self.name_of_v: as_shown(self.v), "x̂": as_shown(self.x_hat)}
        bytes_of = _Bytes()
        pictures = [{"title": name, **bytes_of.add(picture)} for name, picture in shown.items()]
        size, wraps = self.estimator.patch_size, self.wraps
        with self.hold_sync():
            self.view_pixels = bytes_of.joined
            self.view = {"pictures": pictures, "patch_size": size, "wraps": wraps, "revision": _next(self.view)}
            self._follow()

    def _follow(self) -> None:
        self._tell(self.explain(), hovered=False)

    def _asked(self, change: Any) -> None:
        request = change["new"]
        try:
            place = self._place((request["row"], request["column"]))
            if not request["hovered"] and place != self.pixel:
                self.pixel = place
            else:
                self._tell(self.explain(place), hovered=request["hovered"])
        except Exception as error:  # nobody sees a callback's traceback
            message = f"{type(error).__name__}: {error}"
            self.facts = {**self.facts, "error": message, "answers": request["serial"], "revision": _next(self.facts)}

    def _tell(self, found: Ingredients, *, hovered: bool) -> None:
        bytes_of = _Bytes()
        facts = {
            "pixel": [found.row, found.column],
            "chosen": list(self.pixel),
            "hovered": hovered,
            "answers": self.request.get("serial", ""),
            "window": bytes_of.add(as_shown(found.window)),
            "same": found.measured.shape == found.stored.shape and bool((found.measured == found.stored).all()),
            "sources": [_source(found, j, bytes_of) for j in range(len(found.weight))],
            "rest": {"weight": _exact(found.remainder), "share": colour_text(found.remainder_share)},
            "total": {
                "weight": f"{float(found.weight.sum()) + found.remainder:.6f}",
                "pixel": colour_text(found.mean),
                "swatch": _swatch(found.mean),
            },
            "sentence": found.sentence,
            "error": "",
            "revision": _next(self.facts),
        }
        with self.hold_sync():
            self.pixels = bytes_of.joined
            self.facts = facts


class _Bytes:
    """Pictures one after another, each with its place."""

    def __init__(self) -> None:
        self.joined = b""

    def add(self, picture: Any) -> dict[str, int]:
        """Append a picture (h, w, 4) and return its place and size."""
        place = {"start": len(self.joined), "height": picture.shape[0], "width": picture.shape[1]}
        self.joined += picture.tobytes()
        return place


def _source(found: Ingredients, j: int, bytes_of: _Bytes) -> dict[str, Any]:
    """What the page says and draws of one source."""
    return {
        "image": int(found.image[j]),
        "at": found.source[j].tolist(),
        "share": float(found.weight[j]),
        "weight": _exact(float(found.weight[j])),
        "percent": percent_text(float(found.weight[j])),
        "colour": colour_text(found.colour[j]),
        "swatch": _swatch(found.colour[j]),
        "contribution": colour_text(found.contribution[j]),
        "sum": colour_text(found.running_sum[j]),
        "picture": bytes_of.add(as_shown(found.image_pixels[j])),
        "stored": bytes_of.add(as_shown(found.stored[j])),
        "measured": bytes_of.add(as_shown(found.measured[j])),
    }


def _swatch(colour: Tensor) -> str:
    red, green, blue = as_shown(colour[:, None, None].float())[0, 0, :3].tolist()
    return f"rgb({red}, {green}, {blue})"


def _exact(weight: float) -> str:
    return f"{weight:.6f}"


def _next(facts: dict[str, Any]) -> int:
    return facts.get("revision", 0) + 1  # so that the page always hears of it
