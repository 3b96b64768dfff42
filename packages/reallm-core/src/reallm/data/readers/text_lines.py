"""The lines of a text file, compressed or not."""

from __future__ import annotations

import gzip
import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from reallm.data.readers.record import Origin
from reallm.errors import DataError
from reallm.foreign_files import reading

COMPRESSIONS = (".gz", ".zst")

MAX_ROW = 1 << 28
"""Bytes of a line of text, which is a row, once it is decompressed. Ten million tokens, ten times what models with the
longest contexts read, are a sixth of it."""
MAX_UNPACKED = 1 << 30
"""Bytes that a compressed file which is read as a whole unpacks to, which may be a thousand times its size."""

_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
"""What compressed files begin with -> how their names end."""


class _Lines(Protocol):
    """An open file of bytes."""

    def readline(self, size: int = -1, /) -> bytes: ...


def check_compression(path: Path, origin: Origin) -> None:
    """Raise DataError if what decompresses the file is not installed."""
    if path.name.lower().endswith(".zst") and find_spec("pyarrow") is None:
        raise DataError(f"{origin.place}: reading .zst needs pyarrow: pip install 'reallm-core[zstd]'")


@contextmanager
def _open_lines(path: Path, origin: Origin) -> Iterator[_Lines]:
    """The file as bytes, decompressed if its name ends so; its lines end at newlines only.

    Raises:
        DataError: while it is read, if the file is damaged or is not compressed.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        with (
            reading(origin.place, error=DataError, problem="cannot be read as a gzip file"),
            gzip.open(path, "rb") as file,
        ):
            yield file
    elif name.endswith(".zst"):
        import pyarrow

        with path.open("rb"):  # an error of the system is raised here, where it is told apart
            pass
        with (
            reading(origin.place, error=DataError, problem="cannot be read as a zstd file"),
            pyarrow.input_stream(str(path), compression="zstd") as stream,
            io.BufferedReader(stream) as file,
        ):
            yield file
    else:
        with path.open("rb") as file:
            yield file


def is_compressed(path: Path) -> bool:
    """Whether the name of a file says that it is compressed."""
    return path.name.lower().endswith(COMPRESSIONS)


def text_lines(path: Path, origin: Origin, *, longest: int | None = MAX_ROW) -> Generator[tuple[int, str], None, None]:
    """The lines of the file with their numbers, from 1, and with the characters that end them.

    Args:
        path: the file.
        origin: its name for errors.
        longest: bytes of the longest line; None for any.

    Raises:
        DataError: the file is damaged, is not UTF-8 text, or has a longer line; names the line.
    """
    # Split bytes, at \n only: str.splitlines would also split at characters such as U+2028 within text.
    with _open_lines(path, origin) as file:
        number = 0
        while line := file.readline(-1 if longest is None else longest + 1):
            number += 1
            if longest is not None and len(line) > longest:
                raise DataError(
                    f"{origin.place}:{number}: the line is longer than {longest >> 20} MiB, too long for a row; write "
                    "one row a line (.jsonl), and divide or leave out this one"
                )
            yield number, _decoded(line.removeprefix(_BOM) if number == 1 else line, origin, number)


def _decoded(raw: bytes, origin: Origin, line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        extension = next((one for magic, one in _MAGIC.items() if raw.startswith(magic)), None) if line == 1 else None
        if extension:
            raise DataError(f"{origin.place}: is not text; its name should end in {extension}") from None
        byte = raw[error.start]
        raise DataError(
            f"{origin.place}:{line}: found the byte 0x{byte:02x} at column {error.start + 1}, wanted UTF-8 text; "
            "convert the file to UTF-8"
        ) from None
