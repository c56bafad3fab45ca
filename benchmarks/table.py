"""Tables of measured time and memory: how cases are run, and how their numbers are laid out.

A topic is a module with a function ``groups(quick)``, of things that can be ``measured``. A group is a problem and its
cases, the first of which is the reference that the others are divided by. Every case lives in a fresh process of its
own, so that none inherits memory or warm caches from another, and the cases of a group take turns, run by run, so that
a machine with other work slows all of them alike: ratios within a group travel better, between runs and between
machines, than seconds do. Cases that ask several things of one object share its process.

What crosses to another process is pickled: ``load`` and ``prepare`` are functions of a module, or partials of them.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Bounded",
    "Case",
    "Claim",
    "Effort",
    "Group",
    "Row",
    "Table",
    "Target",
    "Verdict",
    "Work",
    "aligned",
    "at_least",
    "at_most",
    "in_markdown",
    "machine",
    "measure",
]


@dataclass(frozen=True)
class Effort:
    """How much is run: every case ``repeats`` times, fewer once it has taken ``patience`` seconds, ``fewest`` at least.

    ``threads`` of PyTorch, ``None`` for its own choice.
    """

    repeats: int = 11
    patience: float = 2.0
    fewest: int = 3
    threads: int | None = None


WARM, ALIKE = 3.0, 1.1
"""A warming-up that took so many seconds counts as a run if it took at most so much longer than the slowest other."""

THOROUGH, QUICK = Effort(), Effort(repeats=2, patience=1.0, fewest=1)

_UNIT = {
    "total": " s with set-up",
    "seconds": " s",
    "ratio": " ×",
    "speedup": " ×",
    "megabytes": " MB",
    "resident": " MB in all",
}
_SHOWN = {"certified": "{:.0%}", "error / bound": "{:.2g}", "error - bound": "{:.0e}"}
"""How figures beside time and memory are written."""


@dataclass(frozen=True)
class Target:
    """A bound that a quantity of a row has to keep.

    ``total`` is the time of set-up and one run, ``resident`` the largest memory of the process, with all that it
    loaded. ``over`` names other rows: ``ratio`` is then the time over that of the fastest of them, and ``speedup`` the
    inverse. A ``goal`` is hoped for, beyond what is asked. ``why`` is the reason where it is missed, if that is known.
    """

    quantity: str
    bound: float
    least: bool
    over: tuple[str, ...] = ()
    goal: bool = False
    why: str = ""

    def value(self, row: "Row", rows: "tuple[Row, ...]" = ()) -> float | None:
        """Return what was measured, ``None`` where it could not be."""
        if not self.over:
            return row.figures.get(self.quantity, getattr(row, self.quantity, None))
        others = [other.seconds for other in rows if other.label in self.over]
        if not others:
            return None
        ratio = row.seconds / min(others)
        return ratio if self.quantity == "ratio" else 1 / ratio

    def met(self, row: "Row", rows: "tuple[Row, ...]" = ()) -> bool | None:
        """Return whether the row keeps the bound, ``None`` where the quantity could not be measured."""
        return _keeps(self.value(row, rows), self.bound, self.least)

    def __str__(self) -> str:
        bound = _figure(self.quantity, self.bound)
        named = f" {self.quantity}" if self.quantity in _SHOWN else ""
        others = " or ".join(label.removeprefix("... ") for label in self.over)
        than = f" {'the time of' if self.quantity == 'ratio' else 'as fast as'} {others}" if self.over else ""
        return f"{'goal: ' if self.goal else ''}{'≥' if self.least else '≤'} {bound}{named}{than}"


def at_least(quantity: str, bound: float, *over: str, why: str = "") -> Target:
    """Return the target that a quantity is at least so large."""
    return Target(quantity, bound, True, over, why=why)


def at_most(quantity: str, bound: float, *over: str, why: str = "") -> Target:
    """Return the target that a quantity is at most so large."""
    return Target(quantity, bound, False, over, why=why)


@dataclass(frozen=True)
class Claim:
    """A bound on what follows from the median times of several rows: ``value`` computes it from times by label.

    ``why`` as for a ``Target``.
    """

    text: str
    value: Callable[[dict[str, float]], float]
    bound: float
    least: bool = False
    why: str = ""


class Verdict(NamedTuple):
    """A target as it came out: ``measured`` is the figure as text, ``met`` is ``None`` where nothing was measured."""

    title: str
    target: str
    measured: str
    met: bool | None
    why: str = ""

    @property
    def told(self) -> str:
        """Return the target, and why it is missed, where it is and that is known."""
        return f"{self.target}. {self.why}" if self.met is False and self.why else self.target

    @property
    def mark(self) -> str:
        """Return the verdict in words."""
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]


class Bounded(NamedTuple):
    """An answer, a row per pixel, and how far each entry may be from the truth; 0 where it is exact."""

    mean: Tensor
    bound: Tensor


@dataclass(frozen=True)
class Case:
    """A line of a table: ``prepare(problem)`` does what is done once and returns the function that is timed.

    That function is called with ``asked``, unless it is ``None``; cases that have one, and the same ``prepare``, share
    a process. ``scale`` multiplies the time of a run: 1/b for b queries at once, n/m where m of n equal parts are run.
    Where a run returns a tensor and ``same_answer`` is set, it has to agree with the group's truth, or else with the
    reference's answer, to so much, entry by entry. ``needs`` are modules without which the case is named as missing.
    """

    label: str
    prepare: Callable[[Any], Callable[..., Any]]
    targets: tuple[Target, ...] = ()
    scale: float = 1.0
    same_answer: float | None = None
    asked: Any = None
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Return the modules that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def difference(self, answer: Any, reference: Any) -> float | None:
        """Return how far an answer is from the reference's, ``None`` where nothing is compared; raise if too far.

        Of answers with a row per pixel, as many rows are compared as both have.
        """
        if self.same_answer is None:
            return None
        if answer is not None and reference is not None and reference.ndim == 2 == answer.ndim:
            answer, reference = answer[: len(reference)], reference[: len(answer)]
        if answer is None or reference is None or answer.shape != reference.shape:
            raise RuntimeError(f"{self.label!r} or the reference returned no tensor to compare, or another shape.")
        found = float(abs(answer - reference).max())
        if not found <= self.same_answer:
            raise RuntimeError(f"{self.label!r} differs from the reference by {found:.1e}, not {self.same_answer:g}.")
        return found


def certified(answer: Bounded, truth: np.ndarray) -> dict[str, float]:
    """Return the share of an answer's entries that have a bound, and how the error compares with it.

    ``error / bound`` is the largest among entries with a bound, of those rows whose truth is known; ``error - bound``
    the largest of all, which rounding alone can make positive.
    """
    mean, bound = (np.asarray(x, dtype=np.float64) for x in answer)
    figures = {"certified": float((bound > 0).mean())}
    error, bound = abs(mean[: len(truth)] - truth[: len(mean)]), bound[: len(truth)]
    if (bound > 0).any():
        figures["error / bound"] = float((error[bound > 0] / bound[bound > 0]).max())
    return figures | {"error - bound": float((error - bound).max())}


@dataclass(frozen=True)
class Work:
    """What a run gets through: so many of a unit. The table then says how many a second."""

    count: float
    unit: str

    def rate(self, seconds: float) -> str:
        """Return millions per second in three digits."""
        return f"{self.count / seconds / 1e6:.3g} M"


@dataclass(frozen=True)
class Group:
    """Cases on one problem, ``load()``, whose ``str`` describes it; the first case is the reference.

    ``truth(problem)`` returns a function that gives the answer to compare with, or one for each thing that is
    ``asked``. ``once`` is for memory: then every case is run once, without warming up.
    ``repeats`` are the most runs of a case, where they are to be fewer than elsewhere.
    """

    load: Callable[[], Any]
    cases: tuple[Case, ...]
    work: Work | None = None
    truth: Callable[[Any], Callable[[], Any]] | None = None
    claims: tuple[Claim, ...] = ()
    once: bool = False
    repeats: int | None = None

    def measured(self, effort: Effort) -> "Table":
        """Return the table of the group."""
        return measure(self, effort)


@dataclass(frozen=True)
class Row:
    """What was measured of a case: times in seconds, ratio to the reference, memory above problem and imports."""

    label: str
    set_up: float
    runs: tuple[float, ...]
    ratio: float
    megabytes: float | None
    difference: float | None
    targets: tuple[Target, ...] = ()
    resident: float | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Return the median time of a run."""
        return statistics.median(self.runs)

    @property
    def total(self) -> float:
        """Return the time of set-up and one run."""
        return self.set_up + self.seconds

    def cells(self) -> list[str]:
        """Return the row as text, but for its targets."""
        return [
            self.label,
            _duration(self.set_up),
            _duration(self.seconds),
            f"{_duration(min(self.runs))} – {_duration(max(self.runs))}",
            str(len(self.runs)),
            f"{self.ratio:.2f} ×",
            "–" if self.megabytes is None else f"{self.megabytes:.0f}",
            "–" if self.difference is None else f"{self.difference:.0e}",
        ]


@dataclass(frozen=True)
class Table:
    """The rows of a group under the description of its problem; ``str`` and ``markdown`` lay them out.

    ``absent`` are cases that could not be run, each with the reason.
    """

    title: str
    rows: tuple[Row, ...]
    work: Work | None = None
    claims: tuple[Claim, ...] = ()
    absent: tuple[tuple[Case, str], ...] = ()

    HEADER = ("case", "set-up", "median", "fastest – slowest", "runs", "ratio", "MB", "difference")
    AFTER_RATIO = HEADER.index("ratio") + 1

    @property
    def verdicts(self) -> list[Verdict]:
        """Return all targets as they came out: those of rows, of rows that could not be measured, and claims."""
        found = [self._verdict(row, target) for row in self.rows for target in row.targets]
        for case, _ in self.absent:
            found += [Verdict(self.title, f"{case.label}: {target}", "–", None) for target in case.targets]
        times = {row.label: row.seconds for row in self.rows}
        for claim in self.claims:
            value = claim.value(times)
            sign = "≥" if claim.least else "≤"
            target = f"{claim.text} {sign} {claim.bound:g}"
            kept = _keeps(value, claim.bound, claim.least)
            found.append(Verdict(self.title, target, f"{value:.3g}", kept, claim.why))
        return found

    def _verdict(self, row: Row, target: Target) -> Verdict:
        value = target.value(row, self.rows)
        measured = "–" if value is None else _figure(target.quantity, value)
        return Verdict(self.title, f"{row.label}: {target}", measured, target.met(row, self.rows), target.why)

    def cells(self) -> list[list[str]]:
        """Return header and rows as text; the work per second, where it is known, stands after the ratio."""
        names = [name for name in _SHOWN if any(name in row.figures for row in self.rows)]
        marks = [
            "; ".join(f"{target}: {self._verdict(row, target).mark}" for target in row.targets) for row in self.rows
        ]
        lines = [[*self.HEADER, *names, "targets"]]
        for row, mark in zip(self.rows, marks, strict=True):
            figures = [_figure(name, row.figures[name]) if name in row.figures else "–" for name in names]
            lines.append([*row.cells(), *figures, mark])
        if self.work is not None:
            rates = [f"{self.work.unit}/s", *(self.work.rate(row.seconds) for row in self.rows)]
            for line, rate in zip(lines, rates, strict=True):
                line.insert(self.AFTER_RATIO, rate)
        return lines

    @property
    def _notes(self) -> list[str]:
        return [f"Not measured: {case.label}: {reason}." for case, reason in self.absent]

    def __str__(self) -> str:
        return "\n".join([aligned(self.title, self.cells()), *self._notes])

    def markdown(self) -> str:
        """Return the table in Markdown, under a heading."""
        return "\n\n".join([in_markdown(self.title, self.cells()), *self._notes])


def _keeps(value: float | None, bound: float, least: bool) -> bool | None:
    """Return whether a value is on the right side of a bound."""
    return None if value is None else value >= bound if least else value <= bound


def _figure(quantity: str, value: float) -> str:
    """Return a figure with its unit."""
    if quantity in _SHOWN:
        return _SHOWN[quantity].format(value)
    return f"{value:.0f}{_UNIT[quantity]}" if value >= 100 else f"{value:.3g}{_UNIT[quantity]}"


def aligned(title: str, cells: list[list[str]]) -> str:
    """Return a title over rows of text, the first and the last column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    last = len(widths) - 1
    lines = [
        "   ".join(
            cell.ljust(width) if at in (0, last) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([title, *lines])


def in_markdown(title: str, cells: list[list[str]]) -> str:
    """Return a heading over a table in Markdown, whose first row is its header."""
    header, *rows = cells
    rule = ["---", *["---:"] * (len(header) - 2), "---"]
    return "\n".join([f"### {title}", "", *("| " + " | ".join(row) + " |" for row in [header, rule, *rows])])


def _duration(seconds: float) -> str:
    """Return a time in three digits, with its unit."""
    if seconds < 0.9995:
        return f"{1000 * seconds:#.3g} ms".replace(". ", " ")
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


# -------------------------------------------------------------------------------------------------------------- running


def measure(group: Group, effort: Effort = THOROUGH) -> Table:
    """Run the cases of a group, in turns, and return their table.

    Each is run once to warm up, which counts where it shows to be a long run like the others (WARM). Raises
    ``RuntimeError`` where a case fails, other than one that ``needs`` modules, and where an answer is not that of the
    truth or of the reference.
    """
    absent = [(case, f"{missing[0]} is not installed") for case in group.cases if (missing := case.missing)]
    cases = [case for case in group.cases if not case.missing]
    truth = None if group.truth is None else _truth(group, effort)
    with contextlib.ExitStack() as stack:
        workers = _started(group, cases, effort, stack)

        def first(request: Callable[[Case], Any], bar: str = "") -> list[Any]:
            """Ask every process once, and leave out the cases that fail though their modules are there."""
            for case in _progress(list(cases), bar, "warming up") if bar else list(cases):
                try:
                    workers[id(case)].once(request(case))
                except RuntimeError:
                    if not case.needs:
                        raise
                    absent.append((case, "it failed; see its traceback"))
                    cases.remove(case)
            return [workers[id(case)].once(request(case)) for case in cases]

        title, *_ = first(lambda case: "title")  # all were started before the first is waited for
        first(lambda case: "prepare")
        warm = first(lambda case: ("run", case.asked), title)
        runs = [[seconds] if group.once else [] for seconds in warm]
        repeats = 0 if group.once else min(effort.repeats, group.repeats or effort.repeats)
        for turn in _progress(range(repeats), title, "turns"):
            for before, seconds, case in zip(warm, runs, cases, strict=True):
                done = seconds + [before] * alike(before, seconds)
                if len(seconds) == turn and (len(done) < effort.fewest or sum(done) < effort.patience):
                    seconds.append(workers[id(case)].ask(("run", case.asked)))
        for before, seconds in zip(warm, runs, strict=True):
            seconds += [before] * (not group.once and alike(before, seconds))
        set_up = first(lambda case: "prepare")
        finished = first(lambda case: "finish")
    runs = [tuple(case.scale * s for s in seconds) for case, seconds in zip(cases, runs, strict=True)]
    reference = statistics.median(runs[0])
    answer = finished[0][0].get(cases[0].asked)
    rows = []
    for at, case in enumerate(cases):
        answers, megabytes, resident = finished[at]
        found, right = answers.get(case.asked), answer if truth is None else truth.get(case.asked, truth.get(None))
        figures = certified(found, right) if isinstance(found, Bounded) else {}
        difference = case.difference(found.mean if isinstance(found, Bounded) else found, right)
        ratio = statistics.median(runs[at]) / reference
        rows.append(
            Row(case.label, set_up[at], runs[at], ratio, megabytes, difference, case.targets, resident, figures)
        )
    return Table(title, tuple(rows), group.work, group.claims, tuple(absent))


def alike(before: float, seconds: list[float]) -> bool:
    """Return whether a warming-up was a run like the others, too long to be warmed up for."""
    return len(seconds) > 0 and WARM <= before <= ALIKE * max(seconds)


def _started(group: Group, cases: list[Case], effort: Effort, stack: contextlib.ExitStack) -> dict[int, "_Worker"]:
    """Return the process of every case, by its ``id``; cases that ask something of the same object share one."""
    workers, shared = {}, {}
    for case in cases:
        key = id(case) if case.asked is None else id(case.prepare)
        if key not in shared:
            shared[key] = _Worker(case.label, group.load, case.prepare, effort.threads)
            stack.callback(shared[key].stop)
        workers[id(case)] = shared[key]
    return workers


def _truth(group: Group, effort: Effort) -> dict[Any, np.ndarray]:
    """Return the right answers, by what is asked, from a process that is gone before anything is timed."""
    worker = _Worker("truth", group.load, group.truth, effort.threads)
    try:
        worker.receive()
        worker.ask("prepare")
        worker.ask(("run", None))
        found = worker.ask("finish")[0][None]
    finally:
        worker.stop()
    return found if isinstance(found, dict) else {None: found}


def _progress(items: Any, title: str, unit: str) -> Iterator[Any]:
    """Pass the items on with a bar on the terminal; ``TQDM_DISABLE=1`` silences it."""
    from tqdm import tqdm  # not at the top: the processes of the cases show no bars, and need none

    return iter(tqdm(items, desc=title, unit=unit, leave=False, file=sys.stderr))


class _Worker:
    """A fresh process for one case, or for several of one object, which does what it is asked for."""

    def __init__(self, label: str, load: Callable, prepare: Callable, threads: int | None):
        self.label, self.known = label, {}
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(load, prepare, threads, other), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def ask(self, request: Any) -> Any:
        """Return what the process answers."""
        with contextlib.suppress(ConnectionError):  # it has ended: `receive` says so
            self.pipe.send(request)
        return self.receive()

    def once(self, request: Any) -> Any:
        """Return what the process answered when it was first asked; its title comes unasked."""
        if request not in self.known:
            self.known[request] = self.receive() if request == "title" else self.ask(request)
        return self.known[request]

    def receive(self) -> Any:
        """Return what the process sends next; raise ``RuntimeError`` where it has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError) as ended:
            raise RuntimeError(f"The case {self.label!r} failed; see its traceback above.") from ended

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _work(load: Callable, prepare: Callable, threads: int | None, pipe: Connection) -> None:
    """Serve the requests of a ``_Worker``: the title at once, then set-up, runs, and what they gave and took."""
    os.environ["TQDM_DISABLE"] = "1"
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of compiled code that is loaded later
    try:
        problem = load()
        peak_of_loading = _status("VmHWM")
        _forget_peak()
        before = _status("VmRSS")
        pipe.send(str(problem))
        answers = {}
        while (request := pipe.recv()) != "finish":
            start = time.perf_counter()
            if request == "prepare":
                run = prepare(problem)
            else:
                _, asked = request
                answers[asked] = run() if asked is None else run(asked)
            pipe.send(time.perf_counter() - start)
        peak = _status("VmHWM")
        megabytes = None if before is None or peak is None else peak - before
        resident = None if peak is None else max(peak, peak_of_loading)
        pipe.send(({asked: _portable(answer) for asked, answer in answers.items()}, megabytes, resident))
    except EOFError:
        pass  # another case failed
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _portable(answer: Any) -> Any:
    """Return the arrays of an answer; nothing of one that has none."""
    if isinstance(answer, dict):
        return {key: _portable(value) for key, value in answer.items()}
    if isinstance(answer, Bounded):
        return Bounded(*map(_portable, answer))
    return answer.numpy() if isinstance(answer, Tensor) else None


def _forget_peak() -> None:
    """Make the kernel count the peak from here on; where it refuses, the peak includes the loading of the problem."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> float | None:
    """Return an entry of /proc/self/status in MB, ``None`` where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), None)


def machine(threads: int | None = None) -> str:
    """Return what the numbers were measured on, in one line."""
    threads = torch.get_num_threads() if threads is None else threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{_processor()}, {usable} cores, {threads} threads of PyTorch, {memory:.0f} GB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, PyTorch {torch.__version__}; load {load:.1f} before"
    )


def _processor() -> str:
    """Return the model of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()
