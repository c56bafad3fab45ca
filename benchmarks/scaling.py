"""How time grows with images, pixels, windows and workers: `python -m benchmarks.scaling > benchmarks/scaling.md`.

It takes a few minutes and belongs to no topic of `make bench`. Processors' time is taken, which other work on the
machine touches less than the clock's, and the least of some runs. What a million or a billion images
would take is computed from the fit, for hardware that is named with what is assumed of it.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from scipy.optimize import nnls

import lemmse as le
from lemmse.estimators import Estimator

from .problems import Scene, colours, greys
from .table import in_markdown, machine

SIGMA, LARGE_SIGMA = 0.1, 1.0
RUNS = 6


def least(times: Callable[[], Any], runs: int = RUNS) -> np.ndarray:
    """Return the least of what some runs say they took, in seconds."""
    return np.min([times() for _ in range(runs)], axis=0)


def processor_time(run: Callable[[], Any]) -> float:
    """Return the seconds that the processor spends on a run, all threads together."""
    start = time.process_time()
    run()
    return time.process_time() - start


# ---------------------------------------------------------------------------------------------------------- one process


def plain(images: torch.Tensor, patch_size: int) -> Estimator:
    """Return the estimator of denoising: B = Id, where the fused kernel serves."""
    return le.LocalEquivariantMMSE(images, le.Denoising(), patch_size)


def deblurring(images: torch.Tensor, patch_size: int) -> Estimator:
    """Return the estimator of a deblurring through A⁺: windows are whitened, and compared by matrix products."""
    blur = le.Blur(le.optics.gaussian_psf(1.0, size=5))
    return le.LocalEquivariantMMSE(images, blur, patch_size, pre_inverse=le.PseudoInverse(blur))


@dataclass(frozen=True)
class Setting:
    """A scene with its numbers of images D, the window's side P, a path, the threads that it has, and σ."""

    scene: Callable[[int], Scene]
    counts: tuple[int, ...]
    patch_size: int
    estimator_of: Callable[[torch.Tensor, int], Estimator] = plain
    threads: int = 1
    sigma: float = SIGMA

    def estimator(self, images: torch.Tensor) -> Estimator:
        """Return the estimator of some images."""
        return self.estimator_of(images, self.patch_size)


SMALL, MIDDLE, LARGE = (32, 64, 128), (24, 48, 96), (3, 6, 12)
REAL = Setting(colours, MIDDLE, 11)
REAL_AT_LARGE_SIGMA = replace(REAL, sigma=LARGE_SIGMA)
SETTINGS = (
    *(Setting(greys, SMALL, 11, sigma=sigma) for sigma in (SIGMA, LARGE_SIGMA)),
    *(Setting(colours, MIDDLE, p, sigma=sigma) for sigma in (SIGMA, LARGE_SIGMA) for p in (5, 11)),
    Setting(partial(colours, size=64), LARGE, 11),
    replace(REAL, threads=2),
    *(Setting(greys, SMALL, p, deblurring) for p in (5, 11)),
    *(Setting(colours, MIDDLE, p, deblurring) for p in (5, 11)),
    Setting(partial(colours, size=64), LARGE, 11, deblurring),
)
BEYOND = 1000
"""Images of a check of the fit to ``REAL``, ten times as many as it was made with."""


@dataclass(frozen=True)
class Fit:
    """A call's time as ``fixed`` + pairs / ``rate``, fitted to several D; ``off`` is the largest relative deviation."""

    setting: Setting
    kernel: str
    size: str
    channels: int
    pixels: int
    set_up: float  # of an image, in the constructor
    fixed: float
    rate: float
    off: float

    @property
    def per_pair(self) -> float:
        """Return the nanoseconds of a pair."""
        return 1e9 / self.rate


def fitted(setting: Setting) -> Fit:
    """Time constructor and call for every D and return the fit."""
    torch.set_num_threads(setting.threads)
    scene = setting.scene(max(setting.counts))
    c, h, w = scene.images.shape[1:]
    pairs, times, set_up = [], [], math.inf
    for count in setting.counts:
        images, made = scene.images[:count], []
        set_up = processor_time(lambda made=made, images=images: made.append(setting.estimator(images))) / count
        y = scene.measured(made[0].physics, SIGMA)
        run = partial(made[0], y, sigma=setting.sigma)
        run()
        times.append(least(partial(processor_time, run)) / setting.threads)
        pairs.append(count * (h * w) ** 2)
    pairs, times = np.array(pairs), np.array(times)
    design = np.stack([np.ones_like(times), pairs], 1) / times[:, None]  # relative deviations are made small
    (fixed, slope), _ = nnls(design, np.ones_like(times))
    off = float(abs((fixed + slope * pairs) / times - 1).max())
    return Fit(setting, made[0].plan.kernel, f"{h}×{w}×{c}", c, h * w, set_up, float(fixed), float(1 / slope), off)


def rates(fits: list[Fit]) -> str:
    """Return the table of the fits."""
    header = [
        "path",
        "images",
        "P",
        "σ",
        "threads",
        "D",
        "10⁹ pairs/s",
        "ns a pair",
        "fixed",
        "set-up an image",
        "fit off by",
    ]
    rows = [
        [
            fit.kernel,
            fit.size,
            str(fit.setting.patch_size),
            f"{fit.setting.sigma:g}",
            str(fit.setting.threads),
            ", ".join(map(str, fit.setting.counts)),
            f"{fit.rate / 1e9:.3f}",
            f"{fit.per_pair:.2f}",
            f"{1e3 * fit.fixed:.0f} ms",
            f"{1e3 * fit.set_up:.2f} ms",
            f"{100 * fit.off:.0f} %",
        ]
        for fit in fits
    ]
    return in_markdown("One process", [header, *rows])


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of a pair by products on one core: ``constant`` + ``slope`` · C P²."""

    constant: float
    slope: float
    off: float


def cost_of_products(fits: list[Fit]) -> Cost:
    """Fit the cost of a pair over all settings that take products."""
    some = [fit for fit in fits if fit.kernel == "products"]
    xs, costs = np.array([window_entries(fit) for fit in some]), np.array([fit.per_pair for fit in some])
    design = np.stack([np.ones(len(some)), xs], 1) / costs[:, None]
    (constant, slope), _ = nnls(design, np.ones(len(some)))
    return Cost(float(constant), float(slope), float(abs((constant + slope * xs) / costs - 1).max()))


def kernel_costs(fits: list[Fit], sigma: float) -> str:
    """Return the least and the most nanoseconds of a pair by the kernel, on one core."""
    some = [fit for fit in fits if fit.kernel == "fused" and (fit.setting.threads, fit.setting.sigma) == (1, sigma)]
    costs = [fit.per_pair for fit in some]
    return f"{min(costs):.1f} to {max(costs):.1f} ns at σ = {sigma:g}"


def beyond(fit: Fit) -> tuple[float, float]:
    """Return what BEYOND images take, and what the fit to fewer says."""
    torch.set_num_threads(1)
    scene = colours(BEYOND)
    y, estimator = scene.measured(le.Denoising(), SIGMA), plain(scene.images, fit.setting.patch_size)
    run = partial(estimator, y, sigma=SIGMA)
    return float(least(partial(processor_time, run))), fit.fixed + BEYOND * fit.pixels**2 / fit.rate


def window_entries(fit: Fit) -> int:
    """Return the numbers in a window, C P²."""
    return fit.channels * fit.setting.patch_size**2


# ------------------------------------------------------------------------------------------------------- many processes

SHARDS, IMAGES_PER_SHARD = 8, 100
TINY = (20, 220)


@dataclass(frozen=True)
class Times:
    """Seconds on the clock, of the processor in this process, that is the client and the scheduler, and per worker."""

    clock: float
    here: float
    worker: float


@dataclass(frozen=True)
class Run:
    """What the shards took on some workers, and the overhead of a shard: of one that holds nearly nothing."""

    workers: int
    start: float
    times: Times
    overhead: Times


def local_of(images: torch.Tensor) -> Estimator:
    """Return the estimator of every shard."""
    return plain(images, 11)


def tiny_of(images: torch.Tensor) -> Estimator:
    """Return an estimator that costs nothing to speak of."""
    return le.MMSE(images, le.Denoising())


def tiny_shard(i: int) -> torch.Tensor:
    """Return one image of 4×4."""
    return torch.full((1, 1, 4, 4), 0.5)


def files_of_shards(folder: str, scene: Scene) -> list[Path]:
    """Write the shards as float32 and return their files."""
    files = []
    for i, shard in enumerate(scene.images.split(IMAGES_PER_SHARD)):
        files.append(Path(folder) / f"{i}.npy")
        np.save(files[-1], shard.numpy())
    return files


def times_of(run: Callable[[], Any], client: Client) -> Times:
    """Return what a run takes, the least of RUNS."""

    def once() -> list[float]:
        workers, here, clock = sum(client.run(time.process_time).values()), time.process_time(), time.perf_counter()
        run()
        here, clock = time.process_time() - here, time.perf_counter() - clock
        return [clock, here, (sum(client.run(time.process_time).values()) - workers) / len(client.nthreads())]

    return Times(*map(float, least(once)))


def runs(files: list[Path], y: torch.Tensor) -> Iterator[Run]:
    """Yield what the same shards take on one worker and on two."""
    for workers in (1, 2):
        start = time.perf_counter()
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.wait_for_workers(workers)
            start = time.perf_counter() - start
            job = partial(le.distributed.reduce, local_of, files, y, sigma=SIGMA, client=client)
            job()  # workers import the package and the kernel
            times = times_of(job, client)
            y_tiny = torch.zeros(1, 1, 4, 4)
            tiny = partial(le.distributed.reduce, tiny_of, tiny_shard, y_tiny, sigma=1.0, client=client)
            few, many = (times_of(partial(tiny, count=count), client) for count in TINY)
            slopes = [(getattr(many, x) - getattr(few, x)) / (TINY[1] - TINY[0]) for x in ("clock", "here", "worker")]
            yield Run(workers, start, times, Times(*slopes))


def predicted(run: Run, fit: Fit) -> float:
    """Return what the fit to one process says of the processor's time of a worker, which takes its share of shards."""
    shard = fit.fixed + IMAGES_PER_SHARD * (fit.set_up + fit.pixels**2 / fit.rate)
    return SHARDS * (shard / run.workers + run.overhead.worker)


def workers_table(found: list[Run], fit: Fit) -> str:
    """Return the table of the runs beside their prediction."""
    rows = [
        [
            str(run.workers),
            f"{run.start:.1f} s",
            f"{run.times.worker:.2f} s",
            f"{predicted(run, fit):.2f} s",
            f"{run.times.clock:.2f} s",
            f"{1e3 * run.workers * run.overhead.worker:.1f} ms",
            f"{1e3 * run.overhead.here:.1f} ms",
        ]
        for run in found
    ]
    title = f"Workers: {SHARDS} files of {IMAGES_PER_SHARD} images {fit.size}, P = 11, one thread each"
    header = ["workers", "start", "a worker's processor", "predicted", "clock"]
    return in_markdown(title, [[*header, "overhead of a shard, worker", "client and scheduler"], *rows])


def bytes_of_partials(scene: Scene) -> str:
    """Return how large partial posteriors are for two numbers of images."""
    reductions = [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(10), le.TopImages(10)]
    counts = (12, 24)
    rows = []
    for reduction in reductions:
        sizes = []
        for count in counts:
            y = scene.measured(le.Denoising(), SIGMA)
            part = plain(scene.images[:count], 5).partial_posterior(y, sigma=SIGMA, reduction=reduction)
            sizes.append(sum(x.nbytes for x in part.state))
        rows.append([repr(reduction), *(f"{size / 1e3:.0f} kB" for size in sizes), ""])
    header = ["reduction", *(f"D = {count}" for count in counts), ""]
    return in_markdown("What travels: a partial posterior of one query of 32×32×3", [header, *rows])


# ------------------------------------------------------------------------------------------------------------- on paper


@dataclass(frozen=True)
class Hardware:
    """Cores that are each as fast as a share of the measured one, on so many machines."""

    name: str
    cores: int
    machines: int
    share: float


HARDWARE = (
    Hardware("this machine", 2, 1, 1.0),
    Hardware("a server of two AMD EPYC 9654, 192 cores", 192, 1, 0.7),
    Hardware("50 such servers, 9600 cores", 9600, 50, 0.7),
)
READ = 1e9
"""Bytes a second that a machine reads."""

GPU, GPU_FLOPS, GPU_BYTES, GPU_SHARE = "one NVIDIA H100 SXM", 67e12, 3.35e12, 0.4
"""Its data sheet's float32 outside the tensor cores and memory, and the share of either that is reached."""

SETS = ((10**6, 1000), (10**9, 10_000))
"""Images, and those of a shard."""


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def power_of_ten(count: int) -> str:
    """Return 10⁶ for a million."""
    return "10" + str(round(math.log10(count))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def on_cores(hardware: Hardware, fits: tuple[Fit, Fit], overhead: float, images: int, per_shard: int) -> list[str]:
    """Return a row: computing at two sigmas, reading, handing out, and all of it at the larger sigma."""
    shards, fit = math.ceil(images / per_shard), fits[0]
    of_shard = [each.fixed + per_shard * (each.set_up + each.pixels**2 / each.rate) for each in fits]
    computing = [math.ceil(shards / hardware.cores) * seconds / hardware.share for seconds in of_shard]
    reading = images * fit.pixels * fit.channels * 4 / (READ * hardware.machines)
    times = [*computing, reading, shards * overhead]
    return [hardware.name, power_of_ten(images), *map(duration, [*times, sum(times[1:])])]


def on_gpu(fit: Fit, images: int) -> list[str]:
    """Return a row: products of a block's scores and means, and four passes over the scores in memory."""
    pairs = images * fit.pixels**2
    flops = 2 * window_entries(fit) + 2 * (fit.channels + 1) + 20
    computing = pairs * (flops / GPU_FLOPS + 16 / GPU_BYTES) / GPU_SHARE
    reading = images * fit.pixels * fit.channels * 4 / READ
    return [
        GPU,
        power_of_ten(images),
        *map(duration, [computing, computing, reading]),
        "",
        duration(computing + reading),
    ]


def main() -> None:
    """Print everything as Markdown."""
    start = time.perf_counter()
    torch.set_num_threads(1)
    where = machine(1)
    fits = [fitted(setting) for setting in SETTINGS]
    real, at_large_sigma = (fits[SETTINGS.index(setting)] for setting in (REAL, REAL_AT_LARGE_SIGMA))
    measured, said = beyond(real)
    scene = colours(SHARDS * IMAGES_PER_SHARD)
    with tempfile.TemporaryDirectory() as folder:
        found = list(runs(files_of_shards(folder, scene), scene.measured(le.Denoising(), SIGMA)))
    on_paper = [
        on_cores(hardware, (real, at_large_sigma), found[-1].overhead.here, *some)
        for some in SETS
        for hardware in HARDWARE
    ]
    on_paper += [on_gpu(real, images) for images, _ in SETS]
    header = ["hardware", "images", f"computing, σ = {SIGMA:g}", f"σ = {LARGE_SIGMA:g}"]
    header += ["reading", "handing out", f"in all, σ = {LARGE_SIGMA:g}"]
    facts = {
        "where": where,
        "rates": rates(fits),
        "kernel_costs": " and ".join(kernel_costs(fits, sigma) for sigma in (SIGMA, LARGE_SIGMA)),
        "products": cost_of_products(fits),
        "beyond": f"{BEYOND} images took {measured:.2f} s, where the fit says {said:.2f} s",
        "workers": workers_table(found, real),
        "off": max(abs(predicted(run, real) / run.times.worker - 1) for run in found),
        "partials": bytes_of_partials(scene),
        "paper": in_markdown("One query of 32×32×3, P = 11, posterior mean", [header, *on_paper]),
        "seconds": time.perf_counter() - start,
    }
    print(TEXT.format(**facts), end="")


TEXT = f"""# How time grows with images, pixels, windows and workers

Made by `python -m benchmarks.scaling` in {{seconds:.0f}} s, on a virtual machine that did other work at the same time:
{{where}}.

What is timed is the posterior mean, in float32, of all pixels of one query with noise of {SIGMA:g}. A pair is a window
of the query and a window of an image: D N² for D images of N pixels. Times are the processor's, which other work
touches less than the clock's, the least of {RUNS} runs; with two threads, half of what both take together.

{{rates}}

*fused* is denoising (B = Id) by the compiled kernel, *products* a deblurring through A⁺, by matrix products. A call is
fitted as fixed + pairs / rate over the three D; the last column is its largest deviation. Set-up, the constructor's
time, is that of the largest D, divided by D. Time is linear in D and quadratic in N; ten times as many images as the
fit to 32×32×3, P = 11, σ = {SIGMA:g} has seen are a check of it: {{beyond}}.

On one core, a pair costs

* by the kernel, {{kernel_costs}}. P and C matter little; what does is how many
  weights are above the clamp, as the others cost no exponential: few at small σ, most at σ = {LARGE_SIGMA:g};
* by products, {{products.constant:.1f}} + {{products.slope:.3f}} C P² ns, within {{products.off:.0%}}.

{{workers}}

The prediction is that of the fit to one process: a worker takes its share of the shards one by one, each of which costs
the fixed time, its images' set-up, its pairs, and the overhead, which is the slope between {TINY[0]} and {TINY[1]}
shards that hold one image of 4×4. It is within {{off:.0%}}. The clock's time counts what other work took meanwhile.
What the client and the scheduler do for a shard, they do for one after another, whatever the number of workers.

{{partials}}

A pickle adds a few hundred bytes. It is as large for any D, and grows with the pixels and with k.

## On paper

What the fits say of larger sets and other machines. None of this was measured.

{{paper}}

* 10⁶ images lie in 1000 shards of 1000, 10⁹ in 100 000 shards of 10 000, 123 MB each as float32.
* A core of the servers, with AVX-512 as the measured one, is taken to be {HARDWARE[1].share:g} times as fast: with all
  cores busy, clocks are lower and caches shared. A machine is taken to read {READ / 1e9:g} GB/s. What is read waits for
  what is computed, though in practice they overlap.
* No more cores work than there are shards, and the last round of shards leaves cores idle: both are counted.
* {GPU}: {GPU_FLOPS / 1e12:g} TFLOP/s in float32 and {GPU_BYTES / 1e12:g} TB/s by its data sheet, and {GPU_SHARE:g}
  of either taken to be reached; 2 C P² + 2 (C + 1) + 20 operations and 16 bytes of scores a pair, one after the other,
  whatever σ is. It takes products: the kernel is for processors.
* Every query costs as much again. Several σ of one query share their distances.
"""


if __name__ == "__main__":
    main()
