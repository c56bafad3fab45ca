"""The tests check every shape: a checker that let a wrong one pass would let all of them pass."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from typechecker import check


@jaxtyping.jaxtyped(typechecker=check)
def rows_of(x: Float[Tensor, "b n"], y: Float[Tensor, " n"], result: Tensor, scale: float = 1.0) -> Float[Tensor, " b"]:
    return result


X, Y, ROWS = torch.zeros(2, 3), torch.zeros(3), torch.zeros(2)


def test_what_fits_passes():
    assert rows_of(X, Y, ROWS, scale=2) is ROWS  # an int serves where a float is asked for


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((X[0], Y, ROWS), "parameter 'x'"),
        ((X, Y[:2], ROWS), "parameter 'y'"),
        ((X, Y.long(), ROWS), "parameter 'y'"),
        ((X, Y, ROWS, "1.0"), "parameter 'scale'"),
        ((X, Y, X), "return value"),
        ((X, Y, Y), "return value"),  # a size that only the arguments tell
        ((X, Y, None), "parameter 'result'"),
    ],
)
def test_what_does_not_is_named(arguments, says):
    with pytest.raises(TypeCheckError, match=f"(?s){says}"):
        rows_of(*arguments)
