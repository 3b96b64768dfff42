"""The folders that tox environments share are built once, whatever happens in between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workspace import built_once, digest


def test_it_is_built_again_only_when_the_key_changes(tmp_path: Path) -> None:
    keys: list[str] = []

    def build(folder: Path, key: str) -> None:
        folder.mkdir()
        keys.append(key)

    for key in ["a", "a", "b", "b", "a"]:
        built_once(tmp_path / "it", key, lambda folder, key=key: build(folder, key))
    assert keys == ["a", "b", "a"]


def test_what_a_failed_build_left_is_not_used(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        built_once(tmp_path / "it", "a", fails)
    folder = built_once(tmp_path / "it", "a", lambda folder: folder.mkdir())
    assert not (folder / "half").exists()


def test_of_two_that_ask_at_once_one_builds(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        folder.mkdir()
        built.append(folder)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: built_once(tmp_path / "it", "a", build), range(8)))
    assert built == [tmp_path / "it"]


def test_the_digest_depends_on_where_a_part_ends() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["ab", b"c"]) == digest([b"ab", "c"])
