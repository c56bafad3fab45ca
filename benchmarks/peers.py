"""The local-equivariant estimator beside what else a user could pick, at one sigma, for denoising.

The peers get the windows of all images ready made, in memory, and are not timed for that; ours cuts its own. A slow
peer answers for some of the pixels, and its time is scaled to all of them. Answers are compared, on the pixels that
they have in common, with those of float64.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

import lemmse as le
from lemmse.patches import centre_pixels, extract_patches

from .settings import SETTINGS, Problem, Setting, exact_rows, ours
from .table import Case, Group, Target, at_least, at_most

ATTENTION_ATOMS = 2**14
"""Windows of images that a call of the attention takes: it makes blocks of its own."""

PRODUCT_ATOMS, PRODUCT_QUERIES = 2048, 256
"""Windows of images and of the query whose product is made at once: pairs of about the size of a processor's cache."""

DENSE_PAIRS = 2**26
"""Pairs whose distances are held at once: 256 MB."""


def windows(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return the windows of y, in the order of the problem's pixels, those of all images, and their centre pixels.

    Both less a mean window, which changes no distance and keeps digits.
    """
    images = problem.scene.images
    centre = extract_patches(images[:100], problem.patch_size).mean((0, 1))
    y = problem.scene.measured(le.Denoising(), problem.sigma)
    queries = (extract_patches(y, problem.patch_size)[0] - centre)[problem.pixels]
    count = images[0, 0].numel()
    keys = queries.new_empty(len(images) * count, queries.shape[1])
    for at in range(0, len(images), 32):
        part = extract_patches(images[at : at + 32], problem.patch_size).flatten(0, 1)
        torch.sub(part, centre, out=keys[at * count : at * count + len(part)])
    return queries, keys, centre_pixels(images).flatten(0, 1)


def dense(problem: Problem, rows: int | None = None) -> Callable[[], Tensor]:
    """Return what one writes first: all distances of some pixels, held in memory, softmax, and a product."""
    queries, keys, centres = windows(problem)
    queries = queries[:rows]
    some = max(1, DENSE_PAIRS // len(keys))

    def run() -> Tensor:
        parts = []
        for block in queries.split(some):
            weights = (torch.cdist(block, keys).square() / (-2 * problem.sigma**2)).softmax(1)
            parts.append(weights @ centres)
        return torch.cat(parts)

    return run


def attention(problem: Problem, rows: int | None = None) -> Callable[[], Tensor]:
    """Return PyTorch's fused attention, which streams by itself, over chunks merged by their log-sum-exp.

    -‖k‖²/2σ² is one more entry of the keys, against a 1 of the queries. The call behind
    ``scaled_dot_product_attention`` gives the log-sum-exp too; it wants colours as long as keys, hence zeros.
    """
    queries, keys, centres = windows(problem)
    c = centres.shape[1]
    bias = keys.square().sum(1, keepdim=True) / (-2 * problem.sigma**2)
    keys = torch.cat([keys, bias], dim=1)
    queries = torch.nn.functional.pad(queries[:rows] / problem.sigma**2, (0, 1), value=1.0)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def run() -> Tensor:
        mean, log_mass = torch.zeros(len(queries), c), torch.full((len(queries), 1), -torch.inf)
        for some, colours in zip(keys.split(ATTENTION_ATOMS), centres.split(ATTENTION_ATOMS), strict=True):
            worth = torch.nn.functional.pad(colours, (0, keys.shape[1] - c))
            means, log_masses = fused(queries[None, None], some[None, None], worth[None, None], scale=1.0)
            of_chunk = log_masses.reshape(-1, 1)
            together = torch.logaddexp(log_mass, of_chunk)
            mean = (log_mass - together).exp() * mean + (of_chunk - together).exp() * means[0, 0, :, :c]
            log_mass = together
        return mean

    return run


def keops(problem: Problem, rows: int | None = None, flags: str = "") -> Callable[[], Tensor]:
    """Return KeOps' softmax-weighted sum over lazy distances, compiled before it is timed; ``flags`` of the compiler.

    What is compiled is kept in the project's cache folder.
    """
    folder = Path(platformdirs.user_cache_dir("lemmse")) / ("keops-tuned" if flags else "keops")
    os.environ |= {"CXXFLAGS": flags, "KEOPS_CACHE_FOLDER": str(folder)}
    with contextlib.redirect_stdout(None):  # it says that it finds no CUDA
        import pykeops  # not at the top: optional, and asks for a compiler
        from pykeops.torch import LazyTensor
    pykeops.set_verbose(False)
    queries, keys, centres = windows(problem)
    queries = queries[:rows].contiguous()

    def run() -> Tensor:
        q_i, k_j, c_j = LazyTensor(queries[:, None]), LazyTensor(keys[None]), LazyTensor(centres[None])
        return (q_i.sqdist(k_j) / (-2 * problem.sigma**2)).sumsoftmaxweight(c_j, axis=1)

    run()
    return run


def bare_products(problem: Problem, rows: int | None = None) -> Callable[[], None]:
    """Return the products of windows alone, in blocks that stay in a cache: what products cannot go below."""
    queries, _, _ = windows(Problem(problem.scene.first(1), problem.sigma, problem.patch_size))
    queries = queries[:rows]
    keys = queries.repeat(-(-PRODUCT_ATOMS // len(queries)), 1)[:PRODUCT_ATOMS].contiguous()
    blocks = -(-problem.scene.images[:, 0].numel() // PRODUCT_ATOMS)

    def run() -> None:
        for _ in range(blocks):
            for block in queries.split(PRODUCT_QUERIES):
                block @ keys.T

    return run


# --------------------------------------------------------------------------------------------------------------- tables

OURS, PRODUCTS = "LocalEquivariantMMSE", "... by products, as without numba"
CERTIFIED = "... within 1e-3, certified"
DENSE, ATTENTION = "dense PyTorch", "PyTorch's fused attention, streamed"
KEOPS, BARE = "KeOps", "limit: the bare products"
TUNED = "-march=native -ffast-math"

ATTENTION_ROWS, DENSE_ROWS, BARE_ROWS = 1024, 96, 512
"""Pixels that a peer answers for, where there are more: the attention works in other blocks for few."""

KEOPS_FLOPS = 4e9
"""Additions and products a second that KeOps is reckoned with, to take about two seconds."""


def keops_rows(setting: Setting) -> int:
    """Return for how many pixels KeOps answers in about two seconds."""
    entries = setting.patch_size**2 * (3 if setting.colour else 1)
    return max(16, round(2 * KEOPS_FLOPS / (3 * entries * setting.images * setting.size**2)))


FEW_COLUMNS = (
    "Products for grey windows of 5×5 have 26 columns: the exponentials, which both need, are half of the work."
)


def targets(setting: Setting) -> tuple[Target, ...]:
    """Return what our exact path has to reach."""
    found = (
        at_least("speedup", 2 if setting.patch_size == 5 else 2.5, ATTENTION, why=FEW_COLUMNS),
        at_least("speedup", 10, KEOPS),
    )
    if setting.colour and setting.patch_size == 11:
        found += at_most("ratio", 1.3, BARE), Target("ratio", 0.33, False, (BARE,), goal=True)
    return found


def beside_peers(setting: Setting, tuned: bool = True) -> Group:
    """Return our paths, exact and certified, and the peers at a setting; KeOps also ``tuned``, compiled once more."""
    count = setting.size**2

    def peer(label: str, prepare: Callable, rows: int | None = None, same: float | None = 1e-3, **facts: tuple) -> Case:
        rows = count if rows is None else min(rows, count)
        return Case(label, partial(prepare, rows=rows), (), count / rows, same, **facts)

    tuned_keops = peer(
        f"... compiled with {TUNED}", partial(keops, flags=TUNED), keops_rows(setting), needs=("pykeops",)
    )
    return Group(
        setting.problem,
        (
            Case(OURS, ours, targets(setting), same_answer=1e-3),
            Case(PRODUCTS, partial(ours, numba=False), same_answer=1e-3),
            Case(CERTIFIED, partial(ours, tolerance=1e-3), same_answer=2e-3),
            peer(DENSE, dense, DENSE_ROWS, same=0.1),
            peer(ATTENTION, attention, ATTENTION_ROWS),
            peer(KEOPS, keops, keops_rows(setting), needs=("pykeops",)),
            *([tuned_keops] if tuned else []),
            peer(BARE, bare_products, BARE_ROWS, same=None),
        ),
        setting.work,
        exact_rows,
    )


def groups(quick: bool) -> tuple[Group, ...]:
    """Return a group per setting; the quick ones are two, with fewer images."""
    if quick:
        return beside_peers(SETTINGS[0].of(100), tuned=False), beside_peers(SETTINGS[3].of(50), tuned=False)
    return tuple(beside_peers(setting) for setting in SETTINGS)
