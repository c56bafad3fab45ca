"""One query of the unconstrained estimator on 60 000 images of 28×28, beside what a user could pick.

The images are Fashion-MNIST where its IDX files can be had, else random numbers; the table says which.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import lemmse as le

from .deepinverse import import_deepinv
from .problems import Problem, denoising, fashion
from .table import Case, Group, at_most

SIGMA = 0.2


def clothes(count: int) -> Problem:
    """Return the problem: an image of the set itself, with noise."""
    try:
        problem = fashion(count, SIGMA)
        images, name = problem.images, problem.name
    except FileNotFoundError:
        images = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        name = "random numbers"
    return denoising(images, images[:1], SIGMA, name)


def ours(problem: Problem, reduction: le.reductions.Reduction) -> Callable[[], Tensor | None]:
    """Return the estimator's answer to the query: its mean, where it has one."""
    estimator = le.MMSE(problem.images, le.Denoising())
    return lambda: getattr(estimator(problem.y, sigma=problem.sigma, reduction=reduction), "mean", None)


def broadcast(problem: Problem) -> Callable[[], Tensor]:
    """Return what one writes first: differences with every image, held in memory."""
    images, y, sigma = problem.images, problem.y, problem.sigma

    def run() -> Tensor:
        weights = (-(images - y).square().flatten(1).sum(1) / (2 * sigma**2)).softmax(0)
        return torch.einsum("d,dchw->chw", weights, images)[None]

    return run


def cdist(problem: Problem) -> Callable[[], Tensor]:
    """Return pairwise distances by torch.cdist, from exact differences, and what follows."""
    images, y, sigma = problem.images, problem.y, problem.sigma

    def run() -> Tensor:
        d = torch.cdist(y.flatten(1), images.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        return ((-d.square() / (2 * sigma**2)).softmax(1) @ images.flatten(1)).reshape(y.shape)

    return run


def deepinv_mmse(problem: Problem) -> Callable[[], Tensor]:
    """Return the estimate by deepinv's ``MMSE`` denoiser, which takes the images as a tensor."""
    deepinv = import_deepinv()
    denoiser = deepinv.models.MMSE(problem.images, device=problem.images.device)

    def run() -> Tensor:
        with torch.no_grad():
            return denoiser(problem.y, sigma=problem.sigma)

    return run


BUDGET = (at_most("seconds", 1), at_most("megabytes", 600))


def one_query(count: int) -> Group:
    """Return the reductions, and what else a user could pick, on so many images."""
    return Group(
        partial(clothes, count),
        (
            Case("MMSE, PosteriorMean", partial(ours, reduction=le.PosteriorMean()), BUDGET),
            Case("MMSE, PosteriorMoments", partial(ours, reduction=le.PosteriorMoments()), BUDGET, same_answer=1e-5),
            Case("MMSE, TopSources(9)", partial(ours, reduction=le.TopSources(9)), BUDGET),
            Case("MMSE, TopImages(9)", partial(ours, reduction=le.TopImages(9)), BUDGET),
            Case("broadcast differences", broadcast, same_answer=1e-3),
            Case("torch.cdist", cdist, same_answer=1e-3),
            Case("deepinv's MMSE", deepinv_mmse, same_answer=1e-3, needs=("deepinv", "torchvision")),
        ),
    )


def groups(quick: bool) -> tuple[Group, ...]:
    """Return the one group, with fewer images where it has to be quick."""
    return (one_query(5_000 if quick else 60_000),)
