"""What is known of distributions that need not be installed: which offers what, so that errors say what to install.

The facts are in `known.json`; a distribution that is not in it works just as well. What stands first there is what
somebody who has nothing yet is told to begin with.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from reallm.plugins.finder import canonical
from reallm.plugins.kinds import KINDS


@dataclass(frozen=True)
class Known:
    """A distribution, the names it offers of each kind, and the datasets its configuration classes belong to."""

    distribution: str
    offers: Mapping[str, tuple[str, ...]]
    config_classes: Mapping[str, str]


@functools.cache
def known() -> tuple[Known, ...]:
    """All known distributions, read from `known.json` once."""
    table = json.loads(resources.files("reallm.plugins").joinpath("known.json").read_text("utf-8"))
    return tuple(
        Known(
            distribution,
            offers={kind: tuple(facts[kind]) for kind in KINDS if kind in facts},
            config_classes=facts.get("config_classes", {}),
        )
        for distribution, facts in table.items()
    )


def providers(kind: str | None, name: str | None = None) -> list[str]:
    """The known distributions that offer `name`, or anything, of a kind (None: of any kind)."""
    return [item.distribution for item in known() if (name in _names(item, kind) if name else _names(item, kind))]


def to_begin_with(kind: str) -> tuple[str, str]:
    """The distribution and the name of a kind that are suggested to somebody who has none."""
    return next((item.distribution, item.offers[kind][0]) for item in known() if kind in item.offers)


def known_names(kind: str | None) -> list[str]:
    """The names of a kind (None: of all kinds) that known distributions offer."""
    return sorted({name for item in known() for name in _names(item, kind)})


def _names(item: Known, kind: str | None) -> list[str]:
    return [name for its, names in item.offers.items() if kind in (None, its) for name in names]


def install_hint(kind: str, name: str) -> str:
    """How to get something: `pip install reallm-hf-mistral`; empty if nothing is known.

    For a family that no known distribution offers, the naming convention gives a guess, which is marked as one.
    """
    found = providers(kind, name)
    if found:
        return f"pip install {found[0]}"
    if kind == "family" and re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        return f"pip install reallm-hf-{canonical(name)} (if it exists)"
    return ""
