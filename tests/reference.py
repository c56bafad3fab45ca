"""Dense, looped, slow, and obviously right: what the package is compared with. Nothing here is shared with it."""

import math
from functools import cache

import torch
from torch import Tensor


@cache
def dense(apply, input_shape) -> Tensor:
    """The matrix of a linear map: what it makes of a batch of all unit vectors, in columns.

    That a batch has the answers of each alone is a test of its own of every operator. What a method of an operator is
    asked for once serves all tests.
    """
    n = math.prod(input_shape)
    return apply(torch.eye(n, dtype=torch.float64).reshape(n, *input_shape)).reshape(n, -1).T.contiguous()


def mmse(images: Tensor, measure, y: Tensor, sigma: float, B: Tensor | None = None):
    """Mean, log-partition and weights by a loop over images; S3.1 in the form of S2.1, with (BBᵀ)⁺ from an SVD.

    ``measure`` maps (1, c, h, w) to measurements; ``y`` is one measurement, no batch; ``B`` is a dense matrix.
    """
    log_weights = []
    if B is not None:
        u, s, _ = torch.linalg.svd(B, full_matrices=False)
        keep = s > 1e-10 * s.max()
    for x in images:
        residual = (y - measure(x[None])[0]).reshape(-1)
        if B is not None:
            z = B @ residual
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


def image_space(B: Tensor) -> Tensor:
    """An orthonormal basis of the column space of a matrix."""
    u, s, _ = torch.linalg.svd(B, full_matrices=False)
    return u[:, s > 1e-10 * s.max()]


def preserving_shifts(B: Tensor, image_shape) -> list[tuple[int, int]]:
    """All shifts g with T_g Im B = Im B, from the projectors: S4.1 by the letter."""
    _, h, w = image_shape
    u = image_space(B)
    projector = u @ u.T
    found = []
    for i in range(h):
        for j in range(w):
            shifted = torch.roll(u.T.reshape(-1, *image_shape), (i, j), (2, 3)).reshape(u.shape[1], -1).T
            if float((shifted @ shifted.T - projector).abs().max() if u.shape[1] else 0) < 1e-7:
                found.append((i, j))
    return found


def equivariant_mmse(images: Tensor, measure, y: Tensor, sigma: float, B: Tensor, image_shape, shifts=None):
    """Mean, log-partition, and weights (D, h, w) by a loop over images and admissible shifts, S4.1.

    ``B`` is a dense matrix onto images of ``image_shape``; the norm of (BBᵀ)⁺ comes from its SVD.
    """
    _, h, w = image_shape
    u, s, _ = torch.linalg.svd(B, full_matrices=False)
    keep = s > 1e-10 * s.max()
    whiten = u[:, keep].T / s[keep, None]
    v = (B @ y.reshape(-1)).reshape(image_shape)
    keys = [B @ measure(x[None])[0].reshape(-1) for x in images]
    log_weights = torch.full((len(images), h, w), -math.inf, dtype=torch.float64)
    for i, j in preserving_shifts(B, image_shape) if shifts is None else shifts:
        unshifted = torch.roll(v, (-i, -j), (1, 2)).reshape(-1)
        residuals = torch.stack([unshifted - key for key in keys]) @ whiten.T
        log_weights[:, i, j] = -residuals.square().sum(1) / (2 * sigma**2)
    largest = float(log_weights.max())
    weights = torch.exp(log_weights - largest)
    total = float(weights.sum())
    mean = torch.zeros_like(images[0])
    for d, i, j in (weights > 0).nonzero().tolist():
        mean += weights[d, i, j] / total * torch.roll(images[d], (i, j), (1, 2))
    return mean, largest + math.log(total), weights / total


def window_operators(B: Tensor, image_shape, patch_size: int, boundary: str = "circular") -> list[Tensor]:
    """Q_n = Π_n B of every pixel: the rows of B that its window sees, zero beyond a zero boundary."""
    c, h, w = image_shape
    rows = B.reshape(c, h, w, -1)
    half = patch_size // 2
    found = []
    for i in range(h):
        for j in range(w):
            window = []
            for channel in range(c):
                for di in range(-half, half + 1):
                    for dj in range(-half, half + 1):
                        inside = 0 <= i + di < h and 0 <= j + dj < w
                        row = rows[channel, (i + di) % h, (j + dj) % w]
                        window.append(row if inside or boundary == "circular" else torch.zeros_like(row))
            found.append(torch.stack(window))
    return found


def local_mmse(
    images: Tensor, measure, y: Tensor, sigma: float, B: Tensor, image_shape, patch_size, boundary="circular"
):
    """Mean, log-partition (h, w), and weights (N, D, N) by a loop over pairs of pixels: S5.2 by the letter.

    Ranks by one threshold for all windows; strata by comparing projectors; Q⁺ and the pseudo-determinant by SVD.
    """
    _, h, w = image_shape
    operators = window_operators(B, image_shape, patch_size, boundary)
    factors = [torch.linalg.svd(q, full_matrices=False) for q in operators]
    largest = max(float(s.max()) for _, s, _ in factors)
    spaces, inverses, half_log_pdets = [], [], []
    for u, s, _ in factors:
        keep = s > 1e-10 * largest
        spaces.append(u[:, keep] @ u[:, keep].T)
        inverses.append(u[:, keep].T / s[keep, None])
        half_log_pdets.append(float(s[keep].log().sum()))
    seen = torch.stack([q @ y.reshape(-1) for q in operators])
    clean = [measure(x[None])[0].reshape(-1) for x in images]
    keys = torch.stack([torch.stack([q @ each for q in operators]) for each in clean])
    n = h * w
    log_weights = torch.full((n, len(images), n), -math.inf, dtype=torch.float64)
    spaces = torch.stack(spaces)
    for source in range(n):
        same = (spaces - spaces[source]).abs().amax((1, 2)) < 1e-7
        residuals = (seen[same, None] - keys[:, source]) @ inverses[source].T
        log_weights[same, :, source] = -residuals.square().sum(2) / (2 * sigma**2) - half_log_pdets[source]
    log_partition = log_weights.flatten(1).logsumexp(1)
    weights = (log_weights - log_partition[:, None, None]).exp()
    mean = torch.einsum("tdn,dcn->ct", weights, images.flatten(2)).reshape(images.shape[1:])
    return mean, log_partition.reshape(h, w), weights
