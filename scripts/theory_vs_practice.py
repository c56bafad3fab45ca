"""Hold every shipped network against its formula: ``python scripts/theory_vs_practice.py`` writes the tables.

    python scripts/theory_vs_practice.py            docs/theory_vs_practice.md, .json with every figure, and the cards
    python scripts/theory_vs_practice.py blur p5    print the rows of networks whose names contain all of these words

Test images were never trained on, and noise is fresh. What formulas answer is kept in ``build/formula``, so that
networks of one problem share it: the first takes minutes, the others seconds.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lemmse as le
from lemmse.comparison import Comparison, compare, interval
from lemmse.pretrained import Card, save

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, BUILD, TABLES = ROOT / "lemmse" / "weights", ROOT / "build", ROOT / "docs" / "theory_vs_practice.md"

SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Noise levels at which networks and formulas are compared."""

IMAGES = 20
"""How many of each split they are compared on, the first."""

SEED = 2601
"""Of the noise of comparisons, that of test images, and of training images the next: no training draws these."""

MEDIAN_AIM, CELL_AIM, CELL_FROM = 30.0, 25.0, 0.1
"""Decibels of network against formula that the median should reach, and every cell from this noise level on."""


# ---- Comparisons ----------------------------------------------------------------------------------------------------


class Mean(NamedTuple):
    """What is kept of a posterior."""

    mean: Tensor


class KeptFormula:
    """The formula of a card, whose answers are kept in a folder."""

    def __init__(self, card: Card):
        self.estimator, problem = card.estimator(), card.problem
        self.images, self.physics = self.estimator.images, self.estimator.physics
        self.pre_inverted = self.estimator.pre_inverted
        shifted = bool(card.training.get("shifted"))
        words = (problem.data, problem.count, problem.operator, problem.pre_inverse, card.patch_size, shifted)
        self.folder = BUILD / "formula" / type(self.estimator).__name__ / "-".join(map(str, words))

    def __call__(self, y: Tensor, *, sigma: float) -> Mean:
        """Return the mean of the posterior, computed unless it is known."""
        asked = y.contiguous().numpy().tobytes() + np.float64(sigma).tobytes()
        path = self.folder / f"{hashlib.sha256(asked).hexdigest()[:16]}.safetensors"
        if not path.exists():
            mean = self.estimator(y, sigma=sigma).mean
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"mean": mean}, path)
        return Mean(load_file(path)["mean"])


def comparisons(net: nn.Module, card: Card) -> dict[str, Comparison]:
    """Compare a network with its formula on test images and on training images, and return both."""
    formula, found = KeptFormula(card), {}
    for i, split in enumerate(("test", "train")):
        x, noise = card.problem.images(split)[:IMAGES], torch.Generator().manual_seed(SEED + i)
        found[split] = compare(net, formula, x, sigmas=SIGMAS, generator=noise)
    return found


def measured(card: Card, found: dict[str, Comparison]) -> Card:
    """Return a card with the decibels of its comparisons, means over images by split and noise level."""

    def by_sigma(decibels: Tensor) -> dict[str, float]:
        return {f"{s:g}": round(db, 2) for s, db in zip(SIGMAS, decibels.mean(1).tolist(), strict=True)}

    return replace(
        card,
        psnr={split: by_sigma(each.psnr_network_formula) for split, each in found.items()},
        psnr_to_truth={
            split: {"network": by_sigma(each.psnr_network_truth), "formula": by_sigma(each.psnr_formula_truth)}
            for split, each in found.items()
        },
    )


# ---- Tables ---------------------------------------------------------------------------------------------------------


def decibels(values: Tensor) -> list[str]:
    """Return a mean over images and the half-width of its 95 % interval, in dB, per noise level."""
    mean, half_width = interval(values)
    return [f"{m:.1f} ± {w:.1f}" for m, w in zip(mean.tolist(), half_width.tolist(), strict=True)]


def signed(values: Tensor, places: int = 1) -> list[str]:
    """Return mean differences over images, with their sign, and half-widths, per noise level."""
    mean, half_width = interval(values)
    return [f"{m:+.{places}f} ± {w:.{places}f}" for m, w in zip(mean.tolist(), half_width.tolist(), strict=True)]


def gains(found: Comparison) -> list[str]:
    """Return how many dB nearer to the truth the network is than the formula, with the interval of the difference."""
    return signed(found.psnr_network_truth - found.psnr_formula_truth)


def excesses(found: Comparison) -> list[str]:
    """Return the mean squared distance in thousandths of the formula's risk: what more training would bring (S5.3)."""
    share = 1e3 * found.network_formula.mean(1) / found.formula_truth.mean(1)
    return [f"{each:.3g}" for each in share.tolist()]


class Table(NamedTuple):
    """A heading, what it says, the split, and the entries of a row by noise level."""

    heading: str
    text: str
    split: str
    entries: Callable[[Comparison], list[str]]


SHOWN = (
    Table(
        "Network against formula, test images",
        "PSNR in dB (peak 1), mean over images ± half-width of the 95 % interval.",
        "test",
        lambda found: decibels(found.psnr_network_formula),
    ),
    Table(
        "Network against formula, training images",
        "As above, on images that both were made from.",
        "train",
        lambda found: decibels(found.psnr_network_formula),
    ),
    Table(
        "Formula against truth, test images",
        "PSNR in dB.",
        "test",
        lambda found: decibels(found.psnr_formula_truth),
    ),
    Table(
        "Network less formula against truth, test images",
        "PSNR of the network less that of the formula, in dB: positive where the network is nearer to the truth.",
        "test",
        gains,
    ),
    Table(
        "Optimisation excess, training images",
        "Mean squared distance of network and formula, in thousandths of the formula's risk: by S5.3 it is the excess "
        "of the training loss, what more training or capacity would bring.",
        "train",
        excesses,
    ),
)


def markdown(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a table of networks and noise levels."""
    lines = ["| network | " + " | ".join(f"σ = {sigma:g}" for sigma in SIGMAS) + " |"]
    lines.append("| --- |" + " ---: |" * len(SIGMAS))
    return "\n".join(lines + [f"| {name} | {' | '.join(entries)} |" for name, entries in rows])


def of_the_grid() -> list[str]:
    """Return the names of the cells of the grid; other networks that ship are beside it."""
    from train import grid  # not at the top: that script measures by this one

    return [cell.name for cell in grid()]


def summary(cards: Sequence[Card]) -> str:
    """Return how many of the aims are met, over all local networks of the grid, and which cells miss theirs."""
    grid = of_the_grid()
    local = [card for card in cards if card.patch_size is not None and card.name in grid]
    lines = []
    for split in ("test", "train"):
        values = [db for card in local for db in card.psnr[split].values()]
        every = [db for card in cards if card.name in grid for db in card.psnr[split].values()]
        quartiles = ", ".join(f"{each:.1f}" for each in statistics.quantiles(values, n=4))
        lines.append(
            f"* {split} images: median {statistics.median(values):.1f} dB over {len(local)} local networks and "
            f"{len(SIGMAS)} noise levels (aim {MEDIAN_AIM:g}); quartiles {quartiles}."
            + (f" With the global ones, {statistics.median(every):.1f} dB." if len(every) > len(values) else "")
        )
    missed = [
        f"{card.name} at σ = {sigma}, {split}: {db:.1f} dB"
        for card in local
        for split in ("test", "train")
        for sigma, db in card.psnr[split].items()
        if db < CELL_AIM and float(sigma) >= CELL_FROM
    ]
    lines.append(f"* Under {CELL_AIM:g} dB at σ ≥ {CELL_FROM:g}: {'; '.join(missed) or 'none'}.")
    absent = [name for name in grid if name not in {card.name for card in cards}]
    lines.append(f"* Not trained: {', '.join(absent) or 'none'}.")
    return "\n".join(lines)


def figures(found: Comparison) -> dict[str, Any]:
    """Return every figure of a comparison, by name: means over images and half-widths of their intervals."""
    names = ("psnr_network_formula", "psnr_network_truth", "psnr_formula_truth", "relative_error")
    told = {}
    for name in (*names, "relative_squared_error", "network_formula", "network_truth", "formula_truth", "excess"):
        mean, half_width = interval(getattr(found, name))
        told[name] = {"mean": mean.tolist(), "half_width": half_width.tolist()}
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, compare, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("words", nargs="*", help="print the rows of networks whose names contain all of these")
    words = parser.parse_args(arguments).words
    cards, found = [], {}
    for name in (card.name for card in le.pretrained.cards(WEIGHTS) if all(word in card.name for word in words)):
        net, card = le.pretrained.load(name, WEIGHTS)
        found[name] = comparisons(net, card)
        cards.append(measured(card, found[name]))
        if not words:
            save(net, cards[-1], WEIGHTS)
    parts = [
        "# Networks and their formulas",
        "Written by `python scripts/theory_vs_practice.py`: every shipped network on fresh noise, on "
        f"{IMAGES} test images and {IMAGES} training images. docs/theory_vs_practice.json holds every figure.",
        summary(cards),
    ]
    for table in SHOWN:
        rows = [(name, table.entries(each[table.split])) for name, each in found.items()]
        parts += [f"## {table.heading}", table.text, markdown(rows)]
    text = "\n\n".join(parts) + "\n"
    if words:
        print(text)
        return
    told = {name: {split: figures(each) for split, each in both.items()} for name, both in found.items()}
    TABLES.write_text(text)
    TABLES.with_suffix(".json").write_text(json.dumps({"sigmas": SIGMAS, "networks": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
