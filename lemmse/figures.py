"""Static pictures, each with its alternative text.

The contract: everything ends in a `Picture`, whose pixels and whose text are made from the same numbers. `show` lays
images out, `figure` makes a matplotlib figure in the project's style, `picture` turns any matplotlib figure into a
`Picture` once its alternative text is given. Nothing touches pyplot or matplotlib's global state.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
from cycler import cycler
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from lemmse import metrics

__all__ = ["COLOURS", "UNIT", "HeatMap", "Image", "Picture", "SignedMap", "annotate", "describe", "figure"]
__all__ += ["picture", "render", "rgba", "show", "split", "stack", "title"]

UNIT = (0.0, 1.0)
"""The common scale of images: black at 0, white at 1."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA3377", "#000000")
"""Colours of lines: told apart by colour-blind readers, each with a contrast of at least 3.4 on white."""

_DPI = 100  # CSS pixels per inch of a matplotlib figure
_DENSITY = 2  # device pixels per CSS pixel, for sharp text on dense screens

_STYLE = {
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelcolor": "#222222",
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # a fixed place: finding one that clears the ticks doubles the time of a small plot
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#dddddd",
    "legend.framealpha": 0.9,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "lemmse",
    "text.hinting": "none",  # needless at two device pixels per CSS pixel, and a sixth of the time of a small plot
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


@dataclass(frozen=True)
class Picture:
    """A drawing and the text that says the same: shown in a notebook as an HTML image that keeps its ``alt``.

    ``png`` holds the drawing at two device pixels per CSS pixel, ``alt`` its text twin, ``width`` its width on the page
    in CSS pixels, ``figure`` the matplotlib figure that it was drawn from.
    """

    png: bytes = field(repr=False)
    alt: str
    width: int
    figure: Figure = field(repr=False, compare=False)

    def html(self, css_class: str = "") -> str:
        """The picture as an HTML image that holds its pixels and its ``alt``, with a class for style sheets."""
        source = base64.b64encode(self.png).decode("ascii")
        name = f'class="{css_class}" ' if css_class else ""
        return f'<img {name}alt="{escape(self.alt)}" width="{self.width}" src="data:image/png;base64,{source}">'

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.alt}

    def save(self, path: str | Path) -> Path:
        """Write the picture to ``path`` and return the path: ``.png`` as shown, ``.svg`` with vector text and lines.

        Raises ``ValueError`` for any other suffix.
        """
        path = Path(path)
        if path.suffix == ".png":
            path.write_bytes(self.png)
        elif path.suffix == ".svg":
            with matplotlib.rc_context(_STYLE):
                self.figure.savefig(path, format="svg", metadata={"Date": None, "Description": self.alt})
        else:
            raise ValueError(
                f"save({str(path)!r}): a picture is saved as .png or .svg, not {path.suffix or 'no suffix'}"
            )
        return path


class _StyledFigure(Figure):
    """A figure whose axes take the project's style: matplotlib reads its settings when axes are made."""

    def add_subplot(self, *args: Any, **kwargs: Any) -> Axes:
        with matplotlib.rc_context(_STYLE):
            return super().add_subplot(*args, **kwargs)

    def add_axes(self, *args: Any, **kwargs: Any) -> Axes:
        with matplotlib.rc_context(_STYLE):
            return super().add_axes(*args, **kwargs)


def figure(width: float = 6.4, height: float = 3.4, *, layout: str | None = "constrained") -> Figure:
    """An empty matplotlib figure of ``width`` by ``height`` inches (100 CSS pixels each) in the project's style.

    Call ``.subplots()`` on it, draw, then hand it to `picture` with its alternative text. With ``layout=None`` its axes
    stay where ``add_axes`` puts them, and drawing is faster: a computed layout draws everything twice.
    """
    with matplotlib.rc_context(_STYLE):
        return _StyledFigure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")


def picture(figure: Figure, *, alt: str) -> Picture:
    """Render a matplotlib figure and return it as a `Picture` whose text twin is ``alt``.

    Raises ``ValueError`` if ``alt`` is blank: a drawing without its text is not finished.
    """
    return _picture(figure, _drawing(figure), alt)


def _picture(figure: Figure, drawing: PIL.Image.Image, alt: str) -> Picture:
    if not alt.strip():
        raise ValueError(
            "picture(figure, alt=''): alternative text is empty; say in one sentence what the figure shows"
        )
    width = round(figure.get_figwidth() * _DPI)
    return Picture(_png(drawing), " ".join(alt.split()), width, figure)


def render(figure: Figure, density: float = _DENSITY, *, compression: int = 6) -> bytes:
    """Draw a matplotlib figure with Agg at ``density`` device pixels per CSS pixel and return its PNG bytes.

    ``compression`` goes from 1, quick, to 9, small.
    """
    return _png(_drawing(figure, density), compression)


def _png(drawing: PIL.Image.Image, compression: int = 6) -> bytes:
    buffer = io.BytesIO()
    drawing.save(buffer, "png", compress_level=compression)
    return buffer.getvalue()


def _drawing(figure: Figure, density: float = _DENSITY) -> PIL.Image.Image:
    """Draw a figure on white: quicker than its ``savefig``, and without holes for a dark page to shine through."""
    usual = figure.dpi
    figure.set_dpi(density * _DPI)
    try:
        canvas = FigureCanvasAgg(figure)
        with matplotlib.rc_context(_STYLE):
            canvas.draw()
        drawing = PIL.Image.fromarray(np.asarray(canvas.buffer_rgba()))
    finally:
        figure.set_dpi(usual)
    if drawing.getextrema()[3] != (255, 255):
        drawing = PIL.Image.alpha_composite(PIL.Image.new("RGBA", drawing.size, "white"), drawing)
    return drawing.convert("RGB")


def stack(figures: Sequence[Figure], *, alt: str) -> Picture:
    """Put matplotlib figures below one another on one page and return the `Picture`, with the text twin ``alt``."""
    plates = [_drawing(figure) for figure in figures]
    height = sum(plate.height for plate in plates)
    width = max(plate.width for plate in plates)
    drawing = PIL.Image.new("RGB", (width, height), "white")  # matplotlib would take 100 MB to draw all again
    page = Figure(figsize=(width / _DPI / _DENSITY, height / _DPI / _DENSITY), dpi=_DPI, facecolor="white")
    top = 0
    for plate in plates:
        drawing.paste(plate, (0, top))
        top += plate.height
        place = page.add_axes((0, 1 - top / height, plate.width / width, plate.height / height))
        place.imshow(np.asarray(plate), aspect="auto", interpolation="nearest")
        place.set_axis_off()
    return _picture(page, drawing, alt)


@dataclass(frozen=True)
class SignedMap:
    """A map (h, w) or (1, h, w) of values of both signs, blue below zero, white at zero, red above.

    ``limit`` is the absolute value at full colour; ``None`` takes the largest one present.
    """

    values: Tensor
    limit: float | None = None

    @property
    def scale(self) -> tuple[float, float]:
        """The values at the two ends of the colour bar."""
        limit = float(self.values.abs().max()) if self.limit is None else float(self.limit)
        return (-limit, limit) if limit > 0 else (-1.0, 1.0)

    colours = "RdBu_r"  # ColorBrewer's: told apart by colour-blind readers


@dataclass(frozen=True)
class HeatMap:
    """A map (h, w) or (1, h, w) of values from ``low`` to ``high`` (``None``: the extremes present), dark to bright."""

    values: Tensor
    low: float | None = None
    high: float | None = None

    @property
    def scale(self) -> tuple[float, float]:
        """The values at the two ends of the colour bar."""
        low = float(self.values.min()) if self.low is None else float(self.low)
        high = float(self.values.max()) if self.high is None else float(self.high)
        return (low, high) if high > low else (low, low + 1.0)

    colours = "cividis"  # perceptually uniform, and the same to colour-blind readers


Image = Tensor | SignedMap | HeatMap
"""What can be shown: a tensor of intensities, or a map that brings its own colours and colour bar."""


@lru_cache
def _lookup(colours: str) -> UInt8[np.ndarray, "256 4"]:
    return (matplotlib.colormaps[colours](np.linspace(0, 1, 256)) * 255).round().astype(np.uint8)


def rgba(image: Image, scale: tuple[float, float] = UNIT) -> UInt8[np.ndarray, "h w 4"]:
    """The bytes (h, w, 4) that a screen shows for one image (h, w) or (c, h, w), c = 1 or 3, clipped to ``scale``.

    A map brings its own scale. Raises ``ValueError`` for other shapes and for values that are not finite.
    """
    values = image if isinstance(image, Tensor) else image.values
    low, high = scale if isinstance(image, Tensor) else image.scale
    values = values.detach().cpu().double().numpy()
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[0] not in ((1, 3) if isinstance(image, Tensor) else (1,)):
        raise ValueError(f"an image to show has shape (h, w), (1, h, w) or, in colour, (3, h, w); got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(
            f"an image to show has finite values; {(~np.isfinite(values)).sum()} of them are NaN or infinite"
        )
    unit = np.clip((values - low) / (high - low), 0.0, 1.0)
    level = (255 * unit + 0.5).astype(np.uint8)
    if not isinstance(image, Tensor):
        return _lookup(image.colours)[level[0]]
    pixels = np.full((*level.shape[1:], 4), 255, dtype=np.uint8)
    pixels[..., :3] = level.transpose(1, 2, 0)
    return pixels


def title(name: str, *, symbol: bool = True) -> str:
    """The title of an image named ``name``: ``x_hat_mlp`` becomes "x̂ mlp", or "x hat mlp" to be read aloud."""
    words = name.replace("_", " ").strip()
    return words.replace("x hat", "x̂") if symbol else words


def split(images: Mapping[str, Image]) -> dict[str, list[Image]]:
    """Each name with its list of single images: a batch (b, c, h, w) gives b, everything else one.

    Raises ``ValueError`` if there is no image, or one whose shape or values cannot be shown, and says which.
    """
    if not images:
        raise ValueError("nothing to show: name at least one image, as in show(x=x, y=y)")
    for name, image in images.items():
        values = image if isinstance(image, Tensor) else getattr(image, "values", None)
        if not isinstance(values, Tensor):
            raise TypeError(
                f"{name}: a tensor, SignedMap or HeatMap can be shown; got {type(image).__name__} "
                "(torch.from_numpy turns arrays)"
            )
        if values.ndim not in (2, 3, 4) or 0 in values.shape or (values.ndim > 2 and values.shape[-3] not in (1, 3)):
            raise ValueError(
                f"{name}: shape {tuple(values.shape)} is not that of images: (h, w), (c, h, w) or (b, c, h, w) with "
                "c = 1 or 3. Measurements of another shape can be mapped back first, for instance with A_adjoint"
            )
        if not values.isfinite().all():
            raise ValueError(f"{name}: {int((~values.isfinite()).sum())} of its values are NaN or infinite")
    return {name: _singles(image) for name, image in images.items()}


def _singles(image: Image) -> list[Image]:
    if isinstance(image, Tensor):
        return list(image) if image.ndim == 4 else [image]
    if image.values.ndim < 4:
        return [image]
    scale = image.scale
    remake = (lambda v: SignedMap(v, scale[1])) if isinstance(image, SignedMap) else (lambda v: HeatMap(v, *scale))
    return [remake(values) for values in image.values]


def annotate(
    images: Mapping[str, list[Image]], reference: str | None, given: Mapping[str, str | Sequence[str]]
) -> dict[str, list[str]]:
    """What stands below every image: the note given, else its PSNR against the one named ``reference`` if shapes agree.

    Raises ``ValueError`` if a note is given for an image that is not there, or there are more notes than images.
    """
    references = [] if reference is None else images.get(reference, [])
    below = {
        name: ["" if name == reference else _psnr_note(image, references, i) for i, image in enumerate(singles)]
        for name, singles in images.items()
    }
    for name, note in given.items():
        lines = [note] if isinstance(note, str) else list(note)
        if name not in images or len(lines) > len(images[name]):
            there = ", ".join(f"{key} ({len(singles)})" for key, singles in images.items())
            raise ValueError(f"notes: {len(lines)} for {name!r}, but the images are {there}")
        below[name] = lines + [""] * (len(images[name]) - len(lines))
    return below


def _psnr_note(image: Image, references: list[Image], index: int) -> str:
    if not references or not isinstance(image, Tensor):
        return ""
    truth = references[min(index, len(references) - 1)]
    if not isinstance(truth, Tensor) or truth.shape[-2:] != image.shape[-2:] or truth.numel() != image.numel():
        return ""
    x = truth.reshape(1, -1, *truth.shape[-2:]).double()
    value = float(metrics.psnr(image.reshape(x.shape).double(), x))
    return "PSNR ∞" if value == float("inf") else f"PSNR {value:.1f} dB"


def describe(images: Mapping[str, list[Image]], notes: Mapping[str, list[str]]) -> str:
    """One sentence that names each image with its size and its caption, for readers who do not see it."""
    parts = []
    for name, singles in images.items():
        h, w = (singles[0] if isinstance(singles[0], Tensor) else singles[0].values).shape[-2:]
        count = "" if len(singles) == 1 else f"{len(singles)} pictures of "
        facts = [f"{count}{h} by {w} pixels"]
        if not isinstance(singles[0], Tensor):
            facts.append("colours from {:.3g} to {:.3g}".format(*singles[0].scale))
        said = [note for note in notes.get(name, []) if note]
        facts += said[:4] if len(said) < 5 else [*said[:4], "…"]
        parts.append(f"{title(name, symbol=False)} ({', '.join(facts)})")
    return f"{'One picture' if len(parts) == 1 else f'{len(parts)} pictures side by side'}: {'; '.join(parts)}."


def show(
    *mappings: Any,
    scale: tuple[float, float] = UNIT,
    reference: str | None = "x",
    notes: Mapping[str, str | Sequence[str]] | None = None,
    columns: int | None = None,
    size: int = 140,
    alt: str | None = None,
    **named: Image,
) -> Picture:
    """Lay images out in a row, titled from their keywords, on one common scale, and return the `Picture`.

    An image has shape (h, w), (c, h, w) or (b, c, h, w), c = 1 or 3; a batch goes down the rows when several names are
    given and fills a grid when it stands alone. Names that are no Python words come in a mapping:
    ``show({"nearest image": x})``. ``scale`` gives the intensities of black and white; a `SignedMap` or `HeatMap`
    brings its own colours and a colour bar.
    Below each image stands its note, by default its PSNR against the one named ``reference``. ``size`` is the longer
    side on the page in CSS pixels, rounded to whole multiples of the pixels. ``alt`` replaces the generated text.

    Raises ``ValueError`` for shapes that are not images and for values that are not finite, and ``TypeError`` for what
    is no image or has no name.
    """
    for mapping in mappings:
        if not isinstance(mapping, Mapping):
            raise TypeError(f"an image needs a name, as in show(x=images): got a bare {type(mapping).__name__}")
    singles = split({name: image for mapping in (*mappings, named) for name, image in mapping.items()})
    low, high = scale
    if not high > low:
        raise ValueError(f"scale=({low}, {high}): the intensity of white must be above that of black")
    said = annotate(singles, reference, notes or {})
    alt = describe(singles, said) if alt is None else alt
    return picture(_draw(_rows(singles, said, columns), scale, size), alt=alt)


@dataclass(frozen=True)
class _Cell:
    """One place of the grid: an image, what stands above and what stands below."""

    image: Image
    title: str
    note: str


def _rows(
    images: Mapping[str, list[Image]], notes: Mapping[str, list[str]], columns: int | None
) -> list[list[_Cell | None]]:
    """Rows of cells: names across and the batch down, or one long line that is broken into rows."""
    table = {
        name: [
            _Cell(image, title(name) if i == 0 else "", note)
            for i, (image, note) in enumerate(zip(singles, notes[name], strict=True))
        ]
        for name, singles in images.items()
    }
    depth = max(map(len, table.values()))
    if len(table) > 1 and depth > 1:
        return [[cells[i] if i < len(cells) else None for cells in table.values()] for i in range(depth)]
    line = [cell for cells in table.values() for cell in cells]
    columns = columns or min(len(line), 6)
    return [line[i : i + columns] for i in range(0, len(line), columns)]


def _draw(rows: list[list[_Cell | None]], scale: tuple[float, float], size: int) -> Figure:
    """A figure whose axes sit on whole device pixels, so that each image pixel covers a square of equal size."""
    cells = [cell for row in rows for cell in row if cell]
    shapes = {id(cell): rgba(cell.image, scale).shape[:2] for cell in cells}
    longest = max(max(shape) for shape in shapes.values())
    side = longest * max(1, round(size / longest)) if longest <= size else size
    boxes = {key: (side * w // max(h, w), side * h // max(h, w)) for key, (h, w) in shapes.items()}
    margin, gap, head, foot = 8, 14, 20, 18
    cell_width = max(width for width, _ in boxes.values())
    bar = 26 if any(not isinstance(cell.image, Tensor) for cell in cells) else 0
    heights = []
    for row in rows:
        present = [cell for cell in row if cell]
        heights.append((
            head if any(cell.title for cell in present) else 0,
            max(boxes[id(cell)][1] for cell in present),
            bar + (foot if any(cell.note for cell in present) else 0) + 6,
        ))  # fmt: skip
    width = 2 * margin + max(map(len, rows)) * (cell_width + gap) - gap
    height = 2 * margin + sum(map(sum, heights))
    drawing = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    top = margin
    for row, (above, tall, below) in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            if cell:
                left = margin + column * (cell_width + gap) + (cell_width - boxes[id(cell)][0]) // 2
                _draw_cell(drawing, cell, scale, (left, top + above, *boxes[id(cell)]), bar)
        top += above + tall + below
    return drawing


def _draw_cell(
    drawing: Figure, cell: _Cell, scale: tuple[float, float], box: tuple[int, int, int, int], bar: int
) -> None:
    page_width, page_height = drawing.get_size_inches() * _DPI
    left, top, width, height = box

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        place = drawing.add_axes((x / page_width, 1 - (y + h) / page_height, w / page_width, h / page_height))
        place.set(xticks=[], yticks=[])
        for spine in place.spines.values():
            spine.set(color="#999999", linewidth=0.5)
        return place

    def text(x: float, y: float, words: str, **style: Any) -> None:
        drawing.text(
            x / page_width, 1 - y / page_height, words, **{"ha": "center", "va": "center", "color": "#222222"} | style
        )

    pixels = rgba(cell.image, scale)
    shrinking = max(pixels.shape[:2]) > _DENSITY * max(width, height)
    place = axes(left, top, width, height)
    place.imshow(pixels, aspect="auto", interpolation="antialiased" if shrinking else "nearest")
    text(left + width / 2, top - 10, cell.title, fontsize=9.5)
    below = top + height + 4
    if not isinstance(cell.image, Tensor):
        place = axes(left, below, width, 8)
        place.imshow(_lookup(cell.image.colours)[None], aspect="auto")
        for x, align, value in zip((left, left + width), ("left", "right"), cell.image.scale, strict=True):
            text(x, below + 16, f"{value:.3g}".replace("-", "−"), ha=align, fontsize=7)
        below += bar
    text(left + width / 2, below + 7, cell.note, fontsize=8, color="#444444")
