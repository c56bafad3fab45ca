"""The Colab-shaped environment: Colab's versions laid over the packages of the running one."""

import sys
import sysconfig
from pathlib import Path

import pytest

from overlay import ROOT, lay_over

OVERLAY = ROOT / ".venv-colab"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
USED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def colab_python(request) -> Path:
    """Return the Python of the overlay, which is made once, and anew when its pins or what lies beneath it change."""
    request.config.stash[USED] = True
    stamp, recipe = OVERLAY / "made-from", f"{sys.version}\n{sysconfig.get_path('purelib')}\n{REQUIREMENTS.read_text()}"
    if not stamp.exists() or stamp.read_text() != recipe:
        lay_over(OVERLAY, REQUIREMENTS)
        stamp.write_text(recipe)
    return OVERLAY / "bin" / "python"


def pytest_terminal_summary(terminalreporter, config):
    """Say what these tests do not show."""
    if config.stash.get(USED, False):
        terminalreporter.section("Colab-shaped")
        terminalreporter.write_line(
            "Python's side of widgets and notebooks under Colab's versions. "
            "The front end of ipywidgets 7 is not tested: JupyterLab 4 cannot load it."
        )
