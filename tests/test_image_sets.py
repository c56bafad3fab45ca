"""Training sets that are not in memory: whatever they are read from, the answer is that of the tensor."""

import pickle
import sys
import threading
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lemmse as le
from lemmse.image_sets import ArrayImages, ChunkedImages
from operators_registry import FORWARD
from problems import assert_same, measured, training_set

COUNT, SIGMA = 23, 0.5
REDUCTIONS = [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(3)]
ESTIMATORS = {
    "MMSE": le.MMSE,
    "EquivariantMMSE": le.EquivariantMMSE,
    "LocalEquivariantMMSE": lambda *arguments, **keywords: le.LocalEquivariantMMSE(
        *arguments, patch_size=3, **keywords
    ),
}


def in_a_file(images, folder):
    np.save(folder / "images.npy", images.numpy())
    return np.load(folder / "images.npy", mmap_mode="r")


SOURCES = {
    "array": lambda images, folder: images.numpy(),
    "array, columns first, of the other byte order": lambda images, folder: np.asfortranarray(
        images.numpy().astype(images.numpy().dtype.newbyteorder())
    ),
    "array in a file": in_a_file,
    "list of chunks": lambda images, folder: list(images.split([1, 9, 13])),
    "loader": lambda images, folder: DataLoader(images, batch_size=4),
    "loader of pairs": lambda images, folder: DataLoader(TensorDataset(images, torch.arange(COUNT)), batch_size=5),
    "function that makes a generator of arrays": lambda images, folder: (
        lambda: (chunk.numpy() for chunk in images.split(6))
    ),
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    return lambda images: SOURCES[request.param](images, tmp_path)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_answer_is_that_of_the_tensor(kind, source, generator):
    physics = FORWARD["blur"]
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-5)]:
        images = training_set(count=COUNT, dtype=dtype)
        y = measured(images, physics, generator, sigma=SIGMA)
        wanted = ESTIMATORS[kind](images, physics, pre_inverse=le.Adjoint(physics))
        estimator = ESTIMATORS[kind](source(images), physics, pre_inverse=le.Adjoint(physics), chunk_size=7)
        assert f"{COUNT} images" in repr(estimator)
        assert "made in every call" in str(estimator.plan)
        for reduction in REDUCTIONS if dtype == torch.float64 else REDUCTIONS[:1]:
            got = estimator(y, sigma=SIGMA, reduction=reduction)
            assert_same(got, wanted(y, sigma=SIGMA, reduction=reduction), tolerance)


def test_bytes_are_intensities(generator):
    """An array or chunks of 8-bit images, 0 to 255, are read as float32 in [0, 1]."""
    images = torch.randint(256, (COUNT, 1, 5, 7), generator=generator, dtype=torch.uint8)
    y = torch.rand(2, 1, 5, 7, generator=generator)
    wanted = le.MMSE(images / 255, le.Denoising())(y, sigma=SIGMA)
    for source in (images.numpy(), images.split(5), DataLoader(TensorDataset(images), batch_size=4)):
        assert_same(le.MMSE(source, le.Denoising())(y, sigma=SIGMA), wanted, 1e-6)


class Counted:
    """An iterable of chunks that counts how often it was begun, and what it gave."""

    def __init__(self, images, size):
        self.images, self.size = images, size
        self.begun = self.given = 0

    def __iter__(self):
        self.begun += 1
        for chunk in self.images.split(self.size):
            self.given += 1
            yield chunk

    def __reduce__(self):
        return Counted, (self.images, self.size)


@pytest.fixture
def counted():
    return Counted(training_set(count=COUNT), 4)


@pytest.mark.parametrize("memory", [{"chunk_size": 1}, {"chunk_size": 7}, {}])
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_call_is_one_pass(kind, memory, counted, generator):
    """The constructor looks at the first chunk and makes one pass; slices that follow each other share a pass."""
    y = measured(counted.images, le.Denoising(), generator, sigma=SIGMA)
    estimator = ESTIMATORS[kind](counted, le.Denoising(), **memory)
    assert (counted.begun, counted.given) == (2, 1 + 6)
    for calls in (1, 2):
        estimator(y, sigma=SIGMA)
        assert (counted.begun, counted.given) == (2 + calls, 7 + 6 * calls)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_groups_of_measurements_share_a_pass(kind, counted, monkeypatch, generator):
    """Where the memory limit, or the kernel, takes measurements one after the other, a chunk serves them all."""
    monkeypatch.setattr(le.estimators, "FUSED_FROM", 0)
    monkeypatch.setattr(le.means, "GROUP_COST", 1e9)  # of products, so that the kernel is taken
    monkeypatch.setattr(le.estimators._GlobalEstimator, "_queries_at_once", 1)
    monkeypatch.setattr(le.LocalEquivariantMMSE, "_measurements_at_once", 1)
    counted.images = counted.images.float()
    y = measured(counted.images, le.Denoising(), generator, sigma=SIGMA, count=3)
    estimator = ESTIMATORS[kind](counted, le.Denoising(), chunk_size=5)
    for reduction in (le.PosteriorMean(), le.TopSources(2)):
        before = counted.begun
        got = estimator(y, sigma=SIGMA, reduction=reduction)
        assert counted.begun == before + 1
        assert_same(got, ESTIMATORS[kind](counted.images, le.Denoising())(y, sigma=SIGMA, reduction=reduction), 1e-5)


class TestSlices:
    def test_of_any_order(self, counted):
        images = ChunkedImages(counted)
        for start, stop in [(0, 3), (3, 11), (20, 23), (5, 5), (22, 40), (0, 23), (-2, None), (1, 2), (9, 13)]:
            assert torch.equal(images[start:stop], counted.images[start:stop])

    def test_those_ahead_pass_over_what_is_between(self, counted):
        images = ChunkedImages(counted)
        before = counted.begun
        assert torch.equal(images[2:3], counted.images[2:3])
        assert torch.equal(images[17:18], counted.images[17:18])
        assert counted.begun == before + 1

    def test_streams_that_take_turns_go_on(self, counted):
        images = ChunkedImages(counted)
        before = counted.begun
        for start in range(COUNT - 1):
            for _ in range(3):
                assert torch.equal(images[start : start + 1], counted.images[start : start + 1])
        assert counted.begun == before + 3

    def test_threads_share_a_set(self, counted):
        images, found = ChunkedImages(counted), []

        def read():
            parts = [images[start : start + 2] for start in range(0, COUNT, 2)]
            found.append(torch.equal(torch.cat(parts), counted.images))

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=read) for _ in range(8)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert found == [True] * 8

    def test_few_passes_wait(self, counted):
        images = ChunkedImages(counted)
        before = counted.begun
        for stop in range(19, 0, -1):  # all that wait are further ahead
            images[0:stop]
        assert counted.begun == before + 19
        assert len(images._idle) == le.image_sets.IDLE_PASSES

    def test_passes_end_with_their_set(self):
        """And with them the files and processes that they opened."""
        ended = []

        def chunks():
            try:
                yield from training_set(count=COUNT).split(4)
            finally:
                ended.append(True)

        images = ChunkedImages(chunks)
        images[0:9]
        assert len(ended) == 2
        del images
        assert len(ended) == 3

    def test_other_indices(self, counted, unchecked_shapes):
        for images in (ChunkedImages(counted), ArrayImages(counted.images.numpy())):
            for index in (3, slice(0, 9, 2), [1, 2]):
                with pytest.raises(TypeError, match=r"slices images\[start:stop\]: got"):
                    images[index]


def test_estimators_travel_to_other_processes(counted, generator):
    y = measured(counted.images, le.Denoising(), generator, sigma=SIGMA)
    estimator = le.MMSE(counted, le.Denoising(), chunk_size=2)
    estimator.images[0:1]  # leaves a pass that has begun
    copied = pickle.loads(pickle.dumps(estimator))
    assert_same(copied(y, sigma=SIGMA), estimator(y, sigma=SIGMA))


def test_a_set_serves_several_estimators(counted):
    """The images of an estimator, handed to another one, are not passed over again."""
    first = le.MMSE(counted, le.Denoising())
    begun = counted.begun
    assert le.EquivariantMMSE(first.images, le.Denoising()).images is first.images
    assert counted.begun == begun


@pytest.mark.parametrize("source", [Counted, lambda images, size: images.numpy()])
def test_never_more_than_a_chunk_is_held(source, monkeypatch, generator):
    """What is asked of an array, and what a chunk of an iterable is cut into, is no more than ``chunk_size`` images."""
    images = training_set(count=100)
    y = measured(images, le.Denoising(), generator, sigma=SIGMA)
    estimator = le.LocalEquivariantMMSE(source(images, 50), le.Denoising(), 3, chunk_size=3)
    asked = []
    original = type(estimator.images).__getitem__
    monkeypatch.setattr(
        type(estimator.images), "__getitem__", lambda s, i: asked.append(i.stop - i.start) or original(s, i)
    )
    estimator(y, sigma=SIGMA)
    assert max(asked) == 3
    assert sum(asked) == 100


# --------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_interrupted_stream_goes_on(kind, source, generator):
    """What was yielded last can be kept, and the next stream begins where it ends."""
    images, reduction = training_set(count=COUNT), le.TopSources(3)
    y = measured(images, le.Denoising(), generator, sigma=SIGMA)
    estimator = ESTIMATORS[kind](source(images), le.Denoising(), chunk_size=5)
    stream = estimator.stream(y, sigma=SIGMA, reduction=reduction)
    last = [next(stream), next(stream)][-1]
    stream.close()
    some = ESTIMATORS[kind](images[:10], le.Denoising())
    assert_same(last.result(), some(y, sigma=SIGMA, reduction=reduction))
    *_, last = estimator.stream(y, sigma=SIGMA, reduction=reduction, after=pickle.loads(pickle.dumps(last)))
    assert last.images == COUNT
    assert_same(last.result(), ESTIMATORS[kind](images, le.Denoising())(y, sigma=SIGMA, reduction=reduction))


def test_an_interruption_within_a_chunk():
    """Ctrl-C while a chunk is read."""

    def interrupted(chunks):
        yield from chunks[:3]
        raise KeyboardInterrupt

    source = Changing(interrupted, passes=2)
    estimator, found = le.MMSE(source, le.Denoising(), chunk_size=4), []
    y = source.images[:1]
    with pytest.raises(KeyboardInterrupt):
        found.extend(estimator.stream(y, sigma=SIGMA))
    assert [each.images for each in found] == [4, 8, 12]
    source.passes = 1
    *_, last = estimator.stream(y, sigma=SIGMA, after=found[-1])
    assert_same(last.result(), le.MMSE(source.images, le.Denoising())(y, sigma=SIGMA))


def test_streams_share_passes_and_skip_what_is_done(counted):
    estimator = le.MMSE(counted, le.Denoising(), chunk_size=4)
    y, given, begun = counted.images[:1], counted.given, counted.begun
    streams = [estimator.stream(y, sigma=sigma) for sigma in (0.1, 1.0)]
    for pair in zip(*streams, strict=True):  # they take turns
        first, _ = pair
        kept = first if first.images == 12 else None
        if kept:
            *_, last = estimator.stream(y, sigma=0.1, after=kept)
    assert counted.begun == begun + 3
    assert counted.given == given + 3 * 6
    assert_same(last.result(), first.result())


def test_a_bar_counts_the_chunks(counted, monkeypatch):
    bars = []
    monkeypatch.setattr(le._progress, "PATIENCE", -1)
    monkeypatch.setattr("tqdm.auto.tqdm", lambda **facts: bars.append((facts["desc"], facts["total"])) or Mock())
    estimator = le.MMSE(counted, le.Denoising(), chunk_size=5)
    list(estimator.stream(counted.images[:1], sigma=SIGMA))
    assert bars == [("First pass", None), ("MMSE", 5)]  # and none within
    le.MMSE(DataLoader(counted.images, 10), le.Denoising())
    assert bars[2:] == [("First pass", 3)]


# ------------------------------------------------------------------------------------------------- sets that change


class Changing:
    """Chunks of four images that are changed from the third pass on: the constructor has begun two."""

    def __init__(self, change, passes=2):
        self.images, self.change, self.passes = training_set(count=COUNT), change, passes

    def __iter__(self):
        self.passes -= 1
        chunks = list(self.images.split(4))
        yield from chunks if self.passes >= 0 else self.change(chunks)


CHANGES = {
    "ended after 16 of its 23 images": lambda chunks: chunks[:4],
    "ended after 0 of its 23 images": lambda chunks: [],
    "goes on after its 23 images": lambda chunks: [*chunks, chunks[0]],
    r"chunk 5 has 2 images, and had 3": lambda chunks: [*chunks[:-1], chunks[-1][:2]],
    "chunk 0, of 4 images, holds others than before": lambda chunks: chunks[::-1][1:] + chunks[-1:],
    "chunk 2, of 4 images, holds others": lambda chunks: [c.flip(3) if i == 2 else c for i, c in enumerate(chunks)],
    "chunk 3, of 4 images, holds others": lambda chunks: [c.flip(0) if i == 3 else c for i, c in enumerate(chunks)],
}


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("says", CHANGES)
def test_sets_that_change_between_passes(kind, says, generator):
    estimator = ESTIMATORS[kind](Changing(CHANGES[says]), le.Denoising(), chunk_size=3)
    y = torch.rand(1, *estimator.measurement_shape, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=rf"same in every pass, and Changing is not: its? .*{says}.*shuffle=False"):
        estimator(y, sigma=SIGMA)


def test_shuffling_is_seen_before_the_first_pass_ends():
    seen = []
    dataset = [torch.full((1, 2, 2), i / 1000) for i in range(1000)]
    loader = DataLoader(dataset, 10, shuffle=True, collate_fn=lambda x: seen.append(1) or torch.stack(x))
    with pytest.raises(RuntimeError, match=r"DataLoader is not.*shuffle=False"):
        le.MMSE(loader, le.Denoising())
    assert len(seen) == 2


def test_a_function_that_returns_the_same_iterator():
    chunks = iter(training_set(count=COUNT).split(4))
    with pytest.raises(RuntimeError, match="must return a new iterator each time"):
        le.MMSE(lambda: chunks, le.Denoising())


def test_an_error_of_the_source_passes_through_and_the_next_call_begins_anew():
    def broken(chunks):
        yield chunks[0]
        if source.passes > -2:
            raise OSError("disk on fire")
        yield from chunks[1:]

    source = Changing(broken)
    estimator = le.MMSE(source, le.Denoising(), chunk_size=3)
    y = source.images[:1]
    with pytest.raises(OSError, match="disk on fire"):
        estimator(y, sigma=SIGMA)
    assert_same(estimator(y, sigma=SIGMA), le.MMSE(source.images, le.Denoising())(y, sigma=SIGMA))


class MapStyle(Dataset):
    """Labelled images, one by one."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.zeros(1, 2, 2), 0


CHUNK = torch.rand(4, 1, 5, 7)
NAN = CHUNK.clone()
NAN[2] = torch.nan


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (lambda: iter([CHUNK]), r"only once. Hand in a function that makes it"),
        (lambda: (chunk for chunk in [CHUNK]), r"generator gives its chunks only once"),
        (lambda: [], "at least one image: list gave no chunk"),
        (lambda: lambda: iter([]), "at least one image: <lambda> gave no chunk"),
        (lambda: [CHUNK[:0]], "at least one image"),
        (lambda: [CHUNK, CHUNK.mT], r"chunk 1 of list is \(k, 1, 7, 5\).*chunk 0 was \(k, 1, 5, 7\)"),
        (lambda: [CHUNK, CHUNK.double()], "chunk 1 of list is .*float64.*float32"),
        (lambda: [CHUNK.half()], "float16"),
        (lambda: [CHUNK, NAN], "finite: 1 of 4 hold NaN or infinity, first image 6"),
        (lambda: list(CHUNK), r"chunk 0 of list is \(1, 5, 7\). One image is a chunk of one, image\[None\]"),
        (lambda: lambda: CHUNK, r"chunk 0 of <lambda> is \(1, 5, 7\)"),
        (lambda: [{"image": CHUNK}], "chunk 0 of list is dict"),
        (lambda: [()], "chunk 0 of list is tuple"),
        (lambda: lambda: None, "must return an iterator of chunks: <lambda> gave NoneType"),
        (lambda: lambda index: CHUNK, "function without arguments"),
        (lambda: MapStyle(), r"got MapStyle. torch.utils.data.DataLoader\(images, batch_size=100\) makes chunks"),
        (lambda: "images.npy", r"mmap_mode='r'"),
        (lambda: 5, "got int"),
        (lambda: None, "got NoneType"),
        (lambda: CHUNK[0].numpy(), r"\(D, c, h, w\).*shape \(1, 5, 7\)"),
        (lambda: CHUNK[:0].numpy(), "at least one image"),
        (lambda: CHUNK.half().numpy(), r"float16. Convert it, with images.astype\('float32'\), or part by part"),
        (lambda: CHUNK.numpy() > 0.5, "array of bool"),
        (lambda: NAN.numpy(), "finite: 1 of 4"),
    ],
)
def test_what_is_no_training_set(source, says, unchecked_shapes):
    with pytest.raises(ValueError, match=says):
        le.MMSE(source(), le.Denoising())


def test_an_array_that_turns_out_not_to_be_finite():
    images = np.random.default_rng(0).random((100, 1, 5, 7))
    images[80] = np.inf
    with pytest.raises(ValueError, match="first image 80"):
        le.MMSE(images, le.Denoising())(torch.rand(1, 1, 5, 7, dtype=torch.float64), sigma=SIGMA)


class TestTheTestsFail:
    def test_sums_alone_do_not_tell_mirrored_images(self):
        """The commonest random change, a flip, leaves the sum of an image as it is: checksums must see the order."""
        images = torch.randint(256, (4, 1, 5, 7)) / 256
        assert torch.equal(images.sum((1, 2, 3)), images.flip(3).sum((1, 2, 3)))
        assert le.image_sets._checksum(images) != le.image_sets._checksum(images.flip(3))
