"""Circular windows, their centre pixels, and cyclic shifts."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = [
    "BOUNDARIES",
    "centre_pixels",
    "check_patch_size",
    "extract_patches",
    "padded",
    "shift",
    "shift_each",
    "window_index",
    "windows_at",
]

BOUNDARIES = ("circular", "zero")
"""What a window finds beyond the border: the other side of the image, or zeros."""


def shift(x: Float[Tensor, "... h w"], g: tuple[int, int]) -> Float[Tensor, "... h w"]:
    """Shift images cyclically and return T_g x, with (T_g x)[n] = x[n - g] modulo the size.

    >>> shift(torch.tensor([[1.0, 2.0, 3.0]]), (0, 1))
    tensor([[3., 1., 2.]])
    """
    return torch.roll(x, shifts=tuple(g), dims=(-2, -1))


def shift_each(x: Float[Tensor, "n c h w"], g: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Shift every image by a shift of its own and return T_g x; ``g`` are row-major indices, row · w + column.

    Indices may be negative: -g undoes g.

    >>> shift_each(torch.tensor([1.0, 2.0, 3.0]).expand(2, 1, 1, 3), torch.tensor([1, -1])).flatten(1)
    tensor([[3., 1., 2.],
            [2., 3., 1.]])
    """
    h, w = x.shape[-2:]
    rows, columns = g.abs().div(w, rounding_mode="floor") * g.sign(), (g.abs() % w) * g.sign()
    from_row = (torch.arange(h, device=x.device) - rows[:, None]) % h
    from_column = (torch.arange(w, device=x.device) - columns[:, None]) % w
    source = (from_row[:, :, None] * w + from_column[:, None, :]).flatten(1)
    return x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).unflatten(2, (h, w))


def check_patch_size(patch_size: int, h: int, w: int) -> None:
    """Raise ``ValueError`` unless ``patch_size`` is odd, positive and at most the smaller side of an (h, w) image."""
    whole = hasattr(patch_size, "__index__") and not isinstance(patch_size, bool)
    if not whole or patch_size < 1 or patch_size % 2 == 0 or patch_size > min(h, w):
        raise ValueError(
            f"patch_size must be odd and between 1 and min(h, w) = {min(h, w)}: asked for {patch_size!r} on {h} × {w} "
            "images. A window needs a centre pixel, and must not meet itself around the image."
        )


def _check_boundary(boundary: str) -> None:
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary is one of {', '.join(map(repr, BOUNDARIES))}: got {boundary!r}.")


def padded(x: Float[Tensor, "b c h w"], patch_size: int, boundary: str) -> Float[Tensor, "b c h2 w2"]:
    """Return images with what windows of odd ``patch_size`` p find beyond the border, (b, c, h + p - 1, w + p - 1).

    ``boundary`` is ``"circular"`` or ``"zero"`` (S5.9).
    """
    mode = "circular" if boundary == "circular" else "constant"
    return torch.nn.functional.pad(x, 4 * (patch_size // 2,), mode=mode)


def extract_patches(x: Float[Tensor, "b c h w"], patch_size: int, boundary: str = "circular") -> Float[Tensor, "b n d"]:
    """Cut the window around every pixel and return Π_n x for all n, shape (b, h·w, c·patch_size²).

    Pixels n run row-major; inside a window the channel is the slowest axis, then row, then column. Windows wrap
    around the border, or find zeros beyond a ``"zero"`` boundary (S5). Raises ``ValueError`` for an even or too large
    ``patch_size`` and for an unknown boundary.
    """
    check_patch_size(patch_size, *x.shape[-2:])
    _check_boundary(boundary)
    windows = (
        padded(x, patch_size, boundary).unfold(2, patch_size, 1).unfold(3, patch_size, 1)
    )  # (b, c, h, w, p, p), a view
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def centre_pixels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """Return the colour of every pixel, shape (b, h·w, c), in the order of ``extract_patches``."""
    return x.flatten(2).transpose(1, 2)


def window_index(h: int, w: int, patch_size: int, boundary: str = "circular") -> Int64[Tensor, "n p2"]:
    """Return the row-major indices of the pixels of every window; h·w stands for those beyond a ``"zero"`` boundary.

    Raises ``ValueError`` for an even or too large ``patch_size`` and for an unknown boundary.
    """
    check_patch_size(patch_size, h, w)
    _check_boundary(boundary)
    steps = torch.arange(patch_size) - patch_size // 2
    rows, columns = torch.arange(h)[:, None] + steps, torch.arange(w)[:, None] + steps
    index = (rows % h)[:, None, :, None] * w + (columns % w)[None, :, None, :]
    if boundary == "zero":
        inside = (rows == rows % h)[:, None, :, None] & (columns == columns % w)[None, :, None, :]
        index = index.where(inside, h * w)
    return index.flatten(2).flatten(0, 1)


def windows_at(v: Float[Tensor, "b c h w"], index: Int64[Tensor, "m p2"]) -> Float[Tensor, "b m d"]:
    """Return the windows whose pixels ``index`` names, zero beyond the boundary, as ``extract_patches`` orders them."""
    padded = torch.nn.functional.pad(v.flatten(2), (0, 1))  # pixel h·w is zero
    channels = torch.arange(v.shape[1], device=v.device)[:, None]
    entries = (channels * padded.shape[2] + index[:, None]).flatten()
    return padded.flatten(1).index_select(1, entries).unflatten(1, (len(index), -1))
