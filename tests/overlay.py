"""Virtual environments that see the packages of the running one beneath their own: no second torch."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path = ROOT, **kwargs) -> str:
    """Run a command and return what it printed; where it fails, the test fails and shows all of that."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, **kwargs)
    if done.returncode:
        pytest.fail(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


def lay_over(folder: Path, requirements: Path | None = None) -> Path:
    """Make such an environment in ``folder``, with ``requirements`` on top, and return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", "--clear", folder)
    python, beneath = folder / "bin" / "python", sysconfig.get_path("purelib")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "_beneath.pth").write_text(f"import site; site.addsitedir({beneath!r})\n")  # follows .pth files there, too
    if requirements is not None:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder)
        run(*pip, "install", "--quiet", "--only-binary=:all:", "--requirement", requirements)
    return python
