"""Reductions over streams of terms: any chunking, any order, any shard split gives the same answer as one dense sum."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lemmse as le
from lemmse._types import LOG_WEIGHT_FLOOR
from lemmse.reductions import ArrayTerm, ArrayValues, Layout, _heaviest_indices, reduce
from reference import entropy

Q, D, P, SHAPE, SIGMA = 3, 11, 4, (2, 5, 7), 0.7
LAYOUT = Layout((Q,), SHAPE, torch.float64, torch.device("cpu"))
PIXELS = torch.tensor([0, 3, 7, 20])


def problem(seed: int, spread: float = 4.0, images: int = D):
    """Squared distances (Q, images) and values (images, *SHAPE)."""
    g = torch.Generator().manual_seed(seed)
    d2 = spread * torch.rand(Q, images, generator=g, dtype=torch.float64)
    return d2, torch.rand(images, *SHAPE, generator=g, dtype=torch.float64)


def terms(d2, values, cuts, sigma=SIGMA):
    """The same atoms, cut into chunks."""
    edges = [0, *cuts, len(values)]
    return [
        ArrayTerm(-d2[:, a:b] / (2 * sigma**2), d2[:, a:b], ArrayValues(values[a:b]), first_image=a)
        for a, b in itertools.pairwise(edges)
    ]


def dense_moments(d2, values, sigma=SIGMA):
    """Everything by its definition, no logarithm in sight but the last."""
    u = torch.exp(-d2 / (2 * sigma**2))
    w = u / u.sum(1, keepdim=True)
    mean = torch.einsum("qk,k...->q...", w, values)
    variance = torch.einsum("qk,qk...->q...", w, (values[None] - mean[:, None]) ** 2)
    return {
        "mean": mean,
        "log_partition": u.sum(1).log(),
        "variance": variance,
        "entropy": torch.tensor([entropy(row) for row in w], dtype=torch.float64),
        "log_max_weight": w.max(1).values.log(),
        "mean_squared_residual": (w * d2).sum(1),
        "weights": w,
    }


def assert_same_moments(result, wanted, tolerance=1e-12):
    for name in ("mean", "log_partition", "variance", "entropy", "log_max_weight", "mean_squared_residual"):
        torch.testing.assert_close(getattr(result, name), wanted[name], rtol=tolerance, atol=tolerance, msg=name)


cuts_strategy = st.lists(st.integers(1, D - 1), unique=True, max_size=5).map(sorted)


@given(seed=st.integers(0, 2**31), cuts=cuts_strategy)
@settings(max_examples=60, deadline=None)
def test_moments_equal_the_dense_sum_for_any_chunking(seed, cuts):
    d2, values = problem(seed)
    assert_same_moments(reduce(terms(d2, values, cuts), le.PosteriorMoments(), LAYOUT), dense_moments(d2, values))


@given(seed=st.integers(0, 2**31), cuts=cuts_strategy, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_order_and_any_tree_of_merges(seed, cuts, order):
    d2, values = problem(seed)
    chunks = terms(d2, values, cuts)
    order.shuffle(chunks)
    reduction = le.PosteriorMoments()
    states = [reduction.update(reduction.start(LAYOUT), chunk) for chunk in chunks]
    while len(states) > 1:  # merge two shards picked at random until one is left
        left = states.pop(order.randrange(len(states)))
        right = states.pop(order.randrange(len(states)))
        states.append(reduction.merge(left, right))
    assert_same_moments(reduction.finish(states[0], LAYOUT), dense_moments(d2, values))


def test_posterior_mean_agrees_with_moments():
    d2, values = problem(1)
    mean = reduce(terms(d2, values, [4, 9]), le.PosteriorMean(), LAYOUT)
    moments = reduce(terms(d2, values, [2]), le.PosteriorMoments(), LAYOUT)
    torch.testing.assert_close(mean.mean, moments.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mean.log_partition, moments.log_partition, rtol=1e-13, atol=1e-13)
    assert (mean.error_bound == 0).all()


@pytest.mark.parametrize("reduction", [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(3), le.TopImages(3)])
def test_the_empty_state_is_neutral(reduction):
    d2, values = problem(2)
    state = reduction.update(reduction.start(LAYOUT), terms(d2, values, [])[0])
    for merged in (
        reduction.merge(state, reduction.start(LAYOUT)),
        reduction.merge(reduction.start(LAYOUT), state),
    ):
        for got, wanted in zip(merged, state, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    empty = reduction.merge(reduction.start(LAYOUT), reduction.start(LAYOUT))
    assert not any(x.isnan().any() for x in empty)


# ------------------------------------------------------------------------------------------------------------- sources


def brute_force_top(weights, k):
    """The k heaviest of a row: by weight, then by index."""
    return sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:k]


@given(seed=st.integers(0, 2**31), cuts=cuts_strategy, k=st.integers(1, D + 3), levels=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_top_sources_with_many_ties(seed, cuts, k, levels):
    d2, values = problem(seed)
    d2 = (d2 * levels / 4).round()  # few distinct values: ties everywhere, also across chunks
    sources = reduce(terms(d2, values, cuts), le.TopSources(k), LAYOUT)
    w = dense_moments(d2, values)["weights"]
    assert sources.image.shape == (Q, min(k, D))
    assert sources.pixel is None
    for q in range(Q):
        assert sources.image[q].tolist() == brute_force_top((-d2[q]).tolist(), k)
        torch.testing.assert_close(sources.weight[q], w[q, sources.image[q]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sources.remainder, 1 - sources.weight.sum(1), rtol=0, atol=1e-12)


def pixel_terms(d2, values, image_cuts):
    """Atoms (image, pixel), P pixels an image; whole images in a chunk."""
    edges = [0, *image_cuts, len(values)]
    return [
        ArrayTerm(
            -d2[:, a:b].flatten(1), d2[:, a:b].flatten(1), ArrayValues(values[a:b].flatten(0, 1)), a, pixels=PIXELS
        )
        for a, b in itertools.pairwise(edges)
    ]


@given(seed=st.integers(0, 2**31), cuts=cuts_strategy, k=st.integers(1, 13))
@settings(max_examples=40, deadline=None)
def test_sources_name_image_and_pixel_and_top_images_add_up(seed, cuts, k):
    g = torch.Generator().manual_seed(seed)
    d2 = (4 * torch.rand(Q, D, P, generator=g, dtype=torch.float64)).round()
    values = torch.rand(D, P, 2, generator=g, dtype=torch.float64)
    layout = Layout((Q,), (2,), torch.float64, torch.device("cpu"), has_pixels=True)
    chunks = pixel_terms(d2, values, cuts)
    sources = reduce(chunks, le.TopSources(k), layout)
    images = reduce(chunks, le.TopImages(k), layout)
    w = torch.softmax(-d2.flatten(1), 1)
    for q in range(Q):
        best = brute_force_top((-d2[q]).flatten().tolist(), k)
        assert sources.image[q].tolist() == [i // P for i in best]
        assert sources.pixel[q].tolist() == [PIXELS[i % P].item() for i in best]
        per_image = w[q].reshape(D, P).sum(1)
        torch.testing.assert_close(images.weight[q], per_image[images.image[q]], rtol=1e-12, atol=1e-12)
        ranked = per_image.sort(descending=True).values[: images.weight.shape[1]]
        torch.testing.assert_close(images.weight[q], ranked, rtol=1e-12, atol=1e-12)
    assert images.pixel is None


def test_shards_that_split_an_image_keep_the_order_of_pixels():
    """Ties within one image, met in the wrong order: the lowest pixel comes first."""
    d2 = torch.zeros(Q, 1, P, dtype=torch.float64)
    values = torch.rand(1, P, 2, dtype=torch.float64)
    layout = Layout((Q,), (2,), torch.float64, torch.device("cpu"), has_pixels=True)
    shards = [
        ArrayTerm(-d2[:, 0, part], d2[:, 0, part], ArrayValues(values[0, part]), first_image=5, pixels=PIXELS[part])
        for part in ([2, 3], [0, 1])
    ]
    sources = reduce(shards, le.TopSources(3), layout)
    assert sources.pixel.tolist() == [PIXELS[:3].tolist()] * Q
    assert sources.image.tolist() == [[5] * 3] * Q


@pytest.mark.parametrize("reduction", [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(3), le.TopImages(3)])
def test_a_chunk_without_admissible_atoms_changes_nothing(reduction):
    """Log-weights of -inf, for some queries or for all of a chunk."""
    d2, values = problem(10)
    chunks = terms(d2, values, [4])
    nothing = ArrayTerm(torch.full_like(d2, -torch.inf), d2, ArrayValues(values), first_image=D)
    wanted = vars(reduce(chunks, reduction, LAYOUT))
    for order in ([*chunks, nothing], [nothing, *chunks]):
        for name, value in vars(reduce(order, reduction, LAYOUT)).items():
            if value is not None:
                torch.testing.assert_close(value, wanted[name], rtol=1e-13, atol=1e-13, msg=name)
    for value in vars(reduce([nothing], reduction, LAYOUT)).values():
        assert value is None or not value.isnan().any()
    half = chunks[1].log_weights.clone()
    half[0] = -torch.inf
    mixed = [chunks[0], ArrayTerm(half, chunks[1].squared_distances, chunks[1].values, first_image=4)]
    alone = reduce(chunks[:1], le.PosteriorMean(), LAYOUT)
    both = reduce(mixed, le.PosteriorMean(), LAYOUT)
    torch.testing.assert_close(both.mean[0], alone.mean[0], rtol=1e-13, atol=1e-13)
    assert (both.mean[1] - alone.mean[1]).norm() > 1e-3


def test_layout_puts_channels_after_the_batch():
    layout = Layout((2, 3, 5), (4,), torch.float64, torch.device("cpu"))
    flat = torch.arange(2.0 * 3 * 5 * 4, dtype=torch.float64).reshape(30, 4)
    image = layout.per_value(flat)
    assert image.shape == (2, 4, 3, 5)
    assert image[1, 2, 0, 4] == flat[1 * 15 + 4, 2]


# ----------------------------------------------------------------------------------------------------- weights, S7, S12


def test_identity_of_the_mean_squared_residual():
    """E_w r² = r_1² + 2σ²(H + ln w_1), S7.1."""
    d2, values = problem(3)
    m = reduce(terms(d2, values, [5]), le.PosteriorMoments(), LAYOUT)
    right = d2.min(1).values + 2 * SIGMA**2 * (m.entropy + m.log_max_weight)
    torch.testing.assert_close(m.mean_squared_residual, right, rtol=1e-12, atol=1e-12)


def test_equal_atoms_have_the_entropy_of_their_number():
    d2, values = torch.ones(Q, D, dtype=torch.float64), problem(4)[1]
    m = reduce(terms(d2, values, [1, 2]), le.PosteriorMoments(), LAYOUT)
    torch.testing.assert_close(m.entropy.exp(), torch.full((Q,), float(D), dtype=torch.float64), rtol=1e-12, atol=0)


def test_entropy_grows_with_sigma():
    d2, values = problem(5)
    H = [
        reduce(terms(d2, values, [6], sigma), le.PosteriorMoments(), LAYOUT).entropy
        for sigma in (0.1, 0.3, 1.0, 3.0, 10.0)
    ]
    assert all((b > a).all() for a, b in itertools.pairwise(H))


def test_merged_duplicates_count_as_originals():
    """Merging m equal atoms into one with log-multiplicity ln m changes nothing (S12.1)."""
    d2, values = problem(6)
    m = torch.tensor([1, 2, 3, 1, 1, 4, 1, 1, 2, 1, 1])
    original = terms(d2.repeat_interleave(m, 1), values.repeat_interleave(m, 0), [3])
    log_m = m.double().log()
    merged = ArrayTerm(-d2 / (2 * SIGMA**2) + log_m, d2, ArrayValues(values), 0, log_m)
    a = reduce(original, le.PosteriorMoments(), LAYOUT)
    b = reduce([merged], le.PosteriorMoments(), LAYOUT)
    for name in ("mean", "log_partition", "variance", "entropy", "log_max_weight", "mean_squared_residual"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-12, msg=name)
    with pytest.raises(ValueError, match="unmerged"):
        reduce([merged], le.TopSources(2), LAYOUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cuts", [[], [3], [1, 2, 7]])
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e6])
def test_weights_sum_to_one_at_any_sigma(dtype, cuts, sigma):
    """Ties with huge log-weights: L + ln 2 = L in float32, yet the two halves must not both count fully."""
    d2, values = problem(7)
    d2[:, 2] = d2[:, 8] = d2[:, 10] = d2.min(1).values / 2
    layout = Layout((Q,), SHAPE, dtype, torch.device("cpu"))
    chunks = terms(d2.to(dtype), values.to(dtype), cuts, sigma)
    m = reduce(chunks, le.PosteriorMoments(), layout)
    assert (m.mean >= values.to(dtype).amin(0) - 1e-6).all()
    assert (m.mean <= values.to(dtype).amax(0) + 1e-6).all()
    if sigma <= 1e-3:
        wanted = values[[2, 8, 10]].mean(0).to(dtype).expand(Q, *SHAPE)
        torch.testing.assert_close(m.mean, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(m.entropy.exp(), torch.full((Q,), 3.0, dtype=dtype), rtol=1e-5, atol=0)
        sources = reduce(chunks, le.TopSources(3), layout)
        assert sources.image.tolist() == [[2, 8, 10]] * Q
        torch.testing.assert_close(sources.weight, torch.full((Q, 3), 1 / 3, dtype=dtype), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 1), SHAPE])  # narrow values are all multiplied, wide ones where they count
def test_clamp_moves_the_mean_by_less_than_its_stated_bound(shape):
    """Far atoms are clamped: the bias is at most K e^floor (max - min), S12.2."""
    values = torch.ones(D, *shape, dtype=torch.float64)
    values[0] = 0
    log_weights = torch.full((Q, D), -1e9, dtype=torch.float64)
    log_weights[:, 0] = 0
    layout = Layout((Q,), shape, torch.float64, torch.device("cpu"))
    mean = reduce([ArrayTerm(log_weights, -2 * log_weights, ArrayValues(values), 0)], le.PosteriorMean(), layout).mean
    assert mean.max() <= D * math.exp(LOG_WEIGHT_FLOOR)


@pytest.mark.parametrize("alive", [1, 5, 40, 100])
def test_values_without_weight_are_left_out_unnoticed(alive, generator):
    """100 wide values of which few have any weight: both sums equal the full products."""
    values = torch.rand(100, *SHAPE, generator=generator, dtype=torch.float64)
    weights = torch.full((Q, 100), 1e-30, dtype=torch.float64)
    for row in weights:
        row[torch.randperm(100, generator=generator)[:alive]] = 1 / alive
    atoms = ArrayValues(values)
    for got, powers in ((atoms.weighted_sum(weights), values), (atoms.weighted_sum_of_squares(weights), values**2)):
        torch.testing.assert_close(got, torch.einsum("qk,k...->q...", weights, powers), rtol=1e-13, atol=1e-13)


def test_heaviest_indices_take_the_lowest_of_equals():
    row = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0]])
    assert _heaviest_indices(row, 4).tolist() == [[1, 2, 3, 4]]
    assert _heaviest_indices(row, 99).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("make", [le.TopSources, le.TopImages])
@pytest.mark.parametrize("k", [0, -1])
def test_a_bad_k(make, k):
    with pytest.raises(ValueError, match="positive integer"):
        make(k)


class TestTheTestsFail:
    """Broken reductions fail the laws above."""

    def test_average_of_softmaxes_per_chunk(self):
        class Wrong(le.PosteriorMoments):
            def merge(self, one, two):
                right = super().merge(one, two)
                if one.mass.sum() == 0:
                    return right
                return right._replace(mean=(one.mean + two.mean) / 2)

        d2, values = problem(8)
        wrong = reduce(terms(d2, values, [4]), Wrong(), LAYOUT)
        with pytest.raises(AssertionError, match="mean"):
            assert_same_moments(wrong, dense_moments(d2, values))

    def test_variance_without_the_spread_between_chunks(self):
        class Wrong(le.PosteriorMoments):
            def merge(self, one, two):
                share = (one.mass * (one.peak - torch.logaddexp(one.peak, two.peak)).exp())[:, None, None, None]
                return super().merge(one, two)._replace(variance=share * one.variance + (1 - share) * two.variance)

        d2, values = problem(8)
        with pytest.raises(AssertionError, match="variance"):
            assert_same_moments(reduce(terms(d2, values, [4]), Wrong(), LAYOUT), dense_moments(d2, values))

    def test_index_offset_by_chunk_number_times_chunk_size(self):
        """A short last chunk: the third chunk of 5 of 11 images has one image, and starts at 10."""
        d2, values = problem(9)
        d2[:, 10] = 0  # the last image, in the short chunk, wins
        chunks = terms(d2, values, [5, 10])
        wrong = [
            ArrayTerm(t.log_weights, t.squared_distances, t.values, first_image=i * t.log_weights.shape[1])
            for i, t in enumerate(chunks)
        ]
        assert reduce(chunks, le.TopSources(1), LAYOUT).image.flatten().tolist() == [10] * Q
        assert reduce(wrong, le.TopSources(1), LAYOUT).image.flatten().tolist() != [10] * Q

    def test_lists_sorted_by_weight_alone(self):
        """Shards arrive in any order: without (image, pixel) as a key, ties go to the shard that came first."""

        class Wrong(le.TopSources):
            def merge(self, one, two):
                columns = [torch.cat(pair, 1) for pair in zip(one[2:], two[2:], strict=True)]
                order = columns[0].argsort(dim=1, descending=True, stable=True)[:, : self.k]
                return type(one)(one.peak, one.mass, *(x.gather(1, order) for x in columns))

        d2, values = problem(9)
        d2[:, [1, 8]] = 0
        shards = terms(d2, values, [5])[::-1]
        assert reduce(shards, le.TopSources(2), LAYOUT).image.tolist() == [[1, 8]] * Q
        assert reduce(shards, Wrong(2), LAYOUT).image.tolist() != [[1, 8]] * Q
