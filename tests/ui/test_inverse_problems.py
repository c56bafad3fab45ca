"""The explorable of notebook 00 shows what it says: the noise is only scaled, the answers are MAP and MMSE."""

import itertools
import math

import pytest
import torch

from lemmse import data, metrics
from lemmse.ui.explorables import inverse_problems as room

OPERATORS = list(room.OPERATORS)


def answers(view):
    """The four pictures: x, y, MAP, MMSE."""
    assert list(view.pictures) == ["x", "y", "x_hat MAP", "x_hat MMSE"]
    return view.pictures.values()


@pytest.mark.parametrize("operator", OPERATORS)
def test_sigma_only_scales_the_noise(operator):
    """From one noise level to the next nothing but the size of the noise changes."""
    x, loud, *_ = answers(room.view(operator, 2.0, "boot"))
    _, quiet, *_ = answers(room.view(operator, 0.5, "boot"))
    clean = room.OPERATORS[operator].A(x)
    torch.testing.assert_close(loud - clean, 4 * (quiet - clean), atol=1e-5, rtol=0)
    assert (quiet - clean).std() == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_answers_are_the_mode_and_the_mean(operator, sigma):
    """MAP and MMSE are those of Bayes' rule over the training images, written out (S1.2)."""
    view = room.view(operator, sigma, "sandal")
    _, y, x_map, x_mmse = answers(view)
    images = data.fashion_mnist("train", room.IMAGES).double()
    r2 = (room.OPERATORS[operator].A(images) - y.double()).flatten(1).square().sum(1)
    weights = torch.softmax(-r2 / (2 * sigma**2), 0)
    torch.testing.assert_close(x_map[0].double(), images[r2.argmin()])
    torch.testing.assert_close(x_mmse[0].double(), torch.einsum("d,dchw->chw", weights, images), atol=2e-3, rtol=0)
    assert view.numbers["weight of MAP"] == pytest.approx(weights.max().item(), abs=5e-3)
    entropy = torch.special.entr(weights).sum().exp().item()
    assert view.numbers["effective number of images"] == pytest.approx(entropy, rel=1e-2)


@pytest.mark.parametrize("operator", OPERATORS)
def test_sentence_is_true(operator):
    """A copy is called a copy, a mixture a mixture, and whichever picture is called nearer is nearer."""
    for sigma, image in itertools.product(room.SIGMAS, room.TRUTHS):
        view = room.view(operator, sigma, image)
        x, y, x_map, x_mmse = answers(view)
        gain = (metrics.psnr(x_mmse, x) - metrics.psnr(x_map, x)).item()
        copied = view.numbers["weight of MAP"] >= room.COPY
        assert ("a copy" in view.sentence) == copied != ("mixes" in view.sentence)
        if copied:
            assert (x_mmse - x_map).abs().max() < 0.05  # no eye could tell them apart
            printed = {f"{metrics.psnr(z, x).item():.1f}" for z in (x_map, x_mmse)}
            assert ("MMSE is MAP" in view.sentence) == (len(printed) == 1) != ("MMSE is all but MAP" in view.sentence)
        elif abs(gain) < 0.1:
            assert "is as near to the truth" in view.sentence
        else:
            assert f"{abs(gain):.1f} dB {'nearer' if gain > 0 else 'further'}" in view.sentence
        estimate = metrics.psnr(x_mmse, x).item()
        own = metrics.psnr(y, x).item() if y.shape == x.shape else -math.inf
        assert ("measurement itself" in view.sentence) == (own - estimate >= 0.1)
        assert f"measurement itself is nearer to the truth, at {estimate:.1f} dB" not in view.sentence


def test_default_makes_the_point():
    """At first sight MAP and MMSE differ, the mixture is nearer to the truth, and no image holds most of the weight."""
    view = room.inverse_problems().look()
    x, _, x_map, x_mmse = answers(view)
    assert (x_map - x_mmse).abs().max() > 0.3
    assert metrics.psnr(x_mmse, x) > metrics.psnr(x_map, x) + 2
    assert view.numbers["weight of MAP"] < 0.6


def test_estimators_are_prepared_once():
    """A slider's move meets an estimator that exists already."""
    assert room._experiment("deblurring").estimator is room._experiment("deblurring").estimator


def test_mmse_is_map_only_where_both_print_alike():
    """A copy of 99 % whose PSNR differs in print from that of MAP is all but MAP; a tenth of a dB is no news."""
    known = {"weight": 0.99, "count": 1.06, "psnr_map": 11.6}
    assert "MMSE is MAP: a copy, at 11.6 dB" in room._sentence("denoising", **known, psnr_mmse=11.62, psnr_y=11.7)
    shown = room._sentence("denoising", **known, psnr_mmse=11.7, psnr_y=11.74)
    assert "MMSE is all but MAP: a copy, at 11.7 dB" in shown
    assert "measurement itself" not in shown
    assert "at 12.0 dB" in room._sentence("denoising", **known, psnr_mmse=11.7, psnr_y=12.0)
