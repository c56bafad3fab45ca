"""Make the picture of the README: what a perfectly trained network without any constraint answers as the noise grows.

python scripts/readme_picture.py [docs/readme.png]
"""

import sys
from pathlib import Path

import torch

import lemmse as le

SIGMAS = (0.1, 0.5, 1.0, 2.0, 4.0)
TARGET = Path(__file__).resolve().parents[1] / "docs" / "readme.png"


def draw() -> le.figures.Picture:
    """Return the picture: above an image and its noisy measurements, below the nearest image and the exact answers."""
    images = le.data.fashion_mnist("train", count=2000)
    x = le.data.fashion_mnist("test", count=1)
    physics = le.Inpainting(le.center_mask(28, 28, side=15))
    sigma = torch.tensor(SIGMAS)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y = physics.A(x) + sigma[:, None, None, None] * noise

    estimator = le.MMSE(images, physics)
    posterior = estimator(y, sigma=sigma, reduction=le.PosteriorMoments())
    averaged = posterior.entropy.exp().tolist()
    nearest = images[estimator(y[:1], sigma=sigma[:1], reduction=le.TopSources(1)).image[0]]

    figure = le.figures.figure(8.4, 3.6)
    titles = ["image x", *(f"y, σ = {s:g}" for s in SIGMAS)]
    titles += ["nearest image", *(f"x̂ from {n:.0f} image{'s' * (round(n) > 1)}" for n in averaged)]
    axes = figure.subplots(2, 1 + len(SIGMAS))
    for place, title, image in zip(axes.flat, titles, torch.cat([x, y, nearest, posterior.mean]), strict=True):
        place.imshow(le.figures.rgba(image), interpolation="nearest")
        place.set_title(title, fontsize=8.5)
        place.set_axis_off()
    answers = "; ".join(f"at σ = {s:g}, {n:.0f}" for s, n in zip(SIGMAS, averaged, strict=True))
    alt = (
        "A shirt, its printed centre hidden, is measured with more and more noise. With little noise the exact "
        "estimator copies one training image, with another print; with more it averages several, and in the end a "
        f"great many. Number of images averaged out of 2000: {answers}."
    )
    return le.figures.picture(figure, alt=alt)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.parent.mkdir(exist_ok=True)
    picture = draw()
    picture.save(target)
    print(f"{target.name}: {picture.alt}")
