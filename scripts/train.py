"""Train the networks that ship with the package: ``python scripts/train.py`` trains those that are missing, in order.

    python scripts/train.py --list              what there is to train, and what is done
    python scripts/train.py fashion PatchMLP    those whose names contain all of these words
    python scripts/train.py --share 0.01        a hundredth of the steps, to try, into build/tried

A run that is killed goes on from its checkpoint in ``build/training``. Several at once share out the networks: a locked
file says which are taken, and each run computes in one thread, so that two of them do not fight over two cores. A
finished network is compared with its formula on fresh noise, on test and on training images, and its weights and its
card go to ``lemmse/weights``.
"""

import argparse
import fcntl
import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

import torch
from tqdm import tqdm

import lemmse as le
from lemmse._progress import silence
from lemmse.networks import Network, Preconditioning, rebuild
from lemmse.pretrained import Card, Problem, save
from lemmse.training import train
from theory_vs_practice import BUILD, WEIGHTS, comparisons, measured

CHECKPOINT_EVERY = 500

EVERYWHERE = {"sigmas": (0.04, 1.1), "learning_rate": 1e-2, "autocast": "bfloat16"}
"""How all networks are trained, but for what differs below."""

HOW = {
    "PatchMLP": {"crop": 1, "batch_size": 4096, "steps": 3000},
    "LocalResNet": {"crop": 4, "batch_size": 256, "steps": 3000},
    "LocalUNet": {"crop": 4, "batch_size": 256, "steps": 3000},
    "GlobalMLP": {"batch_size": 512, "steps": 6000, "learning_rate": 3e-3},
    "GlobalCNN": {"batch_size": 16, "steps": 3000, "learning_rate": 3e-3},
}
"""How networks of each architecture are trained: about as many pixels a step, in about the same time."""

LOCAL = ("PatchMLP", "LocalResNet", "LocalUNet")

TASKS = (
    ("denoising", "identity"),
    ("inpainting", "identity"),
    ("inpainting", "pseudo-inverse"),
    ("blur", "identity"),
    ("blur", "tikhonov"),
)
"""Operators and pre-inverses of the grid."""


@dataclass(frozen=True)
class Cell:
    """A network to be trained: its problem, its architecture and arguments, and what differs in its training."""

    problem: Problem
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        """Return what its files are called."""
        problem, size = self.problem, self.arguments.get("patch_size")
        parts = (problem.data, problem.task, self.architecture, f"p{size}" if size else "", self.note)
        return "-".join(part for part in parts if part)

    @property
    def seed(self) -> int:
        """Return the seed of its weights and of all that its training draws: its name fixes it."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4])


LARGE = {
    "PatchMLP": ({"patch_size": 11, "width": 112}, {}),
    "LocalResNet": ({"patch_size": 11, "width": 46}, {"crop": 8, "batch_size": 64}),
    "LocalUNet": ({"patch_size": 11, "width": 30}, {"crop": 8, "batch_size": 64}),
}
"""Arguments and training of networks with large windows: no more weights, and crops that share what they compute."""


def grid() -> list[Cell]:
    """Return all cells of the table, in the order in which they are trained."""
    cells = [
        Cell(Problem(data, 1000, *task), architecture, {"patch_size": 5})
        for data in ("fashion_mnist", "photo_crops")
        for task in TASKS
        for architecture in LOCAL
    ]
    for operator in ("denoising", "inpainting"):
        problem, whole = Problem("fashion_mnist", 1000, operator), {"image_size": [28, 28]}
        cells.append(Cell(problem, "GlobalMLP", whole))
        cells.append(Cell(problem, "GlobalMLP", whole, {"shifted": True}, "shifted"))
        cells.append(Cell(problem, "GlobalCNN", whole))
    return cells + [
        Cell(Problem(data, 100, "denoising"), architecture, *LARGE[architecture])
        for data in ("fashion_mnist", "photo_crops")
        for architecture in LOCAL
    ]


def curves() -> list[Cell]:
    """Return the networks beside the grid: fewer images, other windows, other seeds, and larger photographs."""

    def beside(count: int, patch_size: int, note: str, data: str = "fashion_mnist") -> Cell:
        facts = LARGE["PatchMLP"] if patch_size == 11 else ({"patch_size": patch_size},)
        return Cell(Problem(data, count, "denoising"), "PatchMLP", *facts, note=note)

    counts = [beside(count, 5, f"D{count}") for count in (10, 30, 100, 300)]
    seeds = [beside(1000, 5, f"seed{seed}") for seed in (1, 2)]
    windows = [beside(1000, 3, ""), beside(1000, 7, ""), beside(1000, 11, "D1000")]
    return [*counts, *windows, *seeds, beside(1000, 11, "D1000", "photo_crops"), beside(200, 11, "", "photo_crops_64")]


class Result(NamedTuple):
    """A trained network and the seconds that its steps took."""

    net: Network
    seconds: float


def train_cell(cell: Cell, share: float) -> Card:
    """Train the network of a cell, or go on with it, and return its card, written beside its weights."""
    how = {**EVERYWHERE, **HOW[cell.architecture], **cell.training}
    how["steps"] = max(1, round(how["steps"] * share))
    net, seconds = _trained(cell, how)
    training = {**how, "seed": cell.seed, "seconds": round(seconds), "threads": torch.get_num_threads()}
    versions = {"lemmse": le.__version__, "torch": torch.__version__, "python": platform.python_version()}
    card = Card(cell.name, cell.problem, net.config, 0, training, versions)
    folder = WEIGHTS if share == 1 else BUILD / "tried"
    card = save(net, card, folder)
    shipped, card = le.pretrained.load(card.name, folder)  # what is compared are the weights as they were rounded
    return save(shipped, measured(card, comparisons(shipped, card)), folder)


def _trained(cell: Cell, how: dict[str, Any]) -> Result:
    """Return the network of a cell, trained; its checkpoint goes with it at last."""
    problem, options = cell.problem, {**how, "autocast": getattr(torch, how["autocast"] or "", None)}
    images = problem.images()
    scales = Preconditioning.of(images, problem.physics, problem.B)
    config = {"architecture": cell.architecture, "channels": images.shape[1], **cell.arguments}
    net = rebuild({**config, "preconditioning": scales}, torch.Generator().manual_seed(cell.seed))
    path = BUILD / "training" / f"{cell.name}-{how['steps']}.safetensors"
    generator = torch.Generator().manual_seed(cell.seed + 1)
    options |= {"pre_inverse": problem.B, "checkpoint": path, "checkpoint_every": CHECKPOINT_EVERY}
    seconds = 0.0
    with tqdm(total=how["steps"], desc=cell.name, mininterval=5) as bar, silence():
        for record in train(net, images, problem.physics, generator=generator, **options):
            bar.update(record.step + 1 - bar.n)
            bar.set_postfix(loss=f"{record.loss:.3f}", refresh=False)
            seconds = record.seconds
    return Result(net, seconds)


# ---- Several runs at once -------------------------------------------------------------------------------------------


@contextmanager
def taken(cell: Cell) -> Iterator[bool]:
    """Lock a cell for the while, and say whether that could be done: another process may hold it."""
    path = BUILD / "training" / f"{cell.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yield _locked(file)


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def done(cell: Cell) -> bool:
    """Return whether the network of a cell is shipped, with what was measured on it."""
    return any(card.name == cell.name and card.psnr for card in le.pretrained.cards(WEIGHTS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("words", nargs="*", help="train those whose names contain all of these")
    parser.add_argument("--list", action="store_true", help="say what there is, and train nothing")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps to take, to try")
    parser.add_argument("--threads", type=int, default=1, help="of this run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    WEIGHTS.mkdir(exist_ok=True)
    for cell in grid() + curves():
        if not all(word in cell.name for word in options.words):
            continue
        if options.list:
            print("done   " if done(cell) else "missing", cell.name)
            continue
        with taken(cell) as mine:
            if mine and (options.share != 1 or not done(cell)):
                card = train_cell(cell, options.share)
                print(card.name, card.training["seconds"], "s", card.psnr["test"], flush=True)


if __name__ == "__main__":
    main()
