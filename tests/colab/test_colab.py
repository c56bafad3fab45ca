"""Widgets and notebooks under the versions of Colab, in an overlay of the environment that runs this."""

import json
import os
import re
import sys
import sysconfig
from pathlib import Path

from overlay import ROOT, run

PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", Path(__file__).with_name("requirements.txt").read_text(), re.MULTILINE))
NOTEBOOKS = [path for prefix in ("00", "02", "04") for path in sorted((ROOT / "notebooks").glob(f"{prefix}_*.ipynb"))]


def test_imports_are_the_pinned_versions_and_torch_is_shared(colab_python):
    """A test under the wrong versions would pass and mean nothing."""
    script = (
        f"import importlib, json, torch; names = {sorted(PINS)!r}; "
        "print(json.dumps([{n: importlib.import_module(n).__version__ for n in names}, torch.__file__]))"
    )
    versions, torch_file = json.loads(run(colab_python, "-c", script))
    assert versions == PINS
    assert Path(torch_file).is_relative_to(sysconfig.get_path("purelib"))


def test_pins_resolve_beside_jupyterlab_and_nbval(colab_python):
    """`pip check` over the overlay and what lies beneath it; JupyterLab 4 and nbval import with Colab's versions."""
    run(sys.executable, "-m", "pip", "--python", colab_python, "check")
    assert run(colab_python, "-c", "import jupyterlab, nbval; print(jupyterlab.__version__)").startswith("4.")


def test_installing_moves_nothing_that_colab_ships(colab_python):
    """What the notebooks' first cell asks pip for is the package alone: no restart of the runtime."""
    pip = (sys.executable, "-m", "pip", "--python", colab_python, "--disable-pip-version-check", "install")
    report = json.loads(run(*pip, "--quiet", "--dry-run", "--no-build-isolation", "--report", "-", ".[widgets]"))
    assert [package["metadata"]["name"] for package in report["install"]] == ["lemmse"]


def test_widgets_and_notebooks(colab_python):
    """Every widget and every explorable, at the values of all its controls; notebooks, with the same compared outputs.

    Two processes share the files. Shapes are checked where the same tests run as units: no version decides on them.
    """
    unchecked = os.environ | {"JAXTYPING_DISABLE": "1"}
    run(colab_python, "-m", "pytest", "--quiet", "-n", "2", "--dist", "loadfile", "tests/ui", *NOTEBOOKS, env=unchecked)
