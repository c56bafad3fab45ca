"""What a notebook of the series looks like: one function per rule, from a notebook to the list of what breaks it."""

import ast
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import groupby, pairwise
from pathlib import Path
from urllib.parse import unquote

from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
SLUG, TAG = REPOSITORY.removeprefix("https://github.com/"), f"v{PROJECT['version']}"

CELLS, WORDS = range(25, 46), range(600, 1201)
LINES_OF_CODE, CODE_CELLS_IN_A_ROW = 15, 2
COMPARED, CLAIMS, EXERCISES = 8, 5, 3
CHECK = "# NBVAL_CHECK_OUTPUT"
DATA_URI = re.compile(r"data:image/[\w+.-]+;base64,[A-Za-z0-9+/=\\n]+")

COLAB_CELL = f"""\
try:
    import google.colab  # noqa: F401 (only there)

    %pip install --quiet "lemmse[widgets] @ git+{REPOSITORY}@{TAG}"
except ImportError:
    pass  # everywhere else the package is installed already"""

Rule = Callable[[str, NotebookNode], list[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a rule: it takes a notebook's name, without suffix, and the notebook, and returns what breaks it."""
    RULES[function.__name__] = function
    return function


def binder(name: str) -> str:
    """Return the address that opens a notebook on Binder, at the tag of this version."""
    return f"https://mybinder.org/v2/gh/{SLUG}/{TAG}?urlpath=lab/tree/notebooks/{name}.ipynb"


def colab(name: str) -> str:
    """Return the address that opens a notebook on Colab, at the tag of this version."""
    return f"https://colab.research.google.com/github/{SLUG}/blob/{TAG}/notebooks/{name}.ipynb"


def tags(cell: NotebookNode) -> set[str]:
    """Return the tags of a cell."""
    return set(cell.metadata.get("tags", []))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def hidden(cell: NotebookNode) -> bool:
    """Return whether a cell's source is folded away."""
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def prose(notebook: NotebookNode, *, without: set[str] = frozenset()) -> str:
    """Return the Markdown of a notebook without its code blocks and without cells that carry one of some tags."""
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown" and not without & tags(c)]
    return re.sub(r"^```.*?^```", "", "\n\n".join(texts), flags=re.DOTALL | re.MULTILINE)


def headings(notebook: NotebookNode) -> list[tuple[int, str]]:
    """Return the level and the text of each heading."""
    return [(len(marks), text) for marks, text in re.findall(r"^(#{1,6}) +(.+?) *#*$", prose(notebook), re.MULTILINE)]


def data_of(notebook: NotebookNode) -> list[dict]:
    """Return the MIME bundles of all outputs."""
    return [output.data for cell in code_cells(notebook) for output in cell.outputs if "data" in output]


class Images(HTMLParser):
    """The alternative texts of the images in some HTML; ``None`` for an image without."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.alts: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))


@rule
def one_title_and_no_skipped_level(name, notebook):
    levels = [level for level, _ in headings(notebook)]
    found = (
        []
        if levels.count(1) == 1 and levels[0] == 1
        else [f"{levels.count(1)} headings of level 1; one, the first, is asked for"]
    )
    return found + [f"a heading of level {b} follows one of level {a}" for a, b in pairwise(levels) if b > a + 1]


@rule
def length(name, notebook):
    words = len(
        re.findall(
            r"[^\W\d_][\w'’-]*",
            re.sub(
                r"\$.*?\$|\]\(.*?\)|<.*?>", " ", prose(notebook, without={"solution", "wrong-answer"}), flags=re.DOTALL
            ),
        )
    )
    found = (
        []
        if len(notebook.cells) in CELLS
        else [f"{len(notebook.cells)} cells; {CELLS[0]} to {CELLS[-1]} are asked for"]
    )
    return found + ([] if words in WORDS else [f"{words} words; {WORDS[0]} to {WORDS[-1]} are asked for"])


@rule
def short_code_cells(name, notebook):
    counts = [
        (i, len([line for line in c.source.splitlines() if line.strip()]))
        for i, c in enumerate(notebook.cells)
        if c.cell_type == "code" and not hidden(c)
    ]
    return [f"cell {i} has {n} lines of code; at most {LINES_OF_CODE}" for i, n in counts if n > LINES_OF_CODE]


@rule
def words_between_code(name, notebook):
    shown = [cell for cell in notebook.cells if not (cell.cell_type == "code" and hidden(cell))]
    runs = [list(group) for is_code, group in groupby(shown, key=lambda c: c.cell_type == "code") if is_code]
    return [
        f"{len(run)} code cells in a row from {run[0].source[:40]!r}" for run in runs if len(run) > CODE_CELLS_IN_A_ROW
    ]


@rule
def opening_and_end(name, notebook):
    first = notebook.cells[0].source
    found = [] if re.match(rf"# {name[:2]} · ", first) else [f"the first cell does not begin with '# {name[:2]} · '"]
    found += (
        [] if re.search(r"\d+ minutes", first) else ["the first cell does not say how many minutes the notebook takes"]
    )
    after = prose(notebook).partition("What we saw")[2]
    bullets = re.findall(r"^[-*] ", re.split(r"^#", after, flags=re.MULTILINE)[0], re.MULTILINE)
    return found + ([] if len(bullets) >= 3 else ["a section 'What we saw' with three bullets is missing"])


@rule
def badges(name, notebook):
    addresses = re.findall(
        r"\]\((https://(?:mybinder\.org|colab\.research\.google\.com)/.*?)\)", notebook.cells[0].source
    )
    return [] if addresses == [binder(name), colab(name)] else [f"its links to Binder and Colab are {addresses}"]


@rule
def colab_cell(name, notebook):
    cell = code_cells(notebook)[0]
    return [] if cell.source == COLAB_CELL else [f"the first code cell is not the one for Colab:\n{COLAB_CELL}"]


@rule
def links(name, notebook):
    found = []
    for text, target in re.findall(r"!?\[([^\]]*)\]\(([^)\s]+)\)", prose(notebook)):
        if target.startswith("#"):
            if unquote(target[1:]) not in {title.replace(" ", "-") for _, title in headings(notebook)}:
                found.append(f"[{text}]({target}) points at no heading")
        elif target.startswith(f"{REPOSITORY}/blob/{TAG}/"):
            path = target.removeprefix(f"{REPOSITORY}/blob/{TAG}/").partition("#")[0]
            found += [] if (ROOT / path).exists() else [f"{path} does not exist"]
        elif "://" not in target and not (ROOT / "notebooks" / unquote(target).partition("#")[0]).exists():
            found.append(f"{target} does not exist")
    return found


@rule
def pictures_have_words(name, notebook):
    bare = sum("text/html" not in data for data in data_of(notebook) if any(key.startswith("image/") for key in data))
    found = [f"{bare} pictures reach the page as bare images, without alternative text"] if bare else []
    alts = [alt for data in data_of(notebook) for alt in Images(data.get("text/html", "")).alts]
    alts += Images(prose(notebook)).alts + re.findall(r"!\[([^\]]*)\]", prose(notebook))
    return found + [
        f"image {i} of the page has no alternative text" for i, alt in enumerate(alts) if not (alt or "").strip()
    ]


@rule
def nothing_from_the_network(name, notebook):
    page = prose(notebook) + "".join("".join(data.get("text/html", "")) for data in data_of(notebook))
    loaded = re.findall(
        r"!\[[^\]]*\]\((https?:[^)]+)\)|(?:src|href)=[\"'](https?:[^\"']+\.(?:png|svg|jpe?g|gif|css|js))", page
    )
    return [f"opening the page asks for {a or b}" for a, b in loaded]


@rule
def clean_outputs(name, notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"the execution counts are {counts}"]
    for cell in code_cells(notebook):
        kinds = [output.get("name", output.output_type) for output in cell.outputs]
        found += [f"{kind} under {cell.source[:40]!r}" for kind in kinds if kind in ("stderr", "error")]
    return found


@rule
def nothing_of_one_machine(name, notebook):
    text = DATA_URI.sub("", json.dumps(notebook))
    paths = re.findall(
        r"(?<![\w.:/])(?:/(?:home|root|tmp|usr|opt|work|Users|content|mnt)/[\w./-]+|[A-Z]:\\\\\w+)", text
    )
    found = [f"the path {path}" for path in paths]
    found += [f"the address {address}" for address in re.findall(r"\bat 0x[0-9a-f]{6,}", text)]
    found += [f"metadata {key!r}" for key in notebook.metadata if key not in ("kernelspec", "language_info")]
    found += [f"the interpreter's {key}" for key in notebook.metadata.language_info if "version" in key]
    return found + [
        "a widget's state" for data in data_of(notebook) if "application/vnd.jupyter.widget-view+json" in data
    ]


@rule
def small_file(name, notebook):
    megabytes = len(json.dumps(notebook, ensure_ascii=False, indent=1).encode()) / 1e6
    return [] if megabytes < 1.5 else [f"{megabytes:.2f} MB; less than 1.5 is asked for"]


@rule
def compared_outputs(name, notebook):
    marked = [cell for cell in code_cells(notebook) if CHECK in cell.source]
    found = [
        f"{CHECK} is not the first line of {cell.source[:60]!r}" for cell in marked if not cell.source.startswith(CHECK)
    ]
    compared = [
        cell
        for cell in marked
        if any(output.get("text") or output.get("data", {}).get("text/plain") for output in cell.outputs)
    ]
    found += [f"nothing to compare under {cell.source[:60]!r}" for cell in marked if cell not in compared]
    return found + (
        [] if len(compared) >= COMPARED else [f"{len(compared)} compared outputs; at least {COMPARED} are asked for"]
    )


def claims_of(notebook: NotebookNode) -> list[str]:
    """Return the ids of the claims of a notebook."""
    return [cell.metadata["claim"] for cell in notebook.cells if "claim" in cell.metadata]


def _asserts(node: ast.AST) -> bool:
    """Return whether a node of the syntax tree asserts something: not a constant; `assert_close` and its like count."""
    if isinstance(node, ast.Call):
        return getattr(node.func, "attr", getattr(node.func, "id", "")).startswith("assert_")
    return isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)


@rule
def claims(name, notebook):
    found, asserted = [], 0
    for cell in notebook.cells:
        if ("claim" in tags(cell)) != ("claim" in cell.metadata):
            found.append(f"a claim has the tag `claim` and an id: {cell.source[:60]!r}")
        if "claim" not in cell.metadata:
            continue
        if not re.fullmatch(rf"{name[:2]}(-[a-z0-9]+)+", cell.metadata["claim"]):
            found.append(f"the claim id {cell.metadata['claim']!r} is not of the form {name[:2]}-short-slug")
        real = cell.cell_type == "code" and any(map(_asserts, ast.walk(ast.parse(cell.source))))
        asserted += real
        found += [] if real else [f"the claim {cell.metadata['claim']!r} asserts nothing"]
    found += [f"the claim id {claim!r} is used {n} times" for claim, n in Counter(claims_of(notebook)).items() if n > 1]
    return found + ([] if asserted >= CLAIMS else [f"{asserted} asserted claims; at least {CLAIMS} are asked for"])


@rule
def predict_and_explore(name, notebook):
    marked = Counter(tag for cell in notebook.cells for tag in tags(cell))
    found = [f"no cell is tagged {tag!r}" for tag in ("predict", "explorable") if not marked[tag]]
    for cell in code_cells(notebook):
        if "explorable" in tags(cell) and not any(
            Images(output.get("data", {}).get("text/html", "")).alts for output in cell.outputs
        ):
            found.append(f"no static picture stands for the explorable of {cell.source[:60]!r}")
    return found


@rule
def exercises(name, notebook):
    from lemmse.exercises import read

    try:
        found = read(notebook)
    except ValueError as error:
        return [str(error)]
    hints = {cell.metadata.get("exercise") for cell in notebook.cells if "hint" in tags(cell)}
    broken = [f"exercise {e.name!r} has no hint" for e in found if e.name not in hints]
    return broken + ([] if len(found) >= EXERCISES else [f"{len(found)} exercises; at least {EXERCISES} are asked for"])
