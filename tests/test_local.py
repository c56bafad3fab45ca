"""The local estimator: the laws of S5, against loops over pairs of pixels."""

import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lemmse as le
import problems
from operators_registry import BOX, FORWARD, GAUSSIAN, IMAGE, MASK, C, H, LikeDeepinv, W, random_matrix
from problems import LEAST, PAIRS, LazyImages, as_matrix, assert_batch_equals_one_by_one, chunked, onto_images
from reference import dense, entropy, local_mmse

D, N, SIGMA = 2, H * W, 0.5
FEW_OPERATORS = ("denoising", "inpainting", "blur", "downsampling by 3", "epsilon inverse")
training_set, measured = partial(problems.training_set, count=D), partial(problems.measured, sigma=SIGMA)
assert_same = partial(problems.assert_same, tolerance=1e-11)


def weights_of(estimator, y, sigma) -> torch.Tensor:
    """All weights (b, N, D, N) of every pixel, as ``TopSources`` names them."""
    d, n = estimator.images.shape[0], math.prod(estimator.images.shape[2:])
    sources = estimator(y, sigma=sigma, reduction=le.TopSources(d * n))
    index = (sources.image * n + sources.pixel).clamp_min(0).flatten(1, 2)
    weights = torch.zeros(len(y), n, d * n, dtype=y.dtype)
    return weights.scatter_add(2, index, sources.weight.flatten(1, 2)).unflatten(2, (d, n))


def assert_equals_brute_force(images, physics, B, patch_size, boundary, y, sigma=SIGMA, atol=1e-10, rel=1e-9):
    estimator = le.LocalEquivariantMMSE(images, physics, patch_size, B, boundary)
    posterior = estimator(y, sigma=sigma)
    weights = weights_of(estimator, y, sigma) if patch_size < 5 else [None] * len(y)  # listing them all takes long
    matrix, shape = as_matrix(B, y.shape[1:]), tuple(images.shape[1:])
    for i in range(len(y)):
        mean, log_partition, wanted = local_mmse(images, physics.A, y[i], sigma, matrix, shape, patch_size, boundary)
        torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=atol)
        torch.testing.assert_close(posterior.log_partition[i], log_partition, rtol=rel, atol=rel)
        if weights[i] is not None:
            torch.testing.assert_close(weights[i], wanted, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.parametrize("patch_size", [3, 5])
def test_equals_brute_force(name, kind, patch_size, generator):
    """Mean, log-partition, and every weight of every pixel with its image and its pixel."""
    physics, images = FORWARD[name], training_set()
    y = measured(images, physics, generator, count=1)
    assert_equals_brute_force(images, physics, onto_images(physics)[kind], patch_size, "circular", y)


@pytest.mark.parametrize("kind", ["identity", "adjoint", "pseudo-inverse"])
@pytest.mark.parametrize(
    "name", ["denoising", "inpainting", "blur", "blur, singular box", "inpainting of a blur", "epsilon inverse"]
)
def test_zeros_beyond_the_boundary(name, kind, generator):
    """Windows at different distances from the border are different classes, intersected with those of B (S5.9)."""
    physics, images = FORWARD[name], training_set()
    y = measured(images, physics, generator, count=1)
    assert_equals_brute_force(images, physics, onto_images(physics)[kind], 3, "zero", y)


def test_zeros_beyond_the_boundary_of_a_downsampling(generator):
    physics, images = FORWARD["downsampling by 3, blurred"], training_set()
    y = measured(images, physics, generator, count=1)
    assert_equals_brute_force(images, physics, le.Adjoint(physics), 3, "zero", y)


@pytest.mark.parametrize("psf", [None, le.optics.gaussian_psf(0.7, 3)])
@pytest.mark.parametrize("kind", ["adjoint", "pseudo-inverse", "tikhonov"])
@pytest.mark.parametrize("patch_size", [1, 3])
def test_downsampling_by_two(psf, kind, patch_size, generator):
    shape = (2, 4, 6)
    physics, images = le.Downsampling(2, psf), training_set(shape=shape)
    y = measured(images, physics, generator)
    assert_equals_brute_force(images, physics, onto_images(physics, shape)[kind], patch_size, "circular", y)


@given(rank=st.integers(1, 40), m=st.integers(1, 50), p=st.sampled_from([1, 3]), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_any_pre_inverse_of_any_rank(rank, m, p, seed):
    """Random B: of low rank each window has an image space of its own; of high rank all of them are full."""
    shape = (1, 4, 5)
    images, n = training_set(seed, shape=shape), math.prod(shape)
    physics = le.Matrix(random_matrix(m, n, seed=seed) / 5, shape, (m,))
    B = le.Matrix(random_matrix(n, m, rank=min(rank, m, n), seed=seed + 1), (m,), shape)
    y = measured(images, physics, torch.Generator().manual_seed(seed), count=1)
    assert_equals_brute_force(images, physics, B, p, "circular", y, atol=1e-6, rel=1e-6)


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] == "pseudo-inverse"])
def test_what_is_declared_is_what_is_found(name, kind, generator):
    """The same B as a matrix declares nothing: every window is a class of its own, and the answer is the same."""
    physics, images = FORWARD[name], training_set()
    B = onto_images(physics)[kind]
    y = measured(images, physics, generator)
    shape = tuple(y.shape[1:])
    undeclared = le.LocalEquivariantMMSE(images, physics, 3, le.Matrix(as_matrix(B, shape), shape, IMAGE))
    declared = le.LocalEquivariantMMSE(images, physics, 3, B)
    assert sum(len(stratum.classes) for stratum in undeclared.strata) == N
    assert [s.pixels.tolist() for s in declared.strata] == [s.pixels.tolist() for s in undeclared.strata]
    assert [s.rank for s in declared.strata] == [s.rank for s in undeclared.strata]
    wanted = undeclared(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    for field, value in vars(declared(y, sigma=SIGMA, reduction=le.PosteriorMoments())).items():
        torch.testing.assert_close(value, getattr(wanted, field), rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------------- what it is (S5)


@pytest.mark.parametrize("B", [None, le.Blur(GAUSSIAN), le.Blur(BOX), le.Adjoint(FORWARD["fourier sampling"])])
def test_commutes_with_every_shift(B, generator):
    images = training_set()
    physics = FORWARD["fourier sampling"] if isinstance(B, le.Adjoint) else le.Denoising()
    y = measured(images, physics, generator, count=1)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, B)
    mean = estimator(y, sigma=SIGMA).mean
    v = y if B is None else B.A(y)
    shifts = [(i, j) for i in range(H) for j in range(W)]
    shifted = torch.cat([le.shift(v, g) for g in shifts])
    moved = estimator(shifted if B is None else B.A_dagger(shifted), sigma=SIGMA).mean
    torch.testing.assert_close(moved, torch.cat([le.shift(mean, g) for g in shifts]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("patch_size", [1, 3, 5])
@pytest.mark.parametrize("name", ["denoising", "inpainting", "epsilon inverse"])
def test_a_pixel_sees_its_window_and_nothing_else(name, patch_size, generator):
    """Changing v outside the window of a pixel changes nothing in it, bit for bit."""
    images, physics = training_set(), FORWARD[name]
    estimator = le.LocalEquivariantMMSE(images, physics, patch_size, le.PseudoInverse(physics))
    y = measured(images, physics, generator, count=1)
    row, column, half = 2, 4, patch_size // 2
    window = [((row + i) % H, (column + j) % W) for i in range(-half, half + 1) for j in range(-half, half + 1)]
    other = y + 1
    for i, j in window:
        other[:, :, i, j] = y[:, :, i, j]
    before, after = (estimator(each, sigma=SIGMA, reduction=le.PosteriorMoments()) for each in (y, other))
    for field, value in vars(before).items():
        assert torch.equal(value[..., row, column], getattr(after, field)[..., row, column]), field
    assert (before.mean != after.mean).any()


@pytest.mark.parametrize("name", ["denoising", "blur", "inpainting"])
def test_a_window_as_large_as_the_image_is_the_equivariant_estimator(name, generator):
    """On 7×7 images with patch size 7 and B = Id, pixel by pixel, log-partition included."""
    physics = {
        "denoising": le.Denoising(),
        "blur": le.Blur(GAUSSIAN),
        "inpainting": le.Inpainting(le.center_mask(7, 7, side=3)),
    }[name]
    images = training_set(shape=(2, 7, 7))
    y = measured(images, physics, generator)
    local = le.LocalEquivariantMMSE(images, physics, 7)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    whole = le.EquivariantMMSE(images, physics)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    for field in ("mean", "variance"):
        torch.testing.assert_close(getattr(local, field), getattr(whole, field), rtol=0, atol=1e-10)
    for field in ("log_partition", "entropy", "log_max_weight", "mean_squared_residual"):
        wanted = getattr(whole, field)[:, None, None].expand(2, 7, 7)
        torch.testing.assert_close(getattr(local, field), wanted, rtol=1e-10, atol=1e-10)


def test_a_window_of_one_pixel_is_a_histogram(generator):
    """Denoising with p = 1: x̂ = Σ x exp(-(y - x)²/2σ²) / Σ exp(...) over all colours."""
    images = training_set(shape=(1, 6, 9))
    y = measured(images, le.Denoising(), generator)
    mean = le.LocalEquivariantMMSE(images, le.Denoising(), 1)(y, sigma=SIGMA).mean
    colours = images.flatten()
    weights = (-(y[..., None] - colours).square() / (2 * SIGMA**2)).softmax(-1)
    torch.testing.assert_close(mean, weights @ colours, rtol=0, atol=1e-12)


def test_fully_hidden_windows_give_one_colour_and_pollute_nothing(generator):
    """Rank 0: the mean of the centres of all windows that see nothing (S5.5)."""
    images = training_set(count=3)
    mask = torch.ones(H, W)
    mask[:, 3:8] = 0
    physics = le.Inpainting(mask)
    y = measured(images, physics, generator, count=1)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, le.PseudoInverse(physics))
    posterior = estimator(y, sigma=SIGMA)
    hidden = posterior.mean[0, :, :, 4:7]
    wanted = images[:, :, :, 4:7].mean((0, 2, 3))
    torch.testing.assert_close(hidden, wanted[:, None, None].expand_as(hidden), rtol=0, atol=1e-14)
    assert (posterior.log_partition[0, :, 4:7] - math.log(3 * H * 3)).abs().max() < 1e-12
    ranks = estimator.ranks
    assert (ranks[:, 4:7] == 0).all()
    assert (ranks[:, [0, 1]] == 9 * C).all()


def test_a_mask_that_hides_everything(generator):
    images, physics = training_set(), le.Inpainting(torch.zeros(H, W))
    y = measured(images, physics, generator)
    posterior = le.LocalEquivariantMMSE(images, physics, 3, le.Adjoint(physics))(y, sigma=SIGMA)
    colour = images.mean((0, 2, 3))[None, :, None, None]
    torch.testing.assert_close(posterior.mean, colour.expand_as(y), rtol=0, atol=1e-14)


def test_the_epsilon_inverse_tends_to_the_pseudo_inverse(generator):
    """S5.6: almost surely, and slowly; the pseudo-determinant has a factor C."""
    images, physics = training_set(), le.Inpainting(MASK)
    y = measured(images, physics, generator)
    limit = le.LocalEquivariantMMSE(images, physics, 3, le.PseudoInverse(physics))(y, sigma=SIGMA).mean
    gaps = []
    for epsilon in (1e-1, 1e-3, 1e-5, 1e-7):
        B = le.EpsilonInverse(MASK, epsilon)
        gaps.append(float((le.LocalEquivariantMMSE(images, physics, 3, B)(y, sigma=SIGMA).mean - limit).abs().max()))
    assert gaps[0] > 0.05
    assert gaps[-1] < 1e-3
    assert gaps[-1] < gaps[1]


def test_tikhonov_of_a_mask_is_its_pseudo_inverse(generator):
    """The means agree exactly, and L moves by r ln(1 + λ) (S13)."""
    images, physics = training_set(), le.Inpainting(MASK)
    y = measured(images, physics, generator)
    exact = le.LocalEquivariantMMSE(images, physics, 3, le.PseudoInverse(physics))
    other = le.LocalEquivariantMMSE(images, physics, 3, le.Tikhonov(physics, 0.1))
    a, b = exact(y, sigma=SIGMA), other(y, sigma=SIGMA)
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-12)
    moved = exact.ranks.double() * math.log(1.1)
    torch.testing.assert_close(b.log_partition - a.log_partition, moved.expand(2, H, W), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["denoising", "blur"])
def test_different_invertible_convolutions_differ(name, generator):
    """Unlike for the equivariant estimator: windows truncate (S5.7)."""
    images, physics = training_set(), FORWARD[name]
    y = measured(images, physics, generator)
    plain = le.LocalEquivariantMMSE(images, physics, 3)(y, sigma=SIGMA).mean
    blurred = le.LocalEquivariantMMSE(images, physics, 3, le.Blur(GAUSSIAN))(y, sigma=SIGMA).mean
    assert (plain - blurred).norm() > 1e-3 * plain.norm()


def residual_score(estimator, physics, B, patch_size, function, generator, draws=3000, sigma=0.6):
    """⟨x_d(n) - x̂(n), h(v[ω_n])⟩ summed over n, over draws of an image and of noise, in standard errors."""
    index = torch.randint(len(estimator.images), (draws,), generator=generator)
    y = physics.A(estimator.images)[index]
    y = y + sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    x_hat = estimator(y, sigma=sigma).mean
    windows = le.extract_patches(y if B is None else B.A(y), patch_size)
    inner = (function(windows)[..., None] * (estimator.images[index] - x_hat).flatten(2).mT).sum((1, 2))
    return float(inner.mean() / (inner.std() / draws**0.5))


@pytest.mark.parametrize(
    "function",
    [
        lambda window: window.sin().sum(2),
        lambda window: (window.abs() < 0.1).double().mean(2),  # sees which pixels are hidden
        lambda window: window.square().sum(2).cos(),
    ],
)
@pytest.mark.parametrize("which", ["low rank", "full", "mask", "downsampling"])
def test_no_local_map_does_better(which, function, generator):
    """The residual is orthogonal to every function of the window, on the training distribution: least risk (S5.2)."""
    shape = (1, 4, 6)
    images = training_set(count=3, shape=shape)
    mask = le.Inpainting(le.stripe_mask(4, 6, period=3))
    physics, B = {
        "low rank": (le.Denoising(), le.Matrix(random_matrix(24, 24, rank=2) / 5, shape, shape)),
        "full": (le.Denoising(), le.Matrix(random_matrix(24, 24) / 5, shape, shape)),
        "mask": (mask, le.Adjoint(mask)),
        "downsampling": (le.Downsampling(2), le.Adjoint(le.Downsampling(2))),
    }[which]
    estimator = le.LocalEquivariantMMSE(images, physics, 3, B)
    assert abs(residual_score(estimator, physics, B, 3, function, generator)) < 4


def test_a_map_that_knows_where_it_is_does_better(generator):
    """The test above can fail: denoising is not orthogonal to functions of the pixel."""
    images = training_set(count=3, shape=(1, 4, 6))
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    place = (images.mean(0) - images.mean()).flatten()
    score = residual_score(estimator, le.Denoising(), None, 3, lambda w: place.expand(len(w), -1), generator, sigma=2.0)
    assert score > 15


def test_pythagoras(generator):
    """risk(φ) = risk(x̂) + E‖φ - x̂‖² for a random local map φ, by Monte-Carlo with common noise (S5.3)."""
    images = training_set(count=3, shape=(1, 4, 6))
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    index = torch.randint(3, (6000,), generator=generator)
    y = images[index] + 0.6 * torch.randn(6000, 1, 4, 6, generator=generator, dtype=torch.float64)
    x_hat = estimator(y, sigma=0.6).mean
    kernel = torch.randn(9, generator=generator, dtype=torch.float64) / 9
    phi = (le.extract_patches(y, 3) @ kernel).tanh().reshape(y.shape)
    gap = (phi - images[index]).square() - (x_hat - images[index]).square() - (phi - x_hat).square()
    per_draw = gap.flatten(1).sum(1)
    assert abs(float(per_draw.mean() / (per_draw.std() / 6000**0.5))) < 4
    assert (phi - x_hat).square().mean() > 1e-2


def test_training_risk_falls_with_the_window(generator):
    """Nested classes: MMSE ≤ equivariant ≤ local with larger windows ≤ local with smaller ones (S5.3)."""
    images = training_set(count=4, shape=(1, 5, 5))
    index = torch.randint(4, (3000,), generator=generator)
    y = images[index] + 0.4 * torch.randn(3000, 1, 5, 5, generator=generator, dtype=torch.float64)
    estimators = [le.LocalEquivariantMMSE(images, le.Denoising(), p) for p in (1, 3, 5)]
    estimators += [le.EquivariantMMSE(images, le.Denoising()), le.MMSE(images, le.Denoising())]
    risks = [float((e(y, sigma=0.4).mean - images[index]).square().mean()) for e in estimators]
    assert risks[0] > risks[1] > risks[2]
    assert risks[2] == pytest.approx(risks[3], rel=1e-9)  # the window is the image
    assert risks[3] > risks[4]


def test_small_and_large_sigma(generator):
    """σ → 0: the centre of the nearest window, ties averaged; σ → ∞: the mean colour."""
    images = torch.randint(0, 256, (3, 1, 6, 9), generator=generator).double() / 256
    images[2, 0, 0:3, 0:3] = images[0, 0, 1:4, 2:5]  # a window that occurs twice, with one centre ...
    y = images[:1]
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    torch.testing.assert_close(estimator(y, sigma=1e-3).mean, y, rtol=0, atol=1e-12)
    top = estimator(y, sigma=1e-3, reduction=le.TopSources(2))
    assert top.image[0, 2, 3].tolist() == [0, 2]
    assert top.pixel[0, 2, 3].tolist() == [2 * 9 + 3, 1 * 9 + 1]
    torch.testing.assert_close(top.weight[0, 2, 3], torch.tensor([0.5, 0.5]).double(), rtol=0, atol=1e-12)
    far = estimator(y, sigma=1e6).mean
    torch.testing.assert_close(far, images.mean().expand_as(far), rtol=0, atol=1e-9)


# ----------------------------------------------------------------------------------------------- densities and moments


def test_log_density_is_that_of_the_mixture_of_windows(generator):
    images = training_set()
    y = measured(images, le.Denoising(), generator)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    atoms = le.extract_patches(images, 3).flatten(0, 1)
    components = torch.distributions.Normal(atoms, SIGMA)
    windows = le.extract_patches(y, 3)[:, :, None]
    wanted = components.log_prob(windows).sum(3).logsumexp(2) - math.log(D * N)
    found = estimator.log_density(estimator(y, sigma=SIGMA), SIGMA)
    torch.testing.assert_close(found.flatten(1), wanted, rtol=1e-11, atol=1e-11)


def test_log_density_integrates_to_the_frequency_of_the_stratum():
    """Windows of one pixel, of which one in three is visible: its density has the mass 1/3, the hidden ones 2/3."""
    images = torch.rand(4, 1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    physics = le.Inpainting(torch.tensor([[1.0, 0.0, 0.0]]))
    estimator = le.LocalEquivariantMMSE(images, physics, 1, le.Adjoint(physics))
    t = torch.linspace(-6, 7, 4001, dtype=torch.float64)
    y = torch.stack([t, 0 * t, 0 * t], dim=1).reshape(-1, 1, 1, 3)
    density = estimator.log_density(estimator(y, sigma=0.5), 0.5).exp()
    assert torch.trapezoid(density[:, 0, 0], t).item() == pytest.approx(1 / 3, abs=1e-9)
    torch.testing.assert_close(density[:, 0, 1:], torch.full((4001, 2), 2 / 3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["denoising", "inpainting stripes", "downsampling by 3", "epsilon inverse"])
def test_moments_are_those_of_the_weights(name, generator):
    physics, images = FORWARD[name], training_set()
    B = le.PseudoInverse(physics)
    y = measured(images, physics, generator, count=1)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, B)
    m = estimator(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    _, _, weights = local_mmse(images, physics.A, y[0], SIGMA, as_matrix(B, y.shape[1:]), IMAGE, 3)
    mean, second = (torch.einsum("tdn,dcn->ct", weights, images.flatten(2) ** power) for power in (1, 2))
    torch.testing.assert_close(m.variance[0].flatten(1), second - mean.square(), rtol=0, atol=1e-10)
    entropies = torch.tensor([entropy(w.flatten()) for w in weights], dtype=torch.float64)
    torch.testing.assert_close(m.entropy.flatten(), entropies, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(m.log_max_weight.flatten(), weights.flatten(1).amax(1).log(), rtol=1e-9, atol=1e-9)


def test_tweedie_by_autograd(generator):
    """For p = h = w the log-partition of one pixel is that of the whole: x̂ = y + σ² ∇L / N."""
    images = training_set(shape=(1, 5, 5))
    y = measured(images, le.Denoising(), generator, count=1).requires_grad_()
    posterior = le.LocalEquivariantMMSE(images, le.Denoising(), 5)(y, sigma=SIGMA)
    (gradient,) = torch.autograd.grad(posterior.log_partition.mean(), y)
    torch.testing.assert_close(posterior.mean, y + SIGMA**2 * gradient, rtol=0, atol=1e-8)


# ------------------------------------------------------------------------------------------- batches, chunks, precision

FOUR = {name: FORWARD[name] for name in ("blur", "inpainting stripes", "downsampling by 3", "epsilon inverse")}
"""One for each kind of whitener: a matrix, a selection, one for each phase, a diagonal for each pattern."""
REDUCTIONS = [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(7), le.TopImages(2)]


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_equals_one_by_one_each_with_its_own_sigma(name, reduction, generator):
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator, count=3)
    sigma = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, le.PseudoInverse(physics))
    assert_batch_equals_one_by_one(estimator, y, sigma, reduction, tolerance=1e-11)
    expanded = estimator(y[:1].expand(3, *y.shape[1:]), sigma=sigma, reduction=reduction)
    repeated = estimator(y[:1].repeat(3, *[1] * (y.ndim - 1)), sigma=sigma, reduction=reduction)
    assert_same(expanded, repeated)


@pytest.mark.parametrize("name", FOUR)
def test_chunks_and_blocks_do_not_change_the_answer(name, generator):
    images, physics = training_set(count=3), FOUR[name]
    y = measured(images, physics, generator)
    arguments = images, physics, 3, le.PseudoInverse(physics)
    estimator = le.LocalEquivariantMMSE(*arguments)
    whole = {reduction: estimator(y, sigma=SIGMA, reduction=reduction) for reduction in REDUCTIONS[1:]}
    for chunking in ({"chunk_size": 1}, {"chunk_size": 3}, LEAST, {"memory_limit": 2**19}):
        parts = chunked(le.LocalEquivariantMMSE, *arguments, **chunking)
        for reduction, wanted in whole.items():
            assert_same(parts(y, sigma=SIGMA, reduction=reduction), wanted)


@pytest.mark.parametrize("name", FOUR)
def test_images_made_on_demand_one_by_one(name, generator):
    images, physics = training_set(count=3), FOUR[name]
    y = measured(images, physics, generator, count=1)
    B = le.Adjoint(physics)
    lazy = LazyImages(images)
    got = chunked(le.LocalEquivariantMMSE, lazy, physics, 3, B, **LEAST)(y, sigma=SIGMA)
    assert_same(got, le.LocalEquivariantMMSE(images, physics, 3, B)(y, sigma=SIGMA))


@pytest.mark.parametrize("name", FOUR)
def test_images_made_on_demand_give_the_same_answer(name, generator):
    images, physics = training_set(count=3), FOUR[name]
    y = measured(images, physics, generator)
    for reduction in REDUCTIONS:
        got = le.LocalEquivariantMMSE(LazyImages(images), physics, 3, le.Adjoint(physics), chunk_size=2)
        wanted = le.LocalEquivariantMMSE(images, physics, 3, le.Adjoint(physics))
        assert_same(got(y, sigma=SIGMA, reduction=reduction), wanted(y, sigma=SIGMA, reduction=reduction))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*FOUR, "denoising", "matrix, wide", "fourier sampling"])
def test_finite_and_within_the_data_at_any_sigma(name, dtype, generator):
    images, physics = training_set(dtype=dtype), FORWARD[name]
    y = measured(images, physics, generator, count=1, sigma=0.1)
    sigma = torch.tensor([10.0**e for e in range(-6, 7)], dtype=torch.float64)
    for B in onto_images(physics).values():
        estimator = le.LocalEquivariantMMSE(images, physics, 3, B)
        m = estimator(y.expand(13, *y.shape[1:]), sigma=sigma, reduction=le.PosteriorMoments())
        for field, value in vars(m).items():
            assert value.isfinite().all(), (B, field)
        slack = 1e-6 if dtype == torch.float32 else 1e-14
        assert (m.mean >= images.amin((0, 2, 3))[:, None, None] - slack).all()
        assert (m.mean <= images.amax((0, 2, 3))[:, None, None] + slack).all()
        assert (m.entropy >= -10 * slack).all()


REAL = {"grey, 28 × 28": lambda split, count: le.data.fashion_mnist(split, count)}
REAL["colour, 32 × 32"] = lambda split, count: le.data.photo_crops(split, size=32, count=count)


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("kind", REAL)
def test_float32_on_real_images(kind, aware, generator):
    """60 dB at σ ≥ 0.05 and 50 dB at 0.01, for B = Id and for inpainting with A⁺."""
    images, x = REAL[kind]("train", 5), REAL[kind]("test", 1)
    h, w = x.shape[2:]
    physics = le.Inpainting(le.center_mask(h, w, side=9)) if aware else le.Denoising()
    B = le.PseudoInverse(physics) if aware else None
    single, double = (le.LocalEquivariantMMSE(each, physics, 5, B) for each in (images, images.double()))
    y = physics.A(x)
    noise = torch.randn(y.shape, generator=generator)
    for sigma in (0.01, 0.05, 0.1, 0.3, 1.0):
        noisy = y + sigma * noise
        got, wanted = single(noisy, sigma=sigma).mean, double(noisy.double(), sigma=sigma).mean
        assert le.metrics.psnr(got.double(), wanted) > (60 if sigma >= 0.05 else 50), sigma


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("p", [3, 5])
def test_float32_with_an_epsilon_inverse(epsilon, p, generator):
    """Entries of the size of ε are divided by ε, also where each pattern of a window is a stratum of its own."""
    mask = torch.ones(5, 5)
    mask[1:3, 2:4] = 0
    images = training_set(shape=(1, 5, 5))
    y = measured(images, le.Denoising(), generator, count=1, sigma=0.3)
    B = le.EpsilonInverse(mask, epsilon)
    double = le.LocalEquivariantMMSE(images, le.Denoising(), p, B, "zero")(y, sigma=0.3).mean
    single = le.LocalEquivariantMMSE(images.float(), le.Denoising(), p, B, "zero")(y.float(), sigma=0.3).mean
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.002, 0.003, 0.01, 0.1])
@pytest.mark.parametrize("p", [3, 5])
def test_weights_sum_to_one_in_float32(p, sigma):
    """Where a training image is measured without noise, rounding makes distances of about 0: none may be negative."""
    images = le.data.fashion_mnist("train", 3)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), p)
    top = estimator(images[:1], sigma=sigma, reduction=le.TopSources(500))
    assert top.weight.double().sum(3).max() < 1 + 1e-6


def test_ties_go_to_the_lowest(generator):
    """Windows that occur many times, such as a black background, are listed by image and pixel."""
    images = torch.zeros(3, 1, 6, 9, dtype=torch.float64)
    images[:, :, 3] = torch.rand(3, 1, 9, generator=generator, dtype=torch.float64)
    y = 0.1 * torch.randn(1, 1, 6, 9, generator=generator, dtype=torch.float64)
    for chunk_size in (1, 2, 3):
        estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3, chunk_size=chunk_size)
        top = estimator(y, sigma=0.1, reduction=le.TopSources(4))
        assert top.image[0, 0, 0].tolist() == [0] * 4
        assert top.pixel[0, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_stratum_with_few_atoms_fills_its_list_with_nothing(generator):
    images, physics = training_set(), le.Inpainting(MASK)
    y = measured(images, physics, generator, count=1)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, le.PseudoInverse(physics))
    top = estimator(y, sigma=SIGMA, reduction=le.TopSources(5))
    alone = next(stratum.pixels for stratum in estimator.strata if len(stratum.pixels) == 1)
    i, j = divmod(int(alone), W)
    assert top.image.shape[3] == 4  # no pixel has more: two images, at most two pixels in a stratum
    assert sorted(top.image[0, i, j].tolist()) == [-1, -1, 0, 1]
    assert top.pixel[0, i, j, :2].tolist() == [int(alone)] * 2
    assert top.pixel[0, i, j, 2:].tolist() == [-1] * 2
    assert top.weight[0, i, j, 2:].tolist() == [0] * 2
    assert top.remainder[0, i, j] < 1e-12


@pytest.mark.parametrize("name", FOUR)
def test_estimators_travel_to_other_processes_and_do_not_change(name, generator):
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, le.PseudoInverse(physics))
    before = estimator(y, sigma=SIGMA).mean
    copied = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(copied(y, sigma=SIGMA).mean, before)
    assert torch.equal(estimator(y, sigma=SIGMA).mean, before)


@pytest.mark.parametrize("name", FOUR)
def test_scaling_laws(name, generator):
    """Images, y and σ together; B alone; the order of the data; the data twice."""
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator)
    B, moments = le.PseudoInverse(physics), le.PosteriorMoments()
    estimator = le.LocalEquivariantMMSE(images, physics, 3, B)
    plain = estimator(y, sigma=SIGMA, reduction=moments)
    scaled = le.LocalEquivariantMMSE(images / 2, physics, 3, B)(y / 2, sigma=SIGMA / 2, reduction=moments)
    torch.testing.assert_close(2 * scaled.mean, plain.mean, rtol=1e-9, atol=1e-10)
    shape = tuple(y.shape[1:])
    tripled = le.LocalEquivariantMMSE(images, physics, 3, le.Matrix(3 * dense(B.A, shape), shape, IMAGE))
    other = tripled(y, sigma=SIGMA, reduction=moments)
    torch.testing.assert_close(other.mean, plain.mean, rtol=0, atol=1e-9)
    moved = plain.log_partition - estimator.ranks.double() * math.log(3)
    torch.testing.assert_close(other.log_partition, moved, rtol=1e-9, atol=1e-9)
    doubled = le.LocalEquivariantMMSE(images.flip(0).repeat(2, 1, 1, 1), physics, 3, B)
    doubled = doubled(y, sigma=SIGMA, reduction=moments)
    for field, change in [("log_partition", 1), ("entropy", 1), ("log_max_weight", -1), ("mean", 0), ("variance", 0)]:
        wanted = getattr(plain, field) + change * math.log(2)
        torch.testing.assert_close(getattr(doubled, field), wanted, rtol=1e-9, atol=1e-10)


# ------------------------------------------------------------------------------------------------- plans and bad input

IMAGES = training_set()
Y, LARGE = torch.rand(1, *IMAGE, dtype=torch.float64), torch.rand(1, 3, 40, 40)
SAMPLING, DOWN = FORWARD["fourier sampling"], le.Downsampling(3, GAUSSIAN)
TABLE = [  # A, B; path of S4, strata and whiteners of S5: the rows of S13 at p = 3
    (le.Denoising(), None, "one FFT", 1, {"none"}),
    (le.Inpainting(MASK), None, "one FFT", 1, {"none"}),
    (le.Inpainting(MASK), le.PseudoInverse(le.Inpainting(MASK)), "general", 52, {"selection"}),
    (le.Inpainting(MASK), le.EpsilonInverse(MASK, 0.1), "a sum of every shift", 1, {"diagonal"}),
    (le.Inpainting(MASK), le.Tikhonov(le.Inpainting(MASK), 0.1), "general", 52, {"diagonal"}),
    (le.Blur(GAUSSIAN), le.Adjoint(le.Blur(GAUSSIAN)), "one FFT", 1, {"matrix"}),
    (le.Blur(GAUSSIAN), le.PseudoInverse(le.Blur(GAUSSIAN)), "one FFT", 1, {"matrix"}),
    (le.Inpainting(MASK), le.Blur(BOX), "one FFT", 1, {"matrix"}),
    (SAMPLING, le.Adjoint(SAMPLING), "one FFT", 1, {"matrix"}),
    (DOWN, le.Adjoint(DOWN), "one FFT", 9, {"matrix"}),
    (DOWN, le.Tikhonov(DOWN, 0.1), "one FFT", 9, {"matrix"}),
    (le.Denoising(), le.Matrix(random_matrix(108, 108), IMAGE, IMAGE), "general", 1, {"matrix"}),
    (le.Nonlinear(torch.square), None, "one FFT", 1, {"none"}),
]


@pytest.mark.parametrize(("physics", "B", "path", "strata", "whiteners"), TABLE)
def test_the_table_of_paths(physics, B, path, strata, whiteners):
    assert path in le.EquivariantMMSE(IMAGES, physics, pre_inverse=B).plan.path
    local = le.LocalEquivariantMMSE(IMAGES, physics, 3, B)
    assert local.plan.strata == len(local.strata) == strata
    assert {member.whitener.kind for stratum in local.strata for member in stratum.classes} == whiteners
    assert str(local.plan) in repr(local)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 4), "odd"),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 7), r"min\(h, w\) = 6"),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 0), "odd"),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 3.0), "odd.*asked for 3.0"),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), "3"), "odd.*asked for '3'"),
        (
            lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 3, boundary="mirror"),
            "'circular', 'zero': got 'mirror'",
        ),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Downsampling(3), 3), r"image of 6 × 9 pixels.*\(b, 2, 2, 3\)"),
        (lambda: le.LocalEquivariantMMSE(IMAGES, SAMPLING, 3), r"Adjoint\(physics\)"),
        (
            lambda: le.LocalEquivariantMMSE(
                IMAGES, le.Denoising(), 3, le.Matrix(torch.eye(108).double(), IMAGE, (C, W, H))
            ),
            r"6 × 9 pixels.*\(b, 2, 9, 6\)",
        ),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 3, le.Inpainting(MASK.T)), "must take.*9 × 6"),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 3)(Y, sigma=0.0), "positive"),
        (lambda: le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 3)(Y[0], sigma=1.0), r"y\[None\]"),
        (
            lambda: le.LocalEquivariantMMSE(
                torch.rand(1, 3, 40, 40), le.Denoising(), 3, LikeDeepinv(torch.ones(40, 40))
            ),
            "4800 × 4800 matrix",
        ),
    ],
)
def test_bad_input(call, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        call()


class Changing(LazyImages):
    """An image set whose slices are not what its shape says."""

    def __init__(self, images, change):
        super().__init__(images)
        self.change = change

    def __getitem__(self, index):
        return super().__getitem__(index) if index.start == 0 else self.change(super().__getitem__(index))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: images[:1], r"images\[2:4\] of Changing must be \(2, 2, 6, 9\).*got \(1, 2, 6, 9\)"),
        (lambda images: images.movedim(2, 3), r"got \(2, 2, 9, 6\)"),
        (lambda images: images.float(), "float32"),
    ],
)
def test_slices_that_are_not_what_was_asked_for(change, says, unchecked_shapes):
    images = Changing(training_set(count=4), change)
    with pytest.raises(ValueError, match=says):
        le.LocalEquivariantMMSE(images, le.Denoising(), 3, chunk_size=2)(Y, sigma=SIGMA)


class TestTheTestsFail:
    """The formulas of the published slides, and other slips, fail the laws above."""

    def test_without_the_stratum(self, generator):
        """All windows, with the whitener of each, as the slides have it for masks."""
        physics = le.Inpainting(MASK)
        y = measured(IMAGES, physics, generator, count=1)
        right = le.LocalEquivariantMMSE(IMAGES, physics, 3, le.PseudoInverse(physics))(y, sigma=SIGMA).mean
        windows, keys = le.extract_patches(physics.A(y), 3)[0], le.extract_patches(physics.A(IMAGES), 3)
        seen = le.extract_patches(MASK.double().expand(1, C, H, W), 3)[0]
        d2 = ((windows[:, None, None] - keys) * seen).square().sum(3)
        weights = (-d2 / (2 * SIGMA**2)).flatten(1).softmax(1).unflatten(1, (D, N))
        wrong = torch.einsum("tdn,dcn->ct", weights, IMAGES.flatten(2)).reshape(right.shape)
        assert (wrong - right).norm() > 1e-2 * right.norm()

    def test_without_the_pseudo_determinant(self, generator, monkeypatch):
        B = le.EpsilonInverse(MASK, 0.3)
        y = measured(IMAGES, le.Denoising(), generator, count=1)
        estimator = le.LocalEquivariantMMSE(IMAGES, le.Denoising(), 3, B)
        right = estimator(y, sigma=SIGMA).mean
        for comparison in estimator._comparisons:
            comparison.half_log_pdet.zero_()
        assert (estimator(y, sigma=SIGMA).mean - right).norm() > 1e-2 * right.norm()


# ----------------------------------------------------------------------------------------------------- a few pixels


FEW = [(2, 3), (0, 0), (5, 8), (2, 3)]


@pytest.mark.parametrize("reduction", [le.PosteriorMoments(), le.TopSources(4), le.TopImages(2)])
@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kind in PAIRS if name in FEW_OPERATORS and kind != "tikhonov"]
)
def test_a_few_pixels_have_the_answers_of_a_call(name, kind, boundary, reduction, generator):
    """The same as for all pixels, in the order in which they are asked for, also twice, and for several sigmas."""
    physics, images = FORWARD[name], training_set()
    B = onto_images(physics)[kind]
    if boundary == "zero" and name == "downsampling by 3":
        pytest.skip("phases beyond a zero boundary are classes of their own: slow, and tested for a call")
    y = measured(images, physics, generator)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, B, boundary)
    for asked, sigma in ((y, torch.tensor([0.3, 0.6])), (y[:1].expand(2, *y.shape[1:]), torch.tensor([0.3, 0.6]))):
        whole = estimator(asked, sigma=sigma, reduction=reduction)
        found = estimator.at_pixels(asked, FEW, sigma=sigma, reduction=reduction)
        rows, columns = zip(*FEW, strict=True)
        for field, value in vars(whole).items():
            if value is None:
                continue
            last = field in ("image", "pixel", "weight")  # lists run along the last axis, images before it
            wanted = value[:, rows, columns] if last or value.ndim == 3 else value[..., rows, columns]
            torch.testing.assert_close(getattr(found, field), wanted, rtol=1e-9, atol=1e-9)


def test_a_few_pixels_of_images_made_on_demand_and_in_chunks(generator):
    """No answer depends on how images come."""
    images = training_set(count=5)
    y = measured(images, FORWARD["denoising"], generator)
    wanted = le.LocalEquivariantMMSE(images, le.Denoising(), 3).at_pixels(y, FEW, sigma=SIGMA)
    for held, chunk in ((LazyImages(images), 2), (images, 3), (images, 1)):
        estimator = le.LocalEquivariantMMSE(held, le.Denoising(), 3, chunk_size=chunk)
        assert_same(estimator.at_pixels(y, FEW, sigma=SIGMA), wanted)


def test_a_few_pixels_keep_the_gradient(generator):
    """The derivative of one pixel, as that of a call."""
    images = training_set()
    y = measured(images, FORWARD["denoising"], generator, count=1).requires_grad_()
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    few = torch.autograd.grad(estimator.at_pixels(y, [(2, 3)], sigma=SIGMA).mean.sum(), y)[0]
    whole = torch.autograd.grad(estimator(y, sigma=SIGMA).mean[..., 2, 3].sum(), y)[0]
    torch.testing.assert_close(few, whole)
    assert few.abs().max() > 0


def test_equal_windows_of_a_few_pixels_go_to_the_lowest():
    """Copies of one image at the same distance to the last bit, in single precision."""
    images = training_set(count=1, dtype=torch.float32).repeat(7, 1, 1, 1)
    found = le.LocalEquivariantMMSE(images, le.Denoising(), 3).at_pixels(
        images[:1] + 0.1, [(1, 1)], sigma=0.1, reduction=le.TopSources(3)
    )
    assert found.image.tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize(
    ("pixels", "says"),
    [([], "at least one output pixel"), ([(6, 0)], "pixel is"), ([(0, -1)], "pixel is"), ([5], "pixel is")],
)
def test_pixels_that_are_not_there(pixels, says, unchecked_shapes):
    """What was asked, what came."""
    images = training_set()
    with pytest.raises(ValueError, match=says):
        le.LocalEquivariantMMSE(images, le.Denoising(), 3).at_pixels(images, pixels, sigma=0.1)


def test_a_density_of_a_few_pixels_is_refused():
    """``log_density`` completes what a call returned: other shapes could be broadcast in silence."""
    images = training_set()
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    few = estimator.at_pixels(images, [(0, i) for i in range(W)], sigma=0.1)
    with pytest.raises(ValueError, match="what a call of this estimator returned"):
        estimator.log_density(few, 0.1)
