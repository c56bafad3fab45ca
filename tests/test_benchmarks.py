"""`make bench`: what a table says, what a fresh process measures, and that the baselines compute the same thing."""

import pickle
from importlib import import_module

import pytest
import torch

import lemmse as le
from benchmark_cases import Numbers, fails, holds_64_megabytes_for_a_moment, holds_nothing
from benchmarks.__main__ import TOPICS
from benchmarks.equivariant import loop_over_shifts, product_with_all_shifts
from benchmarks.problems import denoising
from benchmarks.table import Case, Group, Row, Table, at_least, at_most, machine, measure


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


def test_the_machine_is_named():
    assert "3 threads of PyTorch" in machine(3)
    assert f"PyTorch {torch.__version__}" in machine()


@pytest.mark.parametrize("topic", TOPICS)
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
