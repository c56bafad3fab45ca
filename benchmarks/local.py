"""The local-equivariant estimator beside what one would write by hand: a streamed loop, and PyTorch's attention.

A query is an image, all of whose windows meet all windows of all images: their number of pairs is what a run gets
through. Then, at real size, the pre-inverses through which different windows see different things.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import lemmse as le
from lemmse import windows
from lemmse.patches import centre_pixels, extract_patches

from .problems import Scene, colours, greys
from .table import Case, Group, Work, at_least, at_most


@dataclass(frozen=True)
class Problem:
    """A scene, the noise's ``sigma``, and the side of the windows."""

    scene: Scene
    sigma: float
    patch_size: int

    def __str__(self) -> str:
        return f"{self.scene}, float32, σ = {self.sigma:g}, P = {self.patch_size}"


def problem(scene: Callable[[int], Scene], d: int, patch_size: int, sigma: float = 0.1) -> Problem:
    """Return the problem of a scene of d images."""
    return Problem(scene(d), sigma, patch_size)


# ------------------------------------------------------------------------------------------------------------ our paths


def denoising(problem: Problem) -> le.Denoising:
    """Return A = Id."""
    return le.Denoising()


def ours(
    problem: Problem,
    reduction: le.reductions.Reduction | None = None,
    physics: Callable[[Problem], Any] = denoising,
    pre_inverse: Callable[[Any], Any] | None = None,
    fused: bool = True,
) -> Callable[[], Tensor | None]:
    """Return the estimator's answer: its mean, where it has one.

    ``physics`` makes A from the problem, and ``pre_inverse`` B from A; unless ``fused``, the answer comes as it does
    without numba.
    """
    A = physics(problem)
    B = None if pre_inverse is None else pre_inverse(A)
    with patch.object(estimators, "with_numba", with_numba if fused else lambda *_: False):
        estimator = le.LocalEquivariantMMSE(problem.scene.images, A, problem.patch_size, pre_inverse=B)
    y = problem.scene.measured(A, problem.sigma)

    def run() -> Tensor | None:
        return getattr(estimator(y, sigma=problem.sigma, reduction=reduction), "mean", None)

    return run


SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def several_sigmas(problem: Problem, images: int) -> Callable[[], None]:
    """Return the answer to one y taken at several sigmas, from the first ``images``; not compared with anything."""
    estimator = le.LocalEquivariantMMSE(problem.scene.images[:images], le.Denoising(), problem.patch_size)
    y = problem.scene.measured(le.Denoising(), problem.sigma).expand(len(SIGMAS), -1, -1, -1)

    def run() -> None:
        estimator(y, sigma=torch.tensor(SIGMAS))

    return run


def random_holes(problem: Problem) -> le.Inpainting:
    """Return a mask that hides 30 % of the pixels, at random: hardly two windows see the same."""
    h, w = problem.scene.images.shape[2:]
    return le.Inpainting(le.random_mask(h, w, keep=0.7, generator=torch.Generator().manual_seed(1)))


def halving(problem: Problem) -> le.Downsampling:
    """Return the downsampling by 2: its adjoint leaves three pixels of four empty."""
    return le.Downsampling(2)


def blurred_halving(problem: Problem) -> le.Downsampling:
    """Return the downsampling by 2 after a blur."""
    return le.Downsampling(2, le.optics.gaussian_psf(1.0, size=5))


def random_matrix(physics: Any, shape: tuple[int, int, int]) -> le.Matrix:
    """Return a dense random B whatever the physics: every window is whitened in its own way, in one image space."""
    n = math.prod(shape)
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return le.Matrix(matrix / n**0.5, shape, shape)


# ------------------------------------------------------------------------------------------------------------ baselines


FLOOR = -60.0
"""Log-weights relative to the largest are raised to this: products of subnormal numbers would slow the loop."""

LOOP_ATOMS, LOOP_QUERIES = 2048, 256
"""Windows of images and of the query that meet at once in the loop: pairs of about the size of a processor's cache."""

ATTENTION_ATOMS = 2**14
"""Windows of images that a call of the attention takes: it makes blocks of its own."""


def streamed_loop(problem: Problem) -> Callable[[], Tensor]:
    """Return a loop over blocks of windows with a running softmax: one product for the scores, one for the mean.

    The scores are ⟨q, k⟩/σ² - ‖k‖²/2σ² of centred windows, the norm of the query left out; a column of ones makes the
    product with the colours count the mass too.
    """
    c = problem.scene.images.shape[1]
    queries, centre = _queries(problem)

    def run() -> Tensor:
        peak, sums = torch.full((len(queries), 1), -torch.inf), torch.zeros(len(queries), c + 1)
        for keys, bias, centres in _blocks(problem, centre, LOOP_ATOMS):
            worth = torch.nn.functional.pad(centres, (0, 1), value=1.0)
            for at in range(0, len(queries), LOOP_QUERIES):
                block = slice(at, at + LOOP_QUERIES)
                scores = torch.addmm(bias, queries[block], keys.T)
                higher = torch.maximum(peak[block], scores.amax(1, keepdim=True))
                weights = scores.sub_(higher).clamp_min_(FLOOR).exp_()
                sums[block] = sums[block] * (peak[block] - higher).exp() + weights @ worth
                peak[block] = higher
        return (sums[:, :c] / sums[:, c:]).T.reshape(problem.scene.x.shape)

    return run


def attention(problem: Problem) -> Callable[[], Tensor]:
    """Return PyTorch's fused attention, which streams by itself, over chunks merged by their log-sum-exp.

    -‖k‖²/2σ² is one more entry of the keys, against a 1 of the queries. The call behind
    ``scaled_dot_product_attention`` gives the log-sum-exp too; it wants colours as long as keys, hence zeros.
    """
    c = problem.scene.images.shape[1]
    queries, centre = _queries(problem)
    queries = torch.nn.functional.pad(queries, (0, 1), value=1.0)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def run() -> Tensor:
        mean, log_mass = torch.zeros(len(queries), c), torch.full((len(queries), 1), -torch.inf)
        for keys, bias, centres in _blocks(problem, centre, ATTENTION_ATOMS):
            keys = torch.cat([keys, bias[:, None]], dim=1)
            worth = torch.nn.functional.pad(centres, (0, keys.shape[1] - c))
            means, log_masses = fused(queries[None, None], keys[None, None], worth[None, None], scale=1.0)
            of_chunk = log_masses.reshape(-1, 1)
            together = torch.logaddexp(log_mass, of_chunk)
            mean = (log_mass - together).exp() * mean + (of_chunk - together).exp() * means[0, 0, :, :c]
            log_mass = together
        return mean.T.reshape(problem.scene.x.shape)

    return run


def bare_products(problem: Problem) -> Callable[[], None]:
    """Return the products of windows alone, in blocks that fit a cache: what products of any kind cannot go below."""
    queries, centre = _queries(problem)
    keys, _, _ = next(_blocks(problem, centre, LOOP_ATOMS))
    blocks = problem.scene.images[:, 0].numel() // len(keys)

    def run() -> None:
        for _ in range(blocks):
            for block in queries.split(LOOP_QUERIES):
                block @ keys.T

    return run


def _queries(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the windows of y, centred, over σ²; and the centre, a mean window."""
    centre = extract_patches(problem.scene.images[:100], problem.patch_size).mean((0, 1))
    y = problem.scene.measured(le.Denoising(), problem.sigma)
    return (extract_patches(y, problem.patch_size)[0] - centre) / problem.sigma**2, centre


def _blocks(problem: Problem, centre: Tensor, atoms: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield about so many windows of images at a time, centred, with -‖k‖²/2σ² and their centre pixels."""
    images = problem.scene.images
    for part in images.split(max(1, atoms // images[0, 0].numel())):
        keys = (extract_patches(part, problem.patch_size) - centre).flatten(0, 1)
        bias = keys.square().sum(1) / (-2 * problem.sigma**2)
        yield keys, bias, centre_pixels(part).flatten(0, 1)


# --------------------------------------------------------------------------------------------------------------- tables

MEMORY = at_most("megabytes", 300)


def by_hand(scene: Callable[[int], Scene], d: int, size: int, patch_size: int, faster: float) -> Group:
    """Return the fast path, its reductions, and what one would write by hand; ``faster`` than attention by so much."""
    return Group(
        partial(problem, scene, d, patch_size),
        (
            Case("LocalEquivariantMMSE, PosteriorMean", ours, (MEMORY,)),
            Case("... by products, as without numba", partial(ours, fused=False), (MEMORY,), same_answer=1e-3),
            Case("... PosteriorMoments", partial(ours, reduction=le.PosteriorMoments()), (MEMORY,), same_answer=1e-3),
            Case("... TopSources(5)", partial(ours, reduction=le.TopSources(5)), (MEMORY,)),
            Case("... TopImages(1)", partial(ours, reduction=le.TopImages(1)), (MEMORY,)),
            Case(
                f"... {len(SIGMAS)} sigmas of one y, each (D = {d // 4} timed)",
                partial(several_sigmas, images=d // 4),
                (MEMORY,),
                4 / len(SIGMAS),
            ),
            Case("baseline: streamed loop", streamed_loop, (at_least("ratio", 1),), 1, 1e-3),
            Case("baseline: PyTorch's attention, streamed", attention, (at_least("ratio", faster),), 1, 1e-3),
            Case("limit: the products alone", bare_products),
        ),
        Work(size**4 * d, "pairs"),
    )


REAL_SIZE = (at_most("total", 60), at_most("megabytes", 1024))


def many_patterns(patch_size: int) -> Group:
    """Return masks and downsampling at 32×32×3, beside the one whitener of denoising."""
    return Group(
        partial(problem, colours, 200, patch_size),
        (
            Case("Denoising, B = Id", ours, REAL_SIZE),
            Case(
                "30 % hidden at random, B = A⁺",
                partial(ours, physics=random_holes, pre_inverse=le.PseudoInverse),
                REAL_SIZE,
            ),
            Case("downsampling by 2, B = Aᵀ", partial(ours, physics=halving, pre_inverse=le.Adjoint), REAL_SIZE),
            Case(
                "blur, downsampling by 2, B = Aᵀ",
                partial(ours, physics=blurred_halving, pre_inverse=le.Adjoint),
                REAL_SIZE,
            ),
        ),
    )


def dense(patch_size: int) -> Group:
    """Return a dense B of 768×768 at 16×16×3, of which every window is whitened in a way of its own."""
    size = 16
    return Group(
        partial(problem, partial(colours, size=size), 200, patch_size),
        (
            Case("Denoising, B = Id", ours, REAL_SIZE),
            Case(
                "Denoising, B dense, 768×768",
                partial(ours, pre_inverse=partial(random_matrix, shape=(3, size, size))),
                REAL_SIZE,
            ),
        ),
    )


GROUPS = (
    by_hand(greys, 2000, 28, patch_size=5, faster=2),
    by_hand(colours, 1000, 32, patch_size=5, faster=2),
    by_hand(colours, 1000, 32, patch_size=11, faster=2.5),
    many_patterns(patch_size=5),
    many_patterns(patch_size=11),
    dense(patch_size=5),
    dense(patch_size=11),
)
