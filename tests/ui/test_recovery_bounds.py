"""The explorables of notebook 07: bars add up to the bounds, sentences say what the numbers say, pixels keep theirs."""

import itertools
import math
import re

import pytest
import torch

from lemmse import data
from lemmse.ui.explorables import recovery_bounds as room

STATES = list(itertools.product(room.OPERATORS, (0.02, 0.2, 1.0), (10, 1000)))


def by_hand(operator: str, sigma: float, count: int) -> dict[str, float]:
    """Error and bounds of S8, written out for one image."""
    atoms = data.fashion_mnist("train", count=count).double()
    x, physics = data.fashion_mnist("test", count=room.TRUTH + 1)[-1:].double(), room.OPERATORS[operator]
    clean = physics.A(x)
    e = sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    rho, far, r = (
        (a - b).flatten(1).norm(dim=1)
        for a, b in ((physics.A(atoms), clean), (atoms, x), (physics.A(atoms), clean + e))
    )
    w = torch.softmax(-r.square() / (2 * sigma**2), 0)
    alpha, nearest, noise = float((rho / far).min()), float(rho.min()), float(e.norm())
    tau = math.sqrt(2 * math.log((count + 1) / (2 * room.DELTA)))
    t = next(t / 1e4 for t in range(10**6) if (t / 1e4) * math.exp(t / 1e4) >= (count - 1) / math.e)  # W to 1e-4
    return {
        "true error": float((torch.einsum("d,dchw->chw", w, atoms) - x).norm()),
        "published (R1)": (nearest + 2 * noise + sigma * math.sqrt(2 * math.log(count))) / alpha,
        "sharp (R2)": (nearest + 2 * noise + sigma * math.sqrt(2 * t)) / alpha,
        "small bias (R3)": (math.sqrt(float(r.min()) ** 2 + 2 * sigma**2 * t) + noise) / alpha,
        "certificate (R4)": (math.sqrt(float(w @ r.square())) + noise) / alpha,
        "Gaussian (R5)": (sigma * tau + math.sqrt((nearest + sigma * tau) ** 2 + 2 * sigma**2 * t)) / alpha,
    }


@pytest.mark.parametrize(("operator", "sigma", "count"), STATES)
def test_numbers_are_those_of_the_statements(operator, sigma, count):
    view = room.compare(operator, sigma, count)
    assert view.numbers == pytest.approx(by_hand(operator, sigma, count), rel=1e-3)


@pytest.mark.parametrize(("operator", "sigma", "count"), STATES)
def test_bars_add_up_and_the_sentence_names_the_longest_part_and_the_least_bound(operator, sigma, count):
    view, bars = room.compare(operator, sigma, count), room.parts(room.estimate(operator, sigma, count), sigma, count)
    for name, bar in bars.items():
        assert min(bar) >= 0
        assert bar.total == pytest.approx(view.numbers[name], rel=1e-9)
        assert bar.total >= view.numbers["true error"]
    axes = view.figure.axes[0]
    ends = [max(patch.get_x() + patch.get_width() for patch in axes.patches[i :: len(bars)]) for i in range(len(bars))]
    assert ends == pytest.approx([bar.total for bar in bars.values()], rel=1e-5)
    least = min(bars, key=lambda name: bars[name].total)
    assert f"the least, {least}, says {bars[least].total:.1f}" in view.sentence
    first = bars["published (R1)"]
    dearest = dict(zip(first, ("no image near", "noise", "many images"), strict=True))[max(first)]
    assert f"of which {dearest} costs {max(first):.1f}" in view.sentence


@pytest.mark.parametrize(("operator", "sigma"), list(itertools.product(room.LOCAL, (0.02, 0.1, 1.0))))
def test_no_pixel_breaks_its_bound_and_the_sentence_counts_them(operator, sigma):
    found, view = room.certified(operator, sigma), room.certify(operator, sigma, 3, 20)
    bound = found.bounds.least[0]
    assert (found.error <= bound).all()
    assert "No error is above its bound: True" in view.sentence
    assert view.sentence.startswith(f"{float((bound < 1).double().mean()):.0%} of the pixels")
    shown = [image for axes in view.figure.axes for image in axes.images]
    assert shown[1].get_array().count() == int((bound < 1).sum())
    assert view.numbers["the pixel's error"] == pytest.approx(float(found.error[3, 20]))


@pytest.mark.parametrize("sigma", [0.01, 0.5])
def test_nothing_is_certified_in_the_hole(sigma):
    """Windows that see nothing of a pixel collide with others; those of visible pixels never do."""
    found = room.certified("inpainting, B = A⁺", sigma)
    inside = room.certify("inpainting, B = A⁺", sigma, 14, 14).sentence
    assert "nothing is certified there" in inside
    hidden = room.OPERATORS["inpainting"].mask == 0
    assert (found.facts.alpha[0, ~hidden] >= 1).all()
    assert found.bounds.least[0][~hidden].isfinite().all()
    outside = room.certify("inpainting, B = A⁺", sigma, 0, 0).sentence
    told = re.search(r"its bound is ([\d.]+) \((R[45])\)", outside)
    assert float(told[1]) == pytest.approx(float(found.bounds.least[0, 0, 0]), abs=0.005)
    by_certificate = found.bounds.certificate[0, 0, 0] <= found.bounds.gaussian[0, 0, 0]
    assert told[2] == ("R4" if by_certificate else "R5")
