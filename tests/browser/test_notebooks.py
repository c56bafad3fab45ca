"""The notebooks in a real JupyterLab: open, run all, move each control by keyboard."""

import nbformat
import pytest
from playwright.sync_api import expect

from browser.driving import cards

WHOLE = ["00_inverse_problems", "02_mlp_memorization"]
# Of these, only the explorables: their other cells run elsewhere, by nbval.
EXCERPTS = ["01_degenerate_gaussians", "03_equivariance_vs_augmentation", "04_locality_and_inpainting"]
EXCERPTS += ["05_theory_vs_practice", "06_limits_of_the_theory", "07_recovery_bounds"]
PAINTED = "painted_hole"  # moved by no control: driven in test_locality


@pytest.mark.parametrize("notebook", WHOLE)
def test_open_run_all_and_move_every_control(lab, notebook):
    """A reader's first minutes."""
    drive(lab, notebook, len(explorables(lab, notebook)))


@pytest.mark.parametrize("notebook", EXCERPTS)
def test_move_every_control(lab, notebook):
    """The explorables of a notebook, on a page of their own."""
    cells = explorables(lab, notebook)
    page = nbformat.read(lab.server.root / f"{notebook}.ipynb", as_version=4)
    page.cells = [nbformat.v4.new_code_cell("import lemmse as le"), *cells]
    nbformat.write(page, lab.server.root / f"excerpt_{notebook}.ipynb")
    drive(lab, f"excerpt_{notebook}", len(cells))


def explorables(lab, notebook: str) -> list[nbformat.NotebookNode]:
    """The cells of a notebook that show an explorable with controls; there must be one."""
    cells = nbformat.read(lab.server.root / f"{notebook}.ipynb", as_version=4).cells
    tagged = [cell for cell in cells if "explorable" in cell.metadata.get("tags", [])]
    found = [cell for cell in tagged if PAINTED not in cell.source]
    assert found, f"{notebook} has no cell tagged 'explorable'"
    return found


def drive(lab, notebook: str, count: int) -> None:
    """Other pixels and another sentence after each key, and after "Reset" the first ones again."""
    lab.open(f"{notebook}.ipynb")
    lab.run_all()
    for card in cards(lab, count):
        said, drawn = card.sentence.text_content(), card.pixels()
        card.move_every_control()
        card.reset()
        expect(card.sentence).to_have_text(said)
        assert card.pixels() == drawn
        lab.record_latency(f"{notebook.removeprefix('excerpt_')}: {card.title}", card.latency(presses=12))
