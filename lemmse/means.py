"""Posterior means alone, by compiled loops: what is quicker than matrix products and PyTorch, where numba is installed.

==================  ===================================================================================================
``FusedWindows``    all strata at once, where nothing is whitened: box sums of products of images (``lemmse._fused``)
``StratumSums``     a stratum with one whitener: matrix products, whose weights are compiled (``lemmse._weighing``)
==================  ===================================================================================================

Both give a ``SummedTerm``, and are float32; the second knows the moments, too.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .patches import padded
from .reductions import SummedTerm, TermMoments

__all__ = [
    "FusedWindows",
    "Merged",
    "PlainKeys",
    "StratumSums",
    "Workers",
    "kernel_cost",
    "merged_duplicates",
    "numba_serves",
    "products_cost",
    "with_numba",
    "worth",
]

NORMED = 256
"""Images whose windows' norms are computed at once."""

FUSED_PAIRS = 2**26
"""Pairs that a thread takes at once: about a tenth of a second."""

BLOCK_QUERIES, BLOCK_ATOMS = 512, 1024
"""Queries and atoms whose scores a thread holds at once: few enough to stay near the processor."""

GROUP_ATOMS = 2**13
"""Atoms whose keys are made at once, while threads weigh those before."""

SHARED_QUERIES = 64
"""Fewer queries than this are not shared out among threads."""

SAMPLE = 2**15
"""Windows among which duplicates are looked for, before all windows are."""

DUPLICATES = 0.1
"""The share of duplicates in a sample from which on merging them pays."""

COMPARED = 2**21
"""Entries of windows that are compared at once."""


class Costs(NamedTuple):
    """What a pair of windows takes in one thread, in nanoseconds, on a server of 2023 with AVX-512.

    Only their ratios matter; ``python -m benchmarks.screen_costs`` measures them anew.
    """

    column: float  # a matrix product, for each of its columns
    weight: float  # and what follows it, in compiled loops
    fused: float  # the kernel, whatever the size of a window
    colour: float  # and for each colour


COSTS = Costs(column=0.016, weight=0.7, fused=1.3, colour=0.02)

GROUP_COST = 2e5
"""What a stratum takes beside its pairs, for each group of its atoms."""


def numba_serves(device: torch.device) -> bool:
    """Return whether numba is installed, and compiles for a device."""
    return device.type == "cpu" and importlib.util.find_spec("numba") is not None


def with_numba(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the compiled loops of this room serve such tensors."""
    return dtype == torch.float32 and numba_serves(device)


# ------------------------------------------------------------------------------------------------------------ products


class Merged(NamedTuple):
    """Atoms of a stratum that differ: the first of each, ascending, and what it is worth (1 + 2c, U).

    An atom's number is that of its image times those of the stratum's pixels, plus that of its pixel among them. The
    first row counts how many it stands for, the others are the sums of their values and of their squares (S12.1).
    """

    atoms: Int64[Tensor, " u"]
    columns: Float[Tensor, "m u"]

    def between(self, start: int, stop: int) -> tuple[int, int]:
        """Return the places of the first of the atoms from ``start`` on, and of that from ``stop`` on."""
        first, end = torch.searchsorted(self.atoms, torch.tensor([start, stop])).tolist()
        return first, end


def merged_duplicates(
    keys: Float[Tensor, "D c_v h w"],
    values: Float[Tensor, "D c s"],
    index: Int64[Tensor, "s p2"],
    windows: Callable[[Float[Tensor, "k c_v h w"]], Float[Tensor, "k s d"]],
) -> Merged | None:
    """Return those windows around pixels that differ; ``None`` unless a good share of a sample are duplicates.

    Duplicates are windows all of whose bits agree. ``values`` are those of the pixels, ``index`` names the pixels of
    each window, h·w those beyond a zero boundary, and ``windows`` cuts windows out of images.
    """
    size, entries = len(index), index.shape[1] * keys.shape[1]
    words = entries * keys.dtype.itemsize // 4
    mixers = torch.randint(-(2**62), 2**62, (words,), generator=torch.Generator().manual_seed(0)) * 2 + 1

    def sums(images: Tensor) -> Int64[Tensor, " n"]:
        """Return a sum of the bits of every window, equal where windows are, and hardly ever otherwise."""
        parts = images.split(max(1, COMPARED // (size * entries)))
        bits = (windows(part).contiguous().view(torch.int32).long() for part in parts)
        return torch.cat([(each * mixers).sum(2).flatten() for each in bits])

    sample = sums(keys[:: max(1, len(keys) * size // SAMPLE)])
    if len(sample.unique()) > (1 - DUPLICATES) * len(sample):
        return None
    first = _first_of_equals(sums(keys))
    atoms, channels = torch.arange(len(first)), torch.arange(keys.shape[1])
    flat = torch.nn.functional.pad(keys.flatten(2), (0, 1))  # pixel h·w is zero
    for some in (first != atoms).nonzero()[:, 0].split(max(1, COMPARED // entries)):
        pair = [
            flat[(each // size)[:, None, None], channels[:, None], index[each % size][:, None]]
            for each in (some, first[some])
        ]
        alike = torch.eq(*pair).flatten(1).all(1)
        first[some] = first[some].where(alike, some)
    columns = worth(values)
    kept = (first == atoms).nonzero()[:, 0]
    return Merged(kept, torch.zeros_like(columns).index_add_(1, first, columns)[:, kept])


@final
class PlainKeys:
    """The keys (x, -½‖x‖²) of windows x that are compared as they are, cut out of images one by one.

    ``v`` (D, c_v, h, w) is B A of images. With ``merged_duplicates`` few windows of an image are left, and copies of
    all of them would take longer than their products.
    """

    def __init__(self, v: Float[Tensor, "k c_v h w"], patch_size: int, boundary: str):
        self.patch_size = patch_size
        self.padded = padded(v, patch_size, boundary)

    @staticmethod
    def fits(comparison: Any) -> bool:
        """Return whether these are the keys of a ``OneWhitener``."""
        return comparison.centre is None and comparison.whitener.kind == "none" and comparison.dtype == torch.float32

    def of(self, atoms: Int64[Tensor, " n"], pixels: Int64[Tensor, " s"]) -> Float[Tensor, "n r"]:
        """Return the keys of atoms, numbered as in ``Merged``, of a stratum of these pixels."""
        from . import _weighing  # not at the top, as below

        keys = self.padded.new_empty(len(atoms), self.padded.shape[1] * self.patch_size**2 + 1)
        _weighing.cut(*(x.numpy() for x in (keys, self.padded, atoms, pixels)), self.patch_size)
        return keys


def worth(values: Float[Tensor, "k c s"]) -> Float[Tensor, "m n"]:
    """Return the columns of atoms that stand for themselves: 1, values of pixels, and their squares."""
    values = values.movedim(1, 0).flatten(1)
    return torch.cat([torch.ones_like(values[:1]), values, values.square()])


def _first_of_equals(numbers: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return where each of the numbers occurs first."""
    found, order = numbers.sort(stable=True)
    starts = torch.nn.functional.pad(found[1:] != found[:-1], (1, 0), value=True)
    group = starts.cumsum(0) - 1
    first = torch.empty_like(order)
    first[order] = order[starts][group]
    return first


def kernel_cost(strata: Sequence[Any], images: int, colours: int) -> float:
    """Return the nanoseconds of a thread that means of so many images of so many colours take by the kernel."""
    return images * sum(len(stratum.pixels) for stratum in strata) ** 2 * (COSTS.fused + COSTS.colour * colours)


def products_cost(strata: Sequence[Any], images: int) -> float:
    """Return the nanoseconds of a thread that means of so many images take by products, compiled."""
    pixels = [len(stratum.pixels) for stratum in strata]
    pairs = (len(stratum.pixels) ** 2 * (COSTS.weight + (stratum.rank + 1) * COSTS.column) for stratum in strata)
    return images * sum(pairs) + GROUP_COST * sum(-(-images * s // GROUP_ATOMS) for s in pixels)


@final
class Workers:
    """As many threads as torch has, each of which takes one, with room for scores: they run while the caller goes on.

    A context; at its end all is done. Within it the caller's thread takes one, too: a team of torch's own threads would
    wait for its next task in a busy loop, on a core that a worker needs.
    """

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.rooms = [torch.empty(0) for _ in range(self.threads)]
        self.running = []

    def __enter__(self) -> "Workers":
        """Start the threads, if there is more than one."""
        if self.threads > 1:
            torch.set_num_threads(1)
            self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *raised: Any) -> None:
        """End the threads."""
        if self.threads == 1:
            return
        try:
            if raised[0] is None:
                self.wait()
        finally:
            self.pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)

    def run(self, jobs: Sequence[Callable[[Tensor], None]]) -> None:
        """Wait for the jobs before, and begin with these, each of which is handed room of its own."""
        if self.threads == 1:
            for job in jobs:
                job(self.rooms[0])
            return
        self.wait()
        self.rooms += [torch.empty(0) for _ in jobs[len(self.rooms) :]]
        self.running = [self.pool.submit(*each) for each in zip(jobs, self.rooms, strict=False)]

    def wait(self) -> None:
        """Wait for all that runs, and raise what it raised."""
        for each in self.running:
            each.result()
        self.running = []


@final
class StratumSums:
    """Windows of measurements as queries of a stratum, and the sums over all the atoms that they have met so far.

    ``queries`` are as its ``OneWhitener`` makes them. ``inverse_variances`` (b,) are 1/σ² of sigmas that share scores
    (then sums are sigma-major), or ``None`` where scores contain it. ``needs`` is that of the reduction, ``"mean"`` or
    ``"moments"``; ``atoms`` is how many are expected, and ``channels`` those of their values.
    """

    def __init__(
        self,
        queries: Any,
        inverse_variances: Float[Tensor, " b"] | None,
        needs: str,
        channels: int,
        atoms: int,
        threads: int,
    ):
        from . import _weighing  # not at the top: numba is optional, and takes a second to load

        self.queries, self.weigh, self.channels = queries, _weighing.weigh, channels
        self.factors = np.ones(1, np.float32) if inverse_variances is None else inverse_variances.numpy()
        self.within = np.float32(_weighing.reach(atoms))
        shape = len(queries.rows), len(self.factors)
        self.top = np.full(shape[0], _weighing.NOTHING)
        self.columns = 1 + channels * (1 if needs == "mean" else 2)
        self.sums = np.zeros((*shape, self.columns))
        self.depths = np.zeros((0, 0) if needs == "mean" else shape)
        shares = min(threads, -(-shape[0] // SHARED_QUERIES))
        bounds = [shape[0] * i // shares for i in range(shares + 1)]
        self.parts = [slice(*pair) for pair in itertools.pairwise(bounds)]

    def jobs(self, keys: Float[Tensor, "K r"], columns: Float[Tensor, "m K"]) -> list[Callable[[Tensor], None]]:
        """Return what there is to do about some atoms: functions of room for scores, for threads to run.

        ``columns`` are how many atoms each stands for, the values and their squares.
        """
        columns = columns[: self.columns].contiguous().numpy()
        return [partial(self._meet, part, keys, columns) for part in self.parts]

    def _meet(self, part: slice, keys: Float[Tensor, "K r"], columns: np.ndarray, room: Tensor) -> None:
        """Add atoms to what a part of the queries know."""
        if not room.numel():
            room.resize_(BLOCK_QUERIES * BLOCK_ATOMS)
        for first in range(part.start, part.stop, BLOCK_QUERIES):
            block = slice(first, min(first + BLOCK_QUERIES, part.stop))
            rows, known = self.queries.rows[block], [x[block] for x in (self.top, self.sums, self.depths)]
            for begin, some in zip(range(0, len(keys), BLOCK_ATOMS), keys.T.split(BLOCK_ATOMS, dim=1), strict=True):
                shape = rows.shape[0], some.shape[1]
                scores = torch.mm(rows, some, out=room[: shape[0] * shape[1]].view(shape))
                self.weigh(scores.numpy(), columns, begin, self.factors, self.within, *known)

    def term(self, half_log_pdet: float) -> SummedTerm:
        """Return the sums over all atoms, once all jobs are done."""
        top, own, factor = (x.double() for x in (torch.from_numpy(self.top), self.queries.own, self.queries.factor))
        inverse_variances = torch.from_numpy(self.factors).double()[:, None]
        sums = torch.from_numpy(self.sums).transpose(0, 1)  # (b, q, m)
        mass, mean = sums[..., 0], sums[..., 1 : 1 + self.channels] / sums[..., :1]
        depth = (own - top).clamp_min(0)  # no distance is negative, whatever rounding says
        peak, moments = -inverse_variances * depth - half_log_pdet, None
        if len(self.depths):
            variance = (sums[..., 1 + self.channels :] / sums[..., :1] - mean.square()).clamp_min(0)
            deeper = torch.from_numpy(self.depths).T / mass
            log_weight = inverse_variances * deeper
            residual = 2 * (depth - deeper) / factor
            moments = TermMoments(
                *(self._flat(x) for x in (mass, mean, variance, log_weight, torch.zeros_like(mass), residual))
            )
        return SummedTerm(*(self._flat(x) for x in (peak, mass, mean)), moments)

    def _flat(self, sums: Tensor) -> Tensor:
        """Return what is known of each sigma and query, sigma-major, in single precision."""
        return sums.flatten(0, 1).to(self.queries.rows.dtype)


# -------------------------------------------------------------------------------------------------------- fused kernel


class FusedChunk(NamedTuple):
    """Images as the kernel takes them."""

    keys: Float[Tensor, "k c_v h w"]
    half_norms: Float[Tensor, "k h w"]
    values: Float[Tensor, "k c h w"]


@final
class FusedWindows:
    """Posterior means by the fused kernel, where windows are compared as they are, but for entries that none shows.

    ``fits`` says for which strata, with numba installed. v is taken as it comes, centred or not.
    """

    def __init__(self, strata: Sequence[Any], image_shape: tuple[int, ...], patch_size: int, boundary: str):
        c, h, w = image_shape
        self.patch_size, self.boundary = patch_size, boundary
        labels, half_log_pdet = torch.empty(h * w, dtype=torch.int32), torch.empty(h * w)
        shown = torch.zeros(h * w, c)
        centres = torch.arange(c) * patch_size**2 + patch_size**2 // 2  # of a window's entries
        for label, stratum in enumerate(strata):
            labels[stratum.pixels] = label
            half_log_pdet[stratum.pixels] = stratum.classes[0].whitener.log_pdet / 2
            shown[stratum.pixels] = torch.isin(centres, stratum.kept).float()
        self.labels, self.half_log_pdet = labels.reshape(h, w).numpy(), half_log_pdet.reshape(h, w)
        self.shown = shown.T.reshape(c, h, w)
        self.squared_gain = max(_gains(strata)) ** 2

    @staticmethod
    def fits(strata: Sequence[Any]) -> bool:
        """Return whether windows are compared as they are, or all scaled by one number."""
        return all(len(s.classes) == 1 and not s.mixes for s in strata) and len(_gains(strata)) == 1

    def chunk(self, keys: Float[Tensor, "k c_v h w"], values: Float[Tensor, "k c h w"]) -> FusedChunk:
        """Return images, and B A of them, as the kernel takes them."""
        keys = self._shown_of(keys)
        half_norms = torch.cat([self._half_norms(some) for some in keys.split(NORMED)])
        return FusedChunk(keys, half_norms, values.contiguous())

    def terms(
        self, v: Float[Tensor, "c h w"], inverse_variances: Float[Tensor, " b"], chunks: Iterable[FusedChunk]
    ) -> Iterator[SummedTerm]:
        """Yield the means of a few images at a time for all sigmas of one v, sigma-major.

        Images are shared out among as many threads as torch has; each part starts from the best scores of those before,
        so that the answer is always the same for as many threads.
        """
        from ._fused import WindowMeans  # not at the top, as above

        threads = torch.get_num_threads()
        v = self._shown_of(v)
        factors = inverse_variances * self.squared_gain
        pairs = WindowMeans(v.numpy(), self.labels, factors.numpy(), self.patch_size, self.boundary)
        own, top = self._half_norms(v[None])[0], torch.full(v.shape[1:], -torch.inf)
        size = max(1, FUSED_PAIRS // v[0].numel() ** 2) * threads
        with ThreadPoolExecutor(threads) as pool:
            for chunk in chunks:
                for some in zip(*(x.split(size) for x in chunk), strict=True):
                    parts = zip(*(x.tensor_split(threads) for x in some), strict=True)
                    jobs = [(*(x.numpy() for x in part), top.numpy()) for part in parts if len(part[0])]
                    for found in pool.map(lambda job: pairs.over(*job), jobs):
                        best, mass, mean = (torch.from_numpy(x).float() for x in found)
                        top = torch.maximum(top, best)
                        peak = -factors[:, None, None] * (own - best) - self.half_log_pdet
                        yield SummedTerm(peak.flatten(), mass.flatten(), mean.flatten(0, 2))

    def _shown_of(self, v: Float[Tensor, "*k c h w"]) -> Float[Tensor, "*k c h w"]:
        """Return v, black where no window shows it."""
        return (v if self.shown.all() else v * self.shown).contiguous()

    def _half_norms(self, v: Float[Tensor, "k c h w"]) -> Float[Tensor, "k h w"]:
        """Return ½‖v[ω_n]‖² of every window."""
        squares = padded(v.square().sum(1, keepdim=True), self.patch_size, self.boundary)
        return torch.nn.functional.avg_pool2d(squares, self.patch_size, stride=1)[:, 0] * (self.patch_size**2 / 2)


def _gains(strata: Sequence[Any]) -> set[float]:
    """Return the different scales of all entries that windows show."""
    return {scale for s in strata for scale in s.classes[0].whitener.scale.tolist()} or {1.0}
