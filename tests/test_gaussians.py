"""Laws of Gaussians on subspaces (S2), each with broken versions that are shown to violate it."""

import doctest
import math

import numpy as np
import pytest
import scipy.stats
import torch

import lemmse.gaussians
from lemmse.gaussians import SUPPORT_RTOL, DegenerateNormal, MixtureOnSubspaces

D, K = 5, 7  # dimension of the space, columns of a factor
RANKS = range(D + 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def factor_of_rank(r: int, d: int = D, k: int = K, seed: int = 0) -> torch.Tensor:
    return randn(d, r, seed=seed) @ randn(r, k, seed=seed + 1)


def normal_of_rank(r: int, d: int = D, k: int = K, seed: int = 0) -> DegenerateNormal:
    return DegenerateNormal(randn(d, seed=seed + 2), factor_of_rank(r, d, k, seed))


# ---------------------------------------------------------------- the density, and broken versions of it


def law_agrees_with_scipy(family: type[DegenerateNormal]) -> None:
    """Ranks 1 to d, points on the support and off it, to 1e-10."""
    for r in RANKS[1:]:
        normal = family(randn(D, seed=2), factor_of_rank(r))
        points = normal.sample((11,), generator=generator(r))
        points[-2:] += 0.1 * randn(2, D, seed=4)
        oracle = scipy.stats.multivariate_normal(normal.mean.numpy(), normal.covariance_matrix.numpy(), True)
        torch.testing.assert_close(
            normal.log_prob(points), torch.from_numpy(oracle.logpdf(points.numpy())), rtol=1e-10, atol=1e-10
        )
        assert (normal.log_prob(points[-2:]) == -math.inf).all() == (r < D)


def law_integrates_to_one(family: type[DegenerateNormal]) -> None:
    """Quadrature in orthonormal coordinates of supports of dimension 1, 2 and 3; a count in dimension 0."""
    for r in (0, 1, 2, 3):
        normal = family(randn(D, seed=2), factor_of_rank(r))
        basis, scale, _ = torch.linalg.svd(normal.factor)
        axis = torch.linspace(-9, 9, 61, dtype=torch.float64)  # in standard deviations: exact to 1e-15
        grid = torch.cartesian_prod(*[axis] * r).reshape(-1, r) if r else torch.zeros(1, 0, dtype=torch.float64)
        points = normal.mean + (grid * scale[:r]) @ basis[:, :r].T
        cell = (axis[1] - axis[0]) ** r * scale[:r].prod()
        assert normal.log_prob(points).exp().sum() * cell == pytest.approx(1, abs=1e-10)


def law_is_the_limit_of_full_rank(family: type[DegenerateNormal]) -> None:
    """N(z; μ, Σ + εI) (2πε)^((d-r)/2) tends to the density on the support, with an error of the order of ε."""
    for r in RANKS:
        normal = family(randn(D, seed=2), factor_of_rank(r))
        z = normal.sample(generator=generator(3))
        gaps = []
        for epsilon in (1e-5, 1e-6):
            covariance = normal.covariance_matrix + epsilon * torch.eye(D, dtype=torch.float64)
            full = torch.distributions.MultivariateNormal(normal.mean, covariance).log_prob(z)
            gaps.append((full + (D - r) / 2 * math.log(2 * math.pi * epsilon) - normal.log_prob(z)).abs().item())
        assert gaps[1] < 1e-4
        assert gaps[1] < 0.11 * gaps[0] + 1e-10


def law_is_minus_infinity_off_the_support(family: type[DegenerateNormal]) -> None:
    """Off by twice the tolerance it is -inf, off by half of it it is not, at every scale of the problem."""
    for r in RANKS[:-1]:
        for scale in (1e-3, 1.0, 1e3):
            normal = family(scale * randn(D, seed=2), scale * factor_of_rank(r))
            basis, s, _ = torch.linalg.svd(normal.factor)
            normal_direction, largest = basis[:, -1], (s[0] if r else 0.0)
            z = normal.sample(generator=generator(3))
            assert normal.log_prob(z).isfinite()
            assert normal.log_prob(z + 0.5 * SUPPORT_RTOL * largest * normal_direction).isfinite()
            assert normal.log_prob(z + max(2 * SUPPORT_RTOL * largest, 1e-9 * scale) * normal_direction) == -math.inf


def law_decides_the_rank_on_the_factor(family: type[DegenerateNormal]) -> None:
    """Singular values of 1e-7 of the largest count, of 1e-12 do not; squared, the first would be lost to rounding."""
    u, v = torch.linalg.qr(randn(D, D)).Q, torch.linalg.qr(randn(K, K, seed=1)).Q
    s = torch.tensor([1.0, 1e-3, 1e-7, 1e-12, 0.0], dtype=torch.float64)
    normal = family(torch.zeros(D, dtype=torch.float64), (u * s) @ v[:, :D].T)
    assert int(normal.rank) == 3
    assert normal.log_pdet.item() == pytest.approx(2 * s[:3].log().sum().item(), rel=1e-7)
    z = u[:, :3] @ (s[:3] * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    expected = -7.0 - 0.5 * normal.log_pdet.item() - 1.5 * math.log(2 * math.pi)
    assert normal.log_prob(z).item() == pytest.approx(expected, rel=1e-7)


LAWS = [
    law_agrees_with_scipy,
    law_integrates_to_one,
    law_is_the_limit_of_full_rank,
    law_is_minus_infinity_off_the_support,
    law_decides_the_rank_on_the_factor,
]


@pytest.mark.parametrize("law", LAWS)
def test_law(law):
    law(DegenerateNormal)


class WithoutLogPdet(DegenerateNormal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.5 * self.log_pdet


class WithoutSupport(DegenerateNormal):
    def log_prob(self, value):
        squared = (self.whitener @ (value - self.loc)[..., None]).square().sum((-2, -1))
        return -0.5 * (squared + self.log_pdet + self.rank * math.log(2 * math.pi))


class WithFullDimension(DegenerateNormal):
    def log_prob(self, value):
        return super().log_prob(value) - 0.5 * (value.shape[-1] - self.rank) * math.log(2 * math.pi)


class WithDeterminantOfTheFactor(DegenerateNormal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.25 * self.log_pdet


class WithStrictSupport(DegenerateNormal):
    def log_prob(self, value):
        on_support = self.support.distance(value) < self.support.atol  # a point mass has no neighbourhood
        return super().log_prob(value).where(on_support, -math.inf)


class FromTheCovariance(DegenerateNormal):
    """Decomposes Q Qᵀ, whose square roots of rounding errors look like singular values."""

    def __init__(self, loc, factor):
        values, vectors = torch.linalg.eigh(factor @ factor.T)
        super().__init__(loc, vectors * values.clamp_min(0).sqrt())


BROKEN = [
    (WithoutLogPdet, [law_agrees_with_scipy, law_integrates_to_one, law_is_the_limit_of_full_rank]),
    (WithoutSupport, [law_agrees_with_scipy, law_is_minus_infinity_off_the_support]),
    (WithFullDimension, [law_agrees_with_scipy, law_integrates_to_one, law_is_the_limit_of_full_rank]),
    (WithDeterminantOfTheFactor, [law_agrees_with_scipy, law_integrates_to_one]),
    (WithStrictSupport, [law_integrates_to_one, law_is_the_limit_of_full_rank]),
    (FromTheCovariance, [law_decides_the_rank_on_the_factor]),
]


@pytest.mark.parametrize(
    ("family", "law"), [(family, law) for family, laws in BROKEN for law in laws], ids=lambda f: f.__name__
)
def test_law_finds_a_broken_density(family, law):
    with pytest.raises(AssertionError):
        law(family)


# ---------------------------------------------------------------- moments, images, batches


@pytest.mark.parametrize("r", RANKS)
def test_rank_whitener_and_pseudo_inverse(r):
    normal = normal_of_rank(r)
    covariance = normal.covariance_matrix
    eigenvalues = torch.linalg.eigvalsh(covariance)[D - r :]
    assert int(normal.rank) == r
    assert normal.whitener.shape == (r, D)
    torch.testing.assert_close(normal.log_pdet, eigenvalues.log().sum(), rtol=1e-9, atol=1e-9)
    pinv = torch.from_numpy(np.linalg.pinv(covariance.numpy(), rcond=1e-9, hermitian=True))
    torch.testing.assert_close(normal.precision_matrix, pinv, rtol=1e-7, atol=1e-9)
    white = normal.whitener @ covariance @ normal.whitener.T
    torch.testing.assert_close(white, torch.eye(r, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(normal.variance, covariance.diagonal())
    projector = normal.support.projector
    torch.testing.assert_close(projector @ normal.factor, normal.factor, rtol=1e-10, atol=1e-10)
    assert projector.trace() == pytest.approx(r)


def test_rank_zero_is_a_point_mass():
    normal = DegenerateNormal(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, 2))
    assert (int(normal.rank), float(normal.log_pdet), float(normal.entropy())) == (0, 0.0, 0.0)
    assert normal.log_prob(normal.loc) == 0
    assert normal.log_prob(torch.tensor([0.1, 0.2, 0.3001])) == -math.inf
    assert torch.equal(normal.sample((4,)), normal.loc.expand(4, 3))
    assert int(DegenerateNormal(torch.zeros(3), torch.zeros(3, 0)).rank) == 0


def test_entropy_is_minus_the_mean_log_density():
    for r in RANKS[1:]:
        normal = normal_of_rank(r)
        information = -normal.log_prob(normal.sample((20_000,), generator=generator(r)))
        z_score = (information.mean() - normal.entropy()) / information.std() * math.sqrt(20_000)
        assert abs(z_score) < 4


@pytest.mark.parametrize("r", RANKS)
def test_samples_have_the_moments_and_the_support(r):
    normal, n = normal_of_rank(r), 20_000
    z = normal.sample((n,), generator=generator(5))
    assert normal.support.check(z).all()
    if r == 0:
        return
    assert ((z.mean(0) - normal.mean) / z.std(0) * math.sqrt(n)).abs().max() < 4.5
    centred = z - normal.mean
    products = centred[:, :, None] * centred[:, None, :]
    scores = (products.mean(0) - normal.covariance_matrix) / products.std(0) * math.sqrt(n)
    assert scores.abs().max() < 4.5  # 15 numbers: |z| > 4.5 for one of them has a probability of 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_samples_lie_on_their_support_in_any_precision(dtype, offset):
    for r in RANKS:
        normal = DegenerateNormal((randn(D, seed=2) + offset).to(dtype), 1e-2 * factor_of_rank(r))
        normal = normal if dtype == torch.float64 else DegenerateNormal(normal.loc, _exact_float32_factor(r))
        z = normal.sample((13,), generator=generator(1)).to(dtype)
        assert int(normal.rank) == r
        assert normal.log_prob(z).isfinite().all()


def _exact_float32_factor(r: int) -> torch.Tensor:
    """Columns that repeat: of rank r without any rounding."""
    columns = 1e-2 * torch.randn(D, r, generator=generator(8))
    return torch.cat([columns, 2 * columns, torch.zeros(D, 1)], dim=1)


@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize("rank_of_b", [0, 1, 2, 4])
def test_linear_image_is_the_law_of_the_mapped_points(r, rank_of_b):
    normal, b = normal_of_rank(r), factor_of_rank(rank_of_b, d=4, k=D, seed=7)
    image = normal.linear_image(b)
    assert int(image.rank) == min(r, rank_of_b)
    torch.testing.assert_close(image.mean, b @ normal.mean)
    torch.testing.assert_close(image.covariance_matrix, b @ normal.covariance_matrix @ b.T)
    z = normal.sample((11,), generator=generator(2)) @ b.T
    assert image.log_prob(z).isfinite().all()
    if image.rank:
        oracle = scipy.stats.multivariate_normal(image.mean.numpy(), image.covariance_matrix.numpy(), True)
        torch.testing.assert_close(image.log_prob(z), torch.from_numpy(oracle.logpdf(z.numpy())), rtol=1e-7, atol=1e-7)


def test_linear_image_by_an_invertible_map_moves_the_density_by_its_volume():
    b = randn(D, D, seed=9)
    normal = normal_of_rank(D)
    z = normal.sample((3,), generator=generator(1))
    moved = normal.linear_image(b).log_prob(z @ b.T)
    torch.testing.assert_close(moved, normal.log_prob(z) - torch.linalg.slogdet(b).logabsdet, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_that_b_cancels_is_gone(dtype):
    """B @ factor is rounding and nothing else: by itself that would be of rank 1, with an absurd determinant."""
    u = torch.nn.functional.normalize(torch.randn(3, generator=generator(1), dtype=torch.float64), dim=0)
    line = DegenerateNormal(torch.zeros(3, dtype=dtype), u[:, None].double())
    across = torch.eye(3, dtype=torch.float64) - torch.outer(u, u)
    image = line.linear_image(across)
    assert (across @ u).abs().max() > 0
    assert int(DegenerateNormal(torch.zeros(3), (across @ u)[:, None]).rank) == 1
    assert (int(image.rank), float(image.log_pdet)) == (0, 0.0)
    assert image.log_prob(across @ (3 * u)) == 0
    assert image.log_prob(1e-3 * u) == -math.inf


def test_the_law_of_by_given_x_depends_on_x_only_through_its_mean():
    """S2.2 for B of every rank: B y ~ N(B A x, σ² B Bᵀ), drawn and measured."""
    a, x, sigma, n = randn(6, D, seed=3), randn(D, seed=4), 0.3, 20_000
    y = a @ x + sigma * torch.randn(n, 6, generator=generator(6), dtype=torch.float64)
    for rank in (0, 1, 3, 4):
        b = factor_of_rank(rank, d=4, k=6, seed=5)
        law = DegenerateNormal(b @ a @ x, sigma * b)
        v = y @ b.T
        assert law.support.check(v).all()
        if rank:
            white = (v - law.mean) @ law.whitener.T
            assert (white.mean(0).abs() * math.sqrt(n)).max() < 4.5
            assert ((white.square().mean(0) - 1).abs() * math.sqrt(n / 2)).max() < 4.5


def test_a_batch_is_its_elements_whatever_their_ranks():
    loc = randn(2, 1, D, seed=1)
    factor = torch.stack([factor_of_rank(r, seed=r) for r in (3, 0, 5)])
    batch = DegenerateNormal(loc, factor)
    assert batch.batch_shape == (2, 3)
    assert batch.event_shape == (D,)
    assert batch.rank.tolist() == [[3, 0, 5]] * 2
    z = batch.sample((4,), generator=generator(3))
    assert z.shape == (4, 2, 3, D)
    z[0] += 0.1
    log_prob, whitener = batch.log_prob(z), batch.whitener
    for i in range(2):
        for j in range(3):
            alone = DegenerateNormal(loc[i, 0], factor[j])
            torch.testing.assert_close(log_prob[:, i, j], alone.log_prob(z[:, i, j]), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(whitener[i, j, : alone.rank], alone.whitener)
            assert (whitener[i, j, alone.rank :] == 0).all()
    for name in ("mean", "mode", "variance", "log_pdet", "covariance_matrix", "precision_matrix", "factor"):
        assert getattr(batch, name).shape[:2] == (2, 3), name
    assert batch.entropy().shape == (2, 3)
    matrices = randn(3, 4, D, seed=11)
    images = batch.linear_image(matrices)
    alone = DegenerateNormal(loc[1, 0], factor[0]).linear_image(matrices[0])
    torch.testing.assert_close(images.covariance_matrix[1, 0], alone.covariance_matrix)


def test_expand_shares_the_factorisation():
    normal = normal_of_rank(2)
    wide = normal.expand((3, 4))
    assert wide.batch_shape == (3, 4)
    assert wide.rank.shape == (3, 4)
    z = wide.sample((2,), generator=generator(1))
    assert z.shape == (2, 3, 4, D)
    assert torch.equal(wide.log_prob(z), normal.log_prob(z))
    assert wide._basis.data_ptr() == normal._basis.data_ptr()
    assert repr(wide) == "DegenerateNormal(rank 2 in R^5, batch (3, 4))"
    with pytest.raises(RuntimeError, match="expand"):
        wide.expand((5,))


def test_one_reference_judges_several_factors_alike():
    """Beside a factor of size one, a factor of size 1e-12 is zero; by itself it is not (S2.4)."""
    factor = torch.stack([factor_of_rank(2), 1e-12 * factor_of_rank(1)])
    assert DegenerateNormal(torch.zeros(D), factor).rank.tolist() == [2, 1]
    largest = torch.linalg.matrix_norm(factor, 2).max()
    together = DegenerateNormal(torch.zeros(D), factor, reference=largest)
    assert together.rank.tolist() == [2, 0]
    assert together.log_prob(torch.zeros(2, D, dtype=torch.float64))[1] == 0


@pytest.mark.parametrize("r", [0, 2, 5])
def test_float32_is_float64_rounded(r):
    loc, factor = randn(D, seed=2).float(), _exact_float32_factor(r)
    single, double = DegenerateNormal(loc, factor), DegenerateNormal(loc.double(), factor.double())
    assert single.log_pdet.dtype == torch.float32
    z = single.sample((5,), generator=generator(1))
    assert z.dtype == torch.float32
    assert single.log_prob(z).dtype == torch.float32
    assert torch.equal(single.log_pdet, double.log_pdet.float())
    assert single.log_prob(z.double()).dtype == torch.float64


def test_gradients():
    normal_loc, factor, z = randn(3, seed=1), randn(3, 2, seed=2), randn(2, seed=3)
    point = (normal_loc + factor @ z).requires_grad_()
    score = torch.autograd.grad(DegenerateNormal(normal_loc, factor).log_prob(point), point)[0]
    precision = DegenerateNormal(normal_loc, factor).precision_matrix
    torch.testing.assert_close(score, -precision @ (point - normal_loc).detach())

    def log_prob(loc, factor):
        return DegenerateNormal(loc, factor).log_prob(loc + factor @ z)

    assert torch.autograd.gradcheck(log_prob, (normal_loc.requires_grad_(), factor.requires_grad_()))
    sample = DegenerateNormal(normal_loc, factor).rsample((3,), generator=generator(1))
    gradients = torch.autograd.grad(sample.sum(), (normal_loc, factor))
    assert torch.equal(gradients[0], torch.full((3,), 3.0, dtype=torch.float64))
    assert not DegenerateNormal(normal_loc, factor).sample().requires_grad


def test_a_generator_decides_the_samples_and_the_global_seed_is_untouched():
    before = torch.get_rng_state()
    first, second = (normal_of_rank(3).sample((4,), generator=generator(9)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- mixtures


def point_lines_and_planes() -> tuple[MixtureOnSubspaces, torch.Tensor]:
    """A point on a line, two lines that cross, two laws on one plane, another plane, and space; with values t."""
    e = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    parts = [
        (2 * e[0], zero[:, None]),  # 0: a point on the line 1
        (zero, e[:, :1]),  # 1: the first axis
        (zero, e[:, 1:2]),  # 2: the second axis, which crosses it
        (e[2], e[:, :2] * torch.tensor([1.0, 0.5], dtype=torch.float64)),  # 3: a plane beside both
        (e[2] + e[0], e[:, :2] @ torch.tensor([[1.0, 0.3], [0.2, 2.0]], dtype=torch.float64)),  # 4: the same plane
        (zero, e[:, :2]),  # 5: a parallel plane, through both lines
        (zero, 1.5 * e),  # 6: space
    ]
    factor = torch.stack([torch.nn.functional.pad(f, (0, 3 - f.shape[1])) for _, f in parts])
    probabilities = torch.tensor([2.0, 1.0, 3.0, 1.5, 2.5, 1.0, 2.0], dtype=torch.float64)
    loc = torch.stack([m for m, _ in parts])
    return MixtureOnSubspaces(probabilities, DegenerateNormal(loc, factor)), torch.arange(7.0, dtype=torch.float64) ** 2


def test_the_lowest_rank_is_admissible():
    mixture, _ = point_lines_and_planes()
    z = torch.tensor([[2, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [3, 3, 1], [3, 3, 0], [1, 1, 2]], dtype=torch.float64)
    expected = [{0}, {1}, {2}, {1, 2}, {3, 4}, {5}, {6}]
    assert [set(row.nonzero().flatten().tolist()) for row in mixture.admissible(z)] == expected
    torch.testing.assert_close(mixture.posterior(z).sum(-1), torch.ones(7, dtype=torch.float64))
    assert ((mixture.posterior(z) > 0) == mixture.admissible(z)).all()


def test_the_grouping_rule_finds_equal_supports_without_a_query():
    mixture, _ = point_lines_and_planes()
    expected = torch.eye(7, dtype=torch.bool)
    expected[3, 4] = expected[4, 3] = True
    assert torch.equal(mixture.same_support(), expected)


def test_the_grouping_rule_equals_the_lowest_rank_rule_on_samples():
    """S2.4: almost surely, a sample of component k admits exactly the components that share its support."""
    mixture, _ = point_lines_and_planes()
    z, k = mixture.sample((3000,), generator=generator(4))
    assert torch.equal(mixture.admissible(z), mixture.same_support()[k])
    frequencies = torch.bincount(k, minlength=7) / 3000
    spread = (mixture.probabilities * (1 - mixture.probabilities) / 3000).sqrt()
    assert ((frequencies - mixture.probabilities) / spread).abs().max() < 4


def residual_scores(posterior, n: int = 40_000) -> torch.Tensor:
    """z-scores of E[(t - t̂(z)) h(z)] for indicators of the strata and of half-spaces, and smooth h (S2.3)."""
    mixture, t = point_lines_and_planes()
    z, k = mixture.sample((n,), generator=generator(12))
    residual = t[k] - posterior(mixture, z) @ t
    rank = mixture.components.rank[mixture.admissible(z).double().argmax(-1)]
    tests = [torch.ones_like(residual), z[:, 0], z[:, 1].tanh(), (z[:, 0] > 0.5) * 1.0, z.square().sum(-1).neg().exp()]
    tests += [(rank == r) * 1.0 for r in range(4)] + [(rank == 2) * z[:, 0], (z[:, 2] > 0.5) * z[:, 1]]
    products = residual[:, None] * torch.stack(tests, dim=1)
    return products.mean(0) / products.std(0).clamp_min(1e-300) * math.sqrt(n)


def test_residuals_are_orthogonal_to_every_function_of_z():
    assert residual_scores(MixtureOnSubspaces.posterior).abs().max() < 4


def all_supports(mixture, z):
    """Every component on whose support z lies, whatever its rank."""
    log_weights = mixture.probabilities.log() + mixture.components.log_prob(z[:, None])
    return log_weights.softmax(-1)


def highest_rank(mixture, z):
    log_weights = mixture.probabilities.log() + mixture.components.log_prob(z[:, None])
    rank = mixture.components.rank.where(log_weights.isfinite(), -1)
    return log_weights.where(rank == rank.amax(-1, keepdim=True), -math.inf).softmax(-1)


def without_log_pdet(mixture, z):
    return (mixture.log_weights(z) + 0.5 * mixture.components.log_pdet).softmax(-1)


def without_probabilities(mixture, z):
    return (mixture.log_weights(z) - mixture.probabilities.log()).softmax(-1)


@pytest.mark.parametrize("broken", [all_supports, highest_rank, without_log_pdet, without_probabilities])
def test_residuals_find_a_broken_posterior(broken):
    assert residual_scores(broken).abs().max() > 10


def test_the_density_of_a_mixture_on_one_plane_is_the_weighted_sum():
    mixture, _ = point_lines_and_planes()
    z = torch.tensor([0.4, -0.3, 1.0], dtype=torch.float64)
    parts = [mixture.probabilities[k] * mixture.components.log_prob(z)[k].exp() for k in (3, 4)]
    assert mixture.log_weights(z).logsumexp(-1).exp() == pytest.approx(float(sum(parts)))


def test_a_point_on_no_support_has_no_posterior():
    line = DegenerateNormal(torch.zeros(1, 2), torch.tensor([[[1.0], [0.0]]]))
    mixture = MixtureOnSubspaces(torch.ones(1), line)
    assert not mixture.admissible(torch.tensor([0.0, 1.0])).any()
    assert mixture.posterior(torch.tensor([0.0, 1.0])).isnan().all()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("loc", "factor", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 2), "same d"),
        (torch.tensor(1.0), torch.zeros(1, 1), "same d"),
        (torch.zeros(3), torch.zeros(3), "same d"),
        (torch.zeros(2, 3), torch.zeros(4, 3, 1), "broadcast"),
        (torch.tensor([0.0, math.nan]), torch.eye(2), "finite"),
        (torch.zeros(2), torch.tensor([[math.inf], [0.0]]), "finite"),
    ],
)
def test_what_does_not_fit_is_refused(loc, factor, message):
    with pytest.raises(ValueError, match=message):
        DegenerateNormal(loc, factor)


def test_wrong_points_and_matrices_are_refused():
    normal = normal_of_rank(2)
    with pytest.raises(ValueError, match=r"points in R\^5.*\(4,\) came"):
        normal.log_prob(torch.zeros(4))
    with pytest.raises(ValueError, match="without NaN"):
        normal.log_prob(torch.full((5,), math.nan))
    assert normal_of_rank(2).support.check(torch.full((5,), math.nan)).logical_not()
    unchecked = DegenerateNormal(normal.loc, normal.factor, validate_args=False)
    assert unchecked.log_prob(torch.full((5,), math.nan)) == -math.inf
    with pytest.raises(ValueError, match="5 columns"):
        normal.linear_image(torch.eye(4))


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [([1.0, 1.0], r"\(2,\) and \(7,\)"), ([1.0] * 6 + [0.0], "positive"), ([1.0] * 6 + [math.inf], "finite")],
)
def test_a_mixture_refuses_what_does_not_fit(probabilities, message):
    mixture, _ = point_lines_and_planes()
    with pytest.raises(ValueError, match=message):
        MixtureOnSubspaces(torch.tensor(probabilities), mixture.components)


def test_docstring_examples():
    result = doctest.testmod(lemmse.gaussians)
    assert result.attempted >= 6
    assert result.failed == 0


def test_a_chain_of_images_forgets_what_it_was_measured_by():
    """Stretch by 10⁶, shrink by as much, flatten: the line left has deviation 1, and what is off it is off it."""
    stretched = DegenerateNormal(torch.zeros(2).double(), torch.eye(2).double())
    for diagonal in ([1e6, 1.0], [1e-6, 1.0], [1.0, 0.0]):
        stretched = stretched.linear_image(torch.diag(torch.tensor(diagonal, dtype=torch.float64)))
    assert int(stretched.rank) == 1
    assert stretched.log_prob(torch.tensor([0.0, 0.5], dtype=torch.float64)) == -math.inf
    assert stretched.log_prob(torch.tensor([0.5, 0.0], dtype=torch.float64)).isfinite()
