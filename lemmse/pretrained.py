"""Small trained networks that ship with the package, each with a card that says what it was trained on.

``cards()`` lists them, ``load(name)`` returns a network ready for use, and its card. A card names a ``Problem``, images
and operators by words that JSON can hold, from which the formula that the network must match is rebuilt:

    net, card = le.pretrained.load("fashion_mnist-denoising-PatchMLP-p5")
    x = card.problem.images("test", count=1)
    y = card.problem.physics.A(x) + 0.1 * torch.randn(x.shape, generator=generator)
    card.estimator()(y, sigma=0.1).mean, net(card.problem.pre_inverted(y), 0.1)

Weights are safetensors, in half precision; nothing is loaded that does not fit the checksum of its card.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from . import data
from .estimators import MMSE, EquivariantMMSE, LocalEquivariantMMSE
from .networks import GlobalMLP, Network, rebuild
from .operators import Blur, Denoising, Inpainting, PseudoInverse, Tikhonov, center_mask
from .optics import gaussian_psf

__all__ = ["Card", "Problem", "cards", "load", "save"]

HOLE = 15
"""Pixels along a side of the hole of the problem "inpainting"."""

DATA = {
    "fashion_mnist": data.fashion_mnist,
    "photo_crops": lambda split, count: data.photo_crops(split, size=32, count=count),
    "photo_crops_64": lambda split, count: data.photo_crops(split, size=64, count=count),
}
"""Images by their names on cards: functions of a split and a count."""

OPERATORS = {
    "denoising": lambda h, w: Denoising(),
    "inpainting": lambda h, w: Inpainting(center_mask(h, w, side=HOLE)),
    "blur": lambda h, w: Blur(gaussian_psf(1.0, size=9)),
}
"""Operators by their names on cards: functions of the height and width of images."""

PRE_INVERSES = {
    "identity": lambda physics: None,
    "pseudo-inverse": PseudoInverse,
    "tikhonov": lambda physics: Tikhonov(physics, weight=0.01),
}
"""Pre-inverses by their names on cards: functions of the operator."""


@final
@dataclass(frozen=True)
class Problem:
    """Training images, an operator A and a pre-inverse B, named by words: keys of DATA, OPERATORS and PRE_INVERSES.

    ``count`` training images are used, the first. Raises ``ValueError`` for a name that there is not.

    >>> Problem("fashion_mnist", 1000, "blur", "tikhonov")
    Problem(data='fashion_mnist', count=1000, operator='blur', pre_inverse='tikhonov')
    """

    data: str
    count: int
    operator: str
    pre_inverse: str = "identity"

    def __post_init__(self) -> None:
        for name, known in (("data", DATA), ("operator", OPERATORS), ("pre_inverse", PRE_INVERSES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Problem: {name} is one of {', '.join(map(repr, known))}: got {value!r}.")

    @property
    def task(self) -> str:
        """Return operator and pre-inverse in a word, "inpainting-pseudo-inverse"; the identity goes without saying."""
        return self.operator if self.pre_inverse == "identity" else f"{self.operator}-{self.pre_inverse}"

    def images(self, split: str = "train", count: int | None = None) -> Float[Tensor, "D c h w"]:
        """Load images and return them, (D, c, h, w) in [0, 1]: by default those that were trained on."""
        if count is None and split == "train":
            count = self.count
        return DATA[self.data](split, count=count)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (c, h, w) of its images."""
        return tuple(self.images("train", count=1).shape[1:])

    @cached_property
    def physics(self) -> Any:
        """Return the operator A."""
        return OPERATORS[self.operator](*self.image_shape[1:])

    @cached_property
    def B(self) -> Any:
        """Return the pre-inverse, ``None`` for the identity."""
        return PRE_INVERSES[self.pre_inverse](self.physics)

    def pre_inverted(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Return v = B y, what a network sees of measurements."""
        return y if self.B is None else self.B.A(y)


@final
@dataclass(frozen=True)
class Card:
    """What a network is, what it was trained on and how, and how near it came.

    ``network`` is the ``config`` that rebuilds it, ``training`` the arguments of ``training.train`` with the seed and
    the wall time in ``seconds``. What was measured on fresh noise, in decibels by σ, for "test" and "train" images:
    ``psnr`` of network against formula, and ``psnr_to_truth`` of "network" and "formula". ``sha256`` is that of the
    file of weights.
    """

    name: str
    problem: Problem
    network: Mapping[str, Any]
    parameters: int
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    psnr: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    psnr_to_truth: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    file_bytes: int = 0
    sha256: str = ""

    @property
    def architecture(self) -> str:
        """Return the name of the network's class."""
        return self.network["architecture"]

    @property
    def patch_size(self) -> int | None:
        """Return the side of the window that the network sees, ``None`` for the whole image."""
        return self.network.get("patch_size")

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Return the noise levels that it was trained on, (low, high)."""
        return tuple(self.network["sigma_range"])

    def estimator(self, **how: Any) -> MMSE | EquivariantMMSE | LocalEquivariantMMSE:
        """Return the formula that the network must match, over the images that it was trained on.

        The estimator of the class of functions that the architecture is in: ``LocalEquivariantMMSE`` of its patch size
        and boundary, ``EquivariantMMSE`` for a global CNN, and ``MMSE`` for a global MLP, over all shifts of the images
        where it was trained on shifted ones. Where A commutes with all shifts and B = Id that is ``EquivariantMMSE``,
        which is much quicker (S4.3). ``how`` goes to its constructor (``memory_limit``, ...).
        """
        images, physics = self.problem.images(), self.problem.physics
        if self.patch_size is not None:
            facts = {"patch_size": self.patch_size, "boundary": self.network["boundary"]}
            return LocalEquivariantMMSE(images, physics, pre_inverse=self.problem.B, **facts, **how)
        shifted = bool(self.training.get("shifted"))
        if self.architecture != GlobalMLP.__name__ or (
            shifted and self.problem.B is None and physics.shift_period == 1
        ):
            return EquivariantMMSE(images, physics, pre_inverse=self.problem.B, **how)
        return MMSE(data.ShiftedImages(images) if shifted else images, physics, pre_inverse=self.problem.B, **how)


def cards(folder: str | os.PathLike | None = None) -> list[Card]:
    """Return the cards of all networks that ship with the package, or that a folder holds, by name.

    Raises ``ValueError`` that names the file of a card that cannot be read.
    """
    return [_read_card(path) for path in sorted(_folder(folder).iterdir(), key=str) if path.name.endswith(".json")]


def load(name: str, folder: str | os.PathLike | None = None) -> tuple[Network, Card]:
    """Load the network of this name and return it, in eval mode and single precision, with its card.

    Raises ``ValueError`` for a name that there is not, and where weights do not fit the checksum of their card, or the
    network that it describes: nothing is loaded then. ``folder`` holds networks that ``save`` wrote; by default, those
    that ship with the package.
    """
    from safetensors.torch import load as tensors_in  # not at the top: `import lemmse` stays as light as torch

    home = _folder(folder)
    if not (home / f"{name}.json").is_file():
        known = ", ".join(card.name for card in cards(folder)) or "none at all"
        raise ValueError(f"There is no network {name!r}. There are: {known}.")
    card = _read_card(home / f"{name}.json")
    path = home / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The weights of {name!r} cannot be read: {error}. Install the package anew.") from error
    if (found := hashlib.sha256(content).hexdigest()) != card.sha256:
        raise ValueError(
            f"The weights of {name!r} do not fit their card: SHA-256 {found[:12]}… in place of {card.sha256[:12]}…, "
            f"{len(content)} bytes in place of {card.file_bytes}. The file was cut short or changed: take both anew."
        )
    net = rebuild(card.network)
    weights = {key: value.float() for key, value in tensors_in(content).items()}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The weights of {name!r} do not fit the network of their card: {error}") from error
    return net.eval(), card


def save(net: Network, card: Card, folder: str | os.PathLike) -> Card:
    """Write weights, rounded to half precision, and their card into a folder, and return the card as written.

    The card gets the checksum and the size of the weights. Each file is written under another name and moved into
    place, the card last: what is found is whole.
    """
    from safetensors.torch import save as as_bytes

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = as_bytes({key: value.detach().cpu().half().contiguous() for key, value in net.state_dict().items()})
    facts = {"file_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    card = replace(card, network=net.config, parameters=sum(p.numel() for p in net.parameters()), **facts)
    _write(folder / f"{card.name}.safetensors", content)
    _write(folder / f"{card.name}.json", (json.dumps(asdict(card), indent=2) + "\n").encode())
    return card


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _folder(folder: str | os.PathLike | None) -> Any:
    return resources.files(__package__) / "weights" if folder is None else Path(folder)


def _read_card(path: Any) -> Card:
    try:
        facts = json.loads(path.read_text())
        return Card(**{**facts, "problem": Problem(**facts["problem"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name} is no card of a network: {error}. Take the network and its card anew."
        ) from error
