"""Every linear operator and pre-inverse against its dense matrix: adjoint, pseudo-inverse, declarations, batches."""

import pytest
import torch

import lemmse as le
from lemmse.operators import GramWhitener, as_operator, dense_matrix, gram_whitener, rank, row_space_projector
from operators_registry import BOX, CASES, FORWARD, GAUSSIAN, IMAGE, MASK, C, Case, H, LikeDeepinv, W, random_matrix
from reference import dense

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def inputs(case: Case, count: int, generator, dtype=torch.float64):
    return torch.randn(count, *case.input_shape, generator=generator, dtype=dtype)


def outputs_like(case: Case, count: int, generator):
    shape = case.operator.A(torch.zeros(1, *case.input_shape, dtype=torch.float64)).shape[1:]
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def adjoint_defect(operator, x, y) -> float:
    """|⟨A x, y⟩ - ⟨x, Aᵀ y⟩| relative to ‖Ax‖ ‖y‖."""
    Ax = operator.A(x)
    return float(((Ax * y).sum() - (x * operator.A_adjoint(y)).sum()).abs() / (Ax.norm() * y.norm()))


def penrose_defects(A: torch.Tensor, P: torch.Tensor) -> list[float]:
    """The four Moore-Penrose identities, relative."""
    pairs = [(A @ P @ A, A), (P @ A @ P, P), ((A @ P).T, A @ P), ((P @ A).T, P @ A)]
    return [float((left - right).norm() / right.norm()) for left, right in pairs]


@cases
def test_adjoint(case, generator):
    x, y = inputs(case, 3, generator), outputs_like(case, 3, generator)
    assert adjoint_defect(case.operator, x, y) < 1e-12


@cases
def test_equals_its_dense_matrix(case, generator):
    x = inputs(case, 3, generator)
    A = dense(case.operator.A, case.input_shape)
    torch.testing.assert_close(case.operator.A(x).flatten(1), x.flatten(1) @ A.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(dense_matrix(case.operator, case.input_shape), A, rtol=1e-10, atol=1e-10)


@cases
def test_moore_penrose(case):
    A = dense(case.operator.A, case.input_shape)
    output_shape = case.operator.A(torch.zeros(1, *case.input_shape, dtype=torch.float64)).shape[1:]
    P = dense(case.operator.A_dagger, output_shape)
    assert max(penrose_defects(A, P)) < 1e-9


@cases
def test_rank_and_row_space(case, generator):
    A = dense(case.operator.A, case.input_shape)
    s = torch.linalg.svdvals(A)
    gap = (s > 1e-9 * s.max()) & (s < 1e-6 * s.max())
    assert not gap.any(), "this operator hangs on a rank decision: choose another"
    assert rank(case.operator, case.input_shape) == int((s > 1e-8 * s.max()).sum())
    x = inputs(case, 3, generator)
    projector = torch.linalg.pinv(A, rtol=1e-8) @ A
    projected = row_space_projector(case.operator, case.input_shape)(x)
    torch.testing.assert_close(projected.flatten(1), x.flatten(1) @ projector.T, rtol=0, atol=1e-10)


@cases
def test_whitener_of_a_circulant_gram(case, generator):
    """(B Bᵀ)^{+1/2} B, by the eigenvectors of B Bᵀ, wherever it is declared that they are Fourier modes."""
    whiten = gram_whitener(case.operator, case.input_shape)
    output = case.operator.A(inputs(case, 1, generator))
    declared = output.ndim == 4 and case.operator.gram_symbol(*output.shape[-2:]) is not None
    assert (whiten is not None) == declared
    if whiten is None:
        return
    B = dense(case.operator.A, case.input_shape)
    values, vectors = torch.linalg.eigh(B @ B.T)
    kept = values > 1e-14 * values.max()
    root = (vectors[:, kept] / values[kept].sqrt()) @ vectors[:, kept].T
    x = inputs(case, 2, generator)
    torch.testing.assert_close(whiten(x).flatten(1), x.flatten(1) @ (root @ B).T, rtol=0, atol=1e-7)
    symbol = case.operator.gram_symbol(*output.shape[-2:])
    undeclared = GramWhitener(case.operator, symbol)
    torch.testing.assert_close(undeclared(x), whiten(x), rtol=0, atol=1e-7)


@cases
def test_declared_diagonal(case):
    diagonal = case.operator.diagonal
    if diagonal is not None:
        A = dense(case.operator.A, case.input_shape)
        full = torch.diag(diagonal.double().expand(case.input_shape).reshape(-1))
        torch.testing.assert_close(A, full, rtol=1e-12, atol=1e-12)


@cases
def test_declared_shift_period(case, generator):
    period = case.operator.shift_period
    if period is None:
        return
    x = inputs(case, 1, generator)
    y = case.operator.A(x)
    ratio = (x.shape[-2] / y.shape[-2], x.shape[-1] / y.shape[-1])
    for g in [(1, 0), (0, 1), (1, 2)]:
        fine, coarse = (g[0] * period, g[1] * period), g
        shift_in, shift_out = (fine, coarse) if ratio[0] >= 1 else (coarse, fine)
        shifted = case.operator.A(le.shift(x, shift_in))
        torch.testing.assert_close(shifted, le.shift(y, shift_out), rtol=1e-10, atol=1e-10)


def assert_gram_symbol_is_true(operator, input_shape, output_shape):
    """Where a symbol is declared, B Bᵀ is the circulant matrix with that symbol, in every column and every channel."""
    symbol = operator.gram_symbol(*output_shape[1:])
    if symbol is not None:
        A = dense(operator.A, input_shape)
        circulant = dense(lambda e: torch.fft.ifft2(torch.fft.fft2(e) * symbol).real, output_shape)
        torch.testing.assert_close(A @ A.T, circulant, rtol=1e-9, atol=1e-9)


@cases
def test_declared_gram_symbol(case):
    output_shape = case.operator.A(torch.zeros(1, *case.input_shape, dtype=torch.float64)).shape[1:]
    if len(output_shape) == 3:
        assert_gram_symbol_is_true(case.operator, case.input_shape, output_shape)


@cases
def test_a_batch_equals_one_by_one(case, generator):
    x, y = inputs(case, 4, generator), outputs_like(case, 4, generator)
    for apply, batch in [(case.operator.A, x), (case.operator.A_adjoint, y), (case.operator.A_dagger, y)]:
        one_by_one = torch.cat([apply(batch[i : i + 1]) for i in range(len(batch))])
        torch.testing.assert_close(apply(batch), one_by_one, rtol=1e-12, atol=1e-12)


@cases
def test_dtype_is_kept(case, generator):
    x = inputs(case, 2, generator)
    y = case.operator.A(x)
    assert y.dtype == torch.float64
    y32 = case.operator.A(x.float())
    assert y32.dtype == torch.float32
    torch.testing.assert_close(y32.double(), y, rtol=1e-3, atol=1e-3 * float(y.abs().max()))
    assert case.operator.A_dagger(y32).dtype == torch.float32
    assert case.operator.A_adjoint(y32).dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["blur", "inpainting", "fourier sampling", "two blurs", "two masks", "epsilon inverse"]
)
def test_declarations_are_made_where_they_can_be(name):
    physics = FORWARD[name]
    circulant = name in ("blur", "two blurs")
    assert (physics.shift_period == 1) == circulant
    assert (physics.diagonal is not None) == (name in ("inpainting", "two masks", "epsilon inverse"))
    for B in (le.Adjoint(physics), le.PseudoInverse(physics), le.Tikhonov(physics, 0.1)):
        assert (B.gram_symbol(H, W) is not None) == (circulant or name == "fourier sampling")


def test_compose_of_blurs_and_of_masks_needs_no_dense_matrix():
    """Far above DENSE_LIMIT the structured compositions still have a pseudo-inverse, and the others say the size."""
    y = torch.rand(1, 3, 128, 128)
    mask = le.random_mask(128, 128, keep=0.5)
    blurs = le.Compose(le.Blur(GAUSSIAN), le.Blur(BOX))
    assert blurs.A_dagger(y).isfinite().all()
    assert le.Compose(le.Inpainting(mask), le.Inpainting(mask)).A_dagger(y).isfinite().all()
    assert le.Compose(le.Downsampling(2), le.Blur(GAUSSIAN)).A_dagger(y).isfinite().all()
    with pytest.raises(ValueError, match="49152 × 49152"):
        le.Compose(le.Inpainting(mask), le.Blur(GAUSSIAN)).A_dagger(y)


def test_pseudo_inverse_of_a_composition_is_not_the_product_of_pseudo_inverses(generator):
    blur, mask = le.Blur(GAUSSIAN), le.Inpainting(MASK)
    y = torch.randn(1, *IMAGE, generator=generator, dtype=torch.float64)
    product = blur.A_dagger(mask.A_dagger(y))
    assert (le.Compose(mask, blur).A_dagger(y) - product).norm() > 1e-2 * product.norm()


def test_another_librarys_operator_is_accepted_unchanged(generator):
    physics = LikeDeepinv(MASK)
    operator = as_operator(physics)
    A = dense(operator.A, IMAGE)
    P = dense(le.PseudoInverse(physics).A, IMAGE)
    assert max(penrose_defects(A, P)) < 1e-9


class WrongAdjoint(LikeDeepinv):
    """The shift goes the same way twice."""

    def A_adjoint(self, y, **kwargs):
        return self.A(y)


class Gray:
    """Another library's mean of the channels: it commutes with shifts and says so, but it is not normal."""

    shift_period, diagonal = 1, None

    def A(self, x):
        return x.sum(1, keepdim=True)

    def A_adjoint(self, y):
        return y.expand(-1, 3, -1, -1)

    def gram_symbol(self, h, w):
        return torch.full((h, w), 3.0, dtype=torch.float64)


def test_a_declared_symbol_is_not_passed_on_where_channels_mix():
    """For B = Aᵀ the matrix B Bᵀ couples the channels: no symbol may be claimed for it."""
    composed = le.Compose(le.Denoising(), Gray())
    for B in (le.Adjoint(Gray()), le.PseudoInverse(Gray()), le.Tikhonov(Gray(), 0.1), le.Adjoint(composed)):
        assert B.gram_symbol(H, W) is None
        assert rank(B, (1, H, W)) == H * W


def test_a_product_that_vanishes_has_rank_zero(generator):
    """The mean is blurred to a constant, then the constant is removed: only rounding is left, and it has no rank."""
    n = H * W
    centring = le.Matrix(torch.eye(n, dtype=torch.float64) - 1 / n, (1, H, W), (1, H, W))
    nothing = le.Compose(centring, le.Blur(torch.full((H, W), 1 / n, dtype=torch.float64)))
    assert rank(nothing, (1, H, W)) == 0
    y = torch.rand(2, 1, H, W, generator=generator, dtype=torch.float64)
    assert (nothing.A_dagger(y) == 0).all()


def test_adding_noise_in_place_spares_the_image():
    x = torch.rand(1, *IMAGE)
    y, kept = le.Denoising().A(x), x.clone()
    y += 1
    assert torch.equal(x, kept)


def test_nonlinear_is_forward_only(generator):
    physics = le.Nonlinear(torch.square)
    x = torch.rand(2, *IMAGE, generator=generator)
    torch.testing.assert_close(physics.A(x), x**2)
    for make in (le.Adjoint, le.PseudoInverse, lambda p: le.Tikhonov(p, 1.0), lambda p: le.Compose(le.Denoising(), p)):
        with pytest.raises(TypeError, match="linear"):
            make(physics)


def test_fourier_sampling_layout(generator):
    """Real parts first, then imaginary parts, sampled frequencies row-major, unitary DFT."""
    mask = torch.zeros(H, W)
    mask[0, 1], mask[2, 0] = 1, 1
    x = torch.rand(1, C, H, W, generator=generator, dtype=torch.float64)
    spectrum = torch.fft.fft2(x[0]) / (H * W) ** 0.5
    y = le.FourierSampling(mask).A(x)[0]
    wanted = [spectrum[:, 0, 1].real, spectrum[:, 2, 0].real, spectrum[:, 0, 1].imag, spectrum[:, 2, 0].imag]
    torch.testing.assert_close(y[:C], torch.stack(wanted[:2], 1))
    torch.testing.assert_close(y[C:], torch.stack(wanted[2:], 1))


def test_blur_is_a_circular_convolution_centred_on_the_kernel():
    psf = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0], [0.0, 4.0, 0.0, 0.0]])  # centre (1, 2)
    x = torch.zeros(1, 1, 5, 7)
    x[0, 0, 0, 6] = 1
    wanted = torch.zeros(5, 7)
    wanted[0, 6], wanted[0, 0], wanted[1, 5] = 1, 2, 4
    torch.testing.assert_close(le.Blur(psf).A(x)[0, 0], wanted, atol=1e-6, rtol=0)


def test_downsampling_keeps_the_first_pixel_of_every_block():
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert torch.equal(le.Downsampling(2).A(x)[0, 0], torch.tensor([[0.0, 2, 4], [12, 14, 16]]))
    assert le.Adjoint(FORWARD["fourier sampling"]).gram_symbol(4, 4) is None


def test_masks(generator):
    hole = le.center_mask(28, 26, side=15)
    hidden = (hole == 0).nonzero()
    assert hidden.min(0).values.tolist() == [7, 6]
    assert hidden.max(0).values.tolist() == [21, 20]
    assert len(hidden) == 225
    assert le.random_mask(10, 7, keep=0.7, generator=generator).sum() == 49
    assert torch.equal(le.random_mask(10, 7, keep=0.7), le.random_mask(10, 7, keep=0.7))
    assert le.half_mask(4, 7, visible="left").sum() == 12
    assert le.half_mask(4, 7, visible="right").sum() == 16
    assert le.half_mask(5, 6, visible="bottom").sum() == 18
    assert le.stripe_mask(2, 7, period=3, width=2)[0].tolist() == [1, 1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: le.Inpainting(torch.rand(3, 4)), "entries 0 and 1"),
        (lambda: le.Inpainting(torch.ones(1, 3, 4)), "shape"),
        (lambda: le.Inpainting(MASK.T).A(torch.rand(1, *IMAGE)), "9 × 6"),
        (lambda: le.FourierSampling(MASK.T).A(torch.rand(1, *IMAGE)), "9 × 6"),
        (lambda: le.EpsilonInverse(MASK, 0.0), "PseudoInverse"),
        (lambda: le.Blur(torch.zeros(3, 3)), "not all zero"),
        (lambda: le.Blur(torch.ones(7, 3)).A(torch.rand(1, *IMAGE)), "crop"),
        (lambda: le.Downsampling(0), "positive integer"),
        (lambda: le.Downsampling(True), "positive integer"),
        (lambda: rank(le.Adjoint(FORWARD["fourier sampling"]), (1, 4, 4)), "measurements"),
        (lambda: rank(WrongAdjoint(MASK), IMAGE), "not the adjoint"),
        (lambda: le.Downsampling(4).A(torch.rand(1, *IMAGE)), "multiples of 4"),
        (lambda: le.Matrix(random_matrix(3, 4), (5,), (3,)), "3 × 5"),
        (lambda: le.Matrix(random_matrix(3, 4), (4,), (3,)).A(torch.rand(2, 5)), "takes"),
        (lambda: le.Tikhonov(le.Denoising(), 0.0), "weight > 0"),
        (lambda: le.PseudoInverse(le.Inpainting(MASK[:, :1])).A(torch.rand(1, *IMAGE)), "6 × 1"),
        (lambda: FORWARD["fourier sampling"].A_adjoint(torch.rand(1, 4, 3)), "measurements"),
        (lambda: le.PseudoInverse(le.Matrix(torch.ones(4097, 4097), (4097,), (4097,))).A(torch.rand(1, 4097)), "4097"),
        (lambda: le.center_mask(4, 5, side=6), "does not fit"),
        (lambda: le.random_mask(4, 5, keep=1.5), "between 0 and 1"),
        (lambda: le.half_mask(4, 5, visible="up"), "one of"),
        (lambda: le.stripe_mask(4, 5, period=6), "period"),
        (lambda: le.optics.gaussian_psf(0.0, 3), "std > 0"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_something_that_is_no_operator():
    with pytest.raises(TypeError, match="Nonlinear"):
        as_operator(torch.square)
    with pytest.raises(TypeError, match="the class Denoising"):
        as_operator(le.Denoising)
    with pytest.raises(TypeError, match="takes a mask"):
        le.EpsilonInverse(le.Denoising(), 0.1)


class TestTheTestsFail:
    """Broken operators fail the laws above."""

    def test_wrong_adjoint(self, generator):
        x = torch.randn(1, *IMAGE, generator=generator, dtype=torch.float64)
        assert adjoint_defect(WrongAdjoint(MASK), x, le.shift(x, (1, 1))) > 1e-3

    def test_a_mask_that_claims_to_be_circulant(self):
        class Lying(LikeDeepinv):
            def A(self, x):
                return x * self.mask

            def gram_symbol(self, h, w):
                return torch.ones(h, w, dtype=torch.float64)

        with pytest.raises(AssertionError):
            assert_gram_symbol_is_true(Lying(MASK), IMAGE, IMAGE)

    def test_inverse_without_a_cutoff(self):
        box = le.Blur(BOX)
        A = dense(box.A, IMAGE)
        wrong = torch.linalg.inv(A + 1e-9 * torch.eye(len(A), dtype=A.dtype))
        assert max(penrose_defects(A, wrong)) > 1e-6

    def test_product_of_pseudo_inverses(self):
        A = dense(FORWARD["inpainting of a blur"].A, IMAGE)
        wrong = dense(lambda y: le.Blur(GAUSSIAN).A_dagger(le.Inpainting(MASK).A(y)), IMAGE)
        assert max(penrose_defects(A, wrong)) > 1e-3

    def test_tikhonov_is_not_a_pseudo_inverse(self):
        A = dense(le.Blur(GAUSSIAN).A, IMAGE)
        assert max(penrose_defects(A, dense(le.Tikhonov(le.Blur(GAUSSIAN), 0.1).A, IMAGE))) > 1e-3
