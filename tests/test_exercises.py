"""Answers are judged with tolerance, typical mistakes are named, and every notebook's exercises stand on their own."""

import doctest
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch

import lemmse.exercises
from lemmse.exercises import Exercise, check, read

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/[0-9]*.py"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (3.14, np.pi),
        (4, 4.0),
        (torch.tensor([4.0]), 4.0),
        ([1, 2, 3], torch.tensor([1.0, 2.0, 3.0])),
        (np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
        (torch.tensor(2.0, requires_grad=True), 2.0),
        (float("inf"), float("inf")),
        (1e-12, 0.0),
        (True, True),
        (np.bool_(False), False),
        (torch.tensor(True), True),
        ("  A   Plane ", "a plane"),
        ([2, 0], {0, 2}),
        (torch.tensor([0, 2, 2]), {0, 2}),
        (1 + 2j, 1 + 2j),
    ],
)
def test_right_answers_pass_in_whatever_form_they_come(answer, expected):
    verdict = check(answer, expected, why="Because.")
    assert verdict.passed
    assert verdict.answered
    assert verdict.message == "right. Because."


@pytest.mark.parametrize(
    ("answer", "expected", "message"),
    [
        (3.2, np.pi, "3.2 is too large."),
        (3.0, np.pi, "3 is too small."),
        (-np.pi, np.pi, "the sign is the other way round."),
        (float("nan"), np.pi, "it is not finite (inf or NaN)."),
        ([1.0, float("inf"), 3.0], [1.0, 2.0, 3.0], "1 of 3 entries is not finite (inf or NaN)."),
        ([1.0, 5.0, 6.0], [1.0, 2.0, 3.0], "2 of 3 entries are too far off."),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "the shape is (2,), but (3,) is asked for."),
        (torch.ones(2, 3), torch.ones(3, 2), "the shape is (2, 3), but (3, 2) is asked for. Is it transposed?"),
        ([[1.0], [2.0, 3.0]], [1.0, 2.0], "numbers of shape (2,) are asked for, but a value of type list came."),
        ("4", 4.0, "a number is asked for, but a value of type str came."),
        (None, 4.0, "a number is asked for, but a value of type NoneType came."),
        (1, True, "True or False is asked for, but a value of type int came."),
        (False, True, "False is not it."),
        (3, "line", "a word is asked for, but a value of type int came."),
        ("plane", "line", "'plane' is not it."),
        ({1}, {0, 2}, "2 missing and 1 too many."),
        (0, {0}, "a set is asked for, like {0, 2}, but a value of type int came."),
        ("02", {0, 2}, "a set is asked for, like {0, 2}, but a value of type str came."),
    ],
)
def test_wrong_answers_are_told_what_is_wrong_without_being_told_the_answer(answer, expected, message):
    verdict = check(answer, expected)
    assert not verdict.passed
    assert verdict.answered
    assert not verdict.diagnosed
    assert verdict.message == message


@pytest.mark.parametrize("blank", [..., [1.0, ...], {...}, (..., 2), {"a": ...}])
def test_dots_anywhere_are_not_an_answer(blank):
    verdict = check(blank, 4.0, mistakes={"Not this.": 2.0})
    assert not verdict.passed
    assert not verdict.answered
    assert repr(verdict) == "… not answered yet: put your answer in place of the dots."


def test_tolerances_are_kept():
    assert check(1.0099, 1.0)
    assert not check(1.0101, 1.0)
    assert check(1.05, 1.0, rtol=0.1)
    assert not check(1.0099, 1.0, rtol=1e-3)
    assert check(0.09, 0.0, atol=0.1)
    assert not check(0.11, 0.0, atol=0.1)


def test_choices_reject_what_is_not_on_the_list():
    choices = ["line", "plane"]
    assert check("Plane", "plane", choices=choices)
    assert check("cube", "plane", choices=choices).message == "please choose one of: line, plane."
    assert check("line", "plane", choices=choices).message == "'line' is not it."
    with pytest.raises(ValueError, match="not among"):
        check("line", "point", choices=choices)


def test_typical_mistakes_are_named_first_match_first():
    exercise = Exercise(
        "00-variance",
        4.0,
        mistakes={"That is the standard deviation.": 2.0, "A variance is not negative.": lambda a: a < 0, "Late.": 2.0},
    )
    assert exercise.check(2.01).message == "That is the standard deviation."
    assert exercise.check(-4.0).message == "A variance is not negative."
    assert exercise.check(-4.0).diagnosed
    assert not exercise.check(3.0).diagnosed
    assert exercise.check("four").message == "a number is asked for, but a value of type str came."
    assert repr(exercise) == "Exercise('00-variance')"


def test_functions_are_compared_by_their_values():
    inputs = [(torch.tensor([1.0, 2.0, 5.0]),), (torch.tensor([3.0, 4.0]),)]
    exercise = Exercise(
        "00-square", lambda a: a**2, inputs=inputs, mistakes={"That is the double.": lambda a: 2 * a}, why="Squares."
    )
    assert exercise.check(lambda a: a * a).passed
    assert exercise.check(torch.square).passed
    assert exercise.check(lambda a: 2 * a).message == "That is the double."
    assert exercise.check(lambda a: a).message == "on input 1 of 2: 2 of 3 entries are too far off."
    assert exercise.check(3.0).message == "a function is asked for, but a value of type float came."
    assert exercise.check(lambda a: 1 / 0).message == "your function raised ZeroDivisionError: division by zero"
    assert exercise.check(lambda a: None).message == "your function returns None: is its `return` missing?"
    assert not exercise.check(lambda a: ...).answered
    assert exercise.check(lambda a: a.square_()).passed  # works in place, on copies
    assert torch.equal(inputs[0][0], torch.tensor([1.0, 2.0, 5.0]))


def test_an_exercise_that_cannot_judge_is_refused():
    with pytest.raises(ValueError, match="would call the right answer a mistake"):
        Exercise("00-a", 4.0, mistakes={"Too near.": 4.01})
    with pytest.raises(ValueError, match="would call the right answer a mistake"):
        Exercise("00-b", 4.0, mistakes={"Positive.": lambda a: a > 0})
    with pytest.raises(ValueError, match="would call the right answer a mistake"):
        Exercise("00-c", lambda a: a**2, inputs=[(2.0,)], mistakes={"Double.": lambda a: 2 * a})
    with pytest.raises(TypeError, match="no inputs"):
        Exercise("00-d", lambda a: a)
    with pytest.raises(TypeError, match="cannot compare"):
        check(1.0, object())


def test_a_verdict_reads_well_and_is_true_only_when_right():
    right, wrong = check(4.0, 4.0, name="01-a"), check(5.0, 4.0, name="01-a", mistakes={"a < b & c": 5.0})
    assert repr(right) == "✓ 01-a: right."
    assert repr(wrong) == "✗ 01-a: a < b & c"
    assert bool(right)
    assert not bool(wrong)
    assert "a &lt; b &amp; c" in wrong._repr_html_()
    assert "✗" in wrong._repr_html_()
    assert 'role="status"' in right._repr_html_()


def test_nothing_is_printed(capsys):
    check(4.0, 4.0), check(5.0, 4.0), check(..., 4.0)
    assert capsys.readouterr() == ("", "")


def test_docstring_examples():
    result = doctest.testmod(lemmse.exercises)
    assert result.attempted >= 3
    assert result.failed == 0


NOTEBOOK = """
# %% [markdown] tags=["exercise", "hint"] exercise="09-area" minutes=3
# How large is a square of side 3?

# %% tags=["exercise"] exercise="09-area" jupyter={"source_hidden": true}
from lemmse.exercises import Exercise

side = 3
exercise = Exercise("09-area", side**2, mistakes={"That is its outline.": 4 * side, "That is its half.": 4.5})

# %% tags=["exercise"] exercise="09-area"
area = ...

exercise.check(area)

# %% [markdown] tags=["solution"] exercise="09-area"
# <details><summary>Solution</summary>
#
# ```python
# area = side**2
# ```
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="09-area"
# ```python
# area = 4 * side
# ```
# or
# ```python
# area = side**2 / 2
# ```
"""


def test_an_exercise_is_read_and_run_without_its_notebook():
    (exercise,) = read(jupytext.reads(NOTEBOOK, fmt="py:percent"))
    assert (exercise.name, exercise.minutes) == ("09-area", 3)
    assert exercise.question.startswith("How large")
    assert exercise.run().answered is False
    assert exercise.run(exercise.solution).passed
    assert [exercise.run(w).message for w in exercise.wrong_answers] == ["That is its outline.", "That is its half."]
    assert exercise.run("area = 10").message == "10 is too large."


def test_a_notebook_file_is_read_as_its_content_is(tmp_path):
    content = jupytext.reads(NOTEBOOK, fmt="py:percent")
    jupytext.write(content, tmp_path / "n.ipynb")
    assert read(tmp_path / "n.ipynb") == read(content)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('[markdown] tags=["exercise", "hint"]', '[markdown] tags=["hint"]', "needs a question"),
        ('tags=["exercise"] exercise="09-area"\narea', 'exercise="09-area"\narea', "a check and a blank"),
        ("# ```python\n# area = side**2\n# ```\n", "# side squared\n", "needs a fenced solution"),
        ("# ```python\n# area = side**2 / 2\n# ```", "# half", "at least 2 fenced wrong answers"),
    ],
)
def test_an_incomplete_exercise_is_named(old, new, message):
    assert NOTEBOOK.count(old) == 1
    with pytest.raises(ValueError, match=f"'09-area' needs.*{message.removeprefix('needs ')}"):
        read(jupytext.reads(NOTEBOOK.replace(old, new), fmt="py:percent"))


@pytest.mark.parametrize("last", ["area = 3", "exercise"])
def test_a_blank_must_end_in_a_check(last):
    (exercise,) = read(jupytext.reads(NOTEBOOK.replace("exercise.check(area)", last), fmt="py:percent"))
    with pytest.raises(ValueError, match="check"):
        exercise.run()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_exercises_of_a_notebook(path):
    exercises = read(jupytext.read(path))
    assert len(exercises) >= 3
    for exercise in exercises:
        assert exercise.name.startswith(f"{path.name[:2]}-"), f"{exercise.name} must start with {path.name[:2]}-"
        blank, solution = exercise.run(), exercise.run(exercise.solution)
        assert not blank.answered, f"the blank of {exercise.name}: {blank}"
        assert solution.passed, f"the solution of {exercise.name}: {solution}"
        verdicts = [exercise.run(wrong) for wrong in exercise.wrong_answers]
        unnamed = [verdict for verdict in verdicts if verdict.passed or not verdict.diagnosed]
        assert not unnamed, f"wrong answers whose mistake is not named: {unnamed}"
        assert len({verdict.message for verdict in verdicts}) >= 2, f"{exercise.name} names fewer than two mistakes"
