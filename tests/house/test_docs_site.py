"""The site of the documentation: its drawing is that of the code, and its pages ask nobody else for anything."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

LOADS = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)"
)
STYLES = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")]+)")


def foreign(pages: Iterable[tuple[str, str]]) -> list[str]:
    """Return what pages and styles load from elsewhere; links that a reader follows are none."""
    return [f"{name} loads {found}" for name, text in pages
            for found in (STYLES if name.endswith(".css") else LOADS).findall(text)]  # fmt: skip


def drawing(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("drawing", root / "docs" / "_site" / "drawing.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_of_the_rooms_is_that_of_the_code(root: Path) -> None:
    made = drawing(root)
    assert made.FILE.read_text(encoding="utf-8") == made.draw(), "run docs/_site/drawing.py"


def test_an_arrow_that_follows_from_others_is_left_out(root: Path) -> None:
    arrows = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"c"}}
    assert drawing(root).reduced(arrows) == [("a", "b"), ("b", "c"), ("d", "c")]


def test_what_the_page_says_of_the_code_is_there(root: Path) -> None:
    page = (root / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| .*\? \| `([\w/]+\.py)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(named) >= 10
    for file, name in named:
        nodes = ast.walk(ast.parse((root / file).read_text(encoding="utf-8")))
        assert name in {one.name for one in nodes if isinstance(one, ast.FunctionDef)}, file
    rooms = re.findall(r"^### `(\w+)`\n+((?:\|.*\n)+)", page, re.MULTILINE)
    assert [room for room, _ in rooms] == ["common", "privacy", "client", "server"]
    for room, table in rooms:
        listed = set(
            re.findall(r"`(\w+)`", "".join(re.findall(r"^(\|[^|]*)\|", table, re.MULTILINE)))
        )
        there = {path.parent.name for path in (root / room).glob("*/__init__.py")}
        assert listed == there, room


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    pytest.importorskip("material", reason="the extra docs is not installed")
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        str(site),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    paths = [path for end in ("html", "css") for path in site.rglob(f"*.{end}")]
    pages = [(str(path), path.read_text(encoding="utf-8")) for path in paths]
    assert len(pages) > 80
    assert foreign(pages) == []
    assert "calibrated" in (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert 'id="privet.simulations.run.simulate"' in (
        site / "reference" / "api" / "simulate.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://unpkg.com/iframe-worker/shim"></script>'),
        ("a.html", '<link rel="stylesheet" href="//fonts.googleapis.com/css">'),
        ("a.html", "<img alt=x src=http://example.org/x.png>"),
        ("a.css", "@font-face{src:url(https://example.org/x.woff2)}"),
    ],
)
def test_what_is_loaded_from_elsewhere_is_noticed(name: str, text: str) -> None:
    assert foreign([(name, text)])


def test_a_link_to_elsewhere_is_nothing_that_is_loaded() -> None:
    assert foreign([("a.html", '<a href="https://flower.ai">Flower</a><img src="x.svg">')]) == []
