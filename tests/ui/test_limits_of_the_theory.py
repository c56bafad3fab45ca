"""The explorable of notebook 06: curves are those of the cards, pictures those of the point that is chosen."""

import json

import pytest
import torch

import lemmse as le
from lemmse import pretrained
from lemmse.metrics import psnr
from lemmse.networks import PatchMLP
from lemmse.pretrained import Card, Problem
from lemmse.ui import shipped
from lemmse.ui.explorables import limits_of_the_theory as room
from ui.stand_ins import shipped_from

POINTS = {"p5-D3": (3, 5), "p5-D8": (8, 5), "p5": (13, 5), "p3": (13, 3), "p7": (13, 7)}
OTHERS = {"p5-seed1": (13, 5), "p7-D8": (8, 7)}
"""On no curve: another seed, and what differs in two things."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of small untrained networks, with decibels that tell them apart."""
    home = tmp_path_factory.mktemp("weights")
    for seed, (name, (count, side)) in enumerate({**POINTS, **OTHERS}.items()):
        net = PatchMLP(1, side, width=8, sigma_range=(0.04, 1.1), generator=torch.Generator().manual_seed(seed))

        def decibels(start, seed=seed):
            return {f"{sigma:g}": start + seed + sigma for sigma in shipped.SIGMAS}

        truth = {"network": decibels(10), "formula": decibels(20)}
        measured = {split: decibels(30) for split in ("test", "train")}, dict.fromkeys(("test", "train"), truth)
        problem = Problem("fashion_mnist", count, "denoising")
        card = Card(f"fashion_mnist-denoising-PatchMLP-{name}", problem, net.config, 0, {}, {}, *measured)
        pretrained.save(net, card, home)
    return home


@pytest.fixture(autouse=True)
def few(folder, monkeypatch):
    """Thirteen images stand for the thousand."""
    monkeypatch.setattr(room, "BESIDE", Problem("fashion_mnist", 13, "denoising"))
    yield from shipped_from(folder, monkeypatch, room._points)


def test_points_are_those_of_the_two_curves():
    controls = room.curves().controls
    assert controls["point"].values == [
        "D = 3, 5 × 5",
        "D = 8, 5 × 5",
        "D = 13, 3 × 3",
        "D = 13, 5 × 5",
        "D = 13, 7 × 7",
    ]
    assert room.curves().state == {"point": "D = 13, 5 × 5", "sigma": 0.2, "image": "test image 58"}


def test_without_the_networks_the_error_says_what_would_do(monkeypatch):
    monkeypatch.setattr(pretrained, "cards", lambda: [])
    room._points.cache_clear()
    with pytest.raises(ValueError, match="make train"):
        room.curves()


@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_curves_are_those_of_the_cards(sigma):
    """Heights by name: match, network to truth, formula to truth; rings where the point lies."""
    by_count, by_side = room.drawn("D = 8, 5 × 5", sigma).axes
    for axes, names, places in (
        (by_count, ["p5-D3", "p5-D8", "p5"], [3, 8, 13]),
        (by_side, ["p3", "p5", "p7"], [3, 5, 7]),
    ):
        lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
        assert set(lines) == {"network to formula", "network to truth", "formula to truth"}
        for label, start in (("network to formula", 30), ("network to truth", 10), ("formula to truth", 20)):
            heights = [start + list(POINTS).index(name) + sigma for name in names]
            assert list(lines[label].get_xdata()) == places
            assert list(lines[label].get_ydata()) == pytest.approx(heights)
    rings = [line.get_xdata()[0] for line in by_count.get_lines() if line.get_markerfacecolor() == "none"]
    assert rings == [8, 8, 8]
    assert not [line for line in by_side.get_lines() if line.get_markerfacecolor() == "none"]


@pytest.mark.parametrize(("point", "name"), [("D = 3, 5 × 5", "p5-D3"), ("D = 13, 7 × 7", "p7")])
def test_pictures_and_numbers_are_those_of_the_point(point, name):
    view = room.look(point, 0.3, "training image 3")
    net, card = pretrained.load(f"fashion_mnist-denoising-PatchMLP-{name}")
    with torch.no_grad():
        torch.testing.assert_close(view.pictures["network"], net(view.pictures["y"], 0.3))
    formula = card.estimator()(view.pictures["y"], sigma=0.3).mean
    torch.testing.assert_close(view.pictures["formula"], formula)
    match = psnr(view.pictures["network"], formula).item()
    assert view.numbers["PSNR network–formula (dB)"] == pytest.approx(match, abs=1e-3)
    assert f"network and formula of {point} agree to {match:.1f} dB" in view.sentence


def test_the_sentence_tells_the_ends_of_both_curves():
    said = room.look_coarsely("D = 3, 5 × 5", 0.5, "test image 45").sentence
    assert "from 30.5 dB at D = 3 to 32.5 dB at D = 13 with more images" in said
    assert "from 33.5 dB at p = 3 to 34.5 dB at p = 7 with larger windows" in said


def test_the_coarse_answer_is_part_of_the_full_one():
    state = {"point": "D = 8, 5 × 5", "sigma": 0.2, "image": "test image 58"}
    coarse, full = room.look_coarsely(**state), room.look(**state)
    assert set(coarse.pictures) == {"x", "y", "network"}
    assert all(torch.equal(picture, full.pictures[name]) for name, picture in coarse.pictures.items())
    assert coarse.numbers.items() <= full.numbers.items()


def test_state_is_json_and_restores():
    made = room.curves(point="D = 13, 3 × 3", sigma=0.05)
    state = json.loads(json.dumps(made.state))
    assert eval(made.state_line, {"le": le}).state == state
    with pytest.raises(ValueError, match="D = 9"):
        room.curves(point="D = 9, 5 × 5")
