"""Factorisations A = U S Vᵀ of linear operators, in whichever basis each is simple.

One pair of verbs serves pseudo-inverses, Tikhonov and row spaces alike: ``forward(g, x)`` = U g(S) Vᵀ x and
``backward(g, y)`` = V g(S) Uᵀ y. Factors are float64 whatever the dtype of the images; singular values at most
RANK_RTOL of the largest count as zero (S2.4). None of them ever squares a condition number.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Bool, Complex128, Float, Float64
from torch import Tensor

from ._types import RANK_RTOL

__all__ = [
    "DENSE_LIMIT",
    "AliasedFactor",
    "DenseFactor",
    "Factor",
    "FourierFactor",
    "PixelFactor",
    "SamplingFactor",
    "Shape",
    "check_dense",
    "complex_like",
    "convolve",
    "on_range",
    "significant",
    "transfer_function",
    "unchanged",
    "unit",
]

DENSE_LIMIT = 2**24
"""Largest number of entries of a matrix that is factored densely: 4096 × 4096, 134 MB, a minute on two cores."""

Shape = tuple[int, ...]
Gain = Callable[[Float64[Tensor, "..."]], Float64[Tensor, "..."]]


def unit(s: Tensor) -> Tensor:
    """Return 1 for every singular value: the gain of polar factors and projectors."""
    return torch.ones_like(s)


def unchanged(s: Tensor) -> Tensor:
    """Return s: the gain of the operator itself, and of whatever is to be left as it is."""
    return s


def on_range(g: Gain, s: Float64[Tensor, "..."], kept: Bool[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """Return g(s) for the singular values that are kept, and 0 for the others."""
    return torch.where(kept, g(torch.where(kept, s, 1.0)), 0.0)


def significant(s: Float64[Tensor, "..."], reference: float = 0.0) -> Bool[Tensor, "..."]:
    """Return which singular values exceed RANK_RTOL times the largest of them, or ``reference`` if that is larger."""
    largest = max(float(s.max()), reference) if s.numel() else reference
    return s > RANK_RTOL * largest


class Factor(ABC):
    """A factorisation U S Vᵀ of an operator; each singular value counts ``multiplicity`` times (channels are alike)."""

    singular_values: Float64[Tensor, "..."]
    kept: Bool[Tensor, "..."]
    multiplicity: int

    @abstractmethod
    def forward(self, g: Gain, x: Tensor) -> Tensor:
        """Return U g(S) Vᵀ x."""

    @abstractmethod
    def backward(self, g: Gain, y: Tensor) -> Tensor:
        """Return V g(S) Uᵀ y."""

    def transpose(self, g: Gain) -> "Factor":
        """Return the factor of V g(S) Uᵀ."""
        return TransposedFactor(self, g)

    def after(self, inner: "Factor") -> "Factor | None":
        """Return the factor of this operator applied after another where the two share a basis, else ``None``."""
        if _is_identity(inner):
            return self
        return inner if _is_identity(self) else self._after_in_the_same_basis(inner)

    def _after_in_the_same_basis(self, inner: "Factor") -> "Factor | None":
        return None

    @property
    def rank(self) -> int:
        """Return the number of singular values that count."""
        return self.multiplicity * int(self.kept.sum())

    def gains(self, g: Gain) -> Float64[Tensor, "..."]:
        """Return g of the singular values that count, and 0 for the others."""
        return on_range(g, self.singular_values, self.kept)

    def relative_gains(self, g: Gain) -> Float64[Tensor, "..."]:
        """Return g(s)/s for the singular values that count, and 0 for the others: what to add to A or to Aᵀ."""
        return self.gains(lambda s: g(s) / s)


@final
class PixelFactor(Factor):
    """Diagonal in the pixel basis, all channels alike unless the diagonal has a channel axis."""

    def __init__(self, diagonal: Float64[Tensor, "..."], image_shape: Shape):
        self.diagonal, self.image_shape = diagonal, tuple(image_shape)
        self.singular_values = diagonal.abs()
        self.kept = significant(self.singular_values)
        self.multiplicity = torch.Size(image_shape).numel() // diagonal.numel()

    def forward(self, g: Gain, x: Tensor) -> Tensor:
        return x * (self.diagonal.sign() * self.gains(g)).to(x)

    backward = forward

    def transpose(self, g: Gain) -> "PixelFactor":
        return PixelFactor(self.diagonal.sign() * self.gains(g), self.image_shape)

    def _after_in_the_same_basis(self, inner: Factor) -> Factor | None:
        return PixelFactor(self.diagonal * inner.diagonal, self.image_shape) if isinstance(inner, PixelFactor) else None


@final
class FourierFactor(Factor):
    """Diagonal in the Fourier basis, all channels alike; ``symbol`` is the unnormalised DFT of the kernel, (h, w)."""

    def __init__(self, symbol: Complex128[Tensor, "h w"], channels: int):
        self.symbol, self.multiplicity = symbol, channels
        self.singular_values = symbol.abs()
        self.kept = significant(self.singular_values)

    def forward(self, g: Gain, x: Tensor) -> Tensor:
        return convolve(self._phase * self.gains(g), x)

    def backward(self, g: Gain, y: Tensor) -> Tensor:
        return convolve(self._phase.conj() * self.gains(g), y)

    def transpose(self, g: Gain) -> "FourierFactor":
        return FourierFactor(self._phase.conj() * self.gains(g), self.multiplicity)

    def _after_in_the_same_basis(self, inner: Factor) -> Factor | None:
        return FourierFactor(self.symbol * inner.symbol, self.multiplicity) if type(inner) is FourierFactor else None

    @property
    def _phase(self) -> Tensor:
        return torch.sgn(self.symbol)


@final
class AliasedFactor(Factor):
    """A convolution, then every s-th pixel: A Aᵀ is circulant on the coarse grid (S5.8)."""

    def __init__(self, symbol: Complex128[Tensor, "h w"], factor: int, channels: int):
        self.symbol, self.factor, self.multiplicity = symbol, factor, channels
        self.singular_values = self._fold(symbol.abs().square()).sqrt()
        self.kept = significant(self.singular_values)

    def forward(self, g: Gain, x: Tensor) -> Tensor:
        folded = self._fold(torch.fft.fft2(x) * complex_like(self.symbol, x))
        return torch.fft.ifft2(folded * self.relative_gains(g).to(x)).real

    def backward(self, g: Gain, y: Tensor) -> Tensor:
        tiled = (torch.fft.fft2(y) * self.relative_gains(g).to(y)).repeat(1, 1, self.factor, self.factor)
        return torch.fft.ifft2(tiled * complex_like(self.symbol.conj(), y)).real

    def _after_in_the_same_basis(self, inner: Factor) -> Factor | None:
        if isinstance(inner, FourierFactor):
            return AliasedFactor(self.symbol * inner.symbol, self.factor, self.multiplicity)
        return None

    def _fold(self, spectrum: Tensor) -> Tensor:
        """Return the mean over the frequencies that fall together on the coarse grid."""
        s = self.factor
        return spectrum.unflatten(-1, (s, -1)).unflatten(-3, (s, -1)).mean(dim=(-4, -2))


@final
class SamplingFactor(Factor):
    """The operator ``FourierSampling``: AᵀA is circulant with the symbol (1_Ω(k) + 1_Ω(-k)) / 2 (S5.7b)."""

    def __init__(self, sampling: Any, channels: int):
        self.sampling, self.multiplicity = sampling, channels
        mask = sampling.mask.double()
        mirrored = mask.flip((0, 1)).roll((1, 1), (0, 1))
        self.singular_values = ((mask + mirrored) / 2).sqrt()
        self.kept = significant(self.singular_values)

    def forward(self, g: Gain, x: Tensor) -> Tensor:
        return self.sampling.A(convolve(self.relative_gains(g), x))

    def backward(self, g: Gain, y: Tensor) -> Tensor:
        return convolve(self.relative_gains(g), self.sampling.A_adjoint(y))


@final
class DenseFactor(Factor):
    """A thin SVD of the matrix of the operator, between the given shapes.

    ``reference`` is the size that rounding is measured by where it exceeds that of the matrix: a product that vanishes
    has the rank of its rounding errors otherwise.
    """

    multiplicity = 1

    def __init__(self, matrix: Float64[Tensor, "M N"], input_shape: Shape, output_shape: Shape, reference: float = 0.0):
        check_dense(*matrix.shape)
        self.input_shape, self.output_shape = tuple(input_shape), tuple(output_shape)
        self.u, self.singular_values, self.vh = torch.linalg.svd(matrix, full_matrices=False)
        self.kept = significant(self.singular_values, reference)

    def forward(self, g: Gain, x: Tensor) -> Tensor:
        gains = self.gains(g).to(x)
        return ((x.flatten(1) @ self.vh.T.to(x) * gains) @ self.u.T.to(x)).unflatten(1, self.output_shape)

    def backward(self, g: Gain, y: Tensor) -> Tensor:
        gains = self.gains(g).to(y)
        return ((y.flatten(1) @ self.u.to(y) * gains) @ self.vh.to(y)).unflatten(1, self.input_shape)


@final
class TransposedFactor(Factor):
    """V g(S) Uᵀ, from measurements to images."""

    def __init__(self, factor: Factor, g: Gain):
        self.factor, self.gain = factor, g
        self.singular_values = factor.gains(g)
        self.kept, self.multiplicity = factor.kept, factor.multiplicity

    def forward(self, g: Gain, x: Tensor) -> Tensor:
        return self.factor.backward(lambda s: g(self.gain(s)), x)

    def backward(self, g: Gain, y: Tensor) -> Tensor:
        return self.factor.forward(lambda s: g(self.gain(s)), y)


def _is_identity(factor: Factor) -> bool:
    return isinstance(factor, PixelFactor) and torch.equal(factor.diagonal, torch.ones_like(factor.diagonal))


def complex_like(symbol: Tensor, like: Tensor) -> Tensor:
    """Return a symbol in the complex dtype and on the device of ``like``."""
    return symbol.to(device=like.device, dtype=like.dtype.to_complex())


def convolve(symbol: Tensor, x: Tensor) -> Tensor:
    """Return the circular convolution of real images with the kernel of the given symbol."""
    return torch.fft.ifft2(torch.fft.fft2(x) * complex_like(symbol, x)).real


def transfer_function(psf: Float[Tensor, "kh kw"], h: int, w: int) -> Complex128[Tensor, "h w"]:
    """Return the DFT of a kernel centred at (kh//2, kw//2) on h × w pixels; ``ValueError`` where it is larger."""
    kh, kw = psf.shape
    if kh > h or kw > w:
        raise ValueError(
            f"the psf has {kh} × {kw} pixels, the image {h} × {w}: crop the psf to at most the image's size."
        )
    kernel = torch.zeros(h, w, dtype=torch.float64, device=psf.device)
    kernel[:kh, :kw] = psf
    return torch.fft.fft2(kernel.roll((-(kh // 2), -(kw // 2)), (0, 1)))


def check_dense(rows: int, columns: int) -> None:
    """Raise ``ValueError`` for a matrix of more than DENSE_LIMIT entries."""
    if rows * columns > DENSE_LIMIT:
        raise ValueError(
            f"this needs a dense factorisation of a {rows} × {columns} matrix ({rows * columns * 8 / 1e9:.1f} GB in "
            f"float64); "
            f"the limit is {DENSE_LIMIT} entries. Use smaller images, or an operator that declares its structure."
        )
