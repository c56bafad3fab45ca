"""On a GPU: the same answers, and a host that never waits within a loop over chunks.

Tests that need a device are skipped where there is none. The others take its path on the processor, and count the
looks at numbers there, each of which would be a wait.
"""

import warnings
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lemmse as le
from operators_registry import FORWARD
from problems import LazyImages, assert_same, measured, training_set

COUNT, SIGMA = 4, 0.5
REDUCTIONS = [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(3), le.TopImages(2)]
ESTIMATORS = {
    "MMSE": le.MMSE,
    "EquivariantMMSE": le.EquivariantMMSE,
    "LocalEquivariantMMSE": lambda *arguments, **keywords: le.LocalEquivariantMMSE(
        *arguments, patch_size=3, **keywords
    ),
}
PATHS = [  # every comparison of queries with atoms
    ("MMSE", "inpainting"),
    ("EquivariantMMSE", "blur"),
    ("EquivariantMMSE", "inpainting"),
    ("EquivariantMMSE", "inpainting stripes"),
    ("LocalEquivariantMMSE", "denoising"),
    ("LocalEquivariantMMSE", "downsampling by 3"),
    ("LocalEquivariantMMSE", "epsilon inverse"),
]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
for_every_path = pytest.mark.parametrize(("kind", "name"), PATHS)


def made(kind, name, images, **keywords):
    return ESTIMATORS[kind](images, FORWARD[name], pre_inverse=le.PseudoInverse(FORWARD[name]), **keywords)


# ------------------------------------------------------------------------------------------ its path, on the processor


class Looks(TorchDispatchMode):
    """Counts what makes the host wait for numbers of a device: values asked for, and results sized by values."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += name in self.NAMES or by_mask or str(function) == "aten.repeat_interleave.Tensor"
        return function(*args, **(kwargs or {}))


def looks(run) -> int:
    with Looks() as mode:
        run()
    return mode.count


@pytest.fixture
def ahead(monkeypatch):
    """Take the path of a device that the host runs ahead of."""
    monkeypatch.setattr(le._device, "asynchronous", lambda x: True)


@for_every_path
def test_looks_do_not_grow_with_the_chunks(kind, name, ahead, generator):
    images = training_set(count=COUNT)
    y = measured(images, FORWARD[name], generator, sigma=SIGMA)
    few, many = (made(kind, name, images, chunk_size=size) for size in (COUNT // 2, 1))
    for reduction in REDUCTIONS[1:]:
        runs = [partial(each, y, reduction=reduction) for each in (few, many)]
        for run in runs:
            run(sigma=SIGMA)  # what is prepared at the first call is not counted
        for sigma in (SIGMA, 1e-5):
            wanted, found = (looks(partial(run, sigma=sigma)) for run in runs)
            assert found == wanted <= 8


@for_every_path
def test_its_path_gives_the_same_answer(kind, name, monkeypatch, generator):
    images = training_set(count=COUNT)
    y = measured(images, FORWARD[name], generator, sigma=SIGMA)
    estimator = made(kind, name, images, chunk_size=3)
    for reduction in REDUCTIONS[1:]:
        for sigma in (SIGMA, 1e-3):
            wanted = estimator(y, sigma=sigma, reduction=reduction)
            with monkeypatch.context() as patch:
                patch.setattr(le._device, "asynchronous", lambda x: True)
                assert_same(estimator(y, sigma=sigma, reduction=reduction), wanted, 1e-9)


@pytest.mark.parametrize("kind", ["MMSE", "EquivariantMMSE"])
def test_more_near_neighbours_than_are_computed_anew_unseen(kind, ahead, monkeypatch, generator):
    """200 images that hardly differ, at a sigma where rounding decides: seen at the end, and all computed anew."""
    y, sigma = 0.2 + 0.6 * torch.rand(1, 3, 32, 32, generator=generator), 1e-3
    images = torch.cat([y + 1e-4 * torch.randn(200, 3, 32, 32, generator=generator), torch.rand(9, 3, 32, 32)])
    estimator = ESTIMATORS[kind](images, le.Denoising(), chunk_size=209)
    got = estimator(y, sigma=sigma, reduction=le.PosteriorMoments())
    monkeypatch.setattr(le._device, "asynchronous", lambda x: False)
    wanted = estimator(y, sigma=sigma, reduction=le.PosteriorMoments())
    assert wanted.entropy.exp() > le.kernels.REFINED_UNSEEN
    assert_same(got, wanted, 1e-4)


def test_a_tolerance_is_met_exactly(ahead, generator):
    images = training_set(count=COUNT)
    y = measured(images, le.Denoising(), generator, sigma=SIGMA)
    posterior = le.LocalEquivariantMMSE(images, le.Denoising(), 3)(y, sigma=SIGMA, tolerance=0.1)
    assert not posterior.error_bound.any()


# --------------------------------------------------------------------------------------------------------- on a device


@needs_cuda
class TestOnTheDevice:
    @for_every_path
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
    def test_the_answer_is_that_of_the_processor(self, kind, name, dtype, tolerance, generator):
        images = training_set(count=COUNT, dtype=dtype)
        y = measured(images, FORWARD[name], generator, sigma=SIGMA)
        estimator, there = made(kind, name, images), made(kind, name, images.cuda(), chunk_size=3)
        for reduction in REDUCTIONS if dtype == torch.float64 else REDUCTIONS[:1]:
            got = there(y.cuda(), sigma=SIGMA, reduction=reduction)
            wanted = estimator(y, sigma=SIGMA, reduction=reduction)
            fields = {key: None if value is None else value.cpu() for key, value in vars(got).items()}
            assert_same(type(got)(**fields), wanted, tolerance)

    @for_every_path
    def test_images_made_on_demand_streams_and_chunks(self, kind, name, generator):
        images = training_set(count=COUNT).cuda()
        y = measured(images.cpu(), FORWARD[name], generator, sigma=SIGMA).cuda()
        wanted = made(kind, name, images)(y, sigma=SIGMA)
        for source in (LazyImages(images), lambda: iter(images.cpu().cuda().split(3)), images):
            *_, last = made(kind, name, source, chunk_size=2).stream(y, sigma=SIGMA)
            assert_same(last.result(), wanted, 1e-9)

    @for_every_path
    def test_the_host_waits_as_often_for_many_chunks_as_for_few(self, kind, name, generator):
        """As the driver tells it: also for copies, which the test on the processor does not see."""
        images = training_set(count=COUNT).cuda()
        y = measured(images.cpu(), FORWARD[name], generator, sigma=SIGMA).cuda()
        few, many = (made(kind, name, images, chunk_size=size) for size in (COUNT // 2, 1))
        for reduction in REDUCTIONS:
            waits = []
            for estimator in (few, many, few, many):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    try:
                        estimator(y, sigma=SIGMA, reduction=reduction)
                    finally:
                        torch.cuda.set_sync_debug_mode("default")
                waits.append(sum("synchroniz" in str(each.message) for each in caught))
            assert waits[2] == waits[3]


class TestTheTestsFail:
    def test_looks_on_the_path_of_the_processor_grow(self, generator):
        images = training_set(count=COUNT)
        y = measured(images, le.Denoising(), generator, sigma=SIGMA)
        for kind in ESTIMATORS:
            few, many = (made(kind, "denoising", images, chunk_size=size) for size in (COUNT // 2, 1))
            runs = [partial(each, y, sigma=SIGMA, reduction=le.TopSources(3)) for each in (few, many)]
            assert looks(runs[1]) > looks(runs[0])

    def test_masks_and_sizes_count(self):
        x = torch.arange(5.0)
        assert looks(lambda: x[x > 2]) >= 1
        assert looks(lambda: x.nonzero()) == 1
        assert looks(lambda: float(x.sum())) == 1
        assert looks(lambda: x[torch.tensor([1, 2])] + 1) == 0
