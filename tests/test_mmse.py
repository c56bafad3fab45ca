"""The unconstrained estimator: the laws of S1 and S3, against a loop over the images."""

import itertools
import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lemmse as le
import problems
from operators_registry import BOX, FORWARD, IMAGE, MASK, H, W, random_matrix
from problems import LEAST, LazyImages, assert_batch_equals_one_by_one, assert_same, chunked, pre_inverses
from reference import dense, mmse

D, SIGMA = 11, 1.5
training_set = partial(problems.training_set, count=D)
measured = partial(problems.measured, sigma=SIGMA, count=3)


def weights_of(estimator, y, sigma) -> torch.Tensor:
    """All weights, in the order of the images."""
    sources = estimator(y, sigma=sigma, reduction=le.TopSources(len(estimator.images)))
    return torch.zeros_like(sources.weight).scatter(1, sources.image, sources.weight)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("kind", ["identity", "adjoint", "pseudo-inverse", "tikhonov"])
def test_equals_brute_force(name, kind, generator):
    physics = FORWARD[name]
    images, B = training_set(), pre_inverses(physics)[kind]
    y = measured(images, physics, generator)
    posterior = le.MMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA)
    matrix = None if B is None else dense(B.A, y.shape[1:])
    for i in range(len(y)):
        mean, log_partition, _ = mmse(images, physics.A, y[i], SIGMA, matrix)
        torch.testing.assert_close(posterior.mean[i], mean, rtol=1e-12, atol=1e-12)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-12, abs=1e-12)


@given(m=st.integers(1, 9), rank=st.integers(1, 6), sigma=st.floats(0.3, 30), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_any_pre_inverse_of_any_rank(m, rank, sigma, seed):
    """Random B of random rank after a random A, neither of them related to the other."""
    images = training_set(seed)
    physics = le.Matrix(random_matrix(m, math.prod(IMAGE), seed=seed) / 10, IMAGE, (m,))
    matrix = random_matrix(5, m, rank=min(rank, m, 5), seed=seed + 1)
    y = measured(images, physics, torch.Generator().manual_seed(seed), sigma=sigma)
    estimator = le.MMSE(images, physics, pre_inverse=le.Matrix(matrix, (m,), (5,)))
    posterior = estimator(y, sigma=sigma)
    for i in range(len(y)):
        mean, log_partition, weights = mmse(images, physics.A, y[i], sigma, matrix)
        torch.testing.assert_close(posterior.mean[i], mean, rtol=1e-9, atol=1e-10)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-9, abs=1e-10)
        torch.testing.assert_close(weights_of(estimator, y, sigma)[i], weights, rtol=1e-8, atol=1e-10)


# ----------------------------------------------------------------------------------------- S3.2: when B does not matter


@pytest.mark.parametrize("name", FORWARD)
def test_physics_aware_and_agnostic_agree(name, generator):
    """B = Id, Aᵀ, A⁺ and Tikhonov give the same weights, at a sigma where several weights count."""
    physics, images = FORWARD[name], training_set()
    y = measured(images, physics, generator)
    residuals = (y[:, None] - physics.A(images)).flatten(2).square().sum(2)
    sigma = residuals.std(1).sqrt()
    results = {}
    for kind, B in pre_inverses(physics).items():
        estimator = le.MMSE(images, physics, pre_inverse=B)
        results[kind] = (estimator(y, sigma=sigma).mean, weights_of(estimator, y, sigma))
    assert ((results["identity"][1] > 0.05).sum(1) >= 3).all()
    for mean, weights in results.values():
        torch.testing.assert_close(mean, results["identity"][0], rtol=0, atol=1e-10)
        torch.testing.assert_close(weights, results["identity"][1], rtol=0, atol=1e-10)


def test_the_common_term_is_put_back(generator):
    """With B = A⁺ of a mask the log-partition leaves out the noise in the hole: by S3.2 a term common to all images."""
    images, physics = training_set(), FORWARD["inpainting"]
    y = measured(images, physics, generator)
    agnostic = le.MMSE(images, physics)(y, sigma=SIGMA).log_partition
    aware = le.MMSE(images, physics, pre_inverse=le.PseudoInverse(physics))(y, sigma=SIGMA).log_partition
    hidden = (y * (1 - MASK)).flatten(1).square().sum(1)
    assert (hidden > 1).all()
    torch.testing.assert_close(aware - agnostic, hidden / (2 * SIGMA**2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "B",
    [
        le.Matrix(random_matrix(4, 108, rank=3), IMAGE, (4,)),  # oblique, of low rank
        le.Inpainting(le.half_mask(H, W)),  # forgets half of the measurement
        le.Blur(BOX),  # singular: forgets frequencies
    ],
)
def test_a_pre_inverse_that_loses_information_differs(B, generator):
    images, physics = training_set(), le.Denoising()
    y = measured(images, physics, generator)
    plain = le.MMSE(images, physics)(y, sigma=1.0).mean
    lossy = le.MMSE(images, physics, pre_inverse=B)(y, sigma=1.0).mean
    assert (plain - lossy).norm() > 1e-2 * plain.norm()


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_an_injective_pre_inverse_changes_nothing(scale, generator):
    images, physics = training_set(), le.Blur(BOX)
    y = measured(images, physics, generator)
    B = le.Matrix(scale * (random_matrix(108, 108) / 30 + torch.eye(108, dtype=torch.float64)), IMAGE, IMAGE)
    plain, other = le.MMSE(images, physics)(y, sigma=SIGMA), le.MMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA)
    torch.testing.assert_close(plain.mean, other.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(plain.log_partition, other.log_partition, rtol=1e-10, atol=0)


# ---------------------------------------------------------------------------------------------------------- S1 and S3.3


def test_two_point_prior_has_the_closed_form():
    """Prior ±1 (here 0 and 1): MMSE = tanh(y/σ²) after an affine change of variable, S1."""
    images = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    y = torch.linspace(-2, 3, 101, dtype=torch.float64).reshape(-1, 1, 1, 1)
    sigma = 0.9 / 2
    mean = le.MMSE(images, le.Denoising())(y, sigma=sigma).mean
    torch.testing.assert_close(2 * mean - 1, torch.tanh((2 * y - 1) / 0.9**2), rtol=0, atol=1e-12)


def test_risks_of_the_two_point_prior_by_quadrature():
    """At σ = 0.9, MAP risk 0.5330 and MMSE risk 0.3822 for the prior ±1 (S1)."""
    images = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    estimator, sigma = le.MMSE(images, le.Denoising()), 0.45
    noise = torch.linspace(-8, 8, 400001, dtype=torch.float64) * sigma
    density = torch.exp(-(noise**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    y = (1 + noise).reshape(-1, 1, 1, 1)
    mmse_error = (estimator(y, sigma=sigma).mean.flatten() - 1) ** 2
    nearest = estimator(y, sigma=sigma, reduction=le.TopSources(1)).image[:, 0]
    map_error = (images.flatten()[nearest] - 1) ** 2
    mmse_risk, map_risk = (4 * torch.trapezoid(density * error, noise).item() for error in (mmse_error, map_error))
    assert map_risk == pytest.approx(0.5330, abs=1e-4)
    assert mmse_risk == pytest.approx(0.3822, abs=1e-4)


@pytest.mark.parametrize("name", ["denoising", "inpainting", "blur", "downsampling by 3, blurred"])
def test_tweedie(name, generator):
    """A x̂ = y + σ² ∇ log p_y(y) for B = Id, by autograd of the log-partition (S1.3)."""
    images, physics = training_set(), FORWARD[name]
    y = measured(images, physics, generator).requires_grad_()
    posterior = le.MMSE(images, physics)(y, sigma=SIGMA)
    (gradient,) = torch.autograd.grad(posterior.log_partition.sum(), y)
    torch.testing.assert_close(physics.A(posterior.mean), y + SIGMA**2 * gradient, rtol=0, atol=1e-8)


def test_the_jacobian_is_the_posterior_covariance(generator):
    """∂x̂/∂y = Cov(x|y) Aᵀ / σ², S1.3: its diagonal is the variance that PosteriorMoments gives."""
    images = training_set()
    estimator = le.MMSE(images, le.Denoising(), chunk_size=4)
    y = measured(images, le.Denoising(), generator, count=1)
    jacobian = torch.autograd.functional.jacobian(lambda y: estimator(y, sigma=SIGMA).mean, y)
    diagonal = jacobian.reshape(math.prod(IMAGE), -1).diagonal().reshape(1, *IMAGE)
    variance = estimator(y, sigma=SIGMA, reduction=le.PosteriorMoments()).variance
    torch.testing.assert_close(diagonal * SIGMA**2, variance, rtol=1e-9, atol=1e-12)


def test_small_sigma_averages_the_nearest_and_large_sigma_all(generator):
    """Dyadic values: the distances of tied images are equal to the last bit (float64)."""
    images = torch.randint(4, 250, (D, *IMAGE), generator=generator).double() / 256
    y = torch.randint(4, 250, (2, *IMAGE), generator=generator).double() / 256
    images[4] = images[7] = images[2] = y[0] + (images[1] < 0.5) / 64  # the three nearest of the first query
    images[9], images[5] = y[1] - 1 / 128, y[1] + 1 / 128  # two different images at the same distance of the second
    for chunk_size, sigma in itertools.product((1, 4, None), (1e-6, 1e-4)):
        mean = le.MMSE(images, le.Denoising(), chunk_size=chunk_size)(y, sigma=sigma).mean
        torch.testing.assert_close(mean[0], images[4], rtol=0, atol=1e-15)
        torch.testing.assert_close(mean[1], y[1], rtol=0, atol=1e-15)
    mean = le.MMSE(images, le.Denoising())(y, sigma=1e6).mean
    torch.testing.assert_close(mean, images.mean(0).expand(2, *IMAGE), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [10.0**e for e in range(-6, 7)])
def test_finite_and_within_the_data_at_any_sigma(dtype, sigma, generator):
    images = training_set(dtype=dtype)
    physics = le.Blur(le.optics.gaussian_psf(1.0, 5))
    y = measured(images, physics, generator, sigma=0.1)
    for B in pre_inverses(physics).values():
        m = le.MMSE(images, physics, pre_inverse=B, chunk_size=3)(y, sigma=sigma, reduction=le.PosteriorMoments())
        for field in vars(m).values():
            assert field.isfinite().all()
        slack = 1e-6 if dtype == torch.float32 else 1e-14
        assert (m.mean >= images.amin(0) - slack).all()
        assert (m.mean <= images.amax(0) + slack).all()
        assert (m.entropy >= -slack).all()
        assert (m.entropy <= math.log(D) + 1e-5).all()


def test_in_the_convex_hull(generator):
    images, physics = training_set(count=4), le.Denoising()
    y = measured(images, physics, generator)
    estimator = le.MMSE(images, physics)
    weights = weights_of(estimator, y, SIGMA)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    hull = (weights @ images.flatten(1)).reshape(3, *IMAGE)
    torch.testing.assert_close(estimator(y, sigma=SIGMA).mean, hull, rtol=0, atol=1e-12)


def test_nearest_image_is_map_with_ties_to_the_lowest_index(generator):
    images = training_set()
    images[8] = images[3]
    y = images[[3, 5]] + 0.01
    for chunk_size in (1, 2, 5, 11):
        sources = le.MMSE(images, le.Denoising(), chunk_size=chunk_size)(y, sigma=0.1, reduction=le.TopSources(1))
        assert sources.image.tolist() == [[3], [5]]


def test_a_list_is_filled_by_images_of_no_weight():
    """Chunks that count for nothing are skipped, but not while the list wants images."""
    images = training_set()
    sources = le.MMSE(images, le.Denoising(), chunk_size=1)(images[:1], sigma=1e-3, reduction=le.TopSources(3))
    r2 = (images - images[:1]).flatten(1).square().sum(1)
    assert sources.image[0].tolist() == r2.argsort()[:3].tolist()
    assert sources.weight[0].tolist() == [1, 0, 0]


def test_a_chunk_counts_until_its_weight_is_lost_in_rounding():
    """An image 40 nats below the nearest, in another chunk: its weight of e⁻⁴⁰ is in L and in the moments."""
    images = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    images[1] = 1
    sigma = (1 / 80) ** 0.5
    moments = le.MMSE(images, le.Denoising(), chunk_size=1)(
        0 * images[:1], sigma=sigma, reduction=le.PosteriorMoments()
    )
    assert moments.mean.item() == pytest.approx(math.exp(-40), rel=1e-9)
    assert moments.mean_squared_residual.item() == pytest.approx(math.exp(-40), rel=1e-9)


def test_memorisation_bound(generator):
    """1 - w_1 <= (D - 1) exp(-(r_2² - r_1²) / 2σ²), S3.3."""
    images = training_set()
    y = measured(images, le.Denoising(), generator)
    for sigma in (0.5, 1.0, 2.0):
        weights = weights_of(le.MMSE(images, le.Denoising()), y, sigma).sort(1, descending=True).values
        r2 = (y[:, None] - images).flatten(2).square().sum(2).sort(1).values
        bound = (D - 1) * torch.exp(-(r2[:, 1] - r2[:, 0]) / (2 * sigma**2))
        assert (1 - weights[:, 0] <= bound + 1e-12).all()


def test_log_density_is_normalised():
    """The density of Π y integrates to one over Im Bᵀ: two measurements, B of rank one."""
    images = torch.rand(5, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    estimator = le.MMSE(images, le.Denoising(), pre_inverse=le.Matrix(direction, (1, 1, 2), (1, 1, 1)))
    t = torch.linspace(-6, 7, 4001, dtype=torch.float64)
    y = (t[:, None] * direction).reshape(-1, 1, 1, 2)
    density = estimator.log_density(estimator(y, sigma=0.5), 0.5).exp()
    assert torch.trapezoid(density, t).item() == pytest.approx(1, abs=1e-9)
    off = y + torch.tensor([0.8, -0.6], dtype=torch.float64).reshape(1, 1, 2)  # only Π y matters
    torch.testing.assert_close(estimator.log_density(estimator(off, sigma=0.5), 0.5).exp(), density)


def test_log_density_of_the_identity_is_a_mixture_of_gaussians(generator):
    images = training_set()
    y = measured(images, le.Denoising(), generator)
    estimator, sigma = le.MMSE(images, le.Denoising()), torch.tensor([0.7, 1.5, 3.0], dtype=torch.float64)
    components = torch.distributions.Normal(images.flatten(1)[None], sigma[:, None, None])
    wanted = components.log_prob(y.flatten(1)[:, None]).sum(2).logsumexp(1) - math.log(D)
    torch.testing.assert_close(estimator.log_density(estimator(y, sigma=sigma), sigma), wanted, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------- batches, chunks, precision


@pytest.mark.parametrize("reduction", [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(4), le.TopImages(4)])
def test_a_batch_equals_one_by_one_each_with_its_own_sigma(reduction, generator):
    images, physics = training_set(), FORWARD["blur"]
    y = measured(images, physics, generator, count=4)
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    assert_batch_equals_one_by_one(le.MMSE(images, physics), y, sigma, reduction)


@pytest.mark.parametrize("chunking", [{"chunk_size": n} for n in (1, 2, 4, 10, 99)] + [LEAST])
@pytest.mark.parametrize("reduction", [le.PosteriorMoments(), le.TopSources(4), le.TopImages(4)])
def test_chunks_do_not_change_the_answer(chunking, reduction, generator):
    images, physics = training_set(), FORWARD["inpainting of a blur"]
    y = measured(images, physics, generator)
    whole = le.MMSE(images, physics)(y, sigma=SIGMA, reduction=reduction)
    assert_same(chunked(le.MMSE, images, physics, **chunking)(y, sigma=SIGMA, reduction=reduction), whole)


def test_an_expanded_query_computes_its_distances_once(generator, monkeypatch):
    images = training_set()
    y = measured(images, le.Denoising(), generator, count=1)
    sigma = torch.logspace(-1, 1, 7, dtype=torch.float64)
    estimator = le.MMSE(images, le.Denoising())
    wanted = estimator(y.repeat(7, 1, 1, 1), sigma=sigma, reduction=le.PosteriorMoments())
    asked = []
    original = le.kernels.squared_distances
    monkeypatch.setattr(le.kernels, "squared_distances", lambda q, *k: asked.append(len(q)) or original(q, *k))
    got = estimator(y.expand(7, -1, -1, -1), sigma=sigma, reduction=le.PosteriorMoments())
    assert asked == [1]
    assert_same(got, wanted)


def test_images_made_on_demand_give_the_same_answer_and_are_never_all_in_memory(generator):
    images, physics = training_set(count=100), FORWARD["blur"]
    lazy = LazyImages(images)
    y = measured(images, physics, generator)
    estimator = le.MMSE(lazy, physics, chunk_size=7)
    assert lazy.largest == le._checks.CENTRE_SAMPLE < len(images)
    lazy.largest = lazy.made = 0
    got, wanted = estimator(y, sigma=SIGMA), le.MMSE(images, physics)(y, sigma=SIGMA)
    assert lazy.largest == 7
    assert lazy.made == len(images)  # every image once a call
    torch.testing.assert_close(got.mean, wanted.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.log_partition, wanted.log_partition, rtol=1e-12, atol=1e-12)


def test_nonlinear_measurements(generator):
    images, physics = training_set(), le.Nonlinear(lambda x: x.square().sum(1, keepdim=True))
    y = measured(images, physics, generator)
    posterior = le.MMSE(images, physics)(y, sigma=SIGMA)
    for i in range(len(y)):
        mean, log_partition, _ = mmse(images, physics.A, y[i], SIGMA)
        torch.testing.assert_close(posterior.mean[i], mean, rtol=1e-12, atol=1e-12)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-12)


def test_float32_is_close_to_float64(generator):
    """Bright images, where centring matters: without it the log-weights are off by far more than this."""
    images = (0.9 + 0.1 * training_set()).clamp(0, 1)
    y = images[:3] + 0.02 * torch.randn(3, *IMAGE, generator=generator, dtype=torch.float64)
    double = le.MMSE(images, le.Denoising())(y, sigma=0.02)
    single = le.MMSE(images.float(), le.Denoising())(y.float(), sigma=0.02)
    torch.testing.assert_close(single.log_partition.double(), double.log_partition, rtol=0, atol=5e-3)
    assert (le.metrics.psnr(single.mean.double(), double.mean) > 80).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_neighbours_at_a_small_sigma(dtype, generator):
    """Halfway between two images that are very near each other, both weights are a half: 3072 numbers, float32 too."""
    x = 0.2 + 0.6 * torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64)
    difference = 0.05 * torch.randn(1, 3, 32, 32, generator=generator, dtype=torch.float64).clamp(-3, 3)
    others = torch.rand(20, 3, 32, 32, generator=generator, dtype=torch.float64)
    images = torch.cat([others, x - difference, x + difference]).to(dtype)
    y = (images[20:21] + images[21:22]) / 2
    for sigma in (0.003, 0.01, 0.05):
        top = le.MMSE(images, le.Denoising(), chunk_size=21)(y, sigma=sigma, reduction=le.TopSources(2))
        torch.testing.assert_close(top.weight, torch.full((1, 2), 0.5, dtype=dtype), rtol=0, atol=0.02)
        plain = le.MMSE(images.double(), le.Denoising())(y.double(), sigma=sigma).log_partition
        refined = le.MMSE(images, le.Denoising())(y, sigma=sigma).log_partition
        torch.testing.assert_close(refined.double(), plain, rtol=1e-5, atol=1e-3)


def test_every_number_has_a_gradient(generator):
    """Autograd reaches every field of Moments, also through the first merge with nothing."""
    images = training_set()
    y = measured(images, le.Denoising(), generator).requires_grad_()
    moments = le.MMSE(images, le.Denoising(), chunk_size=4)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    for name, value in vars(moments).items():
        if name != "error_bound":
            (gradient,) = torch.autograd.grad(value.sum(), y, retain_graph=True)
            assert gradient.isfinite().all(), name
            assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("name", FORWARD)
def test_estimators_travel_to_other_processes(name, generator):
    images, physics = training_set(), FORWARD[name]
    y = measured(images, physics, generator)
    estimator = le.MMSE(images, physics, pre_inverse=le.PseudoInverse(physics))
    copied = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(copied(y, sigma=SIGMA).mean, estimator(y, sigma=SIGMA).mean)


def test_calls_do_not_mutate(generator):
    images, physics = training_set(), FORWARD["inpainting"]
    y = measured(images, physics, generator)
    estimator = le.MMSE(images, physics, pre_inverse=le.PseudoInverse(physics))
    kept, before = y.clone(), images.clone()
    first, second = estimator(y, sigma=1.0), estimator(y, sigma=1.0)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(y, kept)
    assert torch.equal(images, before)


def test_scaling_laws(generator):
    """Scaling images, y and σ scales x̂; scaling B changes nothing; doubling the data moves L and H by ln 2."""
    images, physics = training_set(), FORWARD["blur"]
    y = measured(images, physics, generator)
    moments = le.PosteriorMoments()
    plain = le.MMSE(images, physics)(y, sigma=SIGMA, reduction=moments)
    scaled = le.MMSE(images / 2, physics)(y / 2, sigma=SIGMA / 2, reduction=moments)
    torch.testing.assert_close(2 * scaled.mean, plain.mean, rtol=1e-12, atol=1e-12)
    order = torch.randperm(D, generator=generator)
    torch.testing.assert_close(le.MMSE(images[order], physics)(y, sigma=SIGMA).mean, plain.mean, rtol=1e-12, atol=1e-12)
    doubled = le.MMSE(images.repeat(2, 1, 1, 1), physics)(y, sigma=SIGMA, reduction=moments)
    for name, change in [("log_partition", 1), ("entropy", 1), ("log_max_weight", -1), ("mean", 0), ("variance", 0)]:
        wanted = getattr(plain, name) + change * math.log(2)
        torch.testing.assert_close(getattr(doubled, name), wanted, rtol=1e-12, atol=1e-12)


def test_one_image_is_always_the_answer(generator):
    images = training_set(count=1)
    y = measured(images, le.Denoising(), generator)
    m = le.MMSE(images, le.Denoising())(y, sigma=0.3, reduction=le.PosteriorMoments())
    torch.testing.assert_close(m.mean, images.expand(3, *IMAGE), rtol=0, atol=1e-15)
    assert (m.entropy.abs() < 1e-12).all()
    sources = le.MMSE(images, le.Denoising())(y, sigma=0.3, reduction=le.TopSources(5))
    assert sources.image.tolist() == [[0]] * 3
    assert (sources.remainder == 0).all()


def test_plan_and_repr():
    physics = FORWARD["inpainting"]
    agnostic = le.MMSE(training_set(), physics)
    aware = le.MMSE(training_set(), physics, pre_inverse=le.Adjoint(physics))
    assert agnostic.plan != aware.plan
    assert "Im Bᵀ" in repr(aware)
    assert "Inpainting" in repr(aware)


# ------------------------------------------------------------------------------------------------------------ bad input


IMAGES = training_set()
MANY = training_set(count=100)
Y = torch.rand(2, *IMAGE, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: le.MMSE(IMAGES[0], le.Denoising()), r"\(D, c, h, w\)"),
        (lambda: le.MMSE(IMAGES[:0], le.Denoising()), "at least one image"),
        (lambda: le.MMSE((IMAGES * 255).to(torch.uint8), le.Denoising()), "/ 255"),
        (lambda: le.MMSE(IMAGES.half(), le.Denoising()), r"float16.*images\.float\(\)"),
        (lambda: le.MMSE(LazyImages(IMAGES.half()), le.Denoising()), "float16"),
        (lambda: le.MMSE(LazyImages(IMAGES.numpy()), le.Denoising()), "from_numpy"),
        (lambda: le.MMSE(LazyImages(IMAGES.where(IMAGES > 0.1, torch.nan)), le.Denoising()), "NaN"),
        (lambda: le.MMSE(IMAGES.where(IMAGES > 0.1, torch.nan), le.Denoising()), "NaN"),
        (lambda: le.MMSE(IMAGES, le.Inpainting(MASK.T)), "9 × 6"),
        (lambda: le.MMSE(IMAGES, le.Nonlinear(lambda x: x.float())), "float32"),
        (lambda: le.MMSE(IMAGES, le.Nonlinear(lambda x: x.sum())), "keep the batch"),
        (lambda: le.MMSE(IMAGES, le.Nonlinear(lambda x: x / 0)), "NaN or infinity"),
        (lambda: le.MMSE(IMAGES, le.Denoising(), chunk_size=0), "chunk_size"),
        (lambda: le.MMSE(IMAGES, le.Denoising(), chunk_size=2.5), "chunk_size"),
        (lambda: le.MMSE(IMAGES, le.Denoising(), memory_limit=0), "memory_limit"),
        (lambda: le.MMSE(MANY, le.Nonlinear(lambda x: x / (x != MANY[80]))), "NaN or infinity"),
        (lambda: le.MMSE(IMAGES, le.Nonlinear(lambda x: x.numpy())), "ndarray"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y.numpy(), sigma=1.0), "from_numpy"),
        (lambda: le.MMSE(IMAGES, le.Denoising(), pre_inverse=le.Inpainting(MASK.T)), "must take.*9 × 6"),
        (lambda: le.MMSE(IMAGES, le.Denoising(), pre_inverse=le.Inpainting(MASK[:1])), "must take.*1 × 9"),
        (lambda: le.MMSE(IMAGES, FORWARD["fourier sampling"], pre_inverse=le.Blur(BOX[:1])), "must take"),
        (lambda: le.MMSE(IMAGES, le.Denoising(), pre_inverse=le.Adjoint(FORWARD["fourier sampling"])), "must take"),
        (lambda: le.MMSE(IMAGES, le.Denoising(), pre_inverse=le.Matrix(torch.eye(5), (5,), (5,))), "must take"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y[0], sigma=1.0), r"y\[None\]"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y[:, :1], sigma=1.0), "shape of physics"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y.mT, sigma=1.0), "shape of physics"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y[:0], sigma=1.0), "shape of physics"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y.float(), sigma=1.0), "float32"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y / 0, sigma=1.0), "finite"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y, sigma=0.0), "positive"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y, sigma=-1.0), "positive"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y, sigma=math.nan), "positive"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y, sigma=math.inf), "finite"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y, sigma=torch.ones(3)), "one per query"),
        (lambda: le.MMSE(IMAGES, le.Denoising())(Y, sigma=1.0, tolerance=-1.0), "zero or positive"),
        (
            lambda: le.MMSE(IMAGES, le.Denoising())(Y, sigma=1.0, tolerance=0.1, reduction=le.TopSources(1)),
            "PosteriorMean",
        ),
    ],
)
def test_bad_input(call, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("reduction", [le.PosteriorMean, 3])
def test_something_that_is_no_reduction(reduction):
    with pytest.raises(TypeError, match="an object such as"):
        le._checks.checked_reduction(reduction)


def test_log_density_of_sources():
    estimator = le.MMSE(IMAGES, le.Denoising())
    with pytest.raises(TypeError, match="got Sources"):
        estimator.log_density(estimator(Y, sigma=1.0, reduction=le.TopSources(2)), 1.0)


class DoubleOnly:
    """Another library's operator that takes float64 and nothing else."""

    def A(self, y):
        assert y.dtype == torch.float64
        return y

    A_adjoint = A


def test_a_pre_inverse_is_tried_in_the_dtype_of_the_images(generator):
    y = measured(IMAGES, le.Denoising(), generator)
    plain, same = le.MMSE(IMAGES, le.Denoising()), le.MMSE(IMAGES, le.Denoising(), pre_inverse=DoubleOnly())
    torch.testing.assert_close(plain(y, sigma=1.0).mean, same(y, sigma=1.0).mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_absurdly_small_sigma_names_the_nearest(dtype):
    images = IMAGES.to(dtype)
    mean = le.MMSE(images, le.Denoising())(images[3:4], sigma=1e-25).mean
    torch.testing.assert_close(mean, images[3:4])


def test_sigma_may_carry_a_gradient(generator, recwarn):
    y, sigma = measured(IMAGES, le.Denoising(), generator), torch.tensor(SIGMA, requires_grad=True)
    le.MMSE(IMAGES, le.Denoising())(y, sigma=sigma).log_partition.sum().backward()
    assert sigma.grad.isfinite()
    assert not recwarn


def test_a_nonlinear_pre_inverse():
    with pytest.raises(TypeError, match="linear"):
        le.MMSE(IMAGES, le.Denoising(), pre_inverse=le.Nonlinear(torch.square))


def test_images_outside_their_range_warn(recwarn):
    le.MMSE(IMAGES, le.Denoising())
    assert not recwarn
    with pytest.warns(UserWarning, match="1.5"):
        le.MMSE(IMAGES.clamp(0, 0.9) + (IMAGES > 0.95) * 0.6, le.Denoising())


def test_a_positive_tolerance_is_honoured_by_an_exact_answer(generator):
    y = measured(IMAGES, le.Denoising(), generator)
    estimator = le.MMSE(IMAGES, le.Denoising())
    exact, tolerant = estimator(y, sigma=1.0), estimator(y, sigma=1.0, tolerance=0.1)
    assert torch.equal(exact.mean, tolerant.mean)
    assert (tolerant.error_bound == 0).all()


class TestTheTestsFail:
    """The formulas of the published slides, and other slips, fail the laws above."""

    def problem(self, generator):
        physics = le.Denoising()
        B = random_matrix(108, 108, rank=40) / 10
        y = measured(IMAGES, physics, generator, sigma=SIGMA)[0]
        return physics, B, y, mmse(IMAGES, physics.A, y, SIGMA, B)[0]

    def mean_with_metric(self, metric, B, y):
        z = torch.stack([B @ (y - x).reshape(-1) for x in IMAGES])
        log_weights = -torch.einsum("di,ij,dj->d", z, metric, z) / (2 * SIGMA**2)
        return torch.einsum("d,dchw->chw", log_weights.softmax(0), IMAGES)

    def test_the_norm_of_bbt_instead_of_its_pseudo_inverse(self, generator):
        _, B, y, right = self.problem(generator)
        good = self.mean_with_metric(torch.linalg.pinv(B @ B.T, rtol=1e-10, hermitian=True), B, y)
        torch.testing.assert_close(good, right, rtol=0, atol=1e-8)
        assert (self.mean_with_metric(B @ B.T, B, y) - right).norm() > 1e-2 * right.norm()

    def test_the_projector_onto_the_image_of_b_instead_of_its_transpose(self, generator):
        _, B, y, right = self.problem(generator)
        wrong = le.MMSE(IMAGES, le.Denoising(), pre_inverse=le.Matrix(B.T.contiguous(), IMAGE, IMAGE))
        assert (wrong(y[None], sigma=SIGMA).mean[0] - right).norm() > 1e-2 * right.norm()

    def test_no_projector_at_all(self, generator):
        _, _, y, right = self.problem(generator)
        assert (le.MMSE(IMAGES, le.Denoising())(y[None], sigma=SIGMA).mean[0] - right).norm() > 1e-2 * right.norm()

    def test_float32_without_centring(self, generator):
        """The slip that `test_float32_is_close_to_float64` guards against."""
        images = (0.9 + 0.1 * training_set()).clamp(0, 1).float()
        y = images[:3] + 0.02 * torch.randn(3, *IMAGE, generator=generator)
        keys, queries = images.flatten(1), y.flatten(1)
        d2 = le.kernels.squared_distances(queries, keys, keys.square().sum(1))
        single = (-d2 / (2 * 0.02**2)).logsumexp(1).double()
        double = le.MMSE(images.double(), le.Denoising())(y.double(), sigma=0.02).log_partition
        assert (single - double).abs().max() > 5e-3
