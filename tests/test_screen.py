"""A tolerance is kept: what the screen drops never moves a mean by more than the error bound says, at any sigma."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import lemmse as le
from lemmse import estimators, screen
from problems import LazyImages, measured, training_set

SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0)

pytestmark = pytest.mark.filterwarnings("ignore:images are expected in")


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Screen however small the problem is and whether or not it pays."""
    monkeypatch.setattr(estimators, "SCREENED_FROM", 0)
    monkeypatch.setattr(screen, "FEWEST_DIRECTIONS", 1)
    monkeypatch.setattr(screen, "WORTH", 1e30)
    monkeypatch.setattr(estimators, "aside", lambda *args: 0.0)


def interpreted(monkeypatch):
    monkeypatch.setattr(screen, "compiled", lambda like: False)


@pytest.fixture(params=["compiled", "PyTorch"])
def loops(request, monkeypatch):
    if request.param == "PyTorch":
        interpreted(monkeypatch)


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


def estimator_of(name, images, patch_size=5, boundary="circular"):
    physics, B = PROBLEMS[name](*images.shape[2:])
    return le.LocalEquivariantMMSE(images, physics, patch_size, B, boundary)


def rounding(estimator, y, sigma):
    """How far rounding moves the mean of each query, whichever path it takes, but for the bound: (b, 1, 1, 1).

    Half squared distances are rounded by two epsilons of (‖q‖ + ‖k‖)², uncentred where A and B round, and where all
    log-weights are off by d, a mean moves by at most tanh(d/2) times the spread.
    """
    longest = max(
        float(s.queries(estimator._centred(y)[i : i + 1]).own.amax()) ** 0.5 + float(s.half_norms.amax()) ** 0.5
        for s in estimator._screens.values()
        for i in range(len(y))
    )
    uncentred = float(y.abs().amax()) * math.sqrt(estimator._keys.shape[1]) * estimator.patch_size
    half_distance = 2 * torch.finfo(estimator.dtype).eps * 2 * longest * (longest + uncentred)
    spread = float(estimator.images.amax() - estimator.images.amin())
    off = half_distance / torch.as_tensor(sigma).double().square()
    atoms = len(estimator.images) * len(estimator.window_index)  # their sums are in float64
    of_values = 16 * torch.finfo(estimator.dtype).eps + atoms * torch.finfo(torch.float64).eps
    return (spread * (off / 2).tanh() + of_values * float(estimator.images.abs().amax())).reshape(-1, 1, 1, 1)


def assert_certified(estimator, y, sigma, tolerance):
    """The true error, by float64, is within the bound but for rounding, and the bound within the tolerance.

    Returns the share of pixels that the screen was good for, and the largest error, less rounding, over its bound.
    """
    got = estimator(y, sigma=sigma, tolerance=tolerance)
    options = (estimator.patch_size, estimator.pre_inverse, estimator.boundary)
    exact = le.LocalEquivariantMMSE(estimator.images.double(), estimator.physics, *options)(y.double(), sigma=sigma)
    assert got.error_bound.shape == got.mean.shape
    assert 0 <= got.error_bound.min() <= got.error_bound.max() <= tolerance
    error, bound = (got.mean.double() - exact.mean).abs() - rounding(estimator, y, sigma), got.error_bound.double()
    assert (error <= bound).all()
    by_screen = bound > 0
    return float(by_screen.double().mean()), float((error / bound)[by_screen].max()) if by_screen.any() else 0.0


IMAGES = {
    "noise": lambda x: x,
    "few colours": lambda x: (x[..., ::4, ::4] * 4).round().div(4).repeat_interleave(4, 2).repeat_interleave(4, 3),
    "duplicates": lambda x: x[[0, 1, 2, 0, 1, 2, 0, 1, 2]],
    "all equal": lambda x: x[:1].expand(9, -1, -1, -1).clone(),
    "constant": lambda x: x[..., :1, :1].expand_as(x).clone(),
    "one colour": lambda x: torch.full_like(x, 0.3),
    "bright": lambda x: 100 + x,
    "faint": lambda x: 1e-3 * x - 2,
    "one far away": lambda x: torch.cat([x[:8], 1e3 * x[8:]]),
    "alone": lambda x: x[:1],
}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(list(IMAGES)),
    operators=st.sampled_from(list(PROBLEMS)),
    boundary=st.sampled_from(["circular", "zero"]),
    shape=st.sampled_from([(1, 8, 8), (3, 12, 8), (2, 8, 12)]),
    patch_size=st.sampled_from([3, 5]),
    nats=st.floats(-13.8, 13.8),
    tolerance=st.floats(1e-9, 0.7),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    entries=st.sampled_from([1, 2, 4]),
    by_loops=st.booleans(),
    several=st.booleans(),
)
@example(0, "noise", "denoising", "circular", (3, 12, 8), 5, math.log(1e-6), 1e-3, torch.float32, 4, True, True)
@example(0, "noise", "denoising", "circular", (3, 12, 8), 5, math.log(1e6), 1e-3, torch.float64, 4, True, False)
def test_the_error_is_within_its_bound(
    seed, kind, operators, boundary, shape, patch_size, nats, tolerance, dtype, entries, by_loops, several
):
    """Whatever the images, the operators, the noise and the dtype; queries lie near one of the images or do not."""
    generator = torch.Generator().manual_seed(seed)
    images = IMAGES[kind](torch.rand(9, *shape, generator=generator, dtype=torch.float64)).to(dtype)
    sigma = math.exp(nats)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "BLOCK_ATOMS", 128)
        patch.setattr(estimators, "SCREENED_FROM", 1000)  # not for the many small strata of a zero boundary
        patch.setattr(screen, "ENTRIES_PER_DIRECTION", entries)
        if not by_loops:
            interpreted(patch)
        if boundary == "zero" or "inpainting" in operators:
            patch_size = 3  # few strata
        estimator = estimator_of(operators, images, patch_size, boundary)
        assume(estimator._screens)  # strata are large enough
        clean = estimator.physics.A(images[:1].expand(2, -1, -1, -1))
        y = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64).to(dtype)
        if several:
            assert_certified(estimator, y[:1].expand(3, -1, -1, -1), sigma * torch.tensor([1.0, 0.1, 2.0]), tolerance)
        else:
            assert_certified(estimator, y, sigma, tolerance)


def test_real_images(loops, generator):
    """All sigmas, with each kind of operators, and with the screen up to sigmas at which all atoms matter."""
    sigma = torch.tensor(SIGMAS)
    worst = 0.0
    for name, images, x in (
        ("denoising", le.data.fashion_mnist("train", 5)[..., 6:22, 6:22], le.data.fashion_mnist("test", 1)),
        ("denoising", le.data.photo_crops("train", size=16, count=8), le.data.photo_crops("test", size=16, count=1)),
        ("inpainting", le.data.photo_crops("train", size=16, count=6), le.data.photo_crops("test", size=16, count=1)),
    ):
        x = x[..., 6:22, 6:22] if x.shape[2] > 16 else x
        estimator = estimator_of(name, images.contiguous(), 5 if name == "denoising" else 3)
        y = estimator.physics.A(x) + sigma[:, None, None, None] * torch.randn(5, *x.shape[1:], generator=generator)
        share, ratio = assert_certified(estimator, y, sigma, 1e-3)
        assert share > (0.9 if name == "denoising" else 0.4)
        worst = max(worst, ratio)
    print(f"largest error/bound on real images: {worst:.2g}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_thousand_ties_at_the_floor(dtype, loops, monkeypatch, generator):
    """All atoms but those of one image weigh just less than what is dropped, and would all pull the mean one way.

    Bounds are made exact, so that they are dropped indeed: the error comes up to its bound, and not beyond.
    """
    monkeypatch.setattr(screen, "ENTRIES_PER_DIRECTION", 1)
    count, ratios = 1000, []
    for sigma in (1e-3, 0.01, *SIGMAS, 10.0, 1e3):
        nats, tolerance = 20.0, 1e-3 * sigma
        for _ in range(9):  # the spread of the values depends on the depth, and that on the spread
            nats = math.log(count * 25 * (sigma * math.sqrt(2 * nats) / 5) / tolerance)
        # each weighs exp(-nats) of the nearest image, whose 25 windows are all alike, as are those of every other
        depths = nats - math.log(25) + torch.linspace(1e-2, 0.5, count).double()
        depths[0] = 0
        images = 0.5 + sigma * (2 * depths).sqrt()[:, None, None, None].expand(-1, 1, 5, 5) / 5
        y = torch.full((1, 1, 5, 5), 0.5)
        estimator = estimator_of("denoising", images.to(dtype))
        ratios.append(assert_certified(estimator, y.to(dtype), sigma, tolerance)[1])
    print("largest error/bound at the floor, per sigma:", *(f"{ratio:.2g}" for ratio in ratios))
    assert max(ratios) > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_thousand_near_ties(dtype, loops, generator):
    """Windows at nearly the same distance, in pairs with very different centres: the posterior is split between them.

    Half of them tie with the nearest, by up to 1e-6 nats and more, the other half about the floor.
    """
    pairs, tolerance, worst = 500, 1e-3, 0.0
    y = torch.rand(1, 1, 5, 5, generator=generator, dtype=torch.float64)
    direction = torch.randn(pairs, 1, 5, 5, generator=generator, dtype=torch.float64)
    direction[:, :, 2, 2] = 4 * direction[:, :, 2, 2].sign()
    direction /= direction.flatten(1).norm(dim=1)[:, None, None, None]
    for sigma in (1e-3, 0.01, *SIGMAS, 10.0):
        nats = math.log(2 * pairs * 25 / tolerance)
        offsets = torch.cat([torch.logspace(-6, 0, pairs // 2), nats + torch.linspace(-4, 1, pairs // 2)]).double()
        away = sigma * (2 * (1 + offsets)).sqrt()[:, None, None, None] * direction
        images = torch.cat([y + away, y - away * (1 + 1e-7)])
        worst = max(
            worst, assert_certified(estimator_of("denoising", images.to(dtype)), y.to(dtype), sigma, tolerance)[1]
        )
    print(f"largest error/bound of near-ties: {worst:.2g}")


def test_a_batch_has_the_answers_of_each_alone(loops, generator):
    images = training_set(count=7, shape=(3, 9, 7), dtype=torch.float32)
    estimator = estimator_of("denoising", images)
    y, sigma = measured(images, le.Denoising(), generator, sigma=0.1, count=3), torch.tensor([0.05, 0.1, 0.3])
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
    """The tests above can fail: a floor that is too high by e¹² breaks the bound."""
    images = training_set(count=40, shape=(1, 8, 8), dtype=torch.float32)
    estimator = estimator_of("denoising", images)
    y = measured(images, le.Denoising(), generator, sigma=0.5, count=1)
    honest = screen.Screen.margin
    monkeypatch.setattr(screen.Screen, "margin", lambda self, tolerance: max(0.0, honest(self, tolerance) - 12))
    got, exact = estimator(y, sigma=0.5, tolerance=1e-3), estimator(y, sigma=0.5)
    assert (got.mean - exact.mean).abs().max() > 1e-3


@pytest.mark.parametrize("size", [1e3, 1e8, 1e15, 1e30])
def test_measurements_of_any_size(size, loops, generator):
    """Nothing is read that is not there, whatever overflows: scores reach below all that they usually are."""
    images = training_set(count=5, shape=(1, 9, 7), dtype=torch.float32)
    y = size * torch.randn(1, 1, 9, 7, generator=generator)
    estimator = estimator_of("denoising", images)
    for sigma in (1e-6, 1.0, size):
        got, exact = estimator(y, sigma=sigma, tolerance=1e-3), estimator(y, sigma=sigma)
        assert 0 <= got.error_bound.min() <= got.error_bound.max() <= 1e-3
        assert (got.mean.isnan() == exact.mean.isnan()).all()
    torch.testing.assert_close(got.mean, exact.mean, rtol=0, atol=2e-3, equal_nan=True)  # nearly all weigh the same


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

    def test_products_in_low_precision(self, monkeypatch):
        """As TF32 and bfloat16 have it: bounds are none then."""
        estimator = le.LocalEquivariantMMSE(self.images, le.Denoising(), 5)
        assert estimator(self.y, sigma=0.1, tolerance=1e-3).error_bound.all()
        monkeypatch.setattr(screen, "SLACK", {torch.float32: 1e-9})  # as if these products were as rough
        self.same(le.LocalEquivariantMMSE(self.images, le.Denoising(), 5))

    def test_images_of_one_colour(self):
        estimator = le.LocalEquivariantMMSE(torch.full((3, 1, 8, 8), 0.5), le.Denoising(), 5)
        got = estimator(torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), sigma=0.1, tolerance=1e-3)
        torch.testing.assert_close(got.mean, torch.full((1, 1, 8, 8), 0.5))
        assert got.error_bound.max() <= 1e-6


@pytest.mark.parametrize(("name", "fused"), [("denoising", True), ("denoising", False), ("inpainting", True)])
def test_never_much_slower_than_the_exact_path(name, fused, monkeypatch, generator):
    """By the costs that are stated: what is looked at before a search gives up is a small part of the exact path."""
    monkeypatch.undo()
    monkeypatch.setattr(estimators, "SCREENED_FROM", 0)
    met, search, spent, budgets = screen.Search._met, screen.search, [], []

    def counted(self, blocks):
        share = met(self, blocks)
        pairs = len(self.queries.columns) * sum(len(some.columns) for some in blocks)
        spent.append(pairs * self.screen.cost(share))
        return share

    def budgeted(which, v, factors, tolerance, budget):
        budgets.append(budget * which.count * which.half_norms.shape[1])
        return search(which, v, factors, tolerance, budget)

    monkeypatch.setattr(screen.Search, "_met", counted)
    monkeypatch.setattr(estimators, "search", budgeted)
    images, x = le.data.photo_crops("train", size=24, count=110), le.data.photo_crops("test", size=24, count=1)
    estimator = estimator_of(name, images, patch_size=7)
    if not fused:
        estimator._fused = None
    found = []
    for sigma in (0.02, *SIGMAS):
        y = estimator.physics.A(x)
        y = y + sigma * torch.randn(y.shape, generator=generator)
        spent.clear(), budgets.clear()
        found.append(estimator._certified(y, torch.tensor([sigma]).double(), le.PosteriorMean(), 1e-3) is not None)
        assert sum(spent) <= (1.05 if found[-1] else 0.12) * sum(budgets)
    assert found[0] or fused
    assert not found[-1]


def test_some_of_a_batch_by_screen_and_others_exactly(monkeypatch, generator):
    """Those of large sigmas do not pay: every measurement has its own answer, in its own place."""
    images = training_set(count=7, shape=(3, 9, 7), dtype=torch.float32)
    y, sigma = measured(images, le.Denoising(), generator, sigma=0.1, count=3), torch.tensor([5.0, 0.05, 5.0])
    monkeypatch.setattr(screen.Search, "pays", lambda self, budget: self.factors.min() > 1)
    estimator = estimator_of("denoising", images)
    got, exact = estimator(y, sigma=sigma, tolerance=1e-3), estimator(y, sigma=sigma)
    assert [bool(each.any()) for each in got.error_bound] == [False, True, False]
    torch.testing.assert_close(got.mean[::2], exact.mean[::2], rtol=0, atol=1e-6)
    assert ((got.mean - exact.mean).abs() <= got.error_bound + rounding(estimator, y, sigma)).all()


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


def test_without_numba():
    """The PyTorch loops serve, and numba is not loaded."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'numba' else find(name)\n"
        "import torch, lemmse as le\n"
        "from lemmse import screen, estimators\n"
        "screen.WORTH, estimators.SCREENED_FROM = float('inf'), 0\n"
        "images = torch.rand(20, 1, 28, 28)\n"
        "got = le.LocalEquivariantMMSE(images, le.Denoising(), 5)(images[:1], sigma=0.1, tolerance=1e-3)\n"
        "assert 0 < got.error_bound.max() <= 1e-3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
