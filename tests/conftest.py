"""Shapes in signatures are checked in every test; one thread per worker, so that parallel runs do not fight."""

import jaxtyping

# before anything imports lemmse; JAXTYPING_DISABLE=1 is for runs that ask something else, such as Colab's versions
if not jaxtyping.config.jaxtyping_disable:
    jaxtyping.install_import_hook("lemmse", "typechecker.check")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def unchecked_shapes():
    """Users do not run the checker of shapes: what they get is the package's own errors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for every test."""
    return torch.Generator().manual_seed(0)
