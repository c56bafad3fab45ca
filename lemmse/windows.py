"""How windows meet windows: the comparisons of the local estimator, by matrix products (S5).

``strata`` and their whiteners are those of ``lemmse.strata``.

====================  =================================================================================================
``OneWhitener``       ‖Q_n⁺(v[ω_n'] - (B A x)[ω_n])‖ by a matrix product, where one whitener serves the stratum (S5.2)
``SeveralWhiteners``  the same by a product for each whitener
``ScaledWindows``     the same for a diagonal B, by one matrix product for all its whiteners
====================  =================================================================================================
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from . import _device
from ._types import LOG_WEIGHT_FLOOR
from .patches import padded
from .reductions import ArrayValues, Term, TermMoments, weighted_mean, weighted_moments

__all__ = [
    "OneWhitener",
    "ScaledWindows",
    "SeveralWhiteners",
    "WindowComparison",
    "WindowQueries",
    "WindowTerm",
    "direct_distances",
]

SKIP_SHARE = 0.7
"""Queries that no atom of a term can move are skipped where those that are left are at most this share."""

CACHED_WINDOWS = 2**16
"""Windows of images that a few queries meet at a time, entry by entry: few enough to stay near the processor."""


class WindowQueries(NamedTuple):
    """Windows of measurements, ``rows`` (q, ...) as keys meet them; a score is ``factor`` · (½‖q‖² - ½r²).

    ``own`` (q,) is ``factor`` · ½‖q‖², 0 where scores contain it; ``factor`` (q,) is 1/σ², or 1 where sigmas share
    the scores.
    """

    rows: Float[Tensor, "q r"]
    own: Float[Tensor, " q"]
    factor: Float[Tensor, " q"]


class WindowComparison(ABC):
    """How the windows of a stratum meet those of images: r = ‖Q_n⁺(v[ω_n'] - (B A x)[ω_n])‖ (S5.2).

    ``pixels`` (S,) are those of the stratum, ascending, and ``half_log_pdet`` (S,) is ½ ln |Q_n Q_nᵀ|₊ of each.
    ``atoms_at_once`` is how many atoms a term should have; ``key_entries`` the numbers that a key takes.
    """

    pixels: Int64[Tensor, " s"]
    half_log_pdet: Float[Tensor, " s"]
    atoms_at_once: int
    key_entries: int

    @cached_property
    def uniform(self) -> bool:
        """Return whether all windows have one pseudo-determinant: then the nearest is the heaviest."""
        return bool((self.half_log_pdet == self.half_log_pdet[0]).all())

    @abstractmethod
    def queries(self, windows: Float[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return windows of measurements as queries."""

    @abstractmethod
    def keys(self, windows: Float[Tensor, "k s d"]) -> Any:
        """Return the windows of images around the stratum's pixels as keys."""

    def joined(self, parts: Iterator[Any], images: int) -> Any:
        """Return the keys of so many images from those of their parts, which are made one by one."""
        first = next(parts)
        whole = first.new_empty(images * len(self.pixels), first.shape[1])
        filled = 0
        for part in chain([first], parts):
            whole[filled : filled + len(part)] = part
            filled += len(part)
        return whole

    def of_images(self, keys: Any, start: int, stop: int) -> Any:
        """Return the keys of the images from ``start`` to ``stop``."""
        return keys[start * len(self.pixels) : stop * len(self.pixels)]

    @abstractmethod
    def scores(self, queries: WindowQueries, keys: Any) -> Float[Tensor, "q K"]:
        """Return ``own`` - ``factor`` · ½r² of every query and atom, image-major."""


@final
class OneWhitener(WindowComparison):
    """Windows that one whitener serves: centred, whitened in the dtype that they come in, compared in ``dtype``.

    Queries (f q, f) and keys (k, -½‖k‖²) have their score f (⟨q, k⟩ - ½‖k‖²) as their inner product. ``centre`` (d,)
    is subtracted from both, where it cancels.
    """

    atoms_at_once = 2**10

    def __init__(
        self, pixels: Int64[Tensor, " s"], whitener: Any, centre: Float[Tensor, " d"] | None, dtype: torch.dtype
    ):
        self.pixels, self.whitener, self.centre, self.dtype = pixels, whitener, centre, dtype
        self.half_log_pdet = torch.full(pixels.shape, whitener.log_pdet / 2, dtype=dtype, device=pixels.device)
        self.key_entries = whitener.rank + 1

    def queries(self, windows: Float[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return (f q, f) of every window."""
        rows = self._whitened(windows)
        scaled = torch.cat([rows * factor[:, None], factor[:, None]], dim=1)
        return WindowQueries(scaled, factor * rows.square().sum(1) / 2, factor)

    def keys(self, windows: Float[Tensor, "k s d"]) -> Float[Tensor, "K r"]:
        """Return (k, -½‖k‖²) of every window."""
        rows = self._whitened(windows).flatten(0, 1)
        return torch.cat([rows, -0.5 * torch.linalg.vector_norm(rows, dim=1, keepdim=True).square()], dim=1)

    def scores(self, queries: WindowQueries, keys: Float[Tensor, "K r"]) -> Float[Tensor, "q K"]:
        """Return f (⟨q, k⟩ - ½‖k‖²) by one matrix product."""
        return queries.rows @ keys.T

    def _whitened(self, windows: Float[Tensor, "... d"]) -> Float[Tensor, "... r"]:
        return self.whitener(windows if self.centre is None else windows - self.centre).to(self.dtype)


def direct_distances(
    queries: Float[Tensor, "q d"],
    v: Float[Tensor, "k c h w"],
    entries: Sequence[int],
    patch_size: int,
    boundary: str,
) -> Float[Tensor, "q k n"]:
    """Return the squared distances of a few windows from those around all pixels of images, entry by entry.

    ``entries`` are those of a window that count, as ``extract_patches`` orders them. No window is cut out, and equal
    windows are at equal distances to the last bit: a pass over the images for each entry and query.
    """
    h, w = v.shape[2:]
    found = v.new_empty(len(queries), len(v), h * w)
    for part, images in zip(found.split(size := max(1, CACHED_WINDOWS // (h * w)), 1), v.split(size), strict=True):
        whole = padded(images, patch_size, boundary).permute(1, 2, 3, 0).contiguous()  # images innermost: long rows
        sums, difference = (whole.new_zeros(len(queries), h, w, len(images)) for _ in range(2))
        for entry in entries:
            channel, row, column = entry // patch_size**2, entry // patch_size % patch_size, entry % patch_size
            seen = whole[channel, row : row + h, column : column + w]
            torch.sub(seen, queries[:, entry, None, None, None], out=difference)
            sums.addcmul_(difference, difference)
        part.copy_(sums.flatten(1, 2).transpose(1, 2))
    return found


@final
class SeveralWhiteners(WindowComparison):
    """Windows of one image space whose pseudo-determinants or whiteners differ: a product for each class."""

    atoms_at_once = 2**16

    def __init__(self, classes: Sequence[OneWhitener]):
        self.classes = classes
        together = torch.cat([each.pixels for each in classes])
        self.order = together.argsort()
        self.pixels = together[self.order]
        self.half_log_pdet = torch.cat([each.half_log_pdet for each in classes])[self.order]
        self.places = [torch.searchsorted(self.pixels, each.pixels) for each in classes]
        self.key_entries = classes[0].key_entries

    def queries(self, windows: Float[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return the windows as they are: each class whitens them in its own way."""
        return WindowQueries(windows, torch.zeros_like(factor), factor)

    def keys(self, windows: Float[Tensor, "k s d"]) -> list[Tensor]:
        """Return the keys of each class."""
        return [each.keys(windows[:, place]) for each, place in zip(self.classes, self.places, strict=True)]

    def joined(self, parts: Iterator[list[Tensor]], images: int) -> list[Tensor]:
        """Return the keys of each class from those of their parts."""
        made, whole = list(parts), []
        for i in range(len(self.classes)):
            whole.append(torch.cat([part[i] for part in made]))
            for part in made:
                part[i] = None  # at most one class is held twice
        return whole

    def of_images(self, keys: list[Tensor], start: int, stop: int) -> list[Tensor]:
        """Return the keys of each class in the images from ``start`` to ``stop``."""
        return [each.of_images(rows, start, stop) for each, rows in zip(self.classes, keys, strict=True)]

    def scores(self, queries: WindowQueries, keys: list[Tensor]) -> Float[Tensor, "q K"]:
        """Return -f · ½r² of every query and atom."""
        parts = []
        for each, rows in zip(self.classes, keys, strict=True):
            own = each.queries(queries.rows, queries.factor)
            parts.append((each.scores(own, rows) - own.own[:, None]).unflatten(1, (-1, len(each.pixels))))
        return torch.cat(parts, dim=2)[:, :, self.order].flatten(1)


@final
class ScaledWindows(WindowComparison):
    """Windows that are scaled, entry by entry, in a way of each pixel's own: r² = Σ_j s_nj² (v_j - k_j)².

    The windows of a stratum of a diagonal B: ``kept`` are the entries that it leaves, ``scales`` (S, r) whiten them.
    Σ s²v² is a product of queries with pixels and Σ s²vk one with all keys, whatever the number of different scales;
    both are in float64, as no centre of each pixel's own can be subtracted.
    """

    atoms_at_once = 2**14

    def __init__(
        self, pixels: Int64[Tensor, " s"], kept: Int64[Tensor, " r"], scales: Float64[Tensor, "s r"], dtype: torch.dtype
    ):
        self.pixels, self.kept, self.dtype = pixels, kept, dtype
        self.gains = scales.square()
        self.half_log_pdet = -scales.log().sum(1).to(dtype)
        self.key_entries = 2 * (scales.shape[1] + 1)

    def queries(self, windows: Float64[Tensor, "q d"], factor: Float[Tensor, " q"]) -> WindowQueries:
        """Return the entries that are left."""
        return WindowQueries(windows[:, self.kept], torch.zeros_like(factor), factor)

    def keys(self, windows: Float64[Tensor, "k s d"]) -> Float64[Tensor, "K r"]:
        """Return (s²k, -½ Σ s²k²) of every window."""
        windows = windows[..., self.kept]
        rows = self.gains * windows
        return torch.cat([rows, -0.5 * (rows * windows).sum(2, keepdim=True)], dim=2).flatten(0, 1)

    def scores(self, queries: WindowQueries, keys: Float64[Tensor, "K r"]) -> Float[Tensor, "q K"]:
        """Return -f · ½r² of every query and atom."""
        v = queries.rows
        own = 0.5 * v.square() @ self.gains.T  # (q, S)
        halves = (v @ keys[:, :-1].T + keys[:, -1]).unflatten(1, (-1, len(self.pixels))) - own[:, None]
        return (halves.flatten(1).clamp_max(0) * queries.factor.double()[:, None]).to(self.dtype)


@final
class WindowTerm(Term):
    """The windows of a stratum in some images, as q queries see them: scores, from which the rest follows.

    ``scores`` (q, K) and ``own`` (q,) as a ``WindowComparison`` gives them; ``inverse_variances`` (b,), 1/σ² of sigmas
    that share the scores (then a query for each of them, sigma-major), or ``None`` where the scores contain it.
    ``columns`` (1 + 2c, K) are 1, the values and their squares. The log-weights are own - scores, over σ², less
    ``half_log_pdet``.
    """

    log_multiplicity = None

    def __init__(
        self,
        scores: Float[Tensor, "n K"],
        queries: WindowQueries,
        comparison: WindowComparison,
        columns: Float[Tensor, "m K"],
        *,
        inverse_variances: Float[Tensor, " b"] | None,
        first_image: int,
    ):
        self.scores, self.own, self.factor = scores, queries.own, queries.factor
        self.inverse_variances, self.columns, self.first_image = inverse_variances, columns, first_image
        self.pixels, self.half_log_pdet = comparison.pixels, comparison.half_log_pdet
        self._by_scores = comparison.uniform and not scores.requires_grad  # then log-weights are never made
        self.channels = len(columns) // 2
        self.values = ArrayValues(columns[1 : 1 + self.channels].T)

    @cached_property
    def _depths(self) -> Float[Tensor, "n K"]:
        """Return r²/2, times 1/σ² where the scores contain it."""
        return (self.own[:, None] - self.scores).clamp_min(0)

    @cached_property
    def log_weights(self) -> Float[Tensor, "q K"]:
        """Return -r²/2σ² - ½ ln |Q_n Q_nᵀ|₊ of every query and atom."""
        if self.inverse_variances is None:
            scaled = self._depths
        else:
            scaled = (self.inverse_variances[:, None, None] * self._depths).flatten(0, 1)
        return (-scaled.unflatten(1, (-1, len(self.pixels))) - self.half_log_pdet).flatten(1)

    @cached_property
    def squared_distances(self) -> Float[Tensor, "q K"]:
        """Return r² of every query and atom."""
        d2 = 2 * self._depths / self.factor[:, None]
        return d2 if self.inverse_variances is None else d2.repeat(len(self.inverse_variances), 1)

    @cached_property
    def _top(self) -> Float[Tensor, " n"]:
        return torch.minimum(self.scores.amax(1), self.own)  # no distance is negative, whatever rounding says

    @cached_property
    def peak(self) -> Float[Tensor, " q"]:
        """Return the largest log-weight that each query sees."""
        if not self._by_scores:
            return self.log_weights.amax(1).detach()
        depth = (self.own - self._top).clamp_min(0)
        scaled = depth if self.inverse_variances is None else (self.inverse_variances[:, None] * depth).flatten()
        return -scaled - self.half_log_pdet[0]

    def mean(self, floor: Float[Tensor, " q"]) -> tuple[Float[Tensor, " q"], Float[Tensor, "q c"]]:
        """Return the sum of the weights in units of the peak, and the weighted mean of the centre pixels."""
        if not self._by_scores:
            return weighted_mean(self.peak, self.log_weights, self.values)
        sums, _ = self._per_sigma(floor, self.columns[: 1 + self.channels], log_weights=False)
        mass = sums[:, 0]
        return mass, sums[:, 1:] / mass.where(mass > 0, 1.0)[:, None]

    def moments(self, floor: Float[Tensor, " q"]) -> TermMoments:
        """Return what ``PosteriorMoments`` needs."""
        if not self._by_scores:
            return weighted_moments(self)
        sums, log_weight = self._per_sigma(floor, self.columns, log_weights=True)
        mass, c = sums[:, 0], self.channels
        total = mass.where(mass > 0, 1.0)
        log_weight = log_weight / total
        times = 1 if self.inverse_variances is None else len(self.inverse_variances)
        factor = self.factor if times == 1 else self.inverse_variances.repeat_interleave(len(self.scores))
        depth = (self.own - self._top) / self.factor
        residual = 2 * (depth.repeat(times) - log_weight / factor)
        mean, square = sums[:, 1 : 1 + c] / total[:, None], sums[:, 1 + c :] / total[:, None]
        variance = (square - mean.square()).clamp_min(0)
        return TermMoments(mass, mean, variance, log_weight, torch.zeros_like(mass), residual)

    def mass(self, floor: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        """Return the sum of the weights in units of the peak."""
        return self.mean(floor)[0]

    def log_weights_of(self, queries: Int64[Tensor, " m"]) -> Float[Tensor, "m K"]:
        """Return the log-weights of some queries."""
        if "log_weights" in vars(self) or 2 * len(queries) > len(self.peak):
            return self.log_weights[queries]
        row = queries % len(self.scores)
        depths = (self.own[row, None] - self.scores[row]).clamp_min(0)
        if self.inverse_variances is not None:
            depths = depths * self.inverse_variances[queries // len(self.scores)][:, None]
        return (-depths.unflatten(1, (-1, len(self.pixels))) - self.half_log_pdet).flatten(1)

    def _per_sigma(
        self, floor: Float[Tensor, " q"], columns: Float[Tensor, "w K"], *, log_weights: bool
    ) -> tuple[Float[Tensor, "q w"], Float[Tensor, " q"]]:
        """Return the weighted sums of columns, and, where asked for, of log-weights less their peak, sigma by sigma.

        Those of queries below the floor may be 0.
        """
        live = self.peak >= floor
        if self.inverse_variances is None:
            return self._sums(live, None, columns, log_weights)
        shared = zip(live.split(len(self.scores)), self.inverse_variances, strict=True)
        sums, logs = zip(*(self._sums(*each, columns, log_weights) for each in shared), strict=True)
        return torch.cat(sums), torch.cat(logs)

    def _sums(
        self, live: Bool[Tensor, " n"], factor: Float[Tensor, ""] | None, columns: Tensor, log_weights: bool
    ) -> tuple[Float[Tensor, "n w"], Float[Tensor, " n"]]:
        """Return the sums for one sigma; where few queries are live, the exponentials of the others are skipped."""
        count = len(live) if _device.asynchronous(live) else int(live.sum())
        logs = torch.zeros_like(self._top)
        if not count:
            return self.columns.new_zeros(len(live), len(columns)), logs
        skips = count <= SKIP_SHARE * len(live)
        relative = self._relative(live, factor) if skips else self._relative(slice(None), factor)
        weights = relative.exp() if log_weights else relative.exp_()
        if log_weights:
            logs[live if skips else slice(None)] = torch.linalg.vecdot(weights, relative)
        if skips:  # a product of all queries, whatever is skipped: another shape would round otherwise
            weights = torch.zeros_like(self.scores).index_put_((live,), weights)
        return (columns @ weights.T).T, logs  # few rows: three times as fast as few columns

    def _relative(self, queries: Any, factor: Float[Tensor, ""] | None) -> Float[Tensor, "m K"]:
        """Return the log-weights of some queries less their peak, clamped."""
        relative = self.scores[queries] - self._top[queries, None]
        if factor is not None:
            relative *= factor
        return relative.clamp_(LOG_WEIGHT_FLOOR, 0.0)
