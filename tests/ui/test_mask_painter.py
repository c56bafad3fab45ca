"""The mask painter without a browser: masks as text, strokes and undo, presets, the answer that follows, all rungs."""

import json
import threading

import numpy as np
import pytest
import torch
import traitlets

import lemmse as le
from lemmse import figures
from lemmse.ui import View
from lemmse.ui.mask_painter import MaskPainter
from lemmse.ui.painting import PRESETS, Painting, as_mask, describe_mask, largest_hole, rows_of
from lemmse.ui.plain_painter import PlainPainter
from lemmse.ui.probing import Probing

H, W = 5, 7


def order(painter: MaskPainter, serial: int = 1, **content) -> None:
    """Do what the page does: send a message."""
    painter.canvas._handle_custom_msg({**content, "serial": f"page-{serial}"}, [])


def stroke(painter: MaskPainter, name: str, *pixels: int, visible: bool = False, resting: bool = True) -> None:
    order(painter, kind="paint", pixels=list(pixels), visible=visible, stroke=name, resting=resting)


@pytest.fixture(params=[MaskPainter, PlainPainter])
def painter(request):
    return request.param(torch.ones(H, W))


class TestMasks:
    @pytest.mark.parametrize(
        "mask",
        [
            ["101", "011"],
            [[1, 0, 1], [0, 1, 1]],
            np.array([[1, 0, 1], [0, 1, 1]], dtype=bool),
            torch.tensor([[1, 0, 1], [0, 1, 1]]),
        ],
    )
    def test_they_come_in_several_forms_and_go_as_float32(self, mask):
        assert torch.equal(as_mask(mask), torch.tensor([[1.0, 0, 1], [0, 1, 1]]))
        assert as_mask(mask).dtype == torch.float32
        assert rows_of(as_mask(mask)) == ["101", "011"]

    @pytest.mark.parametrize(
        ("mask", "words"),
        [
            (torch.ones(2, 3, 4), r"shape \(h, w\) .* got \(2, 3, 4\)"),
            (torch.ones(0, 3), "at least one pixel"),
            (torch.full((2, 3), 0.5), r"got 0\.5 among"),
            (torch.full((2, 3), torch.nan), "got nan among"),
            (["10", "1"], "rows of one length"),
            (["12"], "hold '1'"),
            ({"mask": 1}, "got dict"),
            (None, "got NoneType"),
        ],
    )
    def test_what_is_no_mask_is_refused(self, mask, words):
        with pytest.raises(ValueError, match=words):
            MaskPainter(mask)

    def test_the_largest_hole_is_that_of_a_search_over_all_squares(self, generator):
        for keep in (0.0, 0.05, 0.2, 0.6, 1.0):
            mask = le.random_mask(H, W, keep=keep, generator=generator)
            fits = [0]
            for side in range(1, H + 1):
                for i in range(H):
                    for j in range(W):
                        square = [mask[(i + a) % H, (j + b) % W] for a in range(side) for b in range(side)]
                        fits.append(side * (sum(square) == 0))
            assert largest_hole(mask) == max(fits)

    def test_words(self):
        assert describe_mask(torch.ones(H, W)) == "All 35 pixels are visible."
        assert describe_mask(torch.zeros(H, W)).startswith("All 35 pixels are hidden")
        hole = le.center_mask(28, 28, side=15)
        assert describe_mask(hole) == "225 of 784 pixels (29%) are hidden; the largest square hole is 15 × 15."
        one = torch.ones(H, W)
        one[2, 3] = 0
        assert "1 of 35 pixels (3%) is hidden" in describe_mask(one)


class TestPainting:
    def test_its_state_is_json_and_restores_it(self, painter):
        painter.paint([0, 8, 34], visible=False)
        state = json.loads(json.dumps(painter.state))
        assert state["mask"][:2] == ["0111111", "1011111"]
        again = type(painter)(state["mask"])
        assert torch.equal(again.mask, painter.mask)
        again.invert()
        again.state = state
        assert torch.equal(again.mask, painter.mask)
        with pytest.raises(ValueError, match="keys"):
            again.state = {"rows": state["mask"]}

    def test_python_follows_it_by_its_trait(self, painter):
        seen = []
        painter.observe(lambda change: seen.append(change["new"]), names="mask")
        painter.paint([1], visible=False)
        painter.mask = torch.zeros(H, W)
        assert [int(mask.sum()) for mask in seen] == [H * W - 1, 0]

    def test_a_mask_of_another_size_is_refused_and_changes_nothing(self, painter):
        with pytest.raises(ValueError, match="5 × 7 pixels; got"):
            painter.mask = torch.ones(W, H)
        assert painter.mask.shape == (H, W)

    def test_what_the_caller_does_with_his_tensor_later_changes_nothing(self):
        mask = torch.ones(H, W)
        painter = MaskPainter(mask)
        mask.zero_()
        assert painter.mask.all()

    def test_undo_walks_back_over_every_kind_of_step(self, painter):
        steps = [painter.mask]
        painter.paint([3, 4], visible=False)
        steps.append(painter.mask)
        painter.invert()
        steps.append(painter.mask)
        painter.preset("centre")
        steps.append(painter.mask)
        painter.mask = torch.zeros(H, W)
        assert torch.equal(steps[2], 1 - steps[1])
        for step in reversed(steps):
            assert painter.can_undo
            painter.undo()
            assert torch.equal(painter.mask, step)
        assert not painter.can_undo
        painter.undo()
        assert torch.equal(painter.mask, steps[0])

    def test_a_stroke_is_one_step_however_many_parts_it_came_in(self, painter):
        for pixel in (1, 2, 3):
            painter.paint([pixel], visible=False, stroke="first")
        painter.paint([4], visible=False, stroke="second")
        painter.mask = 1 - painter.mask
        painter.paint([1], visible=False, stroke="second")  # what comes after another step is a step of its own
        painter.undo()
        painter.undo()
        painter.undo()
        assert (painter.mask == 0).flatten().nonzero().flatten().tolist() == [1, 2, 3]
        painter.undo()
        assert painter.mask.all()
        assert not painter.can_undo

    def test_painting_what_is_so_already_is_no_step(self, painter):
        painter.paint([5], visible=True, stroke="s")
        painter.mask = torch.ones(H, W)
        assert not painter.can_undo

    def test_pixels_that_are_not_there_are_refused(self, painter):
        with pytest.raises(ValueError, match="0 to 34"):
            painter.paint([35], visible=False)
        with pytest.raises(ValueError, match="0 to 34"):
            painter.paint([-1], visible=False)


class TestPresets:
    def test_each_is_the_mask_of_its_name(self):
        painter = MaskPainter(torch.ones(28, 32))
        painter.preset("centre")
        assert torch.equal(painter.mask, le.center_mask(28, 32, side=15))
        painter.preset("stripes")
        assert torch.equal(painter.mask, le.stripe_mask(28, 32, period=4))
        painter.preset("none")
        assert painter.mask.all()
        halves = []
        for _ in range(5):
            painter.preset("half")
            halves.append(painter.mask)
        assert torch.equal(halves[0], le.half_mask(28, 32, visible="left"))
        assert torch.equal(halves[1], le.half_mask(28, 32, visible="top"))
        assert torch.equal(halves[4], halves[0])

    @pytest.mark.parametrize("percent", [0, 10, 37.5, 90, 100])
    def test_random_hides_the_share_that_was_asked_for(self, painter, percent):
        painter.preset("random", percent)
        assert int((painter.mask == 0).sum()) == H * W - round((1 - percent / 100) * H * W)

    def test_random_draws_anew_each_time_and_again_from_its_generator(self):
        masks = []
        for _ in range(2):
            painter = MaskPainter(torch.ones(H, W), generator=torch.Generator().manual_seed(3))
            painter.preset("random")
            masks.append(painter.mask)
            painter.preset("random")
            assert not torch.equal(painter.mask, masks[-1])
        assert torch.equal(*masks)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (9, 2)])
    @pytest.mark.parametrize("name", PRESETS)
    def test_they_fit_the_smallest_pictures(self, shape, name):
        painter = MaskPainter(torch.ones(shape))
        painter.preset(name)
        assert painter.mask.shape == shape

    def test_unknown_ones_are_refused(self, painter):
        with pytest.raises(ValueError, match="centre, random, half"):
            painter.preset("hole")
        with pytest.raises(ValueError, match="between 0 and 100"):
            painter.preset("random", 101)


def reading(mask: torch.Tensor) -> View:
    """An answer whose pixels and sentence depend on the mask; there is none where nothing is visible."""
    if not mask.any():
        raise ValueError("nothing is visible")
    return View({"mask": mask}, {"visible": float(mask.mean())}, f"{int(mask.sum())} pixels are visible.")


class TestPage:
    """The messages that the page sends, and what it hears."""

    def test_a_stroke_reaches_mask_page_and_answer(self):
        painter = MaskPainter(torch.ones(H, W), answer=reading)
        pixels = painter.grid.pixels
        stroke(painter, "s", 0, 1, 2)
        assert painter.mask.flatten()[:4].tolist() == [0, 0, 0, 1]
        assert painter.canvas.rows[0] == "0001111"
        assert painter.canvas.heard == "page-1"
        assert painter.canvas.facts["can_undo"] is True
        assert painter.canvas.facts["sentence"].startswith("3 of 35 pixels (9%) are hidden")
        assert painter.grid.frame["sentence"] == "32 pixels are visible."
        assert painter.grid.pixels != pixels

    def test_buttons(self):
        painter = MaskPainter(torch.ones(H, W))
        order(painter, kind="preset", name="random", percent=25)
        random = painter.mask
        assert int((random == 0).sum()) == 9
        order(painter, kind="invert")
        assert torch.equal(painter.mask, 1 - random)
        order(painter, kind="undo")
        assert torch.equal(painter.mask, random)

    def test_the_coarse_answer_follows_the_stroke_and_the_full_one_its_end(self):
        asked = []

        def answer(name):
            return lambda mask: asked.append(name) or reading(mask)

        painter = MaskPainter(torch.ones(H, W), answer=answer("full"), coarse=answer("coarse"))
        stroke(painter, "s", 0, resting=False)
        stroke(painter, "s", 1, resting=False)
        stroke(painter, "s", resting=True)  # nothing more was painted
        stroke(painter, "t", 2, resting=True)
        order(painter, kind="undo")
        assert asked == ["full", "coarse", "coarse", "full", "full", "full"]

    def test_what_is_slow_follows_the_settled_mask(self):
        """Once for each stroke, however many parts it came in, and once for each other step."""
        painter, settled = MaskPainter(torch.ones(H, W)), []
        painter.observe(lambda change: settled.append(int(change["new"].sum())), names="settled")
        assert painter.settled.all()
        stroke(painter, "s", 0, resting=False)
        stroke(painter, "s", 1, 2, resting=False)
        assert settled == []
        stroke(painter, "s", resting=True)
        stroke(painter, "t", resting=True)  # nothing was painted
        stroke(painter, "u", 3, resting=True)
        order(painter, kind="undo")
        painter.invert()
        assert settled == [32, 31, 32, 3]
        with pytest.raises(traitlets.TraitError, match="read-only"):
            painter.settled = torch.ones(H, W)

    def test_each_change_is_answered_once(self):
        asked = []
        painter = MaskPainter(torch.ones(H, W), answer=lambda mask: asked.append(int(mask.sum())) or reading(mask))
        stroke(painter, "s", 0, 1)
        stroke(painter, "s", 0)  # already so
        painter.mask = painter.mask
        painter.invert()
        assert asked == [35, 33, 2]

    def test_an_answer_that_raises_says_so_on_the_page_and_to_python(self):
        painter = MaskPainter(torch.ones(H, W), answer=reading)
        stroke(painter, "s", *range(H * W))
        assert painter.grid.frame["error"] == "ValueError: nothing is visible"
        assert painter.canvas.heard == "page-1"  # the page waits for this before it sends more
        order(painter, kind="undo")
        assert painter.grid.frame["error"] == ""
        with pytest.raises(ValueError, match="nothing is visible"):
            painter.mask = torch.zeros(H, W)

    def test_an_order_that_cannot_be_done_says_so(self):
        painter = MaskPainter(torch.ones(H, W))
        stroke(painter, "s", 99)
        assert "0 to 34" in painter.canvas.facts["error"]
        order(painter, kind="invert")
        assert painter.canvas.facts["error"] == ""

    def test_the_backdrop_is_the_image(self):
        image = torch.rand(3, H, W)
        painter = MaskPainter(torch.ones(H, W), image=image[None])
        assert painter.canvas.backdrop == figures.rgba(image).tobytes()
        assert len(MaskPainter(torch.ones(H, W)).canvas.backdrop) == 4 * H * W
        with pytest.raises(ValueError, match=r"\(c, 5, 7\)"):
            MaskPainter(torch.ones(H, W), image=torch.rand(1, W, H))

    def test_all_that_travels_but_the_backdrop_is_json(self):
        painter = MaskPainter(torch.ones(H, W))
        json.dumps([painter.canvas.rows, painter.canvas.facts, painter.canvas.presets, painter.canvas.percents])

    def test_its_module_asks_no_other_host(self):
        source = str(MaskPainter(torch.ones(H, W)).canvas._esm)
        assert "export default { render }" in source
        assert "import " not in source
        assert "http" not in source


class TestLadder:
    @pytest.mark.parametrize("state", [Painting, Probing])
    def test_a_front_end_has_to_show_something(self, state):
        with pytest.raises(TypeError, match="_follow"):
            state()

    def test_a_static_picture_goes_before_its_widget(self, monkeypatch):
        shown = []
        monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
        painter = MaskPainter(le.center_mask(H, W, side=3), answer=reading)
        painter._ipython_display_()
        picture, widget = shown
        assert picture["text/html"].startswith('<img class="lemmse-still" alt="9 of 35 pixels')
        assert "26 pixels are visible." in picture["text/plain"]
        assert widget["application/vnd.jupyter.widget-view+json"]["model_id"] == painter.model_id

    def test_on_ipywidgets_alone_rectangles_are_painted(self, monkeypatch):
        monkeypatch.setenv("LEMMSE_UI", "image")
        assert le.ui.MaskPainter is PlainPainter
        painter = PlainPainter(torch.ones(H, W), image=torch.rand(1, H, W), answer=reading)
        before = bytes(painter.grid.children[0].value)
        painter.rows.value, painter.columns.value = (1, 2), (3, 6)
        painter.buttons["hide"].click()
        assert painter.state["mask"] == ["1111111", "1110000", "1110000", "1111111", "1111111"]
        assert "27 pixels are visible." in painter.grid.children[1].value
        assert painter.grid.children[0].value != before
        painter.columns.value = (3, 3)
        painter.buttons["show"].click()
        assert painter.state["mask"][1] == "1111000"
        painter.buttons["undo"].click()
        assert painter.state["mask"][1] == "1110000"
        painter.buttons["none"].click()
        painter.buttons["invert"].click()
        assert "ValueError: nothing is visible" in painter.grid.children[1].value

    def test_without_widgets_it_is_a_picture(self, monkeypatch):
        monkeypatch.setenv("LEMMSE_UI", "static")
        still = le.ui.MaskPainter(le.center_mask(H, W, side=3), image=torch.rand(3, H, W))
        assert isinstance(still, figures.Picture)
        assert still.alt.startswith("Paint the hole. 9 of 35 pixels (26%) are hidden")
        assert "26 pixels are visible." in le.ui.MaskPainter(le.center_mask(H, W, side=3), answer=reading).alt


def test_orders_and_cells_come_in_two_threads():
    """JupyterLab obeys orders beside the cells: a mask that a cell sets while one is obeyed waits for its answer."""
    started, go_on, answered = threading.Event(), threading.Event(), []

    def answer(mask):
        answered.append("full")
        return View({"mask": mask[None]}, sentence="Full.")

    def coarse(mask):
        started.set()
        assert go_on.wait(10)
        answered.append("coarse")
        return View({"mask": mask[None]}, sentence="Coarse.")

    painter = MaskPainter(torch.ones(4, 5), answer=answer, coarse=coarse)
    answered.clear()
    order = {"kind": "preset", "name": "half", "percent": 50, "resting": False}
    obeying = threading.Thread(target=painter.obey, args=(order,))
    obeying.start()
    assert started.wait(10)
    wanted = torch.zeros(4, 5)
    setting = threading.Thread(target=setattr, args=(painter, "mask", wanted))
    setting.start()
    setting.join(0.2)
    assert answered == []  # both wait for the coarse answer
    go_on.set()
    obeying.join(10)
    setting.join(10)
    assert answered == ["coarse", "full"]
    assert torch.equal(painter.settled, wanted)
