"""One JupyterLab server and one Chromium for all scenarios, a page for each file of them.

A page lets no request leave 127.0.0.1 and collects what the console calls an error; either fails the scenario.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parents[1] / "notebooks"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

LATENCIES = pytest.StashKey[dict[str, list[float]]]()  # ms from key press to changed pixels, by explorable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser there is nothing to drive: say which package is missing, and fail where CI must have it."""
    if CHROMIUM is None and not os.environ.get("CI"):
        skip = pytest.mark.skip(reason="no Chromium: sudo apt install chromium")
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of latencies."""
    latencies = config.stash.get(LATENCIES, {})
    if latencies:
        terminalreporter.write_sep("-", "from key press to changed pixels (ms): median, slowest, presses")
        for name, values in latencies.items():
            line = f"{name:<60} {statistics.median(values):6.0f} {max(values):6.0f} {len(values):4d}"
            terminalreporter.write_line(line)


@dataclass(frozen=True)
class Server:
    """A running JupyterLab: its address, its token and the folder that it shows."""

    url: str
    token: str
    root: Path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A JupyterLab 4 on a free port, on a copy of the notebooks, with settings and caches of its own."""
    base = tmp_path_factory.mktemp("jupyter")
    root = base / "notebooks"
    shutil.copytree(NOTEBOOKS, root) if NOTEBOOKS.exists() else root.mkdir()
    shutil.copy(HERE / "demo.py", root)
    (root / "demo.ipynb").write_text(nbformat.writes(_demo_notebook()))
    settings = base / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    places = {
        "JUPYTER_CONFIG_DIR": base / "config",
        "JUPYTER_DATA_DIR": base / "data",
        "JUPYTER_RUNTIME_DIR": base / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": base / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": base / "workspaces",
        "IPYTHONDIR": base / "ipython",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.root_dir": root,
        "IdentityProvider.token": token,
        "LabApp.news_url": "",
        "LabApp.extension_manager": "readonly",
        "LabApp.expose_app_in_browser": True,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
    }
    log = (base / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *(f"--{key}={value}" for key, value in options.items())],
        env=os.environ | {key: str(value) for key, value in places.items()},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait(f"http://127.0.0.1:{port}/api", process, base / "server.log")
        yield Server(f"http://127.0.0.1:{port}", token, root)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)
        log.close()


def _wait(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not answer at {address}:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def context(server: Server):
    """Chromium, headless, driven by Playwright: one profile, whose cache makes the second page load faster."""
    if CHROMIUM is None:
        pytest.fail("CI must drive a real browser, and there is no Chromium: sudo apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        yield context
        chromium.close()


@dataclass
class Lab:
    """A browser page on the server, what it asked of other hosts, and what its console called an error."""

    page: object
    server: Server
    latencies: dict[str, list[float]]
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, notebook: str) -> None:
        """Open a notebook in JupyterLab's one-document view and wait until its kernel can take cells."""
        self.shut_down()
        self.page.goto(f"{self.server.url}/doc/tree/{notebook}?token={self.server.token}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=60_000,
        )

    def shut_down(self) -> None:
        """Stop the kernels that the page has started."""
        self.page.evaluate("() => window.jupyterapp?.serviceManager.sessions.shutdownAll()")

    def run_all(self, timeout: float = 240.0) -> None:
        """Run every cell, as the menu does, and wait for the last one; fails on any cell that raised."""
        failures = self.page.evaluate(
            """async (timeout) => {
                 const late = new Promise((_, fail) => setTimeout(() => fail(new Error("run all: too late")), timeout));
                 await Promise.race([late, window.jupyterapp.commands.execute("notebook:run-all-cells")]);
                 const cells = window.jupyterapp.shell.currentWidget.content.widgets.map(({ model }) => model);
                 const outputs = cells.filter(({ type }) => type === "code").flatMap(({ outputs }) => outputs.toJSON());
                 return outputs.filter(({ output_type }) => output_type === "error").map(({ traceback }) => traceback);
               }""",
            1000 * timeout,
        )
        assert not failures, "\n".join(failures[0])

    def run(self, code: str) -> None:
        """Run a line of Python in the notebook's kernel."""
        self.page.evaluate(
            """(code) => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
                 .requestExecute({ code }).done""",
            code,
        )

    def record_latency(self, name: str, times: list[float]) -> None:
        """Keep times for the table at the end of the run; fails if their median is over a second."""
        self.latencies[name] = times
        assert statistics.median(times) < 1000, f"{name}: {times} ms from key press to changed pixels"

    def take_complaints(self) -> tuple[list[str], list[str]]:
        """Requests to other hosts and console errors since the last call."""
        complaints = self.foreign.copy(), self.errors.copy()
        self.foreign.clear()
        self.errors.clear()
        return complaints

    def theme(self, name: str) -> None:
        """Switch JupyterLab's theme and wait until the page wears it and its splash screen has gone.

        The splash fades for 200 ms; a theme that is changed again meanwhile makes JupyterLab remove it twice, which
        the console calls an error.
        """
        self.page.evaluate(
            "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", f"JupyterLab {name}"
        )
        light = "true" if name == "Light" else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")


@pytest.fixture(scope="module")
def lab(server: Server, context, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A page for the scenarios of one file; at their end its kernels stop."""
    page = context.new_page()
    page.set_default_timeout(20_000)
    lab = Lab(page, server, request.config.stash.setdefault(LATENCIES, {}))

    def refuse(route) -> None:
        lab.foreign.append(route.request.url)
        route.abort()

    page.route(_is_foreign, refuse)
    page.on("websocket", lambda socket: lab.foreign.append(socket.url) if _is_foreign(socket.url) else None)
    page.on("console", lambda said: lab.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: lab.errors.append(str(error)))
    yield lab
    lab.shut_down()
    page.close()


@pytest.fixture(autouse=True)
def _quiet_and_at_home(lab: Lab) -> Iterator[None]:
    """After every scenario: nothing was asked of another host, and the console holds no error."""
    yield
    foreign, errors = lab.take_complaints()
    assert foreign == [], f"requests outside 127.0.0.1: {foreign}"
    assert errors == [], f"console errors: {errors}"


def _is_foreign(url: str) -> bool:
    address = urlsplit(url)
    return address.scheme in ("http", "https", "ws", "wss") and address.hostname != "127.0.0.1"


def _demo_notebook() -> nbformat.NotebookNode:
    cells = [
        "from demo import noise, broken, slow",
        "noise().picture()",
        "explorable = noise()\nexplorable",
        "broken()",
        "slow()",
    ]
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
