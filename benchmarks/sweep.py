"""Our exact and our certified path from little noise to much, for three pre-inverses.

The certified path leaves out windows that provably move no mean by more than a thousandth, where that is faster, and is
the exact one elsewhere. For denoising with windows of 11 pixels it is held against the exact path by
matrix products, too; other pre-inverses are measured on fewer images.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import lemmse as le

from .settings import SETTINGS, Problem, Setting, denoising, exact_means, exact_rows, ours
from .table import Case, Group, at_least, at_most

SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0)
TOLERANCE = 1e-3

ROUNDING = 2e-5
"""How much the means of float32 may differ from the truth beside their error bounds, for denoising."""

SMALL = 0.2
"""The largest sigma at which a screen has to pay."""


KERNEL = "The fused kernel takes less time than the screen would, so the exact path answers, within any tolerance."


def blur(problem: Problem) -> le.Blur:
    """Return a Gaussian blur of 1 pixel."""
    return le.Blur(le.optics.gaussian_psf(1.0, size=9))


def centre_hole(problem: Problem) -> le.Inpainting:
    """Return a mask that hides 15×15 pixels in the middle."""
    return le.Inpainting(le.center_mask(*problem.scene.images.shape[2:], side=15))


PRE_INVERSES = {
    "B = Id": (denoising, None),
    "blur, B = A⁺": (blur, le.PseudoInverse),
    "centre hole, B = A⁺": (centre_hole, le.PseudoInverse),
}


def _labels(sigma: float) -> tuple[str, str, str]:
    return f"σ = {sigma:g}: exact", f"σ = {sigma:g}: exact, by products", f"σ = {sigma:g}: certified"


def sweep(setting: Setting, name: str, products: bool = False, sigmas: tuple[float, ...] = SIGMAS) -> Group:
    """Return the exact and the certified path at each sigma, with the path by products where it is not the exact one.

    ``products`` at SMALL sigmas, and the certified path is then held to be three times as fast.
    """
    physics, pre_inverse = PRE_INVERSES[name]
    paths = [partial(ours, physics=physics, pre_inverse=pre_inverse, **facts) for facts in _PATHS]
    cases = [case for sigma in sigmas for case in _at(sigma, paths, products and sigma <= SMALL, pre_inverse is None)]
    truth = partial(exact_rows, sigmas=sigmas)
    if pre_inverse is not None:
        truth = partial(exact_means, physics=physics, pre_inverse=pre_inverse, sigmas=sigmas)
    return Group(partial(_problem, setting, name), tuple(cases), setting.work, truth)


_PATHS = ({}, {"numba": False}, {"tolerance": TOLERANCE})


def _at(sigma: float, paths: list[Callable], products: bool, plain: bool) -> Iterator[Case]:
    exact, by_products, certified = _labels(sigma)
    yield Case(exact, paths[0], asked=sigma, same_answer=1.0)
    targets = [at_most("ratio", 1.15, exact, *([by_products] if products else []))]
    if products:
        yield Case(by_products, paths[1], asked=sigma, same_answer=1.0)
        targets += [at_least("speedup", 3, by_products), at_least("certified", 0.9, why=KERNEL)]
    if plain:
        targets.append(at_most("error - bound", ROUNDING))
    yield Case(certified, paths[2], tuple(targets), asked=sigma, same_answer=1.0)


def _problem(setting: Setting, name: str) -> Problem:
    return replace(setting.problem(), asked=name)


IMAGES, OTHERS = (1000, 1000, 500, 500, 100), (100, 100, 60, 60, 6)
"""Images at each setting for denoising, and for other pre-inverses, which are compared with float64 in all pixels."""


def groups(quick: bool) -> tuple[Group, ...]:
    """Return a group per setting and pre-inverse; the quick ones are few, with few images and sigmas."""
    if quick:
        small, few = SETTINGS[0].of(60), (0.1, 1.0)
        return (sweep(SETTINGS[3].of(100), "B = Id", True, few), sweep(small, "centre hole, B = A⁺", sigmas=few))
    found = []
    for name in PRE_INVERSES:
        for setting, count in zip(SETTINGS, IMAGES if name == "B = Id" else OTHERS, strict=True):
            found.append(sweep(setting.of(count), name, name == "B = Id" and setting.patch_size == 11))
    return tuple(found)
