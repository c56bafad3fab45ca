"""The local-equivariant estimator's reductions, and pre-inverses that show windows different things."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import lemmse as le

from .problems import Scene, colours
from .settings import SETTINGS, Problem, Setting, ours
from .table import Case, Group, at_most


def problem(scene: Callable[[int], Scene], d: int, patch_size: int, sigma: float = 0.1) -> Problem:
    """Return the problem of a scene of d images."""
    return Problem(scene(d), sigma, patch_size)


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


# --------------------------------------------------------------------------------------------------------------- tables

MEMORY = at_most("megabytes", 300)


def reductions(setting: Setting) -> Group:
    """Return what the other reductions take beside the mean, which alone comes from the fused kernel."""
    return Group(
        setting.problem,
        (
            Case("PosteriorMean", ours, (MEMORY,)),
            Case("... by products, as without numba", partial(ours, numba=False), (MEMORY,), same_answer=1e-3),
            Case("PosteriorMoments", partial(ours, reduction=le.PosteriorMoments()), (MEMORY,), same_answer=1e-3),
            Case("TopSources(5)", partial(ours, reduction=le.TopSources(5)), (MEMORY,)),
            Case("TopImages(1)", partial(ours, reduction=le.TopImages(1)), (MEMORY,)),
        ),
        setting.work,
        repeats=3,
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
        repeats=3,
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
        repeats=3,
    )


def groups(quick: bool) -> tuple[Group, ...]:
    """Return the reductions at an eighth of the images, and the pre-inverses; the quick one is small."""
    if quick:
        return (reductions(SETTINGS[2].of(50)),)
    of_reductions = (reductions(setting.of(setting.images // 8)) for setting in SETTINGS[:4])
    return (*of_reductions, *(make(patch_size) for make in (many_patterns, dense) for patch_size in (5, 11)))
