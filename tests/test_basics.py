"""Patches, shifts, metrics and kernels against their definitions; doctests of the whole package."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import lemmse as le
from lemmse.patches import centre_pixels, extract_patches, shift, shift_each

C, H, W = 2, 5, 7


def test_shift_moves_the_pixel_at_m_to_m_plus_g():
    x = torch.rand(1, C, H, W)
    shifted = shift(x, (2, -3))
    for row in range(H):
        for column in range(W):
            assert torch.equal(shifted[..., row, column], x[..., (row - 2) % H, (column + 3) % W])


def test_shifts_form_a_group():
    x = torch.rand(1, C, H, W)
    assert torch.equal(shift(shift(x, (2, 5)), (4, 6)), shift(x, (6, 11)))
    assert torch.equal(shift(x, (H, W)), x)


def test_each_image_is_shifted_by_a_shift_of_its_own():
    x = torch.rand(C * H * W, C, H, W)
    index = torch.arange(len(x)) % (H * W)
    wanted = torch.cat([shift(one[None], divmod(int(g), W)) for one, g in zip(x, index, strict=True)])
    assert torch.equal(shift_each(x, index), wanted)
    assert torch.equal(shift_each(wanted, -index), x)


@pytest.mark.parametrize("p", [1, 3, 5])
def test_patches_are_circular_windows(p):
    x = torch.rand(2, C, H, W)
    patches = extract_patches(x, p)
    assert patches.shape == (2, H * W, C * p * p)
    half = p // 2
    for row, column in [(0, 0), (4, 6), (2, 3), (0, 6)]:
        window = torch.stack(
            [
                torch.stack([x[:, :, (row + i) % H, (column + j) % W] for j in range(-half, half + 1)], -1)
                for i in range(-half, half + 1)
            ],
            -2,
        )
        assert torch.equal(patches[:, row * W + column], window.flatten(1))
    centre = patches.unflatten(2, (C, p, p))[..., half, half]
    assert torch.equal(centre_pixels(x), centre)


def test_patches_follow_shifts():
    x = torch.rand(1, C, H, W)
    moved = extract_patches(shift(x, (1, 2)), 3).unflatten(1, (H, W))
    assert torch.equal(moved, extract_patches(x, 3).unflatten(1, (H, W)).roll((1, 2), (1, 2)))


@pytest.mark.parametrize("p", [0, 2, 4, 7, -1])
def test_bad_patch_size(p):
    with pytest.raises(ValueError, match=f"asked for {p}"):
        extract_patches(torch.rand(1, C, H, W), p)


def test_psnr_of_a_known_error():
    x = torch.rand(3, C, H, W)
    error = torch.tensor([0.1, 0.01, 1.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(le.metrics.psnr(x + error, x), torch.tensor([20.0, 40.0, 0.0]), rtol=0, atol=1e-3)
    in_bytes = le.metrics.psnr(255 * (x + error), 255 * x, peak=255.0)
    torch.testing.assert_close(in_bytes, torch.tensor([20.0, 40.0, 0.0]), rtol=0, atol=1e-3)
    assert le.metrics.psnr(x, x).isinf().all()


def test_25_decibels_in_relative_errors():
    """25 dB is an RMSE of 0.0562: on images of RMS 0.5, 11.2 % in norm and 1.26 % squared (S11)."""
    x = torch.full((1, 1, 10, 10), 0.5)
    x_hat = x + 10 ** (-25 / 20)
    assert le.metrics.psnr(x_hat, x).item() == pytest.approx(25, abs=1e-4)
    assert le.metrics.relative_error(x_hat, x).item() == pytest.approx(0.112, abs=5e-4)
    assert le.metrics.relative_squared_error(x_hat, x).item() == pytest.approx(0.0126, abs=5e-5)


def test_metrics_refuse_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="must agree"):
        le.metrics.psnr(torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="must agree"):
        le.metrics.relative_error(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 5))


def test_gaussian_psf():
    psf = le.optics.gaussian_psf(1.3, size=(5, 8))
    assert psf.shape == (5, 8)
    assert psf.sum().item() == pytest.approx(1, abs=1e-15)
    assert (psf >= 0).all()
    assert divmod(int(psf.argmax()), 8) == (2, 4)
    assert (psf[2, 5] / psf[2, 4]).item() == pytest.approx(torch.exp(torch.tensor(-0.5 / 1.3**2)).item(), rel=1e-6)


def test_smallest_gain_of_a_periodic_gaussian():
    """A sampled periodic Gaussian of 1 px has min |k̂| = 2.07e-4 in two dimensions (S5.7)."""
    symbol = le.Blur(le.optics.gaussian_psf(1.0, size=(27, 27))).gram_symbol(28, 28).sqrt()
    assert symbol.min().item() == pytest.approx(2.07e-4, rel=5e-3)


MODULES = [
    module.name
    for module in pkgutil.walk_packages(le.__path__, "lemmse.")
    if not module.name.startswith("lemmse.ui.explorables.")
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs={"le": le, **vars(le)})
    assert result.failed == 0


def test_there_are_doctests():
    found = [doctest.DocTestFinder().find(importlib.import_module(name)) for name in MODULES]
    assert sum(len(test.examples) for tests in found for test in tests) >= 5


def test_public_names_exist():
    for name in le.__all__:
        assert getattr(le, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        le.nonsense  # noqa: B018
