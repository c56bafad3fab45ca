"""Pictures: exact pixels, one scale, text that says the same, and no global state."""

import io
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image

from lemmse import figures

H, W = 5, 7


def decoded(picture: figures.Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))


def drawn(picture: figures.Picture, index: int) -> np.ndarray:
    """The pixels of the PNG under the axes of this index, without the frame's line."""
    pixels = decoded(picture)
    box = picture.figure.axes[index].get_position()
    top, bottom = round((1 - box.y1) * pixels.shape[0]), round((1 - box.y0) * pixels.shape[0])
    left, right = round(box.x0 * pixels.shape[1]), round(box.x1 * pixels.shape[1])
    return pixels[top:bottom, left:right]


def image(generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator)


class TestPixels:
    def test_bytes_are_rounded_clipped_and_opaque(self):
        values = torch.tensor([[-0.5, 0.0, 0.25], [0.5, 1.0, 7.0]])
        pixels = figures.rgba(values)
        assert pixels[..., 0].tolist() == [[0, 0, 64], [128, 255, 255]]
        assert (pixels[..., :3] == pixels[..., :1]).all()
        assert (pixels[..., 3] == 255).all()

    def test_colour_keeps_its_channels(self, generator):
        values = image(generator, 3, H, W)
        expected = (255 * values + 0.5).floor().permute(1, 2, 0).byte().numpy()
        np.testing.assert_array_equal(figures.rgba(values)[..., :3], expected)

    @pytest.mark.parametrize("shape", [(H, W), (1, H, W), (3, H, W), (1, 1, H, W), (1, 3, H, W)])
    def test_each_image_pixel_is_a_square_of_equal_size_and_exact_colour(self, generator, shape):
        values = image(generator, *shape)
        shown = drawn(figures.show(x=values), 0)
        exact = figures.rgba(values.reshape(-1, H, W))[..., :3]
        zoom = shown.shape[0] // H
        assert shown.shape == (zoom * H, zoom * W, 3)
        assert zoom == 40  # 140 CSS pixels for 7 make 20 each, at two device pixels per CSS pixel
        inner = (slice(2, -2), slice(2, -2))  # the frame's line lies over the outermost pixels
        np.testing.assert_array_equal(shown[inner], exact.repeat(zoom, 0).repeat(zoom, 1)[inner])

    def test_all_images_share_one_scale(self):
        dim, bright = torch.full((1, H, W), 0.2), torch.linspace(0, 1, H * W).reshape(1, H, W)
        picture = figures.show(dim=dim, bright=bright)
        assert (drawn(picture, 0)[20:30, 20:30] == 51).all()
        assert drawn(picture, 1)[4:30, 4:30].max() < 10
        darker = figures.show(dim=dim, scale=(0.0, 2.0))
        assert (drawn(darker, 0)[20:30, 20:30] == 26).all()

    def test_a_smaller_measurement_is_shown_as_large_as_its_image(self, generator):
        picture = figures.show(x=image(generator, 1, 28, 28), y=image(generator, 1, 14, 14))
        assert drawn(picture, 0).shape == drawn(picture, 1).shape

    def test_a_signed_map_is_white_at_zero_and_symmetric(self):
        pixels = figures.rgba(figures.SignedMap(torch.tensor([[-0.4, 0.0, 0.1, 0.4]])))[0].astype(int)
        red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
        assert blue[0] > red[0]
        assert red[3] > blue[3]
        assert min(red[1], green[1], blue[1]) > 240
        assert figures.SignedMap(torch.tensor([[-0.4, 0.1]])).scale == pytest.approx((-0.4, 0.4))
        assert figures.SignedMap(torch.zeros(2, 2)).scale == (-1.0, 1.0)

    def test_a_heat_map_brightens_from_low_to_high(self):
        light = figures.rgba(figures.HeatMap(torch.linspace(2, 3, 9)[None]))[0, :, :3].astype(float) @ [
            0.21,
            0.72,
            0.07,
        ]
        assert (np.diff(light) > 0).all()
        assert figures.HeatMap(torch.full((2, 2), 3.0)).scale == (3.0, 4.0)
        assert figures.HeatMap(torch.zeros(2, 2), low=-1.0, high=2.0).scale == (-1.0, 2.0)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (torch.zeros(2, H, W), r"c = 1 or 3"),
            (torch.zeros(4, 6), None),
            (torch.zeros(1, 2, 9), None),
            (torch.zeros(8), r"x: shape \(8,\)"),
            (torch.zeros(1, 0, W), r"x: shape \(1, 0, 7\)"),
            (torch.full((H, W), float("nan")), "x: 35 of its values are NaN or infinite"),
        ],
    )
    def test_what_is_no_image_is_refused(self, values, words):
        if words is None:
            figures.show(x=values)
        else:
            with pytest.raises(ValueError, match=words):
                figures.show(x=values)

    def test_other_bad_input(self, generator):
        with pytest.raises(ValueError, match="35 of them are NaN or infinite"):
            figures.rgba(torch.full((H, W), float("inf")))
        with pytest.raises(ValueError, match=r"or, in colour, \(3, h, w\); got \(2, 5, 7\)"):
            figures.rgba(torch.zeros(2, H, W))
        with pytest.raises(ValueError, match="nothing to show"):
            figures.show()
        with pytest.raises(ValueError, match="white must be above"):
            figures.show(x=image(generator, H, W), scale=(1.0, 0.0))
        with pytest.raises(ValueError, match=r"notes: 1 for 'z', but the images are x \(1\)"):
            figures.show(x=image(generator, H, W), notes={"z": "what?"})


class TestText:
    def test_psnr_stands_below_what_can_be_compared(self):
        x = torch.full((1, 1, H, W), 0.5)
        images = {"x": x, "x_hat": x + 0.1, "same": x, "y": x[..., ::2], "e": figures.SignedMap(x[0])}
        below = figures.annotate(figures.split(images), "x", {})
        assert below == {"x": [""], "x_hat": ["PSNR 20.0 dB"], "same": ["PSNR ∞"], "y": [""], "e": [""]}
        assert figures.annotate(figures.split(images), None, {})["x_hat"] == [""]
        assert figures.annotate(figures.split(images), "x", {"x_hat": "weight 0.8"})["x_hat"] == ["weight 0.8"]

    def test_each_of_a_batch_is_compared_with_its_own_reference(self):
        x = torch.stack([torch.zeros(1, H, W), torch.ones(1, H, W)])
        below = figures.annotate(figures.split({"x": x, "z": x - torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)}), "x", {})
        assert below["z"] == ["PSNR 20.0 dB", "PSNR 40.0 dB"]

    def test_the_generated_text_names_each_image_with_its_facts(self):
        x = torch.full((1, H, W), 0.5)
        picture = figures.show(
            {"nearest image": x[:, :, 1:]}, x=x, x_hat_mlp=x + 0.1, map=figures.HeatMap(x[0] * 2, 0, 3)
        )
        assert picture.alt == (
            "4 pictures side by side: nearest image (5 by 6 pixels); x (5 by 7 pixels); "
            "x hat mlp (5 by 7 pixels, PSNR 20.0 dB); map (5 by 7 pixels, colours from 0 to 3)."
        )
        assert figures.show(x=x, alt="Grey.").alt == "Grey."

    def test_it_reaches_the_page_whole(self, generator):
        picture = figures.show(x=image(generator, H, W), alt="x < y & \"z\" 'q' ∞")

        class Reader(HTMLParser):
            def handle_starttag(self, tag, attrs):
                self.seen = (tag, dict(attrs))

        reader = Reader()
        reader.feed(picture._repr_mimebundle_()["text/html"])
        tag, attributes = reader.seen
        assert (tag, attributes["alt"]) == ("img", "x < y & \"z\" 'q' ∞")
        assert attributes["src"].startswith("data:image/png;base64,")
        assert 2 * int(attributes["width"]) == decoded(picture).shape[1]
        assert picture._repr_mimebundle_()["text/plain"] == picture.alt

    def test_a_figure_without_text_is_refused(self):
        with pytest.raises(ValueError, match="alternative text is empty"):
            figures.picture(figures.figure(), alt="  ")

    def test_titles(self):
        assert [figures.title(name) for name in ("x", "x_hat", "x_hat_mlp", "nearest_image")] == [
            "x",
            "x̂",
            "x̂ mlp",
            "nearest image",
        ]


class TestLayout:
    def test_names_go_across_and_a_batch_goes_down(self, generator):
        picture = figures.show(x=image(generator, 3, 1, H, W), y=image(generator, 3, 1, H, W), z=image(generator, H, W))
        lefts = [round(axes.get_position().x0, 6) for axes in picture.figure.axes]
        tops = [round(axes.get_position().y1, 6) for axes in picture.figure.axes]
        assert len(set(lefts)) == 3
        assert len(set(tops)) == 3
        assert len(picture.figure.axes) == 7

    def test_a_batch_alone_fills_a_grid(self, generator):
        picture = figures.show(images=image(generator, 8, 1, H, W), columns=3)
        tops = [round(axes.get_position().y1, 6) for axes in picture.figure.axes]
        assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == [3, 3, 2]

    def test_nothing_lies_outside_or_over_another(self, generator):
        images = {name: image(generator, 2, 3, 9, 4) for name in ("x", "y")}
        maps = {"map": figures.SignedMap(image(generator, 2, 1, 4, 9) - 0.5)}
        picture = figures.show({**images, **maps})
        boxes = [axes.get_position() for axes in picture.figure.axes]
        assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])

    def test_figures_are_stacked_at_their_own_size(self):
        parts = [figures.figure(3.0, 1.0, layout=None), figures.figure(2.0, 2.0, layout=None)]
        for part, colour in zip(parts, ("#102030", "#405060"), strict=True):
            part.add_axes((0, 0, 1, 1), facecolor=colour).set_axis_off()
            part.patch.set_facecolor(colour)
        picture = figures.stack(parts, alt="Two.")
        assert picture.width == 300
        assert decoded(picture).shape == (600, 600, 3)
        assert (decoded(picture)[300:, 401:] == 255).all()


class TestFiles:
    def test_a_dark_page_does_not_shine_through(self):
        """Any matplotlib figure is drawn on white, and keeps its resolution."""
        plain = matplotlib.figure.Figure(figsize=(2.0, 1.0), dpi=72, facecolor="none")
        plain.add_axes((0.5, 0, 0.5, 1), facecolor=(1, 0, 0, 0.5)).set(xticks=[], yticks=[])
        pixels = decoded(figures.picture(plain, alt="Half red."))
        assert pixels.shape == (200, 400, 3)
        assert (pixels[100, 100] == 255).all()
        assert pixels[100, 300].tolist() == pytest.approx([255, 128, 128], abs=1)
        assert plain.dpi == 72

    def test_png_and_svg(self, generator, tmp_path):
        picture = figures.show(x=image(generator, H, W))
        assert picture.save(tmp_path / "x.png").read_bytes() == picture.png
        svg = picture.save(tmp_path / "x.svg").read_text()
        assert "<svg" in svg
        assert picture.alt in svg
        with pytest.raises(ValueError, match=r"saved as \.png or \.svg, not \.jpg"):
            picture.save(tmp_path / "x.jpg")

    def test_the_same_picture_has_the_same_bytes(self):
        x = torch.linspace(0, 1, H * W).reshape(H, W)
        assert figures.show(x=x).png == figures.show(x=x).png


class TestState:
    def test_no_pyplot_and_no_setting_of_matplotlib_is_touched(self):
        script = """
import sys, matplotlib, torch
before = list(dict.items(matplotlib.rcParams))  # the plain way reads "backend", which loads pyplot
from lemmse import figures
figures.show(x=torch.zeros(5, 7)); f = figures.figure(); f.subplots().plot([0, 1]); figures.picture(f, alt="a line")
assert list(dict.items(matplotlib.rcParams)) == before
assert "matplotlib.pyplot" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", script], check=True)

    def test_axes_take_the_style_however_they_are_made(self):
        for axes in (
            figures.figure().subplots(),
            figures.figure().add_axes((0, 0, 1, 1)),
            figures.figure(2, 2).subplots(2)[1],
        ):
            assert [axes.plot([0, 1])[0].get_color() for _ in figures.COLOURS] == list(figures.COLOURS)
            assert not axes.spines["top"].get_visible()
        assert matplotlib.rcParams["axes.spines.top"]

    def test_lines_stand_out_from_white(self):
        """WCAG asks a contrast of 3 of graphical objects."""

        def luminance(colour: str) -> float:
            linear = [
                c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)
            ]
            return float(np.dot([0.2126, 0.7152, 0.0722], linear))

        assert all(1.05 / (luminance(colour) + 0.05) >= 3.4 for colour in figures.COLOURS)


def test_an_image_without_a_name():
    with pytest.raises(TypeError, match="show\\(x=images\\)"):
        figures.show(torch.rand(1, 1, 5, 7))
