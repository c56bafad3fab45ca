"""The estimators: each feeds the terms of its own atoms to a reduction (``lemmse.reductions``), and nothing else."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from . import _device
from ._checks import (
    check_measurements,
    check_tolerance,
    checked_measured,
    checked_pre_inverted,
    checked_reduction,
    checked_sample,
    checked_sigma,
    positive_integer,
)
from ._factors import unchanged
from ._progress import progress, silence
from .image_sets import ChunkedImages, HeldImages, ImageSet, as_image_set, checked_slice
from .kernels import (
    CircularComparison,
    Comparison,
    DiagonalComparison,
    Keys,
    RowComparison,
    ShiftedRowComparison,
    ShiftedValues,
    centre_of,
)
from .means import (
    GROUP_ATOMS,
    FusedChunk,
    FusedWindows,
    Merged,
    PlainKeys,
    StratumSums,
    Workers,
    kernel_cost,
    merged_duplicates,
    products_cost,
    with_numba,
    worth,
)
from .operators import apply_in_float64, as_operator, gram_whitener, rank, row_space_projector
from .patches import centre_pixels, extract_patches, window_index, windows_at
from .reductions import (
    ArrayTerm,
    ArrayValues,
    Layout,
    Moments,
    PartialPosterior,
    Posterior,
    PosteriorMean,
    Reduction,
    Sources,
    SummedTerm,
    Term,
    Values,
    accumulate,
    join,
)
from .screen import Screen, aside, directions_within, search
from .strata import Selection, Stratum, stabiliser, strata_of_windows
from .windows import (
    OneWhitener,
    ScaledWindows,
    SeveralWhiteners,
    WindowComparison,
    WindowQueries,
    WindowTerm,
    direct_distances,
)

__all__ = ["DEFAULT_MEMORY_LIMIT", "MMSE", "EquivariantMMSE", "Estimator", "ImageSet", "LocalEquivariantMMSE", "Plan"]

DEFAULT_MEMORY_LIMIT = 256 * 2**20
"""Bytes that temporary arrays may take where the caller names no limit, and one image needs no more than that: small
beside Binder's 2 GB."""

OPERATOR_ENTRIES = 16
"""Numbers that operators hold at once for each one of an image and of its measurement: spectra in float64, most of
them."""

STREAM_CHUNKS = 32
"""Chunks of images that a stream takes where no ``chunk_size`` is given."""

PAIR_ENTRIES = 20
"""Numbers that a reduction holds at once for each pair of a query and an atom, at most (``TopImages``, in float64)."""

TERM_PAIRS = 2**20
"""Pairs of windows in a term of the local estimator: few enough to stay near the processor."""

FUSED_FROM = 2**24
"""Pairs of windows in a call from which on the fused kernel is used: below, products are as fast as its set-up."""

FUSED_SIGMA = 1e-6
"""The smallest sigma that the fused kernel takes: below, its scores could overflow."""

FEW_OF_ALL = 8
"""Windows of fewer than one in so many pixels are gathered entry by entry, more of them as slices of the image."""

SCREENED_FROM = 2**26
"""Pairs of windows in a stratum from which on they are screened: below, the exact path takes no time."""

MERGED_FROM = 2**26
"""Pairs of windows in a stratum from which on duplicates are looked for: below, a call takes no time."""

FEW_PIXELS_PAIRS = 2**16
"""Pairs of windows in a term where few output pixels are asked for: more atoms than for all of them, as each term has
its own cost."""

CACHED_PAIRS = 2**19
"""Pairs of a query and a shifted image in a chunk: few enough to stay in a processor's cache, enough to fill it."""


Images = Float[Tensor, "D c h w"] | ImageSet | np.ndarray | Iterable[Any] | Callable[[], Iterable[Any]]
"""A training set (``lemmse.image_sets``)."""


@dataclass(frozen=True)
class Plan:
    """Which path an estimator takes, found once from what its operators declare; ``shifts`` of an image are atoms.

    ``kernel`` is ``"fused"`` where means of many pairs of windows come from the compiled kernel, which needs numba.
    """

    path: str
    strata: int
    whitener: str
    keys: str
    shifts: int = 1
    kernel: str = "products"

    def __str__(self) -> str:
        shifts = "" if self.shifts == 1 else f"; shifts: {self.shifts}"
        kernel = "" if self.kernel == "products" else f"; kernel: {self.kernel}"
        return f"path: {self.path}; strata: {self.strata}; whitener: {self.whitener}; keys: {self.keys}{shifts}{kernel}"


class Estimator(ABC):
    """What the estimators share: checked input, chunks of images, blocks of queries, constants of the density."""

    def __init__(
        self,
        images: Images,
        physics: Any,
        pre_inverse: Any = None,
        *,
        chunk_size: int | None = None,
        memory_limit: int | None = None,
    ):
        self.images = as_image_set(images)
        sample = checked_sample(self.images)
        self.physics = as_operator(physics)
        self.pre_inverse = None if pre_inverse is None else as_operator(pre_inverse)
        self.chunk_size = None if chunk_size is None else positive_integer(chunk_size, "chunk_size counts images")
        counted = "memory_limit counts bytes"
        self.memory_limit = None if memory_limit is None else positive_integer(memory_limit, counted)
        measured = checked_measured(self.physics, sample)
        self.measurement_shape, self.dtype, self.device = tuple(measured.shape[1:]), measured.dtype, measured.device
        v = measured[:1] if self.pre_inverse is None else checked_pre_inverted(self.pre_inverse, measured[:1])
        self._v_shape = tuple(v.shape[1:])
        self._compare(measured)
        least = self.dtype.itemsize * self._least_entries
        if memory_limit is None:
            self.memory_limit = max(DEFAULT_MEMORY_LIMIT, least)
        elif least > self.memory_limit:
            raise ValueError(
                f"memory_limit={memory_limit} bytes is too small: {type(self).__name__} needs {least} for one image of "
                f"{'×'.join(map(str, sample.shape[1:]))} and one measurement. memory_limit={least} would do, and so "
                "would smaller images."
            )
        self._store_keys()

    @abstractmethod
    def _compare(self, measured: Float[Tensor, "k ..."]) -> None:
        """Choose how queries meet atoms, once B has shown that it takes such measurements."""

    @abstractmethod
    def _store_keys(self) -> None:
        """Prepare the images of a tensor: what depends on neither y nor sigma."""

    @property
    @abstractmethod
    def _least_entries(self) -> int:
        """Return how many numbers one image and one measurement take at once."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""

    @abstractmethod
    def _state(self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range) -> Any:
        """Return the state of a reduction of checked measurements over a range of images."""

    @abstractmethod
    def _layout(self, queries: int) -> Layout:
        """Return how the results of a number of measurements are laid out."""

    @property
    @abstractmethod
    def _components(self) -> int:
        """Return the number of components of the mixture that y is drawn from, admissible or not."""

    @abstractmethod
    def _dimension(self) -> int | Int64[Tensor, "h w"]:
        """Return the dimension of the space that the density lives on."""

    def __repr__(self) -> str:
        d, c, h, w = self.images.shape
        operators = f"{self.physics!r}, pre_inverse={self.pre_inverse!r}"
        return f"{type(self).__name__}({d} images of {c}×{h}×{w}, {operators}; {self.plan})"

    def __call__(
        self,
        y: Float[Tensor, "b ..."],
        *,
        sigma: float | Tensor,
        reduction: Reduction | None = None,
        tolerance: float = 0.0,
    ) -> Posterior | Moments | Sources | Any:
        """Reduce the posterior of every measurement and return what ``reduction`` makes of it (default: ``Posterior``).

        ``y`` (b, ...) has the shape of ``physics.A(x)``; ``sigma`` is a number or one per query, (b,), in units of y. A
        ``y`` expanded along its batch (stride 0) computes its distances once for all its sigmas.

        A positive ``tolerance`` lets the local estimator leave out atoms that cannot matter, where that is faster: the
        mean of every pixel and channel is then within its ``error_bound``, at most the tolerance, beside the rounding
        of the dtype (S12.3), and the log-partition lacks their mass. Else the answer is exact, and the bound 0.

        Raises ``ValueError`` for a wrong shape, dtype or device, values that are not finite, a sigma that is not
        positive, a negative tolerance, or a positive one with a reduction that cannot honour it, and ``TypeError`` for
        what is no reduction.
        """
        sigma, reduction = self._checked(y, sigma, reduction, tolerance)
        if tolerance > 0 and (certified := self._certified(y, sigma, reduction, tolerance)) is not None:
            return certified
        state = self._state(y, sigma, reduction, range(self.images.shape[0]))
        return reduction.finish(state, self._layout(len(y)))

    def partial_posterior(
        self, y: Float[Tensor, "b ..."], *, sigma: float | Tensor, reduction: Reduction | None = None
    ) -> PartialPosterior:
        """Reduce like a call, and return what merges with the same of other images: a ``PartialPosterior``.

        Raises what a call raises.
        """
        sigma, reduction = self._checked(y, sigma, reduction)
        count = self.images.shape[0]
        state = self._state(y, sigma, reduction, range(count))
        return PartialPosterior(reduction, self._layout(len(y)), state, count, self._asked(y, sigma))

    def _certified(self, y: Tensor, sigma: Tensor, reduction: Reduction, tolerance: float) -> Posterior | None:
        """Return a posterior whose error bounds are within a tolerance; ``None`` where the exact one is faster."""
        return None

    def stream(
        self,
        y: Float[Tensor, "b ..."],
        *,
        sigma: float | Tensor,
        reduction: Reduction | None = None,
        after: PartialPosterior | None = None,
    ) -> Iterator[PartialPosterior]:
        """Reduce chunk after chunk of images and yield, after each, a ``PartialPosterior`` of all images so far.

        Its ``result()`` is the estimate from those images alone; the last is that of a call. ``chunk_size`` images make
        a chunk (else one in STREAM_CHUNKS of all). A partial posterior can be kept, with pickle, and handed in again as
        ``after``, with the same arguments: the stream goes on with the next image, also after an interruption; images
        that come in chunks are passed over up to there. A bar counts the chunks.

        Raises what a call raises, and ``ValueError`` where ``after`` comes from another y, sigma, reduction or kind of
        estimator; that the images and operators are the same is left to the caller.
        """
        sigma, reduction = self._checked(y, sigma, reduction)
        count = self.images.shape[0]
        layout, done, state = self._layout(len(y)), 0, None
        asked = self._asked(y, sigma)
        if after is not None:
            if not isinstance(after, PartialPosterior):
                raise TypeError(f"after is a PartialPosterior that a stream has yielded: got {type(after).__name__}.")
            after.check_continues(reduction, layout, asked, count)
            done, state = after.images, after.state
        chunks = _split(range(done, count), self.chunk_size or -(-count // STREAM_CHUNKS))
        for start, stop in progress(chunks, description=type(self).__name__, unit="chunk"):
            with silence():
                of_chunk = self._state(y, sigma, reduction, range(start, stop))
            state = of_chunk if state is None else reduction.merge(state, of_chunk)
            yield PartialPosterior(reduction, layout, state, stop, asked)

    def _asked(self, y: Float[Tensor, "b ..."], sigma: Float64[Tensor, " b"]) -> str:
        """Return a mark of the estimator's kind, y and sigma: equal where partial posteriors may merge."""
        described = f"{type(self).__name__}, {type(self.physics).__name__}, {type(self.pre_inverse).__name__}"
        described += f", {getattr(self, 'patch_size', None)}, {getattr(self, 'boundary', None)}, {tuple(y.shape)}"
        digest = hashlib.sha256(described.encode())
        for each in (y, sigma):
            digest.update(each.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _checked(self, y: Tensor, sigma: Any, reduction: Any, tolerance: float = 0.0) -> tuple[Tensor, Reduction]:
        """Return sigma, one per query, and the reduction, once all arguments of a call have been checked."""
        reduction = checked_reduction(reduction)
        check_measurements(y, self.measurement_shape, self.dtype, self.device)
        check_tolerance(tolerance, reduction)
        return checked_sigma(sigma, len(y), y.device), reduction

    def log_density(self, posterior: Any, sigma: float | Tensor) -> Float[Tensor, "b ..."]:
        """Complete a log-partition with its constants and return the log-density, in nats, shaped like it.

        L - ln K - (rank/2) ln 2πσ², K the number of atoms: D, or D·h·w where they are shifts or windows, admissible or
        not. It is the density of Π y with respect to the Hausdorff measure of Im Bᵀ, of dimension ``rank`` (S2.1), and
        for the local estimator that of each window of B y with respect to that of Im Q_n (S5.10): compare windows of
        one rank only, or divide by it. ``posterior`` is a ``Posterior`` or ``Moments`` of this estimator at this
        ``sigma``; else ``TypeError``, or ``ValueError`` for another shape.
        """
        if not isinstance(posterior, Posterior):
            raise TypeError(f"log_density completes a Posterior or Moments: got {type(posterior).__name__}.")
        found = posterior.log_partition
        if tuple(found.shape) != (wanted := self._layout(len(found)).query_shape):
            raise ValueError(
                f"log_density completes what a call of this estimator returned, a log_partition of shape {wanted}: got "
                f"{tuple(found.shape)}."
            )
        variance = checked_sigma(sigma, len(found), self.device).square().reshape(-1, *(1,) * (found.ndim - 1))
        constants = math.log(self._components) + 0.5 * self._dimension() * (2 * math.pi * variance).log()
        return found - constants.to(found)

    def _images(self, start: int, stop: int) -> Float[Tensor, "k c h w"]:
        """Return the images of a chunk; those made on demand are checked as they come."""
        images = self.images[start:stop]
        if isinstance(self.images, Tensor | ChunkedImages | HeldImages):  # checked before
            return images
        return checked_slice(images, self.images, start, stop, self.dtype)

    def _chunk_by_chunk(
        self, groups: list[tuple[Tensor, Tensor]], reduction: Reduction, chunks: list[tuple[int, int]]
    ) -> Any:
        """Reduce groups of measurements, with their sigmas, over images that are made once for all of them."""
        held, states = copy(self), None
        for start, stop in progress(chunks, description=type(self).__name__, unit="chunk"):
            held.images = HeldImages(self._images(start, stop), start, self.images.shape)
            with silence():
                found = [held._state(*group, reduction, range(start, stop)) for group in groups]
            states = found if states is None else [reduction.merge(*each) for each in zip(states, found, strict=True)]
        return join(states)

    def _measure(self, images: Float[Tensor, "k c h w"]) -> Float[Tensor, "k ..."]:
        return checked_measured(self.physics, images)

    def pre_inverted(self, y: Float[Tensor, "b ..."], dtype: torch.dtype | None = None) -> Float[Tensor, "b ..."]:
        """Return v = B y, what the estimator sees of measurements (b, ...): computed in float64, in the dtype of y.

        ``dtype`` asks for another dtype of the result. Raises what B raises for measurements that it does not take.
        """
        v = y if self.pre_inverse is None else apply_in_float64(self.pre_inverse.A, y)
        return v.to(y.dtype if dtype is None else dtype)

    def _check_image(self) -> None:
        """Raise ``ValueError`` unless B y is an image of the size of x."""
        h, w = self.images.shape[2:]
        if len(self._v_shape) != 3 or self._v_shape[1:] != (h, w):
            given = f"physics {self.physics!r}" if self.pre_inverse is None else f"pre_inverse {self.pre_inverse!r}"
            raise ValueError(
                f"{type(self).__name__} needs B y to be an image of {h} × {w} pixels: {given} gives (b, "
                f"{', '.join(map(str, self._v_shape))}). A pre_inverse such as Adjoint(physics) makes an image of y."
            )

    def _scale(self, sigma: Float64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return -1/2σ², finite also when multiplied by any squared distance."""
        largest = -torch.finfo(self.dtype).max / 2**30
        return (-0.5 / sigma.square()).clamp_min(largest).to(self.dtype)


class _GlobalEstimator(Estimator):
    """An estimator that compares whole images: chunks of them, blocks of queries, and a comparison of the two."""

    def _compare(self, measured: Float[Tensor, "k ..."]) -> None:
        self._comparison = self._choose_comparison(measured)

    def _store_keys(self) -> None:
        self._keys = self._stored_keys() if isinstance(self.images, Tensor) else None

    @abstractmethod
    def _choose_comparison(self, measured: Float[Tensor, "k ..."]) -> Comparison:
        """Return how queries are compared with atoms, once B has shown that it takes such measurements."""

    @abstractmethod
    def _values(self, images: Float[Tensor, "k c h w"]) -> Values:
        """Return what the atoms of a chunk are worth."""

    def _dimension(self) -> int:
        if self.pre_inverse is None:
            return math.prod(self.measurement_shape)
        return rank(self.pre_inverse, self.measurement_shape)

    def _state(self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range) -> Any:
        blocks = [slice(at, at + self._queries_at_once) for at in range(0, len(y), self._queries_at_once)]
        chunks = self._chunks(images, min(len(y), self._queries_at_once))
        if self._keys is None and len(blocks) > 1:
            return self._chunk_by_chunk([(y[block], sigma[block]) for block in blocks], reduction, chunks)
        if _device.asynchronous(y):
            missed = []
            state = self._state_of_blocks(y, sigma, reduction, blocks, chunks, missed)
            if not torch.stack(missed).any():
                return state
        return self._state_of_blocks(y, sigma, reduction, blocks, chunks, None)

    def _state_of_blocks(
        self,
        y: Tensor,
        sigma: Tensor,
        reduction: Reduction,
        blocks: list[slice],
        chunks: list[tuple[int, int]],
        missed: list[Tensor] | None,
    ) -> Any:
        """Reduce blocks of measurements; ``missed`` is that of ``refined``."""
        steps = progress(range(len(blocks) * len(chunks)), description=type(self).__name__, unit="chunk")
        listed = getattr(reduction, "atoms_listed", 0)
        states = [
            accumulate(
                self._terms(y[block], sigma[block], listed, missed, zip(chunks, steps, strict=False)),
                reduction,
                self._layout(len(y[block])),
            )
            for block in blocks
        ]
        return join(states)

    def _layout(self, queries: int) -> Layout:
        has_pixels = self._comparison.shifts is not None
        return Layout((queries,), tuple(self.images.shape[1:]), self.dtype, self.device, has_pixels)

    def _terms(
        self, y: Tensor, sigma: Tensor, listed: int, missed: list[Tensor] | None, chunks: Iterator
    ) -> Iterator[Term]:
        """Yield a term per chunk of images: r² and -r²/2σ² of all its atoms."""
        comparison = self._comparison
        queries = comparison.queries(y[:1] if _same(y) else y)
        scale = self._scale(sigma)[:, None]
        for (start, stop), _ in chunks:
            images = self._images(start, stop)
            keys = Keys(*(x[start:stop] for x in self._keys)) if self._keys is not None else self._make_keys(images)
            measured = partial(self._measure_some, images)
            d2 = comparison.refined_distances(queries, keys, measured, sigma=sigma, listed=listed, missed=missed)
            d2 = d2.to(self.dtype).expand(len(y), -1)
            yield ArrayTerm(scale * d2, d2, self._values(images), first_image=start, pixels=comparison.shifts)

    def _measure_some(self, images: Float[Tensor, "k c h w"], index: Int64[Tensor, " n"]) -> Float[Tensor, "n ..."]:
        return self.physics.A(images[index])  # once checked, as a key was made of it

    def _make_keys(self, images: Float[Tensor, "k c h w"]) -> Keys:
        """Return the keys of images, made a few at a time: operators take many times the room of what they give."""
        size = max(1, self.memory_limit // (4 * self.dtype.itemsize * self._operator_entries))
        return self._joined((self._comparison.keys(self._measure(some)) for some in images.split(size)), len(images))

    def _stored_keys(self) -> Keys:
        """Compute the keys of all images once and return them."""
        chunks = progress(self._chunks(range(len(self.images)), 0), description=type(self).__name__, unit="chunk")
        return self._joined((self._make_keys(self.images[start:stop]) for start, stop in chunks), len(self.images))

    def _joined(self, parts: Iterator[Keys], count: int) -> Keys:
        """Return the keys of so many images from those of their parts, which are made one by one."""
        whole, filled = None, 0
        for keys in parts:
            if len(keys.norms) == count:
                return keys
            if whole is None:
                whole = Keys(*(x.new_empty(count, *x.shape[1:]) for x in keys))
            for all_of_them, some in zip(whole, keys, strict=True):
                all_of_them[filled : filled + len(some)] = some
            filled += len(keys.norms)
        return whole

    @property
    def _operator_entries(self) -> int:
        """Return how many numbers operators take for an image."""
        return OPERATOR_ENTRIES * (math.prod(self.images.shape[1:]) + math.prod(self.measurement_shape))

    @property
    def _least_entries(self) -> int:
        per_query = self._comparison.query_entries + PAIR_ENTRIES * self._comparison.atoms_per_image
        return self._image_entries + per_query + self._operator_entries

    @property
    def _image_entries(self) -> int:
        """Return how many numbers an image takes in a chunk: itself, its squares, and all that becomes its key."""
        return 2 * math.prod(self.images.shape[1:]) + self._comparison.key_entries

    @property
    def _queries_at_once(self) -> int:
        """Return how many queries fit into the memory limit beside one image."""
        per_query = self._comparison.query_entries + PAIR_ENTRIES * self._comparison.atoms_per_image
        return max(1, (self.memory_limit * 3 // 4 // self.dtype.itemsize - self._image_entries) // per_query)

    def _chunks(self, images: range, n_queries: int) -> list[tuple[int, int]]:
        """Return the first image of every chunk of a range, and that after its last."""
        atoms = self._comparison.atoms_per_image
        room = self.memory_limit * 3 // 4 // self.dtype.itemsize - self._comparison.query_entries * n_queries
        chosen = room // (self._image_entries + PAIR_ENTRIES * n_queries * atoms)
        if atoms > 1:
            chosen = min(chosen, CACHED_PAIRS // (max(1, n_queries) * atoms))
        return _split(images, max(1, chosen) if self.chunk_size is None else self.chunk_size)


@final
class MMSE(_GlobalEstimator):
    """The unconstrained minimum-mean-square-error estimator over a finite set of images: what an MLP would learn (S3).

    x̂ = Σ_d w_d x_d with w_d ∝ exp(-r_d²/2σ²), r_d = ‖Π (y - A x_d)‖ and Π the projector onto Im Bᵀ; ``log_partition``
    is the logsumexp of -r_d²/2σ², one per query.

    ``images`` (D, c, h, w) with values in [0, 1] are one of these:

    * a tensor, float32 or float64, which fits into memory together with the keys Π A x_d: these are computed once and
      kept, so that it must not change afterwards;
    * a numpy array, also one in a file, ``numpy.load(name, mmap_mode="r")``, of which slices are read;
    * chunks (k, c, h, w), or tuples that begin with one: a ``DataLoader`` (``shuffle=False``), a list, or a function
      without arguments that returns an iterator, such as a generator function. They are passed over once when the
      estimator is made, which counts them, and must be the same in every pass;
    * any ``ImageSet``: what has a shape, and slices that are tensors.

    Of all but a tensor only a chunk is in memory, and every call reads the images and makes their keys anew; uint8
    arrays and chunks, 0 to 255, are read as float32 in [0, 1]. ``estimator.images`` serves a second estimator without
    another first pass.

    ``physics`` is any operator, also ``Nonlinear``, that gives the same answer every time; ``pre_inverse`` any linear
    map of measurements (``None``: the identity). ``chunk_size`` (images) or ``memory_limit`` (bytes of temporary
    arrays; ``None``: 256 MiB, or what one image needs) bound memory and do not change the answer.

    Raises ``ValueError`` for images that are empty, of a wrong shape or not finite, chunks that can be read only once,
    and a memory limit without room for one image; ``TypeError`` for what is no operator, or a nonlinear
    ``pre_inverse``; ``RuntimeError``, also in a call, where chunks change between passes. Warns where images leave
    [0, 1].
    Source: S1, S3 (arXiv 2601.10334).

    >>> images = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1)
    >>> estimator = MMSE(images, Denoising())
    >>> estimator(torch.full((1, 1, 1, 1), 0.5), sigma=0.1).mean.item()
    0.5
    """

    @property
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""
        projected = "‖y - A x‖" if self.pre_inverse is None else "‖Π(y - A x)‖, Π onto Im Bᵀ"
        return Plan(projected, 1, "none", _kept(self._keys))

    def _choose_comparison(self, measured: Float[Tensor, "k ..."]) -> Comparison:
        return RowComparison(_projector(self), measured)

    def _values(self, images: Float[Tensor, "k c h w"]) -> Values:
        return ArrayValues(images)

    @property
    def _components(self) -> int:
        return self.images.shape[0]


@final
class EquivariantMMSE(_GlobalEstimator):
    """The best estimator that commutes with all circular shifts: what a CNN that sees the whole image would learn (S4).

    x̂ = Σ_{d,g} w_{d,g} T_g x_d with w_{d,g} ∝ exp(-r²/2σ²), r = ‖B⁺(T_g⁻¹B y - B A x_d)‖, over all images and those
    shifts g that preserve the image space of B: ``admissible_shifts``, a map (h, w), ``True`` at [g_row, g_column].
    ``log_partition`` is the logsumexp of -r²/2σ². ``TopSources`` names image and shift:
    ``pixel`` is g_row · w + g_column.

    Arguments as for ``MMSE``; what B makes of a measurement must be an image of h × w pixels, with any number of
    channels. Which path is taken (``plan``) follows from what B declares. Where B Bᵀ is circulant, or a declared
    ``shift_period`` names the admissible shifts, weights and means of all shifts of an image cost one FFT each
    (O(N log N)), and so for a diagonal B after a sum of each shift, once a query. Any other B takes S shifts of the
    query through B⁺, once, and matrix products, O(S M) an image.

    Raises what ``MMSE`` raises, and ``ValueError`` where B y is no image of the size of x.
    Source: S4 (arXiv 2601.10334; the support condition is S4.1).

    >>> images = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)
    >>> y = torch.tensor([0.1, -0.2, 1.0]).reshape(1, 1, 1, 3)
    >>> EquivariantMMSE(images, Denoising())(y, sigma=0.1).mean.flatten()
    tensor([0., 0., 1.])
    """

    @property
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""
        comparison = self._comparison
        return Plan(comparison.path, 1, comparison.whitener, _kept(self._keys), comparison.atoms_per_image)

    def _choose_comparison(self, measured: Float[Tensor, "k ..."]) -> Comparison:
        """Find the admissible shifts and return how they are compared, from what B declares."""
        B, (h, w) = self.pre_inverse, self.images.shape[2:]
        self._check_image()
        if B is None:
            self.admissible_shifts = torch.ones(h, w, dtype=torch.bool, device=self.device)
            return CircularComparison(unchanged, measured, stride=1, full_width=w)
        self.admissible_shifts = stabiliser(B, self.measurement_shape, (h, w)).to(self.device)
        if (whiten := gram_whitener(B, self.measurement_shape)) is not None:
            return CircularComparison(whiten, measured, stride=1, full_width=w)
        shifts = self.admissible_shifts.flatten().nonzero()[:, 0]
        if (period := B.shift_period) is not None:
            grid = (h // period, w // period)
            if self.measurement_shape[1:] == grid and len(shifts) == math.prod(grid):
                return CircularComparison(_projector(self), measured, stride=period, full_width=w)
        factor = B.factorisation(self.measurement_shape)
        if B.diagonal is not None and len(shifts) > 1:
            return DiagonalComparison(factor, shifts, measured)
        return ShiftedRowComparison(factor, shifts, measured)

    def _values(self, images: Float[Tensor, "k c h w"]) -> Values:
        return ShiftedValues(images, self._comparison.shifts)

    @property
    def _components(self) -> int:
        return self.images.shape[0] * math.prod(self.images.shape[2:])


@final
class LocalEquivariantMMSE(Estimator):
    """The best estimator that is equivariant and sees one window per pixel: what a CNN would learn, LE-MMSE (S5).

    x̂(n') = Σ_{d,n} w_{d,n} x_d(n), w_{d,n} ∝ |Q_n Q_nᵀ|₊^{-1/2} exp(-r²/2σ²), r = ‖Q_n⁺((B y)[ω_n'] - (B A x_d)[ω_n])‖,
    over all images d and those pixels n whose window has the image space of that of n', Im Q_n = Im Q_n' with
    Q_n = Π_n B: the *stratum* of n'. ``log_partition`` (b, h, w) is the logsumexp of -r²/2σ² - ½ ln |Q_n Q_nᵀ|₊.
    ``TopSources`` names image and pixel n, row-major; a pixel whose stratum has fewer atoms than asked for gets image
    and pixel -1 and weight 0 in their place.

    Arguments as for ``MMSE``, and ``patch_size``, the side of the window, odd and at most min(h, w); a window takes all
    channels. ``boundary`` is ``"circular"``, or ``"zero"`` for a network that pads with zeros (S5.9). What B makes of a
    measurement must be an image of h × w pixels, with any number of channels. Strata and whiteners follow from what B
    declares, once (``plan``, ``strata``, ``ranks``): where B Bᵀ is circulant one whitener serves all windows, a
    diagonal B needs one for each pattern that it shows in a window, a ``shift_period`` s at most s², any other B one
    per pixel. ``window_index`` (N, p²) names the pixels of every window, h·w those beyond a zero boundary.

    Raises what ``MMSE`` raises, and ``ValueError`` for a patch size that is even or too large, an unknown boundary, a B
    whose output is no such image, or one that declares nothing and is too large for a dense matrix.
    Source: S5 (arXiv 2601.10334; strata and pseudo-determinants are S2.4 and S5.2).

    >>> images = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 1, 4)
    >>> y = torch.tensor([0.1, 0.1, 0.1, 0.9]).reshape(1, 1, 1, 4)
    >>> LocalEquivariantMMSE(images, Denoising(), patch_size=1)(y, sigma=0.1).mean.flatten().round(decimals=3)
    tensor([0., 0., 0., 1.])
    """

    def __init__(
        self,
        images: Images,
        physics: Any,
        patch_size: int,
        pre_inverse: Any = None,
        boundary: str = "circular",
        *,
        chunk_size: int | None = None,
        memory_limit: int | None = None,
    ):
        self.patch_size, self.boundary = patch_size, boundary
        super().__init__(images, physics, pre_inverse=pre_inverse, chunk_size=chunk_size, memory_limit=memory_limit)

    def _compare(self, measured: Float[Tensor, "k ..."]) -> None:
        """Find the strata, their whiteners and centres."""
        index = window_index(*self.images.shape[2:], self.patch_size, self.boundary)
        self._check_image()
        self.strata = strata_of_windows(self.pre_inverse, self.measurement_shape, self._v_shape, index)
        plain = all(len(stratum.classes) == 1 and stratum.evenly_scaled for stratum in self.strata)
        self._v_dtype = self.dtype if plain else torch.float64  # whitening amplifies rounding
        self.window_index = index.to(self.device)
        v = self.pre_inverted(measured, self._v_dtype)
        self._colour = centre_of(v) if plain else torch.zeros_like(v[0, :, :1, :1])  # small entries of B y keep digits
        sample = self._centred(measured)
        self._comparisons = [self._comparison_of(stratum, sample) for stratum in self.strata]

    def _store_keys(self) -> None:
        """Apply B A to the images that are at hand, and whiten their windows where that takes long."""
        self._keys = self._stored_keys() if isinstance(self.images, Tensor) else None
        self._rows = self._stored_rows()
        self._compiled = with_numba(self.dtype, self.device)
        self._fused = self._fused_images = None
        count, c = self.images.shape[:2]
        cheaper = kernel_cost(self.strata, count, c) < products_cost(self.strata, count)
        if self._compiled and FusedWindows.fits(self.strata) and cheaper:
            self._fused = FusedWindows(self.strata, self._v_shape, self.patch_size, self.boundary)
            self._fused_images = None if self._keys is None else self._fused.chunk(self._keys, self.images)
        merges = self._compiled and self._fused is None and self._keys is not None
        large = [count * len(each.pixels) ** 2 >= MERGED_FROM for each in self._comparisons]
        self._merged = {i: self._merged_in(i) for i in range(len(large)) if merges and large[i]}
        plain = any(each and PlainKeys.fits(self._comparisons[i]) for i, each in self._merged.items())
        self._plain = PlainKeys(self._keys, self.patch_size, self.boundary) if plain else None

    def _merged_in(self, stratum: int) -> Merged | None:
        """Return the windows of a stratum that differ, if few enough do."""
        comparison = self._comparisons[stratum]
        if not isinstance(comparison, OneWhitener):
            return None
        values = self.images.flatten(2)[..., comparison.pixels]
        windows = partial(self._windows, comparison)
        return merged_duplicates(self._keys, values, self.window_index[comparison.pixels], windows)

    def _comparison_of(self, stratum: Stratum, sample: Float[Tensor, "k c h w"]) -> WindowComparison:
        if len(stratum.classes) > 1 and not stratum.mixes:
            pixels, scales = stratum.pixels.to(self.device), stratum.scales().to(self.device)
            return ScaledWindows(pixels, stratum.kept, scales, self.dtype)
        classes = []
        for member in stratum.classes:
            pixels = member.pixels.to(self.device)
            centre = windows_at(sample, self.window_index[pixels]).mean((0, 1)) if stratum.mixes else None
            classes.append(OneWhitener(pixels, member.whitener, centre, self.dtype))
        return classes[0] if len(classes) == 1 else SeveralWhiteners(classes)

    @property
    def plan(self) -> Plan:
        """Return the path that this estimator takes."""
        whiteners = [member.whitener for stratum in self.strata for member in stratum.classes]
        path = "one whitener" if len(whiteners) == 1 else f"{len(whiteners)} whiteners"
        kinds = ", ".join(sorted({each.kind for each in whiteners}))
        kernel = "products" if self._fused is None else "fused"
        return Plan(path, len(self.strata), kinds, _kept(self._keys), kernel=kernel)

    @property
    def _components(self) -> int:
        return self.images.shape[0] * math.prod(self.images.shape[2:])

    @property
    def ranks(self) -> Int64[Tensor, "h w"]:
        """Return the rank of Q_n of every window: how many independent numbers it holds."""
        ranks = torch.empty(math.prod(self.images.shape[2:]), dtype=torch.int64, device=self.device)
        for stratum in self.strata:
            ranks[stratum.pixels.to(self.device)] = stratum.rank
        return ranks.unflatten(0, tuple(self.images.shape[2:]))

    @property
    def window_entries(self) -> int:
        """Return how many numbers a window of B y holds, those beyond a zero boundary included."""
        return self._v_shape[0] * self.patch_size**2

    def _dimension(self) -> Int64[Tensor, "h w"]:
        return self.ranks

    def _state(self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range) -> Any:
        """Reduce by the kernel where it is worth it, else as many measurements at a time as the memory limit allows."""
        pairs = (1 if _same(y) else len(y)) * len(images) * len(self.window_index) ** 2
        means_only = getattr(reduction, "needs", None) == "mean" and not self._differentiated(y)
        by_kernel = self._fused is not None and pairs >= FUSED_FROM and means_only and float(sigma.min()) >= FUSED_SIGMA
        size = len(y) if _same(y) else 1 if by_kernel else self._measurements_at_once
        reduced = self._state_by_kernel if by_kernel else self._state_by_products
        split = list(zip(y.split(size), sigma.split(size), strict=True))
        if self._keys is None and len(split) > 1:
            return self._chunk_by_chunk(split, reduction, self._chunks(images))
        return join([reduced(*each, reduction, images) for each in split])

    def at_pixels(
        self,
        y: Float[Tensor, "b ..."],
        pixels: Sequence[tuple[int, int]],
        *,
        sigma: float | Tensor,
        reduction: Reduction | None = None,
    ) -> Posterior | Moments | Sources | Any:
        """Reduce the posteriors of a few output pixels alone: what a call returns there, in a small part of its time.

        ``pixels`` are m pairs (row, column). Results have the shape of a call's with (b, m) in place of (b, h, w), in
        the order of ``pixels``. All else is as in a call. Raises what a call raises, and ``ValueError`` for no pixels,
        and for one outside the image. Source: S5.2.
        """
        sigma, reduction = self._checked(y, sigma, reduction)
        asked = torch.tensor([self.flat_index(pixel) for pixel in pixels], dtype=torch.int64, device=self.device)
        if not len(asked):
            raise ValueError("pixels names at least one output pixel, (row, column): got none.")
        few, which = asked.unique(return_inverse=True)
        strata = [i for i, each in enumerate(self._comparisons) if torch.isin(each.pixels, few).any()]
        kept = self._differentiated(y)  # a gradient, which passes in place do not keep
        direct = [i for i in strata if not kept and self._compares_directly(self._comparisons[i])]
        others = [i for i in strata if i not in direct]
        images, places, states = range(self.images.shape[0]), [], []
        for some, reduced in ((direct, self._strata_directly), (others, self._strata_of_terms)):
            if some:
                place, state = reduced(y, sigma, reduction, images, some, few)
                places.append(place)
                states.append(state)
        state = join(states)
        order = torch.cat(places).argsort().reshape(len(y), -1)[:, which].flatten()
        layout = replace(self._flat_layout(len(order)), query_shape=(len(y), len(asked)))
        return reduction.finish(type(state)(*(x[order] for x in state)), layout)

    def _compares_directly(self, comparison: WindowComparison) -> bool:
        """Return whether distances of a stratum are sums of squared differences, and its pixels most of all."""
        plain = isinstance(comparison, OneWhitener) and isinstance(comparison.whitener, Selection)
        many = FEW_OF_ALL * len(comparison.pixels) >= len(self.window_index)
        return plain and many and comparison.whitener.unscaled and comparison.centre is None

    def _strata_directly(
        self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range, strata: Sequence[int], few: Tensor
    ) -> tuple[Int64[Tensor, " q"], Any]:
        """Reduce a few pixels of some strata by a pass over the images for each entry of their windows."""
        v, scale = self._centred(y[:1] if _same(y) else y), self._scale(sigma)
        pixels = {i: few[torch.isin(few, self._comparisons[i].pixels)] for i in strata}
        windows = {i: windows_at(v, self.window_index[at]).transpose(0, 1).flatten(0, 1) for i, at in pixels.items()}
        states = {i: reduction.start(self._flat_layout(len(y) * len(at))) for i, at in pixels.items()}
        entries = (len(few) * len(v) + 2) * len(self.window_index) + self._image_entries
        chunks = _split(images, self.chunk_size or self.memory_limit // (4 * self.dtype.itemsize * entries))
        for start, stop in progress(chunks, description=type(self).__name__, unit="chunk"):
            values = self._images(start, stop)
            keys = self._centred(self._measure(values)) if self._keys is None else self._keys[start:stop]
            for i, queries in windows.items():
                comparison = self._comparisons[i]
                kept = comparison.whitener.kept.tolist()
                d2 = direct_distances(queries, keys, kept, self.patch_size, self.boundary)
                d2 = d2 if len(comparison.pixels) == d2.shape[2] else d2[..., comparison.pixels]
                d2 = d2.flatten(1).unflatten(0, (-1, len(v))).expand(-1, len(y), -1).flatten(0, 1).to(self.dtype)
                log_weights = scale.repeat(len(pixels[i]))[:, None] * d2 - comparison.half_log_pdet[0]
                colours = ArrayValues(centre_pixels(values)[:, comparison.pixels].flatten(0, 1))
                term = ArrayTerm(log_weights, d2, colours, first_image=start, pixels=comparison.pixels)
                states[i] = reduction.update(states[i], term)
        n = len(self.window_index)
        place = [(at[:, None] + n * torch.arange(len(y), device=at.device)).flatten() for at in pixels.values()]
        return torch.cat(place), join(list(states.values()))

    def flat_index(self, pixel: tuple[int, int]) -> int:
        """Return the row-major index of a pixel (row, column), or raise ``ValueError`` unless the images have it."""
        h, w = self.images.shape[2:]
        whole = isinstance(pixel, tuple) and len(pixel) == 2 and all(hasattr(side, "__index__") for side in pixel)
        if not whole or not (0 <= pixel[0] < h and 0 <= pixel[1] < w):
            raise ValueError(
                f"pixel is (row, column) in an image of {h} × {w} pixels, counted from 0: got {pixel!r}. "
                f"divmod(n, {w}) makes one of a row-major index n."
            )
        return int(pixel[0]) * w + int(pixel[1])

    def _differentiated(self, y: Tensor) -> bool:
        """Return whether a gradient is asked for, which compiled loops do not keep."""
        return y.requires_grad or getattr(self.images, "requires_grad", False)

    def _state_by_kernel(self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range) -> Any:
        """Reduce one measurement, for all its sigmas."""
        terms = self._fused.terms(self._centred(y[:1])[0], -2 * self._scale(sigma), self._fused_chunks(images))
        return accumulate(terms, reduction, self._layout(len(y)))

    def _fused_chunks(self, images: range) -> Iterator[FusedChunk]:
        """Yield chunks of images as the kernel takes them, with a bar."""
        chunks = self._chunks(images)
        for start, stop in progress(chunks, description=type(self).__name__, unit="chunk"):
            if self._fused_images is not None:
                yield FusedChunk(*(x[start:stop] for x in self._fused_images))
            else:
                some = self._images(start, stop)
                yield self._fused.chunk(self._centred(self._measure(some)), some)

    def _certified(self, y: Tensor, sigma: Tensor, reduction: Reduction, tolerance: float) -> Posterior | None:
        """Return the posterior mean by screens, or exactly for those measurements where they do not pay."""
        if _device.asynchronous(y) or not isinstance(reduction, PosteriorMean) or self._differentiated(y):
            return None
        if not self._screens:
            return None
        size = len(y) if _same(y) else 1
        groups = list(zip(y.split(size), sigma.split(size), strict=True))
        found = [self._screened(*each, reduction, tolerance) for each in groups]
        exact = [i for i, each in enumerate(found) if each is None]
        if len(exact) == len(found):
            return None
        if exact:
            every = range(self.images.shape[0])
            rest = torch.tensor(exact, device=self.device)
            state = self._state(y[rest], sigma[rest], reduction, every)
            for i, *one in zip(exact, *(x.split(len(self.window_index)) for x in state), strict=True):
                found[i] = type(state)(*one), torch.zeros_like(one[-1])
        states, bounds = (list(each) for each in zip(*found, strict=True))
        layout = self._layout(len(y))
        return replace(reduction.finish(join(states), layout), error_bound=layout.per_value(torch.cat(bounds)))

    def _screened(
        self, y: Tensor, sigma: Tensor, reduction: PosteriorMean, tolerance: float
    ) -> tuple[Any, Float[Tensor, "q c"]] | None:
        """Return the state of one measurement, for all its sigmas, and error bounds; ``None`` where it does not pay."""
        b, n, d = len(y), len(self.window_index), self.images.shape[0]
        v, inverse_variances = self._centred(y[:1]), sigma.double().square().reciprocal()
        pairs = {i: d * len(self.strata[i].pixels) ** 2 for i in self._screens}
        others = [i for i in range(len(self.strata)) if i not in pairs]
        by_products = self._fused is None
        exact = products_cost(self.strata, d) if by_products else kernel_cost(self.strata, d, self.images.shape[1])
        budget = (exact - aside([self.strata[i] for i in others], d)) / sum(pairs.values())
        searches = {}
        for i, screen in self._screens.items():
            if (each := search(screen, v, inverse_variances, tolerance, budget)) is None:
                return None
            searches[i] = each
        first_pixels = torch.arange(b, device=self.device)[:, None] * n
        places, states, bounds = [], [], []
        for i, each in searches.items():
            if (found := each.means(budget)) is None:
                return None
            comparison = self._comparisons[i]
            peak = -inverse_variances[:, None] * found.depth - comparison.half_log_pdet[0]
            peak = peak.clamp_min(torch.finfo(self.dtype).min)  # a far query has mass, too
            term = SummedTerm(*(x.flatten(0, 1).to(self.dtype) for x in (peak, found.mass, found.mean)))
            states.append(reduction.update(reduction.start(self._flat_layout(b * len(comparison.pixels))), term))
            bounds.append(each.screen.error_bound(found.tail, states[-1].mean))
            places.append((first_pixels + comparison.pixels).flatten())
        if others:
            place, state = self._strata_by_products(y, sigma, reduction, range(d), others)
            places, states, bounds = [*places, place], [*states, state], [*bounds, torch.zeros_like(state.mean)]
        order, state = torch.cat(places).argsort(), join(states)
        return type(state)(*(x[order] for x in state)), torch.cat(bounds)[order]

    @cached_property
    def _screens(self) -> dict[int, Screen]:
        """Prepare the large strata with one whitener for a tolerance, at the first call with one, within the limit."""
        room, screens = self.memory_limit // self.dtype.itemsize, {}
        if self._keys is None:
            return screens
        for i in sorted(range(len(self.strata)), key=lambda i: -len(self.strata[i].pixels)):
            comparison, atoms = self._comparisons[i], self.images.shape[0] * len(self.strata[i].pixels)
            large = isinstance(comparison, OneWhitener) and atoms * len(comparison.pixels) >= SCREENED_FROM
            if large and (directions := directions_within(comparison.whitener.rank, atoms, room)):
                windows = partial(self._windows, comparison)
                facts = (self._keys, self.images, self.window_index, self.boundary, windows, directions)
                screens[i] = Screen(comparison, *facts)
                room -= screens[i].columns.numel()
        return screens

    def _state_by_products(self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range) -> Any:
        """Reduce blocks of the pixels of each stratum, and return the state of all pixels in their order."""
        place, state = self._strata_by_products(y, sigma, reduction, images, range(len(self._comparisons)))
        order = place.argsort()
        return type(state)(*(x[order] for x in state))

    def _strata_by_products(
        self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range, strata: Sequence[int]
    ) -> tuple[Int64[Tensor, " q"], Any]:
        """Reduce the pixels of some strata, and return the place of each query among all, and the state."""
        sums = getattr(reduction, "needs", None) in ("mean", "moments") and not self._differentiated(y)
        compiled = self._compiled and sums and float(sigma.min()) >= FUSED_SIGMA
        weighed = [i for i in strata if compiled and isinstance(self._comparisons[i], OneWhitener)]
        others = [i for i in strata if i not in weighed]
        places, states = [], []
        for some, reduced in ((weighed, self._strata_of_sums), (others, self._strata_of_terms)):
            if some:
                found = reduced(y, sigma, reduction, images, some)
                places.append(found[0])
                states.append(found[1])
        return torch.cat(places), join(states)

    def _strata_of_sums(
        self, y: Tensor, sigma: Tensor, reduction: Reduction, images: range, strata: Sequence[int]
    ) -> tuple[Int64[Tensor, " q"], Any]:
        """Reduce the means of some strata, or their moments, whose weights compiled loops make."""
        b, n = len(y), len(self.window_index)
        v, factor, shared = self._shared(y, sigma)
        first_pixels = torch.arange(b)[:, None] * n
        means, places, states = {}, [], []
        with Workers() as workers:
            for i in strata:
                comparison, factors = self._comparisons[i], factor.repeat_interleave(len(self._comparisons[i].pixels))
                windows = windows_at(v, self.window_index[comparison.pixels]).flatten(0, 1)
                atoms = len(images) * len(comparison.pixels)
                facts = (shared, reduction.needs, self.images.shape[1], atoms, workers.threads)
                means[i] = StratumSums(comparison.queries(windows, factors), *facts)
                places.append((first_pixels + comparison.pixels).flatten())
            merged = self._merged if images == range(self.images.shape[0]) else {}
            for i, _, rows, columns in self._groups(images, strata, merged, GROUP_ATOMS):
                workers.run(means[i].jobs(rows, columns))
        for i, found in means.items():
            layout = self._flat_layout(b * len(self._comparisons[i].pixels))
            term = found.term(float(self._comparisons[i].half_log_pdet[0]))
            states.append(reduction.update(reduction.start(layout), term))
        return torch.cat(places), join(states)

    def _shared(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Float[Tensor, " m"], Float[Tensor, " b"] | None]:
        """Return v of all measurements that differ, what their scores are multiplied by, and 1/σ² of shared ones."""
        inverse_variances = -2 * self._scale(sigma)
        if _same(y):
            return self._centred(y[:1]), torch.ones_like(inverse_variances[:1]), inverse_variances
        return self._centred(y), inverse_variances, None

    def _strata_of_terms(
        self,
        y: Tensor,
        sigma: Tensor,
        reduction: Reduction,
        images: range,
        strata: Sequence[int],
        few: Int64[Tensor, " f"] | None = None,
    ) -> tuple[Int64[Tensor, " q"], Any]:
        """Reduce blocks of the pixels of some strata, or of those few among them, term by term."""
        b, (h, w) = len(y), self.images.shape[2:]
        v, factor, shared = self._shared(y, sigma)
        makes_weights = getattr(reduction, "needs", None) != "mean"
        repeats = b // len(v) if makes_weights else 1  # rows of weights that a query makes
        atoms = None if few is None else max(1, FEW_PIXELS_PAIRS // (len(y) * len(few)))
        blocks = {i: self._blocks(self._comparisons[i], v, factor, repeats, few, atoms) for i in strata}
        states = {
            i: [reduction.start(self._flat_layout(b * len(pixels))) for pixels, _ in each] for i, each in blocks.items()
        }
        for i, first, rows, columns in self._groups(images, strata, atoms=atoms):
            comparison, facts = self._comparisons[i], {"inverse_variances": shared, "first_image": first}
            for j, (_, queries) in enumerate(blocks[i]):
                term = WindowTerm(comparison.scores(queries, rows), queries, comparison, columns, **facts)
                states[i][j] = reduction.update(states[i][j], term)
        first_pixels = torch.arange(b, device=self.device)[:, None] * h * w
        place = [(first_pixels + pixels).flatten() for of_stratum in blocks.values() for pixels, _ in of_stratum]
        return torch.cat(place), join([state for of_stratum in states.values() for state in of_stratum])

    def _blocks(
        self,
        comparison: WindowComparison,
        v: Float[Tensor, "b c h w"],
        factor: Float[Tensor, " b"],
        repeats: int,
        few: Int64[Tensor, " f"] | None,
        atoms: int | None,
    ) -> list[tuple[Int64[Tensor, " m"], WindowQueries]]:
        """Return the pixels of a stratum in blocks, with the windows of all measurements around them as queries.

        A query makes so many rows of weights (``repeats``); ``few`` are the pixels to keep, of all strata, ``atoms``
        what ``_groups`` is asked for.
        """
        atoms = self._images_at_once(comparison, atoms) * len(comparison.pixels)
        size = max(1, self._pairs_at_once // (atoms * len(v) * repeats))
        chosen = comparison.pixels if few is None else comparison.pixels[torch.isin(comparison.pixels, few)]
        queries = []
        for pixels in chosen.split(size):
            windows = windows_at(v, self.window_index[pixels])
            queries.append((pixels, comparison.queries(windows.flatten(0, 1), factor.repeat_interleave(len(pixels)))))
        return queries

    def _groups(
        self,
        images: range,
        strata: Sequence[int],
        merged: Mapping[int, Merged | None] = MappingProxyType({}),
        atoms: int | None = None,
    ) -> Iterator[tuple[int, int, Any, Float[Tensor, "m K"]]]:
        """Yield a stratum, the first of a few images, and keys and columns of its windows in them, with a bar.

        Those that were ``merged`` come once. ``atoms`` asks for about so many at once, else for as many as fit a term.
        """
        sizes = {i: self._images_at_once(self._comparisons[i], atoms) for i in strata}
        chunks = self._chunks(images)
        count = sum(len(_split(range(*chunk), size)) for chunk in chunks for size in sizes.values())
        steps = progress(range(count), description=type(self).__name__, unit="block")
        for first, end in chunks:
            values = self._images(first, end)
            keys = self._centred(self._measure(values)) if self._keys is None else self._keys[first:end]
            for i, size in sizes.items():
                comparison, unique = self._comparisons[i], merged.get(i)
                for (start, stop), _ in zip(_split(range(first, end), size), steps, strict=False):
                    part, size = slice(start - first, stop - first), len(comparison.pixels)
                    if unique is not None:
                        of_images = slice(*unique.between(start * size, stop * size))
                        atoms = unique.atoms[of_images]
                        if PlainKeys.fits(comparison):
                            yield i, start, self._plain.of(atoms, comparison.pixels), unique.columns[:, of_images]
                            continue
                    if self._rows is None:
                        rows = comparison.keys(self._windows(comparison, keys[part]))
                    else:
                        rows = comparison.of_images(self._rows[i], start, stop)
                    if unique is None:
                        yield i, start, rows, worth(values[part].flatten(2)[..., comparison.pixels])
                    else:
                        yield i, start, rows[atoms - start * size], unique.columns[:, of_images]

    def _windows(self, comparison: WindowComparison, v: Float[Tensor, "k c h w"]) -> Float[Tensor, "k s d"]:
        """Return the windows around the pixels of a stratum: slices where they are many, else entry by entry."""
        pixels, count = comparison.pixels, len(self.window_index)
        if FEW_OF_ALL * len(pixels) < count:
            return windows_at(v, self.window_index[pixels])
        windows = extract_patches(v, self.patch_size, self.boundary)
        return windows if len(pixels) == count else windows[:, pixels]

    def _centred(self, measurements: Float[Tensor, "k ..."]) -> Float[Tensor, "k c_v h w"]:
        """Return B of measurements less one colour, in float64 where whitening amplifies rounding."""
        return self.pre_inverted(measurements, self._v_dtype) - self._colour

    def _layout(self, queries: int) -> Layout:
        return replace(self._flat_layout(queries), query_shape=(queries, *self.images.shape[2:]))

    def _flat_layout(self, windows: int) -> Layout:
        return Layout((windows,), tuple(self.images.shape[1:2]), self.dtype, self.device, has_pixels=True)

    def _stored_keys(self) -> Float[Tensor, "D c_v h w"]:
        """Compute B A x of all images once and return them."""
        step = max(1, self.memory_limit // (8 * self._image_entries))
        parts = progress(self.images.split(step), description=type(self).__name__, unit="chunk")
        return torch.cat([self._centred(self._measure(images)) for images in parts])

    def _stored_rows(self) -> list[Any] | None:
        """Whiten the windows of all images once, where that costs products and the memory limit holds them."""
        entries = sum(each.key_entries * len(each.pixels) for each in self._comparisons) * self.images.shape[0]
        mixes = any(stratum.mixes for stratum in self.strata)
        if self._keys is None or not mixes or entries * self.dtype.itemsize > self.memory_limit:
            return None
        comparisons = progress(self._comparisons, description=type(self).__name__, unit="stratum")
        return [self._rows_of(comparison) for comparison in comparisons]

    def _rows_of(self, comparison: WindowComparison) -> Any:
        """Return the keys of a stratum's windows in all images, made a few images at a time."""
        parts = self._keys.split(self._images_at_once(comparison))
        keys = (comparison.keys(self._windows(comparison, part)) for part in parts)
        return comparison.joined(keys, len(self._keys))

    @property
    def _least_entries(self) -> int:
        doubled = self._v_dtype.itemsize // self.dtype.itemsize
        keys = [each.key_entries * len(each.pixels) for each in self._comparisons]
        pairs = PAIR_ENTRIES * max(len(each.pixels) for each in self._comparisons)
        return 4 * (self._image_entries + doubled * (max(keys) + sum(keys))) + pairs

    @property
    def _image_entries(self) -> int:
        """Return how many numbers an image takes beside its windows: itself, its measurement, B of it, twice each."""
        return 4 * math.prod(self.images.shape[1:]) + 2 * math.prod(self.measurement_shape)

    def _chunks(self, images: range) -> list[tuple[int, int]]:
        """Return the first image of every chunk of a range, and that after its last: as many as are made on demand."""
        room = self.memory_limit // (4 * self.dtype.itemsize)
        return _split(images, len(images) if self._keys is not None else self.chunk_size or room // self._image_entries)

    def _images_at_once(self, comparison: WindowComparison, atoms: int | None = None) -> int:
        """Return how many images' windows of a stratum make a term, or so many atoms."""
        if self.chunk_size is not None:
            return min(self.chunk_size, self.images.shape[0])
        room = self.memory_limit // (4 * self.dtype.itemsize * comparison.key_entries)
        atoms = min(comparison.atoms_at_once if atoms is None else atoms, self._pairs_at_once, room)
        return min(self.images.shape[0], max(1, atoms // len(comparison.pixels)))

    @property
    def _measurements_at_once(self) -> int:
        """Return how many measurements' windows fit into the memory limit."""
        entries = sum(comparison.key_entries * len(comparison.pixels) for comparison in self._comparisons)
        return max(1, self.memory_limit // (4 * self._v_dtype.itemsize * entries))

    @property
    def _pairs_at_once(self) -> int:
        return min(TERM_PAIRS, self.memory_limit // (PAIR_ENTRIES * self.dtype.itemsize))


def _split(images: range, size: int) -> list[tuple[int, int]]:
    """Return the first image of every part of a range, and that after its last; a part has one image at least."""
    size = max(1, size)
    return [(start, min(start + size, images.stop)) for start in range(images.start, images.stop, size)]


def _same(y: Tensor) -> bool:
    """Return whether a batch is one measurement, expanded."""
    return len(y) > 1 and y.stride(0) == 0


def _kept(keys: Keys | Tensor | None) -> str:
    return "made in every call" if keys is None else "stored"


def _projector(estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """Return the projector of measurements onto Im Bᵀ."""
    if estimator.pre_inverse is None:
        return unchanged
    return row_space_projector(estimator.pre_inverse, estimator.measurement_shape)
