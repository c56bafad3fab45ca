"""What the whole suite shares: the order of its layers, what each may cost, and what a notebook may cost.

The suite is one pytest session, so that its closing line counts everything. The notebooks' cells come from nbval; a
notebook gets one more test, at its end and while its kernel still lives: the time and the memory that it took.
"""

import time
from collections import Counter
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from notebooks import peak_megabytes

ROOT = Path(__file__).parent
BUDGETS = {"set-up": 5, "unit": 6, "notebooks": 4, "browser": 5, "Colab-shaped": 3, "rest": 2}  # minutes, on two cores
LAYERS = list(BUDGETS)
NOTEBOOK_SECONDS = 60
NOTEBOOK_MEGABYTES = 800

STARTED = pytest.StashKey[float]()
seconds_of_layer: Counter[str] = Counter()
seconds_of_notebook: Counter[str] = Counter()
notebook_costs: list[str] = []


def layer(path: Path) -> str:
    """Return the layer, one line of the table, that the tests of a file belong to."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "notebooks":
        return "notebooks"
    named = {"browser": "browser", "colab": "Colab-shaped", "notebooks": "notebooks", "test_project.py": "rest"}
    return named.get(parts[1], "unit")


class NotebookCost(pytest.Item):
    """The time and the peak memory of the notebook whose cells ran just before, in the kernel that ran them."""

    def runtest(self) -> None:
        """Compare both with what a notebook may cost."""
        seconds, megabytes = seconds_of_notebook[self.path.name], peak_megabytes(self.parent.kernel.km.provisioner.pid)
        notebook_costs.append(f"{self.path.stem:34} {seconds:5.1f} s   {megabytes:4.0f} MB at its peak")
        over = [f"{seconds:.0f} s, and may take {NOTEBOOK_SECONDS}"] if seconds >= NOTEBOOK_SECONDS else []
        over += [f"{megabytes:.0f} MB, and may take {NOTEBOOK_MEGABYTES}"] if megabytes >= NOTEBOOK_MEGABYTES else []
        assert not over, f"{self.path.name} took {'; '.join(over)}"

    def repr_failure(self, excinfo):
        """Return the message alone."""
        return str(excinfo.value)

    def reportinfo(self):
        """Return where it stands: at the end of its notebook."""
        return self.path, None, f"{self.path.name}::{self.name}"


def pytest_addoption(parser):
    """Add the one option that `make test` uses."""
    parser.addoption("--since", type=float, metavar="EPOCH", help="print what each layer took; set-up began at EPOCH")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Run the quick layers first, and end each notebook on its test of costs."""
    items.sort(key=lambda item: LAYERS.index(layer(item.path)))
    for file in {item.parent: None for item in items if isinstance(item, IPyNbCell)}:
        cells = [index for index, item in enumerate(items) if item.parent is file]
        items.insert(cells[-1] + 1, NotebookCost.from_parent(file, name="time-and-memory"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Time a test together with the fixtures, servers and kernels that it is the first to need.

    Kernels of notebooks show no bars: whether one comes depends on the machine, and outputs are compared.
    """
    start = time.perf_counter()
    try:
        with pytest.MonkeyPatch.context() as patch:
            if isinstance(item.parent, IPyNbFile):
                patch.setenv("TQDM_DISABLE", "1")
            return (yield)
    finally:
        seconds = time.perf_counter() - start
        seconds_of_layer[layer(item.path)] += seconds
        if isinstance(item.parent, IPyNbFile):
            seconds_of_notebook[item.path.name] += seconds


def pytest_sessionstart(session):
    """Note when pytest began: what came before is set-up."""
    session.config.stash[STARTED] = time.time()


def pytest_terminal_summary(terminalreporter, config):
    """Print what the notebooks and, with ``--since``, the layers took."""
    if notebook_costs:
        terminalreporter.section("notebooks")
        terminalreporter.write_line("\n".join(notebook_costs))
    since = config.getoption("since")
    if since is None:
        return
    started, now = config.stash[STARTED], time.time()
    seconds_of_layer["set-up"] = started - since
    seconds_of_layer["rest"] = now - started - sum(seconds_of_layer[name] for name in LAYERS[1:-1])
    terminalreporter.section("time, on a budget for two cores and ten notebooks")
    for name, budget in BUDGETS.items():
        taken = seconds_of_layer[name]
        over = "   OVER BUDGET" if taken > 60 * budget else ""
        terminalreporter.write_line(f"{name:14} {int(taken // 60):2d}:{int(taken % 60):02d} of {budget} min{over}")
    total = now - since
    terminalreporter.write_line(
        f"{'total':14} {int(total // 60):2d}:{int(total % 60):02d} of {sum(BUDGETS.values())} min"
    )
