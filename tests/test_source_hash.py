"""Hashes of Python sources."""

from __future__ import annotations

import shutil
from pathlib import Path

from reallm.source_hash import source_hash


def test_it_changes_with_each_file_and_not_with_the_place(tmp_path: Path) -> None:
    package = tmp_path / "here" / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    (package / "inner" / "more.py").write_text("b = 2\n")
    (package / "notes.txt").write_text("no source")
    before = source_hash([package])
    moved = tmp_path / "there" / "package"
    shutil.copytree(package, moved)
    assert source_hash([moved]) == before
    (moved / "notes.txt").write_text("other notes")
    assert source_hash([moved]) == before
    (moved / "inner" / "more.py").write_text("b = 3\n")
    assert source_hash([moved]) != before
    (package / "inner" / "more.py").rename(package / "inner" / "other.py")
    assert source_hash([package]) != before


def test_a_file_alone_and_several_places_in_any_order(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("a = 1\n")
    other.write_text("b = 2\n")
    assert source_hash([one, other]) == source_hash([other, one])
    assert source_hash([one]) != source_hash([other])
