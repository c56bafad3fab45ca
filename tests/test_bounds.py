"""Recovery bounds: S7 and S8, against brute force, and problems that try to break them."""

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import lemmse as le
from lemmse import bounds
from operators_registry import BOX, GAUSSIAN, IMAGE, MASK, H, W, random_matrix
from problems import as_matrix, measured, training_set
from reference import window_operators

SLACK = 1e-9
"""Relative to the bound and to the size of the atoms: what rounding in float64 may do."""


# ------------------------------------------------------------------------------------------------------------- problems


class Problems:
    """A batch of random problems y = A x + e with D atoms, all solved by plain softmax: nothing of the package."""

    def __init__(self, seed: int, *, d: int, m: int, n: int, batch: int):
        g = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        def uniform(*shape):
            return torch.rand(*shape, generator=g, dtype=torch.float64)

        rank = int(torch.randint(1, min(m, n) + 1, (), generator=g))
        self.a = normal(batch, m, rank) @ normal(batch, rank, n)
        self.atoms = normal(batch, d, n)
        twins = uniform(batch, d) < 0.2  # ties: copies of the first atom
        self.atoms = torch.where(twins[..., None], self.atoms[:, :1], self.atoms)
        inside = uniform(batch, 1) < 0.3  # the truth is an atom
        self.x = torch.where(inside, self.atoms[:, -1], normal(batch, n) * 10 ** (2 * uniform(batch, 1) - 1))
        self.sigma = 10 ** (6 * uniform(batch) - 3)
        e = normal(batch, m) * 10 ** (4 * uniform(batch, 1) - 3)
        hostile = uniform(batch, 1) < 0.3  # noise that points from the truth to an atom
        pull = torch.einsum("bmn,bn->bm", self.a, self.atoms[:, 0] - self.x) * (2 * uniform(batch, 1))
        self.e = torch.where(hostile, pull, e)
        self.epsilon = self.e.norm(dim=1)
        self.solve()

    def solve(self):
        """Find weights, estimate, residuals and what only a simulation knows."""
        difference = self.atoms - self.x[:, None]
        seen = torch.einsum("bmn,bdn->bdm", self.a, difference)
        self.rho, self.far = seen.norm(dim=2), difference.norm(dim=2)
        self.r2 = (seen - self.e[:, None]).square().sum(2)
        self.w = torch.softmax(-self.r2 / (2 * self.sigma[:, None] ** 2), 1)
        self.x_hat = torch.einsum("bd,bdn->bn", self.w, self.atoms)
        self.error = (self.x_hat - self.x).norm(dim=1)
        self.spread = (self.w * self.far.square()).sum(1).sqrt()  # √(E_w‖x_d - x‖²)
        self.mean_r2 = (self.w * self.r2).sum(1)
        self.excess = (torch.special.entr(self.w).sum(1) + self.w.amax(1).log()).clamp_min(0)  # rounding
        self.count = torch.full_like(self.sigma, self.rho.shape[1])

    def bounds(self, delta: float = 0.1) -> dict[str, torch.Tensor]:
        """All bounds of S8, by name."""
        known = bounds.injectivity(self.rho, self.far)
        alpha, nearest, r1 = known.alpha, known.nearest, self.r2.amin(1).sqrt()
        common = {"epsilon": self.epsilon, "sigma": self.sigma}
        return {
            "R1": bounds.published_bound(alpha, nearest, count=self.count, **common),
            "R2": bounds.sharp_bound(alpha, nearest, count=self.count, **common),
            "R3": bounds.residual_bound(alpha, r1, count=self.count, **common),
            "R4": bounds.certificate(alpha, self.mean_r2, self.epsilon),
            "prior": bounds.prior_bound(alpha, nearest, log_prior=-self.count.log(), **common),
            "R5": bounds.gaussian_bound(alpha, nearest, self.sigma, self.count, delta),
            "R5, observed": bounds.gaussian_bound(alpha, nearest, self.sigma, self.count, delta, self.excess),
        }


SHAPES = [(d, m, n) for d in (1, 2, 3, 5, 11, 40) for m in (1, 3, 8) for n in (1, 2, 6)]
DETERMINISTIC = ("R1", "R2", "R3", "R4", "prior")


@pytest.mark.parametrize(("d", "m", "n"), SHAPES)
def test_no_problem_breaks_a_bound(d, m, n):
    """54 × 250 problems: any operator, ties, the truth among the atoms, any sigma, hostile noise."""
    problems = Problems(d * 100 + m * 10 + n, d=d, m=m, n=n, batch=250)
    size = problems.atoms.abs().amax((1, 2)) + problems.x.abs().amax(1)
    found = problems.bounds()
    for name in DETERMINISTIC:
        assert (problems.error <= found[name] * (1 + SLACK) + SLACK * size).all(), name
    root = found["R4"]
    assert (problems.spread <= root * (1 + SLACK) + 1e-7 * size).all()  # √ of a difference that rounds


@pytest.mark.parametrize(("d", "m", "n"), SHAPES[::4])
def test_the_order_of_the_bounds(d, m, n):
    """R4 ≤ R3 ≤ R2 ≤ R1, and the bound of any prior lies between R3 and R1."""
    found = Problems(d + m + n, d=d, m=m, n=n, batch=200).bounds()
    order = [("R4", "R3"), ("R3", "R2"), ("R2", "R1"), ("R3", "R1"), ("prior", "R1"), ("R5, observed", "R5")]
    for smaller, larger in order:
        finite = found[larger].isfinite()
        assert (found[smaller][finite] <= found[larger][finite] * (1 + SLACK)).all(), (smaller, larger)


@given(
    atoms=st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=7),
    x=st.floats(-1e3, 1e3, allow_subnormal=False),
    e=st.floats(-1e3, 1e3, allow_subnormal=False),
    sigma=st.floats(1e-3, 1e4),
    gain=st.floats(1e-2, 1e2),
)
@settings(max_examples=200, deadline=None)
def test_no_problem_in_one_dimension_breaks_a_bound(atoms, x, e, sigma, gain):
    """Ties, equal atoms and truths among them come by themselves where hypothesis shrinks."""
    problems = Problems(0, d=len(atoms), m=1, n=1, batch=1)
    as_tensor = lambda *values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    problems.a, problems.atoms, problems.x = (
        as_tensor(gain)[None, None],
        as_tensor(*atoms)[None, :, None],
        as_tensor(x)[None],
    )
    problems.sigma, problems.e, problems.epsilon = as_tensor(sigma), as_tensor(e)[None], as_tensor(abs(e))
    problems.solve()
    found = problems.bounds()
    for name in DETERMINISTIC:
        bound = found[name]
        assert (problems.error <= bound * (1 + SLACK) + 1e-9 * (1 + abs(x) + max(map(abs, atoms)))).all(), name


@pytest.mark.parametrize(("d", "m", "n"), [(1, 3, 2), (2, 8, 3), (40, 8, 6), (40, 40, 6)])
def test_gaussian_noise_breaks_the_last_bound_no_more_often_than_stated(d, m, n):
    """R5 fails in at most δ of 2000 trials: the binomial tail of what is seen is no smaller than 1e-6."""
    problems, g, delta = Problems(3, d=d, m=m, n=n, batch=2000), torch.Generator().manual_seed(1), 0.3
    problems.e = problems.sigma[:, None] * torch.randn(2000, m, generator=g, dtype=torch.float64)
    problems.epsilon = problems.e.norm(dim=1)
    problems.solve()
    for name in ("R5", "R5, observed"):
        failures = int((problems.error > problems.bounds(delta)[name] * (1 + SLACK) + 1e-9).sum())
        assert stats.binom.sf(failures - 1, 2000, delta) > 1e-6


def test_a_gaussian_bound_without_its_tail_would_fail():
    """With τ of δ → 1 and one atom it is nearly 0 + r_*: the trials above can tell a bound from what is none."""
    problems, g = Problems(3, d=2, m=1, n=1, batch=2000), torch.Generator().manual_seed(1)
    problems.a, problems.sigma = torch.ones_like(problems.a), torch.full_like(problems.sigma, 0.3)
    problems.x = problems.atoms[:, 0]
    problems.e = problems.sigma[:, None] * torch.randn(2000, 1, generator=g, dtype=torch.float64)
    problems.solve()
    known = bounds.injectivity(problems.rho, problems.far)
    without = (2 * problems.sigma.square() * problems.excess).sqrt() / known.alpha  # τ = 0
    assert (problems.error > without).double().mean() > 0.02


# ------------------------------------------------------------------------------------------------- sparsity of weights


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.5, 3.0, 100.0])
@pytest.mark.parametrize("make", [le.MMSE, le.EquivariantMMSE])
def test_the_identity_gives_the_nearest_residual(make, sigma, generator):
    """r_1² from moments alone is the smallest squared distance, found here one by one (S7.1)."""
    images, physics = training_set(count=7), le.Inpainting(MASK)
    y = measured(images, physics, generator, sigma=sigma)
    moments = make(images, physics)(y, sigma=sigma, reduction=le.PosteriorMoments())
    shifts = [(0, 0)] if make is le.MMSE else [(i, j) for i in range(H) for j in range(W)]
    atoms = torch.cat([torch.roll(physics.A(images), shift, (2, 3)) for shift in shifts])
    smallest = torch.stack([(atoms - each).flatten(1).square().sum(1).amin() for each in y])
    found = bounds.nearest_squared_residual(moments, sigma)
    torch.testing.assert_close(found, smallest, rtol=1e-9, atol=1e-9 * sigma**2)
    excess = bounds.residual_excess(moments)
    assert ((excess >= 0) & (excess <= bounds.largest_excess(len(atoms)) + 1e-12)).all()


def test_the_identity_of_the_local_estimator(generator):
    """The same for every pixel, K = D N windows."""
    images, sigma = training_set(count=3), 0.4
    y = measured(images, le.Denoising(), generator, sigma=sigma)
    moments = le.LocalEquivariantMMSE(images, le.Denoising(), 3)(y, sigma=sigma, reduction=le.PosteriorMoments())
    queries, keys = (le.extract_patches(x, 3) for x in (y, images))
    smallest = torch.cdist(queries, keys.flatten(0, 1)[None]).square().amin(2).reshape(2, H, W)
    torch.testing.assert_close(bounds.nearest_squared_residual(moments, sigma), smallest, rtol=1e-9, atol=1e-9)


def test_gaps_and_the_mass_of_all_others(generator):
    """r_k² - r_1² of the listed, and a bound of all others that is reached where they are equally far (S7.2)."""
    images, sigma = training_set(count=6), 0.6
    y = measured(images, le.Denoising(), generator, sigma=sigma)
    sources = le.MMSE(images, le.Denoising())(y, sigma=sigma, reduction=le.TopSources(6))
    squares = (y[:, None] - images[None]).flatten(2).square().sum(2).sort(1).values
    torch.testing.assert_close(bounds.squared_gaps(sources, sigma), squares - squares[:, :1], rtol=1e-9, atol=1e-9)
    outside = bounds.mass_outside(squares[:, 1] - squares[:, 0], 6, sigma)
    assert (1 - sources.weight[:, 0] <= outside).all()
    equally_far = torch.softmax(-torch.tensor([0.0, 5, 5, 5], dtype=torch.float64) / (2 * sigma**2), 0)
    ratio = equally_far[1:].sum() / equally_far[0]
    assert math.isclose(float(bounds.mass_outside(5.0, 4, sigma)), float(ratio), rel_tol=1e-12)
    assert float(bounds.mass_outside(0.0, 10**9, 1.0)) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1e3, 1e6, 1e7, 1e24, 1e300])
def test_the_largest_excess_is_lamberts_function(count):
    """W((D - 1)/e), against scipy's."""
    wanted = special.lambertw((count - 1) / math.e).real
    assert math.isclose(float(bounds.largest_excess(count)), wanted, rel_tol=1e-13, abs_tol=1e-15)


@pytest.mark.parametrize(
    ("count", "published", "w", "sharp"),
    [
        (1e3, 3.717, 4.421, 2.973),
        (1e6, 5.257, 10.467, 4.575),
        (1e8, 6.070, 14.731, 5.428),
        (1e24, 10.513, 50.343, 10.034),
    ],
)
def test_the_table_of_biases(count, published, w, sharp):
    """The table of S8."""
    got = bounds.published_bias(1.0, count), bounds.largest_excess(count), bounds.bias(1.0, count)
    assert [round(float(x), 3) for x in got] == [published, w, sharp]


@pytest.mark.parametrize("count", [2, 3, 10, 1e3, 1e6, 1e12, 1e24])
def test_the_largest_excess_is_reached(count):
    """One atom at the measurement and all others at the distance that maximises E_w r² - r_1²: 2σ²W, to 1e-8."""
    sigma, w = 0.7, float(bounds.largest_excess(count))
    t = 1 + w  # r²/2σ² of the others
    others = (count - 1) * math.exp(-t)
    weight = 1 / (1 + others)
    assert math.isclose(others * weight * 2 * sigma**2 * t, 2 * sigma**2 * w, rel_tol=1e-8)


@pytest.mark.parametrize(("count", "share"), [(1e6, 0.96), (1e24, 0.99)])
def test_the_sharp_bound_is_nearly_reached(count, share):
    """D - 1 atoms in one place, as a multiplicity, and one at the truth, without noise: ‖x̂ - x‖ nears √(2W) σ."""
    sigma = 0.3
    radius = sigma * torch.linspace(0.1, 20, 100_001, dtype=torch.float64)
    log_others = math.log(count - 1) - radius.square() / (2 * sigma**2)
    error = (torch.sigmoid(log_others) * radius).amax()
    bound = bounds.sharp_bound(1.0, 0.0, 0.0, sigma, count)
    assert share <= float(error / bound) <= 1


def test_the_bias_vanishes_with_the_residual():
    """√(r_1² + 2σ²W) - r_1 ≤ min(√(2W) σ, σ²W/r_1); 0.19σ at r_1 = σ√3072 and D = 10⁶ (R3)."""
    r, sigma = torch.logspace(-3, 5, 50, dtype=torch.float64), 0.4
    found, w = bounds.bias(sigma, 1e6, r), bounds.largest_excess(1e6)
    assert (found <= torch.minimum((2 * w).sqrt() * sigma, sigma**2 * w / r) * (1 + 1e-12)).all()
    assert (found.diff() < 0).all()
    assert round(float(bounds.bias(1.0, 1e6, math.sqrt(3072))), 2) == 0.19
    assert float(bounds.bias(1.0, 1)) == 0


# ---------------------------------------------------------------------------------------------------------- injectivity


@pytest.mark.parametrize("kind", ["identity", "pseudo-inverse", "wide"])
def test_restricted_injectivity_by_loops(kind, generator, monkeypatch):
    """α and r_* of each x, one atom at a time; small chunks give the same."""
    images, physics = training_set(count=9), le.Inpainting(MASK)
    x = torch.rand(3, *IMAGE, generator=generator, dtype=torch.float64)
    x[1] = images[4]
    B = {"identity": None, "pseudo-inverse": le.PseudoInverse(physics)}.get(kind)
    if kind == "wide":
        B = le.Matrix(random_matrix(5, 108), IMAGE, (5,))
    matrix = as_matrix(B, IMAGE)
    projector = torch.linalg.pinv(matrix) @ matrix
    monkeypatch.setattr(bounds, "PAIRS", 2 * math.prod(IMAGE))
    found = bounds.restricted_injectivity(images, physics, x, B)
    for i in range(3):
        rho = [float((projector @ physics.A((a - x[i])[None]).flatten()).norm()) for a in images]
        far = [float((a - x[i]).norm()) for a in images]
        ratios = [p / q if q else math.inf for p, q in zip(rho, far, strict=True)]
        assert math.isclose(float(found.alpha[i]), min(ratios), rel_tol=1e-9)
        assert math.isclose(float(found.nearest[i]), min(rho), rel_tol=1e-9, abs_tol=1e-12)
        assert int(found.atom[i]) == ratios.index(min(ratios))
        assert int(found.nearest_atom[i]) == rho.index(min(rho))
        assert math.isclose(float(found.distance[i]), far[int(found.atom[i])], rel_tol=1e-12)


def test_an_only_atom_that_is_the_truth():
    """No atom differs from x: α is infinite, every bound 0, and x̂ = x."""
    images = training_set(count=1)
    found = bounds.restricted_injectivity(images, le.Denoising(), images)
    assert found.alpha.tolist() == [math.inf]
    assert found.atom.tolist() == [-1]
    assert found.note == ""
    assert float(bounds.published_bound(found, found.nearest, 3.0, 0.1, 1)) == 0


def test_a_collision_is_named():
    """Two images that differ in the hole alone: α = 0, the bound is infinite, and a warning names the atom."""
    images = training_set(count=3)
    truth = images[1:2] + 0.5 * (1 - MASK)
    found = bounds.restricted_injectivity(images, le.Inpainting(MASK), truth)
    assert "atom 1 has the measurement of truth 0" in found.note
    assert f"{float((truth - images[1]).norm()):.4g}" in found.note
    with pytest.warns(bounds.VacuousBoundWarning, match="atom 1"):
        bound = bounds.certificate(found, 0.1, 0.0)
    assert bound.tolist() == [math.inf]
    assert float(bounds.sharp_bound(0.0, 0.0, 0.0, 0.1, 1)) == math.inf


@pytest.mark.parametrize("psf", [torch.full((2, 2), 0.25), torch.full((1, 2), 0.5)])
def test_a_collision_behind_rounding_is_one(psf):
    """What a blur takes away but for 1e-17 is taken away."""
    images, physics = training_set(count=3, shape=(1, 4, 6)), le.Blur(psf.double())
    board = ((torch.arange(4)[:, None] + torch.arange(6)) % 2 * 2 - 1).double()
    truth = images[:1] + 0.3 * board
    found = bounds.restricted_injectivity(images, physics, truth)
    assert float(found.alpha) == 0
    assert "atom 0" in found.note
    pair = bounds.set_injectivity(torch.cat([images, truth]), physics)
    assert float(pair.alpha) == 0
    assert "images 0 and 3 have one measurement" in pair.note


def test_shifted_copies_serve_where_augmentation_is_equivariance(generator):
    """For denoising all shifts of all images bound the equivariant estimator (S4.3)."""
    images = training_set(count=3, shape=(1, 4, 6))
    truth, sigma = torch.roll(images[:2], (1, 2), (2, 3)) + 0.05, 0.1
    e = sigma * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    estimator = le.EquivariantMMSE(images, le.Denoising())
    error = (estimator(truth + e, sigma=sigma).mean - truth).flatten(1).norm(dim=1)
    known = bounds.restricted_injectivity(le.data.ShiftedImages(images), le.Denoising(), truth)
    bound = bounds.published_bound(known, known.nearest, e.flatten(1).norm(dim=1), sigma, 3 * 24)
    assert (error <= bound).all()
    assert (known.nearest < 0.3).all()  # not without the shifts


def test_the_pairs_of_a_set():
    """The smallest ratio of all pairs, and which pair it is."""
    images, physics = training_set(count=6), le.Blur(BOX)
    seen = physics.A(images)
    ratios = {
        (i, j): float((seen[i] - seen[j]).norm() / (images[i] - images[j]).norm()) for j in range(6) for i in range(j)
    }
    found = bounds.set_injectivity(images, physics)
    pair = min(ratios, key=ratios.get)
    assert (int(found.atom), int(found.nearest_atom)) == pair
    assert math.isclose(float(found.alpha), ratios[pair], rel_tol=1e-12)
    assert math.isclose(float(found.nearest), float((seen[pair[0]] - seen[pair[1]]).norm()), rel_tol=1e-12)


# ---------------------------------------------------------------------------------------------------------------- blind


def test_pairs_of_operator_and_image():
    """A posterior over 3 × 5 pairs by brute force: R1 to R4 hold for x̂ and Â, 300 times (S9.5)."""
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        operators, images = (torch.randn(k, *s, generator=g, dtype=torch.float64) for k, s in ((3, (4, 6)), (5, (6,))))
        q, d = (int(torch.randint(k, (), generator=g)) for k in (3, 5))
        true_a = operators[q] + 0.1 * torch.randn(4, 6, generator=g, dtype=torch.float64)
        true_x = images[d] + 0.1 * torch.randn(6, generator=g, dtype=torch.float64)
        sigma = float(10 ** (2 * torch.rand((), generator=g) - 1.5))
        e = sigma * torch.randn(4, generator=g, dtype=torch.float64)
        seen = torch.einsum("qmn,dn->qdm", operators, images)
        rho = (seen - true_a @ true_x).norm(dim=2).flatten()
        r2 = (seen - true_a @ true_x - e).square().sum(2).flatten()
        w = torch.softmax(-r2 / (2 * sigma**2), 0).reshape(3, 5)
        far = {
            "x": (images - true_x).norm(dim=1).repeat(3),
            "A": (operators - true_a).flatten(1).norm(dim=1).repeat_interleave(5),
        }
        errors = {
            "x": float((w.sum(0) @ images - true_x).norm()),
            "A": float((torch.einsum("q,qmn->mn", w.sum(1), operators) - true_a).norm()),
        }
        mean_r2 = (w.flatten() * r2).sum()
        for which, error in errors.items():
            known = bounds.injectivity(rho, far[which])
            noise = float(e.norm())
            assert error <= bounds.certificate(known, mean_r2, noise) * (1 + SLACK)
            assert error <= bounds.residual_bound(known, r2.min().sqrt(), noise, sigma, 15) * (1 + SLACK)
            assert error <= bounds.sharp_bound(known, known.nearest, noise, sigma, 15) * (1 + SLACK)


def test_a_blind_ambiguity_is_said():
    """A scaled operator and the image scaled back have the measurement of the truth: no recovery (S9.3)."""
    truth_a, truth_x = random_matrix(3, 4).round(decimals=1), torch.ones(4, dtype=torch.float64)
    operators, images = torch.stack([truth_a, 2 * truth_a]), torch.stack([truth_x, truth_x / 2])
    rho = torch.stack([(a @ x - truth_a @ truth_x).norm() for a in operators for x in images])
    known = bounds.injectivity(rho, (images - truth_x).norm(dim=1).repeat(2))
    assert "atom 3" in known.note
    with pytest.warns(bounds.VacuousBoundWarning):
        assert bounds.certificate(known, 0.0, 0.1) == math.inf


# ------------------------------------------------------------------------------------------------------- pixel by pixel

LOCAL = {
    "denoising": (le.Denoising(), None),
    "mask, A⁺": (le.Inpainting(MASK), le.PseudoInverse(le.Inpainting(MASK))),
    "mask, Id": (le.Inpainting(MASK), None),
    "blur, Id": (le.Blur(GAUSSIAN), None),
    "blur, A⁺": (le.Blur(GAUSSIAN), le.PseudoInverse(le.Blur(GAUSSIAN))),
    "phases": (le.Downsampling(3, GAUSSIAN), le.Adjoint(le.Downsampling(3, GAUSSIAN))),
    "epsilon": (le.Inpainting(MASK), le.EpsilonInverse(MASK, 0.3)),
    "any B": (le.Denoising(), le.Matrix(random_matrix(108, 108), IMAGE, IMAGE)),
}
P = 3


def facts_by_loops(images, physics, B, x, e) -> dict[str, torch.Tensor]:
    """What ``window_facts`` finds, by dense matrices and loops over pairs of pixels, for one image."""
    clean = physics.A(x[None])[0].reshape(-1)
    matrix = as_matrix(B, tuple(physics.A(x[None]).shape[1:]))
    operators = window_operators(matrix, IMAGE, P)
    inverses = [torch.linalg.pinv(q, rtol=1e-10) for q in operators]
    spaces = torch.stack([q @ inverse for q, inverse in zip(operators, inverses, strict=True)])
    sizes = [torch.linalg.svdvals(q) for q in operators]
    half = [float(s[s > 1e-10 * max(float(t.max()) for t in sizes)].log().sum()) for s in sizes]
    measured = physics.A(images).flatten(1)
    n = H * W
    truth, values = x.flatten(1).T, images.flatten(2).transpose(1, 2)
    found = {name: torch.zeros(n, dtype=torch.float64) for name in ("alpha", "nearest", "count", "noise", "gain")}
    found |= {name: torch.zeros(n, dtype=torch.float64) for name in ("noise_spread", "log_prior")}
    for at in range(n):
        stratum = [m for m in range(n) if (spaces[m] - spaces[at]).abs().max() < 1e-7]
        rho = torch.stack(
            [
                torch.stack([(inverses[m] @ (operators[at] @ clean - operators[m] @ y)).norm() for m in stratum])
                for y in measured
            ]
        )
        far = (values[:, stratum] - truth[at]).norm(dim=2)
        prior = torch.softmax(-torch.tensor([half[m] for m in stratum], dtype=torch.float64), 0) / len(images)
        noise = torch.stack([(inverses[m] @ (operators[at] @ e.reshape(-1))).norm() for m in stratum])
        found["alpha"][at] = torch.where(far > 0, rho / far, torch.inf).min()
        found["nearest"][at] = rho.min()
        found["count"][at] = rho.numel()
        found["noise"][at] = noise.max()
        found["noise_spread"][at] = noise.max() ** 2 - noise.min() ** 2
        gains = [torch.linalg.matrix_norm(inverses[m] @ operators[at], 2) for m in stratum]
        found["gain"][at] = max(map(float, gains)) if any(map(float, gains)) else 1.0
        found["log_prior"][at] = prior[int(rho.argmin()) % len(stratum)].log()
    return found


class Small(NamedTuple):
    """A local problem with its truth and noise, and its facts by loops."""

    estimator: le.LocalEquivariantMMSE
    x: torch.Tensor
    e: torch.Tensor
    facts: dict[str, torch.Tensor]


@cache
def small(name: str) -> Small:
    """One image, two atoms; loops take seconds."""
    (physics, B), images, g = LOCAL[name], training_set(count=2), torch.Generator().manual_seed(3)
    x = torch.rand(1, *IMAGE, generator=g, dtype=torch.float64)
    e = 0.2 * torch.randn(physics.A(x).shape, generator=g, dtype=torch.float64)
    estimator = le.LocalEquivariantMMSE(images, physics, P, B)
    return Small(estimator, x, e, facts_by_loops(images, physics, B, x[0], e[0]))


@pytest.mark.parametrize("name", LOCAL)
def test_facts_of_windows_by_loops(name):
    """α, r_*, K, noise, gain and prior of every pixel, by the letter of S8.7."""
    estimator, x, e, wanted = small(name)
    found = bounds.window_facts(estimator, x, e)
    for fact, values in wanted.items():
        got = getattr(found, fact).flatten()
        if fact == "gain":  # of windows that nothing was seen of, any number will do
            values = torch.where(found.nearest.flatten() == 0, got, values)
        torch.testing.assert_close(got, values, rtol=1e-5, atol=2e-6, msg=lambda text, fact=fact: f"{fact}: {text}")


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.5])
def test_no_pixel_breaks_its_bound(name, sigma, generator):
    """R1, R3 and R4 at every pixel of ten images; R5 with δ/N at all but what a binomial law allows."""
    physics, B = LOCAL[name]
    images, count, delta = training_set(count=4), 10, 0.05
    x = torch.rand(count, *IMAGE, generator=generator, dtype=torch.float64)
    x[::2] = images[:1].roll(1, 2) + 0.05 * x[::2]  # some truths are near the set
    clean = physics.A(x)
    e = sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    estimator = le.LocalEquivariantMMSE(images, physics, P, B)
    moments = estimator(clean + e, sigma=sigma, reduction=le.PosteriorMoments())
    found = bounds.local_bounds(bounds.window_facts(estimator, x, e), moments, sigma=sigma, delta=delta / (H * W))
    error = (moments.mean - x).norm(dim=1)
    for bound in (found.published, found.residual, found.certificate):
        assert (error <= bound * (1 + SLACK) + SLACK).all()
    assert (found.certificate <= found.residual * (1 + 1e-6) + 1e-9).all()
    assert (found.residual <= found.published * (1 + 1e-6) + 1e-9).all()
    failures = int((error > found.gaussian * (1 + SLACK) + SLACK).flatten(1).any(1).sum())
    assert stats.binom.sf(failures - 1, count, delta) > 1e-6
    assert (found.least <= found.certificate).all()
    whole = bounds.image_bound(found.certificate)
    torch.testing.assert_close(whole, found.certificate.flatten(1).norm(dim=1))
    assert ((moments.mean - x).flatten(1).norm(dim=1) <= whole).all()


@pytest.mark.parametrize("name", LOCAL)
def test_the_floor_of_alpha(name):
    """No α is below the floor; it is 1 for denoising and at the visible pixels of a mask, 1/‖Q‖ of an inverse."""
    B, alpha = LOCAL[name][1], small(name).facts["alpha"].reshape(H, W)
    floor = bounds.window_alpha_floor(small(name).estimator)
    assert (alpha >= floor * (1 - 1e-9)).all()
    seen = MASK.double() if name == "mask, A⁺" else torch.ones(H, W, dtype=torch.float64)
    if name in ("denoising", "mask, A⁺"):
        torch.testing.assert_close(floor, seen)
    elif name == "blur, A⁺":
        norm = torch.linalg.matrix_norm(window_operators(as_matrix(B, IMAGE), IMAGE, P)[0], 2)
        torch.testing.assert_close(floor, torch.full_like(floor, 1 / float(norm)))
    elif name in ("mask, Id", "blur, Id", "phases"):
        assert (floor == 0).all()


def test_the_floor_of_what_is_not_linear_is_unknown():
    """A function that changes nothing in [0, 1] may do so elsewhere."""
    images = 3 * training_set(count=2)
    clipped = le.LocalEquivariantMMSE(images / 3, le.Nonlinear(lambda x: x.clamp(0, 0.5)), 1)
    assert (bounds.window_alpha_floor(clipped) == 0).all()


def test_strata_of_one_atom():
    """A prior of 1 is no more than 1, whatever rounding makes of its logarithm."""
    images = training_set(count=1, shape=(1, 5, 6))
    low = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    B = le.Matrix(low @ low.T, (1, 5, 6), (1, 5, 6))
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3, B)
    facts = bounds.window_facts(estimator, images + 0.1, torch.zeros_like(images))
    assert (facts.log_prior == 0).all()
    moments = estimator(images + 0.1, sigma=0.2, reduction=le.PosteriorMoments())
    assert bounds.local_bounds(facts, moments, sigma=0.2, delta=0.1).least.shape == (1, 5, 6)


def test_few_pairs_at_once_give_the_same_facts(generator, monkeypatch):
    """Queries are split, too."""
    images = training_set(count=3)
    x = torch.rand(2, *IMAGE, generator=generator, dtype=torch.float64)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), P)
    whole = bounds.window_facts(estimator, x, x)
    monkeypatch.setattr(bounds, "PAIRS", 200)
    for name, values in vars(bounds.window_facts(estimator, x, x)).items():
        torch.testing.assert_close(values, getattr(whole, name))


def test_one_sigma_per_query_runs_along_queries():
    """With maps and a plain count as well as with a map of counts, also where b = w."""
    maps, sigma = torch.full((3, 2, 3), 0.5, dtype=torch.float64), torch.tensor([0.1, 1.0, 10.0])
    for bound in (bounds.published_bound, bounds.sharp_bound, bounds.residual_bound):
        together = bound(maps, maps, maps, sigma, 100)
        assert torch.equal(together, bound(maps, maps, maps, sigma, torch.full_like(maps, 100)))
        for i in range(3):
            torch.testing.assert_close(together[i], bound(maps[i], maps[i], maps[i], float(sigma[i]), 100))
    together = bounds.gaussian_bound(maps, 0.3, sigma, 100, 0.1)
    torch.testing.assert_close(together[1], bounds.gaussian_bound(maps[1], 0.3, 1.0, 100, 0.1))
    together = bounds.prior_bound(maps, 0.3, 0.2, sigma, -1.0)
    torch.testing.assert_close(together[2], bounds.prior_bound(maps[2], 0.3, 0.2, 10.0, -1.0))


def test_one_pixel_windows_near_the_truth(generator):
    """A truth a billionth from an atom: rounding must not make its certificate infinite."""
    images = training_set(count=2)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 1)
    facts = bounds.window_facts(estimator, images[:1] + 1e-9, torch.zeros_like(images[:1]))
    assert (facts.alpha >= 1).all()


@pytest.mark.parametrize("m", [1, 10, 784])
def test_the_radius_of_noise(m):
    """‖e‖ exceeds it in no more than δ of the trials."""
    g, delta = torch.Generator().manual_seed(0), 0.1
    norms = 0.3 * torch.randn(2000, m, generator=g, dtype=torch.float64).norm(dim=1)
    failures = int((norms > bounds.noise_radius(m, 0.3, delta)).sum())
    assert stats.binom.sf(failures - 1, 2000, delta) > 1e-6
    assert float((norms / bounds.noise_radius(m, 0.3, 0.999)).median()) > 0.5


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: bounds.published_bound(1.0, 0.1, -0.1, 0.1, 3),
            ValueError,
            "epsilon must be numbers, not negative: got -0.1",
        ),
        (lambda: bounds.published_bound(1.0, -1.0, 0.1, 0.1, 3), ValueError, "nearest must be numbers, not negative"),
        (lambda: bounds.sharp_bound(1.0, 0.1, 0.1, 0.1, 0), ValueError, "count is the number of atoms D"),
        (lambda: bounds.sharp_bound(-1.0, 0.1, 0.1, 0.1, 2), ValueError, "alpha must be numbers, not negative"),
        (lambda: bounds.sharp_bound(1.0, 0.1, 0.1, 0.0, 2), ValueError, "positive and finite"),
        (
            lambda: bounds.sharp_bound(math.nan, 0.1, 0.1, 0.1, 2),
            ValueError,
            "alpha must be numbers, not negative: got nan",
        ),
        (lambda: bounds.gaussian_bound(1.0, 0.1, 0.1, 2, 0.0), ValueError, "delta is the probability"),
        (lambda: bounds.gaussian_bound(1.0, 0.1, 0.1, 2, 1.0), ValueError, "delta is the probability"),
        (lambda: bounds.sharp_bound(1.0, 0.1, 0.1, 0.1, math.inf), ValueError, "finite and at least 1"),
        (lambda: bounds.bias(1.0, 0, excess=1.0), ValueError, "finite and at least 1"),
        (lambda: bounds.noise_radius(torch.ones(3, 2), torch.ones(3), 0.1), ValueError, "one sigma for a map"),
        (
            lambda: bounds.restricted_injectivity(training_set(count=2), le.Denoising(), torch.ones(0, *IMAGE)),
            ValueError,
            "like the images",
        ),
        (lambda: bounds.noise_radius(10, 0.1, 1.5), ValueError, "delta is the probability"),
        (lambda: bounds.prior_bound(1.0, 0.1, 0.1, 0.1, 0.5), ValueError, "-log_prior must be numbers, not negative"),
        (lambda: bounds.mass_outside(-1.0, 3, 0.1), ValueError, "gap must be numbers, not negative"),
        (lambda: bounds.residual_excess(0.3), TypeError, "needs Moments"),
        (lambda: bounds.squared_gaps(0.3, 0.1), TypeError, "needs the Sources"),
        (lambda: bounds.injectivity(torch.ones(2), torch.ones(3)), ValueError, r"got \(2,\) and \(3,\)"),
        (lambda: bounds.set_injectivity(training_set(count=1), le.Denoising()), ValueError, "got 1 image"),
        (
            lambda: bounds.restricted_injectivity(training_set(count=2), le.Denoising(), torch.ones(1, 2, 3, 3)),
            ValueError,
            "like the images",
        ),
        (
            lambda: bounds.window_alpha_floor(le.MMSE(training_set(count=2), le.Denoising())),
            TypeError,
            "is about pixels",
        ),
    ],
)
def test_bad_input(call, error, says, unchecked_shapes):
    """What was asked, what came."""
    with pytest.raises(error, match=says):
        call()


def test_bad_input_of_local_bounds(generator, unchecked_shapes):
    """Facts of some images and moments of others."""
    images = training_set(count=2)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), P)
    facts = bounds.window_facts(estimator, images, torch.zeros_like(images))
    moments = estimator(images[:1], sigma=0.1, reduction=le.PosteriorMoments())
    with pytest.raises(ValueError, match="those of the images of the facts"):
        bounds.local_bounds(facts, moments, sigma=0.1, delta=0.1)
    single = le.LocalEquivariantMMSE(images.float(), le.Denoising(), P)
    rounded = single(images.float(), sigma=0.1, reduction=le.PosteriorMoments())
    with pytest.raises(ValueError, match=r"got torch.float32. Make the estimator from images.double\(\)"):
        bounds.local_bounds(facts, rounded, sigma=0.1, delta=0.1)
    with pytest.raises(ValueError, match="e must be"):
        bounds.window_facts(estimator, images, torch.zeros(1, *IMAGE, dtype=torch.float64))
