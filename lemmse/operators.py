"""Forward operators A, pre-inverses B, and makers of masks.

The contract, stated once. A linear operator maps images ``x`` (b, c, h, w) to measurements ``y`` (b, ...) and knows

* ``A(x)``, ``A_adjoint(y)`` and ``A_dagger(y)``, the Moore-Penrose inverse (singular values at most RANK_RTOL of the
  largest count as zero);
* ``shift_period``: 1 if it commutes with all cyclic shifts, s if shifting the full-size side by multiples of s
  shifts the other side by as many whole samples, ``None`` if nothing is claimed;
* ``gram_symbol(h, w)``: where its output is an image of h × w pixels and B Bᵀ is circulant and equal for all channels,
  the symbol of B Bᵀ (real, float64, (h, w)); else ``None``;
* ``diagonal``: the diagonal, which broadcasts against (c, h, w), where it is diagonal; else ``None``.

It knows nothing of estimators. The names are deepinv's, so a deepinv ``LinearPhysics`` can be handed over unchanged;
what it does not declare is found from its dense matrix. A pre-inverse is an operator too, from measurements to images.

Pseudo-inverses, Tikhonov and row spaces come from the factorisation A = U S Vᵀ of ``lemmse._factors``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from ._factors import (
    DENSE_LIMIT,
    AliasedFactor,
    DenseFactor,
    Factor,
    FourierFactor,
    PixelFactor,
    SamplingFactor,
    Shape,
    check_dense,
    convolve,
    on_range,
    significant,
    transfer_function,
    unit,
)
from ._types import RANK_RTOL

__all__ = [
    "DENSE_LIMIT",
    "Adjoint",
    "Blur",
    "Compose",
    "Denoising",
    "Downsampling",
    "EpsilonInverse",
    "FourierSampling",
    "GramWhitener",
    "Inpainting",
    "LinearOperator",
    "Matrix",
    "Nonlinear",
    "PolarWhitener",
    "PseudoInverse",
    "RowSpaceProjector",
    "Tikhonov",
    "apply_in_float64",
    "as_operator",
    "center_mask",
    "check_declarations",
    "dense_matrix",
    "gram_whitener",
    "half_mask",
    "random_mask",
    "rank",
    "row_space_projector",
    "stripe_mask",
]


GRAM_RTOL = 1e-14
"""A declared symbol of B Bᵀ at most this fraction of its largest entry is rounding: it holds squares."""

DECLARED_RTOL = 1e-4
"""A declaration holds where a random vector agrees to this, in float32 or float64."""


# ------------------------------------------------------------------------------------------------------------ operators


class LinearOperator(ABC):
    """A linear map with the declarations of the module docstring; classes are abstract or final."""

    shift_period: int | None = None
    diagonal: Float[Tensor, "..."] | None = None

    @abstractmethod
    def A(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return A x of every image of the batch."""

    @abstractmethod
    def A_adjoint(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return Aᵀ y of every measurement of the batch."""

    def A_dagger(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return A⁺ y of every measurement of the batch: the shortest of the least-squares solutions."""
        return self.factorisation(self.input_shape(tuple(y.shape[1:]))).backward(torch.reciprocal, y)

    def gram_symbol(self, h: int, w: int) -> Float64[Tensor, "h w"] | None:
        """Return the symbol of B Bᵀ on h × w outputs where it is circulant, else ``None``."""
        return None

    def spectrum(self, h: int, w: int) -> Float64[Tensor, "h w"] | None:
        """Return the singular values s(k) where AᵀA is circulant on h × w inputs with the symbol s², else ``None``."""
        symbol = self.gram_symbol(h, w) if self.shift_period == 1 else None
        return None if symbol is None else symbol.sqrt()  # commuting with all shifts, A is normal: AᵀA = AAᵀ

    @abstractmethod
    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the shape, without batch, of the inputs whose outputs have the given shape."""

    @abstractmethod
    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the factorisation on inputs of the given shape, without batch."""

    def structured_factor(self, input_shape: Shape) -> Factor | None:
        """Return the factorisation where it needs no dense matrix, else ``None``."""
        return self.factorisation(input_shape)


@final
class Denoising(LinearOperator):
    """The identity: y = x + e."""

    shift_period = 1

    def A(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return a copy of x, so that adding noise in place spares the image."""
        return x.clone()

    def A_adjoint(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return a copy of y."""
        return y.clone()

    @property
    def diagonal(self) -> Float64[Tensor, ""]:
        """Return one."""
        return torch.ones((), dtype=torch.float64)

    def gram_symbol(self, h: int, w: int) -> Float64[Tensor, "h w"]:
        """Return the symbol of the identity."""
        return torch.ones(h, w, dtype=torch.float64)

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the same shape."""
        return output_shape

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the trivial factorisation."""
        return PixelFactor(self.diagonal, input_shape)

    def __repr__(self) -> str:
        return "Denoising()"


class _PixelwiseProduct(LinearOperator):
    """Multiplication by an (h, w) array in every channel."""

    def __init__(self, diagonal: Float[Tensor, "h w"]):
        self.diagonal = diagonal

    def A(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the product with the diagonal."""
        _check_size(self, x.shape[1:], tuple(self.diagonal.shape))
        return x * self.diagonal.to(x)

    def A_adjoint(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the product with the diagonal: the map is symmetric."""
        return self.A(y)

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the same shape."""
        return output_shape

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the factorisation in the pixel basis."""
        _check_size(self, input_shape, tuple(self.diagonal.shape))
        return PixelFactor(self.diagonal.double(), input_shape)


@final
class Inpainting(_PixelwiseProduct):
    """A mask (h, w), 1 where visible and 0 where hidden, the same in all channels; noise falls on all pixels.

    A is an orthogonal projector: A = Aᵀ = A⁺. Raises ``ValueError`` for a mask that is not (h, w) of zeros and ones.
    """

    def __init__(self, mask: Any):
        super().__init__(_binary_mask(mask, type(self).__name__))

    @property
    def mask(self) -> Float[Tensor, "h w"]:
        """Return the mask."""
        return self.diagonal

    def __repr__(self) -> str:
        return f"Inpainting(mask={_size(self.mask)}, {self.mask.mean():.0%} visible)"


@final
class EpsilonInverse(_PixelwiseProduct):
    """The invertible stand-in for the pseudo-inverse of a mask: 1 where visible, ``epsilon`` where hidden (S5.6).

    Raises ``ValueError`` unless RANK_RTOL < epsilon <= 1 (below, use ``PseudoInverse(Inpainting(mask))``, its limit).
    """

    def __init__(self, mask: Any, epsilon: float):
        if not RANK_RTOL < epsilon <= 1:
            raise ValueError(
                f"EpsilonInverse needs {RANK_RTOL:g} < epsilon <= 1, got {epsilon}. For epsilon = 0 use "
                "PseudoInverse(Inpainting(mask))."
            )
        self.epsilon = float(epsilon)
        mask = _binary_mask(mask, type(self).__name__).double()
        super().__init__(mask + epsilon * (1 - mask))

    def __repr__(self) -> str:
        return f"EpsilonInverse(mask={_size(self.diagonal)}, epsilon={self.epsilon:g})"


@final
class Blur(LinearOperator):
    """Circular convolution with a kernel ``psf`` (kh, kw), at most the image's size, centre (kh//2, kw//2).

    All channels are blurred alike. The kernel is used as it is: give it sum one to keep the brightness. Raises
    ``ValueError`` for a psf that is not (kh, kw), finite and non-zero, or larger than the image.
    """

    shift_period = 1

    def __init__(self, psf: Float[Tensor, "kh kw"]):
        self.psf = _kernel(psf, type(self).__name__)

    def A(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return h * x."""
        _check_image(self, x.shape[1:])
        return convolve(self._symbol(x.shape), x)

    def A_adjoint(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the correlation of y with h."""
        return convolve(self._symbol(y.shape).conj(), y)

    def gram_symbol(self, h: int, w: int) -> Float64[Tensor, "h w"]:
        """Return |ĥ|²."""
        return self._symbol((h, w)).abs().square()

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the same shape."""
        return output_shape

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the factorisation in the Fourier basis."""
        _check_image(self, input_shape)
        return FourierFactor(self._symbol(input_shape), input_shape[0])

    def _symbol(self, shape: Shape) -> Tensor:
        return transfer_function(self.psf, *shape[-2:])

    def __repr__(self) -> str:
        return f"Blur(psf={_size(self.psf)})"


@final
class Downsampling(LinearOperator):
    """A blur by ``psf`` (if any), then the pixels (factor·i, factor·j); ``factor`` divides h and w.

    Raises ``ValueError`` for a factor that is not a positive integer or does not divide the sides, or a bad psf.
    """

    def __init__(self, factor: int, psf: Float[Tensor, "kh kw"] | None = None):
        if isinstance(factor, bool) or not hasattr(factor, "__index__") or factor < 1:
            raise ValueError(f"Downsampling needs a positive integer factor, got {factor!r}.")
        self.factor = int(factor)
        self.psf = None if psf is None else _kernel(psf, type(self).__name__)

    @property
    def shift_period(self) -> int:
        """Return the factor."""
        return self.factor

    def A(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return ↓(h * x)."""
        self._check_divides(tuple(x.shape[1:]))
        blurred = x if self.psf is None else convolve(self._symbol(x.shape), x)
        return blurred[..., :: self.factor, :: self.factor].clone()

    def A_adjoint(self, y: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b c h w"]:
        """Return y spread over a grid of zeros, then correlated with h."""
        spread = y.new_zeros(len(y), *self.input_shape(tuple(y.shape[1:])))
        spread[..., :: self.factor, :: self.factor] = y
        return spread if self.psf is None else convolve(self._symbol(spread.shape).conj(), spread)

    def gram_symbol(self, h: int, w: int) -> Float64[Tensor, "h w"]:
        """Return the mean of |ĥ|² over the frequencies that alias, on the coarse h × w grid."""
        return self.factorisation((1, h * self.factor, w * self.factor)).singular_values.square()

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the shape of the images."""
        c, h, w = output_shape
        return (c, h * self.factor, w * self.factor)

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the factorisation in the basis of aliased frequencies."""
        self._check_divides(input_shape)
        return AliasedFactor(self._symbol(input_shape), self.factor, input_shape[0])

    def _check_divides(self, shape: Shape) -> None:
        _check_image(self, shape)
        if shape[-2] % self.factor or shape[-1] % self.factor:
            raise ValueError(
                f"Downsampling({self.factor}) needs image sides that are multiples of {self.factor}: got "
                f"{shape[-2]} × {shape[-1]}. Crop the images, or choose another factor."
            )

    def _symbol(self, shape: Shape) -> Tensor:
        psf = torch.ones(1, 1, dtype=torch.float64) if self.psf is None else self.psf
        return transfer_function(psf, *shape[-2:])

    def __repr__(self) -> str:
        return f"Downsampling({self.factor}, psf={None if self.psf is None else _size(self.psf)})"


@final
class FourierSampling(LinearOperator):
    """Accelerated MRI: the m sampled frequencies of real images, unitary DFT, output (b, 2c, m) (S5.7b).

    ``mask`` (h, w) is 1 where the frequency (in the order of ``torch.fft.fft2``) is sampled. The first c rows of the
    output are the real parts, the last c the imaginary parts, frequencies row-major. The noise has deviation sigma in
    each part. Complex data k on the full grid become measurements by
    ``torch.cat([k[..., on].real, k[..., on].imag], dim=1)``, with ``on = mask.bool()``.

    Raises ``ValueError`` for a mask that is not (h, w) of zeros and ones.
    """

    def __init__(self, mask: Any):
        self.mask = _binary_mask(mask, type(self).__name__)
        self._sampled = self.mask.bool()

    def A(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 m"]:
        """Return the sampled spectrum, real parts then imaginary parts."""
        _check_size(self, x.shape[1:], tuple(self.mask.shape))
        spectrum = torch.fft.fft2(x, norm="ortho")[..., self._sampled.to(x.device)]
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def A_adjoint(self, y: Float[Tensor, "b c2 m"]) -> Float[Tensor, "b c h w"]:
        """Return the real part of the zero-filled image."""
        self._check_measurement(tuple(y.shape[1:]))
        real, imaginary = y.chunk(2, dim=1)
        spectrum = torch.zeros(*real.shape[:2], *self.mask.shape, dtype=y.dtype.to_complex(), device=y.device)
        spectrum[..., self._sampled.to(y.device)] = torch.complex(real, imaginary)
        return torch.fft.ifft2(spectrum, norm="ortho").real

    def spectrum(self, h: int, w: int) -> Float64[Tensor, "h w"] | None:
        """Return the square root of (1_Ω(k) + 1_Ω(-k)) / 2."""
        return self.factorisation((1, h, w)).singular_values if (h, w) == tuple(self.mask.shape) else None

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the shape of the images."""
        self._check_measurement(output_shape)
        return (output_shape[0] // 2, *self.mask.shape)

    def _check_measurement(self, shape: Shape) -> None:
        sampled = int(self.mask.sum())
        if len(shape) != 2 or shape[0] % 2 or shape[1] != sampled:
            raise ValueError(f"{self!r} gives measurements (b, 2c, {sampled}): got a batch of {tuple(shape)}.")

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the factorisation in the Fourier basis."""
        _check_size(self, input_shape, tuple(self.mask.shape))
        return SamplingFactor(self, input_shape[0])

    def __repr__(self) -> str:
        return f"FourierSampling(mask={_size(self.mask)}, {self.mask.mean():.0%} sampled)"


@final
class Matrix(LinearOperator):
    """Any matrix (M, N), between inputs and outputs of the given shapes (without batch), flattened row-major.

    Raises ``ValueError`` where the matrix does not fit the shapes.
    """

    def __init__(self, matrix: Float[Tensor, "M N"], input_shape: Shape, output_shape: Shape):
        m, n = torch.Size(output_shape).numel(), torch.Size(input_shape).numel()
        if matrix.shape != (m, n):
            raise ValueError(
                f"Matrix from {tuple(input_shape)} to {tuple(output_shape)} needs a {m} × {n} matrix, got "
                f"{_size(matrix)}."
            )
        self.matrix = matrix
        self._input_shape, self._output_shape = tuple(input_shape), tuple(output_shape)

    def A(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the product with the matrix."""
        _check_shape(self, x.shape[1:], self._input_shape)
        return (x.flatten(1) @ self.matrix.T.to(x)).unflatten(1, self._output_shape)

    def A_adjoint(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the product with the transposed matrix."""
        _check_shape(self, y.shape[1:], self._output_shape)
        return (y.flatten(1) @ self.matrix.to(y)).unflatten(1, self._input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the shape of the inputs."""
        return self._input_shape

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the SVD, computed once."""
        _check_shape(self, input_shape, self._input_shape)
        return self._svd

    def structured_factor(self, input_shape: Shape) -> None:
        """Return ``None``: a matrix has no structure."""
        return

    @cached_property
    def _svd(self) -> Factor:
        return DenseFactor(self.matrix.double(), self._input_shape, self._output_shape)

    def __repr__(self) -> str:
        return f"Matrix({_size(self.matrix)}, {self._input_shape} -> {self._output_shape})"


@final
class Compose(LinearOperator):
    """``outer`` after ``inner``. The pseudo-inverse is the true one: (AB)⁺, which is not B⁺A⁺ in general.

    Two masks, two convolutions, a downsampling after a convolution, and anything beside the identity are factored in
    the basis that they share. Everything else is factored as a dense matrix, once per image shape, up to DENSE_LIMIT
    entries; beyond, ``A_dagger`` raises ``ValueError`` that says the size. A nonlinear operand is a ``TypeError``.
    """

    def __init__(self, outer: Any, inner: Any):
        self.outer, self.inner = as_operator(outer), as_operator(inner)
        for operator in (self.outer, self.inner):
            _require_linear(operator, "Compose")

    def A(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return outer(inner(x))."""
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return innerᵀ(outerᵀ(y))."""
        return self.inner.A_adjoint(self.outer.A_adjoint(y))

    @property
    def shift_period(self) -> int | None:
        """Return the period of one where the other commutes with all shifts, else ``None``."""
        periods = (self.outer.shift_period, self.inner.shift_period)
        return max(periods) if None not in periods and 1 in periods else None

    @property
    def diagonal(self) -> Float[Tensor, "..."] | None:
        """Return the product of the diagonals."""
        outer, inner = self.outer.diagonal, self.inner.diagonal
        return None if outer is None or inner is None else outer.double() * inner.double()

    def gram_symbol(self, h: int, w: int) -> Float64[Tensor, "h w"] | None:
        """Return the product of the symbols where the outer operator commutes with all shifts, or one is the identity.

        O circ(s) Oᵀ = circ(s) O Oᵀ where O commutes with shifts: it commutes with what is made of them.
        """
        if _declares_identity(self.inner):
            return self.outer.gram_symbol(h, w)
        if _declares_identity(self.outer):
            return self.inner.gram_symbol(h, w)
        if self.outer.shift_period == 1:
            outer, inner = self.outer.gram_symbol(h, w), self.inner.gram_symbol(h, w)
            return None if outer is None or inner is None else outer * inner
        return None

    def spectrum(self, h: int, w: int) -> Float64[Tensor, "h w"] | None:
        """Return the product of the singular values where both operators commute with all shifts and are normal."""
        if self.shift_period != 1:
            return None
        outer, inner = self.outer.spectrum(h, w), self.inner.spectrum(h, w)
        return None if outer is None or inner is None else outer * inner

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the shape of the inputs of ``inner``."""
        return self.inner.input_shape(self.outer.input_shape(output_shape))

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the factorisation in a shared basis, or the dense one."""
        shared = self.structured_factor(input_shape)
        return shared if shared is not None else _dense_factor(self, tuple(input_shape))

    def structured_factor(self, input_shape: Shape) -> Factor | None:
        """Return the factorisation in a shared basis, else ``None``."""
        inner = self.inner.structured_factor(input_shape)
        if inner is None:
            return None
        outer = self.outer.structured_factor(_output_shape(self.inner, input_shape))
        return None if outer is None else outer.after(inner)

    def largest_product(self, input_shape: Shape) -> float:
        """Return ‖outer‖ ‖inner‖, roughly: what the rounding errors of the product are measured by."""
        return _norm(self.outer, _output_shape(self.inner, input_shape)) * _norm(self.inner, input_shape)

    def __repr__(self) -> str:
        return f"Compose({self.outer!r}, {self.inner!r})"


@final
class Nonlinear:
    """A measurement ``function``, (b, c, h, w) -> (b, ...), that need not be linear. Forward only (S3.4)."""

    shift_period = None
    diagonal = None

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def A(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """Return function(x)."""
        return self.function(x)

    def gram_symbol(self, h: int, w: int) -> None:
        """Return ``None``: there is no matrix."""
        return None

    def __repr__(self) -> str:
        return f"Nonlinear({getattr(self.function, '__name__', self.function)!s})"


@final
class _Undeclared(LinearOperator):
    """An operator of another library with ``A`` and ``A_adjoint``; its pseudo-inverse comes from its dense matrix.

    Factoring it checks that the adjoint is one.

    Its own ``A_dagger`` is not used: libraries compute it by iterations, to a tolerance of their own.
    """

    def __init__(self, physics: Any):
        self.physics = physics

    @property
    def shift_period(self) -> int | None:
        """Return what the operator declares; raises ``ValueError`` unless a positive integer or ``None``."""
        period = getattr(self.physics, "shift_period", None)
        if period is not None and (not hasattr(period, "__index__") or period < 1):
            raise ValueError(f"{self!r} declares shift_period={period!r}: it is a positive integer, or None.")
        return period

    @property
    def diagonal(self) -> Float[Tensor, "..."] | None:
        """Return what the operator declares."""
        diagonal = getattr(self.physics, "diagonal", None)
        return None if diagonal is None else torch.as_tensor(diagonal)

    def gram_symbol(self, h: int, w: int) -> Float64[Tensor, "h w"] | None:
        """Return what the operator declares, with zeros for what is rounding beside the largest (GRAM_RTOL).

        Raises ``ValueError`` unless it is real, of shape (h, w) and not negative beyond rounding.
        """
        declared = getattr(self.physics, "gram_symbol", None)
        symbol = None if declared is None else declared(h, w)
        if symbol is None:
            return None
        symbol = torch.as_tensor(symbol)
        if symbol.is_complex() or tuple(symbol.shape) != (h, w) or float(symbol.min()) < -1e-6 * float(symbol.max()):
            raise ValueError(
                f"{self!r} declares a gram_symbol of {symbol.dtype} and shape {tuple(symbol.shape)}: that of B Bᵀ "
                f"is real, not negative and has the shape {(h, w)} of the output; for a blur, |fft2(psf)|²."
            )
        symbol = symbol.double()
        return symbol.where(symbol > GRAM_RTOL * symbol.max(), 0.0)

    def A(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return A x."""
        return self.physics.A(x)

    def A_adjoint(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return Aᵀ y."""
        return self.physics.A_adjoint(y)

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the shape that the adjoint gives."""
        return tuple(apply_in_float64(self.physics.A_adjoint, torch.zeros(1, *output_shape)).shape[1:])

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the declared diagonal, or the SVD of the dense matrix, computed once per shape."""
        if self.diagonal is not None:
            u = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0), device=self.diagonal.device)
            check_declarations(self, u)
            return PixelFactor(self.diagonal.double(), input_shape)
        self._check_adjoint(tuple(input_shape))
        return _dense_factor(self, tuple(input_shape))

    def _check_adjoint(self, input_shape: Shape) -> None:
        """Raise ``ValueError`` where ⟨A u, v⟩ and ⟨u, Aᵀ v⟩ differ for random u and v."""
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(1, *input_shape, generator=generator)
        Au = apply_in_float64(self.A, u).double()
        v = torch.randn(Au.shape, generator=generator, dtype=Au.dtype)
        Atv = apply_in_float64(self.A_adjoint, v).double()
        slack = 1e-4 * float(Au.norm() * v.norm())
        if Atv.shape != u.shape or abs(float((Au * v).sum() - (u * Atv).sum())) > slack:
            raise ValueError(f"{self!r}: A_adjoint is not the adjoint of A, as ⟨A u, v⟩ differs from ⟨u, A_adjoint v⟩.")

    def structured_factor(self, input_shape: Shape) -> Factor | None:
        """Return the declared diagonal, else ``None``."""
        return None if self.diagonal is None else self.factorisation(input_shape)

    def spectrum(self, h: int, w: int) -> None:
        """Return ``None``: an operator that may mix or drop channels need not be normal."""
        return

    def largest_product(self, input_shape: Shape) -> float:
        """Return 0: rounding is measured by the largest singular value; but that of float32 weights by their eps."""
        applied = apply_in_float64(self.A, torch.zeros(1, *input_shape, dtype=torch.float64))
        if applied.dtype == torch.float64:
            return 0.0
        size = max(torch.Size(input_shape).numel(), applied.numel())
        return _norm(self, input_shape) * size * torch.finfo(applied.dtype).eps / RANK_RTOL

    def __repr__(self) -> str:
        return repr(self.physics)


# --------------------------------------------------------------------------------------------------------- pre-inverses


class _PreInverse(LinearOperator):
    """V g(S) Uᵀ of a forward operator U S Vᵀ: all pre-inverses are one thing, a function of its singular values."""

    def __init__(self, physics: Any):
        self.physics = as_operator(physics)
        _require_linear(self.physics, type(self).__name__)

    @abstractmethod
    def _gain(self, s: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """Return g(s) for s > 0."""

    def A(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return B y, images."""
        return self.physics.factorisation(self.physics.input_shape(tuple(y.shape[1:]))).backward(self._gain, y)

    def A_adjoint(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return Bᵀ x, measurements."""
        return self.physics.factorisation(tuple(x.shape[1:])).forward(self._gain, x)

    def A_dagger(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return B⁺ x, measurements."""
        return self.physics.factorisation(tuple(x.shape[1:])).forward(lambda s: self._gain(s).reciprocal(), x)

    @property
    def shift_period(self) -> int | None:
        """Return the period of the forward operator."""
        return self.physics.shift_period

    @property
    def diagonal(self) -> Float[Tensor, "..."] | None:
        """Return g of the diagonal of the forward operator."""
        diagonal = self.physics.diagonal
        if diagonal is None:
            return None
        return PixelFactor(diagonal.double(), tuple(diagonal.shape)).transpose(self._gain).diagonal

    def gram_symbol(self, h: int, w: int) -> Float64[Tensor, "h w"] | None:
        """Return g(s)² where AᵀA is circulant with the symbol s²."""
        spectrum = self.physics.spectrum(h, w)
        return None if spectrum is None else on_range(self._gain, spectrum, significant(spectrum)).square()

    def input_shape(self, output_shape: Shape) -> Shape:
        """Return the shape of the measurements of images of the given shape."""
        return _output_shape(self.physics, output_shape)

    def factorisation(self, input_shape: Shape) -> Factor:
        """Return the transposed factorisation of the forward operator."""
        return self.physics.factorisation(self.physics.input_shape(input_shape)).transpose(self._gain)

    def structured_factor(self, input_shape: Shape) -> Factor | None:
        """Return the transposed factorisation where that of the forward operator needs no dense matrix."""
        structured = self.physics.structured_factor(self.physics.input_shape(input_shape))
        return None if structured is None else structured.transpose(self._gain)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.physics!r})"


@final
class Adjoint(_PreInverse):
    """B = Aᵀ."""

    def _gain(self, s: Tensor) -> Tensor:
        return s

    def A(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return Aᵀ y."""
        return self.physics.A_adjoint(y)

    def A_adjoint(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return A x."""
        return self.physics.A(x)


@final
class PseudoInverse(_PreInverse):
    """B = A⁺, the Moore-Penrose inverse; for an operator that declares nothing, from its dense matrix."""

    def _gain(self, s: Tensor) -> Tensor:
        return s.reciprocal()


@final
class Tikhonov(_PreInverse):
    """B = (AᵀA + weight·Id)⁻¹Aᵀ; raises ``ValueError`` unless weight > 0 and finite."""

    def __init__(self, physics: Any, weight: float):
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"Tikhonov needs a finite weight > 0, got {weight}. For weight = 0 use PseudoInverse(physics)."
            )
        super().__init__(physics)
        self.weight = float(weight)

    def _gain(self, s: Tensor) -> Tensor:
        return s / (s.square() + self.weight)

    def __repr__(self) -> str:
        return f"Tikhonov({self.physics!r}, weight={self.weight:g})"


# ------------------------------------------------------------------------------------------ what estimators ask of them


def as_operator(physics: Any) -> LinearOperator | Nonlinear:
    """Accept an operator of this module, or anything with deepinv's ``A`` and ``A_adjoint``, and return an operator.

    Raises ``TypeError`` for anything else.
    """
    if isinstance(physics, LinearOperator | Nonlinear):
        return physics
    if isinstance(physics, type):
        raise TypeError(
            f"an operator must be an object: got the class {physics.__name__}. Call it, {physics.__name__}(...)."
        )
    if callable(getattr(physics, "A", None)) and callable(getattr(physics, "A_adjoint", None)):
        return _Undeclared(physics)
    raise TypeError(
        "an operator needs methods A(x) and A_adjoint(y), like those of lemmse or deepinv: got "
        f"{type(physics).__name__}. For a function without an adjoint use Nonlinear(function); for a matrix, "
        "Matrix(matrix, input_shape, output_shape)."
    )


def dense_matrix(operator: Any, input_shape: Shape) -> Float64[Tensor, "M N"]:
    """Build the matrix of a linear operator, column by column, and return it, (M, N), float64.

    ``input_shape`` is that of one input, without batch. Raises ``ValueError`` above DENSE_LIMIT entries.
    """
    operator, input_shape = as_operator(operator), tuple(input_shape)
    output_shape = _output_shape(operator, input_shape)
    n, m = torch.Size(input_shape).numel(), torch.Size(output_shape).numel()
    check_dense(m, n)
    columns = []
    for indices in torch.arange(n).split(512):
        basis = torch.nn.functional.one_hot(indices, n).double().unflatten(1, input_shape)
        columns.append(apply_in_float64(operator.A, basis).double().flatten(1))
    return torch.cat(columns).T.contiguous()


@dataclass(frozen=True)
class RowSpaceProjector:
    """Π, the orthogonal projector of inputs onto the row space Im Bᵀ = (ker B)^⊥ of an operator B (S3.1)."""

    factor: Factor

    def __call__(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return Π y of every input of the batch."""
        return self.factor.backward(unit, self.factor.forward(unit, y))


def row_space_projector(pre_inverse: LinearOperator, measurement_shape: Shape) -> RowSpaceProjector:
    """Return the projector onto Im Bᵀ for measurements of the given shape (without batch)."""
    return RowSpaceProjector(pre_inverse.factorisation(tuple(measurement_shape)))


def rank(operator: Any, input_shape: Shape) -> int:
    """Return the rank of a linear operator on inputs of the given shape (without batch)."""
    operator, input_shape = as_operator(operator), tuple(input_shape)
    factor = operator.structured_factor(input_shape)
    if factor is None:
        c, *size = _output_shape(operator, input_shape)
        symbol = operator.gram_symbol(*size) if len(size) == 2 else None
        if symbol is not None:
            return c * int(significant(symbol.sqrt()).sum())
        factor = operator.factorisation(input_shape)
    return factor.rank


def check_declarations(operator: LinearOperator, u: Float[Tensor, "1 ..."]) -> None:
    """Raise ``ValueError`` where what an operator declares is refuted by a random input u, at most to DECLARED_RTOL."""
    v = operator.A(u)
    refuted = None
    if (diagonal := operator.diagonal) is not None:
        axes = zip(reversed(diagonal.shape), reversed(u.shape[1:]), strict=False)
        fits = diagonal.ndim < u.ndim and all(side in (1, whole) for side, whole in axes) and u.shape == v.shape
        if not (fits and _near(diagonal.to(u) * u, v)):
            refuted = f"a diagonal of shape {tuple(diagonal.shape)}, but A u is not its product with u"
    symbol = operator.gram_symbol(*v.shape[2:]) if v.ndim == 4 else None
    if symbol is not None and not _near(convolve(symbol.to(torch.complex128), v), operator.A(operator.A_adjoint(v))):
        refuted = "a gram_symbol, but A Aᵀ v is not the convolution of v with it"
    if v.ndim == u.ndim == 4 and (period := operator.shift_period) is not None:
        whole = (period, period)  # a step of the coarser of two grids is a period of the finer one
        of_u, of_v = ((1, 1) if a.shape[2] < b.shape[2] else whole for a, b in ((u, v), (v, u)))
        if not _near(operator.A(torch.roll(u, of_u, (2, 3))), torch.roll(v, of_v, (2, 3))):
            refuted = f"shift_period={period}, but shifting u does not shift A u"
    if refuted is not None:
        raise ValueError(f"{operator!r} declares {refuted}. Mend the declaration, or leave it out.")


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= DECLARED_RTOL * max(float(a.norm()), float(b.norm())))


@dataclass(frozen=True)
class PolarWhitener:
    """(B Bᵀ)^{+1/2} B = U Vᵀ of B = U S Vᵀ, which whitens B y where it lies and divides by nothing (S4.2)."""

    factor: Factor

    def __call__(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return U Vᵀ y, of the shape of B y, for every input of the batch."""
        return self.factor.forward(unit, y)


@dataclass(frozen=True)
class GramWhitener:
    """(B Bᵀ)^{+1/2} B of an operator that declares the symbol of B Bᵀ and no factorisation of its own (S4.2)."""

    pre_inverse: LinearOperator
    symbol: Float64[Tensor, "h w"]

    def __call__(self, y: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Return (B Bᵀ)^{+1/2} B y for every input of the batch."""
        s, v = self.symbol.sqrt(), apply_in_float64(self.pre_inverse.A, y)
        kept = significant(s, float(s.max()) * torch.finfo(v.dtype).eps / RANK_RTOL)  # above the rounding of B y
        return convolve(on_range(torch.reciprocal, s, kept).to(torch.complex128), v).to(y.dtype)


def gram_whitener(pre_inverse: LinearOperator, measurement_shape: Shape) -> "PolarWhitener | GramWhitener | None":
    """Return the whitener of B y where B declares that B Bᵀ commutes with all shifts of its images; else ``None``."""
    shape = _output_shape(pre_inverse, measurement_shape)
    symbol = pre_inverse.gram_symbol(*shape[1:]) if len(shape) == 3 else None
    if symbol is None:
        return None
    factor = pre_inverse.structured_factor(tuple(measurement_shape))
    return GramWhitener(pre_inverse, symbol) if factor is None else PolarWhitener(factor)


_dense_factors: WeakKeyDictionary[LinearOperator, dict[Shape, DenseFactor]] = WeakKeyDictionary()
"""Dense factorisations, one per operator and shape, for as long as the operator lives."""


def _dense_factor(operator: "Compose | _Undeclared", input_shape: Shape) -> DenseFactor:
    """Return the SVD of the dense matrix of an operator, computed once."""
    factors = _dense_factors.setdefault(operator, {})
    if input_shape not in factors:
        matrix = dense_matrix(operator, input_shape)
        factors[input_shape] = DenseFactor(
            matrix, input_shape, _output_shape(operator, input_shape), reference=operator.largest_product(input_shape)
        )
    return factors[input_shape]


def _norm(operator: LinearOperator, input_shape: Shape) -> float:
    """Return the largest singular value of an operator, roughly: from below, by 20 steps of power iteration."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *input_shape, generator=generator, dtype=torch.float64)
    length = 0.0
    for _ in range(20):
        x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
        x = apply_in_float64(operator.A_adjoint, apply_in_float64(operator.A, x)).double()
        length = float(x.norm())
    return length**0.5


def _declares_identity(operator: LinearOperator) -> bool:
    diagonal = operator.diagonal
    return diagonal is not None and diagonal.ndim == 0 and float(diagonal) == 1.0


def _output_shape(operator: LinearOperator, input_shape: Shape) -> Shape:
    return tuple(apply_in_float64(operator.A, torch.zeros(1, *input_shape, dtype=torch.float64)).shape[1:])


def apply_in_float64(apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply in float64, or in float32 where an operator of another library holds float32 weights, and return that."""
    try:
        return apply(x.double())
    except RuntimeError:
        return apply(x.float())


def _require_linear(operator: LinearOperator | Nonlinear, asked: str) -> None:
    if isinstance(operator, Nonlinear):
        raise TypeError(f"{asked} needs a linear operator: {operator!r} has no adjoint.")


def _check_image(operator: LinearOperator, shape: Shape) -> None:
    if len(shape) != 3:
        raise ValueError(f"{operator!r} takes images (c, h, w): got a batch of {tuple(shape)}.")


def _check_size(operator: LinearOperator, shape: Shape, size: Shape) -> None:
    _check_image(operator, shape)
    if tuple(shape[-2:]) != size:
        raise ValueError(
            f"{operator!r} has a mask of {size[0]} × {size[1]} pixels, the image has {shape[-2]} × {shape[-1]}: "
            "make the mask (h, w) as large as the image."
        )


def _check_shape(operator: LinearOperator, shape: Shape, wanted: Shape) -> None:
    if tuple(shape) != wanted:
        raise ValueError(
            f"{operator!r} was given a batch of {tuple(shape)}; it takes (b, {', '.join(map(str, wanted))})."
        )


def _size(x: Tensor) -> str:
    return "×".join(map(str, x.shape))


def _binary_mask(mask: Any, asked: str) -> Float[Tensor, "h w"]:
    if hasattr(mask, "A"):
        raise TypeError(f"{asked} takes a mask (h, w), not an operator: got {mask!r}.")
    mask = torch.as_tensor(mask)
    if mask.ndim != 2 or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"{asked} needs a mask of shape (h, w) with entries 0 and 1: got shape {tuple(mask.shape)}"
            + (f", values from {mask.min():g} to {mask.max():g}." if mask.numel() else ".")
        )
    return mask if mask.is_floating_point() else mask.float()


def _kernel(psf: Tensor, asked: str) -> Float[Tensor, "kh kw"]:
    psf = torch.as_tensor(psf)
    if psf.ndim != 2 or not psf.isfinite().all() or not psf.abs().sum() > 0:
        raise ValueError(
            f"{asked} needs a finite psf of shape (kh, kw) that is not all zero: got shape {tuple(psf.shape)}."
        )
    return psf


# ---------------------------------------------------------------------------------------------------------------- masks


def center_mask(h: int, w: int, *, side: int) -> Float32[Tensor, "h w"]:
    """Return a mask that hides a square of ``side`` pixels around the centre (h//2, w//2), 1 where visible.

    Raises ``ValueError`` for a side outside 0 … min(h, w).
    """
    if not 0 <= side <= min(h, w):
        raise ValueError(f"center_mask: a hole of side {side} does not fit into {h} × {w} pixels.")
    mask = torch.ones(h, w)
    top, left = h // 2 - side // 2, w // 2 - side // 2
    mask[top : top + side, left : left + side] = 0
    return mask


def random_mask(h: int, w: int, *, keep: float, generator: torch.Generator | None = None) -> Float32[Tensor, "h w"]:
    """Return a mask that shows the fraction ``keep`` of the pixels (rounded to whole pixels), drawn with ``generator``.

    Without a generator, seed 0: the same mask every time. Raises ``ValueError`` unless 0 <= keep <= 1.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"random_mask: keep is a fraction between 0 and 1, got {keep}.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    mask = torch.zeros(h * w)
    mask[torch.randperm(h * w, generator=generator)[: round(keep * h * w)]] = 1
    return mask.reshape(h, w)


def half_mask(h: int, w: int, *, visible: str = "left") -> Float32[Tensor, "h w"]:
    """Return a mask that shows one half of the image: ``"left"``, ``"right"``, ``"top"`` or ``"bottom"``.

    Raises ``ValueError`` for another word.
    """
    halves = {
        "left": (slice(None), slice(0, w // 2)),
        "right": (slice(None), slice(w // 2, None)),
        "top": (slice(0, h // 2), slice(None)),
        "bottom": (slice(h // 2, None), slice(None)),
    }
    if visible not in halves:
        raise ValueError(f"half_mask: visible is one of {', '.join(halves)}, got {visible!r}.")
    mask = torch.zeros(h, w)
    mask[halves[visible]] = 1
    return mask


def stripe_mask(h: int, w: int, *, period: int, width: int | None = None) -> Float32[Tensor, "h w"]:
    """Return a mask of vertical stripes: in every ``period`` columns the first ``width`` (half of them) are visible.

    Raises ``ValueError`` unless 1 <= width <= period <= w.
    """
    width = max(1, period // 2) if width is None else width
    if not 1 <= width <= period <= w:
        raise ValueError(f"stripe_mask needs 1 <= width <= period <= {w}, got period={period}, width={width}.")
    return (torch.arange(w) % period < width).float().expand(h, w).clone()
