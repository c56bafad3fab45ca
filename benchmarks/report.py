"""What a run of all benchmarks leaves behind: a results file, and from it the README's table and picture of speed.

`python -m benchmarks.report` draws both anew from the results file.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peers import ATTENTION, BARE, CERTIFIED, DENSE, KEOPS, OURS, PRODUCTS
from .table import Table, Verdict, aligned

__all__ = ["PATHS", "Glance", "Report", "draw", "publish", "section"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE, README = ROOT / "benchmarks" / "results.md", ROOT / "docs" / "speed.svg", ROOT / "README.md"

PATHS = {
    OURS: "ours exact",
    CERTIFIED: "ours within 0.001",
    PRODUCTS: "ours without numba",
    ATTENTION: "PyTorch's fused attention",
    DENSE: "dense PyTorch",
    KEOPS: "KeOps",
    BARE: "bare products",
}
"""The cases of ``peers`` in the table of speed, and what they are called there."""

HEADING = "## Speed, in millions of pairs of windows a second"
START, END = "<!-- speed: written by `make bench` -->", "<!-- /speed -->"


@dataclass(frozen=True)
class Glance:
    """Millions of pairs a second by setting and path, ``None`` where a peer was not measured; and on what machine."""

    machine: str
    speeds: dict[str, dict[str, float | None]]

    @classmethod
    def of(cls, machine: str, tables: list[Table]) -> "Glance":
        """Return what tables of ``peers`` say."""
        speeds = {}
        for table in tables:
            images, size, side = re.search(r"D = (\d+) images of (\S+) .*P = (\d+)$", table.title).groups()
            found = {PATHS[row.label]: table.work.count / row.seconds / 1e6 for row in table.rows if row.label in PATHS}
            speeds[f"{size}, P = {side}, D = {images}"] = {path: found.get(path) for path in PATHS.values()}
        return cls(machine, speeds)

    def table(self) -> str:
        """Return the table in Markdown."""
        paths = list(PATHS.values())
        lines = [["images and windows", *paths], ["---", *["---:"] * len(paths)]]
        for setting, speeds in self.speeds.items():
            lines.append([setting, *("–" if (s := speeds[path]) is None else _three(s) for path in paths)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def __str__(self) -> str:
        return f"{HEADING}\n\n{self.machine}\n\n{self.table()}"

    @classmethod
    def read(cls, results: str) -> "Glance":
        """Return what stands in a results file."""
        machine, table = re.search(rf"^{HEADING}\n\n(.*)\n\n((?:\|.*\n)+)", results, re.MULTILINE).groups()
        header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        speeds = {
            setting: {path: None if v == "–" else float(v) for path, v in zip(header[1:], values, strict=True)}
            for setting, *values in lines
        }
        return cls(machine, speeds)

    @property
    def alt(self) -> str:
        """Return the picture's alternative text."""
        said = []
        for setting, speeds in self.speeds.items():
            measured = (f"{path} {_three(speed)}" for path, speed in speeds.items() if speed is not None)
            said.append(f"{setting}: {', '.join(measured)}")
        return f"Millions of pairs of windows a second, on a logarithmic axis. {'. '.join(said)}."


def _three(speed: float) -> str:
    """Return a speed in three digits, without an exponent."""
    return f"{float(f'{speed:.3g}'):g}"


@dataclass
class Report:
    """The tables of a run, as they come, and the targets in them."""

    machine: str
    tables: list[tuple[str, Table]] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, topic: str, table: Table, seconds: float) -> None:
        """Take in a table of a topic, which took so many seconds to measure."""
        self.tables.append((topic, table))
        self.seconds[topic] += seconds

    @property
    def took(self) -> str:
        """Return how long all of it took, and each topic."""
        topics = ", ".join(f"{topic} {seconds / 60:.1f}" for topic, seconds in self.seconds.items())
        return f"{self.seconds.total() / 60:.1f} minutes in all: {topics}"

    @property
    def verdicts(self) -> list[Verdict]:
        """Return every target as it came out."""
        return [verdict for _, table in self.tables for verdict in table.verdicts]

    def closing(self, markdown: bool = False) -> str:
        """Return the list of every target, by problem: met or MISSED, with what was measured."""
        found = self.verdicts
        count = {mark: sum(verdict.mark == mark for verdict in found) for mark in ("met", "MISSED", "not measured")}
        said = f"Targets: {', '.join(f'{n} {mark}' for mark, n in count.items())}"
        parts = [f"## {said}" if markdown else said]
        for title in dict.fromkeys(verdict.title for verdict in found):
            rows = [[v.mark, v.told, v.measured] for v in found if v.title == title]
            if markdown:
                lines = ["|  | target | measured |", "| --- | --- | ---: |"]
                lines += [f"| {_bold(mark)} | {target} | {measured} |" for mark, target, measured in rows]
                parts.append("\n".join([f"### {title}", "", *lines]))
            else:
                parts.append(aligned(title, [["", "measured", "target"], *([m, x, t] for m, t, x in rows)]))
        return "\n\n".join(parts)

    def __str__(self) -> str:
        about = f"Written by `make bench`, in {self.took}. CONTRIBUTING.md says how to read it."
        peers = [table for topic, table in self.tables if topic == "peers"]
        parts = [
            "# What `make bench` measured",
            about,
            str(Glance.of(self.machine, peers)),
            self.closing(markdown=True),
        ]
        for topic in dict.fromkeys(topic for topic, _ in self.tables):
            parts.append(f"## `{topic}`")
            parts += [table.markdown() for of, table in self.tables if of == topic]
        return "\n\n".join(parts) + "\n"

    def write(self, path: Path = RESULTS) -> Path:
        """Write the results file and return its path."""
        path.write_text(str(self))
        return path


def _bold(mark: str) -> str:
    return f"**{mark}**" if mark == "MISSED" else mark


# --------------------------------------------------------------------------------------------------------------- README


ABOUT = """Millions of pairs of windows a second, denoising at σ = 0.1 in float32: a pair is a window of the measurement
and one of an image, and an estimate needs them all. *Within 0.001* is the certified path, `tolerance=1e-3`. All
targets, and what missed them, stand in [benchmarks/results.md](benchmarks/results.md)."""


def section(glance: Glance) -> str:
    """Return what the README says of speed."""
    picture = f'<img src="docs/{PICTURE.name}" alt="{glance.alt}">'
    return "\n".join([START, picture, "", ABOUT, "", glance.table(), "", f"({glance.machine}.)", END])


def publish(results: Path = RESULTS, readme: Path = README, picture: Path = PICTURE) -> None:
    """Draw the picture and write the README's section, both from a results file."""
    glance = Glance.read(results.read_text())
    text = readme.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    readme.write_text(before + section(glance) + after)
    draw(glance).save(picture)


MARKERS = {
    "ours exact": ("o", "#0072B2", True, 12),
    "ours within 0.001": ("D", "#E69F00", True, 5),
    "ours without numba": ("s", "#0072B2", False, 8),
    "PyTorch's fused attention": ("^", "#D55E00", True, 8),
    "dense PyTorch": ("P", "#AA3377", True, 8),
    "KeOps": ("X", "#000000", True, 8),
    "bare products": ("|", "#000000", True, 14),
}
"""Shape, colour, whether it is filled, and size: no two paths differ by colour alone, and none hides another."""


def draw(glance: Glance) -> Any:
    """Return the picture: a line per setting, a mark per path, on a light ground of its own."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from lemmse import figures  # neither at the top: the processes of the cases draw nothing

    figure = figures.figure(8.4, 0.9 + 0.55 * len(glance.speeds))
    figure.set_facecolor("white")
    axes = figure.subplots()
    for path, (marker, colour, filled, size) in MARKERS.items():
        points = [(speeds[path], at) for at, speeds in enumerate(glance.speeds.values()) if speeds.get(path)]
        if points:
            face = colour if filled else "none"
            options = {"markersize": size, "markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 1.6}
            axes.plot(*zip(*points, strict=True), marker, label=path, clip_on=False, **options)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(glance.speeds)), list(glance.speeds))
    axes.set_ylim(len(glance.speeds) - 0.5, -0.5)
    axes.set_xlabel("millions of pairs of windows a second (more is faster)")
    figure.legend(loc="outside right upper", frameon=False)
    return figures.picture(figure, alt=glance.alt)


if __name__ == "__main__":
    publish()
