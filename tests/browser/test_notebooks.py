"""The notebooks in a real JupyterLab: open, run all, move each control by keyboard."""

import nbformat
import pytest
from playwright.sync_api import expect

from browser.driving import cards


@pytest.mark.parametrize("notebook", ["00_inverse_problems", "01_degenerate_gaussians", "02_mlp_memorization"])
def test_open_run_all_and_move_every_control(lab, notebook):
    """Other pixels and another sentence after each key, and after "Reset" the first ones again."""
    cells = nbformat.read(lab.server.root / f"{notebook}.ipynb", as_version=4).cells
    lab.open(f"{notebook}.ipynb")
    lab.run_all()
    for card in cards(lab, count=sum("explorable" in cell.metadata.get("tags", []) for cell in cells)):
        said, drawn = card.sentence.text_content(), card.pixels()
        card.move_every_control()
        card.reset()
        expect(card.sentence).to_have_text(said)
        assert card.pixels() == drawn
        lab.record_latency(f"{notebook}: {card.title}", card.latency(presses=12))
