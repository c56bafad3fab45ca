"""The equivariant estimator: the laws of S4, against a loop over images and shifts."""

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
from problems import (
    LEAST,
    PAIRS,
    LazyImages,
    as_matrix,
    assert_batch_equals_one_by_one,
    assert_same,
    chunked,
    onto_images,
)
from reference import dense, entropy, equivariant_mmse, mmse, preserving_shifts

D, N, SIGMA = 3, H * W, 1.5
STRIPES = le.stripe_mask(H, W, period=3)
training_set, measured = partial(problems.training_set, count=D), partial(problems.measured, sigma=SIGMA)


def weights_of(estimator, y, sigma, atoms=D * N) -> torch.Tensor:
    """All weights (b, D, h·w), as ``TopSources`` names them."""
    sources = estimator(y, sigma=sigma, reduction=le.TopSources(atoms))
    index = sources.image * N + sources.pixel
    weights = torch.zeros(len(y), len(estimator.images) * N, dtype=y.dtype)
    return weights.scatter(1, index, sources.weight).unflatten(1, (-1, N))


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_equals_brute_force(name, kind, generator):
    """Mean, log-partition, and every weight with its image and its shift."""
    physics, images = FORWARD[name], training_set()
    B = onto_images(physics)[kind]
    y = measured(images, physics, generator)
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=B)
    posterior, weights = estimator(y, sigma=SIGMA), weights_of(estimator, y, SIGMA)
    matrix = as_matrix(B, y.shape[1:])
    shifts = preserving_shifts(matrix, IMAGE)
    for i in range(len(y)):
        mean, log_partition, wanted = equivariant_mmse(images, physics.A, y[i], SIGMA, matrix, IMAGE, shifts)
        torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=1e-10)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-12 if B is None else 1e-9)
        torch.testing.assert_close(weights[i], wanted.flatten(1), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "pair", ["denoising identity", "inpainting stripes pseudo-inverse", "downsampling by 3 adjoint"]
)
@pytest.mark.parametrize("few", ["shifts", "atoms", "nothing"])
def test_three_ways_to_sum_shifts(pair, few, generator, monkeypatch):
    """Atom by atom, shift by shift, and by FFT, which small images would not reach: mean and variance."""
    monkeypatch.setattr(le.kernels, "FEW_ATOMS", 10**6 if few == "atoms" else 0)
    monkeypatch.setattr(le.kernels, "FEW_SHIFTS", 10**6 if few == "shifts" else 0)
    name, kind = pair.rsplit(" ", 1)
    physics, images = FORWARD[name], training_set()
    B = onto_images(physics)[kind]
    y = measured(images, physics, generator)
    moments = le.EquivariantMMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    atoms = le.data.ShiftedImages(images)[:].unflatten(0, (D, N))
    for i in range(len(y)):
        mean, _, weights = equivariant_mmse(images, physics.A, y[i], SIGMA, as_matrix(B, y.shape[1:]), IMAGE)
        torch.testing.assert_close(moments.mean[i], mean, rtol=0, atol=1e-10)
        second = torch.einsum("dn,dnchw->chw", weights.flatten(1), atoms.square())
        torch.testing.assert_close(moments.variance[i], second - mean.square(), rtol=0, atol=1e-10)


@given(rank=st.integers(1, 108), m=st.integers(1, 120), sigma=st.floats(0.3, 30), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_any_pre_inverse_of_any_rank(rank, m, sigma, seed):
    """Random A and B, unrelated to each other; at full rank every shift counts, below only the shift by nothing."""
    images = training_set(seed, count=2)
    physics = le.Matrix(random_matrix(m, math.prod(IMAGE), seed=seed) / 10, IMAGE, (m,))
    matrix = random_matrix(math.prod(IMAGE), m, rank=min(rank, m, math.prod(IMAGE)), seed=seed + 1)
    y = measured(images, physics, torch.Generator().manual_seed(seed), count=1, sigma=sigma)
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=le.Matrix(matrix, (m,), IMAGE))
    posterior = estimator(y, sigma=sigma)
    mean, log_partition, weights = equivariant_mmse(images, physics.A, y[0], sigma, matrix, IMAGE)
    torch.testing.assert_close(posterior.mean[0], mean, rtol=0, atol=1e-7)  # cond(B) may be large
    assert posterior.log_partition[0].item() == pytest.approx(log_partition, rel=1e-7, abs=1e-7)
    assert int((weights > 0).any(0).sum()) <= int(estimator.admissible_shifts.sum())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_general_path_agrees(name, kind, generator):
    """The same B as a matrix declares nothing: its log-weights come from matrix products."""
    physics, images = FORWARD[name], training_set()
    B = onto_images(physics)[kind]
    y = measured(images, physics, generator)
    shape = tuple(y.shape[1:])
    undeclared = le.Matrix(as_matrix(B, shape), shape, IMAGE)
    got = le.EquivariantMMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    general = le.EquivariantMMSE(images, physics, pre_inverse=undeclared)
    assert "general" in general.plan.path
    for field, value in vars(general(y, sigma=SIGMA, reduction=le.PosteriorMoments())).items():
        torch.testing.assert_close(getattr(got, field), value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("physics", "B", "path"),
    [
        (le.Denoising(), None, "FFT"),
        (le.Inpainting(MASK), None, "FFT"),
        (le.Blur(BOX), le.Adjoint(le.Blur(BOX)), "FFT"),
        (le.Blur(BOX), le.PseudoInverse(le.Blur(BOX)), "FFT"),
        (le.Denoising(), le.Blur(GAUSSIAN), "FFT"),
        (FORWARD["fourier sampling"], le.Adjoint(FORWARD["fourier sampling"]), "FFT"),
        (FORWARD["fourier sampling"], le.PseudoInverse(FORWARD["fourier sampling"]), "FFT"),
        (le.Downsampling(3, GAUSSIAN), le.Adjoint(le.Downsampling(3, GAUSSIAN)), "FFT"),
        (le.Inpainting(MASK), le.EpsilonInverse(MASK, 1e-3), "FFT"),
        (le.Inpainting(MASK), le.PseudoInverse(le.Inpainting(MASK)), "general"),
        (le.Denoising(), le.Matrix(random_matrix(108, 108), IMAGE, IMAGE), "general"),
    ],
)
def test_the_path_follows_from_what_is_declared(physics, B, path):
    estimator = le.EquivariantMMSE(training_set(), physics, pre_inverse=B)
    assert path in estimator.plan.path
    assert estimator.plan.shifts == int(estimator.admissible_shifts.sum())
    assert str(estimator.plan) in repr(estimator)


class DeclaresItsGram:
    """Another library's blur: it declares its symbol and nothing else, and is too large for a dense matrix."""

    def __init__(self, blur):
        self.blur = blur
        self.A, self.A_adjoint, self.gram_symbol = blur.A, blur.A_adjoint, blur.gram_symbol


def test_another_librarys_declaration_suffices(generator):
    images = torch.rand(2, 1, 80, 70, generator=generator, dtype=torch.float64)
    blur = le.Blur(le.optics.gaussian_psf(1.0, 7))
    y = images[:1] + 0.5 * torch.randn(1, 1, 80, 70, generator=generator, dtype=torch.float64)
    got = le.EquivariantMMSE(images, le.Denoising(), pre_inverse=DeclaresItsGram(blur))
    wanted = le.EquivariantMMSE(images, le.Denoising(), pre_inverse=blur)
    assert "FFT" in got.plan.path
    torch.testing.assert_close(got(y, sigma=5.0).mean, wanted(y, sigma=5.0).mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(got(y, sigma=5.0).log_partition, wanted(y, sigma=5.0).log_partition, rtol=1e-9, atol=0)


class Declares:
    """Another library's operator: a matrix from images to images, and whatever is declared of it."""

    def __init__(self, matrix, **declared):
        self.matrix = le.Matrix(matrix, IMAGE, IMAGE)
        self.A, self.A_adjoint = self.matrix.A, self.matrix.A_adjoint
        vars(self).update(declared)


def test_a_diagonal_of_its_own_for_every_channel(generator):
    """Declared by another library, with signs, and zeros that some shifts preserve in both channels."""
    images, physics = training_set(), le.Denoising()
    diagonal = torch.rand(IMAGE, generator=generator, dtype=torch.float64) + 0.5
    diagonal[0, :, 1::3] = 0
    diagonal[1, ::2] *= -1
    B = Declares(torch.diag(diagonal.flatten()), diagonal=diagonal)
    y = measured(images, physics, generator)
    estimator = le.EquivariantMMSE(images, physics, B)
    assert isinstance(estimator._comparison, le.kernels.DiagonalComparison)
    assert estimator.plan.shifts == H * 3
    posterior = estimator(y, sigma=SIGMA)
    for i in range(len(y)):
        mean, log_partition, _ = equivariant_mmse(images, physics.A, y[i], SIGMA, B.matrix.matrix, IMAGE)
        torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=1e-10)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-9)


def test_a_symbol_with_rounding_errors(generator):
    """As an FFT of an autocorrelation has it: 1e-17, of either sign, where a singular blur has zeros."""
    exact = le.Blur(BOX).gram_symbol(H, W)
    symbol = exact.where(exact > 1e-20, 1e-17 * torch.randn(H, W, generator=generator, dtype=torch.float64))
    assert (symbol < 0).any()
    images, B = training_set(), Declares(dense(le.Blur(BOX).A, IMAGE), gram_symbol=lambda h, w: symbol)
    y = measured(images, le.Denoising(), generator)
    got = le.EquivariantMMSE(images, le.Denoising(), B)
    wanted = le.EquivariantMMSE(images, le.Denoising(), le.Blur(BOX))
    torch.testing.assert_close(got(y, sigma=SIGMA).mean, wanted(y, sigma=SIGMA).mean, rtol=0, atol=1e-10)
    a, b = (each.log_density(each(y, sigma=SIGMA), SIGMA) for each in (got, wanted))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"diagonal": torch.ones(IMAGE).double()}, "declares a diagonal"),
        ({"diagonal": torch.ones(W, H).double()}, "declares a diagonal"),
        ({"gram_symbol": lambda h, w: torch.ones(h, w).double()}, "declares a gram_symbol, but"),
        ({"gram_symbol": lambda h, w: torch.ones(h, w).to(torch.complex64)}, "real"),
        ({"gram_symbol": lambda h, w: torch.ones(w, h)}, r"shape \(9, 6\)"),
        ({"gram_symbol": lambda h, w: -torch.ones(h, w)}, "not negative"),
        ({"shift_period": 1}, "shifting u does not shift A u"),
        ({"shift_period": 3}, "shifting u does not shift A u"),
        ({"shift_period": 0}, "positive integer"),
    ],
)
@pytest.mark.parametrize("kind", [le.MMSE, le.EquivariantMMSE])
def test_false_declarations_are_refuted(kind, declared, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        kind(training_set(), le.Denoising(), Declares(random_matrix(108, 108), **declared))


def test_a_true_period_of_an_operator_between_images_is_believed(generator):
    """A striped gain commutes with shifts by its period, which another library may declare."""
    matrix = torch.diag((0.5 + STRIPES.double()).expand(IMAGE).flatten())
    images, y = training_set(), torch.rand(1, *IMAGE, generator=generator, dtype=torch.float64)
    declared = le.EquivariantMMSE(images, le.Denoising(), Declares(matrix, shift_period=3))
    plain = le.EquivariantMMSE(images, le.Denoising(), Declares(matrix))
    assert_same(declared(y, sigma=SIGMA), plain(y, sigma=SIGMA))


def test_a_convolution_after_zero_filling_is_circulant(generator):
    """O circ(s) Oᵀ = circ(s) O Oᵀ: no dense matrix, however large the images are."""
    images = torch.rand(2, 1, 64, 96, generator=generator, dtype=torch.float64)
    physics = le.FourierSampling(le.random_mask(64, 96, keep=0.4, generator=generator))
    y = physics.A(images[:1]) + 0.1 * torch.randn(1, 2, int(physics.mask.sum()), generator=generator)
    blurred = le.Compose(le.Blur(le.optics.gaussian_psf(0.5, 5)), le.Adjoint(physics))
    got = le.EquivariantMMSE(images, physics, blurred)
    wanted = le.EquivariantMMSE(images, physics, le.Adjoint(physics))
    torch.testing.assert_close(got(y, sigma=5.0).mean, wanted(y, sigma=5.0).mean, rtol=0, atol=1e-9)
    a, b = (each.log_density(each(y, sigma=5.0), 5.0) for each in (got, wanted))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=0)


def test_a_period_that_admits_more_shifts_than_it_says(generator):
    """A downsampled mean: shift_period 3 is declared, and every shift preserves Im B."""
    B = le.Compose(le.Blur(torch.full((H, W), 1 / N).double()), le.Adjoint(le.Downsampling(3)))
    images, physics = training_set(), le.Downsampling(3)
    y = measured(images, physics, generator)
    estimator = le.EquivariantMMSE(images, physics, B)
    assert estimator.admissible_shifts.all()
    for i in range(len(y)):
        mean, _, _ = equivariant_mmse(images, physics.A, y[i], SIGMA, as_matrix(B, y.shape[1:]), IMAGE)
        torch.testing.assert_close(estimator(y, sigma=SIGMA).mean[i], mean, rtol=0, atol=1e-10)


class Single:
    """Another library's singular blur, in float32 weights that take nothing else."""

    def A(self, x):
        return torch.nn.functional.conv2d(
            torch.nn.functional.pad(x, (0, 1, 0, 1), mode="circular"), torch.ones(1, 1, 2, 2)
        )

    def A_adjoint(self, y):
        return torch.nn.functional.conv2d(
            torch.nn.functional.pad(y, (1, 0, 1, 0), mode="circular"), torch.ones(1, 1, 2, 2)
        )


def test_rounding_of_single_precision_is_no_rank():
    """A 2×2 box on 8×8 pixels has rank 49; float32 leaves 1e-8 where its zeros are."""
    B = le.PseudoInverse(Single())
    assert le.operators.rank(B, (1, 8, 8)) == 49
    estimator = le.EquivariantMMSE(torch.rand(2, 1, 8, 8), le.Denoising(), B)
    assert estimator.admissible_shifts.all()


# ------------------------------------------------------------------------------------------------ S4.1: what it is


@pytest.mark.parametrize("name", ["denoising", "inpainting", "blur", "blur, singular box", "inpainting stripes"])
def test_commutes_with_every_shift_of_a_measurement(name, generator):
    """B = Id: shifting y shifts the estimate, whatever A is."""
    images = training_set()
    estimator = le.EquivariantMMSE(images, FORWARD[name])
    y = measured(images, FORWARD[name], generator, count=1)
    mean = estimator(y, sigma=SIGMA).mean
    shifts = [(i, j) for i in range(H) for j in range(W)]
    shifted = estimator(torch.cat([le.shift(y, g) for g in shifts]), sigma=SIGMA).mean
    torch.testing.assert_close(shifted, torch.cat([le.shift(mean, g) for g in shifts]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_commutes_with_every_admissible_shift(name, kind, generator):
    """As a function of v = B y: T_g v is B y' with y' = B⁺T_g v, for the shifts that preserve Im B."""
    images, physics = training_set(), FORWARD[name]
    B = onto_images(physics)[kind] or le.Denoising()
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=B)
    y = measured(images, physics, generator, count=1)
    mean = estimator(y, sigma=SIGMA).mean
    v, shifts = B.A(y), [tuple(g) for g in estimator.admissible_shifts.nonzero().tolist()]
    moved = estimator(B.A_dagger(torch.cat([le.shift(v, g) for g in shifts])), sigma=SIGMA).mean
    torch.testing.assert_close(moved, torch.cat([le.shift(mean, g) for g in shifts]), rtol=0, atol=1e-9)


def risk_gain(estimator, physics, B, direction, generator, draws=4000, sigma=0.7):
    """⟨x - x̂(v), ψ(v)⟩ summed over pixels, over draws of an image and of noise: mean in units of its standard error."""
    index = torch.randint(len(estimator.images), (draws,), generator=generator)
    y = physics.A(estimator.images)[index]
    y = y + sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    x_hat = estimator(y, sigma=sigma).mean
    inner = ((estimator.images[index] - x_hat) * direction(B.A(y))).flatten(1).sum(1)
    return float(inner.mean() / (inner.std() / draws**0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: (le.Denoising(), le.Denoising()),
        lambda mask: (le.Inpainting(mask), le.Denoising()),
        lambda mask: (le.Inpainting(mask), le.PseudoInverse(le.Inpainting(mask))),
        lambda mask: (le.Denoising(), le.EpsilonInverse(mask, 0.3)),
        lambda mask: (le.Downsampling(2), le.Adjoint(le.Downsampling(2))),
    ],
)
@pytest.mark.parametrize(
    "direction",
    [
        lambda v: v.sin(),
        lambda v: v * (v + le.shift(v, (1, 2))).tanh(),
        lambda v: (v.abs() < 0.2).double(),  # sees which pixels are hidden
        lambda v: v.flatten(1).square().sum(1)[:, None, None, None].cos().expand_as(v),
    ],
)
def test_no_equivariant_map_does_better(make, direction, generator):
    """The residual is orthogonal to every equivariant function of v, on the training distribution: least risk."""
    images = torch.rand(3, 2, 4, 6, generator=generator, dtype=torch.float64)
    physics, B = make(le.stripe_mask(4, 6, period=3, width=2))
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=B)
    assert abs(risk_gain(estimator, physics, B, direction, generator)) < 4


def test_an_unconstrained_map_does_better(generator):
    """The test above can fail: the residual is not orthogonal to functions that know where they are."""
    images = torch.rand(3, 2, 4, 6, generator=generator, dtype=torch.float64)
    estimator = le.EquivariantMMSE(images, le.Denoising())
    mean = images.mean(0) - images.mean()
    gain = risk_gain(estimator, le.Denoising(), le.Denoising(), lambda v: mean.expand_as(v), generator, sigma=2.0)
    assert gain > 20


def test_inpainting_with_the_pseudo_inverse_of_a_mask_without_symmetry_is_mmse(generator):
    images, physics = training_set(), le.Inpainting(MASK)
    y = measured(images, physics, generator)
    B = le.PseudoInverse(physics)
    equivariant, plain = (kind(images, physics, pre_inverse=B) for kind in (le.EquivariantMMSE, le.MMSE))
    assert equivariant.admissible_shifts.nonzero().tolist() == [[0, 0]]
    for field, value in vars(plain(y, sigma=SIGMA, reduction=le.PosteriorMoments())).items():
        got = getattr(equivariant(y, sigma=SIGMA, reduction=le.PosteriorMoments()), field)
        torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "B",
    [
        le.Blur(GAUSSIAN),
        le.PseudoInverse(le.Blur(GAUSSIAN)),
        le.Blur(torch.rand(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)),
        le.Tikhonov(le.Blur(GAUSSIAN), 0.01),
    ],
)
@pytest.mark.parametrize("name", ["denoising", "blur", "inpainting"])
def test_an_invertible_convolution_changes_nothing(name, B, generator):
    """Any invertible circular B gives the estimator of B = Id, to the last field (S4.2)."""
    images, physics = training_set(), FORWARD[name]
    y = measured(images, physics, generator)
    plain = le.EquivariantMMSE(images, physics)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    other = le.EquivariantMMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    for field, value in vars(plain).items():
        torch.testing.assert_close(getattr(other, field), value, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "B",
    [
        le.EpsilonInverse(MASK, 0.3),
        le.Matrix(torch.eye(108, dtype=torch.float64) + random_matrix(108, 108) / 30, IMAGE, IMAGE),
    ],
)
def test_an_invertible_map_that_is_no_convolution_changes_it(B, generator):
    images = training_set()
    y = measured(images, le.Denoising(), generator)
    plain = le.EquivariantMMSE(images, le.Denoising())(y, sigma=SIGMA).mean
    other = le.EquivariantMMSE(images, le.Denoising(), pre_inverse=B)
    assert other.admissible_shifts.all()
    assert (other(y, sigma=SIGMA).mean - plain).norm() > 1e-3 * plain.norm()


def test_colours_may_be_mixed_and_lost(generator):
    """B y may have any number of channels; a map of colours that is the same in every pixel commutes with shifts."""
    images = training_set()
    grey = le.Matrix(torch.kron(torch.tensor([[0.3, 0.7]]).double(), torch.eye(N).double()), IMAGE, (1, H, W))
    y = measured(images, grey, generator)
    posterior = le.EquivariantMMSE(images, grey)(y, sigma=SIGMA)
    for i in range(len(y)):
        mean, log_partition, _ = equivariant_mmse(
            images, grey.A, y[i], SIGMA, torch.eye(N, dtype=torch.float64), (1, H, W)
        )
        torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=1e-10)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-12)
    mix = torch.kron(torch.tensor([[1.0, 0.5], [0.2, 1.0]]).double(), torch.eye(N).double())
    mixed = le.EquivariantMMSE(images, le.Denoising(), pre_inverse=le.Matrix(mix, IMAGE, IMAGE))
    y = measured(images, le.Denoising(), generator)
    plain = le.EquivariantMMSE(images, le.Denoising())(y, sigma=SIGMA)
    torch.testing.assert_close(mixed(y, sigma=SIGMA).mean, plain.mean, rtol=0, atol=1e-10)


# ----------------------------------------------------------------------------- S4.3: augmentation against equivariance


def _orthogonal() -> torch.Tensor:
    return torch.linalg.qr(random_matrix(108, 108, seed=5)).Q


def _no_convolutions() -> tuple:
    """A = Oᵀ K and B = K' O: neither is a convolution, and B A and B Bᵀ are."""
    o, k, k2 = _orthogonal(), dense(le.Blur(GAUSSIAN).A, IMAGE), dense(FORWARD["blur, asymmetric"].A, IMAGE)
    return le.Matrix(o.T @ k, IMAGE, IMAGE), le.Matrix(k2 @ o, IMAGE, IMAGE)


SAME = {
    "denoising, Id": (le.Denoising(), None),
    "denoising, invertible blur": (le.Denoising(), le.Blur(GAUSSIAN)),
    "denoising, singular blur": (le.Denoising(), le.Blur(BOX)),
    "singular box blur, Id": (le.Blur(BOX), None),
    "singular box blur, adjoint": (le.Blur(BOX), le.Adjoint(le.Blur(BOX))),
    "singular box blur, pseudo-inverse": (le.Blur(BOX), le.PseudoInverse(le.Blur(BOX))),
    "asymmetric blur, tikhonov": (FORWARD["blur, asymmetric"], le.Tikhonov(FORWARD["blur, asymmetric"], 0.1)),
    "MRI, zero-filling": (FORWARD["fourier sampling"], le.Adjoint(FORWARD["fourier sampling"])),
    "no convolutions": _no_convolutions(),
    "nonlinear in every pixel": (le.Nonlinear(lambda x: x.square()), None),
}
DIFFERENT = {
    "inpainting, Id": (le.Inpainting(MASK), None),
    "inpainting, pseudo-inverse": (le.Inpainting(MASK), le.PseudoInverse(le.Inpainting(MASK))),
    "stripes, pseudo-inverse": (le.Inpainting(STRIPES), le.PseudoInverse(le.Inpainting(STRIPES))),
    "inpainting, epsilon-inverse": (le.Inpainting(MASK), le.EpsilonInverse(MASK, 0.3)),
    "denoising, a mask that is forgotten": (le.Denoising(), le.Inpainting(MASK)),
    "denoising, B Bᵀ not circulant": (le.Denoising(), le.Matrix(random_matrix(108, 108) / 10, IMAGE, IMAGE)),
    "orthogonal A, Id": (le.Matrix(_orthogonal(), IMAGE, IMAGE), None),  # B Bᵀ commutes, B A does not
    "downsampling, adjoint": (le.Downsampling(3), le.Adjoint(le.Downsampling(3))),
    "downsampling, pseudo-inverse": (le.Downsampling(3, GAUSSIAN), le.PseudoInverse(le.Downsampling(3, GAUSSIAN))),
}


def both(physics, B, generator):
    """The equivariant and the augmented estimator, y, and a σ at which at least three weights of one exceed 0.05."""
    images = training_set()
    augmented = le.MMSE(le.data.ShiftedImages(images), physics, pre_inverse=B)
    equivariant = le.EquivariantMMSE(images, physics, pre_inverse=B)
    for _ in range(20):
        mixture = torch.rand(3, generator=generator, dtype=torch.float64).softmax(0)[:, None, None, None] * images
        y = physics.A(mixture.sum(0, keepdim=True))
        y = y + 0.3 * torch.randn(y.shape, generator=generator, dtype=y.dtype)
        for sigma in torch.logspace(-1.5, 0.5, 9, dtype=torch.float64):
            weights = [e(y, sigma=float(sigma), reduction=le.TopSources(3)).weight[0] for e in (equivariant, augmented)]
            if max(float(w.min()) for w in weights) > 0.05:
                return equivariant, augmented, y, float(sigma)
    raise AssertionError("no query and σ make three weights count")


def commutes_with_shifts(matrix: torch.Tensor) -> bool:
    for g in ((0, 1), (1, 0)):  # they generate all
        t = dense(lambda x, g=g: le.shift(x, g), IMAGE)
        if (matrix @ t - t @ matrix).abs().max() > 1e-9:
            return False
    return True


def condition(physics, B) -> bool:
    """S4.3: B A and B Bᵀ commute with every shift."""
    if isinstance(physics, le.Nonlinear):
        return True
    shape = tuple(physics.A(torch.zeros(1, *IMAGE, dtype=torch.float64)).shape[1:])
    matrix = as_matrix(B, shape)
    return commutes_with_shifts(matrix @ dense(physics.A, IMAGE)) and commutes_with_shifts(matrix @ matrix.T)


@pytest.mark.parametrize("pair", SAME)
def test_augmentation_gives_the_equivariant_estimator(pair, generator):
    assert condition(*SAME[pair])
    equivariant, augmented, y, sigma = both(*SAME[pair], generator)
    a, e = (each(y, sigma=sigma, reduction=le.PosteriorMoments()) for each in (augmented, equivariant))
    for field, value in vars(e).items():
        torch.testing.assert_close(getattr(a, field), value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pair", DIFFERENT)
def test_augmentation_gives_another_estimator(pair, generator):
    assert not condition(*DIFFERENT[pair])
    equivariant, augmented, y, sigma = both(*DIFFERENT[pair], generator)
    e, a = (each(y, sigma=sigma).mean for each in (equivariant, augmented))
    assert (a - e).norm() > 1e-3 * e.norm()


def test_shifted_sources_are_the_same(generator):
    """An image of the augmented set is an image and a shift."""
    equivariant, augmented, y, sigma = both(*SAME["singular box blur, Id"], generator)
    e, a = (each(y, sigma=sigma, reduction=le.TopSources(5)) for each in (equivariant, augmented))
    image, pixel = augmented.images.sources(a.image)
    torch.testing.assert_close(a.weight, e.weight, rtol=0, atol=1e-10)
    assert torch.equal(image, e.image)
    assert torch.equal(pixel, e.pixel)


# ----------------------------------------------------------------------------------------------- densities and moments


def test_log_density_is_that_of_the_mixture(generator):
    images = training_set()
    y = measured(images, le.Denoising(), generator)
    estimator = le.EquivariantMMSE(images, le.Denoising())
    atoms = le.data.ShiftedImages(images)[:].flatten(1)
    components = torch.distributions.Normal(atoms[None], SIGMA)
    wanted = components.log_prob(y.flatten(1)[:, None]).sum(2).logsumexp(1) - math.log(D * N)
    torch.testing.assert_close(estimator.log_density(estimator(y, sigma=SIGMA), SIGMA), wanted, rtol=1e-12, atol=0)


def test_log_density_integrates_to_the_share_of_admissible_shifts():
    """Two measurements; B keeps one of them, so that one shift in two preserves Im B."""
    images = torch.rand(5, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    B = le.Matrix(torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64), (1, 1, 2), (1, 1, 2))
    estimator = le.EquivariantMMSE(images, le.Denoising(), pre_inverse=B)
    t = torch.linspace(-6, 7, 4001, dtype=torch.float64)
    y = torch.stack([t, 0 * t], dim=1).reshape(-1, 1, 1, 2)
    density = estimator.log_density(estimator(y, sigma=0.5), 0.5).exp()
    assert torch.trapezoid(density, t).item() == pytest.approx(1 / 2, abs=1e-9)


@pytest.mark.parametrize("name", ["denoising", "inpainting stripes", "downsampling by 3", "epsilon inverse"])
def test_moments_are_those_of_the_weights(name, generator):
    """Variance, entropy, largest weight and mean residual, from the weights and atoms of the reference."""
    physics, images = FORWARD[name], training_set()
    B = le.PseudoInverse(physics)
    y = measured(images, physics, generator, count=1)
    m = le.EquivariantMMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA, reduction=le.PosteriorMoments())
    mean, log_partition, weights = equivariant_mmse(images, physics.A, y[0], SIGMA, as_matrix(B, y.shape[1:]), IMAGE)
    atoms = le.data.ShiftedImages(images)[:].unflatten(0, (D, N))
    second = torch.einsum("dn,dnchw->chw", weights.flatten(1), atoms.square())
    torch.testing.assert_close(m.variance[0], second - mean.square(), rtol=0, atol=1e-10)
    flat = weights.flatten()
    assert m.entropy.item() == pytest.approx(entropy(flat), rel=1e-9)
    assert m.log_max_weight.item() == pytest.approx(math.log(flat.max()), rel=1e-9, abs=1e-12)
    r2 = -2 * SIGMA**2 * (flat[flat > 0].log() + log_partition)
    assert m.mean_squared_residual.item() == pytest.approx(float((flat[flat > 0] * r2).sum()), rel=1e-9)


def test_tweedie(generator):
    """A x̂ = y + σ² ∇ log p_y(y), with the augmented set as prior: A = B = Id, by autograd."""
    images = training_set()
    y = measured(images, le.Denoising(), generator).requires_grad_()
    posterior = le.EquivariantMMSE(images, le.Denoising())(y, sigma=SIGMA)
    (gradient,) = torch.autograd.grad(posterior.log_partition.sum(), y)
    torch.testing.assert_close(posterior.mean, y + SIGMA**2 * gradient, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["denoising", "inpainting stripes", "downsampling by 3", "epsilon inverse"])
def test_every_number_has_a_gradient(name, generator):
    physics, images = FORWARD[name], training_set()
    y = measured(images, physics, generator).requires_grad_()
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=le.PseudoInverse(physics), chunk_size=2)
    for field, value in vars(estimator(y, sigma=SIGMA, reduction=le.PosteriorMoments())).items():
        if field != "error_bound":
            (gradient,) = torch.autograd.grad(value.sum(), y, retain_graph=True)
            assert gradient.isfinite().all(), field
            assert gradient.abs().max() > 0, field


# ------------------------------------------------------------------------------------------- batches, chunks, precision

FOUR = {name: FORWARD[name] for name in ("denoising", "inpainting stripes", "downsampling by 3", "epsilon inverse")}
"""One for each comparison: circular, rows, circular on a coarse grid, diagonal."""
REDUCTIONS = [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(7), le.TopImages(2)]


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_equals_one_by_one_each_with_its_own_sigma(name, reduction, generator):
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator, count=4)
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=le.PseudoInverse(physics))
    assert_batch_equals_one_by_one(estimator, y, sigma, reduction)


@pytest.mark.parametrize("name", FOUR)
def test_chunks_of_images_and_blocks_of_queries_do_not_change_the_answer(name, generator):
    """With the least memory, every image is a chunk of its own, and not all queries are together."""
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator, count=9)
    arguments = images, physics, le.PseudoInverse(physics)
    estimator = le.EquivariantMMSE(*arguments)
    whole = {reduction: estimator(y, sigma=SIGMA, reduction=reduction) for reduction in REDUCTIONS[1:]}
    for chunking in ({"chunk_size": 1}, {"chunk_size": 2}, {"chunk_size": 99}, LEAST):
        parts = chunked(le.EquivariantMMSE, *arguments, **chunking)
        if "memory_limit" in chunking:
            assert parts._queries_at_once < len(y)
        for reduction, wanted in whole.items():
            assert_same(parts(y, sigma=SIGMA, reduction=reduction), wanted)


@pytest.mark.parametrize("name", FOUR)
def test_an_expanded_query_computes_its_distances_once(name, generator, monkeypatch):
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator, count=1)
    sigma = torch.logspace(-1, 1, 7, dtype=torch.float64)
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=le.PseudoInverse(physics))
    wanted = estimator(y.repeat(7, *[1] * (y.ndim - 1)), sigma=sigma, reduction=le.PosteriorMoments())
    asked, kind = [], type(estimator._comparison)
    original = kind.squared_distances
    monkeypatch.setattr(kind, "squared_distances", lambda self, q, k: asked.append(len(q)) or original(self, q, k))
    got = estimator(y.expand(7, *y.shape[1:]), sigma=sigma, reduction=le.PosteriorMoments())
    assert asked == [1]
    assert_same(got, wanted)


@pytest.mark.parametrize("name", FOUR)
def test_images_made_on_demand_give_the_same_answer(name, generator):
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator)
    for reduction in REDUCTIONS:
        got = le.EquivariantMMSE(LazyImages(images), physics, pre_inverse=le.Adjoint(physics), chunk_size=2)
        wanted = le.EquivariantMMSE(images, physics, pre_inverse=le.Adjoint(physics))
        assert_same(got(y, sigma=SIGMA, reduction=reduction), wanted(y, sigma=SIGMA, reduction=reduction))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*FOUR, "blur", "matrix, wide", "fourier sampling"])
def test_finite_and_within_the_data_at_any_sigma(name, dtype, generator):
    images, physics = training_set(dtype=dtype), FORWARD[name]
    y = measured(images, physics, generator, count=1, sigma=0.1)
    sigma = torch.tensor([10.0**e for e in range(-6, 7)], dtype=torch.float64)
    for B in onto_images(physics).values():
        estimator = le.EquivariantMMSE(images, physics, pre_inverse=B, chunk_size=2)
        m = estimator(y.expand(13, *y.shape[1:]), sigma=sigma, reduction=le.PosteriorMoments())
        for field, value in vars(m).items():
            assert value.isfinite().all(), (B, field)
        slack = 1e-6 if dtype == torch.float32 else 1e-14
        assert (m.mean >= images.amin((0, 2, 3))[:, None, None] - slack).all()
        assert (m.mean <= images.amax((0, 2, 3))[:, None, None] + slack).all()
        assert (m.entropy >= -slack).all()
        assert (m.entropy <= math.log(D * N) + 1e-5).all()


def test_small_sigma_finds_the_shift_and_large_sigma_averages_all(generator):
    images = training_set()
    y = le.shift(images[1:2], (2, 5)) + 1e-3
    for dtype in (torch.float32, torch.float64):
        estimator = le.EquivariantMMSE(images.to(dtype), le.Denoising())
        near = estimator(y.to(dtype), sigma=1e-5)
        torch.testing.assert_close(near.mean, le.shift(images[1:2], (2, 5)).to(dtype), rtol=0, atol=0)
        top = estimator(y.to(dtype), sigma=1e-5, reduction=le.TopSources(1))
        assert (top.image.item(), divmod(top.pixel.item(), W), top.weight.item()) == (1, (2, 5), 1.0)
        far = estimator(y.to(dtype), sigma=1e6)
        colour = images.mean((0, 2, 3))[None, :, None, None].expand_as(y).to(dtype)
        torch.testing.assert_close(far.mean, colour, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-4, 0.05, 1.5])
def test_periodic_images_tie(dtype, sigma, generator):
    """An image of period (2, 3): nine shifts give one image each; ties go to the lowest, to the last bit."""
    tile = torch.rand(1, C, 2, 3, generator=generator, dtype=dtype)
    images = torch.cat([training_set(dtype=dtype)[:2], tile.repeat(1, 1, H // 2, W // 3)])
    y = le.shift(images[2:], (1, 2)) + 0.01 * torch.randn(1, *IMAGE, generator=generator, dtype=dtype)
    top = le.EquivariantMMSE(images, le.Denoising())(y, sigma=sigma, reduction=le.TopSources(9))
    assert top.image.tolist() == [[2] * 9]
    equal = [i * W + j for i in (1, 3, 5) for j in (2, 5, 8)]
    assert top.pixel.tolist() == [equal]
    assert (top.weight == top.weight[:, :1]).all()
    first = le.EquivariantMMSE(images, le.Denoising())(y, sigma=sigma, reduction=le.TopSources(1))
    assert first.pixel.item() == equal[0]


@pytest.mark.parametrize("name", ["inpainting stripes", "epsilon inverse of stripes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_periodic_images_tie_behind_a_periodic_diagonal(name, dtype, generator):
    """Shifts that change neither b nor the image are equal atoms: listed in order, with one weight."""
    B = le.Inpainting(STRIPES) if name == "inpainting stripes" else le.EpsilonInverse(STRIPES, 0.1)
    for _ in range(10):
        images = torch.rand(1, C, 2, 3, generator=generator, dtype=dtype).repeat(1, 1, H // 2, W // 3)
        y = images + 0.05 * torch.randn(1, *IMAGE, generator=generator, dtype=dtype)
        top = le.EquivariantMMSE(images, le.Denoising(), B)(y, sigma=0.2, reduction=le.TopSources(9))
        assert top.pixel.tolist() == [[i * W + j for i in (0, 2, 4) for j in (0, 3, 6)]]
        assert (top.weight == top.weight[:, :1]).all()


def test_a_constant_image_and_equal_images(generator):
    """All shifts of a constant image are one atom, N times; an image twice lists the lower index first."""
    images = training_set()
    images = torch.cat([images, images[1:2], torch.full((1, *IMAGE), 0.5, dtype=torch.float64)])
    y = le.shift(images[1:2], (4, 1)) + 0.01
    top = le.EquivariantMMSE(images, le.Denoising(), chunk_size=2)(y, sigma=0.5, reduction=le.TopSources(2))
    assert top.image.tolist() == [[1, 3]]
    assert top.pixel.tolist() == [[4 * W + 1] * 2]
    y = images[4:] + 0.01
    top = le.EquivariantMMSE(images, le.Denoising())(y, sigma=0.1, reduction=le.TopSources(3))
    assert top.image.tolist() == [[4] * 3]
    assert top.pixel.tolist() == [[0, 1, 2]]


def test_one_image(generator):
    images = training_set(count=1)
    y = measured(images, le.Denoising(), generator)
    posterior = le.EquivariantMMSE(images, le.Denoising())(y, sigma=SIGMA)
    for i in range(len(y)):
        mean, log_partition, _ = equivariant_mmse(
            images, le.Denoising().A, y[i], SIGMA, torch.eye(108, dtype=torch.float64), IMAGE
        )
        torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=1e-10)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (2, 5, 1), (3, 2, 2)])
def test_thin_images(shape, generator):
    images = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    y = images[:2] + torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    posterior = le.EquivariantMMSE(images, le.Denoising())(y, sigma=0.5)
    for i in range(2):
        mean, log_partition, _ = equivariant_mmse(
            images, le.Denoising().A, y[i], 0.5, torch.eye(math.prod(shape), dtype=torch.float64), shape
        )
        torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=1e-10)
        assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-12, abs=1e-12)


def test_distances_are_recomputed_only_where_that_helps(generator, monkeypatch):
    """Where r² is as large as the norms, differences round as much as products do, however small sigma is beside r."""
    images = torch.nn.functional.avg_pool2d(torch.rand(20, 3, 40, 40, generator=generator), 9, 1)
    x, noise = images[:1], torch.randn(1, 3, 32, 32, generator=generator)
    recomputed, kind = [], le.kernels.CircularComparison
    original = kind.exact
    monkeypatch.setattr(kind, "exact", lambda *given: recomputed.append(len(given[-1])) or original(*given))
    estimator = le.EquivariantMMSE(images, le.Denoising())
    for sigma in (0.5, 2.0, 8.0):
        estimator(x + sigma * noise, sigma=sigma)
    assert not recomputed
    estimator(x + 0.001 * noise, sigma=0.001)
    assert 1 <= sum(recomputed) < 100
    recomputed.clear()
    sigma = torch.tensor([0.001, 0.5, 8.0])  # each query by its own sigma and its own size
    estimator(x + sigma[:, None, None, None] * noise, sigma=sigma)
    estimator(torch.cat([1e3 * x, x + 0.5 * noise]), sigma=0.5)
    assert sum(recomputed) < 100


@pytest.mark.parametrize("name", ["denoising", "blur", "epsilon inverse", "inpainting stripes"])
def test_float32_is_close_to_float64(name, generator):
    """Bright images of real size, a small sigma: what centring and refinement are for."""
    side = 28
    images = 0.8 + 0.2 * torch.rand(20, 1, side, side, generator=generator, dtype=torch.float64)
    physics = {
        "denoising": le.Denoising(),
        "blur": le.Blur(le.optics.gaussian_psf(1.0, 7)),
        "epsilon inverse": le.EpsilonInverse(le.center_mask(side, side, side=9), 1e-3),
        "inpainting stripes": le.Inpainting(le.stripe_mask(side, side, period=4)),
    }[name]
    B = le.PseudoInverse(physics)
    sigma = 0.02
    y = physics.A(le.shift(images[:2], (3, 4)))
    y = y + sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    double = le.EquivariantMMSE(images, physics, pre_inverse=B)(y, sigma=sigma)
    single = le.EquivariantMMSE(images.float(), physics, pre_inverse=B)(y.float(), sigma=sigma)
    torch.testing.assert_close(single.log_partition.double(), double.log_partition, rtol=1e-5, atol=2e-2)
    assert (le.metrics.psnr(single.mean.double(), double.mean) > 80).all()


def test_the_epsilon_inverse_keeps_its_digits(generator):
    """ε = 1e-3: sums of squares are not spread by an FFT, so r² near its smallest keeps ten digits."""
    images, physics = training_set(), le.Inpainting(MASK)
    y = measured(images, physics, generator, count=1, sigma=0.1)
    B = le.EpsilonInverse(MASK, 1e-3)
    got = le.EquivariantMMSE(images, physics, pre_inverse=B)(y, sigma=0.1)
    mean, log_partition, _ = equivariant_mmse(images, physics.A, y[0], 0.1, dense(B.A, IMAGE), IMAGE)
    torch.testing.assert_close(got.mean[0], mean, rtol=0, atol=1e-9)
    assert got.log_partition.item() == pytest.approx(log_partition, rel=1e-9)


def test_nonlinear_measurements(generator):
    images, physics = training_set(), le.Nonlinear(lambda x: x.square().sum(1, keepdim=True))
    B = le.Matrix(random_matrix(108, N) / 10, (1, H, W), IMAGE)
    y = physics.A(images[:2]) + torch.randn(2, 1, H, W, generator=generator, dtype=torch.float64)
    for pre_inverse, matrix, shape in [(None, torch.eye(N).double(), (1, H, W)), (B, B.matrix, IMAGE)]:
        posterior = le.EquivariantMMSE(images, physics, pre_inverse=pre_inverse)(y, sigma=SIGMA)
        for i in range(len(y)):
            mean, log_partition, _ = equivariant_mmse(images, physics.A, y[i], SIGMA, matrix, shape)
            torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=1e-10)
            assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-9)


@pytest.mark.parametrize("name", FORWARD)
def test_estimators_travel_to_other_processes(name, generator):
    images, physics = training_set(), FORWARD[name]
    y = measured(images, physics, generator)
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=le.PseudoInverse(physics))
    copied = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(copied(y, sigma=SIGMA).mean, estimator(y, sigma=SIGMA).mean)


def test_calls_do_not_mutate(generator):
    images, physics = training_set(), FORWARD["blur"]
    y = measured(images, physics, generator)
    estimator = le.EquivariantMMSE(images, physics, pre_inverse=le.PseudoInverse(physics))
    kept, before = y.clone(), images.clone()
    first, second = estimator(y, sigma=1.0), estimator(y, sigma=1.0)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(y, kept)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", FOUR)
def test_scaling_laws(name, generator):
    """Scaling images, y and σ scales x̂; so does nothing else: scaling B, permuting the data; doubling them is ln 2."""
    images, physics = training_set(), FOUR[name]
    y = measured(images, physics, generator)
    B, moments = le.PseudoInverse(physics), le.PosteriorMoments()
    plain = le.EquivariantMMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA, reduction=moments)
    scaled = le.EquivariantMMSE(images / 2, physics, pre_inverse=B)(y / 2, sigma=SIGMA / 2, reduction=moments)
    torch.testing.assert_close(2 * scaled.mean, plain.mean, rtol=1e-11, atol=1e-11)
    tripled = le.Compose(le.Matrix(3 * torch.eye(108, dtype=torch.float64), IMAGE, IMAGE), B)
    other = le.EquivariantMMSE(images, physics, pre_inverse=tripled)(y, sigma=SIGMA, reduction=moments)
    torch.testing.assert_close(other.mean, plain.mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(other.log_partition, plain.log_partition, rtol=1e-9, atol=1e-10)
    doubled = le.EquivariantMMSE(images.flip(0).repeat(2, 1, 1, 1), physics, pre_inverse=B)
    doubled = doubled(y, sigma=SIGMA, reduction=moments)
    for field, change in [("log_partition", 1), ("entropy", 1), ("log_max_weight", -1), ("mean", 0), ("variance", 0)]:
        wanted = getattr(plain, field) + change * math.log(2)
        torch.testing.assert_close(getattr(doubled, field), wanted, rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------ bad input

IMAGES = training_set()
Y = torch.rand(2, *IMAGE, dtype=torch.float64)
SAMPLING = FORWARD["fourier sampling"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: le.EquivariantMMSE(IMAGES, le.Downsampling(3)),
            r"image of 6 × 9 pixels.*Downsampling.*\(b, 2, 2, 3\)",
        ),
        (lambda: le.EquivariantMMSE(IMAGES, SAMPLING), r"image of 6 × 9 pixels.*Adjoint\(physics\)"),
        (
            lambda: le.EquivariantMMSE(IMAGES, le.Denoising(), pre_inverse=le.Downsampling(3)),
            "pre_inverse Downsampling",
        ),
        (
            lambda: le.EquivariantMMSE(
                IMAGES, le.Denoising(), pre_inverse=le.Matrix(torch.eye(108).double(), IMAGE, (C, W, H))
            ),
            r"6 × 9 pixels.*\(b, 2, 9, 6\)",
        ),
        (
            lambda: le.EquivariantMMSE(
                IMAGES, le.Denoising(), pre_inverse=le.Matrix(torch.eye(108).double(), IMAGE, (108,))
            ),
            r"\(b, 108\)",
        ),
        (lambda: le.EquivariantMMSE(IMAGES, le.Inpainting(MASK.T)), "9 × 6"),
        (lambda: le.EquivariantMMSE(IMAGES, le.Denoising(), pre_inverse=le.Inpainting(MASK.T)), "must take.*9 × 6"),
        (lambda: le.EquivariantMMSE(IMAGES, le.Denoising(), pre_inverse=le.Adjoint(SAMPLING)), "must take"),
        (lambda: le.EquivariantMMSE(IMAGES[0], le.Denoising()), r"\(D, c, h, w\)"),
        (lambda: le.EquivariantMMSE(IMAGES / 0, le.Denoising()), "finite"),
        (lambda: le.EquivariantMMSE(IMAGES, le.Denoising(), chunk_size=0), "chunk_size"),
        (lambda: le.EquivariantMMSE(IMAGES, le.Denoising())(Y.mT, sigma=1.0), "shape of physics"),
        (lambda: le.EquivariantMMSE(IMAGES, le.Denoising())(Y, sigma=0.0), "positive"),
        (
            lambda: le.EquivariantMMSE(IMAGES, le.Denoising())(Y, sigma=1.0, tolerance=0.1, reduction=le.TopSources(1)),
            "PosteriorMean",
        ),
    ],
)
def test_bad_input(call, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        call()


def test_a_nonlinear_pre_inverse():
    with pytest.raises(TypeError, match="linear"):
        le.EquivariantMMSE(IMAGES, le.Denoising(), pre_inverse=le.Nonlinear(torch.square))


def test_a_library_that_shifts_too(generator):
    """deepinv's operators come without declarations: found from their matrix."""
    physics = LikeDeepinv(MASK)
    y = measured(IMAGES, physics, generator, count=1)
    posterior = le.EquivariantMMSE(IMAGES, physics, pre_inverse=le.PseudoInverse(physics))(y, sigma=SIGMA)
    B = torch.linalg.pinv(dense(physics.A, IMAGE), rtol=1e-10)
    mean, _, _ = equivariant_mmse(IMAGES, physics.A, y[0], SIGMA, B, IMAGE)
    torch.testing.assert_close(posterior.mean[0], mean, rtol=0, atol=1e-6)


class TestTheTestsFail:
    """The formulas of the published slides, and other slips, fail the laws above."""

    def problem(self, generator, physics, B):
        y = measured(IMAGES, physics, generator, count=1)
        matrix = as_matrix(B, y.shape[1:])
        right = le.EquivariantMMSE(IMAGES, physics, pre_inverse=B)(y, sigma=SIGMA).mean[0]
        return y, matrix, right

    def test_without_the_support_condition(self, generator):
        """All shifts, as the slides have it, with the pseudo-inverse of a mask."""
        physics = le.Inpainting(MASK)
        B = le.PseudoInverse(physics)
        y, matrix, right = self.problem(generator, physics, B)
        everywhere = [(i, j) for i in range(H) for j in range(W)]
        wrong, _, _ = equivariant_mmse(IMAGES, physics.A, y[0], SIGMA, matrix, IMAGE, shifts=everywhere)
        assert (wrong - right).norm() > 1e-2 * right.norm()

    def test_a_shift_before_the_operator(self, generator):
        """T_g acts after B A: shifting the image before A is the augmented estimator."""
        physics = le.Inpainting(MASK)
        y, _, right = self.problem(generator, physics, None)
        wrong, _, _ = mmse(le.data.ShiftedImages(IMAGES)[:], physics.A, y[0], SIGMA)
        assert (wrong - right).norm() > 1e-2 * right.norm()

    def test_the_inverse_shift(self, generator):
        """Correlating the wrong way round shifts atoms by -g."""
        y, _, right = self.problem(generator, le.Denoising(), None)
        weights = weights_of(le.EquivariantMMSE(IMAGES, le.Denoising()), y, SIGMA)[0].unflatten(1, (H, W))
        wrong = sum(
            weights[d, i, j] * le.shift(IMAGES[d], (-i, -j)) for d in range(D) for i in range(H) for j in range(W)
        )
        assert (wrong - right).norm() > 1e-2 * right.norm()
