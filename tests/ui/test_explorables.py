"""Every explorable of the series, through its widget, without a browser."""

import pytest

from lemmse import ui
from ui.sweep import makers, sweep


@pytest.mark.parametrize("module", ui.explorables.__all__)
def test_sweep(module, generator):
    """No control, at any end or option, raises, shows a number that is not finite, or loses its state."""
    assert makers(module), f"{module} has no public function in its __all__"
    for name, make in makers(module).items():
        explorable = make()
        assert isinstance(explorable, ui.Explorable)
        assert explorable.name == name
        assert explorable.widget is not None  # so that every state of the sweep goes through the widget, too
        assert sweep(explorable, generator) > len(explorable.controls)
        frame = explorable._widget.front.grid.frame
        assert frame["sentence"] == explorable.look().sentence
        assert frame["error"] == ""


@pytest.mark.parametrize("module", ui.explorables.__all__)
def test_static_picture_says_what_it_shows(module):
    """The picture that stands above the widget shows the default state, and its text holds the sentence."""
    for make in makers(module).values():
        explorable = make()
        picture = explorable.picture()
        assert explorable.look().sentence in picture.alt
        assert explorable.title in picture.alt
        assert picture.png.startswith(b"\x89PNG")
