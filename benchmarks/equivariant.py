"""The equivariant estimator beside the two exact ways that one would write down: a loop over shifts, one big product.

64×64×3 with D = 1000 and 28×28×1 with D = 2000, from σ where one image is copied to σ where many are averaged; the
general path, for a B that declares nothing; and augmentation, which has as many atoms and treats them as images.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import lemmse as le

from .problems import Problem, fashion, photos
from .table import Case, Group, at_least, at_most

# ------------------------------------------------------------------------------------------------------------ our paths


def ours(
    problem: Problem, reduction: le.reductions.Reduction | None = None, pre_inverse: Callable | None = None
) -> Callable[[], Tensor | None]:
    """Return the estimator's answer: its mean, where it has one. ``pre_inverse`` makes B from the problem."""
    B = None if pre_inverse is None else pre_inverse(problem)
    estimator = le.EquivariantMMSE(problem.images, le.Denoising(), pre_inverse=B)
    return lambda: getattr(estimator(problem.y, sigma=problem.sigma, reduction=reduction), "mean", None)


def several(problem: Problem, queries: int) -> Callable[[], None]:
    """Return the answer to several queries at once: y under other noise each time, not compared with anything."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(queries, *problem.y.shape[1:], generator=generator)
    estimator, y = le.EquivariantMMSE(problem.images, le.Denoising()), problem.y + 0.1 * problem.sigma * noise

    def run() -> None:
        estimator(y, sigma=problem.sigma)

    return run


def augmented(problem: Problem) -> Callable[[], Tensor]:
    """Return what the unconstrained estimator makes of all shifts, which are made in chunks."""
    estimator = le.MMSE(le.data.ShiftedImages(problem.images), le.Denoising())
    return lambda: estimator(problem.y, sigma=problem.sigma).mean


def undeclared_identity(problem: Problem) -> le.Matrix:
    """Return the identity as a matrix that declares nothing."""
    shape = tuple(problem.images.shape[1:])
    return le.Matrix(torch.eye(problem.images[0].numel()), shape, shape)


def random_matrix(problem: Problem, rank: int | None = None) -> le.Matrix:
    """Return a dense random B, of full rank unless told; in float64, whose rounding is no rank."""
    shape, n = tuple(problem.images.shape[1:]), problem.images[0].numel()
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return le.Matrix(matrix if rank is None else matrix[:, :rank] @ matrix[:rank], shape, shape)


def low_pass_of_random_matrix(problem: Problem) -> le.Matrix:
    """Return a dense B of rank 507, 13×13 frequencies a channel: shifts preserve Im B, though B Bᵀ is not circulant."""
    shape = tuple(problem.images.shape[1:])
    c, h, w = shape
    columns = random_matrix(problem).matrix.T.reshape(-1, c, h, w)
    low = (torch.fft.fftfreq(h).abs()[:, None] < 6.5 / h) & (torch.fft.fftfreq(w).abs() < 6.5 / w)
    kept = torch.fft.ifft2(torch.fft.fft2(columns) * low).real
    return le.Matrix(kept.flatten(1).T.contiguous(), shape, shape)


# ------------------------------------------------------------------------------------------------------------ baselines


FLOOR = -60.0
"""Log-weights relative to the largest are raised to this: products of subnormal numbers would slow the baselines."""


def loop_over_shifts(problem: Problem, shifts: int | None = None) -> Callable[[], Tensor | None]:
    """Return a loop over shifts of y with a streaming log-sum-exp: distances to all images, weights, one mean a shift.

    It shifts y back, not the images, and holds no differences. Of a large problem so many random ``shifts`` are run,
    whose mean is not the answer: then it returns none.
    """
    images, rows = problem.images, problem.images.flatten(1)
    c, h, w = images.shape[1:]
    chosen = torch.randperm(h * w, generator=torch.Generator().manual_seed(3))[:shifts].tolist()

    def run() -> Tensor | None:
        peak, mass, mean = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(1, c, h, w)
        for g in chosen:
            back = torch.roll(problem.y, (-(g // w), -(g % w)), dims=(2, 3)).flatten(1)
            d = torch.cdist(back, rows, compute_mode="donot_use_mm_for_euclid_dist")[0]
            log_weights = d.square() / (-2 * problem.sigma**2)
            higher = torch.maximum(peak, log_weights.max())
            weights, fading = (log_weights - higher).clamp_min(FLOOR).exp(), (peak - higher).exp()
            seen = torch.roll((weights @ rows).reshape(1, c, h, w), (g // w, g % w), dims=(2, 3))
            peak, mass, mean = higher, mass * fading + weights.sum(), mean * fading + seen
        return mean / mass if shifts is None else None

    return run


def product_with_all_shifts(problem: Problem) -> Callable[[], Tensor]:
    """Return one matrix product of all shifts of y with the images, softmax, and one product back."""
    images, rows = problem.images, problem.images.flatten(1)
    c, h, w = images.shape[1:]
    norms = rows.square().sum(1)
    place = torch.arange(h * w).reshape(h, w)
    forth = torch.stack([torch.roll(place, (g // w, g % w), dims=(0, 1)).flatten() for g in range(h * w)])
    back = forth.argsort(1)

    def run() -> Tensor:
        shifted = problem.y.reshape(c, -1)[:, back].transpose(0, 1).reshape(h * w, -1)
        log_weights = torch.addmm(norms, shifted, rows.T, beta=-1, alpha=2) / (2 * problem.sigma**2)
        weights = log_weights.sub_(log_weights.max()).clamp_min_(FLOOR).exp_()
        seen = (weights.div_(weights.sum()) @ rows).reshape(h * w, c, h * w)
        return seen.gather(2, forth[:, None].expand(-1, c, -1)).sum(0).reshape(1, c, h, w)

    return run


# --------------------------------------------------------------------------------------------------------------- tables

MEMORY = at_most("megabytes", 300)
TIMED_SHIFTS = 64
QUERIES = 16


def rows_of_ours() -> tuple[Case, ...]:
    """Return the cases of the fast path, the first of them the reference."""
    return (
        Case("EquivariantMMSE, PosteriorMean", ours, (MEMORY,)),
        Case("... PosteriorMoments", partial(ours, reduction=le.PosteriorMoments()), (MEMORY,), same_answer=1e-5),
        Case("... TopSources(5)", partial(ours, reduction=le.TopSources(5)), (MEMORY,)),
        Case(f"... {QUERIES} queries at once, each", partial(several, queries=QUERIES), (MEMORY,), 1 / QUERIES),
    )


def at_64(sigma: float) -> Group:
    """Return the cases at 64×64×3."""
    return Group(
        partial(photos, 1000, 64, sigma),
        (
            *rows_of_ours(),
            Case("baseline: product with all shifts", product_with_all_shifts, (at_least("ratio", 5),), 1, 1e-3),
            Case(
                f"baseline: loop over shifts ({TIMED_SHIFTS} of {64**2} timed)",
                partial(loop_over_shifts, shifts=TIMED_SHIFTS),
                (at_least("ratio", 100),),
                64**2 / TIMED_SHIFTS,
            ),
        ),
        repeats=3,
    )


def at_28(sigma: float) -> Group:
    """Return the cases at 28×28×1; ours may take 1.2 × the time of the product, so that takes 1/1.2 of ours or more."""
    no_slower = at_least("ratio", round(1 / 1.2, 3))
    general = partial(ours, pre_inverse=undeclared_identity)
    return Group(
        partial(fashion, 2000, sigma),
        (
            *rows_of_ours(),
            Case("... general path (B a matrix)", general, (no_slower, MEMORY), 1, 1e-3),
            Case("baseline: product with all shifts", product_with_all_shifts, (no_slower,), 1, 1e-3),
            Case("baseline: loop over shifts", loop_over_shifts, (at_least("ratio", 10),), 1, 1e-3),
        ),
        repeats=3,
    )


def dense(sigma: float) -> Group:
    """Return the cases of the general path at a real size."""
    targets = (at_most("total", 60), at_most("megabytes", 1024))
    singular = partial(random_matrix, rank=500)
    return Group(
        partial(photos, 200, 16, sigma),
        (
            Case("general path, B dense, 768×768", partial(ours, pre_inverse=random_matrix), targets),
            Case("... rank 507, all shifts admissible", partial(ours, pre_inverse=low_pass_of_random_matrix), targets),
            Case("... rank 500, only g = 0 admissible", partial(ours, pre_inverse=singular), targets),
            Case("fast path, B = Id", ours, targets),
        ),
        repeats=3,
    )


def augmentation(sigma: float) -> Group:
    """Return equivariance and augmentation, which agree for denoising."""
    return Group(
        partial(fashion, 200, sigma),
        (
            Case("EquivariantMMSE", ours, (MEMORY,)),
            Case("MMSE of all 156 800 shifted images", augmented, same_answer=1e-4),
        ),
        repeats=3,
    )


def groups(quick: bool) -> tuple[Group, ...]:
    """Return all groups, or a small one."""
    if quick:
        return (augmentation(0.5),)
    return (at_64(0.1), at_64(0.5), at_28(0.1), at_28(0.5), dense(0.5), augmentation(0.5))
