"""Float32 beside float64: the local-equivariant estimate of one measurement in both, how far apart they are, in dB.

The images, the measurement and the noise are those of float32; double precision only computes with them. Targets are
set for the pre-inverses that copy what they see; those that amplify are reported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import lemmse as le

from .problems import Scene, colours, greys
from .table import Effort, Verdict, aligned, in_markdown

SIGMAS = (0.01, 0.05, 0.1, 0.3, 1.0)

TARGETS = (50.0, 60.0, 60.0, 60.0, 60.0)
"""PSNR of single against double precision, in dB, at those sigmas."""


@dataclass(frozen=True)
class Line:
    """A pre-inverse: ``operators(h, w)`` makes physics and pre-inverse; ``held`` says that the targets apply."""

    label: str
    patch_size: int
    operators: Callable[[int, int], tuple[Any, Any]]
    held: bool = False


def decibels(scene: Scene, line: Line) -> list[float]:
    """Return the PSNR of the float32 estimate against that of float64 at each sigma."""
    physics, pre_inverse = line.operators(*scene.x.shape[2:])
    y = torch.cat([scene.measured(physics, sigma) for sigma in SIGMAS])
    means = []
    for dtype in (torch.float32, torch.float64):
        estimator = le.LocalEquivariantMMSE(scene.images.to(dtype), physics, line.patch_size, pre_inverse=pre_inverse)
        means.append(estimator(y.to(dtype), sigma=torch.tensor(SIGMAS)).mean.double())
    return le.metrics.psnr(*means).tolist()


@dataclass(frozen=True)
class Precision:
    """The pre-inverses that are tried on one scene."""

    load: Callable[[], Scene]
    lines: tuple[Line, ...]

    def measured(self, effort: Effort) -> "PrecisionTable":
        """Return the table; nothing is timed."""
        if effort.threads is not None:
            torch.set_num_threads(effort.threads)
        scene = self.load()
        return PrecisionTable(str(scene), self.lines, tuple(tuple(decibels(scene, line)) for line in self.lines))


@dataclass(frozen=True)
class PrecisionTable:
    """The PSNR of every line at each sigma, and whether it keeps the targets."""

    scene: str
    lines: tuple[Line, ...]
    found: tuple[tuple[float, ...], ...]

    @property
    def title(self) -> str:
        """Return what the numbers are."""
        return f"{self.scene}: PSNR of float32 against float64, dB"

    @property
    def verdicts(self) -> list[Verdict]:
        """Return all targets as they came out."""
        return [
            Verdict(
                self.title,
                f"{line.label}, P = {line.patch_size}, σ = {sigma:g}: ≥ {target:g} dB",
                f"{value:.1f} dB",
                value >= target,
            )
            for line, values in zip(self.lines, self.found, strict=True)
            for sigma, value, target in zip(SIGMAS, values, TARGETS, strict=True)
            if line.held
        ]

    def cells(self) -> list[list[str]]:
        """Return header and rows as text."""
        rows = [
            [line.label, str(line.patch_size), *(f"{value:.0f}" for value in values), self._verdict(line, values)]
            for line, values in zip(self.lines, self.found, strict=True)
        ]
        return [["B", "P", *(f"σ = {sigma:g}" for sigma in SIGMAS), "targets"], *rows]

    def _verdict(self, line: Line, values: tuple[float, ...]) -> str:
        if not line.held:
            return "reported"
        kept = all(value >= target for value, target in zip(values, TARGETS, strict=True))
        return f"≥ {', '.join(f'{target:g}' for target in TARGETS)}: {'met' if kept else 'MISSED'}"

    def __str__(self) -> str:
        return aligned(self.title, self.cells())

    def markdown(self) -> str:
        """Return the table in Markdown, under a heading."""
        return in_markdown(self.title, self.cells())


# ------------------------------------------------------------------------------------------------------------ operators


def identity(h: int, w: int) -> tuple[Any, Any]:
    """Return denoising."""
    return le.Denoising(), None


def hole(h: int, w: int) -> tuple[Any, Any]:
    """Return a centre hole of 15×15 pixels and its A⁺."""
    physics = le.Inpainting(le.center_mask(h, w, side=15))
    return physics, le.PseudoInverse(physics)


def epsilon_hole(h: int, w: int) -> tuple[Any, Any]:
    """Return the centre hole and its invertible stand-in with ε = 0.01."""
    mask = le.center_mask(h, w, side=15)
    return le.Inpainting(mask), le.EpsilonInverse(mask, 0.01)


def inverted_blur(h: int, w: int) -> tuple[Any, Any]:
    """Return a Gaussian blur of 1 pixel and its A⁺."""
    physics = _blur()
    return physics, le.PseudoInverse(physics)


def regularised_blur(h: int, w: int) -> tuple[Any, Any]:
    """Return the blur and its Tikhonov inverse."""
    physics = _blur()
    return physics, le.Tikhonov(physics, 0.01)


def halving(h: int, w: int) -> tuple[Any, Any]:
    """Return a downsampling by 2 after the blur, and its adjoint."""
    physics = le.Downsampling(2, _PSF)
    return physics, le.Adjoint(physics)


_PSF = le.optics.gaussian_psf(1.0, size=9)


def _blur() -> le.Blur:
    return le.Blur(_PSF)


def lines(held_at: tuple[int, ...]) -> tuple[Line, ...]:
    """Return the pre-inverses at P = 5, and those with targets at all the patch sizes."""
    return (
        *(Line("B = Id", patch_size, identity, held=True) for patch_size in held_at),
        *(Line("centre hole, A⁺", patch_size, hole, held=True) for patch_size in held_at),
        Line("centre hole, ε-inverse, ε = 0.01", 5, epsilon_hole),
        Line("blur, A⁺", 5, inverted_blur),
        Line("blur, Tikhonov 0.01", 5, regularised_blur),
        Line("blur and downsampling by 2, Aᵀ", 5, halving),
    )


def groups(quick: bool) -> tuple[Precision, ...]:
    """Return greys and colours, 60 images of each, or a few greys."""
    if quick:
        return (Precision(partial(greys, 10), lines((5,))),)
    return (Precision(partial(greys, 60), lines((5, 11))), Precision(partial(colours, 60), lines((5, 11))))
