"""Measure and print: `python -m benchmarks` all topics, `python -m benchmarks equivariant` one."""

import argparse
import time
from dataclasses import replace
from importlib import import_module

from .report import Report, publish
from .table import QUICK, THOROUGH, machine

TOPICS = ("peers", "sweep", "calls", "local", "mmse", "equivariant", "precision")

WARNING = "QUICK: few images, few settings, few runs. These numbers show that everything runs, and no more."


def main() -> None:
    """Print the machine, a table per group, and every target as it came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"of {', '.join(TOPICS)}; none: all")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of aligned text")
    parser.add_argument("--quick", action="store_true", help="fewer images, settings and runs: under three minutes")
    parser.add_argument("--write", action="store_true", help="write the results file, and the README from it")
    parser.add_argument("--repeats", type=int, help="runs of a quick case (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    asked = parser.parse_args()
    if unknown := set(asked.topics) - set(TOPICS):
        parser.error(f"no topic {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    if asked.write and (asked.quick or asked.topics):
        parser.error("--write is for a whole run: without --quick and without topics")
    effort = replace(QUICK if asked.quick else THOROUGH, threads=asked.threads)
    if asked.repeats is not None:
        effort = replace(effort, repeats=asked.repeats)
    report = Report(machine(asked.threads))
    print(report.machine, *([WARNING] if asked.quick else []), sep="\n")
    for topic in asked.topics or TOPICS:
        for group in import_module(f".{topic}", __package__).groups(asked.quick):
            begun = time.monotonic()
            table = group.measured(effort)
            report.add(topic, table, time.monotonic() - begun)
            print(f"\n{table.markdown() if asked.markdown else table}", flush=True)
    print(f"\n{report.closing(asked.markdown)}\n\n{report.took}")
    if asked.write:
        publish(report.write())


if __name__ == "__main__":
    main()
