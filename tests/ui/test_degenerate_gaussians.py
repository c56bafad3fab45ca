"""The explorable of notebook 01 tells the truth about who owns the query, by formulas of its own."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from lemmse.ui.explorables import degenerate_gaussians as room


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flat_gaussian_owns_its_support_and_nothing_else(rank):
    for angle, position, share in itertools.product((30, 45, 120), (-2.0, 0.0, 1.0), (0.01, 0.9)):
        view = room.view(angle, rank, position, share)
        offset = abs(position) * (1 if rank == 0 else abs(math.sin(math.radians(angle - room.PATH))))
        assert view.numbers["distance to the flat one"] == pytest.approx(offset, abs=1e-9)
        assert view.numbers["its posterior"] == (offset < 1e-9)
        assert ("owns the query whatever its prior" in view.sentence) == (offset < 1e-9)


def test_equal_ranks_share_the_query_by_bayes_rule():
    for angle, position, share in itertools.product((0, 75), (-1.25, 0.5), (0.1, 0.5)):
        turn = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))], dtype=torch.float64)
        covariance = 0.35**2 * torch.eye(2) + (1 - 0.35**2) * torch.outer(turn, turn)
        query = position * torch.tensor([math.sqrt(3) / 2, 0.5], dtype=torch.float64)
        flat = share * MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance).log_prob(query).exp()
        round_cloud = torch.distributions.Normal(0.0, 1.2).log_prob(query).sum().exp() * (1 - share)
        view = room.view(angle, 2, position, share)
        assert view.numbers["its posterior"] == pytest.approx((flat / (flat + round_cloud)).item(), rel=1e-6)
        assert f"{view.numbers['its posterior']:.1%}" in view.sentence


def test_the_default_state_makes_the_point():
    explorable = room.who_owns_the_point()
    view = explorable.look()
    assert view.numbers["its posterior"] == 1
    assert "lower rank, 1 against 2" in view.sentence
