"""What the tests of all estimators share: small problems, pre-inverses by name, image sets that are made on demand."""

import math
import re
from functools import cache

import pytest
import torch

import lemmse as le
from operators_registry import FORWARD, IMAGE
from reference import dense


def training_set(seed: int = 0, *, count: int, dtype=torch.float64, shape=IMAGE) -> torch.Tensor:
    """Images of random numbers in [0, 1]."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def measured(images, physics, generator, *, sigma, count=2) -> torch.Tensor:
    """Noisy measurements of new images: a batch of queries."""
    y = physics.A(torch.rand(count, *images.shape[1:], generator=generator, dtype=images.dtype))
    return y + sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)


@cache
def pre_inverses(physics) -> dict:
    """The identity (``None``), adjoint, pseudo-inverse and Tikhonov of an operator."""
    return {
        "identity": None,
        "adjoint": le.Adjoint(physics),
        "pseudo-inverse": le.PseudoInverse(physics),
        "tikhonov": le.Tikhonov(physics, 0.1),
    }


def onto_images(physics, shape=IMAGE) -> dict:
    """Those pre-inverses that give images; the identity does where measurements are images."""
    given = tuple(physics.A(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    return {kind: B for kind, B in pre_inverses(physics).items() if B is not None or given == shape}


PAIRS = [(name, kind) for name, physics in FORWARD.items() for kind in onto_images(physics)]
"""Every operator with every pre-inverse that gives images."""


@cache
def as_matrix(B, measurement_shape) -> torch.Tensor:
    """The matrix of a pre-inverse, column by column; ``None`` is the identity."""
    n = math.prod(measurement_shape)
    return torch.eye(n, dtype=torch.float64) if B is None else dense(B.A, measurement_shape)


def assert_same(got, wanted, tolerance: float = 1e-12) -> None:
    """Two results agree in every field."""
    for name, value in vars(wanted).items():
        if value is not None:
            torch.testing.assert_close(getattr(got, name), value, rtol=tolerance, atol=tolerance)


def assert_batch_equals_one_by_one(estimator, y, sigma, reduction, tolerance: float = 1e-12) -> None:
    """Every query of a batch has the answer, at its own sigma, that it has alone."""
    together = estimator(y, sigma=sigma, reduction=reduction)
    for i in range(len(y)):
        row = {name: None if value is None else value[i : i + 1] for name, value in vars(together).items()}
        alone = estimator(y[i : i + 1], sigma=float(sigma[i]), reduction=reduction)
        assert_same(type(together)(**row), alone, tolerance)


LEAST = {"memory_limit": "the least"}
"""Stands for the smallest memory limit that is taken: see ``chunked``."""


def chunked(make, *arguments, **chunking):
    """An estimator made with a ``chunk_size`` or ``memory_limit``; the least is that which the error names."""
    if chunking != LEAST:
        return make(*arguments, **chunking)
    with pytest.raises(ValueError, match="memory_limit=1 bytes is too small") as refused:
        make(*arguments, memory_limit=1)
    least = int(re.search(r"memory_limit=(\d+) would do", str(refused.value)).group(1))
    with pytest.raises(ValueError, match=f"memory_limit={least - 1} bytes is too small"):
        make(*arguments, memory_limit=least - 1)
    return make(*arguments, memory_limit=least)


class LazyImages:
    """An image set that is made on demand, and counts what was asked of it."""

    def __init__(self, images):
        self.images, self.shape = images, tuple(images.shape)
        self.largest = self.made = 0

    def __getitem__(self, index):
        chosen = self.images[index]
        self.largest = max(self.largest, len(chosen))
        self.made += len(chosen)
        return chosen
