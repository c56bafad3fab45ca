"""Operators of deepinv itself, handed over unchanged: `make test-deepinv` runs this in an environment of its own."""

import pytest
import torch

import lemmse as le
from benchmarks.deepinverse import import_deepinv
from reference import dense, mmse

try:
    deepinv = import_deepinv()
except ImportError:
    pytest.skip("deepinv is not installed: make test-deepinv makes its environment", allow_module_level=True)

C, H, W = 2, 6, 8
IMAGE = (C, H, W)
SIGMA = 1.5


def operators():
    """Linear operators of deepinv, as its documentation makes them."""
    mask = le.random_mask(H, W, keep=0.6)
    psf = le.optics.gaussian_psf(1.0, (3, 5)).float()[None, None]
    return {
        "denoising": deepinv.physics.Denoising(),
        "inpainting": deepinv.physics.Inpainting(IMAGE, mask=mask.expand(IMAGE)),
        "blur": deepinv.physics.Blur(filter=psf, padding="circular"),
        "blur by FFT": deepinv.physics.BlurFFT(img_size=IMAGE, filter=psf),
        "downsampling": deepinv.physics.Downsampling(img_size=IMAGE, factor=2, filter=None),
    }


@pytest.mark.parametrize("name", operators())
def test_mean_equals_brute_force_with_every_pre_inverse(name, generator):
    physics = operators()[name]
    images = torch.rand(7, *IMAGE, generator=generator)
    y = physics.A(torch.rand(2, *IMAGE, generator=generator))
    y = y + SIGMA * torch.randn(y.shape, generator=generator)
    for B in (None, le.Adjoint(physics), le.PseudoInverse(physics), le.Tikhonov(physics, 0.1)):
        posterior = le.MMSE(images, physics, pre_inverse=B)(y, sigma=SIGMA)
        matrix = None if B is None else dense(lambda v, B=B: B.A(v.float()).double(), y.shape[1:])
        for i in range(len(y)):
            mean, log_partition, _ = mmse(images, physics.A, y[i], SIGMA, _float_rows(matrix))
            torch.testing.assert_close(posterior.mean[i], mean, rtol=1e-4, atol=1e-4)
            assert posterior.log_partition[i].item() == pytest.approx(log_partition, rel=1e-4)


def _float_rows(matrix):
    """The same matrix with the singular values that float32 left at its rounding set to zero."""
    if matrix is None:
        return None
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return ((u * s.where(s > 1e-5 * s.max(), 0)) @ vh).float()
