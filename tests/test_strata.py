"""Which shifts preserve the image space of a pre-inverse (S4.1), against the projectors, shift by shift."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lemmse as le
from lemmse.strata import stabiliser
from operators_registry import BOX, CASES, FORWARD, IMAGE, MASK, C, H, W, random_matrix
from reference import dense, preserving_shifts

ONTO_IMAGES = [case for case in CASES if tuple(case.operator.A(torch.zeros(1, *case.input_shape)).shape[1:]) == IMAGE]


def as_map(shifts) -> torch.Tensor:
    found = torch.zeros(H, W, dtype=torch.bool)
    for i, j in shifts:
        found[i, j] = True
    return found


@pytest.mark.parametrize("case", ONTO_IMAGES, ids=lambda case: case.name)
def test_equals_the_projectors(case):
    wanted = as_map(preserving_shifts(dense(case.operator.A, case.input_shape), IMAGE))
    assert torch.equal(stabiliser(case.operator, case.input_shape, (H, W)), wanted)


@pytest.mark.parametrize("case", ONTO_IMAGES, ids=lambda case: case.name)
def test_what_is_declared_is_what_is_found(case):
    """The same operator as a matrix, which declares nothing."""
    matrix = le.Matrix(dense(case.operator.A, case.input_shape), case.input_shape, IMAGE)
    assert torch.equal(
        stabiliser(case.operator, case.input_shape, (H, W)), stabiliser(matrix, case.input_shape, (H, W))
    )


@pytest.mark.parametrize(
    ("B", "shifts"),
    [
        (le.PseudoInverse(le.Inpainting(MASK)), [(0, 0)]),
        (le.PseudoInverse(le.Inpainting(le.half_mask(H, W))), [(i, 0) for i in range(H)]),
        (le.Adjoint(le.Inpainting(le.half_mask(H, W, visible="top"))), [(0, j) for j in range(W)]),
        (le.Inpainting(le.stripe_mask(H, W, period=3)), [(i, j) for i in range(H) for j in (0, 3, 6)]),
        (le.Inpainting(torch.zeros(H, W)), [(i, j) for i in range(H) for j in range(W)]),
    ],
)
def test_masks(B, shifts):
    assert torch.equal(stabiliser(B, IMAGE, (H, W)), as_map(shifts))


@pytest.mark.parametrize("kind", [le.Adjoint, le.PseudoInverse, lambda physics: le.Tikhonov(physics, 0.1)])
@pytest.mark.parametrize("psf", [None, le.optics.gaussian_psf(1.0, size=(5, 3))])
def test_downsampling_admits_the_multiples_of_its_factor(kind, psf):
    found = stabiliser(kind(le.Downsampling(3, psf)), (C, H // 3, W // 3), (H, W))
    assert torch.equal(found, as_map([(i, j) for i in (0, 3) for j in (0, 3, 6)]))


def test_a_band_limited_downsampling_admits_every_shift():
    """Where the blur leaves one frequency of every alias, Im Aᵀ is a band of frequencies, which shifts preserve."""
    h = w = 6
    band = torch.zeros(h, w, dtype=torch.complex128)
    band[:1, :1] = 1
    box = torch.fft.ifft2(band).real  # the mean: the one frequency that survives decimation to a single pixel
    B = le.Adjoint(le.Downsampling(6, box))
    assert stabiliser(B, (1, 1, 1), (h, w)).all()
    assert not stabiliser(le.Adjoint(le.Downsampling(6)), (1, 1, 1), (h, w))[1:, 1:].any()


def test_a_diagonal_that_differs_by_channel():
    """A shift must preserve the support in every channel."""
    diagonal = torch.ones(C, H, W, dtype=torch.float64)
    diagonal[0, :, : W // 2] = 0
    diagonal[1, : H // 2] = 0
    B = le.Matrix(torch.diag(diagonal.flatten()), IMAGE, IMAGE)
    assert torch.equal(stabiliser(B, IMAGE, (H, W)), as_map([(0, 0)]))


def test_no_image_space_at_all():
    assert stabiliser(le.Matrix(torch.zeros(C * H * W, 5), (5,), IMAGE), (5,), (H, W)).all()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_subspaces_made_to_be_preserved_by_a_subgroup(data):
    """The span of the shifts of a random image by a subgroup: preserved by it, and by no other shift."""
    rows, columns = data.draw(st.sampled_from([1, 2, 3, 6])), data.draw(st.sampled_from([1, 3, 9]))
    seed = data.draw(st.integers(0, 2**31))
    image = torch.randn(1, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    group = [(i, j) for i in range(0, H, rows) for j in range(0, W, columns)]
    basis = torch.stack([torch.roll(image, g, (1, 2)).flatten() for g in group], dim=1)
    mixed = basis @ random_matrix(len(group), len(group), seed=seed)
    found = stabiliser(le.Matrix(mixed, (len(group),), (1, H, W)), (len(group),), (H, W))
    assert torch.equal(found, as_map(group))


def test_a_wrong_period_is_not_believed_beyond_the_size():
    """A declared period that does not divide the sides tells nothing about circular shifts."""

    class Declares4(le.operators.LinearOperator):
        shift_period = 4

        def __init__(self, matrix):
            self.matrix = le.Matrix(matrix, (C * H * W,), IMAGE)

        def A(self, x):
            return self.matrix.A(x)

        def A_adjoint(self, y):
            return self.matrix.A_adjoint(y)

        def input_shape(self, output_shape):
            return self.matrix.input_shape(output_shape)

        def factorisation(self, input_shape):
            return self.matrix.factorisation(input_shape)

    box = dense(le.Blur(BOX).A, IMAGE)
    assert stabiliser(Declares4(box), (C * H * W,), (H, W)).all()


def test_the_answer_is_the_same_every_time():
    B = FORWARD["inpainting of a blur"]
    assert torch.equal(stabiliser(B, IMAGE, (H, W)), stabiliser(B, IMAGE, (H, W)))
