"""What the constants of ``lemmse.screen`` should be on this machine: what a pair takes, step by step, in a minute.

``python -m benchmarks.screen_costs`` prints them. All is timed in turns, on one thread, as seconds of the processor, of
which the smallest of many counts: other work on the machine can only make them larger. Only their ratios decide which
path is taken; units of a nanosecond keep them readable.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch

import lemmse as le
from lemmse import estimators, means, screen

from .problems import Scene, colours

ROUNDS = 15
IMAGES = 64
BESIDE = 100  # small strata
SHARE = 0.01
"""Of the pairs of a block, those whose bounds reach the floor while comparisons are timed."""


def smallest(cases: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the smallest time of each case, in ns, of runs that take turns; a first run is not counted."""
    found = dict.fromkeys(cases, float("inf"))
    for i in range(rounds + 1):
        for name, run in cases.items():
            start = time.process_time_ns()
            run()
            if i:
                found[name] = min(found[name], time.process_time_ns() - start)
    return found


def estimator(scene: Scene, patch_size: int, fused: bool = True) -> le.LocalEquivariantMMSE:
    """Return the estimator that denoises, by the kernel or by products."""
    with patch.object(means, "COSTS", means.COSTS._replace(fused=0.0 if fused else float("inf"))):
        return le.LocalEquivariantMMSE(scene.images, le.Denoising(), patch_size)


def exact(scene: Scene, patch_size: int) -> dict[str, Callable[[], object]]:
    """Return calls of both exact paths."""
    y = scene.measured(le.Denoising(), 0.1)
    by_products, by_kernel = (partial(estimator(scene, patch_size, fused), sigma=0.1) for fused in (False, True))
    return {"products": lambda: by_products(y), "kernel": lambda: by_kernel(y)}


def searching(scene: Scene, patch_size: int) -> tuple[dict[str, Callable[[], object]], int, int, int]:
    """Return runs of blocks whose bounds all fail, or some of which reach; pairs, those that reach, and columns."""
    (prepared,) = estimator(scene, patch_size)._screens.values()
    y = scene.measured(le.Denoising(), 0.1) - 0.5
    run = screen.search(prepared, y, torch.tensor([100.0], dtype=torch.float64), 1e-3, float("inf"))
    run.margin = 1e9  # the floor stays where it is
    blocks = prepared.every(1)[:: max(1, IMAGES // 4)]
    floors = [(run.queries.columns @ some.columns.T).double().quantile(1 - SHARE, dim=1) for some in blocks]

    def meet(reach: bool) -> None:
        for some, floor in zip(blocks, floors, strict=True):
            run.sums.floor.copy_(floor + run.queries.slack if reach else torch.full_like(floor, 1e9))
            run._meet([some])

    meet(True)
    pairs, reach = len(run.queries.columns) * sum(len(some.columns) for some in blocks), int(run.sums.compared.sum())
    return {"none": lambda: meet(False), "some": lambda: meet(True)}, pairs, reach, prepared.columns.shape[2]


def small_strata(scene: Scene, images: int) -> Callable[[], object]:
    """Return what reduces some strata of one pixel each, around a hole, in so many images."""
    mask = torch.ones(scene.images.shape[2:])
    mask[12:20, 12:20] = 0
    physics = le.Inpainting(mask)
    one = le.LocalEquivariantMMSE(scene.images[:images], physics, 11, le.PseudoInverse(physics))
    alone = [i for i, stratum in enumerate(one.strata) if len(stratum.pixels) == 1][:BESIDE]
    y, sigma = scene.measured(physics, 0.1), torch.tensor([0.1], dtype=torch.float64)
    return lambda: one._strata_by_products(y, sigma, le.PosteriorMean(), range(images), alone)


def product(columns: int) -> Callable[[], object]:
    """Return the product that bounds a block."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(count, columns, generator=generator) for count in (screen.BLOCK_QUERIES, screen.BLOCK_ATOMS))
    room = torch.empty(len(q), len(k))

    def run() -> None:
        for _ in range(16):
            torch.mm(q, k.T, out=room)

    return run


def line(name: str, value: float, now: float) -> None:
    """Print a constant beside what it is now."""
    print(f"{name:<40} {value:8.3g}   now {now:g}")


def main() -> None:
    """Measure and print all constants."""
    torch.set_num_threads(1)
    scenes = {11: colours(IMAGES), 5: colours(IMAGES)}
    with patch.object(estimators, "SCREENED_FROM", 0), patch.object(estimators, "FUSED_FROM", 0):
        widths = (16, 32, 48, 64)
        of_block = 16 * screen.BLOCK_QUERIES * screen.BLOCK_ATOMS
        found = smallest({str(width): product(width) for width in widths})
        column = (found["64"] - found["16"]) / 48 / of_block
        line("column of a product", column, means.COSTS.column)
        for name, kind, rounds in (("compiled", True, ROUNDS), ("interpreted", False, 3)):
            now, per_survivor = screen.COMPILED if kind else screen.INTERPRETED, {}
            for patch_size, scene in scenes.items():
                with patch.object(screen, "compiled", lambda like, kind=kind: kind):
                    cases, pairs, reach, columns = searching(scene, patch_size)
                    took = smallest(cases, rounds)
                look = took["none"] / pairs - columns * column
                line(f"{name} look, P = {patch_size}", look, now.look)
                entries = scene.images.shape[1] * patch_size**2
                per_survivor[entries] = (took["some"] - took["none"]) / reach
            (few, at_few), (many, at_many) = sorted(per_survivor.items())
            entry = (at_many - at_few) / (many - few)
            line(f"{name} entry", entry, now.entry)
            line(f"{name} survivor", at_few - few * entry, now.survivor)
        for patch_size, scene in scenes.items():
            c, h, w = scene.images.shape[1:]
            took = smallest(exact(scene, patch_size), 5)
            pairs = IMAGES * (h * w) ** 2
            beside = took["products"] / pairs - (c * patch_size**2 + 1) * column
            line(f"products beside columns, P = {patch_size}, {c} ch.", beside, means.COSTS.weight)
            line(
                f"kernel, P = {patch_size}, {c} ch.", took["kernel"] / pairs, means.COSTS.fused + c * means.COSTS.colour
            )
        few, many = (smallest({"": small_strata(scenes[11], count)}, 5)[""] for count in (4, IMAGES))
        line("small stratum beside a screen", few / BESIDE, screen.STRATUM)
        line("entry of its windows", (many - few) / (BESIDE * (IMAGES - 4) * 363), screen.GATHERED_ENTRY)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    main()
