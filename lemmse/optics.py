"""Point-spread functions: kernels of shape (h, w), non-negative, with sum one."""

import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = ["gaussian_psf"]


def gaussian_psf(std: float, size: int | tuple[int, int]) -> Float64[Tensor, "kh kw"]:
    """Sample a Gaussian and return it as a kernel of the given size, centred at (kh//2, kw//2), non-negative, sum one.

    ``std`` is in pixels. Raises ``ValueError`` unless ``std`` is positive and the sides are at least one pixel.

    >>> gaussian_psf(1.0, size=(1, 3))
    tensor([[0.2741, 0.4519, 0.2741]], dtype=torch.float64)
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if not std > 0 or min(sides) < 1:
        raise ValueError(f"gaussian_psf needs std > 0 and a size of at least 1 pixel: got std={std}, size={size}.")
    row, column = (
        torch.exp(-0.5 * ((torch.arange(side, dtype=torch.float64) - side // 2) / std) ** 2) for side in sides
    )
    psf = row[:, None] * column
    return psf / psf.sum()
