"""Checksums of files that are long enough to be read in several parts."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path

import pytest
from xxhash import xxh3_64_hexdigest

from reallm.checkpoint import hashing
from reallm.checkpoint.checksums import CHECKSUMS, verify_checksums, write_checksums
from reallm.checkpoint.hashing import checksums_of, write_with_checksum
from reallm.errors import CheckpointError

CONTENT = bytes(range(100))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hashing, "_PART", 32)
    monkeypatch.setattr(hashing, "_BLOCK", 20)
    (tmp_path / "long.bin").write_bytes(CONTENT)
    (tmp_path / "empty.bin").touch()
    write_checksums(tmp_path, {})
    return tmp_path


def test_each_part_has_its_own(folder: Path) -> None:
    files = json.loads((folder / CHECKSUMS).read_text())["files"]
    parts = [CONTENT[start : start + 32] for start in range(0, 100, 32)]
    assert files["long.bin"] == {"size": 100, "xxh3": [xxh3_64_hexdigest(part) for part in parts]}
    assert files["empty.bin"] == {"size": 0, "xxh3": []}
    assert verify_checksums(folder).n_bytes == 100


@pytest.mark.parametrize("at", [0, 31, 32, 51, 64, 99])
def test_a_flipped_bit_in_any_part_is_named(folder: Path, at: int) -> None:
    content = bytearray(CONTENT)
    content[at] ^= 4
    (folder / "long.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"long\.bin has other bytes than when it was saved"):
        verify_checksums(folder)


@pytest.mark.parametrize("sizes", [(), (0,), (10, 0, 22, 1), (100,), (31, 1, 32, 36), (1,) * 100])
def test_what_is_written_in_pieces_has_that_of_the_file(folder: Path, sizes: tuple[int, ...]) -> None:
    content, path = bytes(range(sum(sizes))), folder / "pieces.bin"
    ends = list(accumulate(sizes))
    pieces = [memoryview(content)[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    written = write_with_checksum(path, pieces)
    assert path.read_bytes() == content
    assert written == checksums_of([path])[path]


def test_what_went_wrong_on_the_way_to_the_disk_is_named(folder: Path) -> None:
    path = folder / "long.bin"
    known = {path: write_with_checksum(path, [memoryview(CONTENT)])}
    path.write_bytes(CONTENT[:40] + bytes(60))
    write_checksums(folder, known)
    with pytest.raises(CheckpointError, match=r"long\.bin has other bytes than when it was saved"):
        verify_checksums(folder)


def test_those_of_an_earlier_version_are_told(folder: Path) -> None:
    path = folder / CHECKSUMS
    path.write_text(json.dumps({"format": 1, "files": {}, "crc32": "00000000"}))
    with pytest.raises(CheckpointError, match=r"checksums\.json .*it was written by an earlier version.* remove it"):
        verify_checksums(folder)
