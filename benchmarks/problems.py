"""What the estimators are asked: images, one or several noisy measurements of others, and the noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

import lemmse as le

__all__ = ["Problem", "denoising", "fashion", "photos"]


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
