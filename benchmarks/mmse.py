"""One query of the unconstrained estimator on 60 000 images of 28×28: time and memory, beside what a user could pick.

Run it with `python benchmarks/mmse.py`. Medians of several runs in one process; ratios travel better between machines
than seconds do. The images are Fashion-MNIST where its IDX files can be had, else random numbers; the table says which.
"""

import platform
import resource
import statistics
import time
from pathlib import Path

import torch

import lemmse as le

REPEATS = 7
SIGMA = 0.2


def images_60000() -> tuple[torch.Tensor, str]:
    """The data, and their name."""
    try:
        return le.data.fashion_mnist("train"), "Fashion-MNIST"
    except FileNotFoundError:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(60_000, 1, 28, 28, generator=generator), "random numbers"


def broadcast(images: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What one writes first: differences with every image, held in memory."""
    weights = (-(images - y).square().flatten(1).sum(1) / (2 * SIGMA**2)).softmax(0)
    return torch.einsum("d,dchw->chw", weights, images)[None]


def cdist(images: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pairwise distances of torch, exact differences."""
    d = torch.cdist(y.flatten(1), images.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return ((-d.square() / (2 * SIGMA**2)).softmax(1) @ images.flatten(1)).reshape(y.shape)


def median_seconds(run) -> float:
    """The median over REPEATS, after one run that nobody counts."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def resident_megabytes() -> float:
    """The resident size now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_megabytes() -> float:
    """The largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    images, name = images_60000()
    generator = torch.Generator().manual_seed(0)
    y = images[:1] + SIGMA * torch.randn(1, 1, 28, 28, generator=generator)
    before = resident_megabytes()
    start = time.perf_counter()
    estimator = le.MMSE(images, le.Denoising())
    prepared = time.perf_counter() - start
    rows = {
        type(reduction).__name__: median_seconds(lambda r=reduction: estimator(y, sigma=SIGMA, reduction=r))
        for reduction in (le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(9), le.TopImages(9))
    }
    memory = peak_megabytes() - before
    ours = rows["PosteriorMean"]
    rows["baseline: broadcast differences"] = median_seconds(lambda: broadcast(images, y))
    rows["baseline: torch.cdist"] = median_seconds(lambda: cdist(images, y))
    difference = (estimator(y, sigma=SIGMA).mean - cdist(images, y)).abs().max()
    print(
        f"60 000 images of 28×28 ({name}), float32, one query, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    print(f"{'prepared once':34} {1000 * prepared:8.0f} ms")
    for label, seconds in rows.items():
        print(f"{label:34} {1000 * seconds:8.0f} ms   {seconds / ours:5.1f} × PosteriorMean")
    print(f"{'memory above the images':34} {memory:8.0f} MB   (target: 600 MB; a query under 1000 ms)")
    print(f"{'largest difference to torch.cdist':34} {difference:8.1e}")


if __name__ == "__main__":
    main()
