"""What the estimators are asked: images, one or several noisy measurements of others, and the noise."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lemmse as le

__all__ = ["Problem", "Scene", "colours", "denoising", "fashion", "greys", "photos"]

CIFAR = "cifar10_train_3000.npz"
"""In the folder that LEMMSE_DATA names: ``images`` (D, 32, 32, 3), uint8."""


@dataclass(frozen=True)
class Problem:
    """Images (D, c, h, w), measurements y (b, c, h, w), the noise's ``sigma``; ``name`` of the images."""

    images: Tensor
    y: Tensor
    sigma: float
    name: str

    def __str__(self) -> str:
        d, c, h, w = self.images.shape
        return f"D = {d} images of {h}×{w}×{c} ({self.name}), float32, σ = {self.sigma:g}"


def denoising(images: Tensor, x: Tensor, sigma: float, name: str) -> Problem:
    """Return the problem of denoising x (b, c, h, w), with the noise of a fixed seed."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return Problem(images, x + sigma * noise, sigma, name)


def fashion(count: int, sigma: float, queries: int = 1) -> Problem:
    """Return the denoising of 28×28 test images of Fashion-MNIST."""
    images, x = le.data.fashion_mnist("train", count), le.data.fashion_mnist("test", queries)
    return denoising(images, x, sigma, "Fashion-MNIST")


def photos(count: int, size: int, sigma: float, queries: int = 1) -> Problem:
    """Return the denoising of colour crops of photographs; those of the test overlap with none of the others."""
    images = le.data.photo_crops("train", size=size, count=count)
    return denoising(images, le.data.photo_crops("test", size=size, count=queries), sigma, "crops of 4 photographs")


@dataclass(frozen=True)
class Scene:
    """Images (D, c, h, w), one other x (1, c, h, w) that is to be estimated, and the ``name`` of their source."""

    images: Tensor
    x: Tensor
    name: str

    def first(self, count: int) -> "Scene":
        """Return the scene with so many of its images."""
        return Scene(self.images[:count], self.x, self.name)

    def measured(self, physics: Any, sigma: float) -> Tensor:
        """Return y = A x + σ n, with the noise of a fixed seed."""
        clean = physics.A(self.x)
        return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def __str__(self) -> str:
        d, c, h, w = self.images.shape
        return f"D = {d} images of {h}×{w}×{c} ({self.name})"


def greys(count: int) -> Scene:
    """Return images of Fashion-MNIST, 28×28."""
    return Scene(le.data.fashion_mnist("train", count), le.data.fashion_mnist("test", 1), "Fashion-MNIST")


def colours(count: int, size: int = 32) -> Scene:
    """Return colour images: at 32×32 those of CIFAR-10 where LEMMSE_DATA has them, else crops of photographs."""
    file = Path(os.environ.get("LEMMSE_DATA", ".")) / CIFAR
    if size == 32 and "LEMMSE_DATA" in os.environ and file.is_file():
        with np.load(file) as archive:
            images = torch.from_numpy(archive["images"][: count + 1]).movedim(3, 1) / 255
        return Scene(images[:count].contiguous(), images[count:].contiguous(), "CIFAR-10")
    images, x = le.data.photo_crops("train", size=size, count=count), le.data.photo_crops("test", size=size, count=1)
    return Scene(images, x, "crops of 4 photographs")
