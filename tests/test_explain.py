"""What the weights tell, against loops over pairs of windows and dense pseudo-inverses (S5.10, S6, S7)."""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pytest
import torch

import lemmse as le
from operators_registry import BOX, FORWARD, GAUSSIAN, IMAGE, MASK, C, H, W, random_matrix
from reference import dense, entropy, window_operators

D, N, SIGMA, P = 2, H * W, 0.5, 3
HOLE = torch.ones(H, W)
HOLE[:, 3:8] = 0  # wider than a window
IMAGES = torch.rand(D, *IMAGE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

CASES = {  # A, B, boundary, and the side of the window
    "denoising": (le.Denoising(), None, "circular", P),
    "denoising, zero boundary": (le.Denoising(), None, "zero", P),
    "inpainting": (le.Inpainting(MASK), le.PseudoInverse(le.Inpainting(MASK)), "circular", P),
    "a hole wider than the window": (le.Inpainting(HOLE), le.Adjoint(le.Inpainting(HOLE)), "circular", P),
    "epsilon inverse": (le.Inpainting(MASK), le.EpsilonInverse(MASK, 0.2), "circular", P),
    "blur": (le.Blur(GAUSSIAN), le.PseudoInverse(le.Blur(GAUSSIAN)), "circular", P),
    "blur, zero boundary": (le.Blur(GAUSSIAN), le.Tikhonov(le.Blur(GAUSSIAN), 0.1), "zero", P),
    "singular box": (le.Denoising(), le.Blur(BOX), "circular", P),
    "fourier sampling": (FORWARD["fourier sampling"], le.Adjoint(FORWARD["fourier sampling"]), "circular", P),
    "downsampling": (le.Downsampling(3, GAUSSIAN), le.Adjoint(le.Downsampling(3, GAUSSIAN)), "circular", P),
    "downsampling, windows of a pixel": (
        le.Downsampling(3, GAUSSIAN),
        le.Adjoint(le.Downsampling(3, GAUSSIAN)),
        "circular",
        1,
    ),
    "dense": (le.Denoising(), le.Matrix(random_matrix(108, 108) / 10, IMAGE, IMAGE), "circular", P),
    "dense, rank 7": (FORWARD["matrix, wide"], le.Adjoint(FORWARD["matrix, wide"]), "circular", P),
    "nonlinear": (le.Nonlinear(torch.square), None, "circular", P),
}
SEVERAL_NOISES = ["epsilon inverse", "downsampling, windows of a pixel", "dense"]
"""Strata of windows with different Q Qᵀ."""


@cache
def case(name):
    physics, B, boundary, patch_size = CASES[name]
    return le.LocalEquivariantMMSE(IMAGES, physics, patch_size, B, boundary)


@cache
def brute_operators(name):
    """Q_n of every pixel, its pseudo-inverse and its projector: dense, with one threshold for all ranks."""
    estimator = case(name)
    shape = tuple(estimator.measurement_shape)
    B = torch.eye(math.prod(shape), dtype=torch.float64)
    B = B if estimator.pre_inverse is None else dense(estimator.pre_inverse.A, shape)
    operators = window_operators(B, IMAGE, estimator.patch_size, estimator.boundary)
    largest = max(float(torch.linalg.matrix_norm(q, 2)) for q in operators)
    inverses = [torch.linalg.pinv(q, atol=1e-10 * largest, rtol=0) for q in operators]
    return operators, inverses, [q @ inverse for q, inverse in zip(operators, inverses, strict=True)]


def stratum_of(name, pixel):
    """Pixels with the image space of this one, by their projectors."""
    projectors = brute_operators(name)[2]
    return [n for n in range(N) if float((projectors[n] - projectors[pixel]).abs().max()) < 1e-7]


def unknown(generator, count=1, images=IMAGES):
    return torch.rand(count, *images.shape[1:], generator=generator, dtype=images.dtype)


def noise_like(y, generator, sigma=SIGMA):
    return sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)


class _Own(NamedTuple):
    squares: torch.Tensor
    log_weights: torch.Tensor


@dataclass(frozen=True)
class EveryAtom:
    """A reduction that keeps what the estimator feeds it: its own r² and log-weights, (b, h, w, D, N), inf outside."""

    honours_tolerance = False

    def start(self, layout):
        return _Own(layout.full(math.inf, D * N), layout.full(-math.inf, D * N))

    def update(self, state, term):
        images = term.first_image + torch.arange(term.log_weights.shape[1] // term.atoms_per_image)
        index = (images[:, None] * N + term.pixels).flatten()
        new = (term.squared_distances, term.log_weights)
        return _Own(*(old.index_copy(1, index, x) for old, x in zip(state, new, strict=True)))

    def merge(self, state_1, state_2):
        return _Own(torch.minimum(state_1[0], state_2[0]), torch.maximum(state_1[1], state_2[1]))

    def finish(self, state, layout):
        return tuple(x.reshape(*layout.query_shape, D, N) for x in state)


def all_weights(estimator, y, sigma=SIGMA):
    """All weights, (b, h, w, D, N)."""
    _, log_weights = estimator(y, sigma=sigma, reduction=EveryAtom())
    return log_weights.flatten(3).softmax(3).unflatten(3, (D, N))


def atoms_of(stratum, queries=1):
    """All atoms of a stratum: images and sources (b, D |S|)."""
    image, source = torch.cartesian_prod(torch.arange(D), torch.tensor(stratum)).T
    return image.expand(queries, -1), source.expand(queries, -1)


# ---------------------------------------------------------------------------------------------------- parts of η (S6.1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pixel", [(0, 0), (2, 4), (5, 7)])
def test_the_parts_of_eta_add_up_to_the_estimators_own_residual(name, pixel, generator):
    """Over all atoms of the stratum; and each part, and the angle between them, is that of dense pseudo-inverses."""
    estimator = case(name)
    physics, at = estimator.physics, pixel[0] * W + pixel[1]
    x = unknown(generator, 2)
    e = noise_like(physics.A(x), generator)
    image, source = atoms_of(stratum_of(name, at), queries=2)
    parts = le.explain.residual_parts(estimator, x, e, pixel, image, source)
    squares, log_weights = estimator(physics.A(x) + e, sigma=SIGMA, reduction=EveryAtom())
    own, own_log_weights = (t[:, pixel[0], pixel[1]][:, image[0], source[0]] for t in (squares, log_weights))
    torch.testing.assert_close(parts.squared_residual, own, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts.log_weights(SIGMA), own_log_weights, rtol=1e-10, atol=1e-10)
    assert int(squares[0, pixel[0], pixel[1]].isfinite().sum()) == image.shape[1]  # the estimator has no other atom

    operators, inverses, _ = brute_operators(name)
    keys = physics.A(IMAGES).flatten(1)
    seen = torch.stack([each.flatten(1) @ operators[at].T for each in (physics.A(x), e)])[:, :, None]
    keys = torch.stack([operators[n] @ keys[d] for d, n in zip(image[0].tolist(), source[0].tolist(), strict=True)])
    back = torch.stack([inverses[n] for n in source[0].tolist()])
    discrimination, noise = (torch.einsum("kmr,bkr->bkm", back, each) for each in (seen[0] - keys, seen[1] + 0 * keys))
    for got, wanted in [
        (parts.discrimination.square(), discrimination.square()),
        (parts.noise.square(), noise.square()),
        (parts.discrimination * parts.noise, discrimination * noise),
    ]:
        torch.testing.assert_close(got.sum(2), wanted.sum(2), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["inpainting", *SEVERAL_NOISES])
def test_mean_squares_add_over_the_noise(name, generator):
    """E η² = ‖discrimination‖² + σ² r · amplification; the squares of one draw do not add."""
    estimator, draws, pixel = case(name), 4000, (2, 4)
    stratum = stratum_of(name, 2 * W + 4)
    source = torch.tensor([stratum[0], stratum[-1], 2 * W + 4])
    image = torch.tensor([0, 1, 1])
    x = unknown(generator).expand(draws, -1, -1, -1)
    e = noise_like(estimator.physics.A(x), generator)
    parts = le.explain.residual_parts(estimator, x, e, pixel, image.expand(draws, -1), source.expand(draws, -1))
    signal = parts.discrimination[0].square().sum(1)
    rank = parts.noise.shape[2]
    expected = signal + SIGMA**2 * rank * le.explain.amplification(estimator, pixel, source)
    errors = (parts.squared_residual.mean(0) - expected) / (parts.squared_residual.std(0) / draws**0.5)
    assert errors.abs().max() < 4
    one = parts.squared_residual[0] - signal - parts.noise[0].square().sum(1)
    assert one.abs().max() > 1e-3


def test_outside_the_stratum_the_distance_is_finite_and_the_weight_is_zero(generator):
    """S6.1 without the indicator would give such a source a weight."""
    name, at = "inpainting", 2 * W + 4
    estimator = case(name)
    x = unknown(generator)
    y = estimator.physics.A(x)
    squares, log_weights = (each[0, 2, 4] for each in estimator(y, sigma=SIGMA, reduction=EveryAtom()))
    operators, inverses, _ = brute_operators(name)
    seen, keys = operators[at] @ y.flatten(), estimator.physics.A(IMAGES).flatten(1)
    eta2 = torch.stack([((seen - keys @ operators[n].T) @ inverses[n].T).square().sum(1) for n in range(N)], dim=1)
    inside = stratum_of(name, at)
    torch.testing.assert_close(squares[:, inside], eta2[:, inside], rtol=1e-10, atol=1e-10)
    outside = next(n for n in eta2.amin(0).argsort().tolist() if n not in inside)
    naive = (-eta2 / (2 * SIGMA**2)).flatten().softmax(0).unflatten(0, (D, N))
    assert naive[:, outside].sum() > 1e-2  # what it would weigh without the indicator
    assert (log_weights[:, outside] == -math.inf).all()
    with pytest.raises(ValueError, match=rf"source {outside} is outside the stratum of pixel \(2, 4\)"):
        le.explain.residual_parts(
            estimator, x, torch.zeros_like(y), (2, 4), torch.tensor([[0]]), torch.tensor([[outside]])
        )


def test_float32_and_images_made_on_demand():
    """The parts are computed in float64 from what the estimator measures."""

    class Lazy:
        shape = tuple(IMAGES.shape)

        def __getitem__(self, index):
            return IMAGES[index].float()

    estimator = le.LocalEquivariantMMSE(Lazy(), le.Blur(GAUSSIAN), P, le.PseudoInverse(le.Blur(GAUSSIAN)))
    x = IMAGES[:1].flip(2).float()
    e = torch.full_like(x, 0.1)
    image, source = atoms_of(range(N))
    single = le.explain.residual_parts(estimator, x, e, (2, 4), image, source)
    double = le.explain.residual_parts(case("blur"), x.double(), e.double(), (2, 4), image, source)
    torch.testing.assert_close(single.squared_residual, double.squared_residual, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- the maps of S6


@pytest.mark.parametrize("name", CASES)
def test_amplification_is_the_trace_of_S6(name):
    """Every pair by dense pseudo-inverses, and the map as the mean over the sources of a stratum."""
    estimator = case(name)
    operators, inverses, projectors = brute_operators(name)
    found = le.explain.amplification_map(estimator)
    for at in range(0, N, 5):
        stratum = stratum_of(name, at)
        rank = round(float(projectors[at].trace()))
        wanted = torch.tensor([float((inverses[n] @ operators[at]).square().sum()) / max(rank, 1) for n in stratum])
        wanted = wanted.double() if rank else torch.ones(len(stratum), dtype=torch.float64)
        got = le.explain.amplification(estimator, divmod(at, W), torch.tensor(stratum))
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[divmod(at, W)], got.mean(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in CASES if name not in SEVERAL_NOISES])
def test_nothing_is_amplified_where_whitening_cancels_it(name):
    """Identically 1 for circulant B Bᵀ and for masks, also where B declares nothing and every window is a class."""
    physics, B, boundary, _ = CASES[name]
    assert torch.equal(le.explain.amplification_map(case(name)), torch.ones(H, W, dtype=torch.float64))
    if B is not None:
        shape = tuple(case(name).measurement_shape)
        undeclared = le.Matrix(dense(B.A, shape), shape, IMAGE)
        found = le.explain.amplification_map(le.LocalEquivariantMMSE(IMAGES, physics, P, undeclared, boundary))
        torch.testing.assert_close(found, torch.ones(H, W, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SEVERAL_NOISES)
def test_noise_is_amplified_where_b_is_not_stationary(name):
    found = le.explain.amplification_map(case(name))
    assert found.max() > 1.5
    shape = tuple(case(name).measurement_shape)
    tripled = le.Matrix(3 * dense(CASES[name][1].A, shape), shape, IMAGE)
    scaled = le.explain.amplification_map(le.LocalEquivariantMMSE(IMAGES, CASES[name][0], CASES[name][3], tripled))
    torch.testing.assert_close(scaled, found, rtol=1e-8, atol=0)  # B -> cB changes nothing


@pytest.mark.parametrize("name", CASES)
def test_discrimination_map_is_the_mean_over_the_stratum(name, generator):
    estimator, x = case(name), unknown(generator, 2)
    physics, sigma = estimator.physics, 0.1
    found = le.explain.discrimination_map(estimator, x, sigma=sigma)
    operators, inverses, projectors = brute_operators(name)
    keys = physics.A(IMAGES).flatten(1)
    for at in range(0, N, 7):
        stratum = stratum_of(name, at)
        seen = physics.A(x).flatten(1) @ operators[at].T
        squares = torch.stack(
            [((seen - operators[n] @ keys[d]) @ inverses[n].T).square().sum(1) for d in range(D) for n in stratum]
        )
        rank = max(round(float(projectors[at].trace())), 1)
        reach = 2 * sigma**2 * math.log(D * len(stratum))
        i, j = divmod(at, W)
        torch.testing.assert_close(found.ratio[:, i, j], squares.mean(0) / (sigma**2 * rank), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.confusable[:, i, j], (squares < reach).double().mean(0), rtol=0, atol=1e-12)


def test_a_hidden_window_tells_nothing_apart(generator):
    found = le.explain.discrimination_map(case("a hole wider than the window"), unknown(generator), sigma=0.1)
    assert (found.ratio[:, :, 4:7] == 0).all()
    assert (found.confusable[:, :, 4:7] == 1).all()
    assert (found.ratio[:, :, :3] > 0).all()


def test_discrimination_does_not_depend_on_chunks(generator):
    x = unknown(generator)
    physics, B, _, _ = CASES["downsampling"]
    parts = le.LocalEquivariantMMSE(IMAGES, physics, P, B, chunk_size=1)
    for got, wanted in zip(
        vars(le.explain.discrimination_map(parts, x, sigma=0.3)).values(),
        vars(le.explain.discrimination_map(case("downsampling"), x, sigma=0.3)).values(),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_masks_are_worth_knowing_in_training(keep, generator):
    """S6.3: risk(A⁺) ≤ risk(Id) on training images, under the same noise; the gap is E‖x̂ - x̂'‖², as A⁺ knows more."""
    shape, draws, sigma = (1, 5, 7), 4000, 0.3
    images = torch.rand(4, *shape, generator=generator, dtype=torch.float64)
    physics = le.Inpainting(le.random_mask(5, 7, keep=keep, generator=generator))
    x = images[torch.randint(4, (draws,), generator=generator)]
    y = physics.A(x) + noise_like(x, generator, sigma)
    agnostic = le.LocalEquivariantMMSE(images, physics, P)(y, sigma=sigma).mean
    aware = le.LocalEquivariantMMSE(images, physics, P, le.PseudoInverse(physics))(y, sigma=sigma).mean
    gain = ((agnostic - x).square() - (aware - x).square()).flatten(1).sum(1)
    assert gain.mean() > 10 * gain.std() / draws**0.5
    gap = gain - (agnostic - aware).square().flatten(1).sum(1)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / draws**0.5


# ------------------------------------------------------------------------------------------------------ maps of weights


@pytest.mark.parametrize("name", ["denoising", "inpainting", "downsampling"])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_patchwork_is_the_image_that_owns_most(name, sigma, generator):
    estimator = case(name)
    y = estimator.physics.A(unknown(generator, 2))
    shares = all_weights(estimator, y, sigma).sum(4)
    found = le.explain.patchwork(estimator, y, sigma=sigma)
    assert found.image.shape == found.share.shape == (2, H, W)
    torch.testing.assert_close(found.share, shares.amax(3), rtol=0, atol=1e-10)
    assert torch.equal(found.image, shares.argmax(3))
    assert torch.equal(found.owner == -1, found.share <= 0.5 + le.explain.OWNERSHIP_MARGIN)
    assert torch.equal(found.owner[found.owner >= 0], found.image[found.owner >= 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_images_own_nothing(dtype, generator):
    """Two halves are no majority, in either precision; images of their own are owned by themselves."""
    images = torch.rand(3, 1, 8, 9, generator=generator, dtype=dtype)
    y = images[:1] + 0.01 * torch.randn(1, 1, 8, 9, generator=generator, dtype=dtype)
    alone = le.explain.patchwork(le.LocalEquivariantMMSE(images, le.Denoising(), P), y, sigma=0.02)
    assert (alone.owner == 0).all()
    for sigma in (0.02, 1.0, 100.0):
        twice = le.LocalEquivariantMMSE(torch.cat([images[:1], images[:1]]), le.Denoising(), P)
        assert (le.explain.patchwork(twice, y, sigma=sigma).owner == -1).all()


def test_patchwork_of_whole_images(generator):
    """For an estimator that averages images, one owner for a query."""
    y = unknown(generator, 3)
    found = le.explain.patchwork(le.MMSE(IMAGES, le.Denoising()), y, sigma=0.2)
    d2 = (y[:, None] - IMAGES).square().flatten(2).sum(2)
    assert torch.equal(found.owner, d2.argmin(1))


def test_effective_sources(generator):
    """exp of the entropy, term by term; all atoms where nothing is seen; never fewer as σ grows for one y."""
    estimator = case("a hole wider than the window")
    y = estimator.physics.A(unknown(generator)).expand(5, -1, -1, -1)
    sigma = torch.tensor([0.05, 0.1, 0.3, 1.0, 1e4], dtype=torch.float64)
    found = le.explain.effective_sources(estimator(y, sigma=sigma, reduction=le.PosteriorMoments()))
    weights = all_weights(estimator, y[1:2], 0.1)[0].reshape(N, -1)
    wanted = torch.tensor([math.exp(entropy(w)) for w in weights], dtype=torch.float64)
    torch.testing.assert_close(found[1].flatten(), wanted, rtol=1e-9, atol=1e-9)
    hidden = torch.full((5, H, 3), float(D * H * 3), dtype=torch.float64)
    torch.testing.assert_close(found[:, :, 4:7], hidden, rtol=1e-12, atol=0)
    assert (found.diff(dim=0) > -1e-9).all()
    size = torch.tensor([D * len(stratum_of("a hole wider than the window", n)) for n in range(N)])
    torch.testing.assert_close(found[4].flatten(), size.double(), rtol=1e-6, atol=0)


def test_posterior_variance_is_the_training_risk(generator):
    """Its mean over pixels and training measurements (S5.10), with the same noise."""
    draws, estimator = 3000, case("inpainting")
    x = IMAGES[torch.randint(D, (draws,), generator=generator)]
    y = estimator.physics.A(x) + noise_like(x, generator)
    moments = estimator(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    variance = le.explain.posterior_variance(moments)
    torch.testing.assert_close(variance, moments.variance.sum(1) / C, rtol=1e-12, atol=0)
    gap = variance.mean((1, 2)) - (moments.mean - x).square().mean((1, 2, 3))
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / draws**0.5
    assert variance.mean() > 1e-3


def test_log_density_map_of_a_mask(generator):
    """Over the visible pixels of a window: a mixture of as many of DN components as share its pattern."""
    estimator = case("a hole wider than the window")
    y = noise_like(IMAGES[:1], generator)
    found = le.explain.log_density_map(estimator, estimator(y, sigma=SIGMA), SIGMA)
    seen = le.extract_patches(HOLE.double().expand(1, C, H, W), P)[0].bool()
    windows, atoms = le.extract_patches(y, P)[0], le.extract_patches(IMAGES, P)
    assert torch.equal(found.rank.flatten(), seen.sum(1))
    for n in range(N):
        alike = (seen == seen[n]).all(1)
        log_p = torch.distributions.Normal(atoms[:, alike][..., seen[n]], SIGMA).log_prob(windows[n, seen[n]]).sum(2)
        wanted = log_p.flatten().logsumexp(0) - math.log(D * N)
        torch.testing.assert_close(found.nats[0].flatten()[n], wanted, rtol=1e-11, atol=1e-11)
    assert torch.equal(found.per_rank.isnan()[0], found.rank == 0)
    visible = found.rank > 0
    torch.testing.assert_close(
        (found.per_rank * found.rank)[:, visible], found.nats[:, visible], rtol=1e-14, atol=1e-14
    )


# --------------------------------------------------------------------------------------------------- sources of a pixel


@pytest.mark.parametrize("name", CASES)
def test_contributions_are_conserved(name, generator):
    """What is not listed is worth what a loop over all atoms says; windows and colours are those of the images."""
    estimator, pixel, k = case(name), (2, 4), 3
    y = estimator.physics.A(unknown(generator, 2))
    y = y + noise_like(y, generator)
    posterior = estimator(y, sigma=SIGMA)
    sources = estimator(y, sigma=SIGMA, reduction=le.TopSources(k))
    found = le.explain.contributions(estimator, y, posterior, sources, pixel)
    torch.testing.assert_close(
        found.weight.sum(1) + found.remainder, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        found.running_sum[:, -1] + found.remainder_share, posterior.mean[:, :, 2, 4], rtol=0, atol=1e-12
    )
    matrix = torch.eye(math.prod(y.shape[1:]), dtype=torch.float64)
    matrix = matrix if estimator.pre_inverse is None else dense(estimator.pre_inverse.A, tuple(y.shape[1:]))
    v, keys = ((each.flatten(1) @ matrix.T).unflatten(1, IMAGE) for each in (y, estimator.physics.A(IMAGES)))
    weights = all_weights(estimator, y)[:, 2, 4]
    for i in range(2):
        rest = weights[i].clone()  # (D, N)
        for d, n in zip(found.image[i].tolist(), found.pixel[i].tolist(), strict=True):
            rest[d, n] = 0 if d >= 0 else rest[d, n]
        share = torch.einsum("dn,dcn->c", rest, IMAGES.flatten(2))
        torch.testing.assert_close(found.remainder_share[i], share, rtol=0, atol=1e-6)
        window = brute_window(v[i], 2 * W + 4, estimator)
        torch.testing.assert_close(found.window[i], window, rtol=0, atol=1e-9)
        for j, (d, n) in enumerate(zip(found.image[i].tolist(), found.pixel[i].tolist(), strict=True)):
            if d >= 0:
                torch.testing.assert_close(found.colour[i, j], IMAGES[d].flatten(1)[:, n], rtol=0, atol=0)
                torch.testing.assert_close(found.contribution[i, j], found.weight[i, j] * found.colour[i, j])
                wanted = brute_window(keys[d], n, estimator)
                torch.testing.assert_close(found.measured[i, j], wanted, rtol=0, atol=1e-9)
                assert torch.equal(found.stored[i, j], brute_window(IMAGES[d], n, estimator))


def brute_window(image, pixel, estimator):
    """The window of a pixel, entry by entry."""
    p = estimator.patch_size
    window = torch.zeros(len(image), p, p, dtype=image.dtype)
    for a in range(p):
        for b in range(p):
            i, j = pixel // W + a - p // 2, pixel % W + b - p // 2
            if estimator.boundary == "circular" or (0 <= i < H and 0 <= j < W):
                window[:, a, b] = image[:, i % H, j % W]
    return window


def test_a_short_list_ends_in_nothing(generator):
    """A pixel alone in its stratum has two atoms, and four are asked for: their contributions are the pixel."""
    estimator = case("inpainting")
    y = estimator.physics.A(unknown(generator))
    alone = next(int(s.pixels) for s in estimator.strata if len(s.pixels) == 1)
    posterior, sources = estimator(y, sigma=SIGMA), estimator(y, sigma=SIGMA, reduction=le.TopSources(4))
    found = le.explain.contributions(estimator, y, posterior, sources, divmod(alone, W))
    assert found.image[0, 2:].tolist() == [-1, -1]
    for x in (found.weight, found.colour, found.contribution, found.measured, found.stored):
        assert (x[0, 2:] == 0).all()
    assert found.remainder[0] < 1e-12
    torch.testing.assert_close(found.running_sum[0, -1], found.mean[0], rtol=0, atol=1e-12)
    assert found.remainder_share.abs().max() < 1e-12


@pytest.mark.parametrize("aware", [False, True])
def test_conservation_on_real_images_in_float32(aware, generator):
    """To 1e-6, in every pixel of a row, with a remainder that is worth no more than the brightest pixels."""
    images = le.data.fashion_mnist("train", 12)
    physics = le.Inpainting(le.center_mask(28, 28, side=9))
    y = physics.A(le.data.fashion_mnist("test", 1))
    y = y + noise_like(y, generator, 0.1)
    estimator = le.LocalEquivariantMMSE(images, physics, 5, le.PseudoInverse(physics) if aware else None)
    posterior, sources = estimator(y, sigma=0.1), estimator(y, sigma=0.1, reduction=le.TopSources(5))
    for column in range(0, 28, 5):
        found = le.explain.contributions(estimator, y, posterior, sources, (14, column))
        assert (found.weight.sum(1) + found.remainder - 1).abs() < 1e-6
        assert (found.contribution.sum(1) + found.remainder_share - posterior.mean[:, :, 14, column]).abs() < 1e-6
        assert -1e-6 <= found.remainder_share <= float(found.remainder) * float(images.max()) + 1e-6


# ------------------------------------------------------------------------------------------------------------ bad input

LOCAL = le.LocalEquivariantMMSE(IMAGES, le.Denoising(), P)
WHOLE = le.MMSE(IMAGES, le.Denoising())
Y = IMAGES[:1]
POSTERIOR, SOURCES = LOCAL(Y, sigma=1.0), LOCAL(Y, sigma=1.0, reduction=le.TopSources(2))
ONE = torch.zeros(1, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "call", "says"),
    [
        (TypeError, lambda: le.explain.effective_sources(POSTERIOR), r"reduction=PosteriorMoments\(\)"),
        (TypeError, lambda: le.explain.posterior_variance(POSTERIOR), "posterior_variance needs Moments"),
        (TypeError, lambda: le.explain.amplification_map(WHOLE), "LocalEquivariantMMSE: got MMSE"),
        (TypeError, lambda: le.explain.log_density_map(WHOLE, POSTERIOR, 1.0), "log_density_map explains"),
        (TypeError, lambda: le.explain.log_density_map(LOCAL, SOURCES, 1.0), "got Sources"),
        (TypeError, lambda: le.explain.contributions(LOCAL, Y, SOURCES, SOURCES, (0, 0)), "got Sources and Sources"),
        (
            TypeError,
            lambda: le.explain.contributions(
                LOCAL, Y, POSTERIOR, LOCAL(Y, sigma=1.0, reduction=le.TopImages(1)), (0, 0)
            ),
            "Sources of TopImages",
        ),
        (ValueError, lambda: le.explain.contributions(LOCAL, Y, POSTERIOR, SOURCES, (6, 0)), r"6 × 9 pixels.*\(6, 0\)"),
        (ValueError, lambda: le.explain.contributions(LOCAL, Y, POSTERIOR, SOURCES, (0, -1)), "counted from 0"),
        (ValueError, lambda: le.explain.contributions(LOCAL, Y, POSTERIOR, SOURCES, 22), r"got 22. divmod\(n, 9\)"),
        (ValueError, lambda: le.explain.contributions(LOCAL, Y, POSTERIOR, SOURCES, (0.5, 1)), r"\(0.5, 1\)"),
        (ValueError, lambda: le.explain.contributions(LOCAL, IMAGES, POSTERIOR, SOURCES, (0, 0)), r"\(2, 6, 9\)"),
        (ValueError, lambda: le.explain.contributions(LOCAL, Y.float(), POSTERIOR, SOURCES, (0, 0)), "torch.float64"),
        (ValueError, lambda: le.explain.discrimination_map(LOCAL, Y[:, :1], sigma=1.0), r"x must be \(1, 2, 6, 9\)"),
        (ValueError, lambda: le.explain.discrimination_map(LOCAL, Y, sigma=0.0), "positive"),
        (
            ValueError,
            lambda: le.explain.discrimination_map(LOCAL, IMAGES, sigma=torch.tensor([1.0, 2.0])),
            "takes one sigma",
        ),
        (ValueError, lambda: le.explain.residual_parts(LOCAL, Y, Y[..., 1:], (0, 0), ONE, ONE), "e must be"),
        (ValueError, lambda: le.explain.residual_parts(LOCAL, Y, Y, (0, 0), ONE - 1, ONE), "fill up a short list"),
        (ValueError, lambda: le.explain.residual_parts(LOCAL, Y, Y, (0, 0), ONE + D, ONE), "2 training images"),
        (ValueError, lambda: le.explain.residual_parts(LOCAL, Y, Y, (0, 0), ONE[0], ONE[0]), r"\(1, k\)"),
        (ValueError, lambda: le.explain.amplification(LOCAL, (0, 0), ONE[0] + N), f"source {N} is outside"),
    ],
)
def test_bad_input(error, call, says, unchecked_shapes):
    with pytest.raises(error, match=says):
        call()
