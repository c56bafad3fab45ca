"""Posterior means with a certified error: windows that a lower bound of their distance rules out are never compared.

A window of an image cannot be nearer to that of a query than their principal coordinates say, and the lengths of what
is left of them (S12.4). One matrix product with few columns bounds all distances of a stratum; the few atoms whose
bound could matter are compared exactly, and what all others could weigh together bounds the error of the mean (S12.3).

With ⟨q, k⟩ - ½‖k‖² the *score* of an atom, r² = ‖q‖² - 2 score, an upper bound of the score is what the product gives,
and atoms are kept where it reaches a *floor* of the query's own: σ² (ln Z - m), Z the sum of the weights met so far.
The others weigh less than exp(-m) Z each, and m is chosen for the tolerance.
"""

import importlib.util
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ._progress import progress
from .patches import windows_at

__all__ = ["Screen", "Screened", "directions_within", "exact_cost"]

DIRECTIONS = 48
"""Principal coordinates that a bound compares one by one."""

BAND_EDGES = (1, 4 / 3, 2, 8 / 3)
"""Where bands begin, in units of the number of directions; the last takes all that is left."""

ENTRIES_PER_DIRECTION, FEWEST_DIRECTIONS = 4, 6
"""Windows of so many entries are worth one direction; with fewer directions than this a bound says too little."""

SAMPLE = 2**15
"""Windows that the principal directions are taken from."""

SLACK = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Rounding of a bound, in units of ‖q‖² + ‖k‖² (S12.4)."""

BLOCK_QUERIES, BLOCK_ATOMS = 1024, 1024
"""Queries and atoms whose bounds are held at once: few enough to stay near the processor."""

PILOT_SHARE = 64
"""One image in so many is looked at before the rest, for a first floor of every query."""

EARLY = 5
"""The share of atoms that are kept falls by about as much from the first floors to the last, or less."""

PATIENCE, RECENT, WORTH = 0.05, 16, 0.9
"""Once a screen has taken this share of what the exact path would take, it goes on as long as what is left of it, at
the rate of its most recent blocks, takes less than so much of the exact path."""

NOTHING = -1e20
"""A score below all others."""

GATHERED = 2**22
"""Entries of windows that are gathered at once where nothing is compiled."""


class Costs(NamedTuple):
    """What a pair takes, in units of about a nanosecond: of a product's columns, of a look at it, of a comparison."""

    column: float
    look: float
    survivor: float
    entry: float


COMPILED = Costs(column=0.02, look=0.25, survivor=60, entry=0.15)
INTERPRETED = Costs(column=0.03, look=6.0, survivor=1000, entry=6)

PRODUCTS_PAIR, FUSED_PAIR = 1.0, 2.0
"""What a pair takes beside the columns of the product where windows are multiplied, and all of it in the kernel."""


def exact_cost(pairs: int, rank: int | None) -> float:
    """Return what the exact path takes for so many pairs, in such units: by products, or in the kernel (``None``)."""
    return pairs * (FUSED_PAIR if rank is None else PRODUCTS_PAIR + (rank + 1) * COMPILED.column)


class Screened(NamedTuple):
    """The atoms that were kept, weighed, per sigma and query (sigma-major), and the share that all others have at most.

    ``depth`` (q,) is half the smallest squared distance, ``mass`` (b, q) the sum of the weights in units of its weight.
    """

    depth: Float64[Tensor, " q"]
    mass: Float64[Tensor, "b q"]
    mean: Float64[Tensor, "b q c"]
    tail: Float64[Tensor, " q"]


class _Queries(NamedTuple):
    """Windows of a measurement: as columns of the product, as they meet images, what scores lack, slack of a bound."""

    columns: Float[Tensor, "q r"]
    windows: Float[Tensor, "q p s"]
    lacks: Float[Tensor, " q"]
    slack: Float[Tensor, " q"]
    own: Float[Tensor, " q"]


class _Sums(NamedTuple):
    """What is known of each query: a floor for bounds, the largest score, mass and sums in its units, atoms kept."""

    floor: Float64[Tensor, " q"]
    top: Float64[Tensor, " q"]
    mass: Float64[Tensor, "q b"]
    sums: Float64[Tensor, "q b c"]
    kept: Int64[Tensor, " q"]


@final
class Screen:
    """A stratum with one whitener, prepared for bounds: principal coordinates of all its windows, band by band.

    ``comparison`` is its ``OneWhitener``, ``keys`` (D, c_v, h, w) and ``images`` (D, c, h, w) are the estimator's,
    ``index`` names the pixels of all windows, ``windows`` cuts those of the stratum out of keys, and ``directions`` is
    how many principal coordinates are compared.
    """

    def __init__(
        self,
        comparison: Any,
        keys: Float[Tensor, "D c_v h w"],
        images: Float[Tensor, "D c h w"],
        index: Int64[Tensor, "n p2"],
        boundary: str,
        windows: Callable[[Tensor], Tensor],
        directions: int,
    ):
        self.comparison, self.index = comparison, index[comparison.pixels]
        self.patch_size = math.isqrt(index.shape[1])
        size, w = len(comparison.pixels), images.shape[3]
        rank, count = comparison.whitener.rank, len(images)
        self.rank = rank
        self.edges = [min(rank, round(directions * edge)) for edge in BAND_EDGES]
        step = max(1, count // max(1, SAMPLE // size))
        sample = comparison.keys(windows(keys[::step]))[:, :-1]
        self.rotation = torch.linalg.eigh((sample.T @ sample).double()).eigenvectors.flip(1)[:, : self.edges[-1]]
        self.rotation = self.rotation.to(sample.dtype).contiguous()
        self.slack = SLACK[sample.dtype]
        self.columns = sample.new_empty(count, size, self._coordinates(sample[:1]).shape[1] + 1)
        self.half_norms = sample.new_empty(count, size)
        parts = range(0, count, max(1, BLOCK_ATOMS // size))
        for start in progress(parts, description="principal directions of windows", unit="block"):
            part = slice(start, start + parts.step)
            rows = comparison.keys(windows(keys[part]))
            half = -rows[:, -1:]
            bounds = torch.cat([self._coordinates(rows[:, :-1]), (2 * self.slack - 1) * half], dim=1)
            self.columns[part], self.half_norms[part] = (
                bounds.unflatten(0, (-1, size)),
                half.unflatten(0, (-1, size))[..., 0],
            )
        self.channels = keys.shape[1]
        self.padded = _channels_last(keys, self.patch_size // 2, boundary)
        self.values = images.flatten(2)
        row, column = comparison.pixels // w, comparison.pixels % w
        self.atoms = torch.stack([row, column * self.channels, comparison.pixels])
        self.low, self.high = images.amin((0, 2, 3)).double(), images.amax((0, 2, 3)).double()
        self.adjoint = None  # Wᵀ (d, r), where it is not the identity
        if comparison.whitener.kind != "none":
            entries = torch.eye(self.index.shape[1] * self.channels, dtype=torch.float64, device=keys.device)
            self.adjoint = comparison.whitener(entries)
        self.pilot = torch.arange(count, device=keys.device)[:: min(count, PILOT_SHARE)]

    def _coordinates(self, rows: Float[Tensor, "k r"]) -> Float[Tensor, "k m"]:
        """Return the first principal coordinates of rows, and upper bounds of the length of each band of the others."""
        found = rows @ self.rotation
        squares = found.square()
        norms = rows.square().sum(1)
        rest = (norms - squares.sum(1)).clamp_min(0) + self.slack * norms
        bands = [squares[:, a:b].sum(1) for a, b in zip(self.edges[:-1], self.edges[1:], strict=True) if a < b]
        if self.edges[-1] < self.rank:
            bands.append(rest)
        return torch.cat([found[:, : self.edges[0]], *(band.sqrt()[:, None] for band in bands)], dim=1)

    # -------------------------------------------------------------------------------------------------------- queries

    def _queries(self, v: Float[Tensor, "1 c_v h w"]) -> _Queries:
        """Return the windows of v around the pixels of the stratum."""
        windows = windows_at(v, self.index)[0]
        found = self.comparison.queries(windows, torch.ones_like(windows[:, 0]).to(self.columns.dtype))
        rows = found.rows[:, :-1]
        # ⟨q, W (k - c)⟩ = ⟨Wᵀq, k - c⟩: images are met as they are
        raw = rows.double() if self.adjoint is None else rows.double() @ self.adjoint.T
        centre = self.comparison.centre
        lacks = torch.zeros_like(raw[:, 0]) if centre is None else raw @ centre.double()
        p = self.patch_size
        raw = raw.unflatten(1, (self.channels, p, p)).permute(0, 2, 3, 1).flatten(2)
        columns = torch.cat([self._coordinates(rows), torch.ones_like(rows[:, :1])], dim=1)
        return _Queries(
            columns, raw.to(self.padded).contiguous(), lacks, (2 * self.slack * found.own).double(), found.own.double()
        )

    def _start(self, queries: _Queries, inverse_variances: Tensor, margin: float) -> _Sums:
        """Return what is known of queries after a look at a few images: a floor."""
        count, b, c = len(queries.columns), len(inverse_variances), self.values.shape[1]
        best = torch.full((count,), -torch.inf, dtype=torch.float64, device=queries.columns.device)
        atom = torch.zeros(count, dtype=torch.int64, device=best.device)
        for image in self.pilot[::2]:
            found = (queries.columns @ self.columns[image].T).max(1)
            atom = torch.where(found.values > best, image * self.atoms.shape[1] + found.indices, atom)
            best = torch.maximum(best, found.values)
        floor = self._scores(queries, torch.arange(count, device=best.device), atom) - margin / float(
            inverse_variances.min()
        )
        zeros = best.new_zeros(count, b)
        return _Sums(
            floor, torch.full_like(floor, NOTHING), zeros, zeros.new_zeros(count, b, c), torch.zeros_like(atom)
        )

    # ---------------------------------------------------------------------------------------------------------- means

    def means(
        self,
        v: Float[Tensor, "1 c_v h w"],
        inverse_variances: Float64[Tensor, " b"],
        tolerance: float,
        budget: float,
    ) -> Screened | None:
        """Return the means of all sigmas of one v, of atoms whose weights are known to leave an error of ``tolerance``.

        ``None`` where that would take longer than ``budget``, in the units of ``Costs``: soon seen (PATIENCE).
        """
        margin = self._margin(tolerance)
        queries = self._queries(v)
        sums = self._start(queries, inverse_variances, margin)
        others = self.pilot[1::2][:4] if len(self.pilot) > 1 else self.pilot
        bounds = queries.columns @ self.columns[others].flatten(0, 1).T
        early = int((bounds >= (sums.floor - queries.slack).to(bounds)[:, None]).sum()) / bounds.numel()
        pairs = self.half_norms.numel() * len(bounds)
        if self._cost(pairs, early * pairs / EARLY) > WORTH * budget:
            return None
        return self._weigh(queries, sums, inverse_variances, margin, budget)

    def error_bound(self, tail: Float64[Tensor, " n"], mean: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Return how far a mean of others, which have at most this share, can move a mean (S12.3)."""
        return (tail[:, None] * torch.maximum(mean.double() - self.low, self.high - mean.double())).to(mean)

    def _margin(self, tolerance: float) -> float:
        """Return how many nats below ln Z each weight that is dropped must lie for an error of ``tolerance``."""
        atoms, spread = self.half_norms.numel(), float((self.high - self.low).max())
        return math.log(max(2 * atoms, atoms * spread / tolerance)) + 1e-6  # more than the rounding of a bound

    def _weigh(
        self, queries: _Queries, sums: _Sums, inverse_variances: Tensor, margin: float, budget: float
    ) -> Screened | None:
        """Weigh all atoms whose bounds reach the floor, which rises as atoms are met.

        ``None`` where that would take longer than ``budget``, in the units of ``Costs``: soon seen (PATIENCE).
        """
        size = self.atoms.shape[1]
        images = max(1, BLOCK_ATOMS // size)
        firsts, blocks = range(0, len(self.columns), images), range(0, len(queries.columns), BLOCK_QUERIES)
        threads, costs, spent, kept = torch.get_num_threads(), [], 0.0, 0
        with ThreadPoolExecutor(threads) as pool:
            shared = pool.map if threads > 1 else map
            weigh = _Compiled(self, images, shared) if compiled(self.columns) else self._weigh_some
            for first in progress(firsts, description="LocalEquivariantMMSE", unit="block"):
                stop = min(first + images, len(self.columns))
                for at in blocks:
                    some, known = (type(x)(*(y[at : at + BLOCK_QUERIES] for y in x)) for x in (queries, sums))
                    weigh(first, stop, some, known, inverse_variances, margin)
                before, kept = kept, int(sums.kept.sum())
                costs.append(self._cost((stop - first) * size * len(queries.columns), kept - before))
                spent += costs[-1]
                recent = sum(costs[-RECENT:]) / len(costs[-RECENT:])
                if spent > PATIENCE * budget and recent * (len(firsts) - len(costs)) > WORTH * budget:
                    return None
        dropped = (self.half_norms.numel() - sums.kept).double() * math.exp(-margin)  # at most, in units of Z
        mean = sums.sums / sums.mass[..., None]
        return Screened((queries.own - sums.top).clamp_min(0), sums.mass.T, mean.movedim(1, 0), dropped / (1 + dropped))

    def _cost(self, pairs: int, kept: float) -> float:
        """Return what bounds of so many pairs take, and the comparisons of those that are kept."""
        costs = COMPILED if compiled(self.columns) else INTERPRETED
        entries = self.channels * self.patch_size**2
        bounds, each = costs.look + self.columns.shape[2] * costs.column, costs.survivor + entries * costs.entry
        return pairs * bounds + kept * each

    def _weigh_some(
        self, first: int, stop: int, queries: _Queries, known: _Sums, factors: Tensor, margin: float
    ) -> None:
        """Weigh the atoms of some images: in place."""
        bounds = queries.columns @ self.columns[first:stop].flatten(0, 1).T
        limit = (known.floor - queries.slack).to(bounds.dtype)
        query, atom = (bounds >= limit[:, None]).nonzero().unbind(1)
        atom = atom + first * self.atoms.shape[1]
        score = self._scores(queries, query, atom)
        before = known.top.clone()
        known.top.scatter_reduce_(0, query, score, "amax")
        scale = ((before - known.top)[:, None] * factors).exp()
        weights = ((score - known.top[query])[:, None] * factors).exp()
        image, place = atom // self.atoms.shape[1], atom % self.atoms.shape[1]
        values = self.values[image, :, self.atoms[2, place]].double()
        known.mass.mul_(scale).index_add_(0, query, weights)
        known.sums.mul_(scale[..., None]).index_add_(0, query, weights[..., None] * values[:, None])
        known.kept.add_(torch.bincount(query, minlength=len(bounds)))
        lowest = known.mass.amin(1)
        reached = known.top + (lowest.clamp_min(torch.finfo(torch.float64).tiny).log() - margin) / factors.min()
        known.floor.copy_(torch.where(lowest > 0, torch.maximum(known.floor, reached), known.floor))

    def _scores(
        self, queries: _Queries, query: Int64[Tensor, " n"], atom: Int64[Tensor, " n"]
    ) -> Float64[Tensor, " n"]:
        """Return the scores of some pairs, exactly."""
        (count, size), p = self.half_norms.shape, self.patch_size
        height, width = self.padded.shape[1:]
        shape = (count, height - p + 1, width // self.channels - p + 1, p, p * self.channels)
        windows = self.padded.as_strided(shape, (height * width, width, self.channels, width, 1))  # of all pixels
        found, row, column = [], self.atoms[0], self.atoms[1] // self.channels
        block = max(1, GATHERED // queries.windows[0].numel())
        for some, k in zip(query.split(block), atom.split(block), strict=True):
            image, place = k // size, k % size
            score = windows[image, row[place], column[place]].mul_(queries.windows[some]).sum((1, 2)).double()
            found.append(score - queries.lacks[some] - self.half_norms[image, place])
        return torch.cat(found)


class _Compiled:
    """The compiled loops, with room for the bounds of a block; as many threads as torch has share the queries.

    Each query goes its own way through the atoms, in their order: the answer is the same for any number of threads.
    """

    def __init__(self, screen: Screen, images: int, shared: Callable):
        from . import _screen  # not at the top: numba is optional, and takes a second to load

        self.loops, self.screen, self.map = _screen, screen, shared
        atoms = min(images, len(screen.columns)) * screen.columns.shape[1]
        rows = -(-atoms // _screen.LANES)
        self.room = screen.columns.new_full((BLOCK_QUERIES, rows * _screen.LANES), float(_screen.NOTHING))
        self.facts = [x.numpy() for x in (screen.atoms, screen.padded, screen.half_norms, screen.values)]

    def __call__(self, first: int, stop: int, queries: _Queries, known: _Sums, factors: Tensor, margin: float) -> None:
        """Weigh the atoms of some images: in place."""
        keys = self.screen.columns[first:stop].flatten(0, 1)
        room = self.room[: len(queries.columns)]
        torch.mm(queries.columns, keys.T, out=room[:, : len(keys)])
        room[:, len(keys) :] = float(self.loops.NOTHING)
        bounds = room.unflatten(1, (-1, self.loops.LANES))
        atoms, *images = self.facts
        threads = torch.get_num_threads()
        rows = (bounds, queries.windows, queries.lacks, queries.slack, *known)
        jobs = [[x.numpy() for x in part] for part in zip(*(x.tensor_split(threads) for x in rows), strict=True)]

        def run(job: list) -> None:
            self.loops.weigh(*job, atoms, *images, first, margin, factors.numpy())

        list(self.map(run, jobs))


def compiled(like: Tensor) -> bool:
    """Return whether the compiled loops serve tensors such as this one."""
    return like.device.type == "cpu" and importlib.util.find_spec("numba") is not None


def directions_within(rank: int, atoms: int, entries: int) -> int:
    """Return how many principal coordinates a bound should compare, for so many atoms and numbers; 0 for no screen."""
    directions = min(DIRECTIONS, rank // ENTRIES_PER_DIRECTION, entries // atoms - len(BAND_EDGES) - 1)
    return directions if directions >= FEWEST_DIRECTIONS else 0


def _channels_last(v: Float[Tensor, "k c h w"], half: int, boundary: str) -> Float[Tensor, "k h2 s"]:
    """Return images with what windows find beyond the border, channels fastest."""
    mode = "circular" if boundary == "circular" else "constant"
    return torch.nn.functional.pad(v, 4 * (half,), mode=mode).permute(0, 2, 3, 1).flatten(2).contiguous()
