"""Shapes in signatures are checked in every test; one thread per worker, so that parallel runs do not fight."""

from jaxtyping import install_import_hook

# before anything imports lemmse
install_import_hook("lemmse", "typechecker.check")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for every test."""
    return torch.Generator().manual_seed(0)
