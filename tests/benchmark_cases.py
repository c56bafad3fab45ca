"""A problem and cases that are quick to load in any process, for the tests of `make bench`."""

import torch

MEGABYTE = 2**20


class Numbers:
    """A problem that only has a name."""

    def __str__(self):
        return "three numbers"


def holds_nothing(problem):
    return lambda: torch.tensor([1.0, 2.0, 3.0])


def holds_64_megabytes_for_a_moment(problem):
    return lambda: torch.ones(64 * MEGABYTE // 4)[:3] * torch.tensor([1.0, 2.0, 3.001])


def fails(problem):
    raise ValueError("no such thing")


def counts(problem):
    return lambda asked: torch.tensor([float(asked), 1.0])


def right_numbers(problem):
    return lambda: {1: torch.tensor([1.01, 1.0]), 10: torch.tensor([9.98, 1.0])}
