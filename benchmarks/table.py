"""Tables of measured time and memory: how cases are run, and how their numbers are laid out.

A topic is a module with a list ``GROUPS``, each of which can be ``measured``. A group is a problem and its cases, the
first of which is the reference that the others are divided by. Every case lives in a fresh process of its own, so that
none inherits memory or warm caches from another, and the cases of a group take turns, run by run, so that a machine
with other work slows all of them alike: ratios within a group travel better, between runs and between machines, than
seconds do.

What crosses to another process is pickled: ``load`` and ``prepare`` are functions of a module, or partials of them.
"""

import contextlib
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

__all__ = [
    "Case",
    "Group",
    "Row",
    "Table",
    "Target",
    "Work",
    "aligned",
    "at_least",
    "at_most",
    "in_markdown",
    "machine",
    "measure",
]

PATIENCE = 20.0
"""Seconds after which a slow case is not run again, once it has been run FEWEST times."""

FEWEST = 3
"""Runs that every median is taken of, at least."""

REPEATS = 7
"""Runs that the median of a quick case is taken of."""

Quantity = Literal["total", "seconds", "ratio", "megabytes"]
_UNIT = {"total": "s with set-up", "seconds": "s", "ratio": "×", "megabytes": "MB"}


@dataclass(frozen=True)
class Target:
    """A bound that a quantity of a row has to keep; ``total`` is the time of set-up and one run."""

    quantity: Quantity
    bound: float
    least: bool

    def met(self, row: "Row") -> bool | None:
        """Return whether the row keeps the bound, ``None`` where the quantity could not be measured."""
        value = getattr(row, self.quantity)
        return None if value is None else value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:g} {_UNIT[self.quantity]}"


def at_least(quantity: Quantity, bound: float) -> Target:
    """Return the target that a quantity is at least so large."""
    return Target(quantity, bound, least=True)


def at_most(quantity: Quantity, bound: float) -> Target:
    """Return the target that a quantity is at most so large."""
    return Target(quantity, bound, least=False)


@dataclass(frozen=True)
class Case:
    """A line of a table: ``prepare(problem)`` does what is done once and returns the function that is timed.

    ``scale`` multiplies the time of a run: 1/b for b queries at once, n/m where m of n equal parts are run. Where a
    run returns a tensor and ``same_answer`` is set, it has to agree with the reference's to so much, entry by entry.
    """

    label: str
    prepare: Callable[[Any], Callable[[], Any]]
    targets: tuple[Target, ...] = ()
    scale: float = 1.0
    same_answer: float | None = None

    def difference(self, answer: Any, reference: Any) -> float | None:
        """Return how far an answer is from the reference's, ``None`` where nothing is compared; raise if too far."""
        if self.same_answer is None:
            return None
        if answer is None or reference is None or answer.shape != reference.shape:
            raise RuntimeError(f"{self.label!r} or the reference returned no tensor to compare, or another shape.")
        found = float(abs(answer - reference).max())
        if not found <= self.same_answer:
            raise RuntimeError(f"{self.label!r} differs from the reference by {found:.1e}, not {self.same_answer:g}.")
        return found


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
    """Cases on one problem, ``load()``, whose ``str`` describes it; the first case is the reference."""

    load: Callable[[], Any]
    cases: tuple[Case, ...]
    work: Work | None = None

    def measured(self, *, repeats: int, threads: int | None) -> "Table":
        """Return the table of the group."""
        return measure(self, repeats=repeats, threads=threads)


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

    @property
    def seconds(self) -> float:
        """Return the median time of a run."""
        return statistics.median(self.runs)

    @property
    def total(self) -> float:
        """Return the time of set-up and one run."""
        return self.set_up + self.seconds

    def cells(self) -> list[str]:
        """Return the row as text."""
        marks = {True: "met", False: "MISSED", None: "not measured"}
        return [
            self.label,
            _duration(self.set_up),
            _duration(self.seconds),
            f"{_duration(min(self.runs))} – {_duration(max(self.runs))}",
            str(len(self.runs)),
            f"{self.ratio:.2f} ×",
            "–" if self.megabytes is None else f"{self.megabytes:.0f}",
            "–" if self.difference is None else f"{self.difference:.0e}",
            "; ".join(f"{target}: {marks[target.met(self)]}" for target in self.targets),
        ]


@dataclass(frozen=True)
class Table:
    """The rows of a group under the description of its problem; ``str`` and ``markdown`` lay them out."""

    title: str
    rows: tuple[Row, ...]
    work: Work | None = None

    HEADER = ("case", "set-up", "median", "fastest – slowest", "runs", "ratio", "MB", "difference", "targets")
    AFTER_RATIO = HEADER.index("ratio") + 1

    @property
    def missed(self) -> list[str]:
        """Return the targets that were missed, each with its row."""
        return [
            f"{self.title}: {row.label}: {target}"
            for row in self.rows
            for target in row.targets
            if target.met(row) is False
        ]

    def cells(self) -> list[list[str]]:
        """Return header and rows as text; the work per second, where it is known, stands after the ratio."""
        lines = [list(self.HEADER), *(row.cells() for row in self.rows)]
        if self.work is not None:
            rates = [f"{self.work.unit}/s", *(self.work.rate(row.seconds) for row in self.rows)]
            for line, rate in zip(lines, rates, strict=True):
                line.insert(self.AFTER_RATIO, rate)
        return lines

    def __str__(self) -> str:
        return aligned(self.title, self.cells())

    def markdown(self) -> str:
        """Return the table in Markdown, under a heading."""
        return in_markdown(self.title, self.cells())


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


def measure(group: Group, *, repeats: int = REPEATS, threads: int | None = None) -> Table:
    """Run the cases of a group, in turns, and return their table.

    Each is run once before anything counts, then ``repeats`` times, fewer (FEWEST) once it has taken PATIENCE seconds.
    ``threads`` of PyTorch, ``None`` for its own choice. Raises ``RuntimeError`` where a case fails, and where its
    answer is not that of the reference.
    """
    with contextlib.ExitStack() as stack:
        workers = [_Worker(group, case, threads) for case in group.cases]
        for worker in workers:
            stack.callback(worker.stop)
        title, *_ = [worker.receive() for worker in workers]  # all were started before the first is waited for
        set_up = [worker.ask("prepare") for worker in workers]
        for worker in _progress(workers, title, "warming up"):
            worker.ask("run")
        runs = [[] for _ in workers]
        for turn in _progress(range(repeats), title, "turns"):
            for seconds, worker in zip(runs, workers, strict=True):
                if turn < FEWEST or sum(seconds) < PATIENCE:
                    seconds.append(worker.ask("run"))
        finished = [worker.ask("finish") for worker in workers]
    runs = [tuple(case.scale * s for s in seconds) for case, seconds in zip(group.cases, runs, strict=True)]
    reference, answer = statistics.median(runs[0]), finished[0][0]
    return Table(
        title,
        tuple(
            Row(
                case.label,
                set_up[at],
                runs[at],
                statistics.median(runs[at]) / reference,
                finished[at][1],
                case.difference(finished[at][0], answer),
                case.targets,
            )
            for at, case in enumerate(group.cases)
        ),
        group.work,
    )


def _progress(items: Any, title: str, unit: str) -> Iterator[Any]:
    """Pass the items on with a bar on the terminal; ``TQDM_DISABLE=1`` silences it."""
    from tqdm import tqdm  # not at the top: the processes of the cases show no bars, and need none

    return iter(tqdm(items, desc=title, unit=unit, leave=False, file=sys.stderr))


class _Worker:
    """A fresh process for one case, which does what it is asked for."""

    def __init__(self, group: Group, case: Case, threads: int | None):
        self.label = case.label
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(group.load, case.prepare, threads, other), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def ask(self, request: str) -> Any:
        """Return what the process answers."""
        self.pipe.send(request)
        return self.receive()

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
    try:
        problem = load()
        _forget_peak()
        before = _status("VmRSS")
        pipe.send(str(problem))
        answer = None
        while (request := pipe.recv()) != "finish":
            start = time.perf_counter()
            if request == "prepare":
                run = prepare(problem)
            else:
                answer = run()
            pipe.send(time.perf_counter() - start)
        peak = _status("VmHWM")
        megabytes = None if before is None or peak is None else peak - before
        pipe.send((answer.numpy() if isinstance(answer, torch.Tensor) else None, megabytes))
    except EOFError:
        pass  # another case failed
    except Exception:
        traceback.print_exc()
        sys.exit(1)


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
