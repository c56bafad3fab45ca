"""Where does the formula stop predicting networks: ``python scripts/limits.py`` writes docs/limits.md, and .json.

From the networks of ``scripts/train.py`` and its curves, on the images, noise levels and noise of
``scripts/theory_vs_practice.py``, whose kept formulas it shares: fewer images and other windows, density, images of
another kind, pre-inverses that know the operator, and whether locality comes from the architecture.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lemmse as le
from lemmse.comparison import Comparison, compare, interval, rank_correlation
from lemmse.pretrained import Card
from theory_vs_practice import IMAGES, ROOT, SEED, SIGMAS, WEIGHTS, KeptFormula, comparisons, decibels, signed

TABLES = ROOT / "docs" / "limits.md"
NAME = "fashion_mnist-denoising-PatchMLP-p5"
DENSITY_IMAGES = 10


class Row(NamedTuple):
    """A row of a table: what it is of, and a number per noise level and image."""

    name: str
    values: Tensor
    say: Callable[[Tensor], list[str]] = decibels


class Section(NamedTuple):
    """A heading, what it says, and its rows."""

    heading: str
    text: str
    rows: list[Row]

    def markdown(self) -> str:
        """Return heading, text and table."""
        lines = ["| | " + " | ".join(f"σ = {sigma:g}" for sigma in SIGMAS) + " |", "| --- |" + " ---: |" * len(SIGMAS)]
        lines += [f"| {row.name} | {' | '.join(row.say(row.values))} |" for row in self.rows]
        return "\n\n".join([f"## {self.heading}", self.text, "\n".join(lines)])

    def figures(self) -> dict[str, Any]:
        """Return means and half-widths of all rows."""
        both = {row.name: interval(row.values) for row in self.rows}
        return {name: {"mean": m.tolist(), "half_width": w.tolist()} for name, (m, w) in both.items()}


class Shipped:
    """All networks there are, and what they were found to be, each once."""

    def __init__(self) -> None:
        self.cards = {card.name: card for card in le.pretrained.cards(WEIGHTS)}
        self._found: dict[str, dict[str, Comparison]] = {}

    def net(self, name: str) -> torch.nn.Module:
        """Load a network."""
        return le.pretrained.load(name, WEIGHTS)[0]

    def found(self, name: str) -> dict[str, Comparison]:
        """Return the comparisons of a network with its own formula, by split."""
        if name not in self._found:
            self._found[name] = comparisons(self.net(name), self.cards[name])
        return self._found[name]

    def against(self, name: str, formula: Card, x: Tensor) -> Comparison:
        """Return the comparison of a network with some formula, on some images."""
        noise = torch.Generator().manual_seed(SEED)
        return compare(self.net(name), KeptFormula(formula), x, sigmas=SIGMAS, generator=noise)


def curves(shipped: Shipped) -> list[Section]:
    """Return how match and truths change with the number of images, the side of windows, and the seed."""
    alike = [card for card in shipped.cards.values() if card.name.startswith("fashion_mnist-denoising-PatchMLP-p")]
    by_count = sorted((card for card in alike if card.patch_size == 5), key=lambda card: card.problem.count)
    by_side = sorted((card for card in alike if card.problem.count == 1000), key=lambda card: card.patch_size)
    seeds = [card for card in by_count if card.problem.count == 1000]
    families = {
        "Number of training images": [card for card in by_count if card.name == NAME or card.problem.count < 1000],
        "Side of the windows": [card for card in by_side if "seed" not in card.name],
        "Three seeds": seeds,
    }
    sections = []
    for heading, cards in families.items():
        rows = []
        for card in cards:
            found, seed = shipped.found(card.name)["test"], card.name.partition("-seed")[2]
            of = f"D = {card.problem.count}, {card.patch_size} × {card.patch_size}{seed and f', seed {seed}'}"
            rows += [
                Row(f"{of}: network to formula", found.psnr_network_formula),
                Row(f"{of}: network to truth", found.psnr_network_truth),
                Row(f"{of}: formula to truth", found.psnr_formula_truth),
            ]
        sections.append(Section(heading, "PSNR in dB on test images; PatchMLP, Fashion-MNIST, denoising.", rows))
    return sections


def density(shipped: Shipped) -> Section:
    """Return the rank correlation of a pixel's error with minus the log-density of its window, image by image."""
    alike: dict[le.pretrained.Problem, list[Card]] = {}
    for card in shipped.cards.values():
        if card.patch_size == 5 and card.problem.count == 1000 and "seed" not in card.name:
            alike.setdefault(card.problem, []).append(card)
    rows = []
    for problem, cards in alike.items():
        if (problem.data, problem.pre_inverse) == ("fashion_mnist", "identity"):
            found = _correlations(shipped, cards)
            rows += [Row(card.name, found[:, :, i], partial(signed, places=2)) for i, card in enumerate(cards)]
    text = (
        "Spearman's rank correlation, over the pixels of an image, of |network − formula| and −ln p of the window "
        f"(S5.10): mean ± half-width over {DENSITY_IMAGES} test images."
    )
    return Section("Errors and density", text, rows)


@torch.no_grad()
def _correlations(shipped: Shipped, cards: list[Card]) -> Tensor:
    """Return one per noise level, image and network, (s, b, n), of networks of one formula."""
    problem, estimator, noise = cards[0].problem, cards[0].estimator(), torch.Generator().manual_seed(SEED)
    y = estimator.physics.A(problem.images("test")[:DENSITY_IMAGES])
    found = []
    for sigma in SIGMAS:
        noisy = y + sigma * torch.randn(y.shape, generator=noise)
        posterior = estimator(noisy, sigma=sigma)
        nats = estimator.log_density(posterior, sigma)
        answers = [shipped.net(card.name)(estimator.pre_inverted(noisy), sigma) for card in cards]
        errors = [(answer - posterior.mean).abs().mean(1) for answer in answers]
        found.append([[rank_correlation(error[i], -nats[i]) for error in errors] for i in range(len(y))])
    return torch.tensor(found)


def other_data(shipped: Shipped) -> Section:
    """Return how networks and formulas of one set of images do on another."""
    greys = le.data.photo_crops("test", size=32, count=IMAGES).mean(1, keepdim=True)[:, :, 2:-2, 2:-2]
    colours = le.data.fashion_mnist("test", IMAGES).repeat(1, 3, 1, 1)
    colours = torch.nn.functional.pad(colours, (2, 2, 2, 2))
    rows = []
    for name, x, of in (
        (NAME, greys, "made from garments, asked for photographs"),
        ("photo_crops-denoising-PatchMLP-p5", colours, "made from photographs, asked for garments"),
    ):
        if name in shipped.cards:
            found = shipped.against(name, shipped.cards[name], x)
            rows += [
                Row(f"{of}: network to formula", found.psnr_network_formula),
                Row(f"{of}: network to truth", found.psnr_network_truth),
                Row(f"{of}: formula to truth", found.psnr_formula_truth),
            ]
    text = (
        f"PSNR in dB on {IMAGES} test images of the other set: grey photographs, and garments in three equal channels."
    )
    return Section("Other data", text, rows)


def awareness(shipped: Shipped) -> list[Section]:
    """Return what a pre-inverse that knows the operator brings to network and formula, on both splits."""
    sections = []
    for split in ("test", "train"):
        rows = []
        for name, card in shipped.cards.items():
            if card.problem.pre_inverse == "identity" or card.architecture != "PatchMLP":
                continue
            agnostic = name.replace(card.problem.task, card.problem.operator)
            if agnostic in shipped.cards:
                aware, blind = shipped.found(name)[split], shipped.found(agnostic)[split]
                for who in ("network", "formula"):
                    gain = getattr(aware, f"psnr_{who}_truth") - getattr(blind, f"psnr_{who}_truth")
                    rows.append(Row(f"{card.problem.data}, {card.problem.task}: {who}", gain, signed))
        text = "PSNR to the truth with B as named, less that with B = Id, in dB, on the same noise: mean ± half-width."
        sections.append(Section(f"Aware less agnostic, {split} images", text, rows))
    return sections


def locality(shipped: Shipped) -> Section:
    """Return which formula is nearest to networks that see the whole image, and to one that does not."""
    formulas = {
        f"local, {card.patch_size} × {card.patch_size}": card
        for card in shipped.cards.values()
        if card.architecture == "PatchMLP" and card.problem.count == 1000 and "seed" not in card.name
        if (card.problem.data, card.problem.task) == ("fashion_mnist", "denoising")
    }
    whole = {name: f"fashion_mnist-denoising-{name}" for name in ("GlobalCNN", "GlobalMLP", "GlobalMLP-shifted")}
    whole = {short: name for short, name in whole.items() if name in shipped.cards}
    formulas |= {f"that of {short}": shipped.cards[name] for short, name in whole.items()}
    x = le.data.fashion_mnist("test", IMAGES)
    rows = [
        Row(f"{short} to the formula {of}", shipped.against(name, card, x).psnr_network_formula)
        for short, name in {**whole, "PatchMLP 5 × 5": NAME}.items()
        for of, card in formulas.items()
    ]
    text = "PSNR of network against several formulas, in dB, on test images of Fashion-MNIST, denoising (S11, E6, E9)."
    return Section("Locality, from the architecture or from the data", text, rows)


def sections() -> list[Section]:
    """Return all tables."""
    shipped = Shipped()
    return [*curves(shipped), density(shipped), other_data(shipped), *awareness(shipped), locality(shipped)]


def main() -> None:
    """Measure and write."""
    found: Sequence[Section] = sections()
    head = [
        "# Where the formula stops predicting networks",
        f"Written by `python scripts/limits.py`, on fresh noise and {IMAGES} images each. docs/limits.json holds every "
        "figure.",
    ]
    TABLES.write_text("\n\n".join([*head, *(section.markdown() for section in found)]) + "\n")
    told = {section.heading: section.figures() for section in found}
    TABLES.with_suffix(".json").write_text(json.dumps({"sigmas": SIGMAS, "tables": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
