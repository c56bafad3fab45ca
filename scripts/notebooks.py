"""Regenerate the notebooks of the series, with outputs, from their sources.

    python scripts/notebooks.py              all of them
    python scripts/notebooks.py 00 02        those whose names begin so
    python scripts/notebooks.py --check      run nothing; name the pairs that differ in content

``notebooks/NN_question.py`` (py:percent) is the source and ``NN_question.ipynb`` is made from it: every cell is run in
a fresh kernel, and the result is written without anything that belongs to one run or one machine (timings, widgets). A
cell's id is a hash of its text, so unchanged sources give unchanged files. CONTRIBUTING.md describes the form of a
source, and ``tests/notebooks`` holds it.
"""

import argparse
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
CELL_TIMEOUT = 120  # seconds
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


class Run(NamedTuple):
    """What one run of a notebook gave: the notebook with outputs, seconds, and the kernel's peak memory in MB."""

    notebook: NotebookNode
    seconds: float
    peak_megabytes: float


def sources(prefixes: list[str] | None = None, folder: Path = FOLDER) -> list[Path]:
    """Return the sources of the series, in order, or those whose names begin with one of ``prefixes``."""
    found = sorted(folder.glob("[0-9][0-9]_*.py"))
    chosen = [p for p in found if not prefixes or any(p.name.startswith(prefix) for prefix in prefixes)]
    missing = [prefix for prefix in prefixes or [] if not any(p.name.startswith(prefix) for p in found)]
    if missing:
        raise FileNotFoundError(
            f"no source in {folder.name}/ begins with {missing}; there are {[p.name for p in found]}"
        )
    return chosen


def _ids(cells: list[NotebookNode]) -> Iterator[str]:
    """Yield an id per cell that depends on its text only (and, for equal texts, on which of them it is)."""
    seen: Counter[str] = Counter()
    for cell in cells:
        text = f"{cell.cell_type}\n{cell.source}"
        yield hashlib.sha256(f"{text}\n{seen[text]}".encode()).hexdigest()[:12]
        seen[text] += 1


def build(source: Path) -> NotebookNode:
    """Return the notebook that ``source`` describes, with deterministic ids and metadata and without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell, cell_id in zip(notebook.cells, _ids(notebook.cells), strict=True):
        cell.id = cell_id
        cell.metadata.pop("lines_to_next_cell", None)
    return notebook


def differences(source: Path, notebook: NotebookNode) -> list[str]:
    """Return what differs between ``source`` and an existing ``notebook``, outputs apart; empty where they agree."""

    def content(cell: NotebookNode) -> dict:
        return {key: value for key, value in cell.items() if key not in ("outputs", "execution_count")}

    expected = build(source)
    ours, theirs = [content(c) for c in expected.cells], [content(c) for c in notebook.cells]
    found = [
        f"cell {i} differs: {b['source'][:60]!r}" for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b
    ]
    if len(ours) != len(theirs):
        found.append(f"the source has {len(ours)} cells, the notebook {len(theirs)}")
    if expected.metadata != notebook.metadata:
        found.append(f"the notebook's metadata are {dict(notebook.metadata)}")
    return found


def peak_megabytes(pid: int) -> float:
    """Return the largest resident size that process ``pid`` has had, in MB (NaN where there is no /proc)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _portable(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    """Return ``outputs`` as another machine would have made them; a live widget leaves nothing but its static forms."""
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if data.pop(WIDGET_VIEW, None) is not None and set(data) <= {"text/plain"}:
            continue
        if "execution_count" in output:
            output.execution_count = count
        kept.append(output)
    return kept


def run(source: Path) -> Run:
    """Execute ``source`` in a fresh kernel and return a `Run`; raises `CellExecutionError` where a cell raises."""
    notebook = build(source)
    folder = {"metadata": {"path": str(source.parent)}}
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources=folder,
        record_timing=False,
        coalesce_streams=True,
    )
    start = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        peak = peak_megabytes(client.km.provisioner.pid)
    seconds = time.perf_counter() - start
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        cell.outputs = _portable(cell.outputs, count)
    notebook.metadata = nbformat.from_dict(METADATA)  # nbclient adds the interpreter's version, ipywidgets its state
    return Run(notebook, seconds, peak)


def regenerate(source: Path) -> str:
    """Run ``source``, write its notebook if it changed, and return a line that says what was done and what it took."""
    target = source.with_suffix(".ipynb")
    result = run(source)
    text = nbformat.writes(result.notebook) + "\n"
    changed = not target.exists() or target.read_text(encoding="utf-8") != text
    if changed:
        target.write_text(text, encoding="utf-8")
    return (
        f"{target.name}: {'written' if changed else 'unchanged'}, {result.seconds:.1f} s, "
        f"peak {result.peak_megabytes:.0f} MB, file {len(text.encode()) / 1e6:.2f} MB"
    )


def main(arguments: list[str] | None = None) -> int:
    """Regenerate or check the chosen notebooks and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", nargs="*", help="which notebooks, e.g. 00 02 (default: all)")
    parser.add_argument("--check", action="store_true", help="run nothing; name the pairs that differ")
    options = parser.parse_args(arguments)
    failed = False
    for source in sources(options.prefix):
        target = source.with_suffix(".ipynb")
        if options.check:
            found = (
                differences(source, nbformat.read(target, as_version=4)) if target.exists() else ["not generated yet"]
            )
            failed |= bool(found)
            print(f"{source.name}: {'; '.join(found) or 'in sync'}")
            continue
        try:
            print(regenerate(source), flush=True)
        except CellExecutionError as error:
            failed = True
            print(f"{source.name}: a cell raised; {target.name} was left as it was\n{error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
