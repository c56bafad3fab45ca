"""Products of windows: what is skipped because of some queries does not show in others."""

import pytest
import torch

import lemmse as le
from problems import measured, training_set


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(3)])
def test_so_it_is_with_products_that_skip_queries(reduction, dtype, generator):
    """Whose exponentials are skipped depends on y everywhere, and must not show elsewhere."""
    images = training_set(count=6, shape=(3, 9, 12), dtype=dtype)
    y = measured(images, le.Denoising(), generator, sigma=0.1, count=1)
    estimator = le.LocalEquivariantMMSE(images, le.Denoising(), 3, chunk_size=1)
    other = y.clone()
    other[..., :4, :] = torch.rand(y[..., :4, :].shape, generator=generator, dtype=dtype)  # rows 8 and 0 to 4 see it
    before, after = (estimator(v, sigma=0.05, reduction=reduction) for v in (y, other))
    for name, value in vars(before).items():
        rows = value[..., 5:8, :] if value.ndim > 3 and reduction != le.TopSources(3) else value[:, 5:8]
        rows_after = getattr(after, name)
        rows_after = rows_after[..., 5:8, :] if value.ndim > 3 and reduction != le.TopSources(3) else rows_after[:, 5:8]
        assert torch.equal(rows, rows_after), name
