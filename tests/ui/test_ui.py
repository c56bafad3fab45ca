"""States, controls, views, the two front ends and the ladder between them, without a browser."""

import json
import subprocess
import sys
import time

import anywidget
import ipywidgets
import numpy as np
import pytest
import torch
import traitlets

import lemmse as le
from lemmse import figures
from lemmse.ui import Choice, Explorable, Slider, View, backend
from lemmse.ui.backend import Backend
from lemmse.ui.image_grid import Controls, ImageGrid, encode
from lemmse.ui.plain import PlainFront, PlainGrid
from lemmse.ui.traits import Buffer


def look(kind: str, sigma: float, flag: bool = False) -> View:
    """A view whose pixels and sentence depend on every control."""
    x = torch.full((1, 5, 7), 0.25 if kind == "a" else 0.5)
    if sigma == 1.0 and flag:
        raise ValueError("too much noise")
    return View({"x": x, "y": x + sigma}, {"σ": sigma}, f"{kind} at {sigma:g}{' flagged' if flag else ''}.")


def make(**state) -> Explorable:
    controls = {
        "kind": Choice("kind", ["a", "b"], "a"),
        "sigma": Slider("σ", [0.0, 0.1, 0.5, 1.0], 0.1),
        "flag": Choice("flag", [False, True], False, folded=True),
    }
    return Explorable(look, controls, title="A test", name="tests.make", state=state)


def ask(explorable: Explorable, *, resting: bool = True, **positions: int) -> None:
    """Do what the page does when the reader moves a control."""
    controls = explorable._widget.front.controls
    controls.request = {"positions": {**controls.request["positions"], **positions}, "resting": resting, "by": "page"}


class TestState:
    def test_it_is_json_and_keeps_types(self):
        state = make().state
        assert json.loads(json.dumps(state)) == state == {"kind": "a", "sigma": 0.1, "flag": False}
        assert make(flag=True).state["flag"] is True
        assert isinstance(make(sigma=1).state["sigma"], float)

    def test_part_of_it_can_be_set_and_reset(self):
        explorable = make(kind="b")
        explorable.state = {"sigma": 0.5}
        assert explorable.state == {"kind": "b", "sigma": 0.5, "flag": False}
        explorable.reset()
        assert explorable.state == {"kind": "a", "sigma": 0.1, "flag": False}

    def test_changing_the_returned_state_changes_nothing(self):
        explorable = make()
        explorable.state["sigma"] = 0.5
        assert explorable.state["sigma"] == 0.1

    @pytest.mark.parametrize(
        ("state", "words"),
        [
            ({"sigma": 0.3}, r"sigma = 0\.3 is none of 0\.0, 0\.1, 0\.5, 1\.0"),
            ({"sgma": 0.1}, r"no control \['sgma'\]"),
        ],
    )
    def test_values_that_no_control_has_are_refused_and_change_nothing(self, state, words):
        explorable = make()
        with pytest.raises(ValueError, match=words):
            explorable.state = {"kind": "b", **state}
        assert explorable.state == make().state

    def test_true_is_not_one(self):
        with pytest.raises(ValueError, match="flag = 1 is none of"):
            make(flag=1)

    def test_its_line_restores_it(self):
        explorable = make(sigma=0.5, flag=True)
        assert explorable.state_line == "le.ui.explorables.tests.make(kind='a', sigma=0.5, flag=True)"
        assert (
            eval(explorable.state_line.replace("le.ui.explorables.tests.", ""), {"make": make}).state
            == explorable.state
        )


class TestControls:
    @pytest.mark.parametrize(
        ("control", "words"),
        [
            (lambda: Slider("σ", [0.1, 0.1], 0.1), "must increase"),
            (lambda: Slider("σ", [0.1, 0.2], 0.3), r"the default 0\.3 is none of 0\.1, 0\.2"),
            (lambda: Slider("σ", [0.1, float("inf")], 0.1), "finite"),
            (lambda: Choice("k", ["a", "a"], "a"), "twice"),
            (lambda: Choice("k", [float("nan")], 0.0), "no string, boolean or finite number"),
            (lambda: Choice(" ", ["a"], "a"), "label is empty"),
            (lambda: Choice("k", ["a", "b"], "a", texts=["one"]), "2 values have 1 texts"),
        ],
    )
    def test_lists_of_values_are_checked(self, control, words):
        with pytest.raises(ValueError, match=words):
            control()

    def test_at_most_three_are_in_sight(self):
        controls = {name: Choice(name, ["a", "b"], "a") for name in "pqrs"}
        with pytest.raises(ValueError, match="4 controls are in sight"):
            Explorable(look, controls, title="t", name="t")
        controls["s"] = Choice("s", ["a", "b"], "a", folded=True)
        Explorable(look, controls, title="t", name="t")


class TestView:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"sentence": "Nothing."}, "at least one picture"),
            ({"pictures": {"x": torch.zeros(5, 7)}}, "sentence"),
            ({"pictures": {"x": torch.zeros(5, 7)}, "sentence": "s.", "numbers": {"n": float("nan")}}, "n is nan"),
            ({"pictures": {"x": torch.zeros(2, 5, 7)}, "sentence": "s."}, r"x: shape \(2, 5, 7\)"),
        ],
    )
    def test_a_view_shows_says_and_counts(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            View(**arguments)


class TestFrame:
    def test_its_bytes_are_the_pixels_one_after_another_and_then_the_plot(self):
        x = torch.linspace(0, 1, 35).reshape(1, 5, 7)
        y = torch.linspace(0, 1, 2 * 3 * 11 * 3).reshape(2, 3, 11, 3)
        plot = figures.figure(2.0, 1.0)
        frame, pixels = encode(View({"x": x, "y": y}, {"n": -1.5}, "s.", plot))
        assert [cell["title"] for cell in frame["cells"]] == ["x", "y 1", "y 2"]
        for cell, image in zip(frame["cells"], [x, *y], strict=True):
            h, w = cell["height"], cell["width"]
            shown = np.frombuffer(pixels[cell["start"] : cell["start"] + 4 * h * w], np.uint8).reshape(h, w, 4)
            np.testing.assert_array_equal(shown, figures.rgba(image))
        start, length = frame["plot"]["start"], frame["plot"]["length"]
        assert pixels[start : start + 8] == b"\x89PNG\r\n\x1a\n"
        assert start + length == len(pixels)
        assert frame["plot"]["width"] == 200
        assert frame["numbers"] == [["n", "−1.5"]]
        json.dumps(frame)

    def test_maps_bring_a_colour_bar(self):
        frame, _ = encode(View({"e": figures.SignedMap(torch.tensor([[-0.5, 0.25]]))}, {}, "s."))
        assert (frame["cells"][0]["bar"]["low"], frame["cells"][0]["bar"]["high"]) == ("−0.5", "0.5")
        assert len(frame["cells"][0]["bar"]["colours"]) == 9

    def test_two_equal_views_still_reach_the_page(self):
        """The page redraws when the frame changes; bytes alone are compared differently by each version."""
        grid = ImageGrid(look("a", 0.1))
        revision = grid.frame["revision"]
        grid.show(look("a", 0.1))
        assert grid.frame["revision"] == revision + 1


class TestBuffer:
    class Holder(traitlets.HasTraits):
        data = Buffer()

    @pytest.mark.parametrize("make_buffer", [bytes, bytearray, lambda b: memoryview(bytearray(b))])
    def test_whatever_the_page_sends_reads_as_bytes(self, make_buffer):
        holder = self.Holder()
        holder.data = make_buffer(b"\x00\x01\xff")
        assert holder.data == b"\x00\x01\xff"
        assert isinstance(holder.data, bytes)

    def test_a_non_contiguous_view_is_copied(self):
        assert self.Holder(data=memoryview(b"abcdef")[::2]).data == b"ace"

    def test_it_refuses_text(self):
        with pytest.raises(traitlets.TraitError, match="memoryview"):
            self.Holder().data = "text"

    def test_plain_bytes_would_refuse_what_the_page_sends(self):
        """Why the trait exists."""

        class Plain(traitlets.HasTraits):
            data = traitlets.Bytes()

        with pytest.raises(traitlets.TraitError):
            Plain().data = memoryview(b"abc")

    def test_state_from_the_page_is_taken_by_a_widget(self):
        """The path of a message: its buffers are put back as memoryviews, then set."""
        grid = ImageGrid()
        grid.set_state({"pixels": memoryview(b"\x01\x02")})
        assert grid.pixels == b"\x01\x02"


class TestCanvasFront:
    def test_the_readers_move_changes_state_pixels_sentence_and_line(self):
        explorable = make()
        assert isinstance(explorable.widget, ipywidgets.VBox)
        front = explorable._widget.front
        assert isinstance(front.controls, Controls)
        assert isinstance(front.grid, ImageGrid)
        before = front.grid.pixels
        ask(explorable, kind=1, sigma=2)
        assert explorable.state == {"kind": "b", "sigma": 0.5, "flag": False}
        assert front.grid.pixels != before
        assert front.grid.frame["sentence"] == "b at 0.5."
        assert front.controls.state_line == explorable.state_line

    def test_python_moves_the_inputs(self):
        explorable = make()
        front = explorable.widget and explorable._widget.front
        ask(explorable, sigma=3)
        explorable.reset()
        assert front.controls.request["positions"] == {"kind": 0, "sigma": 1, "flag": 0}
        assert front.grid.frame["sentence"] == "a at 0.1."

    def test_it_computes_once_for_each_move(self):
        calls = []
        controls = {"sigma": Slider("σ", [0.0, 0.5, 1.0], 0.5)}
        explorable = Explorable(lambda sigma: calls.append(sigma) or look("a", sigma), controls, title="t", name="t")
        assert explorable.widget
        ask(explorable, sigma=2)
        explorable.state = {"sigma": 0.0}
        assert calls == [0.5, 1.0, 0.0]

    def test_while_moving_the_coarse_view_answers_and_at_rest_the_full_one(self):
        controls = {"sigma": Slider("σ", [0.0, 0.5, 1.0], 0.5)}
        explorable = Explorable(
            lambda sigma: look("a", sigma), controls, title="t", name="t", coarse=lambda sigma: look("b", sigma)
        )
        grid = explorable.widget and explorable._widget.front.grid
        assert grid.frame["sentence"] == "a at 0.5."
        ask(explorable, sigma=2, resting=False)
        assert grid.frame["sentence"] == "b at 1."
        ask(explorable, sigma=2, resting=True)
        assert grid.frame["sentence"] == "a at 1."

    def test_what_follows_comes_after_the_full_view_and_never_after_the_coarse_one(self):
        """What it raises stands on the page, below the view that was shown."""
        told, controls = [], {"sigma": Slider("σ", [0.0, 0.5, 1.0], 0.5)}

        def then(sigma):
            told.append((sigma, grid.frame["sentence"]))
            if sigma == 0.0:
                raise ValueError("too little noise")

        functions = {"coarse": lambda sigma: look("b", sigma), "then": then}
        explorable = Explorable(lambda sigma: look("a", sigma), controls, title="t", name="t", **functions)
        explorable.then = None
        grid = explorable.widget and explorable._widget.front.grid
        explorable.then = then
        ask(explorable, sigma=2, resting=False)
        assert told == []
        ask(explorable, sigma=2, resting=True)
        assert told == [(1.0, "a at 1.")]
        with pytest.raises(ValueError, match="too little noise"):
            explorable.state = {"sigma": 0.0}
        assert told[1:] == [(0.0, "a at 0.")]
        assert grid.frame["error"] == "ValueError: too little noise"
        assert grid.frame["sentence"] == "a at 0."

    def test_a_view_that_raises_says_so_on_the_page_and_to_python(self):
        explorable = make(flag=True)
        grid = explorable.widget and explorable._widget.front.grid
        ask(explorable, sigma=3)  # from the page: no traceback would be seen
        assert grid.frame["error"] == "ValueError: too much noise"
        ask(explorable, sigma=0)
        assert grid.frame["error"] == ""
        with pytest.raises(ValueError, match="too much noise"):
            explorable.state = {"sigma": 1.0}
        assert grid.frame["error"] == "ValueError: too much noise"

    def test_it_is_shown_by_a_reference_to_its_widget(self):
        explorable = make()
        bundle = explorable._repr_mimebundle_()
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorable.widget.model_id
        assert bundle["text/plain"] == repr(explorable) == f"A test | {explorable.state_line}"

    def test_a_static_picture_goes_before_its_widget(self, monkeypatch):
        """For readers without a kernel, and for pages that cannot load widgets."""
        shown = []
        monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
        explorable = make(sigma=0.5)
        explorable._ipython_display_()
        picture, widget = shown
        assert picture["text/html"].startswith('<img class="lemmse-still" alt="A test: a at 0.5. ')
        assert widget == explorable._repr_mimebundle_()

    def test_modules_ask_no_other_host(self):
        for widget in (ImageGrid, Controls):
            source = str(widget._esm)
            assert "export default { render }" in source
            assert "import " not in source
            assert "http" not in source


class TestPlainFront:
    @pytest.fixture(autouse=True)
    def _forced(self, monkeypatch):
        monkeypatch.setenv("LEMMSE_UI", "image")

    def test_the_same_explorable_works_on_ipywidgets_alone(self):
        explorable = make(sigma=0.5)
        assert explorable.widget
        front = explorable._widget.front
        assert isinstance(front, PlainFront)
        before = bytes(front.grid.children[0].value)
        assert before.startswith(b"\x89PNG")
        front.controls["kind"].index = 1
        assert explorable.state["kind"] == "b"
        assert front.grid.children[0].value != before
        assert "b at 0.5." in front.grid.children[1].value
        explorable.reset()
        assert (front.controls["kind"].index, front.controls["sigma"].index) == (0, 1)

    def test_a_view_that_raises_says_so(self):
        explorable = make(flag=True)
        assert explorable.widget
        explorable._widget.front.controls["sigma"].index = 3
        assert "ValueError: too much noise" in explorable._widget.front.grid.children[1].value

    def test_image_grid_falls_back_too(self):
        assert le.ui.ImageGrid is PlainGrid


class TestLadder:
    def test_here_it_is_anywidget_and_says_why(self, monkeypatch):
        monkeypatch.delenv("LEMMSE_UI", raising=False)
        assert backend() == Backend("anywidget", "ipywidgets and anywidget are installed")
        assert le.ui.ImageGrid is ImageGrid

    def test_static(self, monkeypatch):
        monkeypatch.setenv("LEMMSE_UI", "static")
        explorable = make()
        assert explorable.widget is None
        assert "<img alt=" in explorable._repr_mimebundle_()["text/html"]
        assert isinstance(le.ui.ImageGrid(look("a", 0.1)), figures.Picture)

    def test_an_unknown_rung_is_refused(self, monkeypatch):
        monkeypatch.setenv("LEMMSE_UI", "plotly")
        with pytest.raises(ValueError, match="anywidget, image, static"):
            backend()

    @pytest.mark.parametrize(
        ("missing", "name"), [(["anywidget"], "image"), (["ipywidgets", "anywidget"], "static"), ([], "anywidget")]
    )
    def test_each_rung_works_without_the_packages_of_those_above(self, missing, name):
        """In a fresh interpreter where the packages cannot be found."""
        script = f"""
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(name)
from importlib import util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name in {missing!r} else found(name, package)
sys.meta_path.insert(0, Hide())
import torch
from lemmse import ui
explorable = ui.Explorable(
    lambda s: ui.View({{"x": torch.full((1, 5, 7), s)}}, {{}}, "s."), {{"s": ui.Slider("s", [0.0, 1.0], 0.0)}},
    title="t", name="t",
)
bundle = explorable._repr_mimebundle_()
print(ui.backend().name, "application/vnd.jupyter.widget-view+json" in bundle)
"""
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert run.stdout.split() == [name, str(name != "static")]


def test_a_move_costs_python_little():
    """Of the 150 ms from key press to pixels, twelve 32x32 images in colour take Python a few."""
    images = torch.rand(12, 3, 32, 32)
    grid = ImageGrid()
    view = View({"images": images}, {}, "s.", reference=None)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        grid.show(view)
        times.append(time.perf_counter() - start)
    assert sorted(times)[4] < 0.05


def test_the_tested_versions_are_supported():
    assert (7, 7) <= tuple(map(int, ipywidgets.__version__.split(".")[:2])) < (9, 0)
    assert tuple(map(int, anywidget.__version__.split(".")[:2])) >= (0, 9)
