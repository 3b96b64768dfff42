"""The tour of the code names what there is, and its walks stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from workspace import ROOT

CORE = ROOT / "packages" / "reallm-core" / "src" / "reallm"


class Walk(NamedTuple):
    title: str
    max_files: int
    steps: list[tuple[str, str]]
    """Path and name of each."""


def walks() -> list[Walk]:
    found: list[Walk] = []
    for line in (ROOT / "docs" / "tour.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## (.+) \(at most (\d+) files\)", line):
            found.append(Walk(heading[1], int(heading[2]), []))
        elif item := re.match(r"(?:[-*]|\d+\.) +`([\w./]+): ([\w.]+)`", line):
            found[-1].steps.append((item[1], item[2]))
        else:
            assert not line.startswith("## "), f"a walk's heading ends with a limit, '(at most 20 files)': {line}"
    return found


WALKS = walks()


def defines(path: Path, name: str) -> bool:
    """Whether a file defines a function, a class, a constant, or a method or field: `Class.method`."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        by_name: dict[str, list[ast.stmt]] = {}
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                by_name[node.name] = node.body
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                by_name.update((target.id, []) for target in targets if isinstance(target, ast.Name))
        if part not in by_name:
            return False
        body = by_name[part]
    return True


def test_there_are_six_walks_and_two_recipes():
    assert [walk.title.startswith("Recipe: ") for walk in WALKS] == [False] * 6 + [True] * 2
    assert all(walk.steps for walk in WALKS)


@pytest.mark.parametrize(("path", "name"), sorted({step for walk in WALKS for step in walk.steps}))
def test_what_the_tour_names_exists(path, name):
    assert (CORE / path).is_file(), f"docs/tour.md names {path}, which is not there"
    assert defines(CORE / path, name), f"docs/tour.md names {name} in {path}, which does not define it"


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.title)
def test_a_walk_needs_no_more_files_than_its_heading_says(walk):
    files = {path for path, _ in walk.steps}
    assert len(files) <= walk.max_files
