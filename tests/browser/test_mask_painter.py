"""The mask painter in a real JupyterLab: pointer, keyboard, buttons, what Python hears, names, both themes."""

import re

import pytest
from playwright.sync_api import Locator, expect

from browser.driving import Card, holds, middle_of, run_cells

CELLS = [
    "import torch\nimport lemmse as le\nfrom lemmse.ui import View",
    "def answer(mask):\n"
    "    if not mask.any():\n"
    "        raise ValueError('nothing is visible')\n"
    "    return View({'y': mask}, {}, f'{int(mask.sum())} pixels are visible.')",
    "x = torch.linspace(0, 1, 784).reshape(1, 28, 28)\n"
    "painter = le.ui.MaskPainter(torch.ones(28, 28), image=x, answer=answer)\npainter",
]


class Painter(Card):
    """The painter on the page; pixels are named as in Python, (row, column)."""

    @property
    def canvas(self) -> Locator:
        return self.root.get_by_role("application")

    @property
    def says(self) -> Locator:
        return self.root.locator(".lemmse-paint .lemmse-sentence")

    @property
    def answer(self) -> Locator:
        return self.root.locator(".lemmse-view .lemmse-sentence")

    def at(self, row: int, column: int) -> dict[str, float]:
        """The place of a pixel's middle on the canvas."""
        return middle_of(self.canvas, row, column)

    def drag(self, *pixels: tuple[int, int]) -> None:
        """Draw a line with the pointer."""
        self.canvas.scroll_into_view_if_needed()
        box, mouse = self.canvas.bounding_box(), self.root.page.mouse
        for index, pixel in enumerate(pixels):
            place = self.at(*pixel)
            mouse.move(box["x"] + place["x"], box["y"] + place["y"], steps=1 if index == 0 else 3)
            if index == 0:
                mouse.down()
        mouse.up()

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    def colours(self, row: int, column: int) -> set[tuple[int, ...]]:
        """The colours that are drawn inside a pixel."""
        data = self.canvas.evaluate(
            """(canvas, [row, column]) => {
                 const zoom = canvas.width / 28;
                 return Array.from(canvas.getContext("2d").getImageData(column * zoom, row * zoom, zoom, zoom).data);
               }""",
            [row, column],
        )
        return {tuple(data[i : i + 3]) for i in range(0, len(data), 4)}


@pytest.fixture(scope="module")
def shown(lab) -> Painter:
    """The painter of a notebook of its own, after running all cells."""
    run_cells(lab, "painter.ipynb", CELLS)
    painter = Painter(lab.page.locator(".lemmse-painter"))
    expect(painter.answer).not_to_be_empty()
    return painter


@pytest.fixture
def painter(shown) -> Painter:
    """The painter with nothing hidden, a brush of one pixel that hides."""
    shown.button("Show all").click()
    expect(shown.answer).to_have_text("784 pixels are visible.")
    shown.root.get_by_text("Hide", exact=True).click()
    shown.root.get_by_role("slider", name="brush size").press("Home")
    return shown


def test_a_line_drawn_by_pointer_is_one_step(lab, painter):
    """Without gaps however few moves the browser reports, and the answer follows."""
    painter.drag((3, 2), (3, 12))
    expect(painter.answer).to_have_text("773 pixels are visible.")
    expect(painter.says).to_contain_text("11 of 784 pixels (1%) are hidden; the largest square hole is 1 × 1.")
    painter.drag((10, 5), (16, 5), (16, 8))
    expect(painter.answer).to_have_text("763 pixels are visible.")
    holds(lab, "torch.equal(painter.settled, painter.mask)")
    holds(lab, "painter.mask[3, 2:13].sum() == 0 and painter.mask[10:17, 5].sum() == 0")
    painter.button("Undo").click()
    expect(painter.answer).to_have_text("773 pixels are visible.")
    painter.button("Undo").click()
    expect(painter.answer).to_have_text("784 pixels are visible.")


def test_hidden_pixels_are_striped_and_visible_ones_are_the_image(painter):
    """Told apart by a pattern, not by colour alone."""
    assert painter.colours(20, 20) == {(189, 189, 189)}
    painter.canvas.click(position=painter.at(20, 20))
    expect(painter.answer).to_have_text("783 pixels are visible.")
    painter.root.page.mouse.move(0, 0)
    painter.button("Undo").focus()
    tones = [sum(colour) for colour in painter.colours(20, 20)]
    assert max(tones) - min(tones) > 150
    assert painter.colours(20, 21) == {(189, 189, 189)}


def test_the_eraser_and_a_wider_brush(painter):
    painter.button("Invert").click()
    expect(painter.root.locator(".lemmse-view .lemmse-problem")).to_have_text("ValueError: nothing is visible")
    painter.root.get_by_text("Show", exact=True).click()
    size = painter.root.get_by_role("slider", name="brush size")
    size.press("ArrowRight")
    size.press("ArrowRight")
    expect(size).to_have_attribute("aria-valuetext", "5 by 5 pixels")
    painter.canvas.click(position=painter.at(10, 10))
    expect(painter.answer).to_have_text("25 pixels are visible.")
    expect(painter.root.locator(".lemmse-view .lemmse-problem")).to_be_empty()
    painter.canvas.click(position=painter.at(0, 0))
    expect(painter.answer).to_have_text("34 pixels are visible.")


def test_everything_by_keyboard(lab, painter):
    """Move, paint, draw a line, take it back; what the brush stands on is said."""
    where = painter.root.locator(".lemmse-where")
    painter.canvas.click(position=painter.at(14, 14))
    painter.button("Undo").press("Enter")
    expect(painter.answer).to_have_text("784 pixels are visible.")
    painter.canvas.focus()
    painter.canvas.press("ArrowUp")
    painter.canvas.press("Control+ArrowLeft")
    expect(where).to_have_text("Row 13, column 9: visible.")
    painter.canvas.press("Space")
    expect(where).to_have_text("Row 13, column 9: hidden.")
    expect(painter.answer).to_have_text("783 pixels are visible.")
    keyboard = lab.page.keyboard
    keyboard.down("Shift")
    for _ in range(4):
        keyboard.press("ArrowDown")
    keyboard.up("Shift")
    expect(painter.answer).to_have_text("779 pixels are visible.")
    painter.canvas.press("Control+z")
    expect(painter.answer).to_have_text("783 pixels are visible.")
    expect(where).to_have_text("Row 17, column 9: visible.")
    painter.canvas.press("Control+z")
    expect(painter.answer).to_have_text("784 pixels are visible.")
    for _ in range(4):
        painter.canvas.press("Control+ArrowDown")
    expect(where).to_have_text("Row 27, column 9: visible.")
    assert lab.page.evaluate("() => document.querySelectorAll('.jp-Notebook .jp-CodeCell').length") == len(CELLS)


def test_presets_by_keyboard(painter):
    painter.button("Centre square").press("Enter")
    expect(painter.says).to_have_text("225 of 784 pixels (29%) are hidden; the largest square hole is 15 × 15.")
    painter.root.get_by_label("Share hidden by Random").select_option("75")
    painter.button("Random").press("Space")
    expect(painter.answer).to_have_text("196 pixels are visible.")
    painter.button("Half").press("Enter")
    expect(painter.says).to_contain_text("392 of 784 pixels (50%) are hidden")
    painter.button("Stripes").press("Enter")
    expect(painter.says).to_contain_text("the largest square hole is 2 × 2")
    painter.button("Invert").press("Enter")
    expect(painter.answer).to_have_text("392 pixels are visible.")


def test_python_paints_too(lab, painter):
    lab.run("painter.mask = le.center_mask(28, 28, side=3)")
    expect(painter.answer).to_have_text("775 pixels are visible.")
    assert len(painter.colours(14, 14)) > 1
    painter.button("Undo").click()
    expect(painter.answer).to_have_text("784 pixels are visible.")
    expect(painter.button("Undo")).to_have_attribute("aria-disabled", "false")


def test_names_and_roles(painter):
    expect(painter.canvas).to_have_attribute("aria-label", "Mask, 28 by 28 pixels")
    assert re.search("arrows move the brush", painter.root.locator(".lemmse-note").first.text_content())
    expect(painter.root.get_by_role("group", name="Mask painter")).to_be_visible()
    expect(painter.root.get_by_role("group", name="Presets")).to_be_visible()
    expect(painter.root.get_by_role("radio", name="Hide")).to_be_checked()
    expect(painter.says).to_have_attribute("aria-live", "polite")
    unprotected = painter.root.evaluate(
        """(root) => [...root.querySelectorAll("button, input, select, [tabindex='0']")]
             .filter((node) => node.dataset.lmSuppressShortcuts !== "true").map((node) => node.outerHTML)"""
    )
    assert unprotected == []


def test_latency(lab, painter):
    """From the key that paints a pixel to the changed pixels of the answer."""
    answered = """([canvas, picture]) => {
      const before = picture.toDataURL();
      window.lemmseAnswered = new Promise((resolve) => {
        canvas.addEventListener("keydown", () => {
          const pressed = performance.now();
          const look = () => {
            if (picture.toDataURL() === before) requestAnimationFrame(look);
            else resolve(performance.now() - pressed);
          };
          requestAnimationFrame(look);
        }, { once: true, capture: true });
      });
    }"""
    painter.canvas.click(position=painter.at(14, 5))
    expect(painter.answer).to_have_text("783 pixels are visible.")
    handles = [painter.canvas.element_handle(), painter.root.locator(".lemmse-view canvas").element_handle()]
    times = []
    for count in range(12):
        painter.canvas.press("ArrowRight")
        lab.page.evaluate(answered, handles)
        painter.canvas.press("Space")
        times.append(lab.page.evaluate("() => window.lemmseAnswered"))
        expect(painter.answer).to_have_text(f"{782 - count} pixels are visible.")
    lab.record_latency("MaskPainter, Space to the pixels of a quick answer", times)


def test_themes_are_legible(lab, painter):
    """In both themes every text of the painter has a contrast of at least 4.5 against what lies behind it."""
    for theme in ("Dark", "Light"):
        lab.theme(theme)
        ratios = painter.contrasts()
        assert len(ratios) > 15
        assert min(ratios.values()) >= 4.5, (theme, ratios)
