"""An explorable: a pure function from a state to a `View`, and the controls that move the state."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lemmse import figures
from lemmse.ui.view import Control, View, position

__all__ = ["Explorable", "compose"]

State = dict[str, str | float]


class Explorable:
    """A pure function ``view(**state) -> View`` and the controls that set its state.

    A notebook shows it as a static picture and, where widgets work, as a widget in the picture's place.

    ``controls`` maps each parameter of ``view`` to its `Slider` or `Choice`; at most three are in sight, the others are
    made with ``folded=True``. ``name`` is where ``le.ui.explorables`` holds the function that makes this explorable,
    such as ``"inverse_problems.inverse_problems"``; the state then prints as a line of Python that restores it.
    ``state`` sets some values at the start, the others take their defaults. ``coarse``, a quicker function of the same
    state, answers while a control moves; ``view`` follows once it rests. ``then`` is called with the state when the
    widget has shown its ``view``, for what follows more slowly still.

    Raises ``ValueError`` if more than three controls are in sight or the state names a value that no control has.
    """

    def __init__(
        self,
        view: Callable[..., View],
        controls: Mapping[str, Control],
        *,
        title: str,
        name: str,
        state: Mapping[str, Any] | None = None,
        coarse: Callable[..., View] | None = None,
        then: Callable[..., None] | None = None,
    ) -> None:
        """Check the controls; nothing is computed before something is shown."""
        if not controls:
            raise ValueError(f"explorable {title!r}: there is no control to move")
        in_sight = [key for key, control in controls.items() if not control.folded]
        if len(in_sight) > 3:
            raise ValueError(f"explorable {title!r}: {len(in_sight)} controls are in sight; fold all but three")
        if not re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)*", name):
            raise ValueError(
                f"explorable {title!r}: name={name!r} is no dotted name such as 'inverse_problems.inverse_problems'"
            )
        self.view, self.coarse, self.then = view, coarse, then
        self.controls = dict(controls)
        self.title, self.name = title, name
        self._state = self._validated({**self.defaults, **(state or {})})
        self._widget: Any = None

    @property
    def defaults(self) -> State:
        """The state that "Reset" returns to: the default of every control."""
        return {key: control.values[position(control, control.default)] for key, control in self.controls.items()}

    @property
    def state(self) -> State:
        """The present value of every control; JSON holds it. Setting it (whole or in part) moves the widget too."""
        return dict(self._state)

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._state = self._validated({**self._state, **state})
        if self._widget is not None:
            self._widget.follow()

    def _accept(self, state: State) -> None:
        """Take a state that the reader's controls hold already, without moving them again."""
        self._state = self._validated(state)

    def reset(self) -> None:
        """Return every control to its default."""
        self.state = self.defaults

    @property
    def state_line(self) -> str:
        """One line of Python that makes this explorable again in its present state."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._state.items())
        return f"le.ui.explorables.{self.name}({arguments})"

    def look(self) -> View:
        """Compute the view of the present state."""
        return self.view(**self._state)

    def picture(self, **state: Any) -> figures.Picture:
        """The view of the present state, changed by ``state``, as a static `Picture` whose text holds its sentence."""
        return compose(self.view(**self._validated({**self._state, **state})), self.title)

    @property
    def widget(self) -> Any:
        """The widget, made when first asked for by the best `backend` there is; ``None`` where only pictures work."""
        if self._widget is None:
            from lemmse.ui.backend import make_widget  # not at the top: backends need this module's class

            self._widget = make_widget(self)
        return None if self._widget is None else self._widget.root

    def _ipython_display_(self) -> None:
        from IPython.display import display  # IPython is there when this is called

        # The picture is for readers without a kernel, or whose page cannot load widgets; the live widget's style sheet
        # hides it. Published, not returned: Colab loads the front ends of widgets only for what is published.
        picture = self.picture()
        display({"text/html": picture.html("lemmse-still"), "text/plain": picture.alt}, raw=True)
        if self.widget is not None:
            display(self._repr_mimebundle_(), raw=True)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if self.widget is None:
            return self.picture()._repr_mimebundle_()
        reference = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return {"application/vnd.jupyter.widget-view+json": reference, "text/plain": repr(self)}

    def __repr__(self) -> str:
        """Its title and the line that restores its state."""
        return f"{self.title} | {self.state_line}"

    def _validated(self, state: Mapping[str, Any]) -> State:
        """The state with each value as its control has it, or a ``ValueError`` that names control and values."""
        unknown = state.keys() - self.controls.keys()
        if unknown:
            raise ValueError(f"{self.title}: no control {sorted(unknown)}; there are {list(self.controls)}")
        valid = {}
        for key, control in self.controls.items():
            try:
                valid[key] = control.values[position(control, state[key])]
            except ValueError as error:
                raise ValueError(f"{self.title}: {key} = {error}") from None
        return valid


def compose(view: View, title: str = "") -> figures.Picture:
    """A view's pictures and figure on one page as a `Picture`; its text is title, sentence, and what is shown."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in view.numbers.items())
    stop = "" if title[-1:] in ("", "?", "!", ".") else ":"
    sentence = f"{title}{stop} {view.sentence}".strip() + (f" ({numbers})" if numbers else "")
    if not view.pictures:
        return figures.picture(view.figure, alt=sentence)
    shown = figures.show(view.pictures, notes=view.notes, reference=view.reference, scale=view.scale)
    if view.figure is None:
        return figures.picture(shown.figure, alt=f"{sentence} {shown.alt}")
    return figures.stack([shown.figure, view.figure], alt=f"{sentence} {shown.alt}")
