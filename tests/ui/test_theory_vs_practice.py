"""The explorable of notebook 05 shows what it says: shipped networks beside their formulas, and a pixel's sources."""

import json
import re
from dataclasses import replace

import IPython.display
import ipywidgets
import pytest
import torch
from torch.nn.functional import pad, unfold

import lemmse as le
from lemmse import pretrained
from lemmse.metrics import psnr
from lemmse.networks import PatchMLP
from lemmse.pretrained import Card, Problem
from lemmse.ui import shipped
from lemmse.ui.explorables import theory_vs_practice as room
from ui.stand_ins import shipped_from

CARDS = [("fashion_mnist", "denoising", None), ("fashion_mnist", "inpainting", "pseudo-inverse")]
CARDS += [("photo_crops", "denoising", None)]
COUNT = 11  # training images: the formulas of these networks take milliseconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of small untrained networks with cards: three cells of a grid, and two that are none."""
    home = tmp_path_factory.mktemp("weights")
    for seed, (data, operator, pre_inverse) in enumerate(CARDS):
        problem = Problem(data, COUNT, operator, pre_inverse or "identity")
        generator = torch.Generator().manual_seed(seed)
        facts = {"width": 16, "sigma_range": (0.04, 1.1), "generator": generator}
        net = PatchMLP(problem.image_shape[0], 5, **facts)
        name = "-".join(filter(None, [data, operator, pre_inverse, "PatchMLP-p5"]))
        card = pretrained.save(net, Card(name, problem, net.config, 0, {}, {}), home)
    pretrained.save(net, replace(card, name=f"{card.name}-note"), home)
    whole = le.networks.GlobalMLP(1, (28, 28), width=3)
    pretrained.save(whole, Card("fashion_mnist-denoising-GlobalMLP", replace(problem), whole.config, 0, {}, {}), home)
    return home


@pytest.fixture(autouse=True)
def small_grid(folder, monkeypatch):
    yield from shipped_from(folder, monkeypatch, room._cards)


DEFAULTS = {"task": "denoising", "network": "PatchMLP-p5", "sigma": 0.2, "data": "fashion_mnist"}
DEFAULTS |= {"image": "test image 58"}
TASKS = ("denoising", "inpainting-pseudo-inverse")


def test_controls_offer_what_ships():
    """Choices are those of local networks in the grid; the default is one of them."""
    controls = room.network_and_formula().controls
    assert tuple(controls["task"].values) == TASKS
    assert controls["task"].texts == ["denoising", "inpainting, B = A⁺"]
    assert controls["network"].values == ["PatchMLP-p5"]
    assert controls["data"].values == ["fashion_mnist", "photo_crops"]
    assert room.network_and_formula().state == DEFAULTS


def test_without_networks_the_error_says_what_would_do(monkeypatch):
    monkeypatch.setattr(pretrained, "cards", lambda: [])
    with pytest.raises(ValueError, match="make train"):
        room.network_and_formula()


def patches(images, p):
    """All circular p × p windows of images (b, c, h, w): (b, h·w, c·p·p)."""
    around = pad(images.double(), 4 * (p // 2,), mode="circular")
    return unfold(around, p).movedim(1, 2)


@pytest.mark.parametrize(("data", "image"), [("fashion_mnist", "test image 45"), ("photo_crops", "training image 3")])
def test_formula_and_network_are_those_of_the_card(data, image):
    """The formula by all pairs of windows in float64 (S5.4), the network called by hand."""
    view = room.compare(**DEFAULTS | {"data": data, "image": image})
    x, y, formula, by_network = (view.pictures[name] for name in ("x", "y", "formula", "network"))
    images = Problem(data, COUNT, "denoising").images()
    split, index = image.split()[0].replace("training", "train"), int(image.split()[-1])
    assert torch.equal(x, Problem(data, 1, "denoising").images(split, index + 1)[index:])
    d2 = torch.cdist(patches(y, 5)[0], patches(images, 5).flatten(0, 1)).square()
    by_hand = torch.softmax(-d2 / (2 * 0.2**2), 1) @ images.double().movedim(1, 3).flatten(0, 2)
    torch.testing.assert_close(formula[0].flatten(1).T.double(), by_hand, atol=1e-4, rtol=0)
    net = pretrained.load(f"{data}-denoising-PatchMLP-p5")[0]
    with torch.no_grad():
        torch.testing.assert_close(by_network, net(y, 0.2))
    difference = view.pictures["network − formula"]
    torch.testing.assert_close(difference.values[0], (by_network - formula)[0].mean(0))
    assert difference.limit == shipped.LIMIT


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sigma", room.SIGMAS[::2])
def test_sentence_and_numbers_are_those_of_the_pictures(task, sigma):
    """Three PSNRs, how they compare, and who is nearer to the truth."""
    view = room.compare(**DEFAULTS | {"task": task, "sigma": sigma})
    x, formula, by_network = (view.pictures[name] for name in ("x", "formula", "network"))
    match, network, truth = (psnr(a, b).item() for a, b in ((by_network, formula), (by_network, x), (formula, x)))
    found = [view.numbers[f"PSNR {pair} (dB)"] for pair in ("network–formula", "network–truth", "formula–truth")]
    assert found == pytest.approx([match, network, truth], abs=1e-3)
    said = view.sentence
    assert f"formula ({COUNT} images) agree to {match:.1f} dB" in said
    assert f"the network has {network:.1f} dB and the formula {truth:.1f} dB" in said
    factor = float(re.search(r"they are ([\d.]+) times", said)[1])
    assert factor == pytest.approx(10 ** (abs(match - truth) / 20), abs=0.06)
    assert ("times nearer to one another" in said) == (match > truth)
    assert ("equally near" in said) == (abs(network - truth) <= 0.1)
    if abs(network - truth) > 0.1:
        assert f"{abs(network - truth):.1f} dB {'nearer to' if network > truth else 'further from'} it" in said
    assert ("B y" in view.pictures) == (task != "denoising")
    assert view.notes["network − formula"] == f"RMS {(by_network - formula).square().mean().sqrt():.3f}"


def test_training_images_are_said_to_be_known():
    assert room.compare(**DEFAULTS | {"image": "training image 3"}).sentence.endswith("Both know this image.")
    assert "know this image" not in room.compare(**DEFAULTS).sentence


def test_the_coarse_answer_is_the_full_one_without_the_formula():
    coarse, full = room.compare_coarsely(**DEFAULTS), room.compare(**DEFAULTS)
    assert list(coarse.pictures) == ["x", "y", "network"]
    for name, picture in coarse.pictures.items():
        assert torch.equal(picture, full.pictures[name])
    assert coarse.numbers.items() <= full.numbers.items()
    assert "follows" in coarse.sentence


def test_what_does_not_ship_is_named():
    """A combination without a network shows its measurement, coarsely and fully, and says what there is."""
    missing = DEFAULTS | {"data": "photo_crops", "task": "inpainting-pseudo-inverse"}
    for function in (room.compare, room.compare_coarsely):
        view = function(**missing)
        assert list(view.pictures) == ["x", "y", "B y"]
        assert "PatchMLP, 5 × 5, for inpainting, B = A⁺ on photographs" in view.sentence
        assert "Choose other images" in view.sentence
    explorable = room.theory_vs_practice(**missing)
    assert explorable.picture().alt.count("No such network ships") == 1


# ---- With a probe ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["anywidget", "image"])
def shown(request, monkeypatch):
    """Return the explorable with its widget made, on both rungs of the ladder."""
    monkeypatch.setenv("LEMMSE_UI", request.param)
    made = room.theory_vs_practice(row=4, column=25)
    assert isinstance(made.widget, ipywidgets.VBox)
    assert made.widget is made.widget
    return made


def test_the_probe_explains_the_formula(shown):
    """Its pixel is the formula's, and weights and contributions add up."""
    found = shown.probe.explain()
    assert (found.row, found.column) == (4, 25)
    torch.testing.assert_close(found.mean.float(), shown.look().pictures["formula"][0, :, 4, 25])
    assert float(found.weight.sum()) + found.remainder == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found.running_sum[-1] + found.remainder_share, found.mean)


def test_the_probe_follows_the_controls(shown):
    """Another noise level and operator at the same pixel; other images in a probe of their size; none where none is."""
    first, before = shown.probe, shown.probe.explain()
    shown.state = {"sigma": 0.5, "task": "inpainting-pseudo-inverse"}
    assert shown.probe is first
    assert shown.probe.sigma == 0.5
    assert float(shown.probe.explain().mean) != float(before.mean)
    shown.state = {"data": "photo_crops"}
    assert list(shown.widget.children) == [shown.explorable.widget]
    shown.state = {"task": "denoising"}
    assert shown.widget.children[1] is shown.probe is not first
    assert tuple(shown.probe.x_hat.shape) == (3, 32, 32)
    shown.probe.pixel = (31, 30)
    shown.state = {"data": "fashion_mnist", "row": 27, "column": 3}
    assert shown.pixel == (27, 3)
    torch.testing.assert_close(shown.probe.explain().mean.float(), shown.look().pictures["formula"][0, :, 27, 3])


def test_state_is_json_and_restores(shown):
    shown.state = {"sigma": 0.05, "image": "training image 3"}
    shown.probe.pixel = (20, 11)
    state = json.loads(json.dumps(shown.state))
    assert state == DEFAULTS | {"sigma": 0.05, "image": "training image 3", "row": 20, "column": 11}
    assert eval(shown.state_line, {"le": le}).state == state
    assert shown.state_line in repr(shown)


def test_bad_states_are_refused():
    with pytest.raises(ValueError, match=r"sigma = 0\.07"):
        room.theory_vs_practice(sigma=0.07)
    with pytest.raises(ValueError, match="from 0 to 27 and 27"):
        room.theory_vs_practice(row=28)
    made = room.theory_vs_practice()
    with pytest.raises(ValueError, match="from 0 to 27 and 27"):
        made.state = {"column": 31}


@pytest.mark.parametrize("rung", ["anywidget", "static"])
def test_it_shows_a_still_picture_first(monkeypatch, rung):
    """Readers without a kernel see the comparison and the sources of the pixel; the text says the same."""
    monkeypatch.setenv("LEMMSE_UI", rung)
    published = []
    monkeypatch.setattr(IPython.display, "display", lambda shown, **_: published.append(shown))
    made = room.theory_vs_practice()
    made._ipython_display_()
    if rung == "static":
        assert made.widget is None
        alt = published[0].alt
    else:
        still, live = published
        alt = still["text/plain"]
        assert 'class="lemmse-still"' in still["text/html"]
        assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == made.widget.model_id
    assert made.look().sentence in alt
    assert "The pixel in row 6, column 12 of x̂" in alt
