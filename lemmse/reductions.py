"""What an estimator does with its stream of terms: means, moments, heaviest sources.

An estimator is a reduction over a stream of *terms*, and a term is a chunk of atoms. A reduction has four verbs,
``start``, ``update``, ``merge`` and ``finish``; ``merge`` is associative and commutative up to rounding (S12.6), so the
same object serves chunks, shards and machines. A state is a named tuple of tensors whose first axis runs over queries.

Every state holds the sum of the weights as a *peak* (the largest log-weight met) and a *mass* (the sum of the weights
in units of the peak, between 1 and the number of atoms), so that log_partition = peak + ln mass. The pair keeps ln mass
even where log-weights are so large that float32 could not tell L from L + ln 2.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from . import _device
from ._types import LOG_WEIGHT_FLOOR

__all__ = [
    "ArrayTerm",
    "ArrayValues",
    "Layout",
    "Moments",
    "PartialPosterior",
    "Posterior",
    "PosteriorMean",
    "PosteriorMoments",
    "Reduction",
    "Sources",
    "SummedTerm",
    "Term",
    "TermMoments",
    "TopImages",
    "TopSources",
    "Values",
    "accumulate",
    "join",
    "reduce",
    "weighted_mean",
    "weighted_moments",
]


WIDE = 64
"""Values of at least so many numbers are worth a look at which atoms have any weight before they are multiplied."""


# ---------------------------------------------------------------------------------------------------------------- terms


@runtime_checkable
class Values(Protocol):
    """What the atoms of a term are worth: images for ``MMSE``, shifted images, or centre pixels."""

    def weighted_sum(self, weights: Float[Tensor, "q k"]) -> Float[Tensor, "q ..."]:
        """Return Σ_k w_k x_k of every query."""

    def weighted_sum_of_squares(self, weights: Float[Tensor, "q k"]) -> Float[Tensor, "q ..."]:
        """Return Σ_k w_k x_k² (entry by entry) of every query."""


@dataclass(frozen=True)
class ArrayValues:
    """Values (k, ...) held in memory; both sums are matrix products.

    Where an atom is worth many numbers and few atoms have any weight (at most exp(LOG_WEIGHT_FLOOR) is none), only
    those are multiplied; what is left out moves the sum by no more than the clamp of S12.2 does.
    """

    values: Float[Tensor, "k ..."]

    def weighted_sum(self, weights: Float[Tensor, "q k"]) -> Float[Tensor, "q ..."]:
        """Return Σ_k w_k x_k, shape (q, ...)."""
        weights, values = self._with_weight(weights)
        return (weights @ values).unflatten(1, self.values.shape[1:])

    def weighted_sum_of_squares(self, weights: Float[Tensor, "q k"]) -> Float[Tensor, "q ..."]:
        """Return Σ_k w_k x_k², shape (q, ...)."""
        weights, values = self._with_weight(weights)
        return (weights @ values.square()).unflatten(1, self.values.shape[1:])

    def _with_weight(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        values = self.values.flatten(1)
        if values.shape[1] >= WIDE and not _device.asynchronous(weights):
            live = (weights.detach().amax(0) > math.exp(LOG_WEIGHT_FLOOR)).nonzero()[:, 0]
            if len(live) < len(values) // 4:
                return weights[:, live], values[live]
        return weights, values


class TermMoments(NamedTuple):
    """Sums over the atoms of a term: weights in units of their peak, and means with these weights."""

    mass: Float[Tensor, " q"]
    mean: Float[Tensor, "q ..."]
    variance: Float[Tensor, "q ..."]
    log_weight: Float[Tensor, " q"]  # of the log-weights of original atoms less the peak
    largest: Float[Tensor, " q"]  # no mean: the largest of them
    squared_residual: Float[Tensor, " q"]


class Term(ABC):
    """A chunk of K atoms as q queries see it.

    ``log_weights`` (q, K) in nats, unnormalised, including ``log_multiplicity``; ``squared_distances`` (q, K);
    ``log_multiplicity`` (K,) where identical atoms were merged, else ``None``. A chunk holds whole images: atom k
    belongs to image ``first_image + k // atoms_per_image`` and, where ``pixels`` is given, to the pixel (or shift)
    ``pixels[k % atoms_per_image]``. A term may hold less than these arrays and make them for reductions that ask.
    """

    log_weights: Float[Tensor, "q K"]
    squared_distances: Float[Tensor, "q K"]
    values: Values
    first_image: int
    log_multiplicity: Float[Tensor, " K"] | None
    pixels: Int64[Tensor, " p"] | None

    @property
    def atoms_per_image(self) -> int:
        """Return the number of atoms that each image contributes."""
        return 1 if self.pixels is None else len(self.pixels)

    @property
    @abstractmethod
    def peak(self) -> Float[Tensor, " q"]:
        """Return the largest log-weight that each query sees."""

    @abstractmethod
    def mean(self, floor: Float[Tensor, " q"]) -> tuple[Float[Tensor, " q"], Float[Tensor, "q ..."]]:
        """Return the sum of the weights in units of the peak, and the weighted mean of the values.

        Both may be zero for a query whose ``peak`` is below its ``floor``: there the term has no share.
        """

    @abstractmethod
    def moments(self, floor: Float[Tensor, " q"]) -> TermMoments:
        """Return what ``PosteriorMoments`` needs, which may be zero below the ``floor``."""

    @abstractmethod
    def mass(self, floor: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        """Return the sum of the weights in units of the peak, which may be zero below the ``floor``."""

    @abstractmethod
    def log_weights_of(self, queries: Int64[Tensor, " m"]) -> Float[Tensor, "m K"]:
        """Return the log-weights of some queries."""


@final
@dataclass(frozen=True)
class ArrayTerm(Term):
    """A term whose log-weights and distances are held in memory."""

    log_weights: Float[Tensor, "q K"]
    squared_distances: Float[Tensor, "q K"]
    values: Values
    first_image: int
    log_multiplicity: Float[Tensor, " K"] | None = None
    pixels: Int64[Tensor, " p"] | None = None

    @cached_property
    def peak(self) -> Float[Tensor, " q"]:
        """Return the largest log-weight that each query sees."""
        return self.log_weights.amax(1).detach()

    def mean(self, floor: Float[Tensor, " q"]) -> tuple[Float[Tensor, " q"], Float[Tensor, "q ..."]]:
        """Return the sum of the weights in units of the peak, and the weighted mean of the values."""
        return weighted_mean(self.peak, self.log_weights, self.values)

    def moments(self, floor: Float[Tensor, " q"]) -> TermMoments:
        """Return what ``PosteriorMoments`` needs."""
        return weighted_moments(self)

    def mass(self, floor: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        """Return the sum of the weights in units of the peak."""
        return _in_units_of(self.peak, self.log_weights)[1]

    def log_weights_of(self, queries: Int64[Tensor, " m"]) -> Float[Tensor, "m K"]:
        """Return the log-weights of some queries."""
        return self.log_weights[queries]


@final
class SummedTerm(Term):
    """A term whose sums alone are known, those of a mean or also its ``moments``: enough for ``needs`` of that kind."""

    def __init__(
        self,
        peak: Float[Tensor, " q"],
        mass: Float[Tensor, " q"],
        mean: Float[Tensor, "q ..."],
        moments: TermMoments | None = None,
    ):
        self._peak, self._mass, self._mean, self._moments = peak, mass, mean, moments

    @property
    def peak(self) -> Float[Tensor, " q"]:
        """Return the largest log-weight that each query sees."""
        return self._peak

    def mean(self, floor: Float[Tensor, " q"]) -> tuple[Float[Tensor, " q"], Float[Tensor, "q ..."]]:
        """Return the sum of the weights in units of the peak, and the weighted mean of the values."""
        return self._mass, self._mean

    def mass(self, floor: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        """Return the sum of the weights in units of the peak."""
        return self._mass

    def log_weights_of(self, queries: Int64[Tensor, " m"]) -> Float[Tensor, "m K"]:
        """Raise ``TypeError``: they are not known."""
        raise TypeError('Only sums over this term are known: reductions with needs = "mean" ask for no more.')

    def moments(self, floor: Float[Tensor, " q"]) -> TermMoments:
        """Return what ``PosteriorMoments`` needs; raise ``TypeError`` where only the mean is known."""
        if self._moments is None:
            raise TypeError('Only the mean of this term is known: reductions with needs = "mean" ask for no more.')
        return self._moments


@dataclass(frozen=True)
class Layout:
    """How queries and values are laid out: what ``start`` allocates and ``finish`` shapes.

    ``query_shape`` is (b,), or (b, h, w) where every pixel is a query; ``value_shape`` is (c, h, w) or (c,).
    """

    query_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    has_pixels: bool = False

    @property
    def queries(self) -> int:
        """Return the number of queries, flattened."""
        return torch.Size(self.query_shape).numel()

    def full(self, value: float, *trailing: int) -> Tensor:
        """Return a constant tensor of shape (q, *trailing)."""
        return torch.full((self.queries, *trailing), value, dtype=self.dtype, device=self.device)

    def per_query(self, x: Float[Tensor, " q"]) -> Tensor:
        """Return a number per query in the shape of the queries: (b,) or (b, h, w)."""
        return x.reshape(self.query_shape)

    def per_value(self, x: Float[Tensor, "q ..."]) -> Tensor:
        """Return values per query as images, (b, c, h, w): channels come right after the batch."""
        return x.reshape(*self.query_shape, *self.value_shape).movedim(len(self.query_shape), 1).contiguous()


# -------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Posterior:
    """The posterior mean (b, c, h, w), its log-partition in nats, and its error bound (zeros when exact).

    ``log_partition`` has shape (b,), or (b, h, w) for the local estimator. Of m output pixels alone (``at_pixels``)
    the shapes are (b, c, m) and (b, m).
    """

    mean: Float[Tensor, "b c ..."]
    log_partition: Float[Tensor, "b ..."]
    error_bound: Float[Tensor, "b c ..."]


@dataclass(frozen=True)
class Moments(Posterior):
    """The posterior mean and its spread (S5.10, S7).

    ``variance`` (b, c, h, w), per pixel and channel. Shaped like ``log_partition``: ``entropy`` H(w) in nats,
    ``log_max_weight`` (ln of the largest weight of one original atom) and ``mean_squared_residual`` E_w r².
    The variance is a difference of second moments: in float32 it is good to about 1e-7 of the squared range.
    """

    variance: Float[Tensor, "b c ..."]
    entropy: Float[Tensor, "b ..."]
    log_max_weight: Float[Tensor, "b ..."]
    mean_squared_residual: Float[Tensor, "b ..."]


@dataclass(frozen=True)
class Sources:
    """The heaviest atoms or images of every query, heaviest first, ties to the lowest (image, pixel).

    ``image`` indexes the training images; ``pixel`` is the row-major index of the source window's centre or of the
    shift (``None`` where atoms are whole images); ``weight`` in [0, 1] and ``remainder``, the mass that is not listed.
    Where a query has fewer atoms than others, its list ends in image and pixel -1 of weight 0.
    """

    image: Int64[Tensor, "b ... k"]
    weight: Float[Tensor, "b ... k"]
    remainder: Float[Tensor, "b ..."]
    pixel: Int64[Tensor, "b ... k"] | None = None


# ------------------------------------------------------------------------------------------------ arithmetic of weights


def _in_units_of(peak: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights in units of their peak, their mass, and the log-weights relative to the peak (S12.2).

    A row of nothing but -inf has no admissible atom: its mass is 0 and so are its weights.
    """
    relative = (log_weights - _or_zero(peak)[:, None]).clamp_min(LOG_WEIGHT_FLOOR)
    u = relative.exp()
    if _device.asynchronous(peak) or not peak.isfinite().all():
        u = u * peak.isfinite()[:, None]
    return u, u.sum(1), relative


def weighted_mean(
    peak: Float[Tensor, " q"], log_weights: Float[Tensor, "q K"], values: Values
) -> tuple[Float[Tensor, " q"], Float[Tensor, "q ..."]]:
    """Return the sum of the weights in units of their peak, and the weighted mean of the values."""
    u, mass, _ = _in_units_of(peak, log_weights)
    total = values.weighted_sum(u)
    return mass, total / _column(_or_one(mass), total)


def weighted_moments(term: Term) -> TermMoments:
    """Return what ``PosteriorMoments`` needs of a term, from its log-weights and distances."""
    u, mass, relative = _in_units_of(term.peak, term.log_weights)
    total = _or_one(mass)
    mean, square = (
        x / _column(total, x) for x in (term.values.weighted_sum(u), term.values.weighted_sum_of_squares(u))
    )
    original = relative if term.log_multiplicity is None else relative - term.log_multiplicity
    return TermMoments(
        mass,
        mean,
        (square - mean.square()).clamp_min(0),
        (u * original).sum(1) / total,
        original.amax(1),
        (u * term.squared_distances).sum(1) / total,
    )


def _count_for_nothing(peak: Tensor, state) -> bool:
    """Return whether a term is known to have no share in the union with a state, for any query: see ``_combine``."""
    return not _device.asynchronous(peak) and bool((peak < state.peak + LOG_WEIGHT_FLOOR).all())


def _or_zero(peak: Tensor) -> Tensor:
    """Return the peak as a finite reference, also where there is none."""
    return peak.where(peak.isfinite(), 0.0)


def _or_one(mass: Tensor) -> Tensor:
    """Return the mass as a divisor, also where there is none."""
    return mass.where(mass > 0, 1.0)


def _combine(peak_1: Tensor, mass_1: Tensor, peak_2: Tensor, mass_2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return peak and mass of a union, and the shares (a, b) of its two parts; an empty part has share 0."""
    peak = torch.maximum(peak_1, peak_2)
    reference = _or_zero(peak)
    part_1 = mass_1 * _flushed_exp(peak_1 - reference)
    part_2 = mass_2 * _flushed_exp(peak_2 - reference)
    mass = part_1 + part_2
    total = _or_one(mass)
    return peak, mass, part_1 / total, part_2 / total


def _flushed_exp(t: Tensor) -> Tensor:
    """Return exp(t), and 0 below LOG_WEIGHT_FLOOR: shares multiply whole images and must not be subnormal."""
    return t.clamp_min(LOG_WEIGHT_FLOOR).exp().where(t >= LOG_WEIGHT_FLOOR, 0.0)


def _log(share: Tensor) -> Tensor:
    """Return ln of a share, -inf of none; its gradient there is 0, where that of ``log`` alone would make NaN."""
    return share.where(share > 0, 1.0).log().where(share > 0, -torch.inf)


def _surprise(share: Tensor) -> Tensor:
    """Return -a ln a, 0 of none, with a gradient that is finite everywhere."""
    return -share * share.where(share > 0, 1.0).log()


def _column(x: Float[Tensor, " q"], like: Tensor) -> Tensor:
    """Return x with as many trailing axes as ``like`` has."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))


# ----------------------------------------------------------------------------------------------------------- reductions


@runtime_checkable
class Reduction(Protocol):
    """The contract of a reduction; ``honours_tolerance`` says whether a certified approximation may feed it."""

    honours_tolerance: bool

    def start(self, layout: Layout):
        """Return the neutral state."""

    def update(self, state, term: Term):
        """Return the state after one more term."""

    def merge(self, state_1, state_2):
        """Return the state of the union of two disjoint sets of atoms."""

    def finish(self, state, layout: Layout):
        """Return the result."""


@dataclass(frozen=True)
class PartialPosterior:
    """What a reduction knows after some images: its state, mergeable with that of other images (S12.6).

    ``images`` counts them; the indices of sources count from the first of them. Shards that are reduced apart merge in
    the order of their images. It holds a few numbers per query, never one per image, and can be pickled. ``asked`` is a
    mark of the kind of estimator, y and sigma.
    """

    reduction: Any
    layout: Layout
    state: Any
    images: int
    asked: str

    def result(self) -> Any:
        """Return the result of the reduction over these images alone."""
        return self.reduction.finish(self.state, self.layout)

    def merge(self, later: "PartialPosterior") -> "PartialPosterior":
        """Return the partial posterior of these images and of those that follow them.

        Raises ``TypeError`` for what is no partial posterior, and ``ValueError`` where the two belong to different
        reductions, measurements, sigmas or kinds of estimator.
        """
        if not isinstance(later, PartialPosterior):
            raise TypeError(f"A partial posterior merges with another one: got {type(later).__name__}.")
        if (self.reduction, self.layout, self.asked) != (later.reduction, later.layout, later.asked):
            raise ValueError(
                "Partial posteriors merge where y, sigma, reduction and kind of estimator agree: got "
                f"{self.reduction} of {self.layout.query_shape} queries (mark {self.asked}), and {later.reduction} of "
                f"{later.layout.query_shape} (mark {later.asked}). Reduce both shards with the same arguments."
            )
        state = self.reduction.merge(self.state, _numbered_from(self.images, later.state))
        return PartialPosterior(self.reduction, self.layout, state, self.images + later.images, self.asked)

    def check_continues(self, reduction: Any, layout: Layout, asked: str, images: int) -> None:
        """Raise ``ValueError`` unless a stream with these arguments, over so many images, may go on from here."""
        if (self.reduction, self.layout, self.asked) != (reduction, layout, asked) or self.images > images:
            raise ValueError(
                f"after is a partial posterior of {self.images} images with {self.reduction} (mark {self.asked}): this "
                f"stream has {images} images and {reduction} (mark {asked} of y, sigma and kind of estimator). Hand "
                "over what a stream with the same arguments yielded."
            )


def _numbered_from(first: int, state: Any) -> Any:
    """Return a state whose images count from ``first``; -1 stays what it is."""
    if not isinstance(state, _TopState):
        return state
    return state._replace(image=torch.where(state.image >= 0, state.image + first, state.image))


def reduce(terms: Iterable[Term], reduction: Reduction, layout: Layout):
    """Feed a stream of terms to a reduction and return its result."""
    return reduction.finish(accumulate(terms, reduction, layout), layout)


def accumulate(terms: Iterable[Term], reduction: Reduction, layout: Layout):
    """Feed a stream of terms to a reduction and return the state that it ends in."""
    state = reduction.start(layout)
    for term in terms:
        state = reduction.update(state, term)
    return state


def join(states: list):
    """Return the state of all queries from the states of blocks of queries, in their order."""
    if isinstance(states[0], _TopState):
        states = [state.filled(max(other.image.shape[1] for other in states)) for state in states]
    return states[0] if len(states) == 1 else type(states[0])(*map(torch.cat, zip(*states, strict=True)))


class _MeanState(NamedTuple):
    peak: Float[Tensor, " q"]
    mass: Float[Tensor, " q"]
    mean: Float[Tensor, "q ..."]


@dataclass(frozen=True)
class PosteriorMean:
    """Reduce to the posterior mean x̂ = Σ w x and the log-partition: a ``Posterior``."""

    honours_tolerance = True
    needs = "mean"
    """All that it asks terms for, beside their ``peak``; a reduction without this may ask for anything."""

    def start(self, layout: Layout) -> _MeanState:
        """Return the neutral state: no mass at all."""
        return _MeanState(layout.full(-torch.inf), layout.full(0), layout.full(0, *layout.value_shape))

    def update(self, state: _MeanState, term: Term) -> _MeanState:
        """Return the state after one more term."""
        peak = term.peak
        if _count_for_nothing(peak, state):
            return state
        return self.merge(state, _MeanState(peak, *term.mean(state.peak + LOG_WEIGHT_FLOOR)))

    def merge(self, state_1: _MeanState, state_2: _MeanState) -> _MeanState:
        """Return the state of the union of two disjoint sets of atoms (S12.6)."""
        peak, mass, a, b = _combine(*state_1[:2], *state_2[:2])
        mean = _column(a, state_1.mean) * state_1.mean + _column(b, state_2.mean) * state_2.mean
        return _MeanState(peak, mass, mean)

    def finish(self, state: _MeanState, layout: Layout) -> Posterior:
        """Return the ``Posterior``."""
        mean = layout.per_value(state.mean)
        return Posterior(mean, layout.per_query(state.peak + state.mass.log()), torch.zeros_like(mean))


class _MomentsState(NamedTuple):
    peak: Float[Tensor, " q"]
    mass: Float[Tensor, " q"]
    mean: Float[Tensor, "q ..."]
    variance: Float[Tensor, "q ..."]
    entropy: Float[Tensor, " q"]
    log_max_weight: Float[Tensor, " q"]
    mean_squared_residual: Float[Tensor, " q"]


@dataclass(frozen=True)
class PosteriorMoments:
    """Reduce to mean, variance, entropy, largest weight and mean squared residual: ``Moments``."""

    honours_tolerance = False
    needs = "moments"

    def start(self, layout: Layout) -> _MomentsState:
        """Return the neutral state: no mass at all."""
        nothing, values = layout.full(0), layout.full(0, *layout.value_shape)
        empty = layout.full(-torch.inf)
        return _MomentsState(empty, nothing, values, values, nothing, empty, nothing)

    def update(self, state: _MomentsState, term: Term) -> _MomentsState:
        """Return the state after one more term."""
        peak = term.peak
        if _count_for_nothing(peak, state):
            return state
        found = term.moments(state.peak + LOG_WEIGHT_FLOOR)
        log_mass = _or_one(found.mass).log()
        chunk = _MomentsState(
            peak,
            found.mass,
            found.mean,
            found.variance,
            log_mass - found.log_weight,  # H = L - E_w[ℓ - ln m], S12.1
            found.largest - log_mass,
            found.squared_residual,
        )
        return self.merge(state, chunk)

    def merge(self, state_1: _MomentsState, state_2: _MomentsState) -> _MomentsState:
        """Return the state of the union of two disjoint sets of atoms (S12.6: total variance, chain rule)."""
        peak, mass, a, b = _combine(*state_1[:2], *state_2[:2])
        a_x, b_x = _column(a, state_1.mean), _column(b, state_2.mean)
        spread = a_x * b_x * (state_1.mean - state_2.mean).square()
        return _MomentsState(
            peak,
            mass,
            a_x * state_1.mean + b_x * state_2.mean,
            a_x * state_1.variance + b_x * state_2.variance + spread,
            a * state_1.entropy + b * state_2.entropy + _surprise(a) + _surprise(b),
            torch.maximum(state_1.log_max_weight + _log(a), state_2.log_max_weight + _log(b)),
            a * state_1.mean_squared_residual + b * state_2.mean_squared_residual,
        )

    def finish(self, state: _MomentsState, layout: Layout) -> Moments:
        """Return the ``Moments``."""
        mean = layout.per_value(state.mean)
        return Moments(
            mean=mean,
            log_partition=layout.per_query(state.peak + state.mass.log()),
            error_bound=torch.zeros_like(mean),
            variance=layout.per_value(state.variance),
            entropy=layout.per_query(state.entropy),
            log_max_weight=layout.per_query(state.log_max_weight),
            mean_squared_residual=layout.per_query(state.mean_squared_residual),
        )


class _TopState(NamedTuple):
    peak: Float[Tensor, " q"]
    mass: Float[Tensor, " q"]
    log_weights: Float[Tensor, "q j"]  # float64: sums over an image's atoms keep their logarithm (module docstring)
    image: Int64[Tensor, "q j"]
    pixel: Int64[Tensor, "q j"]

    def filled(self, length: int) -> "_TopState":
        """Return the lists filled up with nothing: image and pixel -1, of no weight."""
        missing = (0, length - self.image.shape[1])
        fill = [-torch.inf, -1, -1]
        lists = [torch.nn.functional.pad(x, missing, value=v) for x, v in zip(self[2:], fill, strict=True)]
        return _TopState(self.peak, self.mass, *lists)


@dataclass(frozen=True)
class TopSources:
    """Reduce to the k heaviest atoms of every query: ``Sources``.

    For ``MMSE``, ``TopSources(1)`` is the nearest image, MAP (S1.2).
    """

    k: int
    honours_tolerance = False

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless k is a positive integer."""
        _check_k(self)

    @property
    def atoms_listed(self) -> int:
        """Return k: estimators give so many nearest atoms exact distances, so that equal ones tie."""
        return self.k

    def start(self, layout: Layout) -> _TopState:
        """Return the neutral state: an empty list."""
        return _empty_list(layout)

    def update(self, state: _TopState, term: Term) -> _TopState:
        """Return the state after one more term."""
        _refuse_merged(self, term)
        peak = term.peak
        queries = self._open(state, peak)
        if not len(queries) and _count_for_nothing(peak, state):
            return state
        log_weights = term.log_weights_of(queries)
        index = _heaviest_indices(log_weights, self.k)
        pixel = torch.zeros_like(index) if term.pixels is None else term.pixels[index % term.atoms_per_image]
        image = term.first_image + index // term.atoms_per_image
        mass = term.mass(state.peak + LOG_WEIGHT_FLOOR)
        if len(queries) == len(peak):
            return self.merge(state, _TopState(peak, mass, log_weights.gather(1, index).double(), image, pixel))
        chunk = _TopState(peak[queries], mass[queries], log_weights.gather(1, index).double(), image, pixel)
        merged = self.merge(_TopState(*(x[queries] for x in state)), chunk)
        total, all_mass, _, _ = _combine(*state[:2], peak, mass)
        lists = (whole.index_copy(0, queries, part) for whole, part in zip(state[2:], merged[2:], strict=True))
        return _TopState(total, all_mass, *lists)

    def _open(self, state: _TopState, peak: Float[Tensor, " q"]) -> Int64[Tensor, " m"]:
        """Return the queries whose list has room for an atom of this peak, or of equal weight and lower number."""
        if state.log_weights.shape[1] < self.k or _device.asynchronous(peak):
            return torch.arange(len(peak), device=peak.device)
        return (peak.double() >= state.log_weights[:, -1]).nonzero()[:, 0]

    def merge(self, state_1: _TopState, state_2: _TopState) -> _TopState:
        """Return the state of the union of two disjoint sets of atoms: the best k of both lists."""
        return _merge_lists(state_1, state_2, self.k)

    def finish(self, state: _TopState, layout: Layout) -> Sources:
        """Return the ``Sources``; ``pixel`` is ``None`` where atoms are whole images."""
        return _sources(state, layout, has_pixels=layout.has_pixels)


@dataclass(frozen=True)
class TopImages:
    """Reduce to the k images with the largest total weight: ``Sources`` without ``pixel``.

    Images whose total weights agree but for rounding, such as shifted copies of each other, may come in any order.
    """

    k: int
    honours_tolerance = False

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless k is a positive integer."""
        _check_k(self)

    def start(self, layout: Layout) -> _TopState:
        """Return the neutral state: an empty list."""
        return _empty_list(layout)

    def update(self, state: _TopState, term: Term) -> _TopState:
        """Return the state after one more term: the log-weights of an image's atoms are added up first."""
        _refuse_merged(self, term)
        peak = term.peak
        atoms = term.log_weights.unflatten(1, (-1, term.atoms_per_image))
        top = atoms.amax(2)
        relative = (atoms - _or_zero(top)[..., None]).clamp_min(LOG_WEIGHT_FLOOR)
        log_weights = top.double() + relative.exp().sum(2).log().double()
        mass = (log_weights - _or_zero(peak).double()[:, None]).exp().sum(1).to(peak)
        index = _heaviest_indices(log_weights, self.k)
        chunk = _TopState(peak, mass, log_weights.gather(1, index), term.first_image + index, torch.zeros_like(index))
        return self.merge(state, chunk)

    def merge(self, state_1: _TopState, state_2: _TopState) -> _TopState:
        """Return the state of the union of two disjoint sets of images: the best k of both lists."""
        return _merge_lists(state_1, state_2, self.k)

    def finish(self, state: _TopState, layout: Layout) -> Sources:
        """Return the ``Sources``, without ``pixel``."""
        return _sources(state, layout, has_pixels=False)


def _check_k(reduction: TopSources | TopImages) -> None:
    k = reduction.k
    if isinstance(k, bool) or not hasattr(k, "__index__") or k < 1:
        raise ValueError(f"{type(reduction).__name__}(k) lists the k heaviest, k a positive integer: got k={k!r}.")


def _refuse_merged(reduction: TopSources | TopImages, term: Term) -> None:
    if term.log_multiplicity is not None:
        raise ValueError(
            f"{type(reduction).__name__} lists original atoms, but identical atoms of this term were merged "
            "(log_multiplicity is set). Feed it the unmerged atoms."
        )


def _empty_list(layout: Layout) -> _TopState:
    shape = (layout.queries, 0)
    index = torch.zeros(shape, dtype=torch.int64, device=layout.device)
    log_weights = torch.zeros(shape, dtype=torch.float64, device=layout.device)
    return _TopState(layout.full(-torch.inf), layout.full(0), log_weights, index, index)


def _heaviest_indices(log_weights: Float[Tensor, "q K"], k: int) -> Int64[Tensor, "q j"]:
    """Return the indices of the min(k, K) largest entries of each row, ascending; among equals the lowest indices.

    ``topk`` alone leaves the choice among equal entries open.
    """
    k = min(k, log_weights.shape[1])
    if _device.asynchronous(log_weights):
        return log_weights.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values
    top = log_weights.topk(k, dim=1)
    threshold = top.values[:, -1:]
    index = top.indices.sort(1).values
    tied = ((log_weights >= threshold).sum(1) > k).nonzero()[:, 0]
    if len(tied):
        rows, threshold = log_weights[tied], threshold[tied]
        above, equal = rows > threshold, rows == threshold
        room = k - above.sum(1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
        index[tied] = chosen.nonzero()[:, 1].reshape(len(rows), k)
    return index


def _merge_lists(state_1: _TopState, state_2: _TopState, k: int) -> _TopState:
    peak, mass, _, _ = _combine(*state_1[:2], *state_2[:2])
    columns = [torch.cat(pair, dim=1) for pair in zip(state_1[2:], state_2[2:], strict=True)]
    for key, descending in ((2, False), (1, False), (0, True)):  # pixel, image, weight: the least significant key first
        order = columns[key].argsort(dim=1, descending=descending, stable=True)
        columns = [column.gather(1, order) for column in columns]
    return _TopState(peak, mass, *(column[:, :k] for column in columns))


def _sources(state: _TopState, layout: Layout, *, has_pixels: bool) -> Sources:
    weight = (state.log_weights - _or_zero(state.peak)[:, None]).exp() / _or_one(state.mass)[:, None]
    shape = (*layout.query_shape, state.image.shape[1])
    return Sources(
        image=state.image.reshape(shape),
        weight=weight.to(layout.dtype).reshape(shape),
        remainder=layout.per_query((1 - weight.sum(1)).clamp(0, 1).to(layout.dtype)),
        pixel=state.pixel.reshape(shape) if has_pixels else None,
    )
