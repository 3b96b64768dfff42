"""The lines of a text file, compressed or not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from reallm.data.readers.record import Origin
from reallm.errors import DataError, one_line

COMPRESSIONS = (".gz", ".zst")

_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
"""What compressed files begin with -> how their names end."""


def check_compression(path: Path, origin: Origin) -> None:
    """Raise DataError if what decompresses the file is not installed."""
    if path.name.lower().endswith(".zst") and find_spec("pyarrow") is None:
        raise DataError(f"{origin.place}: reading .zst needs pyarrow: pip install 'reallm-core[zstd]'")


@contextmanager
def _open_lines(path: Path, origin: Origin) -> Iterator[Iterable[bytes]]:
    """The file as bytes, decompressed if its name ends so; lines are split at newlines only.

    Raises:
        DataError: while it is read, if the file is damaged or is not compressed.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        try:
            with gzip.open(path, "rb") as file:
                yield file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{origin.place}: not a whole gzip file: {one_line(error)}") from error
    elif name.endswith(".zst"):
        import pyarrow

        with path.open("rb"):  # an error of the system is raised here, where it is told apart
            pass
        try:
            with pyarrow.input_stream(str(path), compression="zstd") as stream, io.BufferedReader(stream) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{origin.place}: not a whole zstd file: {one_line(error)}") from error
    else:
        with path.open("rb") as file:
            yield file


def text_lines(path: Path, origin: Origin) -> Generator[tuple[int, str], None, None]:
    """The lines of the file with their numbers, from 1, and with the characters that end them.

    Raises:
        DataError: the file is damaged, or is not UTF-8 text; names the line.
    """
    # Split bytes, at \n only: str.splitlines would also split at characters such as U+2028 within text.
    with _open_lines(path, origin) as file:
        for number, line in enumerate(file, 1):
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
