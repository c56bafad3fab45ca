"""The explorables of notebook 03: when augmentation equals equivariance (S4.3), and what follows a shift (S4.1)."""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from lemmse import data, optics
from lemmse.estimators import MMSE, EquivariantMMSE
from lemmse.figures import HeatMap, SignedMap
from lemmse.operators import (
    Adjoint,
    Blur,
    Compose,
    Denoising,
    Inpainting,
    LinearOperator,
    Matrix,
    PseudoInverse,
    dense_matrix,
    half_mask,
    random_mask,
    stripe_mask,
)
from lemmse.patches import shift
from lemmse.reductions import TopImages, TopSources
from lemmse.ui.explorable import Explorable
from lemmse.ui.threads import one_thread
from lemmse.ui.view import Choice, Slider, View

__all__ = ["equivariance_vs_augmentation", "shift_by_hand"]

TRUTHS = {"bag": 58, "T-shirt": 120, "boot": 119, "sandal": 45}  # indices of test images
EXACT = 1e-9  # far above rounding in float64, far below all that differs
ALIKE = 1e-3  # a relative difference that no eye sees


@lru_cache
def _truths() -> Float64[Tensor, "b c h w"]:
    return data.fashion_mnist("test", max(TRUTHS.values()) + 1)[list(TRUTHS.values())].double()


def _relative(difference: Tensor, whole: Tensor) -> float:
    return (difference.norm() / whole.norm()).item()


def _percent(share: float) -> str:
    """Return a share in percent, never rounded to nothing; below rounding errors it is "nothing" in words."""
    if share <= EXACT:
        return "nothing"
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


# ---- Same or different? ---------------------------------------------------------------------------------------------

MARGIN = 3  # black pixels around a garment of 14 × 14, so that it can move without meeting itself around the border
SIDE = 14 + 2 * MARGIN
SHAPE = (1, SIDE, SIDE)
IMAGES = 10  # one of each class: with all their shifts, 4000
MOVED = (3, -3)  # the garment stands where no training image has one
SIGMAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


def _scenes(images: Float64[Tensor, "b c 28 28"]) -> Float64[Tensor, "b c h w"]:
    return pad(avg_pool2d(images, 2), 4 * [MARGIN])


def _every_other_pixel() -> Float[Tensor, "h w"]:
    row = stripe_mask(SIDE, SIDE, period=2)
    return row * row.T


def _shuffle() -> Matrix:
    order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))
    return Matrix(torch.eye(SIDE**2, dtype=torch.float64)[order], SHAPE, SHAPE)


def _shade() -> Matrix:
    light = torch.linspace(1.0, 0.3, SIDE, dtype=torch.float64).expand(SIDE, SIDE)
    return Matrix(torch.diag(light.flatten()), SHAPE, SHAPE)


SMOOTH = Blur(optics.gaussian_psf(0.6, size=5))
OPERATORS = {
    "denoising": Denoising(),
    "blur": SMOOTH,
    "box blur (singular)": Blur(torch.full((2, 2), 0.25, dtype=torch.float64)),
    "shade from left to right": _shade(),
    "random mask": Inpainting(random_mask(SIDE, SIDE, keep=0.5)),
    "half mask": Inpainting(half_mask(SIDE, SIDE)),
    "stripes": Inpainting(stripe_mask(SIDE, SIDE, period=10)),
    "blur, every other pixel": Compose(Inpainting(_every_other_pixel()), SMOOTH),
    "blur, then shuffle": Compose(_shuffle(), SMOOTH),
}
PRE_INVERSES = ("Id", "Aᵀ", "A⁺", "convolution", "shade")
CONVOLUTION = Blur(torch.tensor([[0.0, 0.1, 0.0], [0.05, 0.5, 0.15], [0.0, 0.1, 0.0]], dtype=torch.float64))

PAIR_CONTROLS = {
    "operator": Choice("operator A", tuple(OPERATORS), default="random mask"),
    "pre_inverse": Choice("pre-inverse B", PRE_INVERSES, default="A⁺"),
    "sigma": Slider("noise level σ", SIGMAS, default=0.3),
    "image": Choice("true image", tuple(TRUTHS), default="bag", folded=True),
}


def equivariance_vs_augmentation(
    operator: str = "random mask", pre_inverse: str = "A⁺", sigma: float = 0.3, image: str = "bag"
) -> Explorable:
    """Return the explorable: for a pair (A, B), the equivariant and the augmented estimate, and why they differ."""
    return Explorable(
        compare,
        PAIR_CONTROLS,
        title="The same, or different?",
        name="equivariance_vs_augmentation.equivariance_vs_augmentation",
        state={"operator": operator, "pre_inverse": pre_inverse, "sigma": sigma, "image": image},
    )


def inverse_of(operator: str, pre_inverse: str) -> LinearOperator:
    """Return the pre-inverse B of a name, for the operator A of a name."""
    A = OPERATORS[operator]
    named = {"Id": Denoising(), "Aᵀ": Adjoint(A), "A⁺": PseudoInverse(A), "convolution": CONVOLUTION, "shade": _shade()}
    return named[pre_inverse]


class _Pair(NamedTuple):
    """What neither the noise nor the image changes: both estimators, and how far BA and BBᵀ are from commuting."""

    equivariant: EquivariantMMSE
    augmented: MMSE
    B: LinearOperator
    signal: float
    noise: float


@lru_cache
def _training_set() -> Float64[Tensor, "D c h w"]:
    return _scenes(data.fashion_mnist("train", IMAGES).double())


@lru_cache
def _all_shifts() -> Float64[Tensor, "D c h w"]:
    return data.ShiftedImages(_training_set())[:]


@lru_cache(maxsize=4)  # an augmented estimator keeps 13 MB, and more where B has no structure
def _pair(operator: str, pre_inverse: str) -> _Pair:
    A, B = OPERATORS[operator], inverse_of(operator, pre_inverse)
    a, b = dense_matrix(A, SHAPE), dense_matrix(B, SHAPE)
    return _Pair(
        EquivariantMMSE(_training_set(), A, pre_inverse=B),
        MMSE(_all_shifts(), A, pre_inverse=B),
        B,
        commutator(b @ a),
        commutator(b @ b.T),
    )


def commutator(matrix: Float64[Tensor, "N N"]) -> float:
    """Return ‖T M Tᵀ - M‖ / ‖M‖, the larger of the shifts T by one row and by one column: 0 iff M commutes with all."""
    M = matrix.reshape(SIDE, SIDE, SIDE, SIDE)
    return max(_relative(M.roll((1, 1), (axis, axis + 2)) - M, M) for axis in (0, 1))


@one_thread()
def compare(operator: str, pre_inverse: str, sigma: float, image: str) -> View:
    """Measure one true image and return both estimates, their difference, the admissible shifts, the best source."""
    pair, index = _pair(operator, pre_inverse), list(TRUTHS).index(image)
    x = shift(_scenes(_truths())[[index]], MOVED)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    y = pair.equivariant.physics.A(x) + sigma * noise
    equivariant, augmented = (estimator(y, sigma=sigma).mean for estimator in (pair.equivariant, pair.augmented))
    best = pair.equivariant(y, sigma=sigma, reduction=TopSources(1))
    source, pixel, weight = best.image.item(), best.pixel.item(), best.weight.item()
    g = divmod(pixel, SIDE)
    gap, admissible = _relative(equivariant - augmented, augmented), pair.equivariant.admissible_shifts
    return View(
        pictures={
            "x": x,
            "y": y,
            "B y": pair.B.A(y),
            "x_hat equivariant": equivariant,
            "x_hat augmented": augmented,
            "their difference": SignedMap((equivariant - augmented)[0], limit=0.5),
            "admissible shifts": HeatMap(admissible.double(), 0, 1),
            "best source": shift(_training_set()[source], g),
        },
        notes={
            "admissible shifts": f"{int(admissible.sum())} of {admissible.numel()}",
            "their difference": _percent(gap),
            "best source": f"image {source}, shift {_signed(g)}",
        },
        numbers={
            "difference": gap,
            "BA off by": pair.signal,
            "BBᵀ off by": pair.noise,
            "weight of the best source": weight,
        },
        sentence=_verdict(pre_inverse, gap, pair.signal, pair.noise, admissible),
    )


def _signed(g: tuple[int, int], size: int = SIDE) -> str:
    """Return a shift as rows and columns between minus and plus half the size."""
    rows, columns = ((steps + size // 2) % size - size // 2 for steps in g)
    return f"({rows}, {columns})".replace("-", "−")


def _verdict(pre_inverse: str, gap: float, signal: float, noise: float, admissible: Bool[Tensor, "h w"]) -> str:
    """Say whether the two estimators are the same, which of the two conditions fails, and what is admissible."""
    kept, count = int(admissible.sum()), admissible.numel()
    failing = [name for name, off in (("BA", signal), ("BBᵀ", noise)) if off > EXACT]
    if not failing:
        return (
            f"The same: with B = {pre_inverse}, both BA and BBᵀ commute with every shift, so that no training set can "
            "tell augmentation from equivariance."
        )
    does_not = {
        ("BA",): "BBᵀ commutes with every shift, but BA does not",
        ("BBᵀ",): "BA commutes with every shift, but BBᵀ does not",
        ("BA", "BBᵀ"): "neither BA nor BBᵀ commutes with every shift",
    }[tuple(failing)]
    here = f"by {_percent(gap)} here" if gap >= ALIKE else "though at this measurement they hardly do"
    if kept == 1:
        shifts = " Only the shift by zero is admissible, so the equivariant estimate is that of MMSE without shifts."
    elif kept < count:
        shifts = f" Of {count} shifts {kept} are admissible; augmentation uses all."
    elif signal > EXACT:
        shifts = (
            " Every shift is admissible, but to shift an image and then apply BA is not to apply BA and then shift."
        )
    else:
        shifts = " Every shift is admissible, but the noise in B y is not the same everywhere."
    return f"Different, {here}: with B = {pre_inverse}, {does_not}.{shifts}"


# ---- A shift by hand ------------------------------------------------------------------------------------------------

HAND_IMAGES = 200
HAND_SIDE = 28
STEPS = tuple(range(-14, 15))
HAND_SIGMAS = (0.1, 0.3, 0.5, 1.0, 2.0)

HAND_OPERATORS = {
    "denoising": Denoising(),
    "deblurring": Blur(optics.gaussian_psf(0.7, size=7)),
    "half mask": Inpainting(half_mask(HAND_SIDE, HAND_SIDE)),
    "stripes": Inpainting(stripe_mask(HAND_SIDE, HAND_SIDE, period=4)),
    "random mask": Inpainting(random_mask(HAND_SIDE, HAND_SIDE, keep=0.5)),
}
HAND_CONTROLS = {
    "rows": Slider("rows down", STEPS, default=3),
    "columns": Slider("columns right", STEPS, default=5),
    "operator": Choice("operator A", tuple(HAND_OPERATORS), default="denoising"),
    "pre_inverse": Choice("pre-inverse B", ("A⁺", "Id"), default="A⁺", folded=True),
    "sigma": Slider("noise level σ", HAND_SIGMAS, default=0.5, folded=True),
    "image": Choice("true image", tuple(TRUTHS), default="T-shirt", folded=True),
}


def shift_by_hand(
    rows: int = 3,
    columns: int = 5,
    operator: str = "denoising",
    pre_inverse: str = "A⁺",
    sigma: float = 0.5,
    image: str = "T-shirt",
) -> Explorable:
    """Return the explorable: move the scene, and see whether the estimates of `MMSE` and `EquivariantMMSE` follow."""
    state = {"rows": rows, "columns": columns, "operator": operator}
    return Explorable(
        move,
        HAND_CONTROLS,
        title="Who follows?",
        name="equivariance_vs_augmentation.shift_by_hand",
        state=state | {"pre_inverse": pre_inverse, "sigma": sigma, "image": image},
    )


@lru_cache
def _both(operator: str, pre_inverse: str) -> tuple[MMSE, EquivariantMMSE, LinearOperator]:
    """Return the estimators without and with equivariance, and the B that both use."""
    images, A = data.fashion_mnist("train", HAND_IMAGES).double(), HAND_OPERATORS[operator]
    B = PseudoInverse(A) if pre_inverse == "A⁺" else Denoising()
    return MMSE(images, A, pre_inverse=B), EquivariantMMSE(images, A, pre_inverse=B), B


@one_thread()
def move(rows: int, columns: int, operator: str, pre_inverse: str, sigma: float, image: str) -> View:
    """Measure a scene before and after it moves, its noise with it, and return how far each estimate has followed."""
    g, x = (rows, columns), _truths()[[list(TRUTHS).index(image)]]
    mmse, equivariant, B = _both(operator, pre_inverse)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    # The scene as it was, then as it is now: the mask stays.
    y = mmse.physics.A(torch.cat([x, shift(x, g)])) + sigma * torch.cat([noise, shift(noise, g)])
    v = B.A(y)
    answers = {"MMSE": mmse(y, sigma=sigma).mean, "equivariant": equivariant(y, sigma=sigma).mean}
    missed = {name: after - shift(before, g) for name, (before, after) in answers.items()}
    off = {name: _relative(missed[name], answers[name][0]) for name in answers}
    owners = mmse(y, sigma=sigma, reduction=TopImages(1)).image[:, 0].tolist()
    pictures = {"x, moved": shift(x, g), "B y": v[[1]]}
    pictures |= {f"x_hat {name}": answer[[1]] for name, answer in answers.items()}
    pictures |= {f"{name}, missed": SignedMap(miss, limit=1.0) for name, miss in missed.items()}
    seen = _relative(v[1] - shift(v[0], g), v[0])
    return View(
        pictures=pictures,
        notes={f"{name}, missed": f"off by {_percent(off[name])}" for name in off},
        numbers={"network's input off by": seen} | {f"{name} off by": value for name, value in off.items()},
        sentence=_followed(g, pre_inverse, seen, off, owners, bool(equivariant.admissible_shifts[g])),
        reference="x, moved",
    )


def _followed(
    g: tuple[int, int], pre_inverse: str, seen: float, off: dict[str, float], owners: list[int], admissible: bool
) -> str:
    """Say whether what the network sees has moved as the scene did, and which estimate has followed."""
    if g == (0, 0):
        return "Nothing has moved yet: move the scene by its rows or columns."
    if seen > EXACT:
        though = ", though the shift is admissible" if admissible else ""
        return (
            "The mask stays where it is, and this shift does not map it to itself: the network sees something else "
            f"than B y moved. With B = {pre_inverse}, equivariance promises nothing then{though}: the equivariant "
            f"estimate is off by {_percent(off['equivariant'])}, MMSE by {_percent(off['MMSE'])}."
        )
    first, now = owners
    turns = f"is still number {now}" if first == now else f"was number {first} and is number {now} now"
    return (
        f"What the network sees, B y with B = {pre_inverse}, has moved with the scene. The equivariant estimate "
        f"follows exactly; MMSE misses by {_percent(off['MMSE'])}: its heaviest image {turns}, which stands where it "
        "always stands."
    )
