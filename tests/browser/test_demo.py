"""The widgets in a real JupyterLab: keyboard, pixels, sentence, errors, themes, state."""

import re

from playwright.sync_api import expect

from browser.driving import Card, cards


def test_every_control_answers_to_the_keyboard(lab):
    lab.open("demo.ipynb")
    lab.run_all()
    noise, broken, slow = cards(lab)
    assert noise.title == "What does noise hide?"

    noise.move_every_control()
    noise.reset()
    lab.record_latency("demo.noise, noise level σ", noise.latency(presses=20))

    _check_state_line(lab, noise)
    _check_accessible_names(noise)
    _check_pictures(noise)
    _check_two_views_of_one_explorable_agree(lab)
    _check_failure_is_shown_and_passes(broken)
    _check_coarse_then_full(slow)


def _check_state_line(lab, card: Card):
    """The copied line, with the state changed, makes an explorable in that state."""
    card.unfold()
    card.control("noise level σ").press("End")
    expect(card.code).to_have_text(re.compile(r"sigma=1\.0"))
    card.root.get_by_role("button", name="Copy").click()
    copied = lab.page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "le.ui.explorables.demo.noise(kind='inpainting', sigma=1.0, shown='nothing', seed=0)"
    card.reset()
    expect(card.code).to_have_text(copied.replace("sigma=1.0", "sigma=0.1"))


def _check_accessible_names(card: Card):
    """Every input has a name of its own and every picture says what it is."""
    expect(card.root.get_by_role("slider", name="noise level σ")).to_have_attribute("aria-valuetext", "0.1")
    expect(card.root.get_by_role("radio", name="inpainting")).to_be_checked()
    expect(card.root.get_by_role("group", name="operator")).to_be_visible()
    expect(card.root.get_by_role("img", name=re.compile(r"x̂, PSNR [\d.]+ dB, 28 by 28 pixels"))).to_be_visible()
    expect(card.sentence).to_have_attribute("aria-live", "polite")


def _check_pictures(card: Card):
    """The pixels on the page are those of the image, pictures are walked by arrows, maps have bars, plots have text."""
    first, second = card.root.locator("canvas").nth(0), card.root.locator("canvas").nth(1)
    assert first.evaluate("canvas => [canvas.width, canvas.height]") == [28, 28]
    corner = first.evaluate("canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, 1, 1).data)")
    middle = first.evaluate("canvas => Array.from(canvas.getContext('2d').getImageData(14, 14, 1, 1).data)")
    assert corner[0] < 5 < 240 < middle[0]
    assert corner[3] == middle[3] == 255
    first.focus()
    first.press("ArrowRight")
    expect(second).to_be_focused()
    expect(card.root.locator("img.lemmse-plot")).to_be_hidden()
    card.root.get_by_text("error map", exact=True).click()
    expect(card.root.locator("canvas")).to_have_count(4)
    expect(card.root.locator(".lemmse-bar").nth(3)).to_be_visible()
    card.root.get_by_text("cross-section", exact=True).click()
    plot = card.root.locator("img.lemmse-plot")
    expect(plot).to_be_visible()
    assert plot.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 960
    assert plot.get_attribute("alt") == card.sentence.text_content()
    card.reset()
    expect(card.root.locator("canvas")).to_have_count(3)


def _check_two_views_of_one_explorable_agree(lab):
    """Setting the state from Python moves the inputs on the page."""
    lab.run("explorable.state = {'sigma': 0.5, 'kind': 'denoising'}")
    card = cards(lab)[0]
    expect(card.sentence).to_contain_text("At σ = 0.5, denoising")
    expect(card.root.get_by_role("slider", name="noise level σ")).to_have_attribute("aria-valuetext", "0.5")
    expect(card.root.get_by_role("radio", name="denoising")).to_be_checked()
    card.reset()
    expect(card.sentence).to_contain_text("At σ = 0.1, inpainting")


def _check_failure_is_shown_and_passes(card: Card):
    card.control("σ").press("End")
    expect(card.root.locator(".lemmse-problem")).to_have_text("ValueError: sigma = 1 is refused by this view")
    card.control("σ").press("ArrowLeft")
    expect(card.root.locator(".lemmse-problem")).to_be_empty()
    expect(card.sentence).to_contain_text("At σ = 0.5")


def _check_coarse_then_full(card: Card):
    """While the slider moves the coarse answer comes; the full one after it rests."""
    seen = card.sentence.evaluate_handle(
        "node => { const seen = []; new MutationObserver(() => seen.push(node.textContent)).observe(node,"
        " { childList: true, characterData: true, subtree: true }); return seen; }"
    )
    card.control("σ").press("ArrowRight")
    expect(card.sentence).to_have_text("Full answer at 0.2.")
    assert seen.json_value() == ["Coarse answer at 0.2.", "Full answer at 0.2."]


def test_themes_are_legible(lab):
    """In both themes every text of the widget has a contrast of at least 4.5 against what lies behind it."""
    lab.open("demo.ipynb")
    lab.run_all()
    card = cards(lab)[0]
    card.unfold()
    for theme in ("Light", "Dark"):
        lab.theme(theme)
        ratios = card.contrasts()
        assert min(ratios.values()) >= 4.5, (theme, ratios)
    lab.theme("Light")
