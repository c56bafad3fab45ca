"""`make bench`: what a table says, what a fresh process measures, and that the baselines compute the same thing."""

import pickle
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch

import lemmse as le
from benchmark_cases import Numbers, counts, fails, holds_64_megabytes_for_a_moment, holds_nothing, right_numbers
from benchmarks import calls, local, peers, problems, report, settings, sweep
from benchmarks.__main__ import TOPICS
from benchmarks.equivariant import loop_over_shifts, product_with_all_shifts
from benchmarks.precision import SIGMAS, Line, PrecisionTable, decibels, identity
from benchmarks.problems import Scene, denoising
from benchmarks.table import (
    Bounded,
    Case,
    Claim,
    Effort,
    Group,
    Row,
    Table,
    Work,
    alike,
    at_least,
    at_most,
    certified,
    machine,
    measure,
)

EFFORT = Effort(repeats=4, threads=1)


def test_every_case_is_measured_in_a_process_of_its_own():
    little = at_most("megabytes", 40)
    cases = (
        Case("nothing", holds_nothing, (little,), scale=10),
        Case("freed at once", holds_64_megabytes_for_a_moment, (little,), same_answer=0.01),
    )
    table = measure(Group(Numbers, cases), EFFORT)
    nothing, freed = table.rows
    assert table.title == "three numbers"
    assert len(nothing.runs) == len(freed.runs) == 4
    assert nothing.ratio == 1
    assert freed.ratio == pytest.approx(freed.seconds / nothing.seconds)
    assert freed.difference == pytest.approx(0.001, rel=1e-3)
    assert nothing.megabytes < 40
    assert 60 < freed.megabytes < 110
    assert freed.resident > freed.megabytes + 50  # with PyTorch
    assert [(v.title, v.target, v.met) for v in table.verdicts] == [
        ("three numbers", "nothing: ≤ 40 MB", True),
        ("three numbers", "freed at once: ≤ 40 MB", False),
    ]
    assert table.verdicts[1].measured == f"{freed.megabytes:.3g} MB"


def test_cases_of_one_object_share_its_process_and_have_their_own_truth():
    """What is missing is named with its targets, what fails though it is there too, and neither stops the others.

    A group that is for memory runs each once.
    """
    cases = (
        Case("one", counts, asked=1, same_answer=0.1),
        Case("ten", counts, (at_least("speedup", 0, "one"),), asked=10, same_answer=0.1),
        Case("a peer", counts, (at_most("ratio", 1, "one"),), needs=("no_such_module", "torch")),
        Case("another", fails, needs=("torch",)),
    )
    table = measure(Group(Numbers, cases, truth=right_numbers, once=True), EFFORT)
    assert [len(row.runs) for row in table.rows] == [1, 1]
    assert [row.label for row in table.rows] == ["one", "ten"]
    assert [row.difference for row in table.rows] == pytest.approx([0.01, 0.02], rel=1e-3)
    assert {row.set_up for row in table.rows} == {table.rows[0].set_up}
    assert [(case.label, reason) for case, reason in table.absent] == [
        ("a peer", "no_such_module is not installed"),
        ("another", "it failed; see its traceback"),
    ]
    assert "Not measured: a peer: no_such_module is not installed." in str(table)
    assert "Not measured: another: it failed" in table.markdown()
    assert [(v.mark, v.measured) for v in table.verdicts][1] == ("not measured", "–")


def test_targets_over_other_rows_and_claims_about_several():
    rows = (
        Row("a", 0, (3.0, 1.0, 2.0), 1.0, None, None),
        Row("b", 0, (8.0,), 4.0, None, None),
        Row("c", 0, (2.2,), 1.1, None, None, (at_least("speedup", 3, "b"), at_most("ratio", 1.15, "a", "b"))),
        Row("d", 0, (1.0,), 0.5, None, None, (at_most("ratio", 2, "nothing"), at_least("certified", 0.9)), None),
    )
    total = Claim("a + b ÷ c", lambda times: (times["a"] + times["b"]) / times["c"], 4)
    table = Table("A problem", rows, claims=(total,))
    said = [(v.mark, v.target, v.measured) for v in table.verdicts]
    assert said == [
        ("met", "c: ≥ 3 × as fast as b", "3.64 ×"),
        ("met", "c: ≤ 1.15 × the time of a or b", "1.1 ×"),
        ("not measured", "d: ≤ 2 × the time of nothing", "–"),
        ("not measured", "d: ≥ 90% certified", "–"),
        ("MISSED", "a + b ÷ c ≤ 4", "4.55"),
    ]


def test_a_long_warming_up_counts_as_a_run_if_it_was_one():
    assert alike(20.0, [19.0, 18.5])
    assert not alike(20.0, [1.0, 2.0]), "the first run compiled"
    assert not alike(1.0, [1.0, 1.0]), "a short run is warmed up for"
    assert not alike(20.0, [])


def test_a_certified_answer_is_held_against_its_bounds():
    mean, bound = torch.tensor([[0.5], [0.25], [0.75], [1.0]]), torch.tensor([[0.25], [0.0], [0.5], [0.1]])
    figures = certified(Bounded(mean, bound), np.array([[0.375], [0.26], [0.75]]))
    assert figures == {"certified": 0.75, "error / bound": 0.5, "error - bound": pytest.approx(0.01)}
    exact = certified(Bounded(mean, torch.zeros(4, 1)), mean.numpy())
    assert exact == {"certified": 0, "error - bound": 0}


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
        measure(Group(Numbers, (Case("failing", fails),)), EFFORT)
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
    assert [verdict.mark for verdict in table.verdicts].count("MISSED") == 3


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


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("topic", [topic for topic in TOPICS if topic != "precision"])
def test_every_topic_can_be_sent_to_another_process(topic, quick):
    for group in import_module(f"benchmarks.{topic}").groups(quick):
        labels = [case.label for case in group.cases]
        assert len(set(labels)) == len(labels)
        assert group.truth or not group.cases[0].same_answer
        others = {label for case in group.cases for target in case.targets for label in target.over}
        assert others <= set(labels)
        for claim in group.claims:
            assert claim.value(dict.fromkeys(labels, 1.0)) >= 0
        sent = [(case.prepare, case.asked) for case in group.cases]
        pickle.loads(pickle.dumps((group.load, group.truth, sent)))


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


@pytest.fixture
def problem(scene):
    return settings.Problem(scene, 0.3, patch_size=3)


@pytest.mark.parametrize("rows", [35, 4])
@pytest.mark.parametrize("atoms", [30, 10_000])
@pytest.mark.parametrize("peer", [peers.dense, peers.attention])
def test_peers_compute_the_local_estimate(problem, peer, atoms, rows, monkeypatch):
    for name, value in (("PRODUCT_ATOMS", atoms), ("ATTENTION_ATOMS", atoms), ("DENSE_PAIRS", 840)):
        monkeypatch.setattr(peers, name, value)
    expected = settings.ours(problem)()
    assert expected.shape == (35, 2)
    torch.testing.assert_close(peer(problem, rows=rows)(), expected[:rows], atol=1e-5, rtol=0)
    assert peers.bare_products(problem, rows=rows)() is None


def test_the_truth_is_that_of_float64_in_the_same_order(problem):
    expected = settings.ours(problem)()
    torch.testing.assert_close(settings.exact_rows(problem)().float(), expected, atol=1e-5, rtol=0)
    both = settings.exact_rows(problem, sigmas=(0.1, 0.3))()
    torch.testing.assert_close(both[0.3].float(), expected, atol=1e-5, rtol=0)
    blurred = {"physics": sweep.blur, "pre_inverse": le.PseudoInverse}
    problem = settings.Problem(Scene(*(torch.rand(n, 1, 16, 16) for n in (3, 1)), name="random numbers"), 0.3, 5)
    exact = settings.exact_means(problem, **blurred, sigmas=(0.5,))()[0.5]
    assert exact.dtype == torch.float64
    torch.testing.assert_close(settings.ours(problem, **blurred)(0.5).double(), exact, atol=1e-3, rtol=0)


def test_without_numba_the_answer_comes_by_products(problem):
    pytest.importorskip("numba")
    assert settings.estimator(problem).plan.kernel == "fused"
    with settings.without_numba():
        assert settings.estimator(problem).plan.kernel == "products"
    assert settings.estimator(problem).plan.kernel == "fused"
    torch.testing.assert_close(settings.ours(problem, numba=False)(), settings.ours(problem)(), atol=1e-5, rtol=0)


def test_with_a_tolerance_an_answer_comes_with_its_bounds(problem):
    found = settings.ours(problem, tolerance=1e-3)(0.2)
    assert found.mean.shape == found.bound.shape == (35, 2)
    torch.testing.assert_close(found.mean, settings.ours(problem)(0.2), atol=1e-3, rtol=0)


def test_the_operators_of_real_size_are_made_from_the_problem(problem):
    matrix = settings.ours(problem, pre_inverse=partial(local.random_matrix, shape=(2, 5, 7)))()
    holes = settings.ours(problem, physics=local.random_holes, pre_inverse=le.PseudoInverse)()
    for answer in (matrix, holes):
        assert answer.shape == (35, 2)
        assert not torch.allclose(answer, settings.ours(problem)(), atol=1e-2)


def test_calls_are_taken_apart(problem):
    """Several sigmas that cost distances once and a weighting each keep their claim; an estimator is made anew."""
    assert calls.sigmas_of_one_y(problem)(calls.SIGMAS) is None
    alone = {f"σ = {sigma:g} alone": 3.0 for sigma in calls.SIGMAS}
    times = alone | {calls.DISTANCES: 2.0, calls.TOGETHER: 2.0 + len(calls.SIGMAS)}
    assert calls.over_parts(times) == pytest.approx(1)
    assert calls.over_one(times) == pytest.approx(10 / 3)
    anew = calls.Anew(problem)
    for step in calls.STEPS:
        anew(step)
    before = anew.made
    anew("constructor")
    assert anew.made is not before
    assert calls.from_first_to_second({calls.FIRST: 1.0, calls.SECOND: 2.0}) == 0.5


@pytest.fixture
def told():
    """Return a report of two settings, one of whose peers is missing."""
    found = report.Report("A machine")
    for size, keops in ((28, True), (32, False)):
        rows = [Row(label, 0.1, (0.1 * (i + 1),), 1.0, None, 1e-6) for i, label in enumerate(report.PATHS)]
        rows[0] = Row(peers.OURS, 0.1, (0.1,), 1.0, None, 1e-6, (at_least("speedup", 3, peers.KEOPS),))
        rows = [row for row in rows if keops or row.label != peers.KEOPS]
        title = f"D = 20 images of {size}×{size}×1 (Fashion-MNIST), float32, σ = 0.1, P = 5"
        found.add("peers", Table(title, tuple(rows), Work(1e7, "pairs")), seconds=90)
    found.add(
        "calls", Table("Two calls", (Row("call", 0.1, (1.0,), 1.0, 2.0, None, (at_most("megabytes", 1),)),)), seconds=6
    )
    return found


def test_a_missed_target_says_why_where_that_is_known():
    """Where it is met, there is nothing to explain."""
    row = Row("call", 0.1, (1.0,), 1.0, 2.0, None, tuple(at_most("megabytes", mb, why="It is large.") for mb in (1, 3)))
    claims = tuple(Claim("twice", lambda times: 2 * times["call"], bound, why="Twice is more.") for bound in (1, 3))
    missed, met, claimed, kept = Table("Calls", (row,), claims=claims).verdicts
    assert (missed.told, met.told) == ("call: ≤ 1 MB. It is large.", "call: ≤ 3 MB")
    assert (claimed.told, kept.told) == ("twice ≤ 1. Twice is more.", "twice ≤ 3")


def test_the_closing_list_names_every_target(told):
    for markdown in (False, True):
        text = told.closing(markdown)
        assert "Targets: 1 met, 1 MISSED, 1 not measured" in text
        lines = [line for line in text.splitlines() if "LocalEquivariantMMSE: ≥ 3 × as fast as KeOps" in line]
        assert [("6 ×" in line, "not measured" in line) for line in lines] == [(True, False), (False, True)]
        assert ("| **MISSED** | call: ≤ 1 MB | 2 MB |" in text) == markdown


def test_the_results_file_makes_the_section_and_the_picture_of_the_readme(told, tmp_path):
    results, readme, picture = (tmp_path / name for name in ("results.md", "README.md", "speed.svg"))
    told.write(results)
    readme.write_text(f"Before\n{report.START}\nold\n{report.END}\nafter\n")
    report.publish(results, readme, picture)
    assert "in 3.1 minutes in all: peers 3.0, calls 0.1." in results.read_text()
    glance = report.Glance.read(results.read_text())
    assert glance.machine == "A machine"
    assert glance.speeds["28×28×1, P = 5, D = 20"]["ours exact"] == 100
    assert glance.speeds["32×32×1, P = 5, D = 20"]["KeOps"] is None
    assert readme.read_text() == f"Before\n{report.section(glance)}\nafter\n"
    assert "| 28×28×1, P = 5, D = 20 | 100 | 50 |" in readme.read_text()
    assert "28×28×1, P = 5, D = 20: ours exact 100, ours within 0.001 50" in glance.alt
    assert glance.alt in picture.read_text()
    assert set(report.MARKERS) == set(report.PATHS.values())
    assert len({(shape, filled) for shape, _, filled, _ in report.MARKERS.values()}) == len(report.MARKERS)


def test_the_readme_says_what_the_results_file_says():
    text = report.README.read_text()
    held = text[text.index(report.START) : text.index(report.END) + len(report.END)]
    if not report.RESULTS.exists():
        assert held == f"{report.START}\n{report.END}"
        return
    assert held == report.section(report.Glance.read(report.RESULTS.read_text()))
    assert report.PICTURE.exists()


def test_single_and_double_precision_differ_by_rounding(scene):
    found = decibels(scene, Line("B = Id", 3, identity))
    assert len(found) == len(SIGMAS)
    assert all(80 < value < 200 for value in found)


def test_a_table_of_precision_says_which_targets_are_missed():
    held, reported = Line("B = Id", 3, identity, held=True), Line("another", 3, identity)
    values = (49.0, 61.0, 60.0, 60.0, 60.0)
    table = PrecisionTable("Images", (held, reported), (values, values))
    missed = [verdict for verdict in table.verdicts if not verdict.met]
    assert len(table.verdicts) == len(SIGMAS)
    assert [(v.target, v.measured) for v in missed] == [("B = Id, P = 3, σ = 0.01: ≥ 50 dB", "49.0 dB")]
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
