"""A tolerance is kept: what the screen drops never moves a mean by more than the error bound says, at any sigma."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lemmse as le
from lemmse import estimators, screen
from problems import LazyImages, measured, training_set

SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0)
ROUNDING = 2e-5
"""Of two means in float32, beside the error bound: of the products alone, 60 dB at σ ≥ 0.05 (test_local)."""


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Screen however small the problem is and whether or not it pays."""
    monkeypatch.setattr(estimators, "SCREENED_FROM", 0)
    monkeypatch.setattr(screen, "FEWEST_DIRECTIONS", 1)
    monkeypatch.setattr(screen, "WORTH", float("inf"))


@pytest.fixture(params=["compiled", "PyTorch"])
def loops(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(screen, "compiled", lambda like: False)


def mask_of(h, w):
    mask = torch.ones(h, w)
    mask[2:4, 1:4] = 0
    return mask


BLUR = le.Blur(le.optics.gaussian_psf(0.8, size=3))
PROBLEMS = {
    "denoising": lambda h, w: (le.Denoising(), None),
    "a blur, inverted": lambda h, w: (BLUR, le.PseudoInverse(BLUR)),
    "inpainting": lambda h, w: (le.Inpainting(mask_of(h, w)), le.PseudoInverse(le.Inpainting(mask_of(h, w)))),
    "inpainting, scaled": lambda h, w: (le.Inpainting(mask_of(h, w)), le.Tikhonov(le.Inpainting(mask_of(h, w)), 0.3)),
}


def assert_certified(estimator, y, sigma, tolerance, rounding=ROUNDING):
    """The true error, by float64, is within the bound but for rounding, and the bound within the tolerance.

    Returns the share of the pixels that the screen was good for.
    """
    got = estimator(y, sigma=sigma, tolerance=tolerance)
    options = (estimator.patch_size, estimator.pre_inverse, estimator.boundary)
    double = le.LocalEquivariantMMSE(estimator.images.double(), estimator.physics, *options)
    exact = double(y.double(), sigma=sigma)
    assert got.error_bound.shape == got.mean.shape
    assert got.error_bound.max() <= tolerance
    assert got.error_bound.min() >= 0
    error, bound = (got.mean.double() - exact.mean).abs(), got.error_bound.double()
    assert (error <= bound + rounding).all()
    tail = tolerance / float(estimator.images.amax() - estimator.images.amin())
    of_partition = {"rtol": 2e-5, "atol": 1e-3 + 3e-6 / float(torch.as_tensor(sigma).min()) ** 2 + 2 * tail}
    torch.testing.assert_close(got.log_partition.double(), exact.log_partition, **of_partition)
    by_screen = got.error_bound > 0
    assert ((error - rounding)[by_screen] < bound[by_screen]).all()
    return float(by_screen.double().mean())


def estimator_of(name, images, patch_size=5, boundary="circular"):
    physics, B = PROBLEMS[name](*images.shape[2:])
    return le.LocalEquivariantMMSE(images, physics, patch_size, B, boundary)


@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 9, 7)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_operators_boundaries_and_shapes(name, shape, boundary, loops, generator):
    images = training_set(count=7, shape=shape, dtype=torch.float32)
    estimator = estimator_of(name, images, boundary=boundary)
    y = measured(images, estimator.physics, generator, sigma=0.1)
    by_screen = assert_certified(estimator, y, 0.1, 1e-2)
    assert estimator._screens
    if boundary == "circular":
        assert by_screen > 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sigma=st.floats(0.01, 3),
    tolerance=st.floats(1e-7, 0.5),
    smooth=st.booleans(),
    channels=st.sampled_from([1, 3]),
)
def test_the_error_is_within_its_bound(seed, sigma, tolerance, smooth, channels):
    """Images of noise, where nothing is near, or of few colours, where much is; queries near one of them or not."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(9, channels, 8, 8, generator=generator)
    if smooth:
        images = (images[..., ::4, ::4] * 4).round().div(4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    y = images[:2] + sigma * torch.randn(2, channels, 8, 8, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "BLOCK_ATOMS", 128)
        # at σ = 0.01 float32 is good for a weight of a few thousandths: distances of 1e-7, over 2σ²
        assert_certified(
            estimator_of("denoising", images), y, sigma, tolerance, rounding=max(ROUNDING, 1e-7 / sigma**2)
        )


@pytest.mark.parametrize("sigma", SIGMAS)
def test_real_images(sigma, loops, generator):
    images, x = le.data.fashion_mnist("train", 10), le.data.fashion_mnist("test", 1)
    y = x + sigma * torch.randn(x.shape, generator=generator)
    by_screen = assert_certified(estimator_of("denoising", images, patch_size=7), y, sigma, 1e-3)
    if sigma <= 0.2:
        assert by_screen == 1


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_thousand_near_ties(sigma, loops, generator):
    """Windows at distances that nearly tie with the floor of the screen: of weights just above and below its cut."""
    count, tolerance = 1000, 1e-3
    images = torch.rand(count, 1, 5, 5, generator=generator) * 1e-3
    direction = torch.randn(5, 5, generator=generator)
    direction /= direction.norm()
    # one at distance 0, all others at r² = 2σ² (cut ± a little): each weighs about tolerance / atoms
    cut = np.log(count * 25 / tolerance)
    depths = 2 * sigma**2 * (cut + torch.linspace(-3, 3, count))
    images += depths.sqrt()[:, None, None, None] * direction
    images[0] = 0
    images = (images - images.amin()) / (images.amax() - images.amin()).clamp_min(1)
    y = images[:1] + 1e-3 * sigma * torch.randn(1, 1, 5, 5, generator=generator)
    assert_certified(estimator_of("denoising", images), y, sigma, tolerance)


def test_several_sigmas_of_one_measurement_and_a_batch(loops, generator):
    """Certified at the largest of them; each measurement of a batch has the answer that it has alone."""
    images = training_set(count=7, shape=(3, 9, 7), dtype=torch.float32)
    estimator = estimator_of("denoising", images)
    y = measured(images, le.Denoising(), generator, sigma=0.1, count=3)
    sigma = torch.tensor([0.05, 0.1, 0.3])
    assert_certified(estimator, y[:1].expand(3, -1, -1, -1), sigma, 1e-3)
    assert_certified(estimator, y, sigma, 1e-3)
    together = estimator(y, sigma=sigma, tolerance=1e-3)
    for i in range(3):
        alone = estimator(y[i : i + 1], sigma=float(sigma[i]), tolerance=1e-3)
        assert torch.equal(together.mean[i : i + 1], alone.mean)


def test_threads_give_the_same_answer(generator):
    images = training_set(count=7, shape=(3, 9, 7), dtype=torch.float32)
    estimator = estimator_of("denoising", images)
    y = measured(images, le.Denoising(), generator, sigma=0.1, count=1)
    alone = estimator(y, sigma=0.1, tolerance=1e-3)
    torch.set_num_threads(3)
    try:
        shared = estimator(y, sigma=0.1, tolerance=1e-3)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(shared.mean, alone.mean, rtol=0, atol=1e-6)


def test_a_mean_of_what_is_kept_alone_is_off(monkeypatch, generator):
    """The tests above can fail: a floor that is too high by e⁷ breaks the bound."""
    images = training_set(count=40, shape=(1, 8, 8), dtype=torch.float32)
    estimator = estimator_of("denoising", images)
    y = measured(images, le.Denoising(), generator, sigma=0.5, count=1)
    assert_certified(estimator, y, 0.5, 1e-3)
    honest = screen.Screen._margin
    monkeypatch.setattr(screen.Screen, "_margin", lambda self, tolerance: max(0.0, honest(self, tolerance) - 12))
    got, exact = estimator(y, sigma=0.5, tolerance=1e-3), estimator(y, sigma=0.5)
    assert (got.mean - exact.mean).abs().max() > 1e-3


class TestWhereItIsExact:
    """error_bound is 0 there, and the answer that of a call without a tolerance."""

    @pytest.fixture(autouse=True)
    def images(self, generator):
        self.images = training_set(count=7, shape=(3, 9, 7), dtype=torch.float32)
        self.y = measured(self.images, le.Denoising(), generator, sigma=0.1, count=2)

    def same(self, estimator, y=None, **kwargs):
        y = self.y if y is None else y
        got, exact = estimator(y, sigma=0.1, tolerance=1e-3, **kwargs), estimator(y, sigma=0.1, **kwargs)
        assert torch.equal(got.mean, exact.mean)
        assert not got.error_bound.any()

    def test_strata_with_several_whiteners(self):
        B = le.EpsilonInverse(mask_of(9, 7), 0.1)
        self.same(le.LocalEquivariantMMSE(self.images, le.Denoising(), 3, B))

    def test_images_made_on_demand_gradients_and_other_estimators(self):
        self.same(le.LocalEquivariantMMSE(LazyImages(self.images), le.Denoising(), 5))
        self.same(le.LocalEquivariantMMSE(self.images, le.Denoising(), 5), y=self.y.clone().requires_grad_())
        for other in (le.MMSE, le.EquivariantMMSE):
            self.same(other(self.images, le.Denoising()))

    def test_a_memory_limit_without_room_for_the_screen(self, monkeypatch):
        estimator = le.LocalEquivariantMMSE(self.images, le.Denoising(), 5)
        monkeypatch.setattr(estimator, "memory_limit", 2**13)  # of so few images, the least limit holds a screen
        assert not estimator._screens
        self.same(estimator)

    def test_where_it_does_not_pay(self, monkeypatch):
        """Too many atoms survive: seen after a share of the work, and the answer is the exact one."""
        monkeypatch.setattr(screen, "WORTH", 0.9)
        monkeypatch.setattr(screen, "BLOCK_ATOMS", 1)
        estimator = le.LocalEquivariantMMSE(self.images, le.Denoising(), 5)
        v, (shown,) = estimator._centred(self.images[:1]), estimator._screens.values()
        for sigma, pays in ((0.01, True), (10.0, False)):
            found = shown.means(v, torch.tensor([sigma**-2]).double(), 1e-3, budget=10 * 7 * 63**2)
            assert (found is not None) == pays
        monkeypatch.setattr(screen, "COMPILED", screen.Costs(1e6, 1e6, 1e6, 1e6))
        self.same(estimator)

    def test_images_of_one_colour(self):
        estimator = le.LocalEquivariantMMSE(torch.full((3, 1, 8, 8), 0.5), le.Denoising(), 5)
        got = estimator(torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), sigma=0.1, tolerance=1e-3)
        torch.testing.assert_close(got.mean, torch.full((1, 1, 8, 8), 0.5))
        assert got.error_bound.max() <= 1e-6


def test_some_of_a_batch_by_screen_and_others_exactly(monkeypatch, generator):
    """Those of large sigmas do not pay: every measurement has its own answer, in its own place."""
    images = training_set(count=7, shape=(3, 9, 7), dtype=torch.float32)
    y, sigma = measured(images, le.Denoising(), generator, sigma=0.1, count=3), torch.tensor([5.0, 0.05, 5.0])
    means = screen.Screen.means
    only_small = lambda self, v, inverse_variances, *args: (  # noqa: E731
        means(self, v, inverse_variances, *args) if inverse_variances.min() > 1 else None
    )
    monkeypatch.setattr(screen.Screen, "means", only_small)
    estimator = estimator_of("denoising", images)
    got, exact = estimator(y, sigma=sigma, tolerance=1e-3), estimator(y, sigma=sigma)
    assert [bool(each.any()) for each in got.error_bound] == [False, True, False]
    torch.testing.assert_close(got.mean[::2], exact.mean[::2], rtol=0, atol=1e-6)
    assert ((got.mean - exact.mean).abs() <= got.error_bound + ROUNDING).all()


@pytest.mark.parametrize("tolerance", [-1e-3, float("nan")])
def test_a_tolerance_that_is_none(tolerance):
    estimator = le.LocalEquivariantMMSE(training_set(count=2, shape=(1, 8, 8)), le.Denoising(), 5)
    with pytest.raises(ValueError, match="zero or positive"):
        estimator(torch.zeros(1, 1, 8, 8, dtype=torch.float64), sigma=0.1, tolerance=tolerance)


@pytest.mark.parametrize("reduction", [le.PosteriorMoments(), le.TopSources(1), le.TopImages(1)])
def test_reductions_that_need_exact_weights_refuse(reduction):
    estimator = le.LocalEquivariantMMSE(training_set(count=2, shape=(1, 8, 8)), le.Denoising(), 5)
    with pytest.raises(ValueError, match="needs the exact weights"):
        estimator(torch.zeros(1, 1, 8, 8, dtype=torch.float64), sigma=0.1, tolerance=1e-3, reduction=reduction)


def test_float64_is_certified_to_its_own_rounding(generator):
    images = training_set(count=20, shape=(1, 9, 9))
    y = measured(images, le.Denoising(), generator, sigma=0.1)
    for tolerance in (1e-2, 1e-9, 1e-11):
        assert_certified(estimator_of("denoising", images), y, 0.1, tolerance, rounding=1e-12)


def test_without_numba(generator):
    """The PyTorch loops serve, and numba is not loaded."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'numba' else find(name)\n"
        "import torch, lemmse as le\n"
        "from lemmse import screen, estimators\n"
        "screen.WORTH, estimators.SCREENED_FROM = float('inf'), 0\n"
        "images = torch.rand(60, 1, 28, 28)\n"
        "got = le.LocalEquivariantMMSE(images, le.Denoising(), 5)(images[:1], sigma=0.1, tolerance=1e-3)\n"
        "assert 0 < got.error_bound.max() <= 1e-3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
