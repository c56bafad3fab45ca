"""The settings that the local estimator is measured at, its paths, and what its answers are compared with.

A pair is a window of the measurement and a window of an image: their number is what a run gets through.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import lemmse as le
from lemmse.patches import centre_pixels, extract_patches

from .problems import Scene, colours, greys
from .table import Bounded, Work

__all__ = ["SETTINGS", "Problem", "Setting", "denoising", "estimator", "exact_rows", "ours", "without_numba"]


@dataclass(frozen=True)
class Problem:
    """A scene, the noise's ``sigma``, the side of the windows, and what is ``asked`` where that is not one sigma."""

    scene: Scene
    sigma: float
    patch_size: int
    asked: str = ""

    def __str__(self) -> str:
        return f"{self.scene}, float32, {self.asked or f'σ = {self.sigma:g}'}, P = {self.patch_size}"

    @property
    def pixels(self) -> Tensor:
        """Return all pixels in a scattered order, so that any number of the first is a fair sample."""
        return torch.randperm(self.scene.x[0, 0].numel(), generator=torch.Generator().manual_seed(4))

    def rows(self, mean: Tensor) -> Tensor:
        """Return a mean (1, c, h, w) as rows (N, c) in the order of ``pixels``."""
        return mean.flatten(2)[0].T[self.pixels]


@dataclass(frozen=True)
class Setting:
    """Images of a kind, of a size, so many of them, and the side of the windows."""

    scene: Callable[[int], Scene]
    size: int
    images: int
    patch_size: int
    colour: bool = True

    @property
    def name(self) -> str:
        """Return what it is, in a few words."""
        return f"{self.size}×{self.size}×{3 if self.colour else 1}, P = {self.patch_size}"

    def of(self, images: int) -> "Setting":
        """Return the setting with so many images, if that is fewer."""
        return replace(self, images=min(images, self.images))

    def problem(self, sigma: float = 0.1) -> Problem:
        """Return the problem at a sigma."""
        return Problem(self.scene(self.images), sigma, self.patch_size)

    @property
    def work(self) -> Work:
        """Return the pairs of windows that one measurement makes."""
        return Work(self.size**4 * self.images, "pairs")


SETTINGS = (
    Setting(greys, 28, 2000, 5, colour=False),
    Setting(greys, 28, 2000, 11, colour=False),
    Setting(colours, 32, 1000, 5),
    Setting(colours, 32, 1000, 11),
    Setting(partial(colours, size=64), 64, 200, 11),
)


# ------------------------------------------------------------------------------------------------------------ our paths


@contextlib.contextmanager
def without_numba() -> Iterator[None]:
    """Let the package find no numba, as where the extra ``fast`` is not installed."""
    find = importlib.util.find_spec
    with patch.object(importlib.util, "find_spec", lambda name, *rest: None if name == "numba" else find(name, *rest)):
        yield


def denoising(problem: Problem) -> le.Denoising:
    """Return A = Id."""
    return le.Denoising()


def estimator(
    problem: Problem,
    physics: Callable[[Problem], Any] = denoising,
    pre_inverse: Callable[[Any], Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> le.LocalEquivariantMMSE:
    """Return the estimator; ``physics`` makes A from the problem, and ``pre_inverse`` B from A."""
    A = physics(problem)
    B = None if pre_inverse is None else pre_inverse(A)
    return le.LocalEquivariantMMSE(problem.scene.images.to(dtype), A, problem.patch_size, pre_inverse=B)


def ours(
    problem: Problem,
    physics: Callable[[Problem], Any] = denoising,
    pre_inverse: Callable[[Any], Any] | None = None,
    reduction: le.reductions.Reduction | None = None,
    tolerance: float = 0.0,
    numba: bool = True,
) -> Callable[..., Tensor | Bounded | None]:
    """Return the estimator's answer, at another sigma if one is asked: the mean in rows, where it has one.

    Unless ``numba``, the answer comes as it does where numba is not installed. With a ``tolerance`` it has bounds.
    """
    installed = contextlib.nullcontext if numba else without_numba
    with installed():
        made = estimator(problem, physics, pre_inverse)

    def run(sigma: float = problem.sigma) -> Tensor | Bounded | None:
        y = problem.scene.measured(made.physics, sigma)
        with installed():
            posterior = made(y, sigma=sigma, reduction=reduction, tolerance=tolerance)
        mean = getattr(posterior, "mean", None)
        if tolerance:
            return Bounded(problem.rows(mean), problem.rows(posterior.error_bound))
        return None if mean is None else problem.rows(mean)

    return run


# ---------------------------------------------------------------------------------------------------------------- truth

ROWS = 64
"""Pixels, the first of a problem's, whose answer is computed in float64 from differences of whole windows."""


def exact_rows(problem: Problem, sigmas: tuple[float, ...] | None = None) -> Callable[[], Tensor | dict[float, Tensor]]:
    """Return the mean of ROWS pixels for denoising in float64, at each of some sigmas if they are named."""

    def run() -> Tensor | dict[float, Tensor]:
        found = {sigma: _exact_rows(problem, sigma) for sigma in sigmas or (problem.sigma,)}
        return found if sigmas else found[problem.sigma]

    return run


def _exact_rows(problem: Problem, sigma: float) -> Tensor:
    y = problem.scene.measured(le.Denoising(), sigma).double()
    queries = extract_patches(y, problem.patch_size)[0][problem.pixels[:ROWS]]
    halves, worth = [], centre_pixels(problem.scene.images).flatten(0, 1).double()
    for part in problem.scene.images.split(16):
        keys = extract_patches(part.double(), problem.patch_size).flatten(0, 1)
        halves.append(torch.cdist(queries, keys, compute_mode="use_mm_for_euclid_dist").square() / 2)
    return torch.stack([(row / -(sigma**2)).softmax(0) @ worth for row in torch.cat(halves, dim=1)])


def exact_means(
    problem: Problem, physics: Callable[[Problem], Any], pre_inverse: Callable[[Any], Any], sigmas: tuple[float, ...]
) -> Callable[[], dict[float, Tensor]]:
    """Return the estimator's mean in float64 at some sigmas, from the same images and measurements."""
    made = estimator(problem, physics, pre_inverse, torch.float64)

    def run() -> dict[float, Tensor]:
        measured = {sigma: problem.scene.measured(physics(problem), sigma).double() for sigma in sigmas}
        return {sigma: problem.rows(made(y, sigma=sigma).mean) for sigma, y in measured.items()}

    return run
