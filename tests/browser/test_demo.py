"""The widgets in a real JupyterLab: keyboard, pixels, sentence, state, names, failures, themes."""

import re

import pytest
from playwright.sync_api import expect

from browser.driving import Card, cards


@pytest.fixture(scope="module")
def shown(lab) -> list[Card]:
    """The demo's explorables, after running all cells."""
    lab.open("demo.ipynb")
    lab.run_all()
    return cards(lab, count=3)


@pytest.fixture
def noise(shown) -> Card:
    """The explorable with every kind of control, in its default state, unfolded."""
    card = shown[0]
    card.unfold()
    card.reset()
    expect(card.sentence).to_contain_text("At σ = 0.1, inpainting")
    return card


def test_every_control_answers_to_the_keyboard(noise):
    noise.move_every_control()


def test_latency(lab, noise):
    """From key press to changed pixels."""
    lab.record_latency("demo.noise, noise level σ", noise.latency(presses=20))


def test_its_line_of_python_can_be_copied(lab, noise):
    """The copied line, with the state changed, makes an explorable in that state."""
    noise.unfold()
    noise.control("noise level σ").press("End")
    expect(noise.code).to_have_text(re.compile(r"sigma=1\.0"))
    noise.root.get_by_role("button", name="Copy").click()
    copied = lab.page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "le.ui.explorables.demo.noise(kind='inpainting', sigma=1.0, shown='nothing', seed=0)"
    noise.reset()
    expect(noise.code).to_have_text(copied.replace("sigma=1.0", "sigma=0.1"))


def test_the_widget_takes_the_place_of_its_static_picture(lab, noise):
    """The picture stands in the page for readers without widgets, and is hidden as long as the widget lives."""
    stills = lab.page.locator("img.lemmse-still")
    expect(stills).to_have_count(3)
    expect(stills.first).to_be_hidden()
    assert "At σ = 0.1, inpainting" in stills.first.get_attribute("alt")
    widget = noise.root.element_handle()
    home = widget.evaluate_handle("root => { const home = root.parentElement; root.remove(); return home; }")
    expect(stills.first).to_be_visible()
    home.evaluate("(home, root) => home.append(root)", widget)
    expect(stills.first).to_be_hidden()


def test_controls_and_pictures_have_names(noise):
    """Every input has a name of its own and every picture says what it is."""
    expect(noise.root.get_by_role("slider", name="noise level σ")).to_have_attribute("aria-valuetext", "0.1")
    expect(noise.root.get_by_role("radio", name="inpainting")).to_be_checked()
    expect(noise.root.get_by_role("group", name="operator")).to_be_visible()
    expect(noise.root.get_by_role("img", name=re.compile(r"x̂, PSNR [\d.]+ dB, 28 by 28 pixels"))).to_be_visible()
    expect(noise.sentence).to_have_attribute("aria-live", "polite")


def test_pictures_maps_and_plots(noise):
    """The pixels on the page are those of the image, pictures are walked by arrows, maps have bars, plots have text."""
    first, second = noise.root.locator("canvas").nth(0), noise.root.locator("canvas").nth(1)
    assert first.evaluate("canvas => [canvas.width, canvas.height]") == [28, 28]
    corner = first.evaluate("canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, 1, 1).data)")
    middle = first.evaluate("canvas => Array.from(canvas.getContext('2d').getImageData(14, 14, 1, 1).data)")
    assert corner[0] < 5 < 240 < middle[0]
    assert corner[3] == middle[3] == 255
    first.focus()
    first.press("ArrowRight")
    expect(second).to_be_focused()
    expect(noise.root.locator("img.lemmse-plot")).to_be_hidden()
    noise.root.get_by_text("error map", exact=True).click()
    expect(noise.root.locator("canvas")).to_have_count(4)
    expect(noise.root.locator(".lemmse-bar").nth(3)).to_be_visible()
    noise.root.get_by_text("cross-section", exact=True).click()
    plot = noise.root.locator("img.lemmse-plot")
    expect(plot).to_be_visible()
    assert plot.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 960
    assert plot.get_attribute("alt") == noise.sentence.text_content()
    noise.reset()
    expect(noise.root.locator("canvas")).to_have_count(3)


def test_python_moves_the_inputs(lab, noise):
    """Setting the state from Python moves the inputs on the page."""
    lab.run("explorable.state = {'sigma': 0.5, 'kind': 'denoising'}")
    expect(noise.sentence).to_contain_text("At σ = 0.5, denoising")
    expect(noise.root.get_by_role("slider", name="noise level σ")).to_have_attribute("aria-valuetext", "0.5")
    expect(noise.root.get_by_role("radio", name="denoising")).to_be_checked()
    noise.reset()
    expect(noise.sentence).to_contain_text("At σ = 0.1, inpainting")


def test_a_failure_is_shown_and_passes(shown):
    """A view that raises leaves the last pictures and says why; the next state clears it."""
    card = shown[1]
    card.control("σ").press("End")
    expect(card.root.locator(".lemmse-problem")).to_have_text("ValueError: sigma = 1 is refused by this view")
    card.control("σ").press("ArrowLeft")
    expect(card.root.locator(".lemmse-problem")).to_be_empty()
    expect(card.sentence).to_contain_text("At σ = 0.5")


def test_coarse_then_full(shown):
    """While the slider moves the coarse answer comes; the full one after it rests."""
    card = shown[2]
    seen = card.sentence.evaluate_handle(
        "node => { const seen = []; new MutationObserver(() => seen.push(node.textContent)).observe(node,"
        " { childList: true, characterData: true, subtree: true }); return seen; }"
    )
    card.control("σ").press("ArrowRight")
    expect(card.sentence).to_have_text("Full answer at 0.2.")
    assert seen.json_value() == ["Coarse answer at 0.2.", "Full answer at 0.2."]


def test_themes_are_legible(lab, noise):
    """In both themes every text of the widget has a contrast of at least 4.5 against what lies behind it."""
    for theme in ("Dark", "Light"):
        lab.theme(theme)
        ratios = noise.contrasts()
        assert len(ratios) > 10
        assert min(ratios.values()) >= 4.5, (theme, ratios)


def test_a_request_to_another_host_and_a_console_error_would_be_seen(lab, noise):
    """The watch that ends every scenario works."""
    lab.page.evaluate("async () => { console.error('heard'); await fetch('https://host.invalid/').catch(() => {}); }")
    foreign, errors = lab.take_complaints()
    assert foreign == ["https://host.invalid/"]
    assert errors[0] == "heard"
