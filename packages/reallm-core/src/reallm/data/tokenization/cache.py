"""A folder of token stores, so that the same rows are tokenized once.

An entry is written under a temporary name and renamed, so it is either whole or absent. Processes that need the same
entry at the same time take turns: one writes it, the others wait and read it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from reallm.arguments import as_path
from reallm.atomic_files import atomic_folder, remove_folder, sweep
from reallm.data.cache_folder import is_unused, named_cache, user_cache
from reallm.data.row_sources import RowSource, Source
from reallm.data.tokenization.encoder import RowEncoder
from reallm.data.tokenization.encoder_fingerprint import encoder_fingerprint
from reallm.data.tokenization.source_files import fingerprint, source_files
from reallm.data.tokenization.store import HEADER, StoreBuilder, TokenStore, open_store
from reallm.errors import DataError, counted
from reallm.file_locks import holder, release, try_lock, wait_for_lock

AUTO = "auto"
"""The cache folder that stands for `FOLDER` in the user's cache."""
FOLDER = "tokenized"
MIN_BYTES = 8 * 2**20
"""Files smaller than this are tokenized so quickly that nothing is cached."""


@dataclass(frozen=True)
class Entry:
    """The place in the cache for the tokens of some files.

    Args:
        folder: its folder, which exists if the tokens are there.
        files: the files of the source, see `source_files`.
        content: fingerprint of their content.
    """

    folder: Path
    files: Mapping[str, Path]
    content: str

    def check_unchanged(self) -> None:
        """Raise DataError if a file was changed since the entry was looked up."""
        if fingerprint(self.files, _memo_folder(self.folder.parent)) != self.content:
            raise DataError(
                f"{_listed(self.files)}: changed while rows were read; start again when nothing writes to it"
            )


def entry_for(
    source: Source, encoder: RowEncoder, cache_dir: str | None, *, min_bytes: int = MIN_BYTES
) -> Entry | None:
    """The entry for the tokens of a source; None if they are not to be cached.

    Cached are the tokens of files of `min_bytes` together; rows from functions may be others each time.

    Args:
        source: where the rows come from.
        encoder: what they are encoded with; not used before, so that it holds nothing of any rows.
        cache_dir: folder of the cache, `AUTO`, or None: none.
        min_bytes: size of the files below which nothing is cached.

    Raises:
        DataError: a file cannot be read.
    """
    files = source_files(source)
    if cache_dir is None or not files or sum(file.stat().st_size for file in files.values()) < min_bytes:
        return None
    top = user_cache(FOLDER) if cache_dir == AUTO else _named(as_path(cache_dir))
    if top is None:
        return None
    row_source = RowSource.of(source)
    about = (row_source.format, sorted(row_source.columns.items()), row_source.split)
    try:
        encoder_key = encoder_fingerprint(encoder)
    except Exception:  # an attribute of any plugin's encoder
        return None
    content = fingerprint(files, _memo_folder(top))
    key = hashlib.sha256(repr((about, encoder_key, content)).encode()).hexdigest()[:32]
    return Entry(top / key, files, content)


def read_or_write(entry: Entry, write: Callable[[StoreBuilder], None], console: Console) -> TokenStore:
    """The store of an entry; if there is none, one that `write` fills.

    Args:
        entry: from `entry_for`.
        write: function that appends all rows to a store.
        console: where it is said in one line what comes from the cache, or that an entry was damaged.

    Raises:
        DataError: the folder cannot be written, the files change while they are read, or what `write` raises.
    """
    folder = entry.folder
    with _lock(folder, console):
        if folder.exists():
            try:
                store = open_store(folder)
            except DataError as error:
                _print(console, f"cached tokens cannot be used, so rows are tokenized again ({error})")
            else:
                with suppress(OSError):
                    os.utime(folder / HEADER)  # when it was last used
                _print(console, f"tokens of {counted(store.n_rows, 'row')} are read from the cache: {folder}")
                return store
        _remove_unused(folder.parent)
        with atomic_folder(folder) as work, StoreBuilder(work) as builder:
            write(builder)
            entry.check_unchanged()
            builder.finish()
        return open_store(folder)


def _named(folder: Path) -> Path:
    try:
        return named_cache("dataset.cache_dir", folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {path}: {error.strerror}; choose another folder with dataset.cache_dir, or null for no cache"
    )


def _listed(files: Mapping[str, Path]) -> str:
    first = next(iter(files.values()))
    return f"{first} or another of {len(files):,} files" if len(files) > 1 else str(first)


def _memo_folder(top: Path) -> Path:
    return top / "files"


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _lock(folder: Path, console: Console) -> Iterator[None]:
    """Hold the lock of an entry; the system releases it however this process ends."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with suppress(OSError):  # without locks each process tokenizes, and the last one wins
            if not try_lock(descriptor):
                _print(console, f"waiting for another process that is tokenizing the same rows{holder(descriptor)}")
                wait_for_lock(descriptor)
        yield
    finally:
        release(descriptor)


def _remove_unused(top: Path) -> None:
    """Remove stores that were not used for long, and what killed processes have left."""
    with suppress(OSError):
        sweep(top)
    for header in top.glob(f"{'[0-9a-f]' * 32}/{HEADER}"):  # only entries: a configuration may name any folder
        with suppress(OSError, DataError):
            if is_unused(header):
                remove_folder(header.parent)
                header.parent.with_name(f"{header.parent.name}.lock").unlink(missing_ok=True)
