"""Dense, looped, slow, and obviously right: what the package is compared with. Nothing here is shared with it."""

import math

import torch
from torch import Tensor


def dense(apply, input_shape) -> Tensor:
    """The matrix of a linear map, one column at a time."""
    n = math.prod(input_shape)
    columns = []
    for i in range(n):
        e = torch.zeros(n, dtype=torch.float64)
        e[i] = 1
        columns.append(apply(e.reshape(1, *input_shape)).reshape(-1))
    return torch.stack(columns, dim=1)


def mmse(images: Tensor, measure, y: Tensor, sigma: float, B: Tensor | None = None):
    """Mean, log-partition and weights by a loop over images; S3.1 in the form of S2.1, with (BBᵀ)⁺ from an SVD.

    ``measure`` maps (1, c, h, w) to measurements; ``y`` is one measurement, no batch; ``B`` is a dense matrix.
    """
    log_weights = []
    for x in images:
        residual = (y - measure(x[None])[0]).reshape(-1)
        if B is not None:
            z = B @ residual
            u, s, _ = torch.linalg.svd(B, full_matrices=False)
            keep = s > 1e-10 * s.max()
            residual = (u[:, keep].T @ z) / s[keep]
        log_weights.append(-float(residual @ residual) / (2 * sigma**2))
    largest = max(log_weights)
    total = sum(math.exp(ell - largest) for ell in log_weights)
    weights = [math.exp(ell - largest) / total for ell in log_weights]
    mean = sum(w * images[d] for d, w in enumerate(weights))
    return mean, largest + math.log(total), torch.tensor(weights, dtype=torch.float64)


def entropy(weights: Tensor) -> float:
    """Shannon entropy in nats, term by term."""
    return -sum(w * math.log(w) for w in weights.tolist() if w > 0)
