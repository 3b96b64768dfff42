"""The key `allocation`: who decides where calls are computed. Imports no torch."""

from __future__ import annotations

import re

from reallm.errors import ConfigError
from reallm.parallel.layout import Layout

MANUAL, HEURISTIC, SEARCH = "manual", "heuristic", "search"
"""The keys of calls decide; all ranks compute every call, each role in one layout; the fastest plan that is found."""


def layout_of(allocation: str) -> Layout | None:
    """The layout that an allocation names for all calls; None if it is `manual`, `heuristic` or `search`.

    Raises:
        ConfigError: it is none of these.
    """
    if allocation in (MANUAL, HEURISTIC, SEARCH):
        return None
    found = re.findall(r"([dpm])(\d+)", allocation)
    try:
        if found and "".join(map("".join, found)) == allocation and len(dict(found)) == len(found):
            sizes = {letter: int(size) for letter, size in found}
            return Layout(dp=sizes.get("d", 1), pp=sizes.get("p", 1), tp=sizes.get("m", 1))
        return Layout.parse(allocation)
    except ConfigError as error:
        raise ConfigError(
            f"allocation={allocation}: must be {MANUAL}, {HEURISTIC}, {SEARCH}, or one layout for all calls, such as "
            "d2p2m1 (2 data-parallel replicas of 2 pipeline stages, 1 tensor-parallel rank) or dp2pp2"
        ) from error
