"""What a call of the local-equivariant estimator may cost beside others: several sigmas, a second call, memory.

Several sigmas of one y share its distances. Their time is held against that of one at a time, whose mean over the same
sigmas is distances + weighting; *distances* is what a call takes at a sigma so small that nothing but the nearest
windows has a weight, so that no exponential is taken.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean

import torch

import lemmse as le

from .problems import greys
from .settings import SETTINGS, Problem, Setting, estimator, ours
from .table import Case, Claim, Group, at_most

SIGMAS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
TINY = 1e-3
"""A sigma at which weights take no time."""


def sigmas_of_one_y(problem: Problem) -> Callable[[tuple[float, ...]], None]:
    """Return a call for one y and as many sigmas as are asked."""
    made = estimator(problem)
    y = problem.scene.measured(le.Denoising(), problem.sigma)

    def run(sigmas: tuple[float, ...]) -> None:
        made(y.expand(len(sigmas), -1, -1, -1), sigma=torch.tensor(sigmas))

    return run


DISTANCES = f"distances alone (σ = {TINY:g})"
TOGETHER = f"{len(SIGMAS)} sigmas at once"


def _alone(times: dict[str, float]) -> float:
    """Return the mean time of one sigma."""
    return mean(times[f"σ = {sigma:g} alone"] for sigma in SIGMAS)


def over_one(times: dict[str, float]) -> float:
    """Return the time of all sigmas at once over that of one."""
    return times[TOGETHER] / _alone(times)


def over_parts(times: dict[str, float]) -> float:
    """Return the time of all sigmas at once over distances + as many times the weighting."""
    distances, n = times[DISTANCES], len(SIGMAS)
    return times[TOGETHER] / (distances + n * max(0.0, _alone(times) - distances))


def share_of_distances(times: dict[str, float]) -> float:
    """Return the time of the distances over that of one sigma."""
    return times[DISTANCES] / _alone(times)


ALONE = (
    "A small sigma alone takes hardly more than distances: nearly all rows are passed over. Together, each sigma still "
    "looks at every row."
)


def several_sigmas(setting: Setting) -> Group:
    """Return one sigma at a time, all at once, and distances alone."""
    n = len(SIGMAS)
    asked = {DISTANCES: (TINY,)} | {f"σ = {sigma:g} alone": (sigma,) for sigma in SIGMAS} | {TOGETHER: SIGMAS}
    claims = [Claim(f"{n} sigmas at once ÷ (distances + {n} × weighting)", over_parts, 1.15, why=ALONE)]
    if (setting.size, setting.patch_size) == (32, 11):
        claims.append(Claim(f"{n} sigmas at once ÷ one", over_one, 2.2))
    return Group(
        partial(_problem, setting, "sigmas of one y"),
        tuple(Case(label, sigmas_of_one_y, asked=sigmas) for label, sigmas in asked.items()),
        setting.work,
        claims=tuple(claims),
    )


class Anew:
    """An estimator that is made anew and asked twice, with and without a tolerance."""

    def __init__(self, problem: Problem):
        self.problem, self.made = problem, None
        self.y = problem.scene.measured(le.Denoising(), problem.sigma)

    def __call__(self, asked: str) -> None:
        """Do what is asked."""
        if asked == "constructor":
            self.made = estimator(self.problem)
        else:
            self.made(self.y, sigma=self.problem.sigma, tolerance=1e-3 if "tolerance" in asked else 0.0)


FIRST, SECOND = "first call", "second call"
STEPS = ("constructor", FIRST, SECOND, f"{FIRST} with a tolerance", f"{SECOND} with a tolerance")


def from_first_to_second(times: dict[str, float]) -> float:
    """Return by how much a first and a second call differ."""
    return abs(times[FIRST] / times[SECOND] - 1)


def two_calls(setting: Setting) -> Group:
    """Return constructor and calls side by side; the first with a tolerance prepares the screens."""
    return Group(
        partial(_problem, setting, "calls, σ = 0.1"),
        tuple(Case(step, Anew, asked=step) for step in STEPS),
        claims=(Claim("difference of a first and a second call", from_first_to_second, 0.05),),
    )


def memory(images: int) -> Group:
    """Return one call on many images: all that its process ever holds is counted, PyTorch and the images too."""
    setting = Setting(greys, 28, images, 5, colour=False)
    return Group(
        setting.problem,
        (
            Case("exact", ours, (at_most("resident", 1144),)),
            Case("exact, by products", partial(ours, numba=False), (at_most("resident", 1144),)),
            Case("certified", partial(ours, tolerance=1e-3), (at_most("resident", 1144),)),
        ),
        setting.work,
        once=True,
    )


def _problem(setting: Setting, asked: str) -> Problem:
    return replace(setting.problem(), asked=asked)


IMAGES = (160, 160, 100, 100, 10)
"""Images at each setting: a call takes some tenths of a second."""


def groups(quick: bool) -> tuple[Group, ...]:
    """Return several sigmas and two calls at each setting, and the memory; or two settings with few images."""
    if quick:
        return several_sigmas(SETTINGS[3].of(40)), two_calls(SETTINGS[0].of(100)), memory(200)
    settings = [setting.of(count) for setting, count in zip(SETTINGS, IMAGES, strict=True)]
    return (*map(several_sigmas, settings), *map(two_calls, settings), memory(10_000))
