"""How deepinv is imported beside a build of PyTorch that torchvision's compiled operators do not fit.

deepinv imports torchvision, whose wheel on PyPI is built for CUDA: beside PyTorch's build for the CPU its operators do
not load, and the Python part of torchvision fails where it describes them. Nothing of deepinv's that is used here calls
them, so that it is enough to declare the two that are described unasked.
"""

import importlib
import sys
from types import ModuleType

import torch

__all__ = ["import_deepinv"]

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[torch.library.Library] = []
"""Operators live as long as the library that declares them."""


def import_deepinv() -> ModuleType:
    """Import deepinv and return it; raise ``ImportError`` where it, or torchvision, is missing."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for operator in OPERATORS:
            _declared[-1].define(f"{operator}{SCHEMA}")
    return importlib.import_module("deepinv")
