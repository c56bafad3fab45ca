"""The explorables of notebook 04 by pointer, and the painted hole by pointer and keyboard, in a real JupyterLab."""

import re

import pytest
from playwright.sync_api import Locator, expect

from browser.driving import Card, cards, holds, middle_of, run_cells

ROOM = "le.ui.explorables.locality_and_inpainting"
CELLS = [
    "import lemmse as le",
    f"{ROOM}.patchwork_of_windows()",
    f"{ROOM}.price_of_a_pre_inverse()",
    f"hole = {ROOM}.painted_hole()\nhole",
]

ANSWERED = """([target, sentence, patterns]) => {
  const until = (holds, pressed) => new Promise((resolve) => {
    const look = () => {
      if (holds(sentence.textContent)) resolve(performance.now() - pressed);
      else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
  window.lemmseAnswered = new Promise((resolve) => {
    target.addEventListener("keydown", async () => {
      const [pressed, times] = [performance.now(), []];
      let before = sentence.textContent;
      for (const pattern of patterns) {
        times.push(await until((said) => said !== before && new RegExp(pattern).test(said), pressed));
        before = sentence.textContent;
      }
      resolve(times);
    }, { once: true, capture: true });
  });
}"""


class Hole(Card):
    """The painter and the probe below it."""

    @property
    def painter(self) -> Card:
        return Card(self.root.locator(".lemmse-painter"))

    @property
    def probe(self) -> Card:
        return Card(self.root.locator(".lemmse-probe"))

    @property
    def canvas(self) -> Locator:
        return self.painter.root.get_by_role("application")

    @property
    def says(self) -> Locator:
        return self.painter.root.locator(".lemmse-paint .lemmse-sentence")

    @property
    def answer(self) -> Locator:
        return self.painter.root.locator(".lemmse-view .lemmse-sentence")

    def button(self, name: str) -> Locator:
        return self.painter.root.get_by_role("button", name=name, exact=True)


@pytest.fixture(scope="module")
def page(lab):
    """The page with all three, after running all cells."""
    run_cells(lab, "locality.ipynb", CELLS)
    hole = Hole(lab.page.locator(".jp-OutputArea").last)
    expect(hole.answer).to_contain_text("In the hole")
    expect(hole.probe.sentence).to_contain_text("The pixel in row 13, column 17")
    return *cards(lab, 2), hole


@pytest.fixture
def hole(lab, page) -> Hole:
    """The painted hole as it was at first, the pointer elsewhere."""
    lab.page.mouse.move(0, 0)
    lab.run(
        "hole.state = {'mask': le.ui.explorables.locality_and_inpainting.painted_hole().state['mask'],"
        " 'row': 13, 'column': 17}"
    )
    holds(lab, "True")  # once the cell has run: orders are obeyed in another thread
    expect(page[2].says).to_contain_text("81 of 784 pixels (10%) are hidden")
    expect(page[2].probe.sentence).to_contain_text("The pixel in row 13, column 17")
    return page[2]


def times_of(lab, target: Locator, key: str, sentence: Locator, *patterns: str) -> list[float]:
    """Milliseconds from a key press until another sentence is there that matches, for one pattern after another."""
    lab.page.evaluate(ANSWERED, [target.element_handle(), sentence.element_handle(), patterns])
    target.press(key)
    return lab.page.evaluate(
        """([sentence, patterns]) => Promise.race([window.lemmseAnswered, new Promise((_, fail) =>
             setTimeout(() => fail(new Error(`not all of ${patterns} in 10 s: ${sentence.textContent}`)), 10000))])""",
        [sentence.element_handle(), patterns],
    )


def test_sliders_and_choices_by_pointer(page):
    """Other pixels and another sentence after a click on the track of a slider, and on a choice."""
    patchwork, price, _ = page
    for card, label in ((patchwork, "noise level σ"), (price, "noise level σ")):
        said, drawn = card.sentence.text_content(), card.pixels()
        slider = card.control(label)
        box = slider.bounding_box()
        slider.click(position={"x": 0.9 * box["width"], "y": box["height"] / 2})
        expect(card.sentence).not_to_have_text(said)
        expect(card.sentence).not_to_contain_text("At half the resolution")
        assert card.pixels() != drawn
        card.reset()
        expect(card.sentence).to_have_text(said)
    price.root.get_by_text("Id", exact=True).click()
    expect(price.sentence).to_contain_text("the network sees y itself")
    price.root.get_by_text("A⁺", exact=True).click()
    expect(price.sentence).to_contain_text("B = A⁺ loses")


def test_latency_of_the_patchwork(lab, page):
    """A key brings the estimate at half the resolution, a pause the full one; no state is met twice."""
    slider, sentence = page[0].control("noise level σ"), page[0].sentence
    moves = ["ArrowRight"] * 4 + ["Home"]
    times = [times_of(lab, slider, key, sentence, "^At half", "^(?!At half)") for key in moves]
    coarse, full = zip(*times, strict=True)
    lab.record_latency("04: whose pixels, coarse answer", list(coarse))
    lab.record_latency("04: whose pixels, full answer after a pause", list(full))


def to_the_corner(hole: Hole) -> None:
    """Move the brush to the first pixel."""
    hole.canvas.focus()
    for key in ["Control+ArrowUp"] * 6 + ["Control+ArrowLeft"] * 6:
        hole.canvas.press(key)


def test_a_hole_painted_by_pointer(lab, hole):
    """The estimate follows the stroke, coarsely; once the brush rests both estimates and the probe do."""
    drawn, told = hole.painter.pixels(), hole.probe.pixels()
    hole.canvas.scroll_into_view_if_needed()
    box, mouse = hole.canvas.bounding_box(), lab.page.mouse
    for index, pixel in enumerate(((3, 2), (3, 12), (8, 12))):
        place = middle_of(hole.canvas, *pixel)
        mouse.move(box["x"] + place["x"], box["y"] + place["y"], steps=1 if index == 0 else 4)
        if index == 0:
            mouse.down()
    mouse.up()
    expect(hole.answer).to_contain_text("In the hole")
    expect(hole.says).not_to_contain_text("81 of 784")
    holds(lab, "(hole.painter.settled == hole.painter.mask).all()")
    assert hole.painter.pixels() != drawn
    estimate = hole.probe.root.get_by_role("application")
    estimate.click(position=middle_of(estimate, 3, 7))
    expect(hole.probe.sentence).to_contain_text("The pixel in row 3, column 7")
    expect(hole.probe.sentence).to_contain_text("holds 10 independent numbers instead of 25")  # two rows of five
    assert hole.probe.pixels() != told
    holds(
        lab,
        "hole.state['row'] == 3 and hole.state['mask'] == ["
        "''.join(str(int(v)) for v in row) for row in hole.painter.mask.tolist()]",
    )


def test_a_hole_painted_by_keyboard(hole):
    """Arrows and Space paint, presets and undo are buttons, arrows walk over the estimate of the probe."""
    told = hole.probe.pixels()
    to_the_corner(hole)
    hole.canvas.press("ArrowDown")
    hole.canvas.press("Space")
    expect(hole.says).not_to_contain_text("81 of 784")
    expect(hole.answer).to_contain_text("In the hole")
    hole.button("Show all").press("Enter")
    expect(hole.answer).to_contain_text("Nothing is hidden")
    hole.button("Invert").press("Enter")
    expect(hole.answer).to_contain_text("Everything is hidden")
    expect(hole.probe.sentence).to_contain_text("Nothing in its 5 × 5 window was measured")
    hole.canvas.press("Control+z")
    expect(hole.answer).to_contain_text("Nothing is hidden")
    expect(hole.probe.sentence).to_contain_text("25 measured numbers")
    assert hole.probe.pixels() != told
    estimate = hole.probe.root.get_by_role("application")
    estimate.press("ArrowUp")
    estimate.press("Control+ArrowRight")
    expect(hole.probe.sentence).to_contain_text("The pixel in row 12, column 22")


def test_latency_of_the_painted_hole(lab, hole):
    """From the key that paints to the coarse answer, to the full one, and to what the probe says of it."""
    answers, told = [], []
    to_the_corner(hole)
    for _ in range(5):
        hole.canvas.press("ArrowRight")
        holds(lab, "True")  # the kernel has explained the last mask
        lab.page.wait_for_timeout(500)
        answers.append(times_of(lab, hole.canvas, "Space", hole.answer, "^B = Id alone", "^In the hole"))
    for name in ("Half", "Undo", "Stripes"):
        holds(lab, "True")
        told += times_of(lab, hole.button(name), "Enter", hole.probe.sentence, "")
    coarse, full = zip(*answers, strict=True)
    lab.record_latency("04: painted hole, Space to the coarse answer", list(coarse))
    lab.record_latency("04: painted hole, full answer after a pause", list(full))
    lab.record_latency("04: painted hole, probe after a pause", told)


def test_the_still_picture_gives_way(lab, page):
    """Where the widgets live, the pictures for readers without a kernel are not shown."""
    stills = lab.page.locator("img.lemmse-still")
    expect(stills).to_have_count(3)
    assert [stills.nth(k).is_visible() for k in range(3)] == [False] * 3
    assert all(re.search("B = A⁺|owners|hole", stills.nth(k).get_attribute("alt")) for k in range(3))


def test_themes_are_legible(lab, page):
    """In both themes every text has a contrast of at least 4.5 against what lies behind it."""
    for theme in ("Dark", "Light"):
        lab.theme(theme)
        for card in page:
            ratios = card.contrasts()
            assert len(ratios) > 15
            assert min(ratios.values()) >= 4.5, (theme, ratios)
