"""Damaged metadata of one distribution stops nothing: it is listed as broken."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from reallm.cli import main
from reallm.plugins.finder import find, installed

METADATA = b"Metadata-Version: 2.1\nName: reallm-mine\nVersion: 1.0\n"
POINTS = b"[reallm]\nfamily.mine = mine.plugin\n"


def write(folder: Path, name: str = "reallm_mine", **files: bytes) -> None:
    inner = folder / f"{name}-1.0.dist-info"
    inner.mkdir(parents=True)
    contents = {"METADATA": METADATA, "entry_points": POINTS, **files}
    for file, content in contents.items():
        (inner / {"entry_points": "entry_points.txt", "direct_url": "direct_url.json"}.get(file, file)).write_bytes(
            content
        )


@pytest.mark.parametrize(
    "files",
    [
        {"direct_url": b"{"},
        {"direct_url": b"[]"},
        {"direct_url": b'{"dir_info": 5}'},
        {"direct_url": b"[" * 100_000},
        {"entry_points": b"[reallm]\n\xff\xfe"},
        {"entry_points": b"[reallm]\nno equals sign\nfamily.mine = mine.plugin"},
        {"entry_points": b"[reallm]\nfamily." + b"x" * 2000 + b" = mine.plugin"},
        {"METADATA": b"\xff"},
        {"METADATA": b"Name: reallm-mine\n"},
    ],
)
def test_it_is_listed_as_broken_and_others_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    write(tmp_path, **files)
    write(tmp_path, "reallm_other", METADATA=METADATA.replace(b"mine", b"other"))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    plan = find()
    assert [plugin.distribution for plugin in plan.plugins] == ["reallm-other"]
    (broken,) = plan.broken
    assert broken.distribution == "reallm_mine-1.0"
    assert "its metadata cannot be read" in broken.reason
    assert f"remove {tmp_path}" in broken.reason
    assert "\n" not in broken.reason


def test_of_a_distribution_that_is_there_twice_the_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", entry_points=POINTS.replace(b"mine.plugin", b"first"))
    write(tmp_path / "b", entry_points=POINTS.replace(b"mine.plugin", b"second"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b")])
    entries, broken = installed()
    assert [entry.value for entry in entries] == ["first"]
    assert not broken


def test_help_and_the_list_of_plugins_are_shown(tmp_path: Path) -> None:
    write(tmp_path, direct_url=b"{")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from reallm.cli.main import run; "
    for arguments, shown in ((["--help"], "reallm plugins"), (["plugins"], "broken reallm_mine-1.0: its metadata")):
        done = subprocess.run(
            [sys.executable, "-c", f"{program}sys.exit(run({arguments}))"], capture_output=True, text=True, check=True
        )
        assert shown in done.stdout
        assert not done.stderr


@pytest.mark.parametrize("points", [b"[torch.backends]\nno equals sign\n", b"[torch.backends]\n\xff\xfe"])
def test_what_stops_the_import_of_a_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], points: bytes
) -> None:
    write(tmp_path, entry_points=points)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(main, "app", lambda *_, **__: entry_points(group="torch.backends"))  # as torch does
    assert main.run(["sft"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the metadata in {tmp_path / 'reallm_mine-1.0.dist-info'} cannot be read (")
    assert line.endswith("reinstall that distribution, or remove it")
