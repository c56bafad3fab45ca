r"""Answers to exercises: tolerant comparison, and a diagnosis of the mistakes that people make.

:func:`check` compares one answer with what is expected and returns a :class:`Verdict`; it never prints and never raises
on a wrong answer. :class:`Exercise` binds a name, the expected answer and the typical mistakes together, so that the
same check serves the reader, the tests and a teacher. :func:`read` takes the exercises out of a notebook again, and
:meth:`NotebookExercise.run` checks any answer to one of them without running the notebook around it.

**How an exercise stands in a notebook** (py:percent): five cells that carry the same metadata key ``exercise``, whose
value starts with the notebook's number. The question with its folded hint; a folded code cell that defines the check
and needs nothing but itself (it imports what it uses); the blank, whose last line is the check; the folded solution;
the folded wrong answers. Hints, solutions and wrong answers are folded with ``<details>``, which JupyterLab, VS Code,
Colab, GitHub and static pages all honour, with an empty line after each ``<summary>`` and before ``</details>``::

    # %% [markdown] tags=["exercise", "hint"] exercise="01-volume" minutes=4
    # ### Exercise 1: the volume of a flat thing
    # Write `log_pdet(factor)`, the logarithm of the product of the non-zero eigenvalues of `factor @ factor.T`.
    #
    # <details><summary>Hint</summary>
    #
    # The singular values of the factor are the square roots of these eigenvalues.
    #
    # </details>

    # %% tags=["exercise"] exercise="01-volume" jupyter={"source_hidden": true} cellView="form"
    # @title The check of exercise 1
    import torch
    from lemmse.exercises import Exercise
    ...
    exercise = Exercise("01-volume", expected=log_pdet_of_the_package, inputs=[(flat,), (full,)], mistakes={
        "That is the determinant: one eigenvalue is zero, so its logarithm is -inf.": lambda q: (q @ q.T).logdet(),
        "These are singular values of the factor; an eigenvalue is the square of one.": lambda q: ...,
    })

    # %% tags=["exercise"] exercise="01-volume"
    def log_pdet(factor):
        return ...


    exercise.check(log_pdet)

    # %% [markdown] tags=["solution"] exercise="01-volume"
    # <details><summary>Solution</summary>
    #
    # ```python
    # def log_pdet(factor):
    #     s = torch.linalg.svdvals(factor)
    #     return 2 * s[s > 1e-10 * s.max()].log().sum()
    # ```
    # One sentence on why.
    #
    # </details>

    # %% [markdown] tags=["wrong-answer"] exercise="01-volume"
    # <details><summary>Two wrong turns</summary>
    #
    # ```python
    # def log_pdet(factor):
    #     return torch.logdet(factor @ factor.T)
    # ```
    # answers `-inf`. And the second one:
    #
    # ```python
    # ...
    # ```
    # </details>

The fenced blocks are code that a reader could type in place of the blank: each is run after the check's own cell, and
then the last line of the blank cell is evaluated. So they see the names that the check's cell defines, and no others.
"""

import ast
import html
import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

__all__ = ["ANSWER_ATOL", "ANSWER_RTOL", "Exercise", "NotebookExercise", "Verdict", "check", "read"]

ANSWER_RTOL = 1e-2
"""An answer may be off by this fraction of the expected number: what two or three written digits can hold."""

ANSWER_ATOL = 1e-9
"""... and by this much besides, so that an expected zero can be met by rounding."""


@dataclass(frozen=True)
class Verdict:
    """What :func:`check` has to say about one answer; true when the answer is right."""

    passed: bool
    answered: bool
    message: str
    name: str = ""
    diagnosed: bool = False
    """Whether the message is the diagnosis of one of the exercise's listed mistakes."""

    def __bool__(self) -> bool:
        """Return whether the answer is right."""
        return self.passed

    @property
    def _sign(self) -> str:
        return "✓" if self.passed else ("✗" if self.answered else "…")

    def __repr__(self) -> str:
        """Return the verdict as one line."""
        return f"{self._sign} {self.name + ': ' if self.name else ''}{self.message}"

    def _repr_html_(self) -> str:
        """Return the verdict as a paragraph for light and dark pages, where the sign says what the colour says."""
        colour = "#2a9d4a" if self.passed else ("#d1495b" if self.answered else "#8a8a8a")
        name = f"<b>{html.escape(self.name)}</b> " if self.name else ""
        return (
            f'<p role="status" style="border-left: 4px solid {colour}; padding: .3em .8em; margin: .4em 0">'
            f"{self._sign} {name}{html.escape(self.message)}</p>"
        )


def check(
    answer: object,
    expected: object,
    *,
    inputs: Sequence[tuple] = (),
    rtol: float = ANSWER_RTOL,
    atol: float = ANSWER_ATOL,
    mistakes: Mapping[str, object] | None = None,
    choices: Sequence[str] = (),
    why: str = "",
    name: str = "",
) -> Verdict:
    """Compare an answer with what is expected and return a :class:`Verdict`.

    ``expected`` decides what is compared: a number, array or tensor entry by entry (``|answer - expected| <= atol +
    rtol |expected|``, same shape); a ``bool`` exactly; a string whatever its case and spacing (``choices`` lists what
    may be said); a set without order; a function by its values on every tuple of ``inputs``. ``...``, alone, inside
    the answer, or returned by it, is "not answered yet".

    ``mistakes`` maps a diagnosis to the wrong answer that calls for it: a value, a predicate of the answer, or, where a
    function is expected, a wrong function. ``why`` is said with a right answer. Raises ``ValueError`` where a listed
    mistake could not be told from the right answer, and ``TypeError`` where a function is expected without ``inputs``.

    >>> check(3.14, torch.pi)
    ✓ right.
    >>> check(2.0, 4.0, mistakes={"That is the standard deviation, not the variance.": 2.0})
    ✗ That is the standard deviation, not the variance.
    >>> check(..., 4.0)
    … not answered yet: put your answer in place of the dots.
    """
    exercise = Exercise(
        name, expected, inputs=inputs, rtol=rtol, atol=atol, mistakes=mistakes or {}, choices=choices, why=why
    )
    return exercise.check(answer)


@dataclass(frozen=True, eq=False, repr=False)
class Exercise:
    """One question's expected answer and typical mistakes, under a name: ``exercise.check(answer)`` returns a verdict.

    The arguments are those of :func:`check`; they are examined when the exercise is made, so that an exercise whose
    mistakes overlap with its answer cannot be written.
    """

    name: str
    expected: object
    inputs: Sequence[tuple] = ()
    rtol: float = ANSWER_RTOL
    atol: float = ANSWER_ATOL
    mistakes: Mapping[str, object] = field(default_factory=dict)
    choices: Sequence[str] = ()
    why: str = ""

    def __post_init__(self) -> None:
        """Examine the exercise itself; raises where no answer could be judged by it."""
        if callable(self.expected) and not self.inputs:
            raise TypeError(
                f"exercise {self.name!r} expects a function but has no inputs to try it on: "
                "give inputs=[(arguments, of, one, call), ...]"
            )
        if self.choices and _key(self.expected) not in map(_key, self.choices):
            raise ValueError(f"exercise {self.name!r} expects {self.expected!r}, which is not among {self.choices!r}")
        for diagnosis, wrong in self.mistakes.items():
            if self._made(wrong, self.expected, self._values(self.expected)):
                raise ValueError(
                    f"exercise {self.name!r} would call the right answer a mistake ({diagnosis!r}): "
                    "make the tolerance smaller or the numbers more different"
                )

    def __repr__(self) -> str:
        """Return the exercise's name, and not its answer."""
        return f"Exercise({self.name!r})"

    def check(self, answer: object) -> Verdict:
        """Judge one answer and return a :class:`Verdict`."""
        if _has_dots(answer):
            return self._verdict("not answered yet: put your answer in place of the dots.", answered=False)
        if callable(self.expected) and not callable(answer):
            return self._verdict(f"a function is asked for, but {_kind(answer)} came.")
        try:
            values = self._values(answer)
        except Exception as error:  # the reader's own code: whatever it raises is part of the answer
            return self._verdict(f"your function raised {type(error).__name__}: {error}")
        if _has_dots(values):
            return self._verdict("not answered yet: put your code in place of the dots.", answered=False)
        if callable(self.expected) and any(value is None for value in values):
            return self._verdict("your function returns None: is its `return` missing?")
        complaint = self._complaint(values, self._values(self.expected))
        if complaint is None:
            return self._verdict(f"right. {self.why}".rstrip(), passed=True)
        for diagnosis, wrong in self.mistakes.items():
            if self._made(wrong, answer, values):
                return self._verdict(diagnosis, diagnosed=True)
        return self._verdict(complaint)

    def _verdict(
        self, message: str, *, passed: bool = False, answered: bool = True, diagnosed: bool = False
    ) -> Verdict:
        return Verdict(passed=passed, answered=answered, message=message, name=self.name, diagnosed=diagnosed)

    def _values(self, answer: object) -> list:
        """Return what is compared: the values of a function on all inputs, or the one value that an answer is."""
        if not callable(self.expected):
            return [answer]
        # Each call gets its own copies: an answer that works in place must not spoil the comparison.
        return [answer(*(a.clone() if isinstance(a, torch.Tensor) else a for a in inputs)) for inputs in self.inputs]

    def _made(self, wrong: object, answer: object, values: list) -> bool:
        """Return whether an answer, whose values are given, makes a listed mistake."""
        if callable(wrong) and not callable(self.expected):
            try:
                return bool(wrong(answer))
            except (TypeError, ValueError, RuntimeError, AttributeError):  # met a type it was not made for
                return False
        return self._complaint(values, self._values(wrong)) is None

    def _complaint(self, values: list, right: list) -> str | None:
        """Return what is wrong with the values in general words, ``None`` where they are right."""
        for i, pair in enumerate(zip(values, right, strict=True)):
            complaint = self._difference(*pair)
            if complaint is not None:
                return f"on input {i + 1} of {len(values)}: {complaint}" if len(values) > 1 else complaint
        return None

    def _difference(self, value: object, right: object) -> str | None:
        """Return how one value differs from the right one in general words, ``None`` where they agree."""
        if isinstance(right, str):
            return self._word_difference(value, right)
        if isinstance(right, AbstractSet):
            return _set_difference(value, right)
        if isinstance(right, bool):
            a = _as_array(value)
            if a is None or a.dtype != bool or a.size != 1:
                return f"True or False is asked for, but {_kind(value)} came."
            return None if bool(a.item()) == right else f"{bool(a.item())} is not it."
        return self._number_difference(value, right)

    def _word_difference(self, value: object, right: str) -> str | None:
        if not isinstance(value, str):
            return f"a word is asked for, but {_kind(value)} came."
        if self.choices and _key(value) not in map(_key, self.choices):
            return f"please choose one of: {', '.join(self.choices)}."
        return None if _key(value) == _key(right) else f"{value!r} is not it."

    def _number_difference(self, value: object, right: object) -> str | None:
        a, r = _as_array(value), _as_array(right)
        if r is None or r.dtype.kind not in "biufc":
            raise TypeError(f"exercise {self.name!r} cannot compare with {_kind(right)}")
        if a is None or a.dtype.kind not in "biufc":
            return f"{_numbers(r)} asked for, but {_kind(value)} came."
        a = a.reshape(()) if r.ndim == 0 and a.size == 1 else a
        if a.shape != r.shape:
            transposed = a.ndim > 1 and a.shape == r.shape[::-1]
            return f"the shape is {a.shape}, but {r.shape} is asked for.{' Is it transposed?' if transposed else ''}"
        near = self._near(a, r)
        if near.all():
            return None
        if not np.isfinite(a).all() and np.isfinite(r).all():
            return f"{_some(~np.isfinite(a))} not finite (inf or NaN)."
        if self._near(np.asarray(-1 * a), r).all():
            return "the sign is the other way round."
        if r.size == 1 and r.dtype.kind != "c":
            return f"{a.item():.4g} is too {'large' if a.item() > r.item() else 'small'}."
        return f"{_some(~near)} too far off."

    def _near(self, a: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.asarray(np.isclose(a, r, rtol=self.rtol, atol=self.atol, equal_nan=True))


@dataclass(frozen=True)
class NotebookExercise:
    """The cells of one exercise, as :func:`read` found them in a notebook."""

    name: str
    question: str
    definition: str
    blank: str
    solution: str
    wrong_answers: tuple[str, ...]
    minutes: int | float | None = None

    def run(self, answer: str | None = None) -> Verdict:
        """Run the check's own cell, then ``answer`` (code) in place of the blank's, and return the :class:`Verdict`.

        Without an answer the blank itself is judged. Nothing else of the notebook is run.
        """
        body, last = _split_last(self.blank)
        namespace: dict[str, object] = {"__name__": "__exercise__"}
        exec(compile(self.definition, f"<check of {self.name}>", "exec"), namespace)
        exec(compile(body if answer is None else answer, f"<answer to {self.name}>", "exec"), namespace)
        verdict = eval(compile(last, f"<blank of {self.name}>", "eval"), namespace)
        if not isinstance(verdict, Verdict):
            raise ValueError(f"exercise {self.name!r}: its blank cell must end in a check, but ends in {last!r}")
        return verdict


_FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def read(notebook: Mapping | str | Path) -> list[NotebookExercise]:
    """Return the exercises of a notebook (an ``.ipynb`` file, or its parsed content) in their order.

    Raises ``ValueError`` that names the exercise and the part where one is incomplete: each needs a question, a check,
    a blank, one solution and at least two wrong answers, laid out as in the docstring of this module.
    """
    if not isinstance(notebook, Mapping):
        notebook = json.loads(Path(notebook).read_text(encoding="utf-8"))
    cells: dict[str, list[Mapping]] = {}
    for cell in notebook["cells"]:
        if "exercise" in cell["metadata"]:
            cells.setdefault(cell["metadata"]["exercise"], []).append(cell)
    return [_assemble(name, members) for name, members in cells.items()]


def _assemble(name: str, cells: list[Mapping]) -> NotebookExercise:
    def sources(tag: str, kind: str) -> list[str]:
        chosen = (c for c in cells if tag in c["metadata"].get("tags", ()) and c["cell_type"] == kind)
        return [c["source"] if isinstance(c["source"], str) else "".join(c["source"]) for c in chosen]

    questions, code = sources("exercise", "markdown"), sources("exercise", "code")
    solutions = [block for text in sources("solution", "markdown") for block in _FENCE.findall(text)]
    wrong = [block for text in sources("wrong-answer", "markdown") for block in _FENCE.findall(text)]
    for part, found, wanted in (
        ("a question (markdown, tag exercise)", len(questions), "1"),
        ("a check and a blank (code, tag exercise)", len(code), "2"),
        ("a fenced solution (markdown, tag solution)", len(solutions), "1"),
    ):
        if found != int(wanted):
            raise ValueError(f"exercise {name!r} needs {part}: expected {wanted}, found {found}")
    if len(wrong) < 2:
        raise ValueError(
            f"exercise {name!r} needs at least 2 fenced wrong answers (tag wrong-answer), found {len(wrong)}"
        )
    minutes = next((c["metadata"]["minutes"] for c in cells if "minutes" in c["metadata"]), None)
    return NotebookExercise(name, questions[0], code[0], code[1], solutions[0], tuple(wrong), minutes)


def _split_last(code: str) -> tuple[str, str]:
    """Return the code before its last statement, and that statement, which must be an expression."""
    statements = ast.parse(code).body
    if not statements or not isinstance(statements[-1], ast.Expr):
        raise ValueError(f"the last line of an exercise's blank must be its check, but the cell is {code!r}")
    lines = code.splitlines()
    start = statements[-1].lineno - 1
    return "\n".join(lines[:start]), "\n".join(lines[start:])


def _has_dots(answer: object) -> bool:
    if isinstance(answer, Mapping):
        return any(_has_dots(v) for v in answer.values())
    if isinstance(answer, list | tuple | AbstractSet):
        return any(_has_dots(v) for v in answer)
    return answer is ...


def _key(value: object) -> object:
    return " ".join(value.split()).casefold() if isinstance(value, str) else value


def _as_array(value: object) -> np.ndarray | None:
    """Return a value as an array, ``None`` where it is nothing of the kind."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy()
    try:
        return np.asarray(value)
    except (ValueError, TypeError):  # a ragged list
        return None


def _set_difference(answer: object, right: AbstractSet) -> str | None:
    if isinstance(answer, str) or not isinstance(answer, AbstractSet | list | tuple | np.ndarray | torch.Tensor):
        return f"a set is asked for, like {{0, 2}}, but {_kind(answer)} came."
    given = set(answer.tolist() if isinstance(answer, np.ndarray | torch.Tensor) else answer)
    if given == right:
        return None
    missing, extra = len(right - given), len(given - right)
    return f"{missing} missing and {extra} too many."


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _numbers(r: np.ndarray) -> str:
    return "a number is" if r.ndim == 0 else f"numbers of shape {r.shape} are"


def _some(flags: np.ndarray | np.bool_) -> str:
    count = int(flags.sum())
    return "it is" if flags.size == 1 else f"{count} of {flags.size} entries {'is' if count == 1 else 'are'}"
