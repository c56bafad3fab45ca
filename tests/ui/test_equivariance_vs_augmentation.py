"""The explorables of notebook 03 show what they say: two estimators, when they are one, and who follows a shift."""

import itertools
import math
import re
from functools import lru_cache

import pytest
import torch

from lemmse import data
from lemmse.operators import dense_matrix
from lemmse.patches import shift
from lemmse.ui.explorables import equivariance_vs_augmentation as room

OPERATORS = list(room.OPERATORS)
PAIRS = [(A, B) for k, A in enumerate(OPERATORS) for B in ("A⁺", ("Id", "convolution", "shade", "Aᵀ")[k % 4])]
SHIFTS = list(itertools.product(range(room.SIDE), repeat=2))


def matrices(operator, pre_inverse):
    """A and B as dense matrices."""
    pair = room.OPERATORS[operator], room.inverse_of(operator, pre_inverse)
    return [dense_matrix(each, room.SHAPE) for each in pair]


def shifts_of(v):
    """T_g v for every g, row-major, one row each."""
    return torch.stack([shift(v.view(room.SHAPE), g).flatten() for g in SHIFTS])


@lru_cache
def every_atom():
    """All shifts of all training images, (D, N, c·h·w)."""
    return torch.stack([shifts_of(image) for image in room._training_set()])


def posterior_mean(residuals, atoms, sigma):
    """The mean of the atoms (D, N, c·h·w), and the weights (D, N), for residuals (D, N, m)."""
    weights = torch.softmax(-residuals.square().sum(2).flatten() / (2 * sigma**2), 0).view(residuals.shape[:2])
    return torch.einsum("dg,dgn->n", weights, atoms), weights


# ---- Same or different? ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operator", "pre_inverse"), PAIRS)
def test_numbers_are_those_of_the_theorems(operator, pre_inverse):
    """Both estimates, the admissible shifts and the best source are those of S4.1 and S4.3 with dense matrices."""
    sigma = 1.0  # so that several atoms weigh
    view = room.compare(operator, pre_inverse, sigma, "bag")
    A, B = matrices(operator, pre_inverse)
    y, x, B_plus = view.pictures["y"].flatten(), room._training_set().flatten(1), torch.linalg.pinv(B, rtol=1e-10)
    atoms, back = every_atom(), shifts_of(B @ y).view(room.SIDE, room.SIDE, -1)
    back = back.flip(0, 1).roll((1, 1), (0, 1)).flatten(0, 1)  # T_g v -> T_g⁻¹ v
    inside = (back - back @ (B @ B_plus).T).norm(dim=1) < 1e-7 * (B @ y).norm()
    augmented, _ = posterior_mean((y - atoms @ A.T) @ (B_plus @ B).T, atoms, sigma)
    residuals = (back[None] - (x @ (B @ A).T)[:, None]) @ B_plus.T
    equivariant, weights = posterior_mean(residuals[:, inside], atoms[:, inside], sigma)
    shown = {name: picture.flatten() for name, picture in view.pictures.items() if isinstance(picture, torch.Tensor)}
    torch.testing.assert_close(shown["x_hat equivariant"], equivariant, atol=1e-8, rtol=0)
    torch.testing.assert_close(shown["x_hat augmented"], augmented, atol=1e-8, rtol=0)
    torch.testing.assert_close(shown["B y"], B @ y)
    assert torch.equal(view.pictures["admissible shifts"].values.flatten() > 0.5, inside)
    best = weights.flatten().argmax()
    torch.testing.assert_close(shown["best source"], atoms[:, inside].flatten(0, 1)[best])
    assert view.numbers["weight of the best source"] == pytest.approx(weights.max().item(), abs=1e-8)
    gap = (equivariant - augmented).norm() / augmented.norm()
    assert view.numbers["difference"] == pytest.approx(gap.item(), abs=1e-8)


VERDICTS = {  # by whether BA and BBᵀ commute with every shift
    (True, True): "The same: with B = {}, both BA and BBᵀ commute with every shift",
    (False, True): "with B = {}, BBᵀ commutes with every shift, but BA does not",
    (True, False): "with B = {}, BA commutes with every shift, but BBᵀ does not",
    (False, False): "with B = {}, neither BA nor BBᵀ commutes with every shift",
}


def commutes(M):
    """Whether a map of images commutes with four shifts, on random images."""
    u = torch.randn(3, *room.SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = ((M(shift(u, g)), shift(M(u), g)) for g in ((1, 0), (0, 1), (7, 3), (9, 16)))
    return all(torch.allclose(before, after, atol=1e-9) for before, after in shifted)


@pytest.mark.parametrize("pre_inverse", room.PRE_INVERSES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_sentence_is_true_in_every_state(operator, pre_inverse):
    """The verdict is that of the shifts; what is the same does not differ, what differs does so by as much as said."""
    A, B = room.OPERATORS[operator], room.inverse_of(operator, pre_inverse)
    same = commutes(lambda x: B.A(A.A(x))), commutes(lambda x: B.A(B.A_adjoint(x)))
    for sigma, image in itertools.product((room.SIGMAS[0], room.SIGMAS[-1]), room.TRUTHS):
        view = room.compare(operator, pre_inverse, sigma, image)
        said, gap = view.sentence, view.numbers["difference"]
        kept = int(view.pictures["admissible shifts"].values.sum())
        assert VERDICTS[same].format(pre_inverse) in said
        assert view.notes["admissible shifts"] == f"{kept} of 400"
        if all(same):
            assert gap < 1e-9
            assert kept == 400
            assert view.notes["their difference"] == "nothing"
            continue
        percent = re.search(r"^Different, by (\S+)% here", said)
        assert ("they hardly do" in said) == (gap < 1e-3) == (percent is None)
        if percent:
            assert float(percent[1]) == pytest.approx(100 * gap, abs=0.51)
        assert ("Only the shift by zero is admissible" in said) == (kept == 1)
        assert (f"Of 400 shifts {kept} are admissible" in said) == (1 < kept < 400)
        assert ("Every shift is admissible" in said) == (kept == 400)
        assert ("the noise in B y is not the same" in said) == (kept == 400 and same[0])


def test_menus_hold_the_counterexamples():
    """A singular A, a pair without a convolution and one with BA = Id: the same, the same, different."""
    state = {"sigma": 1.0, "image": "bag"}
    box, _ = matrices("box blur (singular)", "A⁺")
    assert torch.linalg.matrix_rank(box) < room.SIDE**2
    assert room.compare("box blur (singular)", "A⁺", **state).sentence.startswith("The same")
    for matrix in matrices("blur, then shuffle", "A⁺"):
        assert room.commutator(matrix) > 0.1
    assert room.compare("blur, then shuffle", "A⁺", **state).sentence.startswith("The same")
    A, B = matrices("shade from left to right", "A⁺")
    torch.testing.assert_close(B @ A, torch.eye(room.SIDE**2, dtype=torch.float64))
    assert room.compare("shade from left to right", "A⁺", **state).numbers["difference"] > 0.1
    _, B = matrices("denoising", "convolution")
    assert torch.linalg.cond(B) < 100  # invertible, as the notebook's


def test_verdicts_are_not_luck():
    """The same pairs are the same where several images weigh, and not because one of them takes all."""
    for operator, pre_inverse in (("denoising", "Id"), ("box blur (singular)", "A⁺"), ("blur, then shuffle", "A⁺")):
        view = room.compare(operator, pre_inverse, 1.0, "T-shirt")
        assert view.numbers["difference"] < 1e-9
        assert view.numbers["weight of the best source"] < 0.7


def test_default_makes_the_point():
    """Behind a random mask and A⁺ nothing may shift: another garment, in the wrong place."""
    view = room.equivariance_vs_augmentation().look()
    assert view.numbers["difference"] > 0.5
    assert view.notes["admissible shifts"] == "1 of 400"
    assert view.notes["best source"].endswith("shift (0, 0)")
    x, y_hats = view.pictures["x"], [view.pictures[f"x_hat {name}"] for name in ("augmented", "equivariant")]
    near, far = ((x_hat - x).norm() for x_hat in y_hats)
    assert near < 0.7 * far


# ---- A shift by hand ------------------------------------------------------------------------------------------------

GRID = list(itertools.product((-14, -3, 0), (-4, 0, 1)))


def keeps_mask(operator, g):
    """Whether a shift maps what A shows to itself."""
    seen = room.HAND_OPERATORS[operator].A(torch.ones(1, 1, 28, 28, dtype=torch.float64))
    return torch.allclose(shift(seen, g), seen)


@pytest.mark.parametrize("pre_inverse", ["A⁺", "Id"])
@pytest.mark.parametrize("operator", room.HAND_OPERATORS)
def test_who_follows(operator, pre_inverse):
    """The equivariant estimate follows exactly where the scene's shift keeps the mask; the sentence says who does."""
    met = set()
    for g, image in zip(GRID, itertools.cycle(room.TRUTHS), strict=False):
        view = room.move(*g, operator, pre_inverse, 0.5, image)
        seen, mmse, equivariant = view.numbers.values()
        moved = keeps_mask(operator, g)
        met.add(moved)
        assert (seen < 1e-9) == moved
        said = view.sentence
        if g == (0, 0):
            assert said.startswith("Nothing has moved")
            assert max(seen, mmse, equivariant) == 0
        elif moved:
            assert equivariant < 1e-9 < 0.01 < mmse
            assert "follows exactly" in said
            assert f"misses by {room._percent(mmse)}" in said
        else:
            assert equivariant > 1e-9
            assert "promises nothing" in said
            assert f"off by {room._percent(equivariant)}" in said
            assert ("is admissible" in said) == (pre_inverse == "Id")
    assert met == ({True} if operator in ("denoising", "deblurring") else {True, False})


def test_missed_is_what_the_pictures_miss():
    """Moved and first estimates, from two views, differ by the picture of what was missed."""
    state = {"operator": "half mask", "pre_inverse": "A⁺", "sigma": 0.3, "image": "boot"}
    first, then = room.move(0, 0, **state), room.move(5, 2, **state)
    for name in ("MMSE", "equivariant"):
        before, after = (view.pictures[f"x_hat {name}"] for view in (first, then))
        missed = after - shift(before, (5, 2))
        torch.testing.assert_close(then.pictures[f"{name}, missed"].values, missed[0])
        assert then.numbers[f"{name} off by"] == pytest.approx((missed.norm() / before.norm()).item())
    torch.testing.assert_close(then.pictures["x, moved"], shift(first.pictures["x, moved"], (5, 2)))


def test_heaviest_images_are_those_of_bayes():
    """The two numbers in the sentence are the images nearest to y before and after, here without any mask."""
    images, x = data.fashion_mnist("train", room.HAND_IMAGES).double(), room._truths()[[1]]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    nearest = [((shift(x + 0.5 * noise, g) - images).flatten(1).norm(dim=1)).argmin().item() for g in ((0, 0), (3, 5))]
    said = room.shift_by_hand().look().sentence
    assert [int(number) for number in re.findall(r"number (\d+)", said)] == nearest
    assert len(set(nearest)) == 2


# ---- Both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "text"), [(1e-15, "nothing"), (2e-5, "0.002%"), (0.0512, "5.1%"), (0.5, "50%"), (1.2, "120%")]
)
def test_percent_never_rounds_to_zero(share, text):
    assert room._percent(share) == text


def test_shifts_read_as_small_steps():
    assert [room._signed(g) for g in ((0, 0), (19, 3), (9, 11))] == ["(0, 0)", "(−1, 3)", "(9, −9)"]


def test_threads_are_given_back(monkeypatch):
    """The views compute with one thread and leave the setting as they found it."""
    used = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    room.compare("denoising", "Id", 0.5, "bag")
    assert used == [1, 3]


def test_estimators_are_prepared_once():
    """A slider's move meets estimators that exist already."""
    assert room._pair("stripes", "A⁺") is room._pair("stripes", "A⁺")
    assert room._both("stripes", "A⁺") is room._both("stripes", "A⁺")
    assert math.prod(room._all_shifts().shape[:1]) == room.IMAGES * room.SIDE**2
