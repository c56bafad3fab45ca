"""Posterior means with a certified error: windows that a lower bound of their distance rules out are never compared.

A window of an image cannot be nearer to that of a query than their principal coordinates say, and the lengths of what
is left of them (S12.4). One matrix product with few columns bounds all distances of a stratum; the few atoms whose
bound could matter are compared exactly, and what all others could weigh together bounds the error of the mean (S12.3).

With ⟨q, k⟩ - ½‖k‖² the *score* of an atom, r² = ‖q‖² - 2 score, an upper bound of the score is what the product gives,
and atoms are kept where it reaches a *floor* of the query's own: σ² (ln Z - m), Z a sum of weights of atoms met so far.
The others weigh less than exp(-m) Z each, and m is chosen for the tolerance.

A ``Screen`` is what is prepared of the images, and a ``Search`` leads one measurement through it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ._progress import progress
from .means import COSTS, Workers, numba_serves, products_cost
from .patches import padded, windows_at

__all__ = ["Screen", "Screened", "Search", "aside", "directions_within", "search"]

DIRECTIONS = 40
"""Principal coordinates that a bound compares one by one."""

BAND_EDGES = (1, 4 / 3, 2, 8 / 3)
"""Where bands begin, in units of the number of directions; the last takes all that is left."""

ENTRIES_PER_DIRECTION, FEWEST_DIRECTIONS = 4, 6
"""Windows of so many entries are worth one direction; with fewer directions than this a bound says too little."""

SAMPLE = 2**15
"""Windows that the principal directions are taken from."""

SLACK = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Rounding of a bound, in units of ‖q‖² + ‖k‖² (S12.4), many times what products in full precision round."""

BLOCK_QUERIES, BLOCK_ATOMS = 256, 1024
"""Queries and atoms whose bounds are held at once: few enough to stay in a processor's cache."""

SEED_STEP, PILOT_STEP = 61 * 16, 61
"""Every so-many-th atom is looked at before all are, for first floors, and for what all will take. Not powers of two,
so that the pixels that they are of lie anywhere in an image."""

SAMPLE_STEP = 16
"""Every so-many-th query tells for all whether a search pays: where it does not, that is all that it takes."""

SEED_EASE, PILOT_EASE = 15.0, 1.5
"""How many times fewer atoms may be compared in the end, as floors rise, than at those of the seed and the pilot."""

PASSES = 64
"""All atoms are met in so many passes over the images, so that each tells what the others will take."""

WORTH = 0.9
"""A search goes on as long as what is left of it is expected to take less than so much of the exact path."""

NOTHING = -1e20
"""A score below all others."""

GATHERED = 2**22
"""Entries of windows that are gathered at once where nothing is compiled."""


class Costs(NamedTuple):
    """What a look at the bound of a pair takes, and a comparison of it: for itself, and for each entry of a window.

    In nanoseconds of a thread, as those of ``lemmse.means``, from which a column's comes: only their ratios matter.
    ``python -m benchmarks.screen_costs`` measures all of them anew.
    """

    look: float
    survivor: float
    entry: float


COMPILED, INTERPRETED = Costs(look=0.27, survivor=92, entry=0.075), Costs(look=1.7, survivor=350, entry=2.7)

STRATUM, GATHERED_ENTRY = 4e5, 12.0
"""What a small stratum takes beside its pairs, and each entry of its windows, cut out one by one in every call."""


def aside(strata: Sequence[Any], images: int) -> float:
    """Return what strata that are not screened take beside a screen, in nanoseconds of a thread."""
    entries = sum(len(stratum.pixels) * stratum.rank for stratum in strata)
    return products_cost(strata, images) + len(strata) * STRATUM + images * entries * GATHERED_ENTRY


class Screened(NamedTuple):
    """The atoms that were kept, weighed, per sigma and query (sigma-major), and the share that all others have at most.

    ``depth`` (q,) is half the smallest squared distance, ``mass`` (b, q) the sum of the weights in units of its weight.
    """

    depth: Float64[Tensor, " q"]
    mass: Float64[Tensor, "b q"]
    mean: Float64[Tensor, "b q c"]
    tail: float


class _Queries(NamedTuple):
    """Windows of a measurement: as columns of the product, as they meet images, what scores lack, slack of a bound."""

    columns: Float[Tensor, "q r"]
    windows: Float[Tensor, "q p s"]
    lacks: Float[Tensor, " q"]
    slack: Float[Tensor, " q"]
    own: Float[Tensor, " q"]


class _Sums(NamedTuple):
    """What is known of each query: a floor for scores, the largest, mass and sums in its units, atoms compared."""

    floor: Float64[Tensor, " q"]
    top: Float64[Tensor, " q"]
    mass: Float64[Tensor, "q b"]
    sums: Float64[Tensor, "q b c"]
    compared: Int64[Tensor, " q"]


class _Atoms(NamedTuple):
    """Some atoms, by their columns: the first of them, and the step to the next."""

    first: int
    step: int
    columns: Float[Tensor, "k r"]


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
        self.padded = _channels_last(keys, self.patch_size, boundary)
        self.values = images.flatten(2)
        row, column = comparison.pixels // w, comparison.pixels % w
        self.atoms = torch.stack([row, column * self.channels, comparison.pixels])
        self.count = self.half_norms.numel()
        self.low, self.high = images.amin((0, 2, 3)).double(), images.amax((0, 2, 3)).double()
        self.adjoint = None  # Wᵀ (d, r), where it is not the identity
        if comparison.whitener.kind != "none":
            entries = torch.eye(self.index.shape[1] * self.channels, dtype=torch.float64, device=keys.device)
            self.adjoint = comparison.whitener(entries)
        self.sound = _rounds_well(sample, self.rotation.T, self.slack)

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

    def queries(self, v: Float[Tensor, "1 c_v h w"], step: int = 1) -> _Queries:
        """Return the windows of v around every so-many-th pixel of the stratum."""
        windows = windows_at(v, self.index[::step])[0]
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

    def every(self, step: int) -> list[_Atoms]:
        """Return every so-many-th atom of all images, a few at a time."""
        parts = self.columns.flatten(0, 1)[::step].split(BLOCK_ATOMS)
        return [_Atoms(i * BLOCK_ATOMS * step, step, part) for i, part in enumerate(parts)]

    def scores(self, queries: _Queries, query: Int64[Tensor, " n"], atom: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
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

    def slack_of(self, atom: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Return the part of some atoms in the rounding of a bound or score, SLACK ‖k‖²; that of a query is its own."""
        return 2 * self.slack * self.half_norms.flatten()[atom].double()

    def margin(self, tolerance: float) -> float:
        """Return how many nats below ln Z each weight that is dropped must lie for an error of ``tolerance``."""
        spread = float((self.high - self.low).max())
        most = math.log(spread) - math.log(tolerance) if spread > 0 else 0.0
        return math.log(self.count) + max(math.log(2), most) + 1e-5  # more than floors are rounded

    def error_bound(self, tail: float, mean: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Return how far others, which have at most this share, can move a mean (S12.3)."""
        return (tail * torch.maximum(mean.double() - self.low, self.high - mean.double())).to(mean)

    def cost(self, share: float) -> float:
        """Return what a pair takes, in the units of ``Costs``: its bound, and a comparison of this share of them."""
        costs = COMPILED if compiled(self.columns) else INTERPRETED
        bound = costs.look + self.columns.shape[2] * COSTS.column
        return bound + share * (costs.survivor + self.channels * self.patch_size**2 * costs.entry)


# ------------------------------------------------------------------------------------------------------------- searches


class Search(ABC):
    """Queries that meet the atoms of a screen, for all sigmas of a call at once; ``search`` makes one.

    An atom that is dropped weighs less than exp(-margin) of what was known to be there, so that all of them together
    have a share of at most (number of atoms) exp(-margin).
    """

    def __init__(self, screen: Screen, queries: _Queries, inverse_variances: Float64[Tensor, " b"], margin: float):
        self.screen, self.queries, self.factors, self.margin = screen, queries, inverse_variances, margin
        q, b, c = len(queries.columns), len(inverse_variances), screen.values.shape[1]
        zeros = torch.zeros(q, b, c, dtype=torch.float64, device=queries.own.device)
        floor, top = torch.full_like(zeros[:, 0, 0], -torch.inf), torch.full_like(zeros[:, 0, 0], NOTHING)
        self.sums = _Sums(floor, top, zeros[..., 0].clone(), zeros, torch.zeros_like(top, dtype=torch.int64))

    @abstractmethod
    def _meet(self, blocks: list[_Atoms]) -> None:
        """Compare those of some atoms whose bounds reach the floor of a query, and add those whose scores reach it.

        The floor rises with the mass.
        """

    def pays(self, budget: float) -> bool:
        """Return whether all pairs are likely to take less than a budget for each, by a look at a few atoms."""
        screen = self.screen
        if not screen.sound or not _rounds_well(self.queries.columns[:, :-1], screen.columns[0, :, :-1], screen.slack):
            return False
        if screen.cost(self._seeded() / SEED_EASE) > WORTH * budget:
            return False
        self._pilot()
        return screen.cost(self._pilot() / PILOT_EASE) <= WORTH * budget

    def means(self, budget: float) -> Screened | None:
        """Return the means of all sigmas, ``None`` where pairs turn out to take more than a budget: soon seen."""
        self._seeded()
        shares = [self._pilot() / SEED_EASE]
        blocks = self.screen.every(1)
        for i in progress(range(PASSES), description="LocalEquivariantMMSE", unit="pass"):
            if some := blocks[i::PASSES]:
                shares.append(self._met(some))
                left = 1 - (i + 1) / PASSES
                if self.screen.cost(sum(shares) / len(shares)) * left > WORTH * budget:
                    return None
        depth = (self.queries.own - self.sums.top).clamp_min(0)
        mean = self.sums.sums / self.sums.mass[..., None]
        tail = self.screen.count * math.exp(-self.margin)
        return Screened(depth, self.sums.mass.T, mean.movedim(1, 0), tail)

    def _pilot(self) -> float:
        """Let floors rise by a part of the atoms, of which nothing else is kept; return the share that was compared."""
        share = self._met(self.screen.every(PILOT_STEP))
        for each in self.sums[1:]:
            each.zero_()
        self.sums.top.fill_(NOTHING)
        return share

    def _seeded(self) -> float:
        """Set floors by the best bound of very few atoms, and return the share of those that reach them."""
        atoms = self.screen.every(SEED_STEP)
        bounds = torch.cat([self.queries.columns @ some.columns.T for some in atoms], dim=1)
        best = bounds.argmax(1)
        scores = self.screen.scores(self.queries, torch.arange(len(best), device=best.device), best * SEED_STEP)
        scores -= self.queries.slack + self.screen.slack_of(best * SEED_STEP)  # other loops round otherwise
        self.sums.floor.copy_(scores - self.margin / self.factors.min())
        return float((bounds >= self._limits(bounds)).double().mean())

    def _met(self, blocks: list[_Atoms]) -> float:
        """Let the queries meet some atoms, and return the share of the pairs that were compared."""
        before = int(self.sums.compared.sum())
        self._meet(blocks)
        pairs = len(self.queries.columns) * sum(len(atoms.columns) for atoms in blocks)
        return (int(self.sums.compared.sum()) - before) / pairs

    def _limits(self, bounds: Float[Tensor, "q k"]) -> Float[Tensor, "q 1"]:
        return (self.sums.floor - self.queries.slack).to(bounds)[:, None]


def search(
    screen: Screen,
    v: Float[Tensor, "1 c_v h w"],
    inverse_variances: Float64[Tensor, " b"],
    tolerance: float,
    budget: float,
) -> Search | None:
    """Return a search for the means of all sigmas of one v, ``None`` where it is likely to take more than a budget.

    ``budget`` is for a pair. Loops are compiled where that can be.
    """
    kind = _CompiledSearch if compiled(screen.columns) else _InterpretedSearch
    facts = inverse_variances, screen.margin(tolerance)
    if not kind(screen, screen.queries(v, SAMPLE_STEP), *facts).pays(budget):
        return None
    return kind(screen, screen.queries(v), *facts)


@final
class _InterpretedSearch(Search):
    """A search by PyTorch alone."""

    def _meet(self, blocks: list[_Atoms]) -> None:
        for atoms in blocks:
            self._meet_some(atoms)

    def _meet_some(self, atoms: _Atoms) -> None:
        screen, queries, known = self.screen, self.queries, self.sums
        bounds = queries.columns @ atoms.columns.T
        query, place = (bounds >= self._limits(bounds)).nonzero().unbind(1)
        known.compared.add_(torch.bincount(query, minlength=len(bounds)))
        atom = atoms.first + place * atoms.step
        score = screen.scores(queries, query, atom)
        weighed = score + screen.slack_of(atom) >= (known.floor - queries.slack)[query]
        query, atom, score = query[weighed], atom[weighed], score[weighed]
        before = known.top.clone()
        known.top.scatter_reduce_(0, query, score, "amax")
        scale = ((before - known.top)[:, None] * self.factors).exp()
        weights = ((score - known.top[query])[:, None] * self.factors).exp()
        size = screen.atoms.shape[1]
        values = screen.values[atom // size, :, screen.atoms[2, atom % size]].double()
        known.mass.mul_(scale).index_add_(0, query, weights)
        known.sums.mul_(scale[..., None]).index_add_(0, query, weights[..., None] * values[:, None])
        reached = known.top + (known.mass.amin(1).log() - self.margin) / self.factors.min()  # -inf where none was met
        torch.maximum(known.floor, reached, out=known.floor)


@final
class _CompiledSearch(Search):
    """A search by the compiled loops; as many threads as torch has share the queries.

    Each query goes its own way through the atoms, in their order: the answer is the same for any number of threads.
    """

    def __init__(self, *args: Any):
        from . import _screen  # not at the top: numba is optional, and takes a second to load

        super().__init__(*args)
        screen, self.loops, lanes = self.screen, _screen.weigh, _screen.LANES
        self.facts = [x.numpy() for x in (screen.atoms, screen.padded, screen.half_norms, screen.values)]
        columns, *rows = (self.queries.columns, *self.queries[1:-1], *self.sums)
        self.parts = []  # of queries, one for each thread: blocks of their columns, with room for bounds, and all else
        for part in zip(*(x.tensor_split(torch.get_num_threads()) for x in (columns, *rows)), strict=True):
            room = columns.new_full((BLOCK_QUERIES, BLOCK_ATOMS), NOTHING)
            blocks = zip(*(x.split(BLOCK_QUERIES) for x in part), strict=True)
            self.parts.append(
                [
                    (some, room[: len(some)], [x.numpy() for x in (room[: len(some)].unflatten(1, (-1, lanes)), *rest)])
                    for some, *rest in blocks
                ]
            )

    def _meet(self, blocks: list[_Atoms]) -> None:
        with Workers() as workers:
            workers.run([partial(self._meet_part, part, blocks) for part in self.parts])

    def _meet_part(self, part: list, blocks: list[_Atoms], _room: Tensor) -> None:
        """Let some queries meet atoms, in their order."""
        rules = (2 * self.screen.slack, self.margin, self.factors.numpy())
        for atoms in blocks:
            count = len(atoms.columns)
            for columns, bounds, known in part:
                torch.mm(columns, atoms.columns.T, out=bounds[:, :count])
                self.loops(*known, *self.facts, atoms.first, atoms.step, count, *rules)


def compiled(like: Tensor) -> bool:
    """Return whether the compiled loops serve tensors such as this one."""
    return numba_serves(like.device)


def directions_within(rank: int, atoms: int, entries: int) -> int:
    """Return how many principal coordinates a bound should compare, for so many atoms and numbers; 0 for no screen."""
    directions = min(DIRECTIONS, rank // ENTRIES_PER_DIRECTION, entries // atoms - len(BAND_EDGES) - 1)
    return directions if directions >= FEWEST_DIRECTIONS else 0


def _rounds_well(rows: Float[Tensor, "k r"], others: Float[Tensor, "m r"], slack: float) -> bool:
    """Return whether products of some rows are as exact as bounds need them: not so in TF32 or bfloat16."""
    rows, others = rows[:64], others[:64]
    off = (rows @ others.T).double() - rows.double() @ others.double().T
    lengths = rows.double().norm(dim=1)[:, None] * others.double().norm(dim=1)
    return bool((off.abs() <= slack / 4 * lengths + torch.finfo(torch.float64).tiny).all())


def _channels_last(v: Float[Tensor, "k c h w"], patch_size: int, boundary: str) -> Float[Tensor, "k h2 s"]:
    """Return images with what windows find beyond the border, channels fastest."""
    return padded(v, patch_size, boundary).permute(0, 2, 3, 1).flatten(2).contiguous()
