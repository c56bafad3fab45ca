"""The pixel probe without a browser: conservation, brute force, words, what reaches the page, all rungs."""

import json

import numpy as np
import pytest
import torch

import lemmse as le
from lemmse import figures
from lemmse.ui.mask_painter import MaskPainter
from lemmse.ui.pixel_probe import PixelProbe
from lemmse.ui.plain_probe import PlainProbe
from lemmse.ui.probing import colour_text, percent_text
from reference import dense, local_mmse

D, C, H, W, P = 11, 3, 6, 9, 3
SIGMA = 0.3


def mask_of_two_holes() -> torch.Tensor:
    mask = torch.ones(H, W)
    mask[1:5, 2:6] = 0
    mask[0, 8] = 0
    return mask


PHYSICS = {
    "denoising": (le.Denoising(), None),
    "inpainting": (le.Inpainting(mask_of_two_holes()), "pseudo-inverse"),
    "downsampling": (le.Downsampling(3), "adjoint"),
}


def problem(name: str, *, count: int = D, channels: int = C, dtype=torch.float32, boundary: str = "circular"):
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(count, channels, H, W, generator=generator, dtype=dtype)
    physics, inverse = PHYSICS[name]
    B = {None: None, "pseudo-inverse": le.PseudoInverse(physics), "adjoint": le.Adjoint(physics)}[inverse]
    y = physics.A(torch.rand(1, channels, H, W, generator=generator, dtype=dtype))
    y = y + SIGMA * torch.randn(y.shape, generator=generator, dtype=dtype)
    return le.LocalEquivariantMMSE(images, physics, P, B, boundary), y


def ask(probe: PixelProbe, row: int, column: int, *, hovered: bool = False, serial: str = "page-1") -> None:
    """Do what the page does."""
    probe.set_state({"request": {"row": row, "column": column, "hovered": hovered, "serial": serial}})


@pytest.fixture
def probe() -> PixelProbe:
    return PixelProbe(*problem("denoising"), sigma=SIGMA, k=4)


class TestConservation:
    @pytest.mark.parametrize("name", PHYSICS)
    @pytest.mark.parametrize("k", [1, 5, 10**6])
    def test_weights_and_contributions_add_up_at_every_pixel(self, name, k):
        """Weights and the remainder to 1; contributions of sources that are all listed to the pixel."""
        estimator, y = problem(name)
        probe = PixelProbe(estimator, y, sigma=SIGMA, k=k)
        for row in range(H):
            for column in range(row % 3, W, 3 if k > D * H * W else 1):
                found = probe.explain((row, column))
                assert float(found.weight.sum()) + found.remainder == pytest.approx(1, abs=1e-6)
                shares = found.contribution.sum(0) + found.remainder_share
                torch.testing.assert_close(shares, found.mean, rtol=0, atol=1e-6)
                if k > D * H * W:
                    assert found.remainder == pytest.approx(0, abs=1e-6)
                    torch.testing.assert_close(found.running_sum[-1], found.mean, rtol=0, atol=1e-6)

    def test_what_the_others_give_is_a_mean_of_colours(self):
        """The share of the remainder over its weight lies within the range of the data: a wrong weight would not."""
        probe = PixelProbe(*problem("inpainting", dtype=torch.float64), sigma=SIGMA, k=3)
        for row in range(H):
            for column in range(W):
                found = probe.explain((row, column))
                if found.remainder > 1e-6:
                    colour = found.remainder_share / found.remainder
                    assert colour.min() >= 0
                    assert colour.max() <= 1

    @pytest.mark.parametrize("boundary", ["circular", "zero"])
    @pytest.mark.parametrize("name", PHYSICS)
    def test_it_is_brute_force_over_all_pairs_of_pixels(self, name, boundary):
        """Sources, weights, and what all others give, from the looped reference: strata and pseudo-determinants too."""
        estimator, y = problem(name, channels=1, dtype=torch.float64, boundary=boundary)
        B = torch.eye(H * W, dtype=torch.float64)
        if estimator.pre_inverse is not None:
            B = dense(estimator.pre_inverse.A, y.shape[1:])
        _, _, weights = local_mmse(estimator.images, estimator.physics.A, y[0], SIGMA, B, (1, H, W), P, boundary)
        probe = PixelProbe(estimator, y, sigma=SIGMA, k=4)
        for row, column in [(0, 0), (0, 3), (2, 4), (4, 7)]:
            found, expected = probe.explain((row, column)), weights[row * W + column]
            best = expected.flatten().sort(descending=True).values[:4]
            torch.testing.assert_close(found.weight, best[best > 0], rtol=1e-8, atol=1e-12)
            source = found.source[:, 0] * W + found.source[:, 1]
            torch.testing.assert_close(expected[found.image, source], found.weight, rtol=1e-8, atol=1e-12)
            rest = expected.clone()
            rest[found.image, source] = 0
            share = (rest * estimator.images.flatten(1)).sum()
            torch.testing.assert_close(found.remainder_share, share[None], rtol=0, atol=1e-9)
            assert found.remainder == pytest.approx(float(rest.sum()), abs=1e-9)

    def test_its_windows_are_cut_around_pixel_and_sources(self):
        estimator, y = problem("inpainting")
        probe = PixelProbe(estimator, y, sigma=SIGMA, k=4, pixel=(0, 8))
        found = probe.explain()
        v, kept = estimator.pre_inverse.A(y), mask_of_two_holes()
        assert torch.equal(found.window, v[0].roll((1 - 0, 1 - 8), (1, 2))[:, :P, :P])
        for j in range(4):
            (d, (row, column)) = int(found.image[j]), found.source[j].tolist()
            x = estimator.images[d].roll((1 - row, 1 - column), (1, 2))
            seen = (estimator.images[d] * kept).roll((1 - row, 1 - column), (1, 2))
            assert torch.equal(found.stored[j], x[:, :P, :P])
            torch.testing.assert_close(found.measured[j], seen[:, :P, :P])
            assert torch.equal(found.colour[j].float(), x[:, 1, 1])

    def test_sets_made_on_demand_are_explained_too(self):
        estimator, y = problem("denoising", count=3)
        lazy = le.LocalEquivariantMMSE(le.data.ShiftedImages(estimator.images), estimator.physics, P)
        found = PixelProbe(lazy, y, sigma=SIGMA, k=2).explain()
        assert float(found.weight.sum()) + found.remainder == pytest.approx(1, abs=1e-6)
        assert found.image_pixels.shape == (2, C, H, W)


class TestWords:
    def test_the_sentence_holds_the_numbers(self):
        probe = PixelProbe(*problem("denoising", channels=1), sigma=SIGMA, k=4, pixel=(2, 3))
        found = probe.explain()
        words = found.sentence
        assert words.startswith(
            f"The pixel in row 2, column 3 of x̂ is {found.mean.item():.3f}. Its 3 × 3 window holds 9 "
        )
        i, j = found.source[0].tolist()
        assert f"around row {i}, column {j} of training image {found.image[0]} and has {found.weight[0]:.1%} " in words
        assert f"the 4 best have {found.weight.sum():.1%} together and give {found.running_sum[-1].item():.3f}" in words
        assert words.endswith(f"all others give the other {found.remainder_share.item():.3f}.")

    def test_one_source(self):
        words = PixelProbe(*problem("denoising", channels=1), sigma=SIGMA, k=1).explain().sentence
        assert "of the weight and gives 0." in words

    def test_hidden_windows(self):
        probe = PixelProbe(*problem("inpainting"), sigma=SIGMA)
        assert "holds 27 measured numbers." in probe.explain((3, 8)).sentence
        assert "holds 18 independent numbers instead of 27." in probe.explain((0, 3)).sentence
        assert "was measured, so all windows as blind" in probe.explain((2, 3)).sentence
        mean = torch.stack([probe.estimator.images[:, :, i, j].mean(0) for i in (2, 3) for j in (3, 4)]).mean(0)
        torch.testing.assert_close(probe.explain((2, 3)).mean.float(), mean)

    def test_shares_and_colours(self):
        assert [percent_text(w) for w in (0.0, 1e-7, 0.1234, 0.9999, 1.0)] == [
            "0.0%",
            "less than 0.1%",
            "12.3%",
            "more than 99.9%",
            "100.0%",
        ]
        assert colour_text(torch.tensor([-1e-5], dtype=torch.float64)) == "0.000"
        assert colour_text(torch.tensor([0.5, -0.25, 1], dtype=torch.float64)) == "(0.500, −0.250, 1.000)"


class TestPage:
    def test_the_reader_chooses_a_pixel(self, probe):
        before = probe.pixels
        seen = []
        probe.observe(lambda change: seen.append(change["new"]), names="pixel")
        ask(probe, 1, 7)
        assert probe.pixel == (1, 7)
        assert seen == [(1, 7)]
        assert probe.facts["pixel"] == probe.facts["chosen"] == [1, 7]
        assert probe.facts["answers"] == "page-1"  # the page waits for this before it moves the chosen pixel
        assert probe.facts["sentence"] == probe.explain().sentence
        assert probe.pixels != before

    def test_hovering_shows_a_pixel_and_keeps_the_chosen_one(self, probe):
        ask(probe, 1, 7)
        ask(probe, 5, 0, hovered=True)
        assert probe.pixel == (1, 7)
        assert (probe.facts["pixel"], probe.facts["chosen"]) == ([5, 0], [1, 7])
        assert probe.facts["sentence"] == probe.explain((5, 0)).sentence
        ask(probe, 1, 7)
        assert probe.facts["pixel"] == [1, 7]

    def test_a_pixel_outside_is_refused_on_the_page_and_by_python(self, probe):
        ask(probe, H, 0)
        assert "rows run from 0 to 5, columns from 0 to 8" in probe.facts["error"]
        ask(probe, 0, 0)
        assert probe.facts["error"] == ""
        for pixel in [(0, -1), (0, W), 3, (1, 2, 3), "ab"]:
            with pytest.raises(ValueError, match="pixel"):
                probe.pixel = pixel
        assert probe.pixel == (0, 0)

    def test_what_it_draws_are_the_pictures(self, probe):
        view = probe.view["pictures"]
        assert [picture["title"] for picture in view] == ["y", "x̂"]
        found = probe.explain()

        def drawn(data, place):
            count = 4 * place["height"] * place["width"]
            return np.frombuffer(data[place["start"] : place["start"] + count], np.uint8).reshape(
                place["height"], place["width"], 4
            )

        np.testing.assert_array_equal(drawn(probe.view_pixels, view[1]), figures.rgba(probe.x_hat))
        np.testing.assert_array_equal(drawn(probe.pixels, probe.facts["window"]), figures.rgba(found.window))
        for j, source in enumerate(probe.facts["sources"]):
            d, (i, column) = source["image"], source["at"]
            np.testing.assert_array_equal(
                drawn(probe.pixels, source["picture"]), figures.rgba(probe.estimator.images[d])
            )
            np.testing.assert_array_equal(drawn(probe.pixels, source["stored"]), figures.rgba(found.stored[j]))
            red, green, blue = figures.rgba(probe.estimator.images[d])[i, column, :3]
            assert source["swatch"] == f"rgb({red}, {green}, {blue})"

    def test_the_shown_numbers_add_up(self, probe):
        facts = probe.facts
        weights = [float(source["weight"]) for source in facts["sources"]]
        assert sum(weights) + float(facts["rest"]["weight"]) == pytest.approx(1, abs=4e-6)
        assert facts["total"]["weight"] == "1.000000"
        assert facts["total"]["pixel"] == colour_text(probe.x_hat[:, 3, 4].double())
        assert facts["sources"][-1]["sum"] == colour_text(probe.explain().running_sum[-1])

    def test_its_state_is_json_and_restores_it(self, probe):
        ask(probe, 1, 7)
        state = json.loads(json.dumps(probe.state))
        assert state == {"row": 1, "column": 7}
        probe.pixel = (0, 0)
        probe.state = state
        assert probe.pixel == (1, 7)
        with pytest.raises(ValueError, match="keys"):
            probe.state = {"row": 1}
        json.dumps([probe.facts, probe.view])

    def test_another_estimate_takes_the_place_at_the_same_pixel(self, probe):
        probe.pixel = (2, 3)
        estimator, y = problem("inpainting")
        probe.show(estimator, y, sigma=0.1)
        assert probe.view["pictures"][0]["title"] == "B y"
        assert "Nothing in its 3 × 3 window was measured" in probe.facts["sentence"]
        assert probe.facts["pixel"] == [2, 3]
        small = le.LocalEquivariantMMSE(torch.rand(2, C, 5, 7), le.Denoising(), P)
        with pytest.raises(ValueError, match="6 × 9 pixels; got"):
            probe.show(small, torch.rand(1, C, 5, 7), sigma=0.1)

    def test_it_follows_a_painted_mask(self):
        estimator, y = problem("inpainting")
        x = estimator.images[:1]

        def ask_again(change):
            physics = le.Inpainting(change["new"])
            again = le.LocalEquivariantMMSE(estimator.images, physics, P, le.PseudoInverse(physics))
            probe.show(again, physics.A(x), sigma=0.01)

        probe = PixelProbe(estimator, y, sigma=SIGMA, pixel=(2, 3))
        painter = MaskPainter(mask_of_two_holes())
        painter.observe(ask_again, names="settled")
        assert "Nothing in its" in probe.facts["sentence"]
        painter.preset("none")
        assert "of training image 0 and has 100.0% of the weight" in probe.facts["sentence"]
        torch.testing.assert_close(probe.x_hat, x[0])

    def test_other_estimators_and_several_measurements_are_refused(self, unchecked_shapes):
        estimator, y = problem("denoising")
        with pytest.raises(TypeError, match=r"LocalEquivariantMMSE.*got MMSE"):
            PixelProbe(le.MMSE(estimator.images, estimator.physics), y, sigma=SIGMA)
        with pytest.raises(ValueError, match=r"one measurement, \(1, \.\.\.\); got shape \(2,"):
            PixelProbe(estimator, torch.cat([y, y]), sigma=SIGMA)

    def test_a_pixel_is_asked_for_once_and_no_other_with_it(self, monkeypatch):
        """Of 200 ms that a reader waits for, sources of all pixels would take ten times as many."""
        probe, asked = PixelProbe(*problem("denoising"), sigma=SIGMA, pixel=(1, 1)), []
        at_pixels = le.LocalEquivariantMMSE.at_pixels

        def watched(self, y, pixels, **how):
            asked.extend(pixels)
            return at_pixels(self, y, pixels, **how)

        def refused(*arguments, **how):
            raise AssertionError("the probe asked for all pixels again")

        monkeypatch.setattr(le.LocalEquivariantMMSE, "at_pixels", watched)
        monkeypatch.setattr(le.LocalEquivariantMMSE, "__call__", refused)
        for serial, pixel in enumerate([(3, 2), (3, 3), (3, 2), (1, 1)]):
            ask(probe, *pixel, serial=str(serial))
        assert asked == [(3, 2), (3, 3)]

    def test_its_module_asks_no_other_host(self):
        source = str(PixelProbe._esm)
        assert "export default { render }" in source
        assert "import " not in source
        assert "http" not in source


class TestLadder:
    def test_a_static_picture_goes_before_its_widget(self, probe, monkeypatch):
        shown = []
        monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
        probe._ipython_display_()
        picture, widget = shown
        assert picture["text/html"].startswith(
            '<img class="lemmse-still" alt="What is this pixel made of? The pixel in'
        )
        assert widget["application/vnd.jupyter.widget-view+json"]["model_id"] == probe.model_id

    def test_on_ipywidgets_alone_two_sliders_choose(self, monkeypatch):
        monkeypatch.setenv("LEMMSE_UI", "image")
        assert le.ui.PixelProbe is PlainProbe
        probe = PlainProbe(*problem("inpainting"), sigma=SIGMA, k=2)
        before = bytes(probe.grid.children[0].value)
        assert before.startswith(b"\x89PNG")
        probe.row.value = 2
        assert probe.pixel == (2, 4)
        assert "row 2, column 4" in probe.grid.children[1].value
        assert probe.grid.children[0].value != before
        probe.pixel = (5, 8)
        assert (probe.row.value, probe.column.value) == (5, 8)
        assert "row 5, column 8" in probe.grid.children[1].value

    def test_without_widgets_it_is_a_picture(self, monkeypatch):
        monkeypatch.setenv("LEMMSE_UI", "static")
        estimator, y = problem("downsampling")
        still = le.ui.PixelProbe(estimator, y, sigma=SIGMA, pixel=(1, 2))
        assert isinstance(still, figures.Picture)
        assert "The pixel in row 1, column 2 of x̂ is" in still.alt
