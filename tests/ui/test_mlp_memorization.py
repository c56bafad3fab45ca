"""The explorable of notebook 02 shows what it says: the estimate, its sources and the gap between them."""

import itertools
import math
import re
from functools import lru_cache

import pytest
import torch

from lemmse import data, metrics
from lemmse.ui.explorables import inverse_problems
from lemmse.ui.explorables import mlp_memorization as room

OPERATORS = list(room.OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("sigma", "count"), [(0.02, 2000), (0.5, 50), (2.0, 2000), (10.0, 10)])
def test_numbers_are_those_of_bayes(operator, sigma, count):
    """Estimate, sources, weights and gap are those of the weights of S3.1, written out in float64."""
    view = room.view(sigma, operator, count, "sandal")
    images, y = data.fashion_mnist("train", count).double(), view.pictures["y"].double()
    r2 = (room.OPERATORS[operator].A(images) - y).flatten(1).square().sum(1)
    weights = torch.softmax(-r2 / (2 * sigma**2), 0)
    x_hat = torch.einsum("d,dchw->chw", weights, images)
    torch.testing.assert_close(view.pictures["x_hat"][0].double(), x_hat, atol=2e-3, rtol=0)
    order = r2.argsort()
    for rank, index in zip(room.RANKS, order, strict=False):
        torch.testing.assert_close(view.pictures[rank].double(), images[index])
        assert float(view.notes[rank].removeprefix("weight ").rstrip("%")) == pytest.approx(
            100 * weights[index].item(), abs=0.3
        )
    effective, gap, threshold = view.numbers.values()
    assert effective == pytest.approx(torch.special.entr(weights).sum().exp().item(), rel=1e-2)
    assert gap == pytest.approx((r2[order[1]] - r2[order[0]]).item(), rel=1e-3, abs=0.05 * sigma**2)
    assert threshold == pytest.approx(2 * sigma**2 * math.log(count / 0.01))


@lru_cache
def views(operator):
    """Every state of the other controls with this operator: the number of images, and the view."""
    grid = itertools.product(room.SIGMAS, room.COUNTS, room.TRUTHS)
    return [(count, room.view(sigma, operator, count, image)) for sigma, count, image in grid]


@pytest.mark.parametrize("operator", OPERATORS)
def test_sentence_is_true_in_every_state(operator):
    """A copy is called a copy and looks like its source; the mean is called the mean; a nearer y is mentioned."""
    images = data.fashion_mnist("train", max(room.COUNTS))
    met = set()
    for count, view in views(operator):
        x, y, x_hat, nearest = (view.pictures[name] for name in ("x", "y", "x_hat", room.RANKS[0]))
        kind = view.sentence.split()[:2]
        met.add(kind[1])
        if kind == ["A", "copy:"]:
            assert (x_hat - nearest).abs().max() < 0.02
        elif kind == ["Nearly", "the"]:
            assert metrics.psnr(x_hat, images[:count].mean(0, keepdim=True)) > 15
        else:
            assert kind == ["A", "mixture"]
            assert 1 < view.numbers["effective sources"] < count
        own, estimate = (metrics.psnr(z, x).item() if z.shape == x.shape else -math.inf for z in (y, x_hat))
        assert ("y itself is nearer" in view.sentence) == (own - estimate >= 0.1)
    assert {"copy:", "mixture"} <= met


@pytest.mark.parametrize("operator", OPERATORS)
def test_sentence_never_contradicts_itself(operator):
    """A gap above the bound comes with a copy, never with a mixture; a copy below it is said to need no bound."""
    met = set()
    for _, view in views(operator):
        copy, above = view.sentence.startswith("A copy:"), "is above" in view.sentence
        _, gap, threshold = view.numbers.values()
        assert above == (gap > threshold)
        assert above != ("is below" in view.sentence)
        assert copy or not above, view.sentence
        assert ("so a copy is certain" in view.sentence) == above
        assert ("suffices for a copy but is not needed" in view.sentence) == (copy and not above)
        assert ("so nothing forces a copy" in view.sentence) == (not copy)
        shown = re.search(r"r₂² − r₁² = (\S+), is \w+ 2σ² ln\(D/δ\) = (\S+) with δ = 1%", view.sentence).groups()
        assert shown[0] != shown[1], view.sentence
        worth = re.search(r"The PSNR is (\S+) dB(?:, and y itself is nearer, at (\S+) dB)?", view.sentence).groups()
        assert worth[0] != worth[1]
        met.add((copy, above))
    assert {(True, True), (False, False)} <= met


def test_a_copy_is_the_same_thing_in_both_notebooks():
    """One weight decides what is called a copy, here and in notebook 00."""
    assert room.COPY == inverse_problems.COPY == 0.99


def test_default_makes_the_point():
    """At first sight the estimate is one training image, is not the truth, and the gap says why."""
    view = room.mlp_memorization().look()
    assert view.numbers["effective sources"] < 1.001
    assert view.numbers["gap r₂² − r₁²"] > view.numbers["2σ² ln(D/δ)"]
    assert (view.pictures["x_hat"] - view.pictures[room.RANKS[0]]).abs().max() < 1e-3
    assert metrics.psnr(view.pictures["x_hat"], view.pictures["x"]) < 16


def test_noise_is_drawn_once_and_scaled():
    """From one noise level to the next nothing but the size of the noise changes."""
    views = {sigma: room.view(sigma, "denoising", 10, "bag") for sigma in (0.5, 2.0)}
    loud, quiet = (views[sigma].pictures["y"] - views[sigma].pictures["x"] for sigma in (2.0, 0.5))
    torch.testing.assert_close(loud, 4 * quiet, atol=1e-5, rtol=0)


def test_estimators_are_prepared_once():
    """A slider's move meets an estimator that exists already."""
    assert room._estimator("deblurring", 2000) is room._estimator("deblurring", 2000)
