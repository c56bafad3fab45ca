"""Measure and print: `python -m benchmarks` all topics, `python -m benchmarks equivariant` one."""

import argparse
from importlib import import_module

from .table import REPEATS, machine

TOPICS = ("mmse", "equivariant", "local", "precision")


def main() -> None:
    """Print the machine and a table per group."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"of {', '.join(TOPICS)}; none: all")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of aligned text")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of a quick case (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    asked = parser.parse_args()
    if unknown := set(asked.topics) - set(TOPICS):
        parser.error(f"no topic {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    print(machine(asked.threads))
    missed = []
    for topic in asked.topics or TOPICS:
        for group in import_module(f".{topic}", __package__).GROUPS:
            table = group.measured(repeats=asked.repeats, threads=asked.threads)
            print(f"\n{table.markdown() if asked.markdown else table}", flush=True)
            missed += table.missed
    print("\nTargets missed:", *(missed or ["none"]), sep="\n  ")


if __name__ == "__main__":
    main()
