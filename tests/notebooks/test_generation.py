"""Notebooks are made from their sources: the same file from the same text, with nothing of the run or the machine."""

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

import notebooks

SOURCE = """\
# %% [markdown]
# # A title

# %%
import ipywidgets
import sys

# %%
print("out")
sys.stdout.flush()
print("out again")

# %% tags=["claim"] claim="42-two"
1 + 1

# %%
ipywidgets.IntSlider()

# %%
1 + 1
"""


@pytest.fixture
def source(tmp_path):
    """Return a small source in a folder of its own."""
    path = tmp_path / "42_small.py"
    path.write_text(SOURCE)
    return path


def test_the_same_source_gives_the_same_file(source):
    target = source.with_suffix(".ipynb")
    assert "written" in notebooks.regenerate(source)
    first = target.read_bytes()
    assert "unchanged" in notebooks.regenerate(source)
    target.unlink()
    notebooks.regenerate(source)
    assert target.read_bytes() == first
    assert notebooks.differences(source, nbformat.read(target, as_version=4)) == []


def test_outputs_are_kept_and_machines_are_not(source):
    result = notebooks.run(source)
    nbformat.validate(result.notebook)
    code = [cell for cell in result.notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert [output.text for output in code[1].outputs] == ["out\nout again\n"]
    assert code[2].outputs[0].data == {"text/plain": "2"}
    assert code[2].metadata == {"tags": ["claim"], "claim": "42-two"}
    assert code[3].outputs == []  # a live slider
    assert set(result.notebook.metadata) == {"kernelspec", "language_info"}
    assert "version" not in result.notebook.metadata.language_info
    assert 0 < result.seconds < 60
    assert 20 < result.peak_megabytes < 800


def test_ids_are_unique_and_stay_when_cells_come_and_go(source):
    before = [cell.id for cell in notebooks.build(source).cells]
    assert len(set(before)) == len(before)
    source.write_text(SOURCE.replace('# %% tags=["claim"]', '# %%\nnew = 3\n\n# %% tags=["claim"]'))
    after = [cell.id for cell in notebooks.build(source).cells]
    assert [i for i in after if i in before] == before
    assert len(after) == len(before) + 1


@pytest.mark.parametrize(
    ("old", "new"),
    [("A title", "Another title"), ("1 + 1", "1 + 2"), ("42-two", "42-three"), ("\n# %%\n1 + 1\n", "")],
    ids=["text", "code", "metadata", "cell"],
)
def test_a_changed_source_differs_from_its_notebook(source, old, new):
    notebook = notebooks.build(source)
    assert notebooks.differences(source, notebook) == []
    source.write_text(SOURCE.replace(old, new))
    assert notebooks.differences(source, notebook) != []


def test_check_compares_and_runs_nothing(source, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "sources", lambda prefixes: [source])
    assert notebooks.main(["--check"]) == 1
    nbformat.write(notebooks.build(source), source.with_suffix(".ipynb"))
    assert notebooks.main(["--check"]) == 0
    source.write_text(SOURCE.replace("1 + 1", "1 + 2"))
    assert notebooks.main(["--check"]) == 1
    assert "cell 3 differs" in capsys.readouterr().out


def test_a_cell_that_raises_leaves_the_old_file(source, monkeypatch, capsys):
    source.write_text("# %%\n1 / 0\n")
    target = source.with_suffix(".ipynb")
    target.write_text("as it was")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.run(source)
    monkeypatch.setattr(notebooks, "sources", lambda prefixes: [source])
    assert notebooks.main([]) == 1
    assert target.read_text() == "as it was"
    assert "42_small.py: a cell raised" in capsys.readouterr().err


def test_sources_are_chosen_by_their_beginning(source):
    folder = source.parent
    (folder / "43_more.py").write_text("")
    (folder / "notes.py").write_text("")
    assert [path.name for path in notebooks.sources(folder=folder)] == ["42_small.py", "43_more.py"]
    assert [path.name for path in notebooks.sources(["43"], folder)] == ["43_more.py"]
    with pytest.raises(FileNotFoundError, match=r"begins with \['44'\]"):
        notebooks.sources(["43", "44"], folder)
