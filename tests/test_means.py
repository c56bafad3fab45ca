"""Compiled loops give the means of matrix products and of plain loops, at any boundary, for any strata and sigmas."""

import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch

import lemmse as le
from lemmse import _fused, estimators, means
from lemmse.patches import extract_patches, window_index
from problems import LazyImages, as_matrix, assert_same, measured, training_set
from reference import local_mmse

SHAPES = [
    (1, 5, 8),
    (3, 8, 5),
    (2, 7, 6),
]  # grey, colour, and neither; rows of 5, of 8 (a vector), and of 7
HOLE = (slice(2, 4), slice(1, 4))


def mask_of(h, w):
    mask = torch.ones(h, w)
    mask[HOLE] = 0
    return mask


def problems(shape):
    """Operators and pre-inverses whose windows are compared as they are."""
    mask = le.Inpainting(mask_of(*shape[1:]))
    return {
        "denoising": (le.Denoising(), None),
        "a blur, not inverted": (le.Blur(le.optics.gaussian_psf(0.8, size=3)), None),
        "inpainting": (mask, le.PseudoInverse(mask)),
        "inpainting, scaled": (mask, le.Tikhonov(mask, 0.3)),
    }


def take(monkeypatch, path):
    """Take the kernel, weighed products or neither, and merge duplicates, however small the problem is."""
    monkeypatch.setattr(estimators, "FUSED_FROM", 0)
    monkeypatch.setattr(estimators, "MERGED_FROM", 0)
    monkeypatch.setattr(means, "COSTS", means.COSTS._replace(fused=0 if path == "fused" else 1e9, colour=0))
    if path == "terms":
        monkeypatch.setattr(estimators, "with_numba", lambda *_: False)


@pytest.fixture
def fused(monkeypatch):
    take(monkeypatch, "fused")


@pytest.fixture(params=["fused", "weighed"])
def always(request, monkeypatch):
    take(monkeypatch, request.param)
    return request.param


def by_terms(monkeypatch, images, physics, *args, **kwargs):
    """Return the estimator that PyTorch alone makes."""
    with monkeypatch.context() as patch:
        take(patch, "terms")
        return le.LocalEquivariantMMSE(images, physics, *args, **kwargs)


def close(got, wanted, tolerance=1e-5):
    torch.testing.assert_close(got.mean, wanted.mean.to(got.mean), rtol=0, atol=tolerance)
    torch.testing.assert_close(
        got.log_partition, wanted.log_partition.to(got.log_partition), rtol=tolerance, atol=10 * tolerance
    )


@pytest.mark.parametrize("count", [*range(1, 32, 2), 63, 127])
def test_sums_are_made_of_few_parts(count):
    """Every entry comes once, in sums that the doublings make; all windows up to 29 take at most four of them."""
    doublings, parts = _fused.sums_of(count)
    entries = [first + k for m, first in parts.tolist() for k in range(2**m)]
    assert entries == list(range(count))
    assert 0 <= min(parts[:, 0]) <= max(parts[:, 0]) <= doublings
    assert len(parts) <= 4 or count > 29


@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize("name", problems(SHAPES[0]))
@pytest.mark.parametrize(("shape", "patch_size"), list(zip(SHAPES, (5, 3, 1), strict=True)))
def test_equals_brute_force(shape, patch_size, name, boundary, monkeypatch, generator):
    physics, B = problems(shape)[name]
    images = training_set(count=3, shape=shape)
    images[2, :, :, 2:] = images[0, :, :, 2:]  # a good share of duplicates
    y = measured(images, physics, generator, sigma=0.3, count=1)
    matrix = as_matrix(B, y.shape[1:])
    mean, log_partition, _ = local_mmse(images, physics.A, y[0], 0.3, matrix, shape, patch_size, boundary)
    for path in ("fused", "weighed"):
        take(monkeypatch, path)
        estimator = le.LocalEquivariantMMSE(images.float(), physics, patch_size, B, boundary)
        assert estimator.plan.kernel == ("fused" if path == "fused" else "products")
        got = estimator(y.float(), sigma=0.3)
        torch.testing.assert_close(got.mean[0], mean.float(), rtol=0, atol=3e-6)
        torch.testing.assert_close(got.log_partition[0], log_partition.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["denoising", "inpainting"])
def test_sigmas_of_one_measurement_share_its_scores(name, always, monkeypatch, generator):
    """From the nearest window to the mean of all, each with its own weights, relative to one largest score."""
    physics, B = problems(SHAPES[1])[name]
    images = training_set(count=5, shape=SHAPES[1], dtype=torch.float32)
    y = measured(images, physics, generator, sigma=0.1, count=1)
    sigma = torch.tensor([0.01, 0.1, 0.3, 2.0, 100.0])
    estimator = le.LocalEquivariantMMSE(images, physics, 3, B)
    together = estimator(y.expand(5, -1, -1, -1), sigma=sigma)
    close(together, by_terms(monkeypatch, images, physics, 3, B)(y.expand(5, -1, -1, -1), sigma=sigma))
    for i in range(5):
        alone = estimator(y, sigma=float(sigma[i]))
        torch.testing.assert_close(together.mean[i : i + 1], alone.mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", problems(SHAPES[1]))
def test_moments_of_weighed_products(name, shared, monkeypatch, generator):
    """All fields, of duplicates too, with sigmas from one atom to the mean of all, beside double precision."""
    take(monkeypatch, "weighed")
    physics, B = problems(SHAPES[1])[name]
    images = training_set(count=5, shape=SHAPES[1], dtype=torch.float32)
    images[3, :, :, 1:] = images[0, :, :, 1:]
    y = measured(images, physics, generator, sigma=0.1, count=1)
    y = y.expand(4, -1, -1, -1) if shared else y.repeat(4, 1, 1, 1)
    sigma, reduction = torch.tensor([0.02, 0.1, 0.5, 20.0]), le.PosteriorMoments()
    got = le.LocalEquivariantMMSE(images, physics, 3, B)(y, sigma=sigma, reduction=reduction)
    exact = le.LocalEquivariantMMSE(images.double(), physics, 3, B)(y.double(), sigma=sigma, reduction=reduction)
    for field, value in vars(got).items():
        torch.testing.assert_close(
            value.double(), vars(exact)[field], rtol=2e-5, atol=2e-4, msg=lambda m, f=field: f"{f}: {m}"
        )


def test_a_batch_of_measurements_each_with_its_own_sigma(always, monkeypatch, generator):
    images = training_set(count=4, shape=SHAPES[0], dtype=torch.float32)
    y = measured(images, le.Denoising(), generator, sigma=0.1, count=3)
    sigma = torch.tensor([0.1, 0.5, 1.0])
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    close(estimator(y, sigma=sigma), by_terms(monkeypatch, images, le.Denoising(), 3)(y, sigma=sigma))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_and_chunks_share_the_images_out(threads, always, monkeypatch, generator):
    """More threads than images too; for as many threads, the same answer to the last bit."""
    images = training_set(count=5, shape=SHAPES[1], dtype=torch.float32)
    y = measured(images, le.Denoising(), generator, sigma=0.1, count=1)
    whole = le.LocalEquivariantMMSE(images, le.Denoising(), 3)(y, sigma=0.1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        monkeypatch.setattr(means, "FUSED_PAIRS", 2 * 40**2)  # two images a thread
        estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
        first, second = estimator(y, sigma=0.1), estimator(y, sigma=0.1)
        lazy = le.LocalEquivariantMMSE(LazyImages(images), le.Denoising(), 3, chunk_size=2)(y, sigma=0.1)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.log_partition, second.log_partition)
    close(first, whole, tolerance=1e-6)
    close(lazy, whole, tolerance=1e-6)


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 0.01, 0.05, 0.3, 1.0, 1e3, 1e6])
def test_as_exact_as_products_on_real_images(sigma, always, monkeypatch, generator):
    """60 dB at σ ≥ 0.05 and 50 dB at 0.01, like the products; finite and within the data at any sigma."""
    images = le.data.fashion_mnist("train", 12)
    y = le.data.fashion_mnist("test", 1)
    y = y + min(sigma, 1) * torch.randn(y.shape, generator=generator)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 5)
    got = estimator(y, sigma=sigma)
    assert got.mean.isfinite().all()
    assert got.log_partition.isfinite().all()
    assert got.mean.min() >= images.min() - 1e-6
    assert got.mean.max() <= images.max() + 1e-6
    if sigma >= 0.01:
        double = le.LocalEquivariantMMSE(images.double(), le.Denoising(), 5)(y.double(), sigma=sigma).mean
        assert le.metrics.psnr(got.mean.double(), double) > (60 if sigma >= 0.05 else 50)


@pytest.mark.parametrize("change", [0.5, 100.0, 1e6])
@pytest.mark.parametrize("patch_size", [1, 3, 5])
def test_a_pixel_beyond_the_window_changes_not_one_bit(patch_size, change, always, generator):
    """Sums of other windows leave no rounding behind: box sums are of numbers in the window alone."""
    images = training_set(count=3, shape=(3, 9, 12), dtype=torch.float32)
    y = measured(images, le.Denoising(), generator, sigma=0.1, count=1)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), patch_size)
    other = y.clone()
    other[0, :, 4, 6] += change
    before, after = (estimator(v, sigma=0.05) for v in (y, other))
    sees = torch.zeros(9, 12, dtype=torch.bool)
    half = patch_size // 2
    sees[4 - half : 5 + half, 6 - half : 7 + half] = True
    assert torch.equal(before.mean[..., ~sees], after.mean[..., ~sees])
    assert torch.equal(before.log_partition[..., ~sees], after.log_partition[..., ~sees])
    assert not torch.equal(before.log_partition[..., sees], after.log_partition[..., sees])


class TestWhereItIsNotTaken:
    def test_other_reductions_gradients_and_tiny_sigmas(self, fused, monkeypatch, generator):
        images = training_set(count=4, shape=SHAPES[0], dtype=torch.float32)
        y = measured(images, le.Denoising(), generator, sigma=0.1, count=1)
        estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
        monkeypatch.setattr(estimator, "_state_by_kernel", None)  # would raise
        estimator(y, sigma=0.1, reduction=le.PosteriorMoments())
        monkeypatch.setattr(estimator, "_strata_of_sums", None)
        for reduction in (le.TopSources(2), le.TopImages(1)):
            estimator(y, sigma=0.1, reduction=reduction)
        estimator(y.requires_grad_(), sigma=0.1).log_partition.sum().backward()
        assert y.grad.isfinite().all()
        learned = le.LocalEquivariantMMSE(images.clone().requires_grad_(), le.Denoising(), 3)
        learned(y.detach(), sigma=0.1).mean.sum().backward()
        assert learned.images.grad.isfinite().all()
        assert estimator(y.detach(), sigma=1e-8).mean.isfinite().all()
        with pytest.raises(TypeError):
            estimator(y.detach(), sigma=0.1)

    def test_float64_whitened_windows_and_many_patterns(self, monkeypatch):
        monkeypatch.setattr(means, "GROUP_COST", 0)
        images, blur = training_set(count=4, shape=SHAPES[0]), le.Blur(le.optics.gaussian_psf(0.8, size=3))
        assert le.LocalEquivariantMMSE(images, le.Denoising(), 3).plan.kernel == "products"
        images = images.float()
        assert le.LocalEquivariantMMSE(images, le.Denoising(), 5).plan.kernel == "products"
        monkeypatch.setattr(means, "COSTS", means.COSTS._replace(fused=0.5))
        assert le.LocalEquivariantMMSE(images, le.Denoising(), 3).plan.kernel == "fused"
        assert le.LocalEquivariantMMSE(images, blur, 3, le.PseudoInverse(blur)).plan.kernel == "products"
        epsilon = le.EpsilonInverse(mask_of(5, 8), 0.1)
        assert le.LocalEquivariantMMSE(images, le.Denoising(), 3, epsilon).plan.kernel == "products"
        scattered = le.Inpainting(le.random_mask(5, 8, keep=0.5))
        assert le.LocalEquivariantMMSE(images, scattered, 3, le.PseudoInverse(scattered)).plan.kernel == "products"

    def test_without_numba(self):
        """The package neither needs nor loads it, and says which way it goes."""
        code = (
            "import sys; sys.modules['numba'] = None\n"
            "import importlib.util as util; find = util.find_spec\n"
            "util.find_spec = lambda name: None if name == 'numba' else find(name)\n"
            "import torch, lemmse as le\n"
            "estimator = le.LocalEquivariantMMSE(torch.rand(60, 1, 28, 28), le.Denoising(), 3)\n"
            "assert estimator.plan.kernel == 'products'\n"
            "estimator(torch.rand(1, 1, 28, 28), sigma=0.3)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def test_estimators_with_compiled_loops_travel_to_other_processes(always, generator):
    images = training_set(count=4, shape=SHAPES[0], dtype=torch.float32)
    y = measured(images, le.Denoising(), generator, sigma=0.1, count=1)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)
    copied = pickle.loads(pickle.dumps(estimator))
    assert_same(copied(y, sigma=0.1), estimator(y, sigma=0.1), tolerance=0)


def test_without_strata_it_would_be_another_estimate(fused, generator):
    """The hole's windows are compared with those of the same pattern alone."""
    images = training_set(count=3, shape=SHAPES[1], dtype=torch.float32)
    physics, B = problems(SHAPES[1])["inpainting"]
    y = measured(images, physics, generator, sigma=1.0, count=1)
    estimator = le.LocalEquivariantMMSE(images, physics, 3, B)
    right = estimator(y, sigma=1.0).mean
    estimator._fused.labels[:] = 0
    assert (estimator(y, sigma=1.0).mean - right).norm() > 1e-2 * right.norm()


class TestMergedDuplicates:
    @pytest.fixture
    def repeated(self):
        """Images of few values, hence of few windows; the last of them of one alone."""
        images = (training_set(count=6, shape=SHAPES[1], dtype=torch.float32) > 0.9).float()
        images[-1] = 0
        return images

    def test_stand_for_what_they_replace(self, repeated):
        """Each window that is left is the first of its kind, its columns the values and the number of its equals."""
        patches = extract_patches(repeated, 3)
        values = repeated.flatten(2)
        found = means.merged_duplicates(repeated, values, window_index(8, 5, 3), lambda v: extract_patches(v, 3))
        flat = patches.flatten(0, 1)
        distinct, kind, count = flat.unique(dim=0, return_inverse=True, return_counts=True)
        assert len(found.atoms) == len(distinct) < 0.8 * len(flat)
        for atom, *column in zip(found.atoms.tolist(), *found.columns, strict=True):
            equals = (kind == kind[atom]).nonzero()[:, 0]
            assert atom == equals[0]
            assert column[0] == count[kind[atom]]
            together = means.worth(values)[:, equals].sum(1)
            torch.testing.assert_close(torch.stack(column), together)

    @pytest.mark.parametrize("boundary", ["circular", "zero"])
    @pytest.mark.parametrize("patch_size", [1, 3, 5])
    def test_are_cut_out_one_by_one(self, patch_size, boundary, generator):
        """The keys of any atoms of some pixels are those of all windows."""
        v = torch.randn(4, 2, 6, 7, generator=generator)
        pixels, atoms = torch.tensor([0, 5, 20, 41]), torch.tensor([0, 3, 5, 14, 15])
        rows = extract_patches(v, patch_size, boundary)[:, pixels].flatten(0, 1)[atoms]
        wanted = torch.cat([rows, -0.5 * rows.square().sum(1, keepdim=True)], dim=1)
        torch.testing.assert_close(means.PlainKeys(v, patch_size, boundary).of(atoms, pixels), wanted)

    def test_equal_sums_of_bits_are_not_enough(self, repeated, monkeypatch):
        """Were all windows taken for equals at first, a look at each would tell."""
        monkeypatch.setattr(means, "_first_of_equals", torch.zeros_like)
        found = means.merged_duplicates(
            repeated, repeated.flatten(2), window_index(8, 5, 3), lambda v: extract_patches(v, 3)
        )
        flat = extract_patches(repeated, 3).flatten(0, 1)
        assert torch.equal(found.atoms, torch.cat([torch.tensor([0]), (flat != flat[0]).any(1).nonzero()[:, 0]]))

    def test_are_left_alone_where_they_are_few(self, monkeypatch):
        take(monkeypatch, "weighed")
        images = training_set(count=6, shape=SHAPES[1], dtype=torch.float32)
        assert le.LocalEquivariantMMSE(images, le.Denoising(), 3)._merged == {0: None}

    @pytest.mark.parametrize("name", problems(SHAPES[1]))
    def test_change_neither_calls_nor_streams(self, name, repeated, monkeypatch, generator):
        physics, B = problems(SHAPES[1])[name]
        y = measured(repeated, physics, generator, sigma=0.3, count=2)
        wanted = by_terms(monkeypatch, repeated, physics, 3, B)
        take(monkeypatch, "weighed")
        estimator = le.LocalEquivariantMMSE(repeated, physics, 3, B, chunk_size=4)
        assert any(estimator._merged.values())
        close(estimator(y, sigma=0.3), wanted(y, sigma=0.3))
        *_, last = estimator.stream(y, sigma=0.3)
        close(last.result(), wanted(y, sigma=0.3))
        moments = le.PosteriorMoments()
        assert_same(estimator(y, sigma=0.3, reduction=moments), wanted(y, sigma=0.3, reduction=moments), tolerance=1e-5)


class TestWorkers:
    @pytest.fixture(params=[1, 3])
    def threads(self, request):
        before = torch.get_num_threads()
        torch.set_num_threads(request.param)
        yield request.param
        torch.set_num_threads(before)

    def test_all_jobs_are_done_before_the_next_and_at_the_end(self, threads):
        """Each with room of its own and one thread, also where there are more jobs than threads."""
        done, rooms, used = [], set(), []

        def job(i, room):
            rooms.add(id(room))
            used.append(torch.get_num_threads())
            done.append(i)

        with means.Workers() as workers:
            workers.run([partial(job, i) for i in range(5)])
            workers.run([lambda room: done.append(sorted(done))])
        assert done[5] == [0, 1, 2, 3, 4]
        assert set(used) == {1}
        assert len(rooms) == (1 if threads == 1 else 5)
        assert torch.get_num_threads() == threads

    def test_what_a_job_raises_comes_out_and_the_threads_are_given_back(self, threads):
        def fails(room):
            raise ArithmeticError("no")

        with pytest.raises(ArithmeticError, match="no"), means.Workers() as workers:
            workers.run([fails])
        assert torch.get_num_threads() == threads
