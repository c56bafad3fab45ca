"""What an explorable shows (`View`) and what the reader moves (`Slider`, `Choice`): plain values, no widget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from lemmse.figures import UNIT, Image, split

__all__ = ["Choice", "Control", "Slider", "View", "position", "texts"]


@dataclass(frozen=True)
class View:
    """What a reader sees in one state: ``pictures`` or a matplotlib ``figure`` or both, ``numbers``, a ``sentence``.

    The sentence is computed from the present numbers and says what the pictures show: it is the text twin, read aloud
    to those who do not see them. ``notes`` replaces what stands under a picture (by default its PSNR against the one
    named ``reference``); ``scale`` gives the intensities of black and white. Pictures follow `lemmse.figures.show`.

    Raises ``ValueError`` if there is nothing to see, the sentence is blank or a number is not finite.
    """

    pictures: Mapping[str, Image] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    sentence: str = ""
    figure: Figure | None = None
    notes: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    reference: str | None = "x"
    scale: tuple[float, float] = UNIT

    def __post_init__(self) -> None:
        """Refuse a view that would leave the reader with nothing to see, to read or to trust."""
        if not self.pictures and self.figure is None:
            raise ValueError("a View shows at least one picture or a figure")
        if self.pictures:
            split(self.pictures)
        if not self.sentence.strip():
            raise ValueError("a View needs its sentence: what do the present numbers say?")
        for name, value in self.numbers.items():
            if not math.isfinite(value):
                raise ValueError(f"a View's numbers are finite; {name} is {value}")


@dataclass(frozen=True)
class Slider:
    """A slider over a finite increasing list of numbers.

    ``texts`` replaces the shown text of each value, which is the number itself; ``folded`` puts it behind "More".
    Raises ``ValueError`` if the values do not increase or the default is none of them.
    """

    label: str
    values: Sequence[float]
    default: float
    texts: Sequence[str] | None = None
    folded: bool = False

    def __post_init__(self) -> None:
        """Check that there is something to slide over."""
        if any(not a < b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"slider {self.label!r}: the values must increase; got {list(self.values)}")
        _check(self)


@dataclass(frozen=True)
class Choice:
    """A choice among a few options: strings, numbers or booleans.

    ``texts`` replaces the shown text of each option, which is the option itself; ``folded`` puts it behind "More".
    Raises ``ValueError`` if an option comes twice or the default is none of them.
    """

    label: str
    options: Sequence[str | float]
    default: str | float
    texts: Sequence[str] | None = None
    folded: bool = False

    def __post_init__(self) -> None:
        """Check that the options can be told apart."""
        _check(self)

    @property
    def values(self) -> Sequence[str | float]:
        """The options, under the name that a slider gives them."""
        return self.options


Control = Slider | Choice


def position(control: Control, value: Any) -> int:
    """Where a value stands in a control's list, numbers to a relative 1e-9; raises ``ValueError`` if it does not."""
    for index, known in enumerate(control.values):
        if isinstance(known, bool) is isinstance(value, bool) and (known == value or _close(known, value)):
            return index
    raise ValueError(f"{value!r} is none of {', '.join(map(repr, control.values))}")


def texts(control: Control) -> list[str]:
    """What the reader sees for each value of a control."""
    if control.texts is not None:
        return list(control.texts)
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in control.values]


def _close(known: Any, value: Any) -> bool:
    both = isinstance(known, int | float) and isinstance(value, int | float)
    return both and math.isclose(known, value, rel_tol=1e-9)


def _check(control: Control) -> None:
    name = f"{type(control).__name__.lower()} {control.label!r}"
    if not control.label.strip():
        raise ValueError(f"{name}: the label is empty, and it is the control's accessible name")
    for value in control.values:
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{name}: {value!r} is no string, boolean or finite number, so a state could not hold it")
    if any(position(control, value) != index for index, value in enumerate(control.values)):
        raise ValueError(f"{name}: a value comes twice in {list(control.values)}")
    if control.texts is not None and len(control.texts) != len(control.values):
        raise ValueError(f"{name}: {len(control.values)} values have {len(control.texts)} texts")
    try:
        position(control, control.default)
    except ValueError as error:
        raise ValueError(f"{name}: the default {error}") from None
