"""The script that trains what ships: names, sizes, and runs that share out the work."""

from dataclasses import replace

import pytest
import torch

import lemmse as le
import theory_vs_practice as tables
import train as script
from lemmse.networks import rebuild
from lemmse.pretrained import Problem
from test_pretrained import ALL_BYTES, GLOBAL_BYTES, LOCAL_BYTES

CELLS = script.grid() + script.curves()
HEADER = 5000
"""More bytes than what a file of weights holds beside its numbers."""

TINY = script.Cell(
    Problem("fashion_mnist", 4, "denoising"), "PatchMLP", {"patch_size": 3, "width": 8}, {"batch_size": 8}, "tiny"
)


@pytest.fixture
def scratch(tmp_path, monkeypatch, unchecked_shapes):
    """Let the scripts work in a folder of their own, and compare on few images: kept answers stand for an estimator."""
    for room in (script, tables):
        monkeypatch.setattr(room, "BUILD", tmp_path / "build")
        monkeypatch.setattr(room, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(tables, "IMAGES", 3)
    monkeypatch.setattr(tables, "SIGMAS", (0.2, 1.0))
    return tmp_path


def test_names_and_seeds_are_their_own():
    assert len({cell.name for cell in CELLS}) == len({cell.seed for cell in CELLS}) == len(CELLS)
    assert len(script.grid()) == 30 + 6 + 6


def test_all_networks_keep_the_limits_of_size():
    """Before any of them is trained: half precision, and a header."""
    sizes = []
    for cell in CELLS:
        config = {"architecture": cell.architecture, "channels": cell.problem.image_shape[0], **cell.arguments}
        size = 2 * sum(weights.numel() for weights in rebuild(config).state_dict().values()) + HEADER
        assert size <= (LOCAL_BYTES if "patch_size" in cell.arguments else GLOBAL_BYTES), cell.name
        sizes.append(size)
    assert sum(sizes) <= ALL_BYTES


def test_two_runs_never_take_the_same_cell(scratch):
    other = replace(TINY, note="other")
    with script.taken(TINY) as first, script.taken(TINY) as second, script.taken(other) as third:
        assert (first, second, third) == (True, False, True)
    with script.taken(TINY) as again:
        assert again


def test_a_cell_is_trained_compared_and_written(scratch):
    """Weights and card are what `load` takes, the decibels those of a comparison by hand, on rounded weights."""
    made = script.train_cell(TINY, 1 / 1000)
    assert not script.done(TINY)  # a share of the steps is only to try
    net, card = le.pretrained.load(TINY.name, scratch / "build" / "tried")
    assert card == made
    assert card.training["steps"] == 3
    assert card.training["seed"] == TINY.seed
    x = TINY.problem.images("test", 3)
    noise = torch.Generator().manual_seed(tables.SEED)
    found = le.comparison.compare(net, card.estimator(), x, sigmas=(0.2, 1.0), generator=noise)
    for told, name in (
        (card.psnr, "psnr_network_formula"),
        (card.psnr_to_truth, "psnr_network_truth"),
        (card.psnr_to_truth, "psnr_formula_truth"),
    ):
        told = told["test"] if told is card.psnr else told["test"][name.split("_")[1]]
        wanted = getattr(found, name).mean(1).tolist()
        assert [told["0.2"], told["1"]] == pytest.approx(wanted, abs=0.02)


def test_a_finished_cell_is_not_trained_again(scratch, monkeypatch):
    monkeypatch.setattr(script, "HOW", {"PatchMLP": {"steps": 2, "crop": 1}})
    card = script.train_cell(TINY, 1)
    assert script.done(TINY)
    monkeypatch.setattr(script, "grid", lambda: [TINY])
    monkeypatch.setattr(script, "curves", list)
    monkeypatch.setattr(script, "train_cell", lambda *_: pytest.fail("it is there already"))
    threads = torch.get_num_threads()
    script.main(["tiny"])
    torch.set_num_threads(threads)
    assert le.pretrained.cards(scratch / "weights") == [card]
