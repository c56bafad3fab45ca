"""Network and formula answer the same noise; on training images the excess of the loss is the distance of the two."""

import pytest
import torch
from torch import nn

import lemmse as le
from lemmse.comparison import compare, interval, rank_correlation
from lemmse.networks import PatchMLP, Preconditioning
from problems import training_set

C, H, W, D = 2, 5, 7, 11


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Blurred(nn.Module):
    """A network of the user's own: no parameters, and a declared receptive field."""

    receptive_field = 3

    def forward(self, v, sigma):
        padded = nn.functional.pad(v, (1, 1, 1, 1), mode="circular")
        return nn.functional.avg_pool2d(padded, 3, stride=1) / (1 + sigma)


MASK = le.Inpainting(le.center_mask(H, W, side=2))


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_errors_are_those_of_a_plain_loop(batch_size):
    images, x, net = training_set(count=D, shape=(C, H, W)), training_set(count=5, shape=(C, H, W)) ** 2, Blurred()
    formula = le.LocalEquivariantMMSE(images, MASK, patch_size=3, pre_inverse=le.PseudoInverse(MASK))
    sigmas, noise = [0.1, 0.4], seeded(3)
    found = compare(net, formula, x, sigmas=sigmas, generator=seeded(3), batch_size=batch_size)
    for i, sigma in enumerate(sigmas):
        y = MASK.A(x) + sigma * torch.randn(x.shape, generator=noise, dtype=x.dtype)
        wanted, image = formula(y, sigma=sigma).mean, net(MASK.A(y), sigma)
        torch.testing.assert_close(found.psnr_network_formula[i], le.metrics.psnr(image, wanted))
        torch.testing.assert_close(found.psnr_network_truth[i], le.metrics.psnr(image, x))
        torch.testing.assert_close(found.psnr_formula_truth[i], le.metrics.psnr(wanted, x))
        torch.testing.assert_close(found.relative_error[i], le.metrics.relative_error(image, wanted))
        torch.testing.assert_close(found.relative_squared_error[i], le.metrics.relative_error(image, wanted) ** 2)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_excess_of_the_loss_is_the_distance_to_the_formula(sigma):
    """S5.3, for a network that has learned nothing: two estimates of one number, by common random numbers."""
    images = training_set(count=D, shape=(C, H, W))
    net = PatchMLP(C, 3, preconditioning=Preconditioning.of(images.float(), le.Denoising())).double()
    formula = le.LocalEquivariantMMSE(images, le.Denoising(), patch_size=3)
    x = images[torch.randint(D, (400,), generator=seeded())]
    found = compare(net, formula, x, sigmas=sigma, generator=seeded(1))
    excess, distance = interval(found.excess), interval(found.network_formula)
    error = torch.hypot(excess.half_width, distance.half_width) / 1.96
    assert (excess.mean - distance.mean).abs() < 4 * error
    assert distance.mean > 4 * error, "the test could tell"
    assert distance.half_width < 1.01 * excess.half_width, "equal where the formula errs nowhere"


def test_intervals_hold_the_mean_as_often_as_they_say():
    draws = torch.randn(4000, 50, generator=seeded(), dtype=torch.float64) + 3
    mean, half_width = interval(draws)
    assert ((mean - 3).abs() < half_width).double().mean() == pytest.approx(0.95, abs=0.015)


def test_the_network_is_in_eval_mode_and_its_noise_comes_from_the_generator():
    images = training_set(count=D, shape=(C, H, W), dtype=torch.float32)
    net = nn.Module()
    net.drop, net.forward = nn.Dropout(0.5), lambda v, sigma: net.drop(v)
    formula = le.LocalEquivariantMMSE(images, le.Denoising(), patch_size=3)
    first, again, other = (
        compare(net.train(), formula, images[:2], sigmas=[0.2], generator=seeded(seed)).network_truth
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.mean() == pytest.approx(0.2**2, rel=0.5), "nothing was dropped"


@pytest.mark.usefixtures("unchecked_shapes")
def test_images_of_another_shape_and_networks_without_images_are_refused():
    images = training_set(count=D, shape=(C, H, W), dtype=torch.float32)
    formula, how = le.LocalEquivariantMMSE(images, le.Denoising(), patch_size=3), {"sigmas": 0.1, "generator": seeded()}
    with pytest.raises(ValueError, match=r"images like the estimator's, \(b, 2, 5, 7\): got \(1, 2, 5, 6\)"):
        compare(Blurred(), formula, images[:1, :, :, 1:], **how)
    with pytest.raises(ValueError, match="at least two images"):
        compare(Blurred(), formula, images[:1], **how)
    flat = nn.Module()
    flat.forward = lambda v, sigma: v.flatten(1)
    with pytest.raises(ValueError, match=r"must return images \(3, 2, 5, 7\): got \(3, 70\)"):
        compare(flat, formula, images[:3], **how)


@pytest.mark.parametrize("levels", [1000, 4])
def test_rank_correlation_is_that_of_counted_ranks(levels):
    """A number's rank counts those below it, and half of its equals; few levels make many equals."""
    a, b = torch.randint(levels, (2, 5, 13), generator=seeded()).double()
    b += a
    ranks = [(x[:, None] > x).sum(1) + (x[:, None] == x).sum(1).double() / 2 for x in (a.flatten(), b.flatten())]
    wanted = torch.corrcoef(torch.stack(ranks))[0, 1].item()
    assert rank_correlation(a, b) == pytest.approx(wanted, abs=1e-12)
    assert rank_correlation(a, -b) == pytest.approx(-wanted, abs=1e-12)
    assert rank_correlation(a, (a / levels).exp()) == pytest.approx(1)


def test_what_has_no_order_has_no_rank_correlation():
    with pytest.raises(ValueError, match="all equal"):
        rank_correlation(torch.ones(3), torch.arange(3.0))
    with pytest.raises(ValueError, match="got 3 and 4"):
        rank_correlation(torch.arange(3.0), torch.arange(4.0))
