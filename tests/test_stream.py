"""Streams and shards: whatever images are reduced together, and in whatever order of merges, the answer is the same."""

import pickle

import pytest
import torch

import lemmse as le
from operators_registry import FORWARD
from problems import LazyImages, assert_same, measured, training_set

REDUCTIONS = [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(3), le.TopImages(2)]
COUNT = 7
ESTIMATORS = {
    "MMSE": lambda images, physics, **keywords: le.MMSE(images, physics, le.PseudoInverse(physics), **keywords),
    "EquivariantMMSE": lambda images, physics, **keywords: le.EquivariantMMSE(
        images, physics, le.PseudoInverse(physics), **keywords
    ),
    "LocalEquivariantMMSE": lambda images, physics, **keywords: le.LocalEquivariantMMSE(
        images, physics, 3, le.PseudoInverse(physics), **keywords
    ),
}


@pytest.fixture(params=["blur", "inpainting stripes", "downsampling by 3"])
def physics(request):
    return FORWARD[request.param]


@pytest.fixture
def problem(physics, generator):
    images = training_set(count=COUNT)
    return images, physics, measured(images, physics, generator, sigma=0.5)


@pytest.mark.parametrize("kind", ESTIMATORS)
class TestShards:
    """For every reduction; an estimator serves them all."""

    def test_merge_to_the_whole(self, kind, problem):
        """Three shards of different sizes, reduced by estimators of their own, merged in both associations."""
        images, physics, y = problem
        whole = ESTIMATORS[kind](images, physics)
        shards = [ESTIMATORS[kind](shard, physics) for shard in images.split([1, 4, 2])]
        for reduction in REDUCTIONS:
            one, two, three = (list(shard.stream(y, sigma=0.5, reduction=reduction))[-1] for shard in shards)
            wanted = whole(y, sigma=0.5, reduction=reduction)
            assert one.merge(two).merge(three).images == COUNT
            assert_same(one.merge(two).merge(three).result(), wanted)
            assert_same(one.merge(two.merge(three)).result(), wanted)

    def test_a_stream_ends_on_the_whole_and_passes_through_its_parts(self, kind, problem):
        images, physics, y = problem
        estimator = ESTIMATORS[kind](images, physics, chunk_size=3)
        parts = [ESTIMATORS[kind](images[:count], physics) for count in (3, 6, 7)]
        for reduction in REDUCTIONS:
            found = list(estimator.stream(y, sigma=0.5, reduction=reduction))
            assert [each.images for each in found] == [3, 6, 7]
            for each, part in zip(found, parts, strict=True):
                assert_same(each.result(), part(y, sigma=0.5, reduction=reduction))

    def test_a_kept_state_goes_on_with_the_next_image(self, kind, problem):
        images, physics, y = problem
        lazy = LazyImages(images)
        begun = ESTIMATORS[kind](lazy, physics, chunk_size=3)
        estimator = ESTIMATORS[kind](lazy, physics, chunk_size=2)
        for reduction in REDUCTIONS:
            first = next(begun.stream(y, sigma=0.5, reduction=reduction))
            kept = pickle.loads(pickle.dumps(first))
            made = lazy.made
            *_, last = estimator.stream(y, sigma=0.5, reduction=reduction, after=kept)
            assert lazy.made - made == COUNT - 3  # no image is asked for twice
            assert_same(last.result(), estimator(y, sigma=0.5, reduction=reduction))


def test_a_state_does_not_grow_with_the_images(generator):
    sizes = []
    for count in (4, 64):
        images = training_set(count=count)
        y = measured(images, le.Denoising(), generator, sigma=0.5)
        *_, last = le.LocalEquivariantMMSE(images, le.Denoising(), 3).stream(y, sigma=0.5)
        sizes.append(sum(x.numel() for x in last.state))
    assert sizes[0] == sizes[1]


def test_a_stream_without_chunk_size_has_a_few_chunks():
    images = torch.rand(100, 1, 5, 5)
    assert 10 < len(list(le.MMSE(images, le.Denoising()).stream(images[:1], sigma=0.1))) <= 32


class TestErrors:
    images = training_set(count=4)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3)

    def last(self, count=1, reduction=None):
        *_, last = self.estimator.stream(self.images[:count], sigma=0.5, reduction=reduction)
        return last

    def test_shards_of_other_reductions_or_measurements(self):
        with pytest.raises(ValueError, match=r"Partial posteriors merge.*TopSources.*same arguments"):
            self.last().merge(self.last(reduction=le.TopSources(2)))
        with pytest.raises(ValueError, match="Partial posteriors merge"):
            self.last().merge(self.last(count=2))

    def test_after_another_stream(self):
        with pytest.raises(ValueError, match="same arguments"):
            next(self.estimator.stream(self.images[:2], sigma=0.5, after=self.last()))
        with pytest.raises(ValueError, match="same arguments"):
            next(self.estimator.stream(self.images[1:2], sigma=0.5, after=self.last()))
        with pytest.raises(ValueError, match="same arguments"):
            next(self.estimator.stream(self.images[:1], sigma=0.6, after=self.last()))
        other = le.LocalEquivariantMMSE(self.images, le.Denoising(), 5)
        with pytest.raises(ValueError, match="same arguments"):
            next(other.stream(self.images[:1], sigma=0.5, after=self.last()))
        fewer = le.LocalEquivariantMMSE(self.images[:3], le.Denoising(), 3)
        with pytest.raises(ValueError, match=r"4 images.*3 images"):
            next(fewer.stream(self.images[:1], sigma=0.5, after=self.last()))

    def test_what_is_no_partial_posterior(self, unchecked_shapes):
        with pytest.raises(TypeError, match=r"PartialPosterior.*got int"):
            next(self.estimator.stream(self.images[:1], sigma=0.5, after=5))
        with pytest.raises(TypeError, match="got int"):
            self.last().merge(3)

    def test_a_stream_checks_like_a_call(self, unchecked_shapes):
        with pytest.raises(ValueError, match="positive"):
            next(self.estimator.stream(self.images[:1], sigma=0.0))


class TestTheTestsFail:
    def test_indices_that_are_not_moved(self, generator):
        """Merged as they are, the second shard's images would pass for the first's."""
        images = training_set(count=4)
        shards = [le.MMSE(part, le.Denoising(), chunk_size=2) for part in images.split(2)]
        one, two = (next(each.stream(images[3:], sigma=0.01, reduction=le.TopSources(1))) for each in shards)
        assert one.merge(two).result().image.item() == 3
        assert le.TopSources(1).finish(le.TopSources(1).merge(one.state, two.state), one.layout).image.item() == 1
