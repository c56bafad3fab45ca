"""The explorables of notebook 04 show what they say: owners of pixels, the price of a pre-inverse, a filled hole."""

import itertools
import json
import math
import re

import IPython.display
import ipywidgets
import pytest
import torch
from torch.nn.functional import pad

import lemmse as le
from lemmse import data
from lemmse.metrics import psnr
from lemmse.operators import dense_matrix
from lemmse.ui.explorables import locality_and_inpainting as room
from lemmse.ui.painting import rows_of

# ---- Both formulas with loops and dense matrices, in float64 ---------------------------------------------------------


def windows(images, p):
    """All circular p × p windows of images (b, 1, h, w), row-major: (b, h·w, p·p)."""
    half = p // 2
    around = pad(images.double(), (half, half, half, half), mode="circular")
    return torch.nn.functional.unfold(around, p).movedim(1, 2)


def denoised(images, y, p, sigma):
    """The weights (N, D, N) of S5.4: query pixel, image, source pixel."""
    v, keys = windows(y, p)[0], windows(images, p)
    d2 = torch.cdist(v, keys.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.softmax(-d2 / (2 * sigma**2), 1).view(len(v), *keys.shape[:2])


def restored(operator, pre_inverse, p, sigma, x, y, images):
    """The estimate, the look-alikes and the amplification of S5.2 and S6, one source pixel after another."""
    size, N, D = images.shape[2:], images[0].numel(), len(images)
    A = dense_matrix(room.OPERATORS[operator], (1, *size))
    B = dense_matrix(room.inverse_of(operator, pre_inverse), (1, *size))
    where = windows(torch.arange(N).view(1, 1, *size), p)[0].long()
    Q = B[where]
    factors = [torch.linalg.svd(each, full_matrices=False) for each in Q]
    largest = max(S.max() for _, S, _ in factors)
    ranks = [int((S / largest > 1e-10).sum()) for _, S, _ in factors]
    kept = [(U[:, :rank], S[:rank]) for (U, S, _), rank in zip(factors, ranks, strict=True)]
    spaces = torch.stack([U @ U.T for U, _ in kept])
    seen, clean = ((B @ each)[where] for each in (y, A @ x))
    keys = torch.stack([(B @ (A @ image))[where] for image in images.flatten(1)])  # (D, N, p²)
    log_weights = torch.full((N, D, N), -math.inf, dtype=torch.float64)
    distances = torch.full((N, D, N), math.inf, dtype=torch.float64)
    gains = torch.full((N, N), math.nan, dtype=torch.float64)
    for n, (U, S) in enumerate(kept):
        same = (spaces - spaces[n]).abs().amax((1, 2)) < 1e-7
        whiten = U / S
        for out, v in ((log_weights, seen), (distances, clean)):
            d2 = ((v[same, None] - keys[None, :, n]) @ whiten).square().sum(2)
            out[same, :, n] = d2 if out is distances else -d2 / (2 * sigma**2) - S.log().sum()
        gains[same, n] = (whiten.T @ Q[same]).square().sum((1, 2)) / len(S) if len(S) else 1.0
    weights = torch.softmax(log_weights.flatten(1), 1)
    x_hat = weights @ images.flatten(1).flatten()
    atoms = distances.isfinite().sum((1, 2))
    alike = (distances < 2 * sigma**2 * atoms.log()[:, None, None]).sum((1, 2))
    return x_hat, alike, gains.nanmean(1)


# ---- A patchwork of windows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "patch_size", "image"), [(0.1, 3, "bag"), (0.5, 5, room.MEMBER)])
def test_owners_and_sources_are_those_of_the_weights(sigma, patch_size, image):
    """Estimate, owners and effective sources, from all weights of all windows."""
    view, images = room.patch(sigma, patch_size, 10, image), data.fashion_mnist("train", 10)
    weights = denoised(images, view.pictures["y"], patch_size, sigma)
    x_hat = weights.flatten(1) @ images.double().flatten()
    torch.testing.assert_close(view.pictures["x_hat"].flatten().double(), x_hat, atol=2e-4, rtol=0)
    entropy = -torch.special.xlogy(weights, weights).sum((1, 2))
    shown = view.pictures["effective sources"].values.flatten().double()
    torch.testing.assert_close(shown, entropy.exp().log10(), atol=2e-3, rtol=0)
    assert view.numbers["effective sources, median"] == pytest.approx(entropy.exp().median().item(), rel=5e-3)
    share = weights.sum(2).amax(1)
    owned = torch.bincount(weights.sum(2).argmax(1)[share > 0.5 + 1e-4], minlength=10)
    sure = int(((share - 0.5).abs() < 2e-3).sum())  # nobody can say, in float32
    assert abs(view.numbers["pixels with an owner"] - int(owned.sum())) <= sure
    most = [name for name in view.notes if name.startswith("image")]
    assert [int(name.split()[1]) for name in most[:3]] == owned.argsort(descending=True, stable=True)[:3].tolist()
    assert [view.notes[name] for name in most[:3]] == [
        f"owns {n}" if n else "owns none" for n in owned.sort(descending=True)[0][:3]
    ]


def told(sentence):
    """The whole numbers in a sentence."""
    return [int(number) for number in re.findall(r"(?<![\d.])\d+(?![\d.]*\d)", sentence)]


@pytest.mark.parametrize(("image", "halved"), [("bag", True), (room.MEMBER, True), ("bag", False)])
def test_sentence_counts_owners_truly_in_every_state(image, halved):
    """At every noise level, with small and large windows: what is said of owners is what the map holds."""
    said = set()
    grid = room.SIGMAS, room.PATCH_SIZES[::2] if image == "bag" else room.PATCH_SIZES[1::4]
    for sigma, patch_size in itertools.product(*grid) if halved else ((0.02, 7), (0.2, 1), (10.0, 5)):
        found = room._denoised(sigma, patch_size, 10, image, halved=halved)
        view = (room.patch_coarsely if halved else room.patch)(sigma, patch_size, 10, image)
        owner, total = found.owner, found.owner.numel()
        having, owners = int((owner >= 0).sum()), len(owner[owner >= 0].unique())
        sentence = view.sentence
        assert sentence.startswith("At half the resolution for now. ") == halved
        sentence = sentence.removeprefix("At half the resolution for now. ")
        median = found.sources.median().item()
        kind = next(
            k
            for k in ("An average", "A mixture", "Mostly a mixture", "Nearly all", "All from", "A patchwork")
            if sentence.startswith(k)
        )
        said.add(kind)
        assert (kind in ("An average", "A mixture")) == (having == 0)
        assert (view.numbers["pixels with an owner"], view.numbers["owners"]) == (having, owners)
        if having == 0:
            assert (kind == "An average") == (median > 0.9 * 10 * total)
            assert told(sentence)[-1] == 10 * total
            continue
        most = int(owner[owner >= 0].mode().values)
        largest = int((owner == most).sum())
        assert (kind == "Mostly a mixture") == (2 * having < total)
        assert (kind in ("Nearly all", "All from")) == (2 * having >= total and largest >= 0.95 * having)
        if kind == "A patchwork":
            assert told(sentence)[:3] == [owners, 10, having]
            assert f"{largest}" in sentence
        assert ("without an owner" in sentence) == (total - having > 1)
        assert ("One pixel has no owner" in sentence) == (total - having == 1)
        if "most of them black" in sentence:
            assert (found.x[0, 0][owner < 0] == 0).double().mean() > 0.5
    assert {"An average", "A mixture"} <= said
    assert said & {"A patchwork", "Nearly all", "All from"}


def test_a_seen_image_comes_back_and_an_unseen_one_does_not():
    """With large windows and little noise the estimate of a training image is that image; of another, a patchwork."""
    seen, unseen = (room.patch(0.1, 15, 20, image) for image in (room.MEMBER, "bag"))
    assert seen.sentence.startswith("Nearly all from one image, number 3")
    assert psnr(seen.pictures["x_hat"], seen.pictures["x"]).item() > 40
    assert unseen.sentence.startswith("A patchwork")
    assert psnr(unseen.pictures["x_hat"], unseen.pictures["x"]).item() < 25


def test_larger_sigma_means_more_sources():
    """Along the slider the effective sources rise from one or few to nearly all."""
    medians = [
        room.patch(sigma, 5, 10, "bag").numbers["effective sources, median"] for sigma in (0.001, 0.3, 1.0, 10.0)
    ]
    assert medians[0] < 1.5
    assert medians[-1] > 0.9 * 7840
    assert all(b > a for a, b in itertools.pairwise(medians))


def test_the_map_draws_owners_in_colours_and_nobody_in_stripes():
    """Every cell has the colour of its owner in the middle; cells without an owner are hatched; borders are black."""
    owner = torch.tensor([[0, 0, 3], [3, -1, 5], [-1, -1, 5]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    owner = torch.nn.functional.pad(owner, (0, 2, 0, 2), value=-1)
    drawn = room.draw_owners(owner, [3, 0])
    assert drawn.shape == (3, 140, 140)
    hexes = {tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)): code for code in (*room.OWNERS, room.OTHERS)}

    def colour(row, column):
        return hexes.get(tuple((255 * drawn[:, row, column]).round().int().tolist()))

    middles = {(i, j): colour(40 * i + 25, 40 * j + 25) for i in range(3) for j in range(3)}
    assert middles[0, 2] == middles[1, 0] == room.OWNERS[0]
    assert middles[0, 0] == middles[0, 1] == room.OWNERS[1]
    assert middles[1, 2] == middles[2, 2] == room.OTHERS
    nobody = drawn[:, 50:70, 50:70].flatten(1).unique(dim=1)
    assert nobody.shape[1] == 2, "two tones, so that it is told from any colour"
    assert not drawn[:, 40, :].any(0)[:40].any(), "a border between owners"
    assert drawn[:, 20, 40].any(), "no border inside one owner's"


def test_frames_are_the_legend():
    """The portraits of owners wear the colours of the map."""
    view = room.patch(0.1, 5, 20, "bag")
    names = [name for name in view.pictures if name.startswith("image")]
    assert len(names) == len(room.OWNERS)
    for name, code in zip(names, room.OWNERS, strict=True):
        framed = view.pictures[name]
        assert (255 * framed[:, 0, 0]).round().int().tolist() == [int(code[i : i + 2], 16) for i in (1, 3, 5)]
        image = data.fashion_mnist("train", 20)[int(name.split()[1])]
        assert torch.equal(framed[0, 10:130:5, 10:130:5], image[0, 2:26, 2:26])


# ---- The price of a pre-inverse -------------------------------------------------------------------------------------

PAIRS = [
    ("motion blur", "A⁺"),
    ("strong blur", "Tikhonov"),
    ("half in the shade", "A⁺"),
    ("hole", "A⁺"),
    ("random mask", "Aᵀ"),
    ("stripes", "Id"),
]


@pytest.mark.parametrize(("operator", "pre_inverse"), PAIRS)
def test_numbers_are_those_of_the_formulas(operator, pre_inverse):
    """Estimate, look-alikes and amplification against S5.2 and S6 with dense matrices in float64."""
    sigma = 0.2
    view = room.price(operator, pre_inverse, sigma, 3, "boot")
    x, y = (view.pictures[name].double().flatten() for name in ("x", "y"))
    images = torch.nn.functional.avg_pool2d(data.fashion_mnist("train", room.PRICE_IMAGES).double(), 2)
    x_hat, alike, amplification = restored(operator, pre_inverse, 3, sigma, x, y, images)
    shown = view.pictures[f"x_hat, B = {pre_inverse}"].flatten().double()
    torch.testing.assert_close(shown, x_hat, atol=2e-3, rtol=0)
    torch.testing.assert_close(view.pictures["amplification"].values.flatten(), amplification, atol=1e-6, rtol=1e-6)
    counts = 10 ** view.pictures[f"look-alikes, B = {pre_inverse}"].values.flatten().double()
    torch.testing.assert_close(counts, alike.clamp_min(1).double(), rtol=0.02, atol=3)
    assert view.numbers[f"look-alikes, B = {pre_inverse}, mean"] == pytest.approx(
        alike.double().mean().item(), rel=0.01
    )


EVERY_B = [(A, B) for k, A in enumerate(room.OPERATORS) for B in ("A⁺", ("Aᵀ", "Tikhonov", "Id")[k % 3])]


@pytest.mark.parametrize(("operator", "pre_inverse"), EVERY_B)
def test_sentence_says_who_wins_in_every_state(operator, pre_inverse):
    """Winner, margin, what remains without noise, amplification and look-alikes are those of pictures and numbers."""
    blurs_or_masks = operator != "half in the shade"
    first = list(room.OPERATORS).index(operator) % 3  # each operator at some noise levels, all levels in turn
    step = 6 if operator == "random mask" else 3  # 164 strata take their time where every shape is checked
    for sigma, image in zip(room.PRICE_SIGMAS[first::step], itertools.cycle(room.TRUTHS), strict=False):
        view = room.price(operator, pre_inverse, sigma, 3, image)
        sentence, x = view.sentence, view.pictures["x"]
        if pre_inverse == "Id":
            assert sentence.startswith("B = Id: the network sees y itself.")
            assert set(view.numbers) == {"look-alikes, B = Id, mean"}
            continue
        gain, aside = view.numbers["gain (dB)"], view.numbers["gain without noise (dB)"]
        mine, plain = (psnr(view.pictures[f"x_hat, B = {name}"], x).item() for name in (pre_inverse, "Id"))
        assert gain == pytest.approx(mine - plain, abs=1e-4)
        if abs(gain) <= 0.1:
            assert sentence.startswith(f"B = {pre_inverse} is as good as B = Id; ")
            assert "decides" not in sentence
        else:
            verb, over = ("wins", "over") if gain > 0 else ("loses", "to")
            assert sentence.startswith(f"B = {pre_inverse} {verb} {abs(gain):.1f} dB {over} B = Id; ")
            assert "discrimination alone decides" in sentence or not blurs_or_masks
        without = (
            "they would tie" if abs(aside) <= 0.1 else f"it would {'win' if aside > 0 else 'lose'} {abs(aside):.1f} dB"
        )
        assert f"without noise in y {without}." in sentence
        uniform = (view.pictures["amplification"].values - 1).abs().max() < 1e-6
        assert uniform == blurs_or_masks == ("(amplification 1)" in sentence)
        assert (" decides" in sentence) == (abs(gain) > 0.1)
        assert ("noise decides" in sentence) == (not uniform and abs(gain) > 0.1 and abs(aside) < abs(gain - aside))
        many, few = (view.numbers[f"look-alikes, B = {name}, mean"] for name in (pre_inverse, "Id"))
        assert f" {room._number(many)} look-alikes among " in sentence
        assert f"with B = Id {room._number(few)}" in sentence
        if "not by their number" in sentence:
            assert gain * aside > 0
        if "to average the noise over" in sentence:
            assert gain * aside <= 0


def test_without_noise_the_estimates_are_those_of_a_clean_measurement():
    """The gain without noise is that of estimators asked about A x."""
    view = room.price("strong blur", "A⁺", 0.05, 3, "bag")
    x, physics = view.pictures["x"], room.OPERATORS["strong blur"]
    images = torch.nn.functional.avg_pool2d(data.fashion_mnist("train", room.PRICE_IMAGES), 2)
    found = [
        psnr(le.LocalEquivariantMMSE(images, physics, 3, B)(physics.A(x), sigma=0.05).mean, x).item()
        for B in (le.PseudoInverse(physics), None)
    ]
    assert view.numbers["gain without noise (dB)"] == pytest.approx(found[0] - found[1], abs=1e-2)


def test_aware_wins_at_low_noise_and_loses_at_high_noise():
    """The default makes the point: physics-aware is not always better; at little noise it is."""
    explorable = room.price_of_a_pre_inverse()
    assert explorable.look().numbers["gain (dB)"] < -3
    explorable.state = {"sigma": 0.01}
    assert explorable.look().numbers["gain (dB)"] > 3
    assert room.price("hole", "A⁺", 0.1, 3, "boot").numbers["gain (dB)"] > 3
    for sigma in room.PRICE_SIGMAS:  # S13: for masks Tikhonov only scales
        tikhonov, dagger = (room._answer("stripes", B, sigma, 3, "bag").x_hat for B in ("Tikhonov", "A⁺"))
        torch.testing.assert_close(tikhonov, dagger, atol=1e-3, rtol=0)


# ---- A painted hole -------------------------------------------------------------------------------------------------


def wide_hole():
    return le.center_mask(28, 28, side=9)


MASKS = {
    "square": wide_hole(),
    "nothing": torch.ones(28, 28),
    "everything": torch.zeros(28, 28),
    "half": le.operators.half_mask(28, 28),
    "one pixel": le.center_mask(28, 28, side=1),
    "5 × 5": le.center_mask(28, 28, side=5),
}


def blind_pixels(mask):
    """How many 5 × 5 windows hold no visible pixel."""
    return int((windows(mask[None, None], 5)[0].sum(1) == 0).sum())


@pytest.mark.parametrize("name", MASKS)
def test_the_sentence_about_a_hole_is_true(name):
    """What is hidden, how many pixels see nothing, who is nearer in the hole, the constant colour."""
    mask = MASKS[name]
    view, blind = room.fill(mask), blind_pixels(mask)
    x, without, filled = (view.pictures[key] for key in ("x", "x_hat, B = Id", "x_hat, B = A⁺"))
    images = data.fashion_mnist("train", room.HOLE_IMAGES)
    unseen = windows(mask[None, None], 5)[0].sum(1).view(28, 28) == 0
    assert view.numbers["blind pixels"] == blind
    assert view.numbers["kinds of windows"] == len(windows(mask[None, None], 5)[0].unique(dim=0))
    said = view.sentence
    torch.testing.assert_close(view.pictures["y"], mask * x + 0.1 * room._noise(x))
    if name == "nothing":
        assert said.startswith("Nothing is hidden")
        assert f"{psnr(filled, x).item():.1f} dB" in said
        torch.testing.assert_close(without, filled, atol=1e-4, rtol=0)
        return
    if blind:
        colour = images[:, 0, unseen].mean()
        torch.testing.assert_close(filled[0, 0, unseen], colour.expand(blind))
        assert f"{colour:.2f}" in said
    if name == "everything":
        assert said.startswith("Everything is hidden")
        torch.testing.assert_close(without, torch.full_like(x, images.mean()))
        return
    hidden = mask == 0
    gain = (psnr(filled[..., hidden], x[..., hidden]) - psnr(without[..., hidden], x[..., hidden])).item()
    assert abs(gain) > 0.1
    assert f"B = A⁺ {'wins' if gain > 0 else 'loses'} {abs(gain):.1f} dB" in said
    seen = {0: "Every window sees something", 1: "1 pixel sees nothing in its 5 × 5 window"}
    assert seen.get(blind, f"{blind} pixels see nothing in their 5 × 5 windows") in said


def test_the_coarse_answer_is_the_first_half_of_the_full_one():
    mask = wide_hole()
    coarse, full = room.fill_coarsely(mask), room.fill(mask)
    assert list(coarse.pictures) == list(full.pictures)[:3]
    for name, picture in coarse.pictures.items():
        torch.testing.assert_close(picture, full.pictures[name])
    assert "B = A⁺ follows" in coarse.sentence


def shown_hole(monkeypatch, rung="anywidget"):
    """The explorable with its widget made, on a rung of the ladder; few kinds of windows see part of half an image."""
    monkeypatch.setenv("LEMMSE_UI", rung)
    hole = room.painted_hole(mask=rows_of(le.operators.half_mask(28, 28, visible="bottom")))
    assert isinstance(hole.widget, ipywidgets.VBox)
    assert hole.widget is hole.widget
    return hole


@pytest.mark.parametrize("rung", ["anywidget", "image"])
def test_painting_moves_estimate_and_probe(monkeypatch, rung):
    """A preset changes the answer, and the probe explains the new estimate at the same pixel."""
    hole = shown_hole(monkeypatch, rung)
    before = hole.probe.explain()
    hole.painter.preset("half")
    assert torch.equal(hole.mask, le.operators.half_mask(28, 28))
    y = room._masked(hole.mask)
    assert torch.equal(hole.probe.y, y)
    x_hat = hole.probe.estimator(y, sigma=0.1).mean[0]
    found = hole.probe.explain()
    assert (found.row, found.column) == (before.row, before.column)
    torch.testing.assert_close(found.mean, x_hat[:, found.row, found.column].double())
    torch.testing.assert_close(x_hat, hole.look().pictures["x_hat, B = A⁺"][0])
    assert float(found.weight.sum()) + found.remainder == pytest.approx(1, abs=1e-6)


def test_painting_all_or_nothing_is_no_failure(monkeypatch):
    hole = shown_hole(monkeypatch)
    for name, rank in (("nothing", 25), ("everything", 0)):
        hole.painter.mask = MASKS[name]
        assert hole.painter.grid.frame["sentence"].startswith(name.title())
        assert hole.painter.grid.frame["error"] == ""
        assert hole.probe.explain().rank == rank


def test_a_pause_lets_the_full_answer_follow(monkeypatch):
    """Orders that go on get the coarse answer, the rest the full one; only then does the probe follow."""
    hole = shown_hole(monkeypatch)
    painter, probe = hole.painter, hole.probe
    assert painter.canvas.settles
    first = probe.y

    def order(**content):
        painter._hear(None, {"serial": "1", **content}, [])

    for moving in ({"kind": "preset", "name": "half", "percent": 50}, {"kind": "invert"}, {"kind": "undo"}):
        order(**moving, resting=False)
        assert painter.grid.frame["sentence"].startswith("B = Id alone for now")
        assert probe.y is first
    order(kind="rest", resting=True)
    assert painter.grid.frame["sentence"] == room.fill(hole.mask).sentence
    assert torch.equal(probe.y, room._masked(le.operators.half_mask(28, 28)))
    assert torch.equal(painter.settled, painter.mask)
    shown = painter.grid.frame["revision"]
    order(kind="rest", resting=True)
    assert painter.grid.frame["revision"] == shown, "nothing has changed since"


def test_state_is_json_and_restores(monkeypatch):
    hole = shown_hole(monkeypatch)
    hole.painter.mask = MASKS["5 × 5"]
    hole.probe.pixel = (3, 25)
    state = json.loads(json.dumps(hole.state))
    assert state == {"mask": rows_of(MASKS["5 × 5"]), "row": 3, "column": 25}
    again = eval(hole.state_line, {"le": le})
    assert again.state == state
    other = room.painted_hole()
    other.state = state
    assert other.state == state
    hole.state = {"row": 7}
    assert hole.probe.pixel == (7, 25)
    assert hole.state_line in repr(hole)
    with pytest.raises(ValueError, match="holes"):
        other.state = {"holes": 3}


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="hidden"):
        room.painted_hole(mask=["012"] * 28)
    with pytest.raises(ValueError, match="28 rows of 28"):
        room.painted_hole(mask=["01"] * 2)
    with pytest.raises(ValueError, match="from 0 to 27"):
        room.painted_hole(row=28)


@pytest.mark.parametrize("rung", ["anywidget", "static"])
def test_it_shows_a_still_picture_first(monkeypatch, rung):
    """Readers without a kernel see both estimates and the sources of the pixel; the text says the same."""
    monkeypatch.setenv("LEMMSE_UI", rung)
    published = []
    monkeypatch.setattr(IPython.display, "display", lambda shown, **_: published.append(shown))
    hole = room.painted_hole()
    hole._ipython_display_()
    if rung == "static":
        assert hole.widget is None
        (still,) = published
        alt = still.alt
    else:
        still, live = published
        alt = still["text/plain"]
        assert 'class="lemmse-still"' in still["text/html"]
        assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == hole.widget.model_id
    assert hole.look().sentence in alt
    assert "The pixel in row 13, column 17 of x̂" in alt


def test_defaults_make_the_point():
    """A bag of other garments' pixels; a pre-inverse that loses; a hole that only the aware estimator fills."""
    assert room.patchwork_of_windows().look().sentence.startswith("A patchwork: 9 of 10 images")
    assert " loses " in room.price_of_a_pre_inverse().look().sentence
    view = room.painted_hole().look()
    assert " wins " in view.sentence
    assert "25 pixels see nothing" in view.sentence


def test_views_compute_with_one_thread(monkeypatch):
    """And leave the setting as they found it."""
    used = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1] if used else 3)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    room.fill_coarsely(wide_hole())
    assert used == [1, 3]
