"""What a trained CNN computes, exactly: MMSE estimators over a finite training set under architectural constraints.

>>> import lemmse as le
>>> physics = le.Inpainting(le.center_mask(28, 28, side=15))
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from . import bounds, comparison, explain, gaussians, metrics, networks, optics
from .estimators import MMSE, EquivariantMMSE, LocalEquivariantMMSE
from .operators import (
    Adjoint,
    Blur,
    Compose,
    Denoising,
    Downsampling,
    EpsilonInverse,
    FourierSampling,
    Inpainting,
    Matrix,
    Nonlinear,
    PseudoInverse,
    Tikhonov,
    center_mask,
    half_mask,
    random_mask,
    stripe_mask,
)
from .patches import extract_patches, shift
from .reductions import Moments, Posterior, PosteriorMean, PosteriorMoments, Sources, TopImages, TopSources

_ROOMS = {  # with the extra that each needs: they load when first asked for, as most need more than torch
    "data": "widgets",
    "distributed": "distributed",
    "exercises": "widgets",
    "figures": "widgets",
    "pretrained": "widgets",
    "training": "widgets",
    "ui": "widgets",
}

__all__ = [
    "MMSE",
    "Adjoint",
    "Blur",
    "Compose",
    "Denoising",
    "Downsampling",
    "EpsilonInverse",
    "EquivariantMMSE",
    "FourierSampling",
    "Inpainting",
    "LocalEquivariantMMSE",
    "Matrix",
    "Moments",
    "Nonlinear",
    "Posterior",
    "PosteriorMean",
    "PosteriorMoments",
    "PseudoInverse",
    "Sources",
    "Tikhonov",
    "TopImages",
    "TopSources",
    "bounds",
    "center_mask",
    "comparison",
    "data",
    "distributed",
    "exercises",
    "explain",
    "extract_patches",
    "figures",
    "gaussians",
    "half_mask",
    "metrics",
    "networks",
    "optics",
    "pretrained",
    "random_mask",
    "shift",
    "stripe_mask",
    "training",
    "ui",
]

try:
    __version__ = version("lemmse")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "unknown"


def __getattr__(name: str):
    if name in _ROOMS:
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as missing:
            raise ModuleNotFoundError(
                f"lemmse.{name} needs {missing.name}, which is not installed: pip install 'lemmse[{_ROOMS[name]}]'",
                name=missing.name,
            ) from missing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
