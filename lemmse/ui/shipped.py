"""Networks that ship, beside their formulas, at one noise level and image: what explorables show, and remember."""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lemmse import metrics, pretrained
from lemmse.estimators import Estimator
from lemmse.figures import Image, SignedMap
from lemmse.pretrained import Card, Problem
from lemmse.reductions import Posterior
from lemmse.ui.threads import one_thread

__all__ = [
    "IMAGES",
    "SIGMAS",
    "Measured",
    "by_formula",
    "by_network",
    "card_named",
    "compared",
    "distances",
    "estimator",
]
__all__ += ["forget", "measured", "posterior", "rms", "said", "seen"]

SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Noise levels at which shipped networks were measured."""

IMAGES = {"test image 58": ("test", 58), "test image 119": ("test", 119), "test image 45": ("test", 45)}
IMAGES |= {"training image 3": ("train", 3)}
"""Images that readers can choose: split and index."""

LIMIT = 0.2  # of intensity, where the map of differences has its full colour
EVEN = 0.1  # dB below which two estimates count as equally good
MEMORY_LIMIT = 96 * 2**20  # bytes: a notebook has other things to hold, and larger blocks are no quicker


class Measured(NamedTuple):
    """A true image, its measurement, and what networks and formulas see of it."""

    x: Float[Tensor, "1 c h w"]
    y: Float[Tensor, "1 c h w"]
    v: Float[Tensor, "1 c h w"]


def measured(problem: Problem, sigma: float, image: str) -> Measured:
    """Measure one of IMAGES, with the same draw of noise for all noise levels and operators."""
    split, index = IMAGES[image]
    x = problem.images(split, index + 1)[index:]
    y = problem.physics.A(x)
    y = y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return Measured(x, y, problem.pre_inverted(y))


@lru_cache(maxsize=1)
def _cards() -> dict[str, Card]:
    return {card.name: card for card in pretrained.cards()}


def card_named(name: str) -> Card:
    """Return the card of a network that ships."""
    return _cards()[name]


@lru_cache(maxsize=8)
def _network(name: str) -> nn.Module:
    return pretrained.load(name)[0]


@lru_cache(maxsize=4)
def _formula(name: str) -> Estimator:
    return card_named(name).estimator(memory_limit=MEMORY_LIMIT)


def _same_formula(card: Card) -> str:
    """Return the name of the first card with the same formula, so that they share it."""

    def facts(card: Card) -> tuple:
        return card.problem, card.patch_size, card.network.get("boundary")

    return next(name for name, each in _cards().items() if facts(each) == facts(card))


def estimator(card: Card) -> Estimator:
    """Return the formula of a card."""
    return _formula(_same_formula(card))


@lru_cache(maxsize=64)
@torch.no_grad()
@one_thread()
def _network_answer(name: str, sigma: float, image: str) -> Float[Tensor, "1 c h w"]:
    return _network(name)(measured(card_named(name).problem, sigma, image).v, sigma)


@lru_cache(maxsize=64)
def _formula_answer(name: str, sigma: float, image: str) -> Posterior:
    return _formula(name)(measured(card_named(name).problem, sigma, image).y, sigma=sigma)


def by_network(card: Card, sigma: float, image: str) -> Float[Tensor, "1 c h w"]:
    """Return what the network makes of an image."""
    return _network_answer(card.name, sigma, image)


def posterior(card: Card, sigma: float, image: str) -> Posterior:
    """Return the formula's posterior of an image, with all threads there are: it compares some 10⁸ pairs of windows."""
    return _formula_answer(_same_formula(card), sigma, image)


def by_formula(card: Card, sigma: float, image: str) -> Float[Tensor, "1 c h w"]:
    """Return what the formula makes of an image."""
    return posterior(card, sigma, image).mean


def forget() -> None:
    """Forget all networks, formulas and answers."""
    for function in (_cards, _network, _formula, _network_answer, _formula_answer):
        function.cache_clear()


def distances(card: Card, sigma: float, image: str) -> dict[str, float]:
    """Return the PSNRs of network, formula and truth against one another, in dB."""
    x, network, formula = (
        measured(card.problem, sigma, image).x,
        *(f(card, sigma, image) for f in (by_network, by_formula)),
    )
    pairs = {"network–formula": (network, formula), "network–truth": (network, x), "formula–truth": (formula, x)}
    return {name: metrics.psnr(*pair).item() for name, pair in pairs.items()}


def seen(measured: Measured) -> dict[str, Image]:
    """Return the pictures of truth and measurement, and of B y where it is another one."""
    pictures: dict[str, Image] = {"x": measured.x, "y": measured.y}
    return pictures if measured.v is measured.y else pictures | {"B y": measured.v}


def compared(card: Card, sigma: float, image: str) -> dict[str, Image]:
    """Return the pictures of an image, its measurement, and what formula and network make of it."""
    network, formula = by_network(card, sigma, image), by_formula(card, sigma, image)
    pictures = seen(measured(card.problem, sigma, image)) | {"formula": formula, "network": network}
    return pictures | {"network − formula": SignedMap((network - formula).mean(1), LIMIT)}


def rms(decibels: float) -> float:
    """Return the root mean square of a difference, of peak 1, from its PSNR."""
    return 10 ** (-decibels / 20)


def said(distances: dict[str, float]) -> str:
    """Say how far network and formula are apart, against how far both are from the truth, and who is nearer to it."""
    match, network, formula = distances.values()
    ratio = rms(formula) / rms(match)
    if ratio >= 1:
        compared = f"{ratio:.1f} times nearer to one another than the formula is to the truth"
    else:
        compared = f"{1 / ratio:.1f} times further from one another than the formula is from the truth"
    gain = network - formula
    verdict = "equally near to it"
    if abs(gain) > EVEN:
        verdict = f"the network {abs(gain):.1f} dB {'nearer to' if gain > 0 else 'further from'} it"
    return (
        f"agree to {match:.1f} dB: they are {compared}. To the truth the network has {network:.1f} dB and the formula "
        f"{formula:.1f} dB, {verdict}."
    )
