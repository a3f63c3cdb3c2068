"""Notebooks stay lean, carry no outputs, need no network, and the index tells which there are. nbmake runs them."""

import ast
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from hepattn.plotting.gallery import THUMBNAILS

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_CODE_CELLS = 20
MAX_LINES = 15
NETWORK = {"requests", "urllib", "urllib3", "http", "httpx", "aiohttp", "socket", "ftplib", "huggingface_hub", "wget"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if kind is None or cell["cell_type"] == kind]


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def tree(cell: dict[str, Any]) -> ast.Module:
    """The code of a cell; lines of IPython's own (% and !) count as comments."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", text(cell), flags=re.MULTILINE))


def index() -> list[list[str]]:
    """Rows of the index's table: number, notebook, question, minutes, thumbnail."""
    rows = re.findall(r"^\| *(\d\d) *\|(.*)\|$", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [[number, *(field.strip() for field in rest.split("|"))] for number, rest in rows]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS][:1] == ["00_quickstart"]


@each_notebook
def test_code_is_short(path):
    code = cells(path, "code")
    assert len(code) <= MAX_CODE_CELLS
    longest = max(len(text(cell).splitlines()) for cell in code)
    assert longest <= MAX_LINES


@each_notebook
def test_nothing_is_defined(path):
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in cells(path, "code"):
        found = [node for node in ast.walk(tree(cell)) if isinstance(node, defined)]
        assert not found, f"this belongs in the package: {text(cell)}"


@each_notebook
def test_imports_are_in_one_cell(path):
    importing = [
        cell
        for cell in cells(path, "code")
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree(cell)))
    ]
    assert importing == cells(path, "code")[:1]


@each_notebook
def test_no_network(path):
    for cell in cells(path, "code"):
        for node in ast.walk(tree(cell)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not NETWORK & {name.partition(".")[0] for name in names}
        assert not re.search(r"https?://|^\s*!|%pip|%conda", text(cell), flags=re.MULTILINE)


@each_notebook
def test_outputs_are_stripped(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@each_notebook
def test_it_opens_with_the_question_and_closes_with_what_to_take_away(path):
    first, *_, last = cells(path)
    assert first["cell_type"] == last["cell_type"] == "markdown"
    assert text(first).startswith(f"# {path.stem[:2]}")
    assert "?" in text(first)
    assert "you can answer" in text(first)
    assert re.search(r"\d+ minutes?", text(first))
    assert "## Take away" in text(last)
    assert "Limits" in text(last)


@each_notebook
def test_nbmake_stops_it_in_time(path):
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert metadata["execution"]["timeout"] <= 300
    assert metadata["kernelspec"]["name"] == "python3"


def test_the_readers_own_event_is_one_to_explore():
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith("01"))
    code = {cell["id"]: text(cell) for cell in cells(path, "code")}
    wanted = [name for name in code if name in {"imports", "events", "selection", "own", "explore"}]
    assert wanted == ["imports", "events", "selection", "own", "explore"]  # in this order
    assert "folder = None" in code["own"]
    names: dict[str, Any] = {}
    for name in wanted:
        exec(code[name].replace('"mu = 200"', '"mu = 0"').replace("(0, 40, 200)", "(0,)"), names)
    explorer = names["explorer"]
    explorer.event = "own"
    assert explorer.shown() is names["own"]


def test_the_index_agrees_with_the_folder():
    rows = index()
    assert [row[0] for row in rows] == [f"{number:02d}" for number in range(14)]
    linked = {}
    for number, notebook, question, minutes, _ in rows:
        link = re.fullmatch(r"\[(\w+)\]\((\w+\.ipynb)\)", notebook)
        assert question.endswith("?")
        if link is None:
            assert re.fullmatch(r"\w+ \(to come\)", notebook)
            assert minutes == "-"
        else:
            assert link[2] == f"{number}_{link[1]}.ipynb"
            assert minutes.isdigit()
            linked[link[2]] = minutes
    assert sorted(linked) == [path.name for path in NOTEBOOKS]
    for name, minutes in linked.items():
        assert re.search(rf"\b{minutes} minutes?\b", text(cells(FOLDER / name)[0])), f"{name} tells other minutes"


def test_every_finished_notebook_has_a_thumbnail():
    """A line in `THUMBNAILS`, a small picture that the command made of it, and the index shows it with words for it."""
    finished = [path.stem[:2] for path in NOTEBOOKS]
    assert sorted(THUMBNAILS) == finished, "hepattn.plotting.gallery.THUMBNAILS holds one line a finished notebook"
    for number, *_, thumbnail in index():
        if number not in finished:
            assert thumbnail == "-"
            continue
        shown = re.fullmatch(r"!\[(.+)\]\((.+)\)", thumbnail)
        assert shown is not None, f"notebook {number} needs ![what is seen](images/{number}.png) in the index"
        assert shown[2] == f"images/{number}.png"
        picture = (FOLDER / shown[2]).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 60_000
        assert struct.unpack(">I", picture[16:20]) == (320,)
