"""`CallLog`: finds out whether all ranks of a layout have made the same calls, instead of waiting for each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from reallm.errors import DataError


class CallLog:
    """A hash of the calls that this rank has made."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.has_news = False
        """Whether there were calls since the last comparison."""

    def note(self, call: object) -> None:
        """Add a call, as an object whose `repr` says all about it."""
        self._hash.update(f"{call!r}\n".encode(errors="surrogatepass"))
        self.has_news = True

    @property
    def digest(self) -> str:
        """A text that is the same on ranks with the same calls."""
        return self._hash.hexdigest()

    def compare(self, by_rank: Mapping[int, str]) -> None:
        """Compare the digests of ranks.

        Raises:
            DataError: they are not the same; names two ranks. Raised on all ranks.
        """
        self.has_news = False
        (first, digest), *others = by_rank.items()
        for rank, other in others:
            if other != digest:
                raise DataError(
                    f"ranks {first} and {rank} generate for different prompts or settings; all ranks of a layout must "
                    "make the same calls, and each gets all completions"
                )
