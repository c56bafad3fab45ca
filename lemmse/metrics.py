"""How far an estimate is from its reference. Every function gives one number per image."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["psnr", "relative_error", "relative_squared_error"]


def psnr(x_hat: Float[Tensor, "b ..."], x: Float[Tensor, "#b ..."], peak: float = 1.0) -> Float[Tensor, " b"]:
    """Compare images and return the peak signal-to-noise ratio of each, in dB, shape (b,).

    10 log₁₀(peak² / mean (x̂ - x)²), the mean over pixels and channels; ``inf`` for equal images. Over a set, average
    the decibels (§0 of the protocol, S11). Raises ``ValueError`` when the shapes differ.

    >>> psnr(torch.full((1, 1, 2, 2), 0.6), torch.full((1, 1, 2, 2), 0.5))
    tensor([20.0000])
    """
    return -10 * torch.log10(_difference(x_hat, x).square().flatten(1).mean(1) / peak**2)


def relative_error(x_hat: Float[Tensor, "b ..."], x: Float[Tensor, "#b ..."]) -> Float[Tensor, " b"]:
    """Compare images and return ‖x̂ - x‖ / ‖x‖ of each, dimensionless, shape (b,).

    Not finite for a black reference. Raises ``ValueError`` where shapes differ, unless ``x`` is a batch of one.
    """
    return relative_squared_error(x_hat, x).sqrt()


def relative_squared_error(x_hat: Float[Tensor, "b ..."], x: Float[Tensor, "#b ..."]) -> Float[Tensor, " b"]:
    """Compare images and return ‖x̂ - x‖² / ‖x‖² of each, dimensionless, shape (b,).

    Not finite for a black reference. Raises ``ValueError`` where shapes differ, unless ``x`` is a batch of one.
    """
    return _difference(x_hat, x).square().flatten(1).sum(1) / x.square().flatten(1).sum(1)


def _difference(x_hat: Tensor, x: Tensor) -> Tensor:
    if x_hat.shape[1:] != x.shape[1:] or x.shape[0] not in (1, x_hat.shape[0]):
        raise ValueError(
            f"the estimate has shape {tuple(x_hat.shape)}, its reference {tuple(x.shape)}: they must agree, or the "
            "reference must be a batch of one."
        )
    return x_hat - x
