"""Every notebook of the series keeps the rules and agrees with its source; one that breaks a rule is found out."""

from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import notebook_rules as rules
import notebooks

SOURCES = notebooks.sources()
NAMES = [source.stem for source in SOURCES]


def generated(source: Path) -> nbformat.NotebookNode:
    """Return the notebook that stands beside its source."""
    notebook = source.with_suffix(".ipynb")
    return (
        nbformat.read(notebook, as_version=4)
        if notebook.exists()
        else pytest.fail(f"run: make notebooks ({notebook.name})")
    )


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_pair_agrees_in_content(source):
    found = notebooks.differences(source, generated(source))
    assert not found, "\n".join([f"run: make notebooks ({source.name} has changed)", *found])


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_rule(source, rule):
    broken = rules.RULES[rule](source.stem, generated(source))
    assert not broken, "\n".join(broken)


def test_every_notebook_has_its_source():
    assert {path.stem for path in notebooks.FOLDER.glob("*.ipynb")} == set(NAMES)


def test_claims_are_unique_in_the_series():
    used = Counter(claim for source in SOURCES for claim in rules.claims_of(generated(source)))
    assert [claim for claim, count in used.items() if count > 1] == []


# From here on: one notebook that keeps all rules, and for each rule the ways of breaking it.

PICTURE = {
    "text/html": '<img alt="a grey square" src="data:image/png;base64,iVBORw0K/tmp/abc=">',
    "text/plain": "a grey square",
}
OPENING = f"""# 42 · What is asked?

[Binder]({rules.binder("42_model")}) · [Colab]({rules.colab("42_model")})

About 20 minutes. [The end](#The-end)"""


def exercise(name: str) -> list[nbformat.NotebookNode]:
    """Return the cells of an exercise."""
    cells = [
        new_markdown_cell("Compute it.", metadata={"tags": ["exercise", "hint"]}),
        new_code_cell(f"exercise = Exercise({name!r}, expected=4.0)", metadata={"tags": ["exercise"]}),
        new_code_cell("answer = ...\nexercise.check(answer)", metadata={"tags": ["exercise"]}),
        new_markdown_cell("```python\nanswer = 4.0\n```", metadata={"tags": ["solution"]}),
        new_markdown_cell(
            "```python\nanswer = 2.0\n```\n```python\nanswer = 8.0\n```", metadata={"tags": ["wrong-answer"]}
        ),
    ]
    for cell in cells:
        cell.metadata["exercise"] = name
    return cells


def model() -> nbformat.NotebookNode:
    """Return a notebook that keeps every rule."""
    cells = [
        new_markdown_cell(OPENING),
        new_code_cell(rules.COLAB_CELL),
        new_markdown_cell("word " * 650, metadata={"tags": ["predict"]}),
    ]
    for i in range(8):
        output = new_output("stream", name="stdout", text=f"{i}\n")
        cells += [new_code_cell(f"{rules.CHECK}\nprint({i})", outputs=[output]), new_markdown_cell("Look.")]
    cells += [new_code_cell(f"assert {i} < 5", metadata={"tags": ["claim"], "claim": f"42-less-{i}"}) for i in range(2)]
    cells += [new_markdown_cell("So it is.")]
    cells += [
        new_code_cell(f"assert {i} < 9\nassert True", metadata={"tags": ["claim"], "claim": f"42-more-{i}"})
        for i in range(2)
    ]
    cells += [
        new_markdown_cell("## The end"),
        new_code_cell("assert 1 < 2", metadata={"tags": ["claim"], "claim": "42-last"}),
    ]
    cells += [
        new_code_cell("explore()", metadata={"tags": ["explorable"]}, outputs=[new_output("display_data", PICTURE)])
    ]
    cells += [new_markdown_cell("### What we saw\n\n* one\n* two\n* three")]
    cells += [cell for i in range(3) for cell in exercise(f"42-{i}")]
    return numbered(new_notebook(cells=cells, metadata=notebooks.METADATA))


def numbered(notebook):
    """Return the notebook as if its cells had been run in order."""
    for count, cell in enumerate(rules.code_cells(notebook), start=1):
        cell.execution_count = count
    return notebook


def cell_with(notebook, text):
    """Return the first cell whose source holds a text."""
    return next(cell for cell in notebook.cells if text in cell.source)


def replacing(text, by):
    """Return a change of the first cell that holds a text."""

    def change(notebook):
        cell = cell_with(notebook, text)
        cell.source = cell.source.replace(text, by)

    return change


def setting(text, **metadata):
    """Return a change of the metadata of the first cell that holds a text; ``None`` removes a key."""

    def change(notebook):
        found = cell_with(notebook, text).metadata
        found.update(metadata)
        for key in [key for key, value in metadata.items() if value is None]:
            del found[key]

    return change


def adding(**output):
    """Return a change that adds an output to the last code cell."""
    return lambda notebook: rules.code_cells(notebook)[-1].outputs.append(new_output(**output))


def inserting(position, *cells):
    """Return a change that inserts cells, whose counts go on without a gap."""

    def change(notebook):
        notebook.cells[position:position] = cells
        numbered(notebook)

    return change


def showing(html):
    """Return a change that shows some HTML."""
    return adding(output_type="display_data", data={"text/html": html})


def without_wrong_answers(notebook):
    notebook.cells = [cell for cell in notebook.cells if "wrong-answer" not in rules.tags(cell)]


def without_one_exercise(notebook):
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.get("exercise") != "42-1"]


BREAKS = [
    ("one_title_and_no_skipped_level", replacing("## The end", "# The end")),
    ("one_title_and_no_skipped_level", replacing("## The end", "### The end")),
    ("length", replacing("word " * 650, "word " * 100)),
    ("length", replacing("word " * 650, "word " * 1300)),
    ("length", lambda notebook: notebook.cells.extend([new_markdown_cell("x")] * 20)),
    ("short_code_cells", replacing("explore()", "explore()\n" * 16)),
    ("words_between_code", inserting(4, new_code_cell("1"), new_code_cell("2"))),
    ("opening_and_end", replacing("# 42 · ", "# ")),
    ("opening_and_end", replacing("20 minutes", "a while")),
    ("opening_and_end", replacing("* three", "")),
    ("badges", replacing("lab/tree/notebooks", "notebooks")),
    ("badges", replacing(f"{rules.SLUG}/blob", "someone/else/blob")),
    ("colab_cell", replacing("%pip install", "%pip install numpy")),
    ("colab_cell", inserting(1, new_code_cell("import torch"))),
    ("links", replacing("#The-end", "#Nowhere")),
    ("links", replacing("So it is.", "[So](../scripts/nothing.py) it is.")),
    ("links", replacing("So it is.", f"[So]({rules.REPOSITORY}/blob/{rules.TAG}/nothing.py) it is.")),
    ("pictures_have_words", adding(output_type="display_data", data={"image/png": "iVBORw0K", "text/plain": "F"})),
    ("pictures_have_words", showing('<img src="data:image/png;base64,iVBORw0K">')),
    ("pictures_have_words", showing('<div><img alt=" " src="data:image/png;base64,iVBORw0K"></div>')),
    ("pictures_have_words", replacing("So it is.", "![](picture.png)")),
    ("nothing_from_the_network", replacing("So it is.", "![badge](https://example.org/badge.svg)")),
    ("nothing_from_the_network", showing('<img alt="a" src="https://example.org/a.png">')),
    ("clean_outputs", lambda notebook: rules.code_cells(notebook)[3].update(execution_count=9)),
    ("clean_outputs", adding(output_type="stream", name="stderr", text="careful\n")),
    ("clean_outputs", adding(output_type="error", ename="E", evalue="", traceback=[])),
    ("nothing_of_one_machine", adding(output_type="stream", name="stdout", text="in /home/me/lemmse/data.py\n")),
    ("nothing_of_one_machine", adding(output_type="stream", name="stdout", text="<object at 0x7f0012345678>\n")),
    ("nothing_of_one_machine", lambda notebook: notebook.metadata.update(widgets={})),
    ("nothing_of_one_machine", lambda notebook: notebook.metadata.language_info.update(version="3.12.1")),
    ("nothing_of_one_machine", adding(output_type="display_data", data={notebooks.WIDGET_VIEW: {"model_id": "0"}})),
    ("small_file", adding(output_type="stream", name="stdout", text="x" * 1_500_000)),
    ("compared_outputs", replacing(f"{rules.CHECK}\nprint(3)", "print(3)")),
    ("compared_outputs", replacing(f"{rules.CHECK}\nprint(3)", f"print(3)\n{rules.CHECK}")),
    ("compared_outputs", lambda notebook: cell_with(notebook, "print(3)").update(outputs=[])),
    ("claims", setting("assert 1 < 2", tags=[])),
    ("claims", setting("assert 1 < 2", claim=None)),
    ("claims", setting("assert 1 < 2", claim="41-last")),
    ("claims", setting("assert 1 < 2", claim="42-less-0")),
    ("claims", replacing("assert 1 < 2", "assert True")),
    ("predict_and_explore", setting("word", tags=[])),
    ("predict_and_explore", setting("explore()", tags=[])),
    ("predict_and_explore", lambda notebook: cell_with(notebook, "explore()").update(outputs=[])),
    ("exercises", setting("Compute it.", tags=["exercise"])),
    ("exercises", without_wrong_answers),
    ("exercises", without_one_exercise),
]  # fmt: skip


@pytest.mark.parametrize("rule", rules.RULES)
def test_the_model_keeps(rule):
    assert rules.RULES[rule]("42_model", model()) == []


@pytest.mark.parametrize(("rule", "change"), BREAKS, ids=[f"{rule}-{i}" for i, (rule, _) in enumerate(BREAKS)])
def test_a_broken_rule_is_found_out(rule, change):
    notebook = model()
    change(notebook)
    assert rules.RULES[rule]("42_model", notebook) != []


def test_every_rule_is_broken_once():
    assert {rule for rule, _ in BREAKS} == set(rules.RULES)
