"""What a pixel of a network's output depends on, from gradients: the receptive field as it is, beside that declared.

Works for any ``torch.nn.Module`` called ``net(v, sigma)``.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

__all__ = ["Leaks", "check_receptive_field", "leaks"]


@final
@dataclass(frozen=True)
class Leaks:
    """How the gradient's support differs from a declared window: nothing does where ``exact``.

    ``outside`` lists ((row, column) of the pixel of the output, (rows, columns) from it to a pixel of the input beyond
    the window, size of the gradient), largest first; ``unused`` lists offsets within the window without a gradient in
    any probe; ``other_image`` is the largest gradient with respect to another image of the batch.
    """

    receptive_field: int | None
    outside: tuple[tuple[tuple[int, int], tuple[int, int], float], ...]
    unused: tuple[tuple[int, int], ...]
    other_image: float

    @property
    def exact(self) -> bool:
        """Return whether the network sees what it declares, all of it and nothing else."""
        return not self.outside and not self.unused and self.other_image == 0

    def __str__(self) -> str:
        p = self.receptive_field
        declared = "the whole image" if p is None else f"a {p}×{p} window"
        found = []
        if self.outside:
            pixel, offset, size = self.outside[0]
            pixels = len({offset for _, offset, _ in self.outside})
            found.append(
                f"pixels at {pixels} offsets beyond it leak in: pixel {pixel} of the output depends on the pixel at "
                f"offset {offset} from it, with a gradient of {size:.2g}. Normalisation over pixels (GroupNorm, "
                "pooling) does this, and so does a convolution too many"
            )
        if self.unused:
            offsets = ", ".join(map(str, self.unused[:4])) + (" …" if len(self.unused) > 4 else "")
            found.append(f"{len(self.unused)} of its offsets are never used: {offsets}. Declare a smaller window")
        if self.other_image:
            found.append(f"other images of the batch leak in, with a gradient of {self.other_image:.2g}")
        return f"the network declares {declared}, and " + ("sees just that." if self.exact else "; ".join(found) + ".")


def leaks(
    net: nn.Module,
    image_shape: tuple[int, int, int],
    patch_size: int | None = None,
    *,
    boundary: str | None = None,
    sigmas: tuple[float, ...] = (0.1, 0.5),
    pixels: int = 9,
    tolerance: float = 0.0,
    generator: torch.Generator | None = None,
) -> Leaks:
    """Compare the support of the gradient of output pixels with the window around them and return the differences.

    Works for any ``net(v, sigma)`` on images of ``image_shape`` (c, h, w), in eval mode for the while. ``patch_size``
    and ``boundary`` are those of the net unless given (``receptive_field``; ``"circular"`` if it names none);
    ``receptive_field = None`` stands for the whole image. Gradients are taken at random inputs, once for each of the
    ``sigmas`` and of some ``pixels`` of the output, corners and centre first; they count where they exceed
    ``tolerance`` times the largest (0: any that is not exactly zero; a network that works by FFT rounds).

    A gradient that is zero at all of these inputs shows as unused, though another input might use it. Raises
    ``ValueError`` for a net that declares nothing or whose output is no image. Source: S11.
    """
    p = _declared(net, patch_size)
    c, h, w = image_shape
    boundary = getattr(net, "boundary", "circular") if boundary is None else boundary
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    support = torch.zeros(2 * h - 1, 2 * w - 1, dtype=torch.float64)
    outside, other_image = [], 0.0
    probes = _probed_pixels(h, w, pixels, generator)
    allowed = _window_offsets(h, w, p)
    with _in_eval_mode(net):
        for sigma in sigmas:
            v = torch.rand(2, c, h, w, generator=generator) + sigma * torch.randn(2, c, h, w, generator=generator)
            for pixel, other, gradient in _gradients(net, v, sigma, probes, generator):
                largest = gradient.max()
                seen = _by_offset(gradient.where(gradient > tolerance * largest, 0), pixel, boundary)
                support = torch.maximum(support, seen)
                other_image = max(other_image, float(other.where(other > tolerance * largest, 0).max()))
                outside += [
                    (pixel, (row - h + 1, column - w + 1), float(seen[row, column]))
                    for row, column in (seen.where(~allowed, 0)).nonzero().tolist()
                ]
    used = support > 0
    if boundary == "circular":  # offsets that differ by the image's size are one
        used = _by_remainder(used, h, w)
    unused = [(row - h + 1, column - w + 1) for row, column in (allowed & ~used).nonzero().tolist()]
    return Leaks(p, tuple(sorted(outside, key=lambda leak: -leak[2])), tuple(unused), other_image)


def check_receptive_field(
    net: nn.Module, image_shape: tuple[int, int, int], patch_size: int | None = None, **how: Any
) -> None:
    """Raise ``ValueError`` that names a leaking pixel unless a network sees the window that it declares, all of it.

    Arguments as for ``leaks``.
    """
    found = leaks(net, image_shape, patch_size, **how)
    if not found.exact:
        raise ValueError(f"The receptive field is not as declared: {found}")


def _declared(net: nn.Module, patch_size: int | None) -> int | None:
    if patch_size is None and not hasattr(net, "receptive_field"):
        raise ValueError(
            f"{type(net).__name__} declares no receptive field: set net.receptive_field (an odd number, or None for "
            "the whole image), or pass patch_size."
        )
    return net.receptive_field if patch_size is None else patch_size


@contextmanager
def _in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a network in eval mode for the while, module by module as it was afterwards, and silence its warnings."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _probed_pixels(h: int, w: int, pixels: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Return the centre, the corners and random others, ``pixels`` in all or as many as there are."""
    first = [(h // 2, w // 2), (0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1)]
    others = [divmod(n, w) for n in torch.randperm(h * w, generator=generator).tolist()]
    return list(dict.fromkeys(first + others))[:pixels]


def _gradients(
    net: nn.Module,
    v: Float[Tensor, "2 c h w"],
    sigma: float,
    probes: list[tuple[int, int]],
    generator: torch.Generator,
) -> Iterator[tuple[tuple[int, int], Float64[Tensor, "h w"], Float64[Tensor, "h w"]]]:
    """Yield each pixel, and the size of its gradient in the other image and its own, the largest over channels."""
    parameter = next(net.parameters(), v)
    v = v.to(parameter.device, parameter.dtype).requires_grad_()
    x_hat = net(v, sigma)
    if not isinstance(x_hat, Tensor) or x_hat.shape != v.shape or not x_hat.requires_grad:
        came = tuple(x_hat.shape) if isinstance(x_hat, Tensor) else type(x_hat).__name__
        raise ValueError(f"net(v, sigma) must return images (2, c, h, w) like v and differentiable in it: got {came}.")
    colours = torch.randn(v.shape[1], generator=generator).to(v)  # a random mixture of channels cancels nowhere
    for row, column in probes:
        (gradient,) = torch.autograd.grad(x_hat[0, :, row, column] @ colours, v, retain_graph=True)
        other, own = gradient.abs().amax(1).double().cpu().flip(0)
        yield (row, column), other, own


def _by_offset(gradient: Float64[Tensor, "h w"], pixel: tuple[int, int], boundary: str) -> Float64[Tensor, "h2 w2"]:
    """Lay a gradient out by the offset from a pixel, offset (0, 0) at (h - 1, w - 1).

    On a circle offsets are those nearest to zero: from -(h - 1)//2 to h//2.
    """
    (h, w), (row, column) = gradient.shape, pixel
    canvas = gradient.new_zeros(2 * h - 1, 2 * w - 1)
    if boundary == "circular":
        up, left = (h - 1) // 2, (w - 1) // 2
        gradient = gradient.roll((up - row, left - column), (0, 1))
        row, column = up, left
    canvas[h - 1 - row : 2 * h - 1 - row, w - 1 - column : 2 * w - 1 - column] = gradient
    return canvas


def _window_offsets(h: int, w: int, p: int | None) -> Bool[Tensor, "h2 w2"]:
    """Return which offsets lie in a window, laid out as ``_by_offset`` does; all of them for ``None``."""
    rows, columns = (torch.arange(1 - side, side).abs() for side in (h, w))
    reach = max(h, w) if p is None else p // 2
    return (rows[:, None] <= reach) & (columns <= reach)


def _by_remainder(used: Bool[Tensor, "h2 w2"], h: int, w: int) -> Bool[Tensor, "h2 w2"]:
    """Count an offset as used where one that differs from it by the image's size is."""
    rows, columns = (torch.arange(1 - side, side) % side for side in (h, w))
    around = torch.zeros(h, w, dtype=torch.bool)
    at = used.nonzero()
    around[rows[at[:, 0]], columns[at[:, 1]]] = True
    return around[rows][:, columns]
