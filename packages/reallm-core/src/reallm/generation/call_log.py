"""`CallLog`: finds out whether all ranks of a layout have made the same calls, instead of waiting for each other."""

from __future__ import annotations

import hashlib

from reallm.errors import DataError
from reallm.parallel.mesh import Group
from reallm.parallel.object_collectives import all_gather_json


class CallLog:
    """A hash of the calls that this rank has made."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._has_news = False

    def note(self, call: object) -> None:
        """Add a call, as an object whose `repr` says all about it."""
        self._hash.update(f"{call!r}\n".encode(errors="surrogatepass"))
        self._has_news = True

    def compare(self, group: Group) -> None:
        """Compare with the other ranks of a group, if there were calls since the last comparison.

        Raises:
            DataError: their calls are not the same; names two ranks. Raised on all ranks.
        """
        if not self._has_news:
            return
        self._has_news = False
        (first, digest), *others = all_gather_json(self._hash.hexdigest(), group).items()
        for rank, other in others:
            if other != digest:
                raise DataError(
                    f"ranks {first} and {rank} generate for different prompts or settings; all ranks of a layout must "
                    "make the same calls, and each gets all completions"
                )
