"""The cache of tokens: what is found again, what is not, damage, several processes at once, and cleaning up."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from reallm.data import cache_folder
from reallm.data.cache_folder import user_cache
from reallm.data.row_sources import RowSource
from reallm.data.tokenization import encoder_fingerprint, source_files
from reallm.data.tokenization.cache import FOLDER, Entry, entry_for, read_or_write
from reallm.data.tokenization.store import StoreBuilder, TokenStore, open_store
from reallm.data.tokenization.walk import encode_source
from reallm.errors import DataError
from tests.data.tokenization.encoders import WORDS, LetterEncoder
from tests.helpers.tokenizers import tiny_tokenizer


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write(path, WORDS)
    return path


def write(path: Path, words: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    settled = time.time() - 60
    os.utime(path, (settled, settled))


def entry(rows: Any, folder: Path, encoder: Any = None) -> Entry:
    found = entry_for(rows, encoder or LetterEncoder(), str(folder), min_bytes=1)
    assert found is not None
    return found


class Cached:
    """Reads rows through a cache, and counts how often they were tokenized."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n_tokenized = 0
        self.output = StringIO()

    def __call__(self, rows: Path, encoder: Any = None) -> TokenStore:
        def write(builder: StoreBuilder) -> None:
            self.n_tokenized += 1
            encode_source(rows, encoder or LetterEncoder(), builder, num_proc=1, console=Console(quiet=True))

        return read_or_write(entry(rows, self.folder, encoder), write, Console(file=self.output, width=1000))


@pytest.fixture
def cached(tmp_path: Path) -> Cached:
    return Cached(tmp_path / "cache")


def values(store: TokenStore) -> Any:
    columns = {name: [column[i].tolist() for i in range(len(column))] for name, column in store.columns.items()}
    remarks = [store.remarks[i] for i in store.remark_of_row]
    return columns, store.row_of_sample.tolist(), remarks


def in_memory(rows: Path) -> TokenStore:
    with StoreBuilder() as builder:
        encode_source(rows, LetterEncoder(), builder, num_proc=1, console=Console(quiet=True))
        return builder.build()


def test_the_second_time_tokens_come_from_files_and_are_the_same(rows: Path, cached: Cached) -> None:
    first, second = cached(rows), cached(rows)
    assert cached.n_tokenized == 1
    assert values(first) == values(second) == values(in_memory(rows))
    assert (
        cached.output.getvalue() == f"tokens of 5 rows are read from the cache: {entry(rows, cached.folder).folder}\n"
    )
    assert second.n_rows == 5
    assert second.row_of_sample.tolist() == [0, 1, 2, 4]


def test_tokens_are_mapped_and_the_files_are_not_written_to(rows: Path, cached: Cached) -> None:
    store = cached(rows)
    base: Any = store.columns["letters"].values
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    store.columns["letters"].values[:] = 0
    assert values(cached(rows)) == values(in_memory(rows))


def test_a_pickled_store_holds_the_path_and_no_tokens(rows: Path, cached: Cached) -> None:
    write(rows, WORDS * 1000)
    store = cached(rows)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert values(pickle.loads(pickled)) == values(store)


def test_other_content_settings_names_columns_or_tokenizers_are_tokenized_again(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    known = entry(rows, folder)
    assert entry(rows, folder) == known
    assert entry(str(rows), folder) == known
    with_tokenizer, other, same = LetterEncoder(), LetterEncoder(), LetterEncoder()
    for encoder, template in ((with_tokenizer, "{{ messages }}"), (other, "{{messages}}"), (same, "{{ messages }}")):
        encoder.tokenizer = tiny_tokenizer(chat_template=template)  # type: ignore[attr-defined]
    assert entry(rows, folder, with_tokenizer) == entry(rows, folder, same)
    moved = tmp_path / "moved" / "rows.jsonl"
    moved.parent.mkdir()
    rows.rename(moved)
    assert entry(moved, folder).folder == known.folder
    others = [
        entry(moved, folder, LetterEncoder(die="x")),
        entry(moved, folder, with_tokenizer),
        entry(moved, folder, other),
        entry(RowSource(moved, columns={"text": "letters"}), folder),
        entry(RowSource(moved, format="text"), folder),
        entry(moved.rename(moved.with_name("other.jsonl")), folder),
    ]
    write(moved, [*WORDS[1:], "hellO"])
    others.append(entry(moved, folder))
    assert len({each.folder for each in [known, *others]}) == 1 + len(others)


class Shortening:
    """A function with a state, as an encoder may have."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text)[:1]
        return ids


def test_where_a_tokenizer_comes_from_does_not_matter(rows: Path, tmp_path: Path) -> None:
    entries = []
    for name in ("model", "checkpoint of a run"):
        encoder = LetterEncoder()
        tokenizer = tiny_tokenizer()
        tokenizer.name_or_path = name
        encoder.tokenizer, encoder.shorten = tokenizer, Shortening(tokenizer)  # type: ignore[attr-defined]
        entries.append(entry(rows, tmp_path / "cache", encoder))
    assert entries[0] == entries[1]


def test_a_template_that_prints_the_date_is_rendered_again_each_day(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(template: str) -> Path:
        encoder = LetterEncoder()
        encoder.tokenizer = tiny_tokenizer(chat_template=template)  # type: ignore[attr-defined]
        return entry(rows, tmp_path, encoder).folder

    dated, plain = folder("{{ strftime_now('%d') }}"), folder("{{ messages }}")

    monkeypatch.setattr(encoder_fingerprint, "_today", lambda: "2400-01-01")
    assert folder("{{ strftime_now('%d') }}") != dated
    assert folder("{{ messages }}") == plain


def test_what_is_small_or_no_file_or_has_a_strange_encoder_is_not_cached(rows: Path) -> None:
    assert entry_for(rows, LetterEncoder(), "auto") is None
    assert entry_for(rows, LetterEncoder(), None, min_bytes=1) is None
    assert entry_for(lambda: [{"text": "a"}], LetterEncoder(), "auto", min_bytes=0) is None
    strange: Any = LetterEncoder()
    strange.callback = lambda: None
    assert entry_for(rows, strange, "auto", min_bytes=1) is None


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache(FOLDER) == tmp_path / "reallm" / "tokenized"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache(FOLDER) == tmp_path / ".cache" / "reallm" / "tokenized"


def test_the_hash_of_an_unchanged_file_is_remembered_and_any_write_forgets_it(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_files, "_SETTLED", -1.0)
    first = source_files.fingerprint({"rows": rows}, tmp_path / "memo")
    with monkeypatch.context() as patch:
        patch.setattr(source_files.hashlib, "file_digest", lambda *_: pytest.fail("the file was read again"))
        assert source_files.fingerprint({"rows": rows}, tmp_path / "memo") == first
    stat = rows.stat()
    text = rows.read_text()
    rows.write_text(text.replace("hello", "hellO"))
    os.utime(rows, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if nothing had happened
    assert source_files.fingerprint({"rows": rows}, tmp_path / "memo") != first


def test_a_file_that_was_just_written_is_not_remembered(rows: Path, tmp_path: Path) -> None:
    source_files.fingerprint({"rows": rows}, tmp_path / "memo")  # its ctime is now, whatever its mtime says
    assert not (tmp_path / "memo").exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "letters.values").write_bytes(b"123"), id="truncated"),
        pytest.param(lambda folder: flip(folder / "letters.values"), id="a bit"),
        pytest.param(lambda folder: (folder / "ids.offsets").unlink(), id="missing"),
        pytest.param(lambda folder: (folder / "store.json").write_text("{"), id="header"),
        pytest.param(lambda folder: (folder / "store.json").write_text('{"version": 0}'), id="version"),
        pytest.param(lambda folder: (folder / "store.json").write_text("[]"), id="no object"),
    ],
)
def test_damage_is_told_in_one_line_and_repaired(rows: Path, cached: Cached, damage: Any) -> None:
    expected = values(cached(rows))
    damage(entry(rows, cached.folder).folder)
    assert values(cached(rows)) == expected
    assert cached.n_tokenized == 2
    [line] = cached.output.getvalue().splitlines()
    assert line.startswith("cached tokens cannot be used, so rows are tokenized again (")
    assert values(cached(rows)) == expected
    assert cached.n_tokenized == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def test_processes_that_need_the_same_tokens_take_turns(rows: Path, cached: Cached) -> None:
    at = entry(rows, cached.folder)
    writing, finish = threading.Event(), threading.Event()
    stores: list[TokenStore] = []

    def slow(builder: StoreBuilder) -> None:
        writing.set()
        finish.wait(240)
        encode_source(rows, LetterEncoder(), builder, num_proc=1, console=Console(quiet=True))

    first = threading.Thread(target=lambda: stores.append(read_or_write(at, slow, Console(quiet=True))))
    second = threading.Thread(target=lambda: stores.append(cached(rows)))
    first.start()
    assert writing.wait(240)
    second.start()
    while "waiting" not in cached.output.getvalue():
        time.sleep(0.01)
    finish.set()
    first.join()
    second.join()
    assert cached.n_tokenized == 0
    told = cached.output.getvalue().splitlines()
    assert told[0] == f"waiting for another process that is tokenizing the same rows (process {os.getpid()})"
    assert told[1].startswith("tokens of 5 rows are read from the cache: ")
    assert values(stores[0]) == values(stores[1])


def test_nothing_is_left_of_a_failure(rows: Path, cached: Cached) -> None:
    with rows.open("a") as file:
        file.write('{"txt": "x"}\n{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(
        DataError, match=r"rows\.jsonl:6: key 'text': found no such key .*, wanted text \(and 1 more row\)"
    ):
        cached(rows)
    assert not [path for path in cached.folder.iterdir() if path.is_dir() and path.name != "files"]


def test_a_file_that_grows_meanwhile_is_refused(rows: Path, cached: Cached) -> None:
    def write(builder: StoreBuilder) -> None:
        encode_source(rows, LetterEncoder(), builder, num_proc=1, console=Console(quiet=True))
        with rows.open("a") as file:
            file.write('{"text": "more"}\n')

    with pytest.raises(DataError, match=r"rows\.jsonl: changed while rows were read"):
        read_or_write(entry(rows, cached.folder), write, Console(quiet=True))


def test_entries_that_were_not_used_for_long_go(rows: Path, cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(rows)
    [old] = [path.parent for path in cached.folder.glob("*/store.json")]
    write(rows, WORDS[:2])
    cached(rows)
    assert old.exists()
    long_ago = time.time() - (cache_folder.DAYS + 1) * 24 * 3600
    other = cached.folder / "mine" / "store.json"  # of a folder that a configuration of somebody's has named
    other.parent.mkdir()
    other.touch()
    for file in (old / "store.json", other):
        os.utime(file, (long_ago, long_ago))
    write(rows, WORDS[:3])
    cached(rows)
    assert not old.exists()
    assert not old.with_name(f"{old.name}.lock").exists()
    assert other.exists()
    assert len(list(cached.folder.glob("*/store.json"))) == 3


def test_a_folder_that_cannot_be_written_to(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*choose another folder with dataset\.cache_dir, or null"):
        Cached(tmp_path / "file" / "cache")(rows)


def test_a_cache_folder_that_cannot_be_written_to_means_no_cache(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert entry_for(rows, LetterEncoder(), "auto", min_bytes=1) is None


def test_a_source_of_which_every_row_is_dropped(rows: Path, cached: Cached) -> None:
    write(rows, ["much too long to keep"])
    cached(rows)
    store = cached(rows)
    assert store.n_rows == 1
    assert not len(store.row_of_sample)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged"):
        open_store(tmp_path)
