"""The built site, as `mkdocs build` has left it: examples arrive letter by letter, and each public name has its place.

Run by `tox run -e docs`, after building. Needs none of our packages installed.
"""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from workspace import ROOT

SITE = ROOT / "site"
SOURCES = {"reallm": "reallm-core", "reallm_devkit": "reallm-devkit"}
"""Module -> the package that holds it."""
INCLUDED = sorted(
    (page.stem, path)
    for page in (ROOT / "docs").glob("*.md")
    for path in re.findall(r'--8<-- "(.+)"', page.read_text(encoding="utf-8"))
)
REFERENCE = [f"reference/{path.stem}" for path in (ROOT / "docs" / "reference").glob("*.md") if path.stem != "index"]


class CodeBlocks(HTMLParser):
    """The texts of all `<pre>` of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "pre":
            self._inside = True
            self.texts.append("")

    def handle_endtag(self, tag):
        if tag == "pre":
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


def html(path: str) -> str:
    return (SITE / path / "index.html").read_text(encoding="utf-8")


def public_names(module: Path) -> list[str]:
    """`__all__`, read without importing anything."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{module} has no __all__")


@pytest.mark.parametrize(("page", "path"), INCLUDED)
def test_what_a_page_includes_arrives_letter_by_letter(page, path):
    wanted = (ROOT / path).read_text(encoding="utf-8").strip()
    assert wanted in [text.strip() for text in CodeBlocks(html(page)).texts]


@pytest.mark.parametrize("module", SOURCES)
def test_every_public_name_has_an_anchor_in_the_reference(module):
    names = public_names(ROOT / "packages" / SOURCES[module] / "src" / module / "__init__.py")
    pages = "".join(
        html(f"reference/{path.stem}") for path in (ROOT / "docs" / "reference").glob("*.md") if path.stem != "index"
    )
    assert names
    assert [name for name in names if f'id="{module}.{name}"' not in pages] == []


def test_docstrings_arrive_as_sections_not_as_raw_text():
    for path in REFERENCE:
        assert not re.search(r"<p>(Args|Returns|Raises|Attributes):", html(path)), path
