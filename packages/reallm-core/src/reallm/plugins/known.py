"""Known distributions, installed or not, and the things that they offer, so that errors can say what to install.

The table is `known.json`; plugins work without being in it. The first entry of a kind is suggested to new users.
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
class KnownDistribution:
    """A distribution, the names it offers of each kind, and the datasets its configuration classes belong to."""

    distribution: str
    offers: Mapping[str, tuple[str, ...]]
    config_classes: Mapping[str, str]


@functools.cache
def known_distributions() -> tuple[KnownDistribution, ...]:
    """All known distributions, read from `known.json` once."""
    table = json.loads(resources.files("reallm.plugins").joinpath("known.json").read_text("utf-8"))
    return tuple(
        KnownDistribution(
            distribution,
            offers={kind: tuple(facts[kind]) for kind in KINDS if kind in facts},
            config_classes=facts.get("config_classes", {}),
        )
        for distribution, facts in table.items()
    )


def providers(kind: str | None, name: str | None = None) -> list[str]:
    """The known distributions that offer `name`, or anything, of a kind (None: of any kind)."""
    return [
        item.distribution
        for item in known_distributions()
        if (name in _names(item, kind) if name else _names(item, kind))
    ]


def suggested_first(kind: str) -> tuple[str, str]:
    """The distribution, and a name that it offers, suggested to a user who has none of a kind."""
    return next((item.distribution, item.offers[kind][0]) for item in known_distributions() if kind in item.offers)


def known_names(kind: str | None) -> list[str]:
    """The names of a kind (None: of all kinds) that known distributions offer."""
    return sorted({name for item in known_distributions() for name in _names(item, kind)})


def _names(item: KnownDistribution, kind: str | None) -> list[str]:
    return [name for its, names in item.offers.items() if kind in (None, its) for name in names]


def install_hint(kind: str, name: str) -> str:
    """The command that installs a thing: `pip install reallm-hf-mistral`; empty if it is unknown.

    For a family that no known distribution offers, it is a guess by the naming convention, marked as such.
    """
    found = providers(kind, name)
    if found:
        return f"pip install {found[0]}"
    if kind == "family" and re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        return f"pip install reallm-hf-{canonical(name)} (if it exists)"
    return ""
