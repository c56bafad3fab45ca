"""The pixel probe in a real JupyterLab: pointer, keyboard, what is said and drawn, latency, both themes."""

import re
import statistics

import pytest
from playwright.sync_api import Locator, expect

from browser.driving import Card, holds, middle_of, run_cells

CELLS = [
    "import torch\nimport lemmse as le",
    "images = le.data.fashion_mnist('train', 100)\n"
    "physics = le.Inpainting(le.center_mask(28, 28, side=9))\n"
    "noise = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))\n"
    "y = physics.A(le.data.fashion_mnist('test', 1)) + 0.1 * noise\n"
    "estimator = le.LocalEquivariantMMSE(images, physics, 5, le.PseudoInverse(physics))",
    "probe = le.ui.PixelProbe(estimator, y, sigma=0.1, k=5, pixel=(14, 20))\nprobe",
]
MILLISECONDS = 200  # from the click to the updated view, at most, in the median


class Probe(Card):
    """The probe on the page."""

    @property
    def estimate(self) -> Locator:
        return self.root.get_by_role("application")

    def at(self, row: int, column: int) -> dict[str, float]:
        """The place of a pixel's middle on the estimate."""
        return middle_of(self.estimate, row, column)

    def cells(self, name: str) -> list[str]:
        """The texts of a column of the table, sources only."""
        heads = self.root.locator("thead th").all_text_contents()
        return self.root.locator(f"tbody tr > :nth-child({heads.index(name) + 1})").all_text_contents()


@pytest.fixture(scope="module")
def shown(lab) -> Probe:
    """The probe of a notebook of its own, after running all cells."""
    run_cells(lab, "probe.ipynb", CELLS)
    probe = Probe(lab.page.locator(".lemmse-probe"))
    expect(probe.sentence).to_contain_text("row 14, column 20")
    return probe


@pytest.fixture
def probe(lab, shown) -> Probe:
    """The probe with one pixel chosen, the pointer elsewhere."""
    lab.page.mouse.move(0, 0)
    lab.run("probe.pixel = (14, 20)")
    expect(shown.sentence).to_contain_text("The pixel in row 14, column 20")
    return shown


def test_a_click_chooses_a_pixel_and_python_hears_of_it(lab, probe):
    drawn = probe.pixels()
    probe.estimate.click(position=probe.at(3, 11))
    expect(probe.sentence).to_contain_text("The pixel in row 3, column 11 of x̂")
    assert probe.pixels() != drawn
    lab.page.mouse.move(0, 0)
    expect(probe.sentence).to_contain_text("row 3, column 11")
    holds(lab, "probe.pixel == (3, 11)")
    lab.run("probe.pixel = (4, 12)")
    expect(probe.sentence).to_contain_text("The pixel in row 4, column 12 of x̂")


def test_hovering_shows_a_pixel_and_leaving_returns_to_the_chosen_one(lab, probe):
    probe.estimate.hover(position=probe.at(25, 3))
    expect(probe.sentence).to_contain_text("The pixel in row 25, column 3 of x̂")
    expect(probe.sentence).to_have_attribute("aria-live", "off")
    lab.page.mouse.move(0, 0)
    expect(probe.sentence).to_contain_text("The pixel in row 14, column 20 of x̂")
    expect(probe.sentence).to_have_attribute("aria-live", "polite")


def test_arrow_keys_walk_over_the_estimate(lab, probe):
    probe.estimate.focus()
    for key in ("ArrowDown", "ArrowLeft", "Control+ArrowUp", "Control+ArrowRight"):
        probe.estimate.press(key)
    expect(probe.sentence).to_contain_text("The pixel in row 10, column 24 of x̂")
    for _ in range(3):
        probe.estimate.press("Control+ArrowUp")
    expect(probe.sentence).to_contain_text("The pixel in row 0, column 24 of x̂")
    expect(probe.estimate).to_be_focused()
    assert lab.page.evaluate("() => document.querySelectorAll('.jp-Notebook .jp-CodeCell').length") == len(CELLS)


def test_weights_and_contributions_add_up_on_the_page(probe):
    """Read from the page itself, as a reader with paper and pencil would."""
    probe.estimate.click(position=probe.at(8, 8))
    expect(probe.sentence).to_contain_text("row 8, column 8")
    weights = [float(re.search(r"[01]\.\d{6}", cell).group()) for cell in probe.cells("weight")]
    given = [float(cell) for cell in probe.cells("gives")]
    sums = [float(cell) for cell in probe.cells("sum so far")]
    assert weights == sorted(weights, reverse=True)
    assert len(weights) == 5
    rest = probe.root.locator(".lemmse-rest td").all_text_contents()
    total = probe.root.locator(".lemmse-total td").all_text_contents()
    assert sum(weights) + float(rest[0]) == pytest.approx(1, abs=4e-6)
    assert total[0] == "1.000000"
    assert sums[-1] == pytest.approx(sum(given), abs=3e-3)
    assert sums[-1] + float(rest[2]) == pytest.approx(float(total[3]), abs=2e-3)
    level = probe.estimate.evaluate(
        """(canvas) => {
             const middle = (8.5 * canvas.width) / 28;
             return canvas.getContext("2d").getImageData(middle, middle, 1, 1).data[0];
           }"""
    )
    assert level / 255 == pytest.approx(min(1, float(total[3])), abs=3e-3)


def test_a_blind_window_says_so(probe):
    probe.estimate.click(position=probe.at(14, 14))
    expect(probe.sentence).to_contain_text("Nothing in its 5 × 5 window was measured")


def test_latency(lab, probe):
    """From a click to the updated view: sentence and table; and the same from an arrow key."""
    armed = """([canvas, sentence, event]) => {
      const said = sentence.textContent;
      window.lemmseTold = new Promise((resolve) => {
        canvas.addEventListener(event, () => {
          const pressed = performance.now();
          const look = () => {
            if (sentence.textContent === said) requestAnimationFrame(look);
            else resolve(performance.now() - pressed);
          };
          requestAnimationFrame(look);
        }, { once: true, capture: true });
      });
    }"""
    handles = [probe.estimate.element_handle(), probe.sentence.element_handle()]
    for event, name in (("click", "click"), ("keydown", "arrow key")):
        times = []
        for count in range(15):
            if event == "click":
                lab.page.mouse.move(0, 0)
                expect(probe.sentence).to_have_attribute("aria-live", "polite")
                lab.page.evaluate(armed, [*handles, event])
                # the event alone: a moving pointer hovers first, and the view would be there before the click
                place = probe.at(2 + count, 5 + count)
                probe.estimate.evaluate(
                    """(canvas, { x, y }) => {
                         const box = canvas.getBoundingClientRect();
                         const at = { clientX: box.left + x, clientY: box.top + y, bubbles: true };
                         canvas.dispatchEvent(new MouseEvent("click", at));
                       }""",
                    place,
                )
            else:
                lab.page.evaluate(armed, [*handles, event])
                probe.estimate.press("ArrowLeft" if count % 2 else "ArrowRight")
            times.append(lab.page.evaluate("() => window.lemmseTold"))
        lab.record_latency(f"PixelProbe, {name} to the updated view", times)
        assert statistics.median(times) <= MILLISECONDS, times


def test_names_and_roles(probe):
    expect(probe.estimate).to_have_attribute("aria-label", "x̂, 28 by 28 pixels, row 14, column 20 chosen")
    expect(probe.estimate).to_have_attribute("data-lm-suppress-shortcuts", "true")
    expect(
        probe.root.get_by_role("img", name=re.compile("^B y, 28 by 28 pixels, the window around row 14"))
    ).to_be_visible()
    expect(probe.root.get_by_role("img", name=re.compile("training image .* the window framed"))).to_have_count(5)
    expect(probe.root.get_by_role("rowheader")).to_have_count(7)
    expect(probe.root.get_by_role("columnheader", name="weight")).to_be_visible()
    unnamed = probe.root.evaluate(
        "(root) => [...root.querySelectorAll('canvas')].filter((each) => !each.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


def test_themes_are_legible(lab, probe):
    """In both themes every text of the probe has a contrast of at least 4.5 against what lies behind it."""
    for theme in ("Dark", "Light"):
        lab.theme(theme)
        ratios = probe.contrasts()
        assert len(ratios) > 25
        assert min(ratios.values()) >= 4.5, (theme, ratios)
