"""Gaussians that live on affine subspaces, of any rank from 0 to full, and mixtures of them (S2).

B y given x is such a Gaussian: it fills the image of B, which is a plane as soon as B loses anything. A density then
means one with respect to the r-dimensional Hausdorff measure of that plane (for r = 0, counting points), and where
several planes meet, the one of the lowest dimension decides (S2.3). Source: arXiv 2601.10334.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.distributions import Distribution, constraints

from lemmse._types import RANK_RTOL, SUBSPACE_ATOL

__all__ = ["SUPPORT_RTOL", "AffineSubspace", "DegenerateNormal", "MixtureOnSubspaces"]

SUPPORT_RTOL = 1e-6
"""A point lies on a support when its distance to it is at most this fraction of the largest singular value of the
factor. Well above what rounding leaves in float64, and far below what a density resolves."""

SUPPORT_ULPS = 32
"""... or at most this many roundings of the point itself, without which a sample in float32, or one far from the
origin, could fall off its own support."""


class AffineSubspace(constraints.Constraint):
    """The set ``loc + span(basis)``, as a constraint of ``torch.distributions``: ``check`` says which points lie on it.

    ``basis`` (*batch, d, r) has orthonormal columns; in a batch of several ranks, r is the highest, and the columns
    beyond an element's own rank are zero. ``atol`` (*batch) is the largest distance of a point that counts as on it.
    """

    event_dim = 1

    def __init__(
        self, loc: Float[Tensor, "*#batch d"], basis: Float[Tensor, "*#batch d r"], atol: Float[Tensor, "*#batch"]
    ) -> None:
        self.loc = loc
        self.basis = basis
        self.atol = atol

    @property
    def projector(self) -> Float[Tensor, "... d d"]:
        """Return the orthogonal projector on the directions of the subspace, the matrix Π of Im Σ."""
        return self.basis @ self.basis.mT

    def distance(self, value: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """Return the Euclidean distance of each point to the subspace."""
        difference = value.to(self.basis.dtype) - self.loc
        coordinates = torch.einsum("...d,...dr->...r", difference, self.basis)
        return (difference - torch.einsum("...r,...dr->...d", coordinates, self.basis)).norm(dim=-1)

    def check(self, value: Float[Tensor, "... d"]) -> Bool[Tensor, "..."]:
        """Return which points lie on the subspace (NaN lies on none)."""
        rounding = SUPPORT_ULPS * torch.finfo(value.dtype).eps * (value.norm(dim=-1) + self.loc.norm(dim=-1))
        return self.distance(value) <= self.atol + rounding  # <=: on a point (rank 0), distance 0 must pass

    def __repr__(self) -> str:
        """Return the dimensions."""
        return f"AffineSubspace(of dimension up to {self.basis.shape[-1]} in R^{self.basis.shape[-2]})"


class DegenerateNormal(Distribution):
    r"""The Gaussian N(loc, factor factorᵀ) of any rank r, with its density on the plane that it lives on (S2.1):

    .. math:: (2π)^{-r/2} |Σ|_+^{-1/2} \exp(-½ (z-μ)^T Σ^+ (z-μ)) \; 1\{z - μ ∈ \mathrm{Im} Σ\}

    with respect to the r-dimensional Hausdorff measure; of rank 0, a point mass of density 1. Returns a distribution of
    vectors: ``loc`` (*batch, d), ``factor`` (*batch, d, k) for any k, broadcast against each other. With B and noise of
    standard deviation σ, the law of B y given x is ``DegenerateNormal(B @ A @ x, sigma * B)``.

    The factor (not the covariance, which would square its condition number) is decomposed once, by a thin SVD in
    float64 whatever its type, and results are rounded back. Singular values up to RANK_RTOL times ``reference`` are
    zero; ``reference`` is the factor's own largest singular value unless given, as it must be where several factors are
    to be judged alike, and scales what counts as on the support of a point (rank 0). A factor that was *computed* in
    float32 is of full rank up to that type's rounding: multiply in float64, or let :meth:`linear_image` do it.

    Gradients flow to the points and ``loc``, to ``factor`` through ``rsample``, and through ``log_prob`` where the
    singular values differ. Raises ``ValueError`` for shapes that do not fit and numbers that are not finite.

    >>> line = DegenerateNormal(torch.zeros(2), torch.tensor([[3.0], [4.0]]))   # of rank 1 in the plane
    >>> int(line.rank), round(line.log_pdet.exp().item(), 4)
    (1, 25.0)
    >>> line.log_prob(torch.tensor([[3.0, 4.0], [4.0, 3.0]]))    # one standard deviation along it; and off it
    tensor([-3.0284,    -inf])
    """

    arg_constraints = {  # noqa: RUF012 - the name and form that torch.distributions asks for
        "loc": constraints.real_vector,
        "factor": constraints.independent(constraints.real, 2),
    }
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "..."],
        factor: Float[Tensor, "..."],
        *,
        reference: float | Float[Tensor, "..."] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _require_fitting(loc, factor)
        self._dtype = torch.promote_types(loc.dtype, factor.dtype)
        self._loc, self._factor = loc.double(), factor.double()
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2])
        if validate_args is not False and not (loc.isfinite().all() and factor.isfinite().all()):
            raise ValueError("loc and factor must be finite, but hold NaN or inf")
        basis, scale, _ = torch.linalg.svd(self._factor, full_matrices=False)
        largest = scale[..., 0] if scale.shape[-1] else scale.new_zeros(scale.shape[:-1])
        self._largest = largest
        self.reference = largest if reference is None else torch.as_tensor(reference).to(largest)
        kept = scale > RANK_RTOL * self.reference[..., None]
        self._rank = kept.sum(-1)
        widest = int(self._rank.max()) if self._rank.numel() else 0  # singular values are sorted: what is kept is first
        self._basis = (basis * kept[..., None, :])[..., :widest]
        # Masked before dividing and before the logarithm: a zero singular value must make no NaN, nor in autograd.
        self._inverse_scale = (kept / scale.where(kept, 1.0))[..., :widest]
        self._log_pdet = 2 * scale.where(kept, 1.0).log().sum(-1)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def _public(self, tensor: Tensor, event_dims: int) -> Tensor:
        tensor = tensor.to(self._dtype) if tensor.is_floating_point() else tensor
        return tensor.expand(self.batch_shape + tensor.shape[tensor.ndim - event_dims :])

    @property
    def loc(self) -> Float[Tensor, "*batch d"]:
        """Return the mean μ."""
        return self._public(self._loc, 1)

    @property
    def factor(self) -> Float[Tensor, "*batch d k"]:
        """Return Q, with covariance Σ = Q Qᵀ."""
        return self._public(self._factor, 2)

    @property
    def rank(self) -> Int64[Tensor, "*batch"]:
        """Return the dimension r of the support."""
        return self._public(self._rank, 0)

    @property
    def log_pdet(self) -> Float[Tensor, "*batch"]:
        """Return ln |Σ|₊, the pseudo-determinant: the product of the non-zero eigenvalues, 1 for rank 0."""
        return self._public(self._log_pdet, 0)

    @property
    def whitener(self) -> Float[Tensor, "*batch r d"]:
        """Return W = S⁻¹Uᵀ, for which W (z - μ) is a standard normal of dimension r; rows beyond the rank are zero."""
        return self._public((self._basis * self._inverse_scale[..., None, :]).mT, 2)

    @property
    def support(self) -> AffineSubspace:
        """Return the affine subspace μ + Im Σ, in float64."""
        return AffineSubspace(
            self._loc, self._basis, SUPPORT_RTOL * self._largest.where(self._rank > 0, self.reference)
        )

    @property
    def mean(self) -> Float[Tensor, "*batch d"]:
        """Return the mean μ."""
        return self.loc

    @property
    def mode(self) -> Float[Tensor, "*batch d"]:
        """Return the point of highest density, which is the mean."""
        return self.loc

    @property
    def variance(self) -> Float[Tensor, "*batch d"]:
        """Return the diagonal of the covariance."""
        return self._public(self._factor.square().sum(-1), 1)

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch d d"]:
        """Return Σ = Q Qᵀ."""
        return self._public(self._factor @ self._factor.mT, 2)

    @property
    def precision_matrix(self) -> Float[Tensor, "*batch d d"]:
        """Return the Moore–Penrose inverse Σ⁺, which is the inverse where that exists."""
        whitener = self._basis * self._inverse_scale[..., None, :]
        return self._public(whitener @ whitener.mT, 2)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-density at ``value`` (..., d) with respect to the Hausdorff measure on the support.

        It is -inf off the support, by the tolerances of this module. Raises ``ValueError`` for a wrong shape or, unless
        validation is off, for NaN.
        """
        if value.ndim < 1 or value.shape[-1] != self.event_shape[0]:
            raise ValueError(
                f"log_prob asks for points in R^{self.event_shape[0]}, of shape (..., {self.event_shape[0]}), "
                f"but a tensor of shape {tuple(value.shape)} came"
            )
        if self._validate_args and value.isnan().any():
            raise ValueError("log_prob asks for points without NaN: use validate_args=False to have -inf there")
        coordinates = torch.einsum("...d,...dr->...r", value.double() - self._loc, self._basis)
        squared = (coordinates * self._inverse_scale).square().sum(-1)
        density = -0.5 * (squared + self._log_pdet + self._rank.double() * math.log(2 * math.pi))
        on_support = self.support.check(value)
        return density.where(on_support, -math.inf).to(torch.promote_types(self._dtype, value.dtype))

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Return the differential entropy on the support, ½ (r (1 + ln 2π) + ln |Σ|₊), in nats."""
        return self._public(0.5 * (self._rank.double() * (1 + math.log(2 * math.pi)) + self._log_pdet), 0)

    def rsample(
        self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "... d"]:
        """Return samples μ + Q ξ of shape (*sample_shape, *batch, d) through which gradients flow to loc and factor."""
        shape = torch.Size(sample_shape) + self.batch_shape + self._factor.shape[-1:]
        xi = torch.randn(shape, generator=generator, dtype=torch.float64, device=self._loc.device)
        return (self._loc + torch.einsum("...k,...dk->...d", xi, self._factor)).to(self._dtype)

    def sample(
        self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "... d"]:
        """Return samples of shape (*sample_shape, *batch, d)."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator=generator)

    def linear_image(self, matrix: Float[Tensor, "... e d"]) -> "DegenerateNormal":
        """Return the law N(Bμ, BΣBᵀ) of B z, for a matrix B (*batch, e, d) of any rank (S2.2).

        What counts as zero in the image is measured against the largest that it could be, ‖B‖ times this factor's: a
        direction that B cancels must not come back as rounding.
        """
        if matrix.shape[-1] != self.event_shape[0]:
            raise ValueError(
                f"linear_image asks for a matrix with {self.event_shape[0]} columns, but one of shape "
                f"{tuple(matrix.shape)} came"
            )
        wide = matrix.double()
        image = DegenerateNormal(
            (wide @ self._loc[..., None])[..., 0],
            wide @ self._factor,
            reference=torch.linalg.matrix_norm(wide, 2) * self._largest,
            validate_args=self._validate_args,
        )
        image._dtype = torch.promote_types(self._dtype, matrix.dtype)
        return image

    def expand(
        self, batch_shape: torch.Size | tuple[int, ...], _instance: "DegenerateNormal | None" = None
    ) -> "DegenerateNormal":
        """Return the same law with its batch expanded to ``batch_shape``, without copying or decomposing anything."""
        new = self._get_checked_instance(DegenerateNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        self.rank.expand(batch_shape)  # raises where the shapes do not fit
        new.__dict__.update({name: value for name, value in self.__dict__.items() if name not in new.__dict__})
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        """Return shapes and ranks."""
        ranks = sorted(set(self._rank.flatten().tolist()))
        batch = f", batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"DegenerateNormal(rank {', '.join(map(str, ranks))} in R^{self.event_shape[0]}{batch})"


class MixtureOnSubspaces:
    """A mixture Σ_k π_k N(μ_k, Σ_k) whose components may live on different subspaces (S2.3).

    Where supports meet, the components of the lowest rank own the point: the others give it no mass at all.
    ``probabilities`` (K,) are the π_k, positive, and normalised here; ``components`` is a
    :class:`DegenerateNormal` of batch shape (K,). Raises ``ValueError`` where these do not fit.

    >>> loc, factor = torch.zeros(2, 2), torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 0.0]))])
    >>> mixture = MixtureOnSubspaces(torch.ones(2), DegenerateNormal(loc, factor))    # the plane, and a line in it
    >>> mixture.posterior(torch.tensor([[0.3, 0.2], [0.3, 0.0]]))
    tensor([[1., 0.],
            [0., 1.]])
    """

    def __init__(self, probabilities: Float[Tensor, "..."], components: DegenerateNormal) -> None:
        if components.batch_shape != probabilities.shape or probabilities.ndim != 1:
            raise ValueError(
                "a mixture asks for K probabilities and components of batch shape (K,), but "
                f"{tuple(probabilities.shape)} and {tuple(components.batch_shape)} came"
            )
        if not (probabilities > 0).all() or not probabilities.isfinite().all():
            raise ValueError(f"probabilities must be positive and finite, but {probabilities.tolist()} came")
        self.probabilities = probabilities / probabilities.sum()
        self.components = components

    def admissible(self, z: Float[Tensor, "... d"]) -> Bool[Tensor, "... K"]:
        """Return K(z), the components that can have made each point: of those it lies on, the ones of lowest rank."""
        on_support = self.components.support.check(z[..., None, :])
        rank = self.components.rank.where(on_support, self.components.event_shape[0] + 1)
        return on_support & (rank == rank.amin(-1, keepdim=True))

    def log_weights(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... K"]:
        """Return ln π_k + ln N(z; μ_k, Σ_k) of the admissible components, -inf for the others.

        Their logsumexp is the log-density of the mixture at z with respect to the Hausdorff measure of the lowest rank.
        """
        log_weights = self.probabilities.log() + self.components.log_prob(z[..., None, :])
        return log_weights.where(self.admissible(z), -math.inf)

    def posterior(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... K"]:
        """Return P(component = k | z): ``posterior(z) @ t`` is E[t | z]. NaN where z lies on no support."""
        return self.log_weights(z).softmax(-1)

    def same_support(self) -> Bool[Tensor, "K K"]:
        """Return which pairs of components have the same support: what a sample of k admits, almost surely (S2.4)."""
        support = self.components.support
        directions = support.projector.expand(*self.components.batch_shape, -1, -1)
        gap = (directions[:, None] - directions).abs().amax((-2, -1))
        loc_on_support = support.check(self.components.loc[:, None])
        return (gap < SUBSPACE_ATOL) & loc_on_support & loc_on_support.mT

    def sample(
        self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "... d"], Int64[Tensor, "..."]]:
        """Return points (*sample_shape, d) and the component that each was drawn from (*sample_shape)."""
        count = math.prod(sample_shape)
        k = torch.multinomial(self.probabilities, count, replacement=True, generator=generator)
        z = self.components.sample((count,), generator=generator)[torch.arange(count, device=k.device), k]
        return z.reshape(*sample_shape, -1), k.reshape(sample_shape)


def _require_fitting(loc: Tensor, factor: Tensor) -> None:
    """Raise where a mean and a factor do not describe one family of Gaussians."""
    came = f"loc of shape {tuple(loc.shape)} and factor of shape {tuple(factor.shape)} came"
    if loc.ndim < 1 or factor.ndim < 2 or loc.shape[-1] != factor.shape[-2]:
        raise ValueError(
            f"DegenerateNormal asks for loc (*batch, d) and factor (*batch, d, k) of the same d, but {came}"
        )
    try:
        torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2])
    except RuntimeError:
        raise ValueError(f"DegenerateNormal asks for batch shapes that broadcast, but {came}") from None
    if loc.device != factor.device:
        raise ValueError(f"loc is on {loc.device} but factor on {factor.device}: move one of them with .to(device)")
