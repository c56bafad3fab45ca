"""The project around the package: commands, environments, licences, and the rooms and floors of the code."""

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import notebook_rules
from overlay import ROOT, lay_over, run

PACKAGE = ROOT / "lemmse"
PROJECT = notebook_rules.PROJECT
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Return the files that git tracks, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = run("git", "ls-files", "-z").split("\0")
    return [Path(name) for name in names if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def clone(tracked, tmp_path_factory) -> Path:
    """Return a copy of what is tracked, as a fresh clone would be."""
    folder = tmp_path_factory.mktemp("clone")
    for path in tracked:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    return folder


# ---- Versions and environments --------------------------------------------------------------------------------------


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return the project's requirements with those of some extras, by name; an extra may name others."""
    found = {}
    for text in PROJECT["dependencies"] + [text for extra in extras for text in EXTRAS[extra]]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            found |= requirements(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def test_floors_have_no_caps():
    for name, requirement in requirements(*EXTRAS).items():
        assert [clause.operator for clause in requirement.specifier] == [">="], f"{name}: a floor and nothing else"


def test_constraints_pin_every_requirement_above_its_floor():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert pins["torch"] == "2.13.0"
    for name, requirement in requirements(*EXTRAS).items():
        assert name in pins, f"{name} is not pinned: make constraints"
        assert requirement.specifier.contains(pins[name]), f"{name} is pinned to {pins[name]}, below its floor"


def conda_packages(file: str) -> tuple[dict[str, str], list]:
    """Return the packages of a conda environment, each with its version clause, and what is left to pip."""
    entries = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    split = [re.fullmatch(r"([a-z0-9-]+)(.*)", entry).groups() for entry in entries if isinstance(entry, str)]
    assert len(dict(split)) == len(split), f"{file} names a package twice"
    return dict(split), pip


@pytest.mark.parametrize(
    ("file", "torch", "left_to_pip"),
    [("environment.yml", "pytorch", ["--editable ."]), ("binder/environment.yml", "pytorch-cpu", [])],
)
def test_conda_environments_agree_with_the_project(file, torch, left_to_pip):
    packages, pip = conda_packages(file)
    names = {"torch": torch, "matplotlib": "matplotlib-base"}
    expected = {names.get(name, name): str(req.specifier) for name, req in requirements("notebooks").items()}
    build = next(Requirement(text) for text in EXTRAS["test"] if text.startswith("setuptools"))
    expected |= {"setuptools": str(build.specifier), "pip": ""}
    python = packages.pop("python")
    assert packages == expected
    assert pip == left_to_pip
    version = re.search(r"[\d.]+", python).group()
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)


def test_binder_post_build_runs_in_a_fresh_environment(clone, tmp_path):
    """Its commands, on a fresh clone, in an environment with what Binder's would hold; a failing one ends it."""
    python = lay_over(tmp_path / "venv")
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    assert "lemmse" in run("bash", "binder/postBuild", cwd=clone, env=environment)
    where = run(python, "-c", "import lemmse; print(lemmse.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(clone), "postBuild installed something else than the clone"

    broken = tmp_path / "broken"
    shutil.copytree(clone, broken)
    (broken / "lemmse" / "figures.py").write_text("raise ImportError('broken on purpose')\n")
    done = subprocess.run(["bash", "binder/postBuild"], cwd=broken, env=environment, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"broken on purpose" in done.stderr


def test_the_wheel_holds_the_whole_package(tracked, clone, tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, clone)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {path.as_posix() for path in tracked if path.parts[0] == "lemmse"} <= held
    for licence in PROJECT["license-files"]:
        assert any(name.endswith(f"licenses/{licence}") for name in held), f"{licence} is not in the wheel"


def test_citation_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["repository-code"] == notebook_rules.REPOSITORY
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2601.10334"


# ---- Commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('[ "$1" = --version ] && echo Python 3.9.2; exit 1', "needs Python 3.11 or newer, and ./python is: Python 3"),
        ('[ "$1" = -m ] && exit 1; exit 0', "install the package python3-venv"),
    ],
    ids=["old", "without venv"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["lab", "test"])
def test_make_says_what_is_wrong_with_python(command, script, message, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["make", command, "PYTHON=./python"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert message in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_make_help_names_every_command():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    assert re.findall(r"^  make (\S+)", run("make", "help"), re.MULTILINE) == commands


def ask(url: str, patience: float = 20) -> int:
    """Return the status that a server answers with; it may take a while until it listens."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_make_lab_keeps_its_token_and_evades_a_busy_port(tmp_path):
    """JupyterLab starts on another port than the busy one, opens the first notebook, and wants its token."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        flags = f"--no-browser --ServerApp.port={port}"
        places = {f"JUPYTER_{place}_DIR": str(tmp_path / place) for place in ("CONFIG", "DATA", "RUNTIME")}
        binaries = Path(sys.executable).parent
        command = ["make", "-o", ".venv/.notebooks", "lab", f"BIN={binaries}", f"LAB_FLAGS={flags}"]
        log = tmp_path / "log"
        with log.open("w") as out:
            server = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True, env=os.environ | places
            )
        try:
            address = r"http://(?:localhost|127\.0\.0\.1):(\d+)(/lab/tree/\S+)\?token=(\w+)"
            deadline = time.monotonic() + 60
            while not (found := re.search(address, log.read_text())):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            other, path, token = found.groups()
            base = f"http://127.0.0.1:{other}"
            assert int(other) != port
            assert path == "/lab/tree/notebooks/00_inverse_problems.ipynb"
            assert ask(f"{base}/api/contents/Makefile") == 403
            assert ask(f"{base}/api/contents/Makefile?token={token}") == 200
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def test_ci_runs_lint_and_test():
    script = (ROOT / ".ci" / "run").read_text()
    run("bash", "-n", ".ci/run")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert script.splitlines()[-2:] == ["make lint", 'make test STARTED="$started"']
    assert "set -euo pipefail" in script
    assert "export CI=true" in script


def test_the_suite_says_what_took_too_much_and_ends_on_its_closing_line(tmp_path):
    for name in ("conftest.py", "pyproject.toml", "scripts/notebooks.py", "tests/notebooks/sanitize.cfg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    conftest = tmp_path / "conftest.py"
    limits = r"(NOTEBOOK_SECONDS|NOTEBOOK_MEGABYTES) = \d+"
    text, changed = re.subn(limits, r"\1 = 0", conftest.read_text())
    assert changed == 2
    conftest.write_text(text)
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    nbformat.write(notebook, tmp_path / "notebooks" / "99_dear.ipynb")
    command = [sys.executable, "-m", "pytest", f"--since={time.time() - 301}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"99_dear.ipynb took \d+ s, and may take 0; \d+ MB, and may take 0", done.stdout)
    assert re.search(r"^set-up +5:\d\d of 5 min   OVER BUDGET$", done.stdout, re.MULTILINE)
    assert re.search(r"^notebooks +0:\d\d of 4 min$", done.stdout, re.MULTILINE)
    assert re.fullmatch(r"=+ 1 failed, 1 passed.* in .*=+", done.stdout.splitlines()[-1])


# ---- Pages ----------------------------------------------------------------------------------------------------------

PAGES = ["README.md", "CONTRIBUTING.md", "docs/statements.md", "LICENSE-CC-BY-4.0.md", "NOTICE.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_point_at_files_that_exist(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    targets += re.findall(r'(?:src|href)="([^"]+)"', text)
    missing = [
        t for t in targets if "://" not in t and not t.startswith("#") and not (ROOT / t.partition("#")[0]).exists()
    ]
    assert missing == []
    for address in re.findall(r"https://(?:mybinder\.org/v2|colab\.research\.google\.com/github)[^)\s]+", text):
        notebook = re.search(r"notebooks/(\w+)\.ipynb", address).group(1)
        assert address in (notebook_rules.binder(notebook), notebook_rules.colab(notebook))
        assert (ROOT / "notebooks" / f"{notebook}.ipynb").exists()
    assert all(
        address.startswith(notebook_rules.REPOSITORY) for address in re.findall(r"https://github\.com/lemmse\S*", text)
    )


README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n.*?^```text\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("code", "printed"), EXAMPLES, ids=[f"example {i + 1}" for i in range(len(EXAMPLES))])
def test_readme_examples_print_what_they_say(code, printed, tmp_path, monkeypatch, capsys):
    """As written, beside a folder of pictures of a reader's own."""
    (tmp_path / "my_pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my_pictures" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_readme_has_every_python_block_tested_and_maps_what_exists():
    assert len(EXAMPLES) == README.count("```python") == 2
    rows = re.findall(r"^\| (?:\[(\d\d) .*?\]\((.*?)\)|(\d\d) .*?) \|", README, re.MULTILINE)
    assert [linked or planned for linked, _, planned in rows] == [f"{i:02d}" for i in range(10)]
    existing = {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path for _, path, _ in rows if path} == existing


def test_readme_picture_is_what_its_script_draws(tmp_path):
    """The numbers in its alternative text are those of the picture, and its file is there."""
    ((alt, path),) = re.findall(r"^!\[(.*?)\]\((.*?)\)$", README, re.MULTILINE)
    said = run(sys.executable, "scripts/readme_picture.py", tmp_path / "readme.png")
    assert said.strip() == f"readme.png: {alt}"
    drawn, kept = (
        np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in (tmp_path / "readme.png", ROOT / path)
    )
    assert drawn.shape == kept.shape
    assert abs(drawn - kept).mean() < 2  # of 255: another version of matplotlib may draw the letters otherwise


def test_nothing_tracked_names_a_machine(tracked):
    """No path of one machine, no package index, no page that the repository does not hold."""
    words = [
        "/wo" + "rk/",
        "/ro" + "ot/",
        "/opt/" + "wheels",
        "/opt/" + "pypi",
        "pypi" + ".org",
        "pythonhosted" + ".org",
    ]
    words += ["download.py" + "torch", "design" + ".md", "theory" + ".md", "interaction" + ".md"]
    pattern = re.compile("|".join(map(re.escape, words)) + r"|\bissue \d")
    found = []
    for path in tracked:
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or an archive
        found += [f"{path}: {match}" for match in pattern.findall(notebook_rules.DATA_URI.sub("", text))]
    assert found == []


# ---- Rooms and floors -----------------------------------------------------------------------------------------------

FLOORS = {
    0: {"_device", "_types", "_progress", "exercises"},
    1: {"_compiled", "_factors", "image_sets", "patches", "metrics", "gaussians", "reductions", "optics"},
    2: {"_fused", "_screen", "_weighing", "data", "operators"},
    3: {"_checks", "_soap", "receptive_fields", "kernels", "means", "strata", "windows"},
    4: {"networks", "screen"},
    5: {"estimators"},
    6: {"explain", "bounds", "blind", "comparison", "training", "pretrained", "distributed"},
    7: {"figures"},
    8: {"ui"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}


def rooms_imported(code: str, file: Path) -> set[str]:
    """Return the rooms of the package that a module's code imports, at the top or anywhere else."""
    rooms, inside = set(), file.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = ["lemmse", *inside][: len(inside) + 2 - node.level] if node.level else []
            names = [[*up, *(node.module.split(".") if node.module else []), alias.name] for alias in node.names]
        else:
            continue
        rooms |= {name[1] for name in names if name[0] == "lemmse" and len(name) > 1}
        rooms |= {"__init__" for name in names if name == ["lemmse"]}
    return rooms


def stairs_climbed(code: str, file: Path) -> list[str]:
    """Return the imports of a module that do not go down; ``__init__`` stands above all floors."""
    room = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if room == "__init__":
        return []
    top = max(FLOORS) + 1
    others = rooms_imported(code, file) - {room}
    return [f"{room} imports {other}" for other in sorted(others) if FLOOR_OF.get(other, top) >= FLOOR_OF[room]]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_from_lower_floors(file):
    assert stairs_climbed(file.read_text(), file) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("metrics.py", "from lemmse.operators import Blur"),
        ("metrics.py", "from .operators import Blur"),
        ("metrics.py", "from . import operators"),
        ("metrics.py", "from lemmse import patches"),
        ("operators.py", "def f():\n    import lemmse.figures"),
        ("figures.py", "import lemmse as le"),
        ("figures.py", "from .ui.view import View"),
        ("data.py", "from lemmse.unheard_of import x"),
    ],
)
def test_an_import_that_climbs_is_found(room, line):
    assert stairs_climbed(line, PACKAGE / room) != []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("ui/view.py", "from .explorable import x"),
        ("ui/view.py", "from ..figures import show"),
        ("data.py", "import torch"),
    ],
)
def test_an_import_that_goes_down_is_not(room, line):
    assert stairs_climbed(line, PACKAGE / room) == []


def test_importing_the_package_loads_nothing_but_its_three_dependencies():
    script = """if True:
        import json, sys
        import jaxtyping, numpy, torch, torch.distributions, torch.nn.functional
        before = set(sys.modules)
        import lemmse
        print(json.dumps([sorted(sys.modules), sorted(set(sys.modules) - before)]))
    """
    loaded, added = (
        {name.partition(".")[0] for name in names} for names in json.loads(run(sys.executable, "-c", script))
    )
    assert not loaded & {"matplotlib", "ipywidgets", "anywidget", "pooch", "PIL", "dask", "numba"}
    assert added - sys.stdlib_module_names == {"lemmse"}
