"""A mask that is painted: presets, undo, what it says in words, and the answer that follows it. No front end."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import traitlets
from jaxtyping import Float, Float32
from torch import Tensor

from lemmse.figures import Picture
from lemmse.operators import center_mask, half_mask, random_mask, stripe_mask
from lemmse.ui.explorable import compose
from lemmse.ui.traits import AbstractTraits
from lemmse.ui.view import View

__all__ = ["PERCENTS", "PRESETS", "Painting", "as_mask", "describe_mask", "largest_hole", "painted", "rows_of"]

PRESETS = {"centre": "Centre square", "random": "Random", "half": "Half", "stripes": "Stripes", "none": "Show all"}
"""What each preset is called on its button."""

PERCENTS = (10, 25, 50, 75, 90)
"""The shares of hidden pixels, in percent, that the reader can draw at random."""

HALVES = ("left", "top", "right", "bottom")  # the visible half: a second press of the preset shows the next one
STEPS = 200  # of undo


def as_mask(mask: Any) -> Float32[Tensor, "h w"]:
    """Return a copy of a mask (h, w) as float32 zeros and ones; it comes as a tensor, an array, lists, or rows of text.

    A row of text holds "1" where a pixel is visible, "0" where it is hidden. Raises ``ValueError`` for anything else.
    """
    rows = mask
    if isinstance(mask, Sequence) and mask and all(isinstance(row, str) for row in mask):
        if set("".join(mask)) - {"0", "1"} or len({len(row) for row in mask}) > 1:
            raise ValueError("a mask written as text has rows of one length that hold '1' (visible) and '0' (hidden).")
        rows = [[int(digit) for digit in row] for row in mask]
    try:
        values = torch.as_tensor(rows).detach().to("cpu", torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"mask: zeros and ones of shape (h, w), or rows of text; got {type(mask).__name__}.") from None
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"mask: shape (h, w) with at least one pixel; got {tuple(values.shape)}.")
    other = values[(values != 0) & (values != 1)]
    if len(other):
        raise ValueError(f"mask: 1 where a pixel is visible, 0 where it is hidden; got {other[0]:g} among its values.")
    return values


def rows_of(mask: Float[Tensor, "h w"]) -> list[str]:
    """Return a mask as rows of text, "1" visible and "0" hidden: JSON that a reader can read."""
    return ["".join("1" if value else "0" for value in row) for row in mask.tolist()]


def largest_hole(mask: Float[Tensor, "h w"]) -> int:
    """Return the side of the largest square of hidden pixels, which may wrap around the border as windows do (S5.2)."""
    hole, side = mask == 0, 0
    while side < min(mask.shape) and hole.any():
        hole, side = hole & hole.roll(-1, 0) & hole.roll(-1, 1) & hole.roll((-1, -1), (0, 1)), side + 1
    return side


def describe_mask(mask: Float[Tensor, "h w"]) -> str:
    """Return a sentence that says how much is hidden and how large the largest hole is."""
    count, hidden = mask.numel(), int((mask == 0).sum())
    if hidden == 0:
        return f"All {count} pixels are visible."
    if hidden == count:
        return f"All {count} pixels are hidden: nothing is measured."
    side = largest_hole(mask)
    share = f"{hidden} of {count} pixels ({hidden / count:.0%}) {'is' if hidden == 1 else 'are'} hidden"
    return f"{share}; the largest square hole is {side} × {side}."


class Painting(AbstractTraits):
    """A mask that changes by strokes, presets, inversion and undo, and what each front end of `MaskPainter` shares.

    ``mask`` is a trait, (h, w) float32, 1 where visible: ``observe(function, names="mask")`` follows it, and setting it
    moves the picture. ``settled`` is the mask as the last finished stroke left it, for what is too slow to follow a
    brush; where there is a coarse answer, a stroke is finished once the reader pauses. ``state`` is the mask as JSON.
    """

    mask = traitlets.Any()
    settled = traitlets.Any(read_only=True)

    def _begin(
        self,
        mask: Any,
        image: Tensor | None,
        answer: Callable[[Tensor], View] | None,
        coarse: Callable[[Tensor], View] | None,
        generator: torch.Generator | None,
    ) -> None:
        """Check what the reader paints on; raises ``ValueError`` for a mask or an image of another shape."""
        start = as_mask(mask)
        h, w = start.shape
        if image is not None:
            image = image[0] if image.ndim == 4 and len(image) == 1 else image
            if image.ndim not in (2, 3) or tuple(image.shape[-2:]) != (h, w):
                raise ValueError(
                    f"image: the picture under a mask of {h} × {w} pixels is (c, {h}, {w}) with c = 1 or 3; "
                    f"got {tuple(image.shape)}."
                )
        self.image, self.answer, self.coarse = image, answer, coarse
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._past: list[Tensor] = []
        self._stroke: str | None = None
        self._halves, self._resting, self._recording = 0, True, True
        self._lock = threading.RLock()  # JupyterLab delivers orders in a thread of their own, beside the cells
        self.mask = start
        self.set_trait("settled", start)
        self.observe(self._changed, names="mask")

    @traitlets.validate("mask")
    def _checked(self, proposal: Any) -> Any:
        mask = as_mask(proposal["value"])
        if isinstance(self.mask, Tensor) and mask.shape != self.mask.shape:
            h, w = self.mask.shape
            raise ValueError(f"mask: this painter's has {h} × {w} pixels; got {tuple(mask.shape)}.")
        return mask

    def _changed(self, change: Any) -> None:
        if torch.equal(change["old"], change["new"]):
            return
        with self._lock:
            if self._recording:
                self._past, self._stroke = [*self._past[1 - STEPS :], change["old"]], None
            try:
                self._follow()
            finally:
                self._settle()

    def _settle(self) -> None:
        if self._resting and self.settled is not self.mask:
            self.set_trait("settled", self.mask)

    def _put(self, mask: Tensor, *, recording: bool) -> None:
        """Set the mask, as a step to take back or as part of one."""
        self._recording = recording
        try:
            self.mask = mask
        finally:
            self._recording = True

    @abstractmethod
    def _follow(self) -> None:
        """Show the present mask and the answer to it; each front end does it in its own way."""

    @property
    def state(self) -> dict[str, list[str]]:
        """The mask as JSON, one string of zeros and ones for each row. Setting it paints that mask."""
        return {"mask": rows_of(self.mask)}

    @state.setter
    def state(self, state: dict[str, list[str]]) -> None:
        if set(state) != {"mask"}:
            raise ValueError(f"the state of a painter is {{'mask': rows of text}}; got the keys {sorted(state)}.")
        self.mask = state["mask"]

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._past)

    def undo(self) -> None:
        """Take back the last stroke, preset or inversion; nothing happens where there is none."""
        if self._past:
            self._stroke = None
            self._put(self._past.pop(), recording=False)

    def invert(self) -> None:
        """Hide what is visible and show what is hidden."""
        self.mask = 1 - self.mask

    def preset(self, name: str, percent: float = 50) -> None:
        """Paint a whole mask: one of ``PRESETS``, ``"random"`` with ``percent`` of the pixels hidden.

        ``"random"`` draws anew each time and ``"half"`` turns. Raises ``ValueError`` for another name or share.
        """
        h, w = self.mask.shape
        if name == "centre":
            self.mask = center_mask(h, w, side=min(h, w) // 2 | 1)
        elif name == "random":
            if not 0 <= percent <= 100:
                raise ValueError(f"preset('random'): percent hidden is between 0 and 100; got {percent}.")
            self.mask = random_mask(h, w, keep=1 - percent / 100, generator=self._generator)
        elif name == "half":
            self.mask = half_mask(h, w, visible=HALVES[self._halves % len(HALVES)])
            self._halves += 1
        elif name == "stripes":
            self.mask = stripe_mask(h, w, period=min(4, w))
        elif name == "none":
            self.mask = torch.ones(h, w)
        else:
            raise ValueError(f"preset({name!r}): there are {', '.join(PRESETS)}.")

    def paint(self, pixels: Sequence[int], *, visible: bool, stroke: str | None = None) -> None:
        """Hide or show pixels, named by their row-major indices; parts of one ``stroke`` are undone together.

        Raises ``ValueError`` for an index that is no pixel.
        """
        count = self.mask.numel()
        if any(not 0 <= pixel < count for pixel in pixels):
            raise ValueError(f"paint: pixels run from 0 to {count - 1}; got {min(pixels)} to {max(pixels)}.")
        mask = self.mask.clone()
        mask.view(-1)[list(pixels)] = float(visible)
        if torch.equal(mask, self.mask):
            return
        going_on = stroke is not None and stroke == self._stroke
        try:
            self._put(mask, recording=not going_on)
        finally:
            self._stroke = stroke

    def obey(self, order: dict[str, Any]) -> None:
        """Do what the reader asks for on the page: an order is JSON, ``kind`` and what belongs to it.

        After an order that is not ``resting`` others follow, at last one that is: the coarse answer does until then.
        """
        with self._lock:
            self._obey(order)

    def _obey(self, order: dict[str, Any]) -> None:
        self._resting = order.get("resting", True)
        before = self.mask
        try:
            if order["kind"] == "paint":
                self.paint(order["pixels"], visible=order["visible"], stroke=order["stroke"])
            elif order["kind"] == "preset":
                self.preset(order["name"], order["percent"])
            elif order["kind"] != "rest":
                {"undo": self.undo, "invert": self.invert}[order["kind"]]()
            if self._resting and self.mask is before and self.settled is not before:
                if self.coarse is not None:
                    self._follow()  # the mask rests where the coarse answer has followed it
                self._settle()
        finally:
            self._resting = True

    def look(self) -> View:
        """Compute what the answer shows for the present mask; the mask itself where there is no answer."""
        if self.answer is None:
            return _mask_view(self.mask, self.image)
        moving = not self._resting and self.coarse is not None
        return (self.coarse if moving else self.answer)(self.mask)

    def picture(self) -> Picture:
        """Return the present view as a static `Picture`, whose text says what is hidden."""
        return _still(self.look(), self.mask)

    def _ipython_display_(self) -> None:
        publish(self, self.picture())


def publish(widget: Any, picture: Picture) -> None:
    """Show a widget below its static picture, which stays for readers without a kernel and hides where it lives.

    The picture alone where the widget is ``None``.
    """
    from IPython.display import display  # IPython is there when this is called

    if widget is None:
        display(picture)
        return
    display({"text/html": picture.html("lemmse-still"), "text/plain": picture.alt}, raw=True)
    reference = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display({"application/vnd.jupyter.widget-view+json": reference, "text/plain": picture.alt}, raw=True)


def painted(
    mask: Any,
    *,
    image: Tensor | None = None,
    answer: Callable[[Tensor], View] | None = None,
    coarse: Callable[[Tensor], View] | None = None,
    generator: torch.Generator | None = None,
) -> Picture:
    """Return the static `Picture` that stands for a `MaskPainter` where no widget works: mask, or answer."""
    mask = as_mask(mask)
    return _still(_mask_view(mask, image) if answer is None else answer(mask), mask)


def _still(view: View, mask: Tensor) -> Picture:
    return compose(view, "Paint the hole." if view.sentence == describe_mask(mask) else describe_mask(mask))


def _mask_view(mask: Tensor, image: Tensor | None) -> View:
    seen = {} if image is None else {"what is visible": image * mask.to(image)}
    return View({"mask": mask, **seen}, {}, describe_mask(mask), reference=None)
