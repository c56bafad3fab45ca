"""How far from the truth an estimate can be: the sparsity of its weights, certificates, recovery bounds (S7, S8).

For y = A x + e, atoms x_d, ρ_d = ‖A(x_d - x)‖ and r_d = ‖A x_d - y‖ (with Π A and Π e for a pre-inverse B, Π the
projector onto Im Bᵀ), ε ≥ ‖e‖, r_* = min ρ_d and α = min ρ_d/‖x_d - x‖ over the atoms that differ from x, all bounds
are of one form: ‖x̂ - x‖ ≤ E_w‖x_d - x‖ ≤ √(E_w ρ²)/α, and the weights keep E_w r² close to the smallest r².

====================  ============================================================================  ==============
``published_bound``   (r_* + 2ε + σ√(2 ln D))/α                                                     R1
``sharp_bound``       (r_* + 2ε + σ√(2W))/α, W = W((D-1)/e) with Lambert's function                  R2
``residual_bound``    (√(r_1² + 2σ²W) + ε)/α: the bias vanishes where the residual is large          R3
``certificate``       (√(E_w r²) + ε)/α, with the E_w r² of a ``Moments``                            R4
``gaussian_bound``    (στ + √((r_* + στ)² + 2σ²W))/α with probability 1 - δ, free of dimensions      R5
``prior_bound``       R1 and R3 for atoms that are not equally probable                              S8.6
====================  ============================================================================  ==============

Which of these can be observed: r_d, w, H, E_w r² and x̂ follow from y and the atoms; σ is assumed, and with it ε
(``noise_radius``). r_*, α and ‖e‖ need the truth: only a simulation knows them, except that ``window_alpha_floor``
bounds α from below for denoising, masks and inverse filters, and ``set_injectivity`` puts the atoms in the place of the
truth. A bound whose α is 0 is infinite, and says which atom cannot be told from the truth.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ._checks import checked_moments
from ._progress import progress
from .estimators import LocalEquivariantMMSE
from .image_sets import as_image_set
from .operators import Nonlinear, apply_in_float64, as_operator, row_space_projector
from .patches import centre_pixels, windows_at
from .reductions import Moments, Sources
from .strata import Stratum, WindowClass

__all__ = [
    "Injectivity",
    "LocalBounds",
    "VacuousBoundWarning",
    "WindowFacts",
    "bias",
    "certificate",
    "gaussian_bound",
    "image_bound",
    "injectivity",
    "largest_excess",
    "local_bounds",
    "mass_outside",
    "nearest_squared_residual",
    "noise_radius",
    "prior_bound",
    "published_bias",
    "published_bound",
    "residual_bound",
    "residual_excess",
    "restricted_injectivity",
    "set_injectivity",
    "sharp_bound",
    "squared_gaps",
    "window_alpha_floor",
    "window_facts",
]

ROUNDING = 1e-13
"""Of ‖q‖² + ‖k‖²: how far rounding may move the squared distance of two windows that a matrix product compares, in
float64. Bounds take it on the safe side."""

COLLISION = 1e-13
"""Of the lengths of two measurements: how near they are where only rounding in float64 tells them apart."""

PAIRS = 2**20
"""Pairs of windows, or entries of differences, that are held at once."""

PROBES = 3
"""Random images that B A is tried on, to see which pixels it leaves as they are."""

Number = float | Tensor


class VacuousBoundWarning(UserWarning):
    """A bound says nothing: an atom that differs from the truth has the same measurement."""


# ------------------------------------------------------------------------------------------------- sparsity of weights


def residual_excess(moments: Moments) -> Float[Tensor, "b ..."]:
    """Return H(w) + ln w_1 of every query, in nats: between 0 and ``largest_excess`` of the number of atoms.

    For equally probable atoms, which those with different pseudo-determinants are not, 2σ² times this is E_w r² - r_1²,
    by how much the mean squared residual exceeds the smallest one; observable. Raises ``TypeError`` for what is no
    ``Moments``. Source: S7.1, the exact identity E_w r² = r_1² + 2σ²(H + ln w_1).
    """
    checked_moments(moments, "residual_excess")
    return (moments.entropy + moments.log_max_weight).clamp_min(0)


def nearest_squared_residual(moments: Moments, sigma: Number) -> Float[Tensor, "b ..."]:
    """Return r_1², the smallest squared residual, from moments alone: E_w r² - 2σ²(H + ln w_1), in squared units of y.

    Exact for equally probable atoms: ``MMSE``, ``EquivariantMMSE``, and the local estimator where the windows of a
    stratum have one pseudo-determinant. ``sigma`` (a number, or one per query) is that of the moments. Observable.
    Raises ``TypeError`` for what is no ``Moments`` and ``ValueError`` for a sigma that is not positive. Source: S7.1.
    """
    excess = residual_excess(moments)
    return (moments.mean_squared_residual - 2 * _squared(sigma, excess) * excess).clamp_min(0)


def squared_gaps(sources: Sources, sigma: Number) -> Float[Tensor, "b ... k"]:
    """Return r_k² - r_1² of the listed atoms, in squared units of y: 2σ² ln(w_1/w_k), ``inf`` of those without weight.

    ``sources`` are those of ``TopSources`` at this ``sigma``, heaviest first, of equally probable atoms. Observable.
    Raises ``TypeError`` for what is no ``Sources``, ``ValueError`` for a sigma that is not positive. Source: S7.2.
    """
    if not isinstance(sources, Sources):
        raise TypeError(f"squared_gaps needs the Sources of TopSources(k): got {type(sources).__name__}.")
    log_weight = sources.weight.log()
    return 2 * _squared(sigma, log_weight) * (log_weight[..., :1] - log_weight)


def mass_outside(gap: Number, count: Number, sigma: Number) -> Tensor:
    """Return the most that all atoms but the nearest can weigh together: (D - 1) exp(-(r_2² - r_1²)/2σ²), at most 1.

    ``gap`` is r_2² - r_1² ≥ 0 in squared units of y, ``count`` is D. One atom is left alone once the gap passes
    2σ² ln D: that one other atom is negligible says nothing of all others together. Observable. Raises ``ValueError``
    for a negative gap, D < 1 or a sigma that is not positive. Source: S7.2.
    """
    gap, count = _non_negative(gap, "gap"), _checked_count(count)
    return ((count - 1) * torch.exp(-gap / (2 * _squared(sigma, gap)))).clamp_max(1)


def largest_excess(count: Number) -> Float64[Tensor, "..."]:
    """Return the largest H(w) + ln w_1 of any weights on D atoms: W = W((D - 1)/e), with Lambert's principal function.

    In nats; 0 for D = 1, below ln D always, 10.467 at D = 10⁶. Reached where one atom is near and all others equally
    far. Given w_1 = q the other weights should be equal: that leaves (1 - q) t with t = ln(q(D - 1)/(1 - q)), largest
    at (t - 1) exp(t) = D - 1, where it is t - 1 = W. Raises ``ValueError`` for D < 1. Source: R2 of S8.
    """
    count = _checked_count(count)
    z = ((count - 1) / math.e).clamp_min(0)
    w = torch.log1p(z)  # above the solution, and Newton's steps of a convex function come down to it
    for _ in range(60):
        step = (w - z * torch.exp(-w)) / (1 + w)
        w = w - step
        if bool((step.abs() <= 1e-16 * (1 + w)).all()):
            break
    return w


# ------------------------------------------------------------------------------------------------------------- the bias


def published_bias(sigma: Number, count: Number) -> Tensor:
    """Return σ√(2 ln D), what the published bound adds for the D atoms, in units of y: 5.26σ at D = 10⁶ (R1 of S8).

    Raises ``ValueError`` for D < 1 or a sigma that is not positive.
    """
    return _published(sigma, count)


def _published(sigma: Number, count: Number, *met: Number) -> Tensor:
    count = _checked_count(count)
    return (2 * _squared(sigma, count, *met) * count.log()).sqrt()


def bias(sigma: Number, count: Number, nearest_residual: Number = 0.0, excess: Number | None = None) -> Tensor:
    """Return √(r_1² + 2σ²W) - r_1, in units of y: how much larger than the smallest residual √(E_w r²) can be.

    At r_1 = 0 it is 4.58σ for D = 10⁶ and never more than ``published_bias``; it is at most σ²W/r_1, and vanishes
    where the residual is large. ``excess`` is an observed ``residual_excess`` in the place of W, which makes it exact.
    Raises ``ValueError`` for D < 1, a negative residual or excess, or a sigma that is not positive. Source: R2 and R3.
    """
    r, w = _non_negative(nearest_residual, "nearest_residual"), _excess(count, excess)
    added = 2 * _squared(sigma, w, r) * w
    return added / (r + (r.square() + added).sqrt()).clamp_min(torch.finfo(torch.float64).tiny)


# ---------------------------------------------------------------------------------------------------------- injectivity


@dataclass(frozen=True)
class Injectivity:
    """How well A tells the atoms from the truth: what every bound is divided by. Only a simulation knows it.

    ``alpha`` = min ρ/‖x_d - x‖ over the atoms that differ from x, in units of y per unit of x, ``inf`` where none does;
    ``nearest`` = r_* = min ρ, in units of y. ``atom`` and ``nearest_atom`` say who attains them (-1: nobody), and
    ``distance`` is ‖x_d - x‖ of the former. All of one shape. ``note`` says which atoms collide with the truth.
    ``of_a_pair``: of ``set_injectivity``, where ``atom`` and ``nearest_atom`` are the pair.
    """

    alpha: Float64[Tensor, "..."]
    nearest: Float64[Tensor, "..."]
    atom: Int64[Tensor, "..."]
    nearest_atom: Int64[Tensor, "..."]
    distance: Float64[Tensor, "..."]
    of_a_pair: bool = False

    @property
    def note(self) -> str:
        """Return which atoms have the measurement of the truth without being it; empty where there are none."""
        if self.of_a_pair:
            both = f"images {int(self.atom)} and {int(self.nearest_atom)} have one measurement and lie"
            told = f"alpha is 0 and bounds are infinite: {both} {float(self.distance):.4g} apart."
            return told if float(self.alpha) == 0 else ""
        places = (self.alpha == 0).nonzero().tolist()
        found = [
            f"atom {int(self.atom[tuple(at)])} has the measurement of truth {', '.join(map(str, at)) or '0'} and lies "
            f"{float(self.distance[tuple(at)]):.4g} from it"
            for at in places[:3]
        ]
        more = f"; so do {len(places) - 3} others" if len(places) > 3 else ""
        return f"alpha is 0 and bounds are infinite: {'; '.join(found)}{more}." if places else ""


def injectivity(residuals: Float[Tensor, "... K"], distances: Float[Tensor, "... K"]) -> Injectivity:
    """Return α = min ρ_k/distance_k over atoms of positive distance, and r_* = min ρ_k, along the last axis.

    ``residuals`` are ρ_k ≥ 0 in units of y. For a blind problem the atoms are pairs (operator, image), flattened, and
    ``distances`` those of images, ‖x_d - x‖, or of operators, ‖A_q - A‖_F: two calls, two alphas, and every bound
    holds for x̂ or Â with D replaced by the number of pairs. Raises ``ValueError`` for shapes that differ, no atoms, or
    negative numbers. Source: S8, S9.5.
    """
    if residuals.shape != distances.shape or not residuals.ndim or not residuals.shape[-1]:
        raise ValueError(
            "injectivity takes the residual and the distance of every atom, two tensors (..., K) with K >= 1: got "
            f"{tuple(residuals.shape)} and {tuple(distances.shape)}."
        )
    rho, far = _non_negative(residuals, "residuals"), _non_negative(distances, "distances")
    ratio = torch.where(far > 0, rho / far, torch.inf)
    alpha, atom = ratio.min(-1)
    nearest, nearest_atom = rho.min(-1)
    atom = atom.where(alpha.isfinite(), -1)
    distance = far.gather(-1, atom.clamp_min(0)[..., None])[..., 0]
    return Injectivity(alpha, nearest, atom, nearest_atom, distance)


def restricted_injectivity(
    images: Any, physics: Any, x: Float[Tensor, "b c h w"], pre_inverse: Any = None
) -> Injectivity:
    """Return α(x) and r_* of every x (b, c, h, w) on a finite set of images, (b,) each, in float64.

    ``images``, ``physics`` and ``pre_inverse`` are those of ``MMSE``, and so is what is bounded; all shifts of images
    (``lemmse.data.ShiftedImages``) serve ``EquivariantMMSE`` where B A and B Bᵀ commute with all shifts (S4.3), and not
    for masks. Images that equal x are left out of α; a ρ that is rounding, COLLISION of the measurements' lengths, is
    0. Costs one pass, D differences for each x. Simulation only: it needs the truth. Raises ``ValueError`` where x has
    not the shape of the images, or there is none. Source: S8.
    """
    measure, found = _measure(physics, pre_inverse), as_image_set(images)
    count = found.shape[0]
    if tuple(x.shape[1:]) != tuple(found.shape[1:]) or not len(x):
        raise ValueError(
            f"x must be (b, {', '.join(map(str, found.shape[1:]))}), like the images: got {tuple(x.shape)}."
        )
    seen, truth = measure(x), x.double()
    step = max(1, PAIRS // math.prod(found.shape[1:]))
    parts = []
    for start in progress(range(0, count, step), description="restricted injectivity", unit="chunk"):
        atoms = found[start : start + step]
        keys, atoms = measure(atoms), atoms.double()
        rho = torch.stack([_residuals(keys, each) for each in seen])
        far = torch.stack([(atoms - each).flatten(1).norm(dim=1) for each in truth])
        parts.append((start, injectivity(rho, far)))
    return _least(parts)


def set_injectivity(images: Any, physics: Any, pre_inverse: Any = None) -> Injectivity:
    """Return the smallest ρ/‖x_d - x_d'‖ over the pairs of a set of images: α with an atom for the truth.

    Scalars; ``atom`` is the first image of the pair, ``nearest_atom`` the second, and ``nearest`` is their ρ. It is a
    surrogate of α(x) that can be observed, an estimate and no certificate: the truth need not lie as the images do. For
    two unequal images with one measurement it is 0, and the note names both. Holds all images and their measurements in
    float64; costs D² differences; D ≥ 2, else ``ValueError``. Source: S8.
    """
    measure, found = _measure(physics, pre_inverse), as_image_set(images)
    count = found.shape[0]
    if count < 2:
        raise ValueError(f"set_injectivity compares the images of a set in pairs: got {count} image.")
    atoms = found[0:count]
    keys, atoms = measure(atoms), atoms.double()
    step, best = max(1, PAIRS // math.prod(found.shape[1:])), None
    for i in progress(range(count - 1), description="pairs of images", unit="image"):
        for start in range(i + 1, count, step):
            part = slice(start, start + step)
            rho, far = _residuals(keys[part], keys[i]), (atoms[part] - atoms[i]).flatten(1).norm(dim=1)
            of_part = injectivity(rho, far)
            if best is None or of_part.alpha < best.alpha:
                j = max(0, int(of_part.atom))
                pair = {"atom": torch.tensor(i), "nearest_atom": torch.tensor(start + j), "nearest": rho[j]}
                best = replace(of_part, **pair, of_a_pair=True)
    return best


def _residuals(keys: Float64[Tensor, "k ..."], seen: Float64[Tensor, "..."]) -> Float64[Tensor, " k"]:
    """Return ρ = ‖keys - seen‖, 0 where it is rounding."""
    rho = (keys - seen).flatten(1).norm(dim=1)
    return rho.where(rho > COLLISION * (keys.flatten(1).norm(dim=1) + seen.norm()), 0.0)


def _measure(physics: Any, pre_inverse: Any) -> Callable[[Tensor], Tensor]:
    """Return Π A in float64."""
    forward, B = as_operator(physics).A, None if pre_inverse is None else as_operator(pre_inverse)
    projector = cache(partial(row_space_projector, B))  # found once, for the shape of all measurements

    def measure(x: Tensor) -> Tensor:
        y = apply_in_float64(forward, x).double()
        return y if B is None else projector(tuple(y.shape[1:]))(y)

    return measure


def _least(parts: list[tuple[int, Injectivity]]) -> Injectivity:
    """Return the injectivity of all atoms from those of parts, each with the number of its first atom."""
    alphas, nearests = (torch.stack([getattr(each, name) for _, each in parts]) for name in ("alpha", "nearest"))
    (alpha, i), (nearest, j) = alphas.min(0), nearests.min(0)

    def of(name: str, part: Tensor, *, counted: bool) -> Tensor:
        every = [getattr(each, name) for _, each in parts]
        if counted:
            every = [torch.where(x >= 0, x + start, x) for (start, _), x in zip(parts, every, strict=True)]
        return torch.stack(every).gather(0, part[None])[0]

    atom, nearest_atom = of("atom", i, counted=True), of("nearest_atom", j, counted=True)
    return Injectivity(alpha, nearest, atom, nearest_atom, of("distance", i, counted=False))


# --------------------------------------------------------------------------------------------------------------- bounds


def published_bound(
    alpha: Number | Injectivity, nearest: Number, epsilon: Number, sigma: Number, count: Number
) -> Tensor:
    """Return (r_* + 2ε + σ√(2 ln D))/α ≥ ‖x̂ - x‖, in units of x: R1, for any noise with ‖e‖ ≤ ε.

    ``alpha`` is α, or the ``Injectivity`` that knows it; ``nearest`` is r_* and ``epsilon`` ≥ ‖e‖, in units of y;
    ``count`` is D ≥ 1. All broadcast; a ``sigma`` (b,) runs along the first axis of what has most. Its three terms,
    each over α, say what is missing: a nearby image, a quiet measurement, a small set. Simulation only (r_*, α). Where
    α is 0 it is infinite, and an ``Injectivity`` warns (``VacuousBoundWarning``) which pair collides. Raises
    ``ValueError`` for negative numbers, D < 1, or a sigma that is not positive. Proof: √(E_w r²) ≤ r_1 + σ√(2 ln D),
    r_1 ≤ r_* + ε and ρ ≤ r + ε. Source: R1 of S8 (arXiv 2601.10334).
    """
    radius = _non_negative(nearest, "nearest") + 2 * _non_negative(epsilon, "epsilon")
    return _over(radius + _published(sigma, count, radius, _alpha(alpha)), alpha)


def sharp_bound(alpha: Number | Injectivity, nearest: Number, epsilon: Number, sigma: Number, count: Number) -> Tensor:
    """Return (r_* + 2ε + σ√(2W))/α ≥ ‖x̂ - x‖: R2, ``published_bound`` with the worst case of the weights.

    Arguments, units and errors as there; never above it. For one atom at the truth and D - 1 copies of one that
    is far, ‖x̂ - x‖ reaches 96 % of √(2W) σ at D = 10⁶. Proof: ``largest_excess``. Source: R2 of S8.
    """
    radius = _non_negative(nearest, "nearest") + 2 * _non_negative(epsilon, "epsilon")
    return _over(radius + bias(sigma, count, torch.zeros_like(radius + _alpha(alpha))), alpha)


def residual_bound(
    alpha: Number | Injectivity, nearest_residual: Number, epsilon: Number, sigma: Number, count: Number
) -> Tensor:
    """Return (√(r_1² + 2σ²W) + ε)/α ≥ ‖x̂ - x‖: R3, whose bias vanishes where the smallest residual r_1 is large.

    ``nearest_residual`` is r_1, which can be observed (``nearest_squared_residual``), in units of y; the others as in
    ``published_bound``, which is never smaller for one problem, as r_1 ≤ r_* + ε. Source: R3 of S8.
    """
    r, epsilon = _non_negative(nearest_residual, "nearest_residual"), _non_negative(epsilon, "epsilon")
    return _over(r + bias(sigma, count, r + torch.zeros_like(epsilon + _alpha(alpha))) + epsilon, alpha)


def certificate(alpha: Number | Injectivity, mean_squared_residual: Number, epsilon: Number) -> Tensor:
    """Return (√(E_w r²) + ε)/α, a bound of √(E_w‖x_d - x‖²), so of ‖x̂ - x‖ and of the posterior's spread: R4.

    ``mean_squared_residual`` is that of a ``Moments``, in squared units of y, observed; ``epsilon`` ≥ ‖e‖ as assumed.
    Given α it is an a-posteriori certificate, for any weights and priors; for equally probable atoms never above R3 of
    the same problem. In single precision E_w r² is rounded: near an atom, take moments in float64. Errors as in
    ``published_bound``. Proof: ‖x̂ - x‖² ≤ E_w‖x_d - x‖² ≤ E_w ρ²/α², and √(E_w ρ²) ≤ √(E_w r²) + ε by Minkowski.
    Source: R4 of S8.
    """
    r2 = _non_negative(mean_squared_residual, "mean_squared_residual")
    return _over(r2.sqrt() + _non_negative(epsilon, "epsilon"), alpha)


def gaussian_bound(
    alpha: Number | Injectivity,
    nearest: Number,
    sigma: Number,
    count: Number,
    delta: float,
    excess: Number | None = None,
) -> Tensor:
    """Return (στ + √((r_* + στ)² + 2σ²W))/α, τ = √(2 ln((D + 1)/2δ)): with probability ≥ 1 - δ ≥ ‖x̂ - x‖. R5.

    For Gaussian noise that is independent of x and the atoms; the number of measurements does not occur. ``excess`` is
    the ``residual_excess`` of the same posterior in the place of W. It bounds √(E_w‖x_d - x‖²), too. The others as in
    ``published_bound``; raises ``ValueError`` also unless 0 < δ < 1. For several pixels or images at once divide δ.
    Proof: r_d² - ‖e‖² = ρ_d² - 2⟨A(x_d - x), e⟩; by D + 1 Gaussian tails ⟨A(x_d - x), e⟩ ≤ στρ_d for all d, and
    ≥ -στr_* for the nearest; E_w r² ≤ r_*² + ... + 2σ²W makes a quadratic inequality for √(E_w ρ²). Source: R5 of S8.
    """
    count, r = _checked_count(count), _non_negative(nearest, "nearest")
    w = _excess(count, excess)
    variance = _squared(sigma, r, count, w, _alpha(alpha))
    reach = (variance * _squared_reach(count, delta)).sqrt()
    return _over(reach + ((r + reach).square() + 2 * variance * w).sqrt(), alpha)


def prior_bound(
    alpha: Number | Injectivity, nearest: Number, epsilon: Number, sigma: Number, log_prior: Number
) -> Tensor:
    """Return (√((r_* + ε)² + 2σ² ln(1/π_*)) + ε)/α ≥ ‖x̂ - x‖ for atoms of any prior probabilities (S8.6).

    ``log_prior`` ≤ 0 is ln π_* of the atom whose ρ is ``nearest``, -ln D of equal ones; any atom may take its place.
    The others as in ``published_bound``, which is never smaller for equally probable atoms. Raises ``ValueError`` also
    for a positive ``log_prior``. Proof: E_w r² = r_j² + 2σ²(ln(w_j/π_j) - KL(w‖π)) ≤ r_j² + 2σ² ln(1/π_j).
    Source: S7.1, S8.6.
    """
    r, epsilon = _non_negative(nearest, "nearest"), _non_negative(epsilon, "epsilon")
    surprise = _non_negative(-torch.as_tensor(log_prior, dtype=torch.float64), "-log_prior")
    variance = _squared(sigma, r, epsilon, surprise, _alpha(alpha))
    return _over(((r + epsilon).square() + 2 * variance * surprise).sqrt() + epsilon, alpha)


def noise_radius(measurements: int | Tensor, sigma: Number, delta: float) -> Tensor:
    """Return ε = σ(√M + √(2 ln(1/δ))), which ‖e‖ exceeds with probability at most δ, e ~ N(0, σ² I_M); units of y.

    ``measurements`` is M, the numbers measured; the rank of Π or of a window where a projector comes first. Observable
    once σ is. Raises ``ValueError`` for a negative M, a sigma that is not positive or unless 0 < δ < 1. Source: S8
    (concentration of a Lipschitz function of a Gaussian).
    """
    m = _non_negative(measurements, "measurements")
    if m.ndim > 1 and torch.as_tensor(sigma).ndim:
        raise ValueError(f"noise_radius takes one sigma for a map of ranks {tuple(m.shape)}: got {sigma!r}.")
    return _squared(sigma, m).sqrt() * (m.sqrt() + math.sqrt(2 * math.log(1 / _checked_delta(delta))))


# ------------------------------------------------------------------------------------------------------- pixel by pixel


@dataclass(frozen=True)
class WindowFacts:
    """What a simulation knows of every window of a local estimator, maps (b, h, w): the parts of pixel bounds (S8.7).

    For output pixel n', atoms (d, n) of its stratum, ρ = ‖Q_n⁺(Q_n' A x - Q_n A x_d)‖:

    * ``alpha`` = min ρ/|x(n') - x_d(n)| over centres that differ (0 where some window cannot be told from it: then
      nothing is certified), ``nearest`` = r_* = min ρ, ``count`` = K, the number of atoms;
    * ``noise`` = ε = max_n ‖Q_n⁺Q_n' e‖, ``noise_spread`` the range of its square over n;
    * ``gain`` = max_n ‖Q_n⁺Q_n'‖₂, and ``log_prior`` = ln π of the atom that attains r_*, π ∝ |Q_n Q_nᵀ|₊^{-1/2};
    * ``stationary`` is 1 where Q_n Q_nᵀ is one matrix in the stratum: then gain is 1, the spread 0, π uniform.
    """

    alpha: Float64[Tensor, "b h w"]
    nearest: Float64[Tensor, "b h w"]
    count: Float64[Tensor, "b h w"]
    noise: Float64[Tensor, "b h w"]
    noise_spread: Float64[Tensor, "b h w"]
    gain: Float64[Tensor, "b h w"]
    log_prior: Float64[Tensor, "b h w"]
    stationary: Float64[Tensor, "b h w"]


@dataclass(frozen=True)
class LocalBounds:
    """Bounds of |x̂(n') - x(n')|, maps (b, h, w) in units of x: R1 and R3 for any noise, R4, and R5 for Gaussian noise.

    ``least`` is the smaller of R4 and R5, which holds with the probability of R5. A pixel whose alpha is 0 has ``inf``.
    """

    published: Float64[Tensor, "b h w"]
    residual: Float64[Tensor, "b h w"]
    certificate: Float64[Tensor, "b h w"]
    gaussian: Float64[Tensor, "b h w"]

    @property
    def least(self) -> Float64[Tensor, "b h w"]:
        """Return the smaller of ``certificate`` and ``gaussian``."""
        return torch.minimum(self.certificate, self.gaussian)


def local_bounds(facts: WindowFacts, moments: Moments, *, sigma: float, delta: float) -> LocalBounds:
    """Return the bounds of every output pixel: those of the image with a window for it, D → K: ``LocalBounds``.

    ``moments`` are the local estimator's, in float64, at this ``sigma`` and y = A x + e of ``window_facts``. R5 holds
    at each pixel with probability 1 - ``delta``: for all N pixels at once hand over δ/N. Where Q_n Q_nᵀ varies in a
    stratum, R1 and R3 are ``prior_bound`` and R5 takes its general form: τ times ``gain``, and ``noise_spread`` under
    the root.

    Raises ``TypeError`` for what is no ``Moments``, ``ValueError`` for moments in single precision, whose rounding can
    exceed a bound, shapes that differ, a sigma that is not positive and unless 0 < δ < 1. Source: S8.7.
    """
    checked_moments(moments, "local_bounds")
    if moments.mean.dtype != torch.float64:
        raise ValueError(
            "local_bounds takes moments in float64, so that rounding breaks no bound: got "
            f"{moments.mean.dtype}. Make the estimator from images.double()."
        )
    if moments.entropy.shape != facts.alpha.shape:
        raise ValueError(
            f"moments must be those of the images of the facts, maps {tuple(facts.alpha.shape)}: got "
            f"{tuple(moments.entropy.shape)}."
        )
    variance, stationary = _squared(sigma, facts.alpha), facts.stationary > 0
    general = prior_bound(facts.alpha, facts.nearest, facts.noise, sigma, facts.log_prior)
    published = published_bound(facts.alpha, facts.nearest, facts.noise, sigma, facts.count)
    r1 = nearest_squared_residual(moments, sigma).double().sqrt()
    residual = residual_bound(facts.alpha, r1, facts.noise, sigma, facts.count)
    reach = facts.gain * (variance * _squared_reach(facts.count, delta)).sqrt()
    added = 2 * variance * torch.where(stationary, largest_excess(facts.count), -facts.log_prior) + facts.noise_spread
    gaussian = _over(reach + ((facts.nearest + reach).square() + added).sqrt(), facts.alpha)
    return LocalBounds(
        published=torch.where(stationary, published, general),
        residual=torch.where(stationary, residual, general),
        certificate=certificate(facts.alpha, moments.mean_squared_residual, facts.noise),
        gaussian=gaussian,
    )


def image_bound(per_pixel: Float[Tensor, "b h w"]) -> Float64[Tensor, " b"]:
    """Return √Σ of the squares of pixel bounds: a bound of ‖x̂ - x‖ of every image, in units of x (S8.7).

    Those of ``gaussian`` and ``least`` hold all at once, with probability 1 - δ, where δ was divided by their number.
    """
    return per_pixel.double().square().sum((1, 2)).sqrt()


def window_alpha_floor(estimator: LocalEquivariantMMSE) -> Float64[Tensor, "h w"]:
    """Return a number that no α of a pixel is below, whatever the truth, and 0 where none is known: a map (h, w).

    1/max ‖Q_n‖ over the stratum where B A leaves all its pixels as they are (tried on random images): everywhere for
    denoising (1) and inverse filters, at visible pixels of a mask with B = A⁺ (1). Units of y per unit of x. It makes
    ``certificate`` a bound without knowledge of the truth. Raises ``TypeError`` for an estimator that is not local.
    Proof: |x(n') - x_d(n)| is at most the length of the difference of two windows, which is at most ‖Q_n‖ρ.
    Source: S8.7.
    """
    _check_local(estimator, "window_alpha_floor")
    c, h, w = estimator.images.shape[1:]
    floor = torch.zeros(h * w, dtype=torch.float64)
    if isinstance(estimator.physics, Nonlinear):  # what it leaves as it is on some images it may not on others
        return floor.unflatten(0, (h, w))
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(PROBES, c, h, w, generator=generator, dtype=torch.float64).to(estimator.device)
    kept = estimator.pre_inverted(apply_in_float64(estimator.physics.A, probe), torch.float64)
    if kept.shape != probe.shape:
        return floor.unflatten(0, (h, w))
    same = ((kept - probe).abs().amax((0, 1)) <= 1e-9 * probe.abs().max()).flatten().cpu()
    for stratum in estimator.strata:
        if stratum.rank and bool(same[stratum.pixels].all()):
            floor[stratum.pixels] = min(_smallest_gain(member, estimator.window_entries) for member in stratum.classes)
    return floor.unflatten(0, (h, w))


def _smallest_gain(member: WindowClass, entries: int) -> float:
    """Return 1/‖Q‖ of a class: the smallest singular value of its whitener."""
    return float(member.whitener.root(entries).norm(dim=0).max().reciprocal())  # columns of U S are orthogonal


def window_facts(
    estimator: LocalEquivariantMMSE, x: Float[Tensor, "b c h w"], e: Float[Tensor, "b ..."]
) -> WindowFacts:
    """Compare the windows of known images x, measured without noise, with all atoms of their strata: ``WindowFacts``.

    ``e`` (b, ...) is the noise of y = A x + e. In float64 whatever the dtype of the estimator; costs about what one
    estimate in float64 costs, times four. alpha is rounded down and ``nearest`` up, by ROUNDING of a window's square:
    where windows that differ are so near, alpha is 0, or ``window_alpha_floor`` where that is more.

    Raises ``TypeError`` for an estimator that is not local, ``ValueError`` for shapes that do not fit.
    Source: S8.7; simulation only.
    """
    _check_local(estimator, "window_facts")
    for name, given, wanted in (("x", x, estimator.images.shape[1:]), ("e", e, estimator.measurement_shape)):
        if tuple(given.shape) != (len(x), *wanted):
            raise ValueError(f"{name} must be {(len(x), *wanted)}: got {tuple(given.shape)}.")
    clean, noise = (
        windows_at(estimator.pre_inverted(each.double()), estimator.window_index)
        for each in (apply_in_float64(estimator.physics.A, x.double()), e)
    )
    truth = centre_pixels(x.double())
    b, n = truth.shape[:2]
    maps = {name: torch.zeros(b, n, dtype=torch.float64, device=x.device) for name in WindowFacts.__dataclass_fields__}
    floor = window_alpha_floor(estimator).flatten().to(x.device)
    total = sum(len(stratum.classes) for stratum in estimator.strata)
    steps = iter(progress(range(total), description="window facts", unit="class"))
    for stratum in estimator.strata:
        at = stratum.pixels.to(x.device)
        found = _facts_of(stratum, estimator, clean[:, at].flatten(0, 1), truth[:, at].flatten(0, 1), steps)
        found |= _noise_of(stratum, noise[:, at].flatten(0, 1), estimator.window_entries, b)
        for name, values in found.items():
            maps[name][:, at] = values.reshape(b, -1)
    maps["alpha"] = torch.maximum(maps["alpha"], floor)
    return WindowFacts(**{name: values.unflatten(1, tuple(x.shape[2:])) for name, values in maps.items()})


def _facts_of(
    stratum: Stratum, estimator: LocalEquivariantMMSE, clean: Tensor, truth: Tensor, steps: Any
) -> dict[str, Tensor]:
    """Return alpha, nearest, count and log_prior of the windows of a stratum."""
    d = estimator.images.shape[0]
    least = clean.new_full((len(clean),), torch.inf)  # min ρ²/|x - x_d|²
    nearest, log_prior = least.clone(), torch.zeros_like(least)
    weights = [math.log(d * len(member.pixels)) - member.whitener.log_pdet / 2 for member in stratum.classes]
    normaliser = float(torch.logsumexp(torch.tensor(weights, dtype=torch.float64), 0))
    for member in stratum.classes:
        own = min(0.0, -member.whitener.log_pdet / 2 - normaliser)
        queries = member.whitener(clean)
        for keys, values in _atoms_of(member, estimator):
            for part in torch.arange(len(queries), device=keys.device).split(max(1, PAIRS // len(keys))):
                d2, margin = _squared_distances(queries[part], keys)
                closest = (d2 + margin).amin(1)
                log_prior[part] = torch.where(closest < nearest[part], own, log_prior[part])
                nearest[part] = torch.minimum(nearest[part], closest)
                apart = torch.cdist(truth[part], values, compute_mode="donot_use_mm_for_euclid_dist").square()
                ratio = (d2 - margin).clamp_min(0) / apart  # 0/0, of equal centres, is NaN and left out
                least[part] = torch.minimum(least[part], ratio.where(apart > 0, torch.inf).amin(1))
        next(steps, None)
    count = torch.full_like(least, d * len(stratum.pixels))
    return {"alpha": least.sqrt(), "nearest": nearest.sqrt(), "count": count, "log_prior": log_prior}


def _atoms_of(member: WindowClass, estimator: LocalEquivariantMMSE) -> Any:
    """Yield the whitened windows of all images at the pixels of a class, and their centres, some images at a time."""
    pixels = member.pixels.to(estimator.device)
    size = max(1, PAIRS // (len(pixels) * estimator.window_entries))
    for start in range(0, estimator.images.shape[0], size):
        images = estimator.images[start : start + size].double()
        v = estimator.pre_inverted(apply_in_float64(estimator.physics.A, images))
        keys = member.whitener(windows_at(v, estimator.window_index[pixels]))
        yield keys.flatten(0, 1), centre_pixels(images)[:, pixels].flatten(0, 1)


def _squared_distances(
    queries: Float64[Tensor, "q r"], keys: Float64[Tensor, "k r"]
) -> tuple[Float64[Tensor, "q k"], Float64[Tensor, "q k"]]:
    """Return the squared distances, and what rounding may do to them."""
    norms = queries.square().sum(1)[:, None] + keys.square().sum(1)
    return torch.addmm(norms, queries, keys.T, alpha=-2).clamp_min(0), ROUNDING * norms


def _noise_of(stratum: Stratum, noise: Tensor, entries: int, measurements: int) -> dict[str, Tensor]:
    """Return noise, its spread, the gain and whether one Gram matrix serves, for the windows of a stratum."""
    squares = torch.stack([member.whitener(noise).square().sum(1) for member in stratum.classes])
    largest, spread = squares.amax(0), squares.amax(0) - squares.amin(0)
    gain, alone = torch.ones_like(largest), len(stratum.classes) == 1
    if not alone and stratum.rank:
        own = torch.empty(int(stratum.pixels.max()) + 1, dtype=torch.float64)
        for member in stratum.classes:
            root = member.whitener.root(entries)
            products = torch.stack([other.whitener(root.T) for other in stratum.classes])
            own[member.pixels] = torch.linalg.matrix_norm(products, 2).max()
        gain = own[stratum.pixels].to(gain.device).repeat(measurements)
    return {
        "noise": largest.sqrt(),
        "noise_spread": spread,
        "gain": gain,
        "stationary": torch.full_like(largest, alone),
    }


# -------------------------------------------------------------------------------------------------------------- helpers


def _over(radius: Tensor, alpha: Number | Injectivity) -> Tensor:
    """Return radius/α, and ``inf`` where α is 0."""
    if isinstance(alpha, Injectivity) and alpha.note:
        warnings.warn(alpha.note, VacuousBoundWarning, stacklevel=3)
    alpha = _alpha(alpha)
    return torch.where(alpha > 0, radius / alpha, torch.inf)


def _alpha(alpha: Number | Injectivity) -> Tensor:
    return _non_negative(alpha.alpha if isinstance(alpha, Injectivity) else alpha, "alpha")


def _excess(count: Number, excess: Number | None) -> Tensor:
    count = _checked_count(count)
    return largest_excess(count) if excess is None else _non_negative(excess, "excess")


def _squared_reach(count: Tensor, delta: float) -> Tensor:
    """Return τ² = 2 ln((D + 1)/2δ)."""
    return 2 * ((count + 1) / (2 * _checked_delta(delta))).log()


def _squared(sigma: Number, *others: Number) -> Tensor:
    """Return σ², of a number or of one per query, with as many axes as that of the others which has most of them."""
    others = [torch.as_tensor(each) for each in others]
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=others[0].device)
    if not ((sigma > 0) & sigma.isfinite()).all():
        raise ValueError(f"sigma is the noise's standard deviation, positive and finite: got {sigma.tolist()}.")
    axes = max(each.ndim for each in others)
    return (sigma.reshape(-1, *(1,) * (axes - 1)) if sigma.ndim == 1 and axes > 1 else sigma).square()


def _non_negative(number: Number, name: str) -> Tensor:
    found = torch.as_tensor(number, dtype=torch.float64)
    if not (found >= 0).all():
        raise ValueError(
            f"{name} must be numbers, not negative: got {float(found.where(found.isnan(), found.clamp_max(0)).min())}."
        )
    return found


def _checked_count(count: Number) -> Tensor:
    found = torch.as_tensor(count, dtype=torch.float64)
    if not ((found >= 1) & found.isfinite()).all():
        raise ValueError(f"count is the number of atoms D, finite and at least 1: got {found.tolist()}.")
    return found


def _checked_delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta is the probability that the bound may fail, between 0 and 1: got {delta}.")
    return float(delta)


def _check_local(estimator: Any, asked: str) -> None:
    if not isinstance(estimator, LocalEquivariantMMSE):
        raise TypeError(f"{asked} is about pixels of a LocalEquivariantMMSE: got {type(estimator).__name__}.")
