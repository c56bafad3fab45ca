"""Networks with a declared, exact receptive field, told the noise level, called ``net(v, sigma)`` with v = B y.

A local network is one function f of one window, applied to the window of every pixel, which is the class that the
local estimator minimises over (S5.1; S5.9 for a zero boundary). It is built just so: the image is padded once, by what
windows find beyond the border, and no later layer pads. Hence the receptive field 1 + Σ (k_i - 1) is exact at either
boundary, shifts commute with the network, and ``of_windows`` applies it to any crop, as training does. Layers between
see one pixel at a time: nothing is normalised over an image or a batch.

Features lie in memory pixel by pixel, (b, h, w, channels): layers that see one pixel are plain matrix products.

Any other ``torch.nn.Module`` called the same way, with an attribute ``receptive_field``, serves where these do;
``check_receptive_field`` says whether what it declares is so.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from ._checks import checked_sigma, positive_integer
from .operators import as_operator
from .patches import BOUNDARIES, padded
from .receptive_fields import Leaks, check_receptive_field, leaks

__all__ = [
    "ACTIVATIONS",
    "GlobalCNN",
    "GlobalMLP",
    "Leaks",
    "LocalResNet",
    "LocalUNet",
    "Network",
    "PatchMLP",
    "Preconditioning",
    "check_receptive_field",
    "leaks",
    "rebuild",
]

ACTIVATIONS = {"gelu": nn.functional.gelu, "relu": nn.functional.relu, "silu": nn.functional.silu}
"""Nonlinearities by the names that a ``config`` holds."""

EMBEDDING = 32
"""Numbers that a noise level is turned into."""

FREQUENCIES = tuple(0.25 * 2 ** (k / 2) for k in range(12))
"""Of the sines and cosines of ln σ, in radians per nat: from slower than the range of σ to a tenth of a nat."""

BRANCH_GAIN = 0.5
"""Of the last layer of a residual branch at the start: blocks change what passes them moderately."""

GAIN_PROBES = 64
"""Random measurements from which the gain of noise is measured, at a relative error of about 1 % for one pixel."""


# ---- Input and output of a network, scaled --------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Preconditioning:
    """Scales between v and what layers work on: x̂ = m_x + c_skip (v - m_v) + c_out F(c_in (v - m_v), ln σ).

    With u = v - m_v of variance s_v² + g²σ²: c_in makes its entries of variance one; c_skip u is the best linear guess
    of x - m_x from the same pixel, c_skip = cov / (s_v² + g²σ²), and c_out the standard deviation of what that guess
    leaves, c_out² = s_x² - cov² / (s_v² + g²σ²). So F learns a target of variance one at every σ. For denoising
    (s_x = s_v, cov = s_v², g = 1) these are the scalings of Karras et al., arXiv 2206.00364, about the mean.

    ``x_mean`` m_x and ``x_std`` s_x of images, ``v_mean`` m_v and ``v_std`` s_v of B A x, ``covariance`` of the two at
    the same pixel, and ``noise_gain`` g, the root mean square of B e for noise e of variance one; numbers over all
    pixels and channels. The noise in v is white for B = Id only: g stands for all of its entries.
    """

    x_mean: float = 0.35
    x_std: float = 0.3
    v_mean: float = 0.35
    v_std: float = 0.3
    covariance: float = 0.09
    noise_gain: float = 1.0

    @classmethod
    def of(cls, images: Float[Tensor, "D c h w"], physics: Any, pre_inverse: Any = None) -> "Preconditioning":
        """Measure the scales of images, operator and pre-inverse (``None`` for the identity) and return them.

        The noise's gain comes from GAIN_PROBES random measurements, always the same.
        """
        physics = as_operator(physics)
        pre_inverse = None if pre_inverse is None else as_operator(pre_inverse)
        measured = physics.A(images)
        probes = torch.randn(GAIN_PROBES, *measured.shape[1:], generator=torch.Generator().manual_seed(0))
        noise = probes.to(measured)
        v, noise = (y if pre_inverse is None else pre_inverse.A(y) for y in (measured, noise))
        if v.shape != images.shape:
            raise ValueError(
                f"a network sees v = B y, which must have the shape of images, {tuple(images.shape)}: got "
                f"{tuple(v.shape)}. A pre-inverse such as Adjoint(physics) gives images."
            )
        x, v, noise = images.double(), v.double(), noise.double()
        return cls(
            x_mean=x.mean().item(),
            x_std=x.std(correction=0).item(),
            v_mean=v.mean().item(),
            v_std=v.std(correction=0).item(),
            covariance=((x - x.mean()) * (v - v.mean())).mean().item(),
            noise_gain=noise.square().mean().sqrt().item(),
        )

    def scales(self, sigma: Float64[Tensor, " b"]) -> tuple[Float64[Tensor, " b"], ...]:
        """Return c_skip, c_out and c_in at each sigma, in double precision: c_out is a difference of near numbers."""
        total = (self.v_std**2 + (self.noise_gain * sigma) ** 2).clamp_min(1e-12)
        left = (self.x_std**2 - self.covariance**2 / total).clamp_min(1e-12)
        return self.covariance / total, left.sqrt(), total.rsqrt()


# ---- Layers on features (b, h, w, channels) -------------------------------------------------------------------------


class _PixelLinear(nn.Module):
    """A matrix product at every pixel; weights normal of variance gain² / inputs, biases zero."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=generator) * gain / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "*pixels i"]) -> Float[Tensor, "*pixels o"]:
        """Return W x + b of every pixel."""
        return linear(x, self.weight, self.bias)


class _Conv3(nn.Module):
    """A 3×3 convolution, valid pixels only: one pixel less at each side, ``dilation`` pixels where taps lie apart."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0, dilation: int = 1):
        super().__init__()
        self.dilation = dilation
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * gain / math.sqrt(9 * inputs)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "b h w i"]) -> Float[Tensor, "b h2 w2 o"]:
        """Return the convolution; the permutations are views, in the memory format called channels_last."""
        out = conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, dilation=self.dilation)
        return out.permute(0, 2, 3, 1)


class _NoiseEmbedding(nn.Module):
    """Sines and cosines of ln σ and a small network on them: (b, EMBEDDING) numbers that tell the noise level."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES), persistent=False)
        self.first = _PixelLinear(2 * len(FREQUENCIES), EMBEDDING, generator)
        self.second = _PixelLinear(EMBEDDING, EMBEDDING, generator)

    def forward(self, sigma: Float64[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Return the embedding of each sigma."""
        angles = sigma.log().to(self.frequencies.dtype)[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        return nn.functional.silu(self.second(nn.functional.silu(self.first(waves))))


class _Modulation(nn.Module):
    """Per-channel scale 1 + s(σ) and shift t(σ) of features: the same at all pixels of an image."""

    def __init__(self, width: int, generator: torch.Generator):
        super().__init__()
        self.affine = _PixelLinear(EMBEDDING, 2 * width, generator, gain=0.5)

    def forward(self, x: Float[Tensor, "b h w i"], embedded: Float[Tensor, "b e"]) -> Float[Tensor, "b h w i"]:
        """Return the modulated features."""
        scale, shift = self.affine(embedded).to(x.dtype)[:, None, None].chunk(2, -1)
        return torch.addcmul(shift, x, 1 + scale)


class _PixelBlock(nn.Module):
    """x + W₂ act(modulated W₁ x), pixel by pixel."""

    def __init__(self, width: int, hidden: int, activation: str, generator: torch.Generator):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.first = _PixelLinear(width, hidden, generator, gain=math.sqrt(2))
        self.modulation = _Modulation(hidden, generator)
        self.second = _PixelLinear(hidden, width, generator, gain=BRANCH_GAIN)

    def forward(self, x: Float[Tensor, "b h w i"], embedded: Float[Tensor, "b e"]) -> Float[Tensor, "b h w i"]:
        """Return the features, changed."""
        return x + self.second(self.activation(self.modulation(self.first(x), embedded)))


class _ConvBlock(nn.Module):
    """x + W₂ act(modulated K x) with a 3×3 convolution K of valid pixels, the features x cropped to them."""

    def __init__(self, width: int, activation: str, generator: torch.Generator, dilation: int = 1):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.first = _Conv3(width, width, generator, gain=math.sqrt(2), dilation=dilation)
        self.modulation = _Modulation(width, generator)
        self.second = _PixelLinear(width, width, generator, gain=BRANCH_GAIN)

    def forward(self, x: Float[Tensor, "b h w i"], embedded: Float[Tensor, "b e"]) -> Float[Tensor, "b h2 w2 i"]:
        """Return the features of the pixels that remain, changed."""
        branch = self.second(self.activation(self.modulation(self.first(x), embedded)))
        return _cropped(x, branch.shape[1:3]) + branch


def _cropped(x: Float[Tensor, "b h w i"], size: tuple[int, int]) -> Float[Tensor, "b h2 w2 i"]:
    """Return the middle of features, as many pixels as asked for."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


# ---- Networks -------------------------------------------------------------------------------------------------------


class Network(nn.Module, ABC):
    """What the networks share: checks of input, conditioning on the noise level, scales of input and output.

    ``activation`` is a name of ACTIVATIONS; ``preconditioning`` the scales of what it will be trained on,
    ``Preconditioning.of(images, physics, pre_inverse)``. Weights come from the ``generator`` (seed 0 if there is none),
    never from the global seed.

    ``receptive_field`` is the side of the square of pixels that a pixel of the output depends on, an odd number, or
    ``None`` where it is the whole image. ``config`` is a dict of JSON values from which ``rebuild`` makes the same
    network with other weights. ``sigma_range`` (low, high) is what it was trained on, ``None`` before.
    """

    receptive_field: int | None
    boundary: str = "circular"

    def __init__(
        self,
        channels: int,
        sizes: dict[str, Any],
        generator: torch.Generator,
        *,
        activation: str = "gelu",
        preconditioning: Preconditioning | dict | None = None,
        sigma_range: Any = None,
    ):
        super().__init__()
        self.channels = positive_integer(channels, "channels counts those of an image")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(map(repr, ACTIVATIONS))}: got {activation!r}.")
        if isinstance(preconditioning, dict):
            preconditioning = Preconditioning(**preconditioning)
        self.activation = activation
        self.preconditioning = Preconditioning() if preconditioning is None else preconditioning
        self.sigma_range = None if sigma_range is None else tuple(map(float, sigma_range))
        self._sizes = sizes
        self.embedding = _NoiseEmbedding(generator)

    @property
    def config(self) -> dict[str, Any]:
        """Return JSON values that ``rebuild`` makes the same network from, but for its weights."""
        return {
            "architecture": type(self).__name__,
            "channels": self.channels,
            **self._sizes,
            "activation": self.activation,
            "preconditioning": asdict(self.preconditioning),
            "sigma_range": None if self.sigma_range is None else list(self.sigma_range),
        }

    def forward(self, v: Float[Tensor, "b c h w"], sigma: float | Tensor) -> Float[Tensor, "b c h w"]:
        """Return the estimate x̂ of images from v = B y, noise of standard deviation sigma, a number or (b,), in y.

        Raises ``ValueError`` for a v of another shape and a sigma that is not positive, and warns about one outside the
        range that the network was trained on.
        """
        self._check_image(v)
        return self.of_windows(self._bordered(v), sigma)

    def of_windows(self, v: Float[Tensor, "b c h2 w2"], sigma: float | Tensor) -> Float[Tensor, "b c h w"]:
        """Return the estimate at those pixels of a crop of v whose windows lie in it, (p - 1)/2 from its border."""
        sigma = self._checked_sigma(sigma, v)
        scales = (scale.to(v.dtype)[:, None, None, None] for scale in self.preconditioning.scales(sigma))
        c_skip, c_out, c_in = scales
        u = (v - self.preconditioning.v_mean).permute(0, 2, 3, 1)
        with torch.autocast(v.device.type, enabled=False):
            embedded = self.embedding(sigma)
        correction = self._features_to_image(c_in * u, embedded).to(v.dtype)
        x = self.preconditioning.x_mean + c_skip * _cropped(u, correction.shape[1:3]) + c_out * correction
        return x.permute(0, 3, 1, 2).contiguous()

    @abstractmethod
    def _features_to_image(self, u: Float[Tensor, "b h2 w2 c"], embedded: Float[Tensor, "b e"]) -> Tensor:
        """Return F, (b, h, w, c), of scaled crops with a border, and of the embedded noise level."""

    @abstractmethod
    def _bordered(self, v: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return an image with what the windows of its pixels find beyond its border."""

    def _answer(self, features: Float[Tensor, "b h2 w2 i"], embedded: Float[Tensor, "b e"]) -> Float[Tensor, "b h w o"]:
        """Return what ``blocks`` that take features as they are, and the ``head``, make of them."""
        for block in self.blocks:
            features = block(features, embedded)
        return self._at_the_head(features)

    def _at_the_head(self, features: Float[Tensor, "b h w i"]) -> Float[Tensor, "b h w o"]:
        return self.head(ACTIVATIONS[self.activation](features))

    def _check_image(self, v: Tensor) -> None:
        if v.ndim != 4 or v.shape[1] != self.channels:
            raise ValueError(f"v must be (b, {self.channels}, h, w): got {tuple(v.shape)}.")

    def _checked_sigma(self, sigma: float | Tensor, v: Tensor) -> Float64[Tensor, " b"]:
        """Return sigma as (b,); a network in training takes it as it comes, so that no device is waited for."""
        if self.training:
            return torch.as_tensor(sigma, dtype=torch.float64, device=v.device).expand(len(v))
        sigma = checked_sigma(sigma, len(v), v.device)
        if self.sigma_range is not None:
            low, high = self.sigma_range
            if sigma.min() < low * (1 - 1e-6) or sigma.max() > high * (1 + 1e-6):
                warnings.warn(
                    f"sigma = {sigma.min().item():g} to {sigma.max().item():g} leaves the range [{low:g}, {high:g}] "
                    f"that this {type(self).__name__} was trained on: what it answers there is arbitrary. Ask within "
                    "the range, or train on a wider one.",
                    stacklevel=4,
                )
        return sigma

    def __repr__(self) -> str:
        field = "the whole image" if self.receptive_field is None else f"{self.receptive_field}×{self.receptive_field}"
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"{type(self).__name__}({self.channels} channels, receptive field {field}, {count} parameters)"


class _LocalNetwork(Network):
    """A function of one window of ``patch_size``, applied to that of every pixel.

    ``boundary`` says what windows find beyond the border, ``"circular"`` or ``"zero"``.
    """

    def __init__(
        self,
        channels: int,
        patch_size: int,
        sizes: dict[str, Any],
        generator: torch.Generator,
        *,
        boundary: str = "circular",
        **shared: Any,
    ):
        if (
            not hasattr(patch_size, "__index__")
            or isinstance(patch_size, bool)
            or patch_size < 1
            or patch_size % 2 == 0
        ):
            raise ValueError(f"patch_size is the side of a window with a centre pixel, odd: got {patch_size!r}.")
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary is one of {', '.join(map(repr, BOUNDARIES))}: got {boundary!r}.")
        facts = {"patch_size": int(patch_size), "boundary": boundary}
        super().__init__(channels, facts | sizes, generator, **shared)
        self.receptive_field, self.boundary = int(patch_size), boundary

    def _bordered(self, v: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return padded(v, self.receptive_field, self.boundary)

    def _check_image(self, v: Tensor) -> None:
        super()._check_image(v)
        if min(v.shape[2:]) < self.receptive_field:
            raise ValueError(
                f"windows of {self.receptive_field}×{self.receptive_field} would meet themselves around images of "
                f"{v.shape[2]}×{v.shape[3]}: use larger images, or a network of a smaller patch_size."
            )


def _sizes(width: int, hidden: int, depth: int) -> dict[str, int]:
    """Return the sizes of blocks; raises ``ValueError`` unless they are whole numbers, positive but for the depth."""
    return {
        "width": positive_integer(width, "width counts features"),
        "hidden": positive_integer(hidden, "hidden counts units"),
        "depth": 0 if depth == 0 else positive_integer(depth, "depth counts blocks"),
    }


@final
class LocalResNet(_LocalNetwork):
    """A residual network: 3×3 convolutions until the receptive field is ``patch_size``, then blocks on single pixels.

    A 3×3 stem, (p - 3)/2 residual blocks with one 3×3 convolution each, and ``depth`` residual blocks of ``width``
    features and ``hidden`` units (twice the width, unless named) that see one pixel: most of the work, as the formula's
    is, is a function of the window alone.

    Other arguments are those of ``Network`` and ``boundary``, ``"circular"`` or ``"zero"``. Raises ``ValueError`` for
    an even patch size and names or counts out of range. Source: S11, architectures.

    >>> LocalResNet(1, 5)
    LocalResNet(1 channels, receptive field 5×5, 122945 parameters)
    """

    def __init__(
        self,
        channels: int,
        patch_size: int,
        *,
        width: int = 64,
        hidden: int | None = None,
        depth: int = 3,
        generator: torch.Generator | None = None,
        **shared: Any,
    ):
        hidden, generator = 2 * width if hidden is None else hidden, _seeded(generator)
        super().__init__(channels, patch_size, _sizes(width, hidden, depth), generator, **shared)
        stem = _PixelLinear if patch_size == 1 else _Conv3
        self.stem = stem(channels, width, generator)
        convolutions = max(0, (patch_size - 3) // 2)
        self.blocks = nn.ModuleList(
            [_ConvBlock(width, self.activation, generator) for _ in range(convolutions)]
            + [_PixelBlock(width, hidden, self.activation, generator) for _ in range(depth)]
        )
        self.head = _PixelLinear(width, channels, generator)

    def _features_to_image(self, u: Float[Tensor, "b h2 w2 c"], embedded: Float[Tensor, "b e"]) -> Tensor:
        return self._answer(self.stem(u), embedded)


class _Stage(nn.Module):
    """A change of width, by 3×3 convolutions or at single pixels, and a block at single pixels."""

    def __init__(self, inputs: int, outputs: int, convolutions: int, activation: str, generator: torch.Generator):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        widths = [inputs] + [outputs] * max(1, convolutions)
        layer = _Conv3 if convolutions else _PixelLinear
        self.changes = nn.ModuleList(layer(i, o, generator) for i, o in pairwise(widths))
        self.block = _PixelBlock(outputs, outputs, activation, generator)

    def forward(self, x: Float[Tensor, "b h w i"], embedded: Float[Tensor, "b e"]) -> Float[Tensor, "b h2 w2 o"]:
        """Return features of the new width."""
        for index, change in enumerate(self.changes):
            x = change(x if index == 0 else self.activation(x))
        return self.block(x, embedded)


UNET_STAGES = 5
"""Of a ``LocalUNet``: two on the way down, the bottom, two on the way up."""


@final
class LocalUNet(_LocalNetwork):
    """A U-Net without downsampling: widths grow and shrink, skip connections, 3×3 in (p - 1)/2 chosen layers.

    Five stages of ``width``, 3/2, 2, 3/2 and 1 times that; each way up also takes the features of the same width on the
    way down, cropped. 3×3 convolutions are dealt to the stages in turn from the first on, the other changes of width
    see one pixel. Arguments and errors as for ``LocalResNet``. Source: S11, architectures.

    >>> LocalUNet(1, 5)
    LocalUNet(1 channels, receptive field 5×5, 129777 parameters)
    """

    def __init__(
        self,
        channels: int,
        patch_size: int,
        *,
        width: int = 48,
        generator: torch.Generator | None = None,
        **shared: Any,
    ):
        width = positive_integer(width, "width counts features")
        generator = _seeded(generator)
        super().__init__(channels, patch_size, {"width": width}, generator, **shared)
        middle, bottom = width + width // 2, 2 * width
        changes = [
            (channels, width),
            (width, middle),
            (middle, bottom),
            (bottom + middle, middle),
            (middle + width, width),
        ]
        convolutions = (patch_size - 1) // 2
        self.stages = nn.ModuleList(
            _Stage(i, o, (convolutions + UNET_STAGES - 1 - index) // UNET_STAGES, self.activation, generator)
            for index, (i, o) in enumerate(changes)
        )
        self.head = _PixelLinear(width, channels, generator)

    def _features_to_image(self, u: Float[Tensor, "b h2 w2 c"], embedded: Float[Tensor, "b e"]) -> Tensor:
        first, second, bottom, third, last = self.stages
        wide = first(u, embedded)
        wider = second(wide, embedded)
        features = _joined(bottom(wider, embedded), wider)
        features = _joined(third(features, embedded), wide)
        return self._at_the_head(last(features, embedded))


def _joined(x: Float[Tensor, "b h w i"], skipped: Float[Tensor, "b h2 w2 j"]) -> Float[Tensor, "b h w k"]:
    return torch.cat([x, _cropped(skipped, x.shape[1:3])], -1)


@final
class PatchMLP(_LocalNetwork):
    """A multilayer perceptron of one window: a p×p convolution of all channels together, then blocks on single pixels.

    ``depth`` residual blocks of ``width`` features and ``hidden`` units (the width, unless named). Other arguments and
    errors as for ``LocalResNet``. Source: S11, architectures.

    >>> PatchMLP(1, 5)
    PatchMLP(1 channels, receptive field 5×5, 129729 parameters)
    """

    def __init__(
        self,
        channels: int,
        patch_size: int,
        *,
        width: int = 128,
        hidden: int | None = None,
        depth: int = 3,
        generator: torch.Generator | None = None,
        **shared: Any,
    ):
        hidden, generator = width if hidden is None else hidden, _seeded(generator)
        super().__init__(channels, patch_size, _sizes(width, hidden, depth), generator, **shared)
        self.stem = _PixelLinear(channels * patch_size**2, width, generator)
        self.blocks = nn.ModuleList(_PixelBlock(width, hidden, self.activation, generator) for _ in range(depth))
        self.head = _PixelLinear(width, channels, generator)

    def _features_to_image(self, u: Float[Tensor, "b h2 w2 c"], embedded: Float[Tensor, "b e"]) -> Tensor:
        p = self.receptive_field
        windows = u.unfold(1, p, 1).unfold(2, p, 1).flatten(3)  # (b, h, w, c·p²): gathered once, then one product
        return self._answer(self.stem(windows), embedded)


class _GlobalNetwork(Network):
    """A function of the whole image, of one size."""

    receptive_field = None

    def __init__(
        self,
        channels: int,
        image_size: Sequence[int],
        sizes: dict[str, Any],
        generator: torch.Generator,
        **shared: Any,
    ):
        h, w = (positive_integer(side, "image_size counts rows and columns") for side in image_size)
        super().__init__(channels, {"image_size": [h, w], **sizes}, generator, **shared)
        self.image_size = (h, w)

    def _bordered(self, v: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return v

    def _check_image(self, v: Tensor) -> None:
        if v.ndim != 4 or tuple(v.shape[1:]) != (self.channels, *self.image_size):
            wanted = ", ".join(map(str, ("b", self.channels, *self.image_size)))
            raise ValueError(f"v must be ({wanted}), the size that this network was made for: got {tuple(v.shape)}.")


@final
class GlobalMLP(_GlobalNetwork):
    """A multilayer perceptron of the whole image of ``image_size`` (h, w): what ``MMSE`` is the best of (S3).

    ``depth`` residual blocks of ``width`` features and ``hidden`` units (the width, unless named). Other arguments and
    errors as for ``LocalResNet``.

    >>> GlobalMLP(1, (28, 28))
    GlobalMLP(1 channels, receptive field the whole image, 1247184 parameters)
    """

    def __init__(
        self,
        channels: int,
        image_size: Sequence[int],
        *,
        width: int = 384,
        hidden: int | None = None,
        depth: int = 2,
        generator: torch.Generator | None = None,
        **shared: Any,
    ):
        hidden, generator = width if hidden is None else hidden, _seeded(generator)
        super().__init__(channels, image_size, _sizes(width, hidden, depth), generator, **shared)
        entries = channels * self.image_size[0] * self.image_size[1]
        self.stem = _PixelLinear(entries, width, generator)
        self.blocks = nn.ModuleList(_PixelBlock(width, hidden, self.activation, generator) for _ in range(depth))
        self.head = _PixelLinear(width, entries, generator)

    def _features_to_image(self, u: Float[Tensor, "b h2 w2 c"], embedded: Float[Tensor, "b e"]) -> Tensor:
        return self._answer(self.stem(u.flatten(1))[:, None, None], embedded).view(u.shape)


@final
class GlobalCNN(_GlobalNetwork):
    """A circular convolutional network that sees the whole image, (h, w): what ``EquivariantMMSE`` is the best of (S4).

    Residual blocks with one 3×3 convolution each, whose taps lie 1, 2, 4 … pixels apart until they reach around the
    image, ``depth`` times over, with a block that sees one pixel after each. Other arguments and errors as for
    ``LocalResNet``.

    >>> GlobalCNN(1, (28, 28))
    GlobalCNN(1 channels, receptive field the whole image, 275409 parameters)
    """

    def __init__(
        self,
        channels: int,
        image_size: Sequence[int],
        *,
        width: int = 48,
        depth: int = 2,
        generator: torch.Generator | None = None,
        **shared: Any,
    ):
        width = positive_integer(width, "width counts features")
        depth = positive_integer(depth, "depth counts rounds of blocks")
        generator = _seeded(generator)
        super().__init__(channels, image_size, {"width": width, "depth": depth}, generator, **shared)
        self.stem = _PixelLinear(channels, width, generator)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            for dilation in _dilations(max(self.image_size)):
                self.blocks.append(_ConvBlock(width, self.activation, generator, dilation=dilation))
                self.blocks.append(_PixelBlock(width, width, self.activation, generator))
        self.head = _PixelLinear(width, channels, generator)

    def _features_to_image(self, u: Float[Tensor, "b h2 w2 c"], embedded: Float[Tensor, "b e"]) -> Tensor:
        features = self.stem(u)
        for block in self.blocks:
            around = features if isinstance(block, _PixelBlock) else _wrapped(features, block.first.dilation)
            features = block(around, embedded)
        return self._at_the_head(features)


def _dilations(side: int) -> list[int]:
    """Return 1, 2, 4 … until 1 + 2 Σ dilations, the side of what 3×3 convolutions see, is that of the image."""
    dilations = [1]
    while 1 + 2 * sum(dilations) < side:
        dilations.append(2 * dilations[-1])
    return dilations


def _wrapped(x: Float[Tensor, "b h w i"], border: int) -> Float[Tensor, "b h2 w2 i"]:
    """Return features with a border from the other side of the image; it may be wider than the image."""
    rows, columns = ((torch.arange(-border, side + border, device=x.device) % side) for side in x.shape[1:3])
    return x.index_select(1, rows).index_select(2, columns)


def _seeded(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def rebuild(config: dict[str, Any], generator: torch.Generator | None = None) -> Network:
    """Make the network that a ``config`` describes, with weights from the generator, and return it.

    Raises ``ValueError`` for a config that names no network of this module or does not fit it.

    >>> rebuild(PatchMLP(3, 7, width=16).config)
    PatchMLP(3 channels, receptive field 7×7, 9075 parameters)
    """
    architectures = {kind.__name__: kind for kind in (GlobalCNN, GlobalMLP, LocalResNet, LocalUNet, PatchMLP)}
    arguments = dict(config)
    name = arguments.pop("architecture", None)
    if name not in architectures:
        raise ValueError(f"a config names its architecture, one of {', '.join(architectures)}: got {name!r}.")
    try:
        return architectures[name](**arguments, generator=generator)
    except TypeError as error:
        raise ValueError(f"the config does not fit {name}: {error}. Was it made by another version?") from error
