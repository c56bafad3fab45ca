"""Shipped networks: small, whole, as their cards say; what is damaged or does not fit is refused."""

import json
from dataclasses import replace

import pytest
import torch

import lemmse as le
import theory_vs_practice as tables
import train as script
from lemmse.networks import LocalResNet, PatchMLP, check_receptive_field
from lemmse.pretrained import Card, Problem, cards, load, save

LOCAL_BYTES, GLOBAL_BYTES, ALL_BYTES = 300_000, 2_500_000, 25_000_000
SHIPPED = cards()
CELLS = {cell.name: cell for cell in script.grid() + script.curves()}
PROBLEM = Problem("fashion_mnist", 11, "inpainting", "pseudo-inverse")


def card_of(net, name="mine", problem=PROBLEM):
    return Card(name, problem, net.config, 0, {"seed": 0}, {"torch": torch.__version__})


@pytest.fixture
def saved(tmp_path):
    net = PatchMLP(1, 5, width=16, sigma_range=(0.1, 1.0), generator=torch.Generator().manual_seed(7))
    return net.eval(), save(net, card_of(net), tmp_path), tmp_path


def test_what_is_saved_is_loaded(saved):
    """Weights come back as half precision rounds them; the card knows its file."""
    net, card, folder = saved
    again, read = load("mine", folder)
    assert read == card == cards(folder)[0]
    assert not again.training
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())
    v = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert (again(v, 0.3) - net(v, 0.3)).abs().max() < 0.01
    assert card.parameters == sum(p.numel() for p in net.parameters())
    assert card.file_bytes == (folder / "mine.safetensors").stat().st_size < 2.3 * card.parameters + 4000


def test_a_network_warns_outside_the_range_of_its_card(saved):
    net, card = load("mine", saved[2])
    assert card.sigma_range == (0.1, 1.0)
    with pytest.warns(UserWarning, match=r"leaves the range \[0.1, 1\]"):
        net(torch.rand(1, 1, 28, 28), 0.01)


@pytest.mark.parametrize("problem", [PROBLEM, Problem("photo_crops", 5, "blur", "tikhonov")], ids=lambda p: p.data)
@pytest.mark.parametrize("boundary", ["circular", "zero"])
def test_a_card_rebuilds_its_formula(problem, boundary, tmp_path):
    c = problem.image_shape[0]
    net = LocalResNet(c, 5, width=8, boundary=boundary)
    formula = load("mine", save(net, card_of(net, problem=problem), tmp_path) and tmp_path)[1].estimator()
    assert (formula.patch_size, formula.boundary) == (5, boundary)
    assert torch.equal(formula.images, problem.images())
    assert repr(formula.pre_inverse) == repr(problem.B)
    y = torch.rand(2, *problem.image_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(problem.pre_inverted(y), formula.pre_inverted(y))


def test_global_networks_have_formulas_of_their_own_class():
    mlp, cnn = le.networks.GlobalMLP(1, (28, 28), width=4), le.networks.GlobalCNN(1, (28, 28), width=4)
    assert isinstance(card_of(mlp).estimator(), le.MMSE)
    assert isinstance(card_of(cnn).estimator(), le.EquivariantMMSE)


def test_damaged_weights_are_never_loaded(saved):
    folder = saved[2]
    path = folder / "mine.safetensors"
    content, card = path.read_bytes(), (folder / "mine.json").read_text()
    for damaged in (content[:-40], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"do not fit their card: SHA-256 .* take both anew"):
            load("mine", folder)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load("mine", folder)
    path.write_bytes(content)
    (folder / "mine.json").write_text(card[:-30])
    with pytest.raises(ValueError, match=r"mine.json is no card"):
        load("mine", folder)


def test_a_card_of_another_network_is_refused(saved):
    folder = saved[2]
    facts = json.loads((folder / "mine.json").read_text())
    facts["network"]["width"] = 17
    (folder / "mine.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="do not fit the network of their card"):
        load("mine", folder)
    (folder / "mine.json").write_text(json.dumps(facts | {"problem": facts["problem"] | {"operator": "magic"}}))
    with pytest.raises(ValueError, match=r"operator is one of 'denoising', 'inpainting', 'blur': got 'magic'"):
        load("mine", folder)


def test_an_unknown_name_is_answered_with_those_there_are(saved):
    with pytest.raises(ValueError, match=r"There is no network 'yours'\. There are: mine"):
        load("yours", saved[2])


def test_nothing_is_half_written(saved, monkeypatch):
    """A card that cannot be written leaves the one before, and no file beside it."""
    net, card, folder = saved
    monkeypatch.setattr("lemmse.pretrained.asdict", lambda card: {"sigma": object()})
    with pytest.raises(TypeError):
        save(net, replace(card, name="other"), folder)
    assert [each.name for each in cards(folder)] == ["mine"]
    assert not list(folder.glob("*.part"))


# ---- What ships -----------------------------------------------------------------------------------------------------


def test_shipped_networks_are_cells_of_the_grid_and_small():
    assert {card.name for card in SHIPPED} <= set(CELLS)
    for card in SHIPPED:
        assert card.file_bytes <= (GLOBAL_BYTES if card.patch_size is None else LOCAL_BYTES), card.name
    assert sum(card.file_bytes for card in SHIPPED) <= ALL_BYTES


@pytest.mark.parametrize("card", SHIPPED, ids=lambda card: card.name)
def test_a_shipped_network_is_whole_and_tells_all(card):
    net, found = load(card.name)
    assert found == card
    assert {"steps", "batch_size", "sigmas", "seed", "seconds", "learning_rate"} <= set(card.training)
    assert set(card.versions) == {"lemmse", "torch", "python"}
    assert set(card.psnr) == {"test", "train"}
    levels = {f"{sigma:g}" for sigma in tables.SIGMAS}
    assert all(set(card.psnr[split]) == levels for split in card.psnr)
    assert all(set(card.psnr_to_truth[split][who]) == levels for split in card.psnr for who in ("network", "formula"))
    cell = CELLS[card.name]
    assert (card.problem, card.training["seed"]) == (cell.problem, cell.seed)
    v = card.problem.pre_inverted(card.problem.physics.A(card.problem.images("test")[:2]))
    assert net(v, card.sigma_range[0]).isfinite().all()


def test_the_table_in_the_docs_is_of_what_ships():
    told = json.loads(tables.TABLES.with_suffix(".json").read_text())
    assert told["sigmas"] == list(tables.SIGMAS)
    assert set(told["networks"]) == {card.name for card in SHIPPED}
    for card in SHIPPED:
        for split, decibels in card.psnr.items():
            means = told["networks"][card.name][split]["psnr_network_formula"]["mean"]
            assert list(decibels.values()) == pytest.approx(means, abs=0.02), card.name


FIRST_OF_KIND = {(card.architecture, card.patch_size): card for card in reversed(SHIPPED) if card.patch_size}


@pytest.mark.parametrize("kind", FIRST_OF_KIND, ids=str)
def test_trained_networks_see_what_they_declare(kind):
    card = FIRST_OF_KIND[kind]
    check_receptive_field(load(card.name)[0], (card.problem.image_shape[0], 13, 15))


@pytest.mark.parametrize("card", [card for card in SHIPPED if card.patch_size == 5][:2], ids=lambda card: card.name)
def test_measured_decibels_are_those_of_shipped_weights(card):
    """The first noise level of the table, anew: the formula, the noise and the network are those of the card."""
    net, _ = load(card.name)
    sigma = tables.SIGMAS[0]
    generator = torch.Generator().manual_seed(tables.SEED)
    x = card.problem.images("test")[: tables.IMAGES]
    found = le.comparison.compare(net, card.estimator(), x, sigmas=sigma, generator=generator)
    assert found.psnr_network_formula.mean().item() == pytest.approx(card.psnr["test"][f"{sigma:g}"], abs=0.1)
