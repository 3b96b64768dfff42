"""Atomic replacement of files and folders: even after a kill, the path has either the old or the new content.

New content is built under a hidden name next to the path, flushed to disk and renamed. A folder that exists is
exchanged with the new one in one step if the system supports it (Linux `renameat2`). Otherwise the old folder is
renamed first, and the path is absent for an instant: if a process is killed then, `recover_folder` restores it.

A write to `name` uses siblings, `.name.<16 hex digits>.reallm-{new,old,lock}`, and a removal `...-gone`. A write holds
a lock on the `lock`, which the system releases when the process ends, however it ends. So siblings whose lock is free
are leftovers: the next write to the same path removes them, and `sweep` removes the leftovers of all paths in a folder.
On a file system without locks this is safe for one process at a time. POSIX systems only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from reallm.errors import DataError, ReallmError, short_reason
from reallm.file_locks import release, try_lock
from reallm.machine_errors import shortage

AnyPath = str | os.PathLike[str]


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Yield the path of an empty temporary file, which becomes `path` when the block ends without an exception.

        with atomic_write("run/metrics.json") as temporary:
            temporary.write_text(text)

    The temporary name has another suffix than `path`, so a writer that goes by suffixes must be given the format.
    Missing parent folders are made. After an exception `path` is unchanged. A symbolic link is replaced.

    Raises:
        DataError: the file cannot be written (no space, no permission, a folder); one line that names `path`.
    """
    final = Path(path)
    if final.is_dir():
        raise DataError(f"cannot write {path}: it is a folder")
    with _locked_siblings(final) as work:
        with errors_name(final):
            work.new.touch()
        with errors_name(final, unless_of_others=True):
            yield work.new
        with errors_name(final):
            flush(work.new)
            work.new.replace(final)
            flush(final.parent)


@contextmanager
def atomic_folder(path: AnyPath, *, keep: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Yield the path of an empty temporary folder, which becomes `path` when the block ends without an exception.

        with atomic_folder("run/checkpoints/last") as temporary:
            save_file(tensors, temporary / "model.safetensors")

    The old folder and its contents are removed afterwards, except for names that `keep` selects. Missing parent folders
    are made; a symbolic link is followed. After an exception `path` is unchanged. If two processes write to one path at
    the same time, the last one wins.

    Args:
        path: the folder to make or replace; neither the working folder nor one that contains it.
        keep: whether a name at the top of the old folder is carried over, unless the block has written it again.

    Raises:
        DataError: the folder cannot be written (no space, no permission, a file); one line that names `path`.
    """
    final = Path(os.path.realpath(path))
    if final.exists() and not final.is_dir():
        raise DataError(f"cannot write {path}: it is a file, not a folder")
    if Path.cwd().is_relative_to(final):
        raise DataError(f"cannot replace {final}: it is the working folder or holds it; choose a folder of its own")
    with _locked_siblings(final) as work:
        with errors_name(final):
            work.new.mkdir()
        with errors_name(final, unless_of_others=True):
            yield work.new
        with errors_name(final):
            if keep is not None and final.is_dir():
                _carry_over(final, work.new, keep)
            _flush_tree(work.new)
            _move_into_place(work, final)
            flush(final.parent)


def recover_folder(path: AnyPath) -> None:
    """Restore the old folder if a process was killed while `path` was absent; else do nothing.

    Call it before reading a folder that `atomic_folder` writes. If folders are exchanged in one step, there is never
    anything to restore.
    """
    final = Path(os.path.realpath(path))
    if final.exists():
        return
    for work in _all_siblings(final):
        if work.old.exists():
            lock = _lock(work.lock)
            if lock is not None:  # otherwise its writer is alive, and about to move the new folder into place
                _clean_up(work, final, lock)


def remove_folder(path: AnyPath) -> None:
    """Remove a folder atomically: even after a kill, `path` is either complete or absent. It need not exist.

    Raises:
        DataError: it cannot be removed, and is still there.
    """
    final = Path(path)
    doomed = _siblings(final, secrets.token_hex(8)).gone
    with errors_name(final), suppress(FileNotFoundError):
        try:
            final.rename(doomed)
        except OSError:  # tried twice: there may be no later chance
            final.rename(doomed)
        discard(doomed)


def sweep(folder: AnyPath) -> None:
    """Remove the leftovers of killed writes and removals in a folder, for all paths in it."""
    pattern = re.compile(rf"\.(.+)\.[0-9a-f]{{16}}\.reallm-(?:{'|'.join(_Siblings._fields)})")
    siblings = Path(folder).iterdir() if Path(folder).is_dir() else ()
    matches = [pattern.fullmatch(path.name) for path in siblings]
    for name in sorted({match[1] for match in matches if match}):
        _clean_up_killed_writes(Path(folder, name))


class _Siblings(NamedTuple):
    """The temporary siblings of a path that one write uses."""

    new: Path
    old: Path
    gone: Path
    lock: Path


def _siblings(final: Path, token: str) -> _Siblings:
    return _Siblings(*(final.with_name(f".{final.name}.{token}.reallm-{kind}") for kind in _Siblings._fields))


def _all_siblings(final: Path) -> list[_Siblings]:
    """The siblings of all writes to `final` that are running or were killed."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.([0-9a-f]{{16}})\.reallm-(?:{'|'.join(_Siblings._fields)})")
    siblings = final.parent.iterdir() if final.parent.is_dir() else ()
    matches = [pattern.fullmatch(path.name) for path in siblings]
    return [_siblings(final, token) for token in sorted({match[1] for match in matches if match})]


@contextmanager
def _locked_siblings(final: Path) -> Iterator[_Siblings]:
    """Make locked siblings of `final` for one write; leftovers are removed before it, and these siblings afterwards."""
    with errors_name(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean_up_killed_writes(final)
        work, lock = _new_siblings(final)
    try:
        yield work
    finally:
        _clean_up(work, final, lock)


def _clean_up_killed_writes(final: Path) -> None:
    for leftover in _all_siblings(final):
        held = _lock(leftover.lock)
        if held is not None:
            _clean_up(leftover, final, held)


def _new_siblings(final: Path) -> tuple[_Siblings, int]:
    """New siblings, of which only the lock file exists, and the descriptor that holds its lock."""
    while True:
        work = _siblings(final, secrets.token_hex(8))
        lock = os.open(work.lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if try_lock(lock) and os.fstat(lock).st_nlink:
                return work, lock
        except OSError:
            discard(work.lock)
            release(lock)
            raise
        release(lock)  # another process removed it as a leftover before it was locked


def _lock(path: Path) -> int | None:
    """Lock a file; returns a descriptor that holds the lock until it is closed, or None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_ours = try_lock(descriptor)
    except OSError:
        release(descriptor)
        raise
    if not is_ours:
        release(descriptor)
        return None
    return descriptor


def _clean_up(work: _Siblings, final: Path, lock: int) -> None:
    """End a write, whether done, failed or killed: restore the old folder if `final` is absent, and remove siblings."""
    if _restore(work.old, final):
        for path in work:
            discard(path)
    release(lock)


def _restore(old: Path, final: Path) -> bool:
    """Restore the old folder if `final` is absent, tried twice; False if that failed, and the next write does it."""
    for _ in range(2):
        with suppress(OSError):
            if old.exists() and not final.exists():
                old.rename(final)
            return True
    return False


def discard(path: Path) -> None:
    """Remove a temporary file or folder, tried twice; what cannot be removed, the next write or `sweep` removes."""
    for _ in range(2):
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return


def _move_into_place(work: _Siblings, final: Path) -> None:
    try:
        work.new.rename(final)  # nothing there yet, or an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    if _exchange(work.new, final):
        return
    final.rename(work.old)
    work.new.rename(final)  # if this fails, `_clean_up` puts the old folder back


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths atomically; False if the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_cwd, rename_exchange = -100, 2  # <fcntl.h>, <linux/fs.h>
    if renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def _carry_over(old: Path, new: Path, keep: Callable[[str], bool]) -> None:
    """Carry kept files over to the new folder: as hard links, which take no space, or as copies if links fail."""
    for source in old.iterdir():
        target = new / source.name
        if not keep(source.name) or target.exists():
            continue
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target, symlinks=True, copy_function=_link)
        else:
            _link(source, target)


def _link(source: AnyPath, target: AnyPath) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _flush_tree(top: Path) -> None:
    for folder, _, files in os.walk(top, topdown=False, onerror=reraise):
        for name in files:
            if not Path(folder, name).is_symlink():
                flush(Path(folder, name))
        flush(Path(folder))


def reraise(error: OSError) -> NoReturn:
    """`onerror` of `os.walk`, which otherwise passes over folders that it cannot read."""
    raise error


def flush(path: Path) -> None:
    """Write what the system still holds of a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def errors_name(final: Path, *, unless_of_others: bool = False) -> Iterator[None]:
    """Context that turns errors of writing into a DataError that names the path.

    With `unless_of_others`, for the caller's block, errors that name another file pass, and those of connections or
    of memory. What names no file is about one that the block has open.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) and str(final) in str(error):
            raise  # it says so already
        if _is_full_disk(error) or (_is_of_system(error) and not (unless_of_others and _is_of_others(error, final))):
            lacking = None if isinstance(error, OSError) else shortage(error)
            raise DataError(f"cannot write {final}: {lacking or short_reason(error)}") from error
        raise


def _is_of_system(error: Exception) -> bool:
    is_of_rust = "(os error " in str(error)  # tokenizers, safetensors
    is_of_library = not isinstance(error, ReallmError) and (is_of_rust or shortage(error) is not None)
    return isinstance(error, OSError) or is_of_library


def _is_of_others(error: Exception, final: Path) -> bool:
    if isinstance(error, ConnectionError | TimeoutError) or (not isinstance(error, OSError) and shortage(error)):
        return True
    name = error.filename if isinstance(error, OSError) else None
    ours = (str(final), str(final.with_name(f".{final.name}.")))
    return isinstance(name, str | bytes) and not os.fsdecode(name).startswith(ours)


def _is_full_disk(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in codes
    return any(f"(os error {code})" in str(error) for code in codes)
