"""Every linear operator and pre-inverse, with the shape of its inputs: register a new one here and it gets every test.

All sides differ, so that no transposition can hide; no singular value lies between 1e-9 and 1e-6 of the largest.
"""

from dataclasses import dataclass

import torch

import lemmse as le

C, H, W = 2, 6, 9
IMAGE = (C, H, W)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_matrix(m: int, n: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    """A random matrix of a given rank."""
    g = _generator(seed)
    rank = min(m, n) if rank is None else rank
    return torch.randn(m, rank, generator=g, dtype=torch.float64) @ torch.randn(
        rank, n, generator=g, dtype=torch.float64
    )


@dataclass(frozen=True)
class Case:
    """A linear operator and the shape of its inputs, without batch."""

    name: str
    operator: object
    input_shape: tuple[int, ...]


GAUSSIAN = le.optics.gaussian_psf(1.0, size=(5, 3))
BOX = torch.full((3, 3), 1 / 9, dtype=torch.float64)  # singular: 9 = 3 × 3 and 6 = 2 × 3 are multiples of its width
MASK = le.random_mask(H, W, keep=0.6, generator=_generator())
FREQUENCIES = le.random_mask(H, W, keep=0.4, generator=_generator(1))


class LikeDeepinv:
    """An operator of another library: deepinv's names, float32 weights, an iterative A_dagger, no declarations."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask.float()

    def A(self, x, **kwargs):
        return x * self.mask + 0.5 * torch.roll(x, 1, -1)

    def A_adjoint(self, y, **kwargs):
        return y * self.mask + 0.5 * torch.roll(y, -1, -1)

    def A_dagger(self, y, **kwargs):
        raise AssertionError("an iterative pseudo-inverse of another library must not be relied on")


FORWARD = {
    "denoising": le.Denoising(),
    "inpainting": le.Inpainting(MASK),
    "inpainting stripes": le.Inpainting(le.stripe_mask(H, W, period=3)),
    "blur": le.Blur(GAUSSIAN),
    "blur, singular box": le.Blur(BOX),
    "blur, asymmetric": le.Blur(torch.rand(4, 3, generator=_generator(2), dtype=torch.float64)),
    "downsampling by 3": le.Downsampling(3),
    "downsampling by 3, blurred": le.Downsampling(3, GAUSSIAN),
    "downsampling by 1": le.Downsampling(1, BOX),
    "fourier sampling": le.FourierSampling(FREQUENCIES),
    "matrix, wide": le.Matrix(random_matrix(7, 108), IMAGE, (7,)),
    "matrix, tall, rank 5": le.Matrix(random_matrix(130, 108, rank=5), IMAGE, (1, 13, 10)),
    "inpainting of a blur": le.Compose(le.Inpainting(MASK), le.Blur(GAUSSIAN)),
    "downsampling of an inpainting": le.Compose(le.Downsampling(3), le.Inpainting(MASK)),
    "two blurs": le.Compose(le.Blur(GAUSSIAN), le.Blur(BOX)),
    "two masks": le.Compose(le.Inpainting(MASK), le.Inpainting(le.half_mask(H, W))),
    "downsampling of a blur": le.Compose(le.Downsampling(3), le.Blur(GAUSSIAN)),
    "a mask of denoising": le.Compose(le.Inpainting(MASK), le.Denoising()),
    "matrix of a downsampling": le.Compose(le.Matrix(random_matrix(5, 12), (2, 2, 3), (5,)), le.Downsampling(3)),
    "blurred frequencies": le.Compose(le.FourierSampling(FREQUENCIES), le.Blur(GAUSSIAN)),
    "down and up again": le.Compose(le.Adjoint(le.Downsampling(3)), le.Downsampling(3)),
    "epsilon inverse": le.EpsilonInverse(MASK, 1e-3),
}
FORWARD["another library's"] = le.Compose(le.Denoising(), LikeDeepinv(MASK))


def _pre_inverses(name: str, physics) -> dict[str, object]:
    return {
        f"adjoint of {name}": le.Adjoint(physics),
        f"pseudo-inverse of {name}": le.PseudoInverse(physics),
        f"tikhonov of {name}": le.Tikhonov(physics, 0.1),
    }


def _cases() -> list[Case]:
    cases = []
    for name, physics in FORWARD.items():
        measurement = tuple(physics.A(torch.zeros(1, *IMAGE)).shape[1:])
        cases.append(Case(name, physics, IMAGE))
        cases += [Case(label, B, measurement) for label, B in _pre_inverses(name, physics).items()]
    nested = le.Adjoint(le.PseudoInverse(le.Blur(GAUSSIAN)))
    cases.append(Case("adjoint of a pseudo-inverse", nested, IMAGE))
    cases.append(Case("blur after its pseudo-inverse", le.Compose(le.Blur(BOX), le.PseudoInverse(le.Blur(BOX))), IMAGE))
    return cases


CASES = _cases()
