"""`make bench`: what a table says, what a fresh process measures, and that the baselines compute the same thing."""

import pickle
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch

import lemmse as le
from benchmark_cases import Numbers, fails, holds_64_megabytes_for_a_moment, holds_nothing
from benchmarks import local, problems
from benchmarks.__main__ import TOPICS
from benchmarks.equivariant import loop_over_shifts, product_with_all_shifts
from benchmarks.precision import SIGMAS, Line, PrecisionTable, decibels, identity
from benchmarks.problems import Scene, denoising
from benchmarks.table import Case, Group, Row, Table, Work, at_least, at_most, machine, measure


def test_every_case_is_measured_in_a_process_of_its_own():
    little = at_most("megabytes", 40)
    cases = (
        Case("nothing", holds_nothing, (little,), scale=10),
        Case("freed at once", holds_64_megabytes_for_a_moment, (little,), same_answer=0.01),
    )
    table = measure(Group(Numbers, cases), repeats=4, threads=1)
    nothing, freed = table.rows
    assert table.title == "three numbers"
    assert len(nothing.runs) == len(freed.runs) == 4
    assert nothing.ratio == 1
    assert freed.ratio == pytest.approx(freed.seconds / nothing.seconds)
    assert freed.difference == pytest.approx(0.001, rel=1e-3)
    assert nothing.megabytes < 40
    assert 60 < freed.megabytes < 110
    assert table.missed == ["three numbers: freed at once: ≤ 40 MB"]


def test_an_answer_that_differs_from_the_reference_raises():
    case = Case("wrong", holds_nothing, same_answer=1e-6)
    right = torch.tensor([1.0, 2.0]).numpy()
    assert case.difference(right, right) == 0
    with pytest.raises(RuntimeError, match=r"'wrong' differs from the reference by 1\.0e-03, not 1e-06"):
        case.difference(torch.tensor([1.0, 2.001]).numpy(), right)
    with pytest.raises(RuntimeError, match="differs from the reference by nan"):
        case.difference(torch.tensor([1.0, torch.nan]).numpy(), right)
    with pytest.raises(RuntimeError, match="or the reference returned no tensor to compare"):
        case.difference(None, right)


def test_a_case_that_fails_is_named(capfd):
    with pytest.raises(RuntimeError, match="'failing' failed"):
        measure(Group(Numbers, (Case("failing", fails),)), repeats=1, threads=1)
    assert "ValueError: no such thing" in capfd.readouterr().err


def test_a_table_says_median_spread_ratio_memory_and_targets():
    targets = (at_most("seconds", 1), at_least("ratio", 5), at_most("total", 1.5), at_most("megabytes", 300))
    slow = Row("slow", 0.5, (3.0, 0.25, 1.25), 12.5, 301.2, 2e-4, targets)
    unknown = Row("memory unknown", 0.0004, (0.0123,), 1.0, None, None, targets[-1:])
    table = Table("A problem", (slow, unknown))
    said = "≤ 1 s: MISSED; ≥ 5 ×: met; ≤ 1.5 s with set-up: MISSED; ≤ 300 MB: MISSED"
    values = ["slow", "500 ms", "1.25 s", "250 ms – 3.00 s", "3", "12.50 ×", "301", "2e-04", said]
    title, header, *lines = str(table).splitlines()
    assert title == "A problem"
    assert [part.strip() for part in lines[0].split("   ") if part.strip()] == values
    assert [part.strip() for part in lines[1].split("   ") if part.strip()][-3:] == ["–", "–", "≤ 300 MB: not measured"]
    assert len({line.index(target) for line, target in ((header, "targets"), (lines[0], said))}) == 1
    markdown = table.markdown().splitlines()
    assert markdown[4] == "| " + " | ".join(values) + " |"
    assert {line.count("|") for line in markdown[2:]} == {10}
    assert len(table.missed) == 3


def test_a_table_says_how_much_is_done_in_a_second():
    table = Table("A problem", (Row("case", 0.1, (0.5, 0.25, 0.5), 2.0, None, None),), Work(1e8, "pairs"))
    header, line = (
        [part.strip() for part in text.split("   ") if part.strip()] for text in str(table).splitlines()[1:]
    )
    assert line[header.index("pairs/s")] == "200 M"
    assert line[header.index("ratio")] == "2.00 ×"
    assert "| 2.00 × | 200 M |" in table.markdown()
    _, *lines = table.markdown().splitlines()[1:]
    assert {text.count("|") for text in lines} == {11}


def test_the_machine_is_named():
    assert "3 threads of PyTorch" in machine(3)
    assert f"PyTorch {torch.__version__}" in machine()


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if topic != "precision"])
def test_every_topic_can_be_sent_to_another_process(topic):
    for group in import_module(f"benchmarks.{topic}").GROUPS:
        labels = [case.label for case in group.cases]
        assert len(set(labels)) == len(labels)
        assert not group.cases[0].same_answer
        pickle.loads(pickle.dumps(group))


@pytest.mark.parametrize("baseline", [loop_over_shifts, product_with_all_shifts])
def test_the_baselines_compute_the_equivariant_estimate(generator, baseline):
    images = torch.rand(5, 2, 4, 7, generator=generator)
    problem = denoising(images, torch.rand(1, 2, 4, 7, generator=generator), sigma=1.0, name="random numbers")
    expected = le.EquivariantMMSE(images, le.Denoising())(problem.y, sigma=problem.sigma).mean
    torch.testing.assert_close(baseline(problem)(), expected, atol=1e-5, rtol=0)


def test_a_loop_over_some_shifts_gives_no_answer(generator):
    images = torch.rand(5, 2, 4, 7, generator=generator)
    assert loop_over_shifts(denoising(images, images[:1], 1.0, "random numbers"), shifts=3)() is None


@pytest.fixture
def scene(generator):
    return Scene(*(torch.rand(n, 2, 5, 7, generator=generator) for n in (6, 1)), name="random numbers")


@pytest.mark.parametrize("baseline", [local.streamed_loop, local.attention])
@pytest.mark.parametrize("atoms", [35, 70, 10_000])
def test_the_baselines_compute_the_local_estimate(scene, baseline, atoms, monkeypatch):
    monkeypatch.setattr(local, "LOOP_ATOMS", atoms)
    monkeypatch.setattr(local, "LOOP_QUERIES", 16)
    monkeypatch.setattr(local, "ATTENTION_ATOMS", atoms)
    problem = local.Problem(scene, 0.3, patch_size=3)
    expected = local.ours(problem)()
    assert expected.shape == scene.x.shape
    torch.testing.assert_close(baseline(problem)(), expected, atol=1e-5, rtol=0)


def test_the_operators_of_real_size_are_made_from_the_problem(scene):
    problem = local.Problem(scene, 0.3, patch_size=3)
    matrix = local.ours(problem, pre_inverse=partial(local.random_matrix, shape=(2, 5, 7)))()
    holes = local.ours(problem, physics=local.random_holes, pre_inverse=le.PseudoInverse)()
    for answer in (matrix, holes):
        assert answer.shape == scene.x.shape
        assert not torch.allclose(answer, local.ours(problem)(), atol=1e-2)
    assert local.several_sigmas(problem, images=3)() is None


def test_single_and_double_precision_differ_by_rounding(scene):
    found = decibels(scene, Line("B = Id", 3, identity))
    assert len(found) == len(SIGMAS)
    assert all(80 < value < 200 for value in found)


def test_a_table_of_precision_says_which_targets_are_missed():
    held, reported = Line("B = Id", 3, identity, held=True), Line("another", 3, identity)
    values = (49.0, 61.0, 60.0, 60.0, 60.0)
    table = PrecisionTable("Images", (held, reported), (values, values))
    assert len(table.missed) == 1
    assert "B = Id, P = 3, σ = 0.01: 49.0 dB, not ≥ 50" in table.missed[0]
    title, header, first, second = str(table).splitlines()
    assert title.startswith("Images: PSNR")
    assert header.split()[:2] == ["B", "P"]
    assert first.endswith("MISSED")
    assert second.endswith("reported")
    assert "| another | 3 | 49 | 61 |" in table.markdown()


def test_colours_are_those_of_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("LEMMSE_DATA", raising=False)
    assert problems.colours(2).name == "crops of 4 photographs"
    images = np.arange(4 * 32 * 32 * 3, dtype=np.int64).reshape(4, 32, 32, 3) % 256
    np.savez(tmp_path / problems.CIFAR, images=images.astype(np.uint8))
    monkeypatch.setenv("LEMMSE_DATA", str(tmp_path))
    found = problems.colours(2)
    assert str(found) == "D = 2 images of 32×32×3 (CIFAR-10)"
    assert found.x[0, 1, 2, 3] == torch.tensor(images[2, 2, 3, 1] / 255, dtype=torch.float32)
    assert problems.colours(2, size=16).name == "crops of 4 photographs"
