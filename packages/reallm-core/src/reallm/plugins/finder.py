"""Finds plugins in the metadata of installed distributions; nothing is imported.

    installed()  ->  entries, broken  ->  plan(entries, disabled, broken)  ->  plugins

An entry point named `<kind>.<name>` is a promise to offer exactly that, so that a look-up imports only the plugins that
promise the name. An entry point with a name of another form promises nothing: its plugin is imported by every look-up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from traceback import walk_tb

from reallm.errors import PluginError
from reallm.foreign_files import parse_json, reading
from reallm.plugins.kinds import KINDS
from reallm.printable import printable_line

GROUP = "reallm"
"""The entry-point group of plugins."""

CORE = "reallm-core"
"""The distribution of the core, whose plugin is listed first."""

DISABLE = "REALLM_DISABLE_PLUGINS"
"""The environment variable with a comma-separated list of distributions, entry points or `distribution[entry]`."""

_LONGEST_NAME = 1000
"""More characters than any name of a distribution or an entry point has."""

Promise = tuple[str, str]
"""A kind and a name: `("family", "llama")`."""


@dataclass(frozen=True)
class Entry:
    """One entry point of an installed distribution."""

    distribution: str
    version: str
    name: str
    value: str
    editable: bool = False


@dataclass(frozen=True)
class Plugin:
    """A module (or an object in one) that one distribution exposes, and the names of all its entry points for it.

    `blocked` are the entries that the user disabled.
    """

    distribution: str
    version: str
    value: str
    entries: tuple[str, ...]
    blocked: tuple[str, ...] = ()
    editable: bool = False

    @property
    def label(self) -> str:
        """A unique name: `reallm-hf-llama[family.codellama,family.llama]`."""
        return f"{self.distribution}[{','.join(self.entries)}]"

    @property
    def release(self) -> str:
        """Distribution and version: `reallm-hf-llama 0.1.0`."""
        return f"{self.distribution} {self.version}"

    @property
    def module(self) -> str:
        """The module of `value`, which may also name an object in it."""
        return self.value.partition(":")[0].strip()

    @property
    def active(self) -> tuple[str, ...]:
        """The entry points that are not disabled."""
        return tuple(name for name in self.entries if name not in self.blocked)

    @property
    def promises(self) -> tuple[Promise, ...]:
        """The promises of the active entry points."""
        return _promises(self.active)

    @property
    def blocked_promises(self) -> tuple[Promise, ...]:
        """The promises of the disabled entry points."""
        return _promises(self.blocked)

    @property
    def is_open(self) -> bool:
        """Whether the plugin may offer more than it promises: the name of an active entry point promises nothing."""
        return any(promise_of(name) is None for name in self.active)

    def __str__(self) -> str:
        """The plugin as named in errors: `reallm-hf-llama 0.1.0 (reallm_hf_llama.plugin)`."""
        return f"{self.release} ({self.value})"


@dataclass(frozen=True)
class Broken:
    """An installed distribution whose metadata cannot be read; it may have plugins or not."""

    distribution: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """All plugins, the names in `REALLM_DISABLE_PLUGINS` that match none of them, and what cannot be read."""

    plugins: tuple[Plugin, ...]
    unknown_disabled: tuple[str, ...] = ()
    broken: tuple[Broken, ...] = ()


def find() -> Plan:
    """Find the plugins on `sys.path`, and mark the ones that `REALLM_DISABLE_PLUGINS` disables."""
    entries, broken = installed()
    return plan(entries, os.environ.get(DISABLE, ""), broken)


def installed() -> tuple[list[Entry], list[Broken]]:
    """The entry points of the group `reallm`, and the distributions whose metadata cannot be read.

    If a distribution is on `sys.path` twice, the first one counts.
    """
    entries: list[Entry] = []
    broken: list[Broken] = []
    seen: set[str] = set()
    for distribution in distributions():
        folder = Path(getattr(distribution, "_path", ""))  # all that is known of one without a readable name
        key = canonical(folder.stem.partition("-")[0])
        if key and key in seen:
            continue
        seen.add(key)
        try:
            with reading("its metadata", f"reinstall it, or remove {folder}", error=PluginError):
                entries += _entries(distribution)
        except PluginError as error:
            broken.append(Broken(printable_line(folder.stem or "?"), str(error)))
    return entries, broken


def _entries(distribution: Distribution) -> list[Entry]:
    """The entry points of a distribution; raises any error if its metadata is damaged."""
    text = distribution.read_text("entry_points.txt")
    if not text or GROUP not in text:
        return []
    points = distribution.entry_points.select(group=GROUP)
    if not points:
        return []
    name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    if not name or not version:
        raise ValueError("it has no name or no version")
    for text in (name, version, *(part for point in points for part in (point.name, point.value))):
        if not text.isprintable() or len(text) > _LONGEST_NAME:
            raise ValueError(f"it holds the name {text!a}")
    editable = _is_editable(distribution)
    return [Entry(name, version, point.name, point.value, editable) for point in points]


def as_metadata_error(error: Exception) -> Exception:
    """The error of one line for one of a library that reads the metadata of all distributions, as torch's import does.

    Other errors are returned as they are.
    """
    modules = {frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)}
    if not any(module.startswith("importlib.metadata") for module in modules):
        return error
    for distribution in distributions():
        folder = Path(getattr(distribution, "_path", ""))
        try:
            with reading(f"the metadata in {folder}", "reinstall that distribution, or remove it", error=PluginError):
                _ = distribution.metadata, distribution.entry_points, distribution.files
        except PluginError as found:
            return found
    return error


def plan(entries: Iterable[Entry], disabled: str = "", broken: Iterable[Broken] = ()) -> Plan:
    """Group entry points of the same distribution and value into plugins, and mark the disabled ones.

    Plugins are sorted by distribution, the core first.
    """
    names = [name.strip() for name in disabled.split(",") if name.strip()]
    entries = list(entries)
    groups: dict[tuple[str, str, str, bool], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.distribution, entry.version, entry.value, entry.editable), []).append(entry)
    plugins = [
        Plugin(
            distribution,
            version,
            value,
            entries=tuple(sorted({entry.name for entry in group})),
            blocked=tuple(sorted({entry.name for entry in group if any(_is_named(entry, name) for name in names)})),
            editable=editable,
        )
        for (distribution, version, value, editable), group in groups.items()
    ]
    plugins.sort(key=lambda plugin: (plugin.distribution != CORE, canonical(plugin.distribution), plugin.value))
    unknown = tuple(name for name in names if not any(_is_named(entry, name) for entry in entries))
    return Plan(tuple(plugins), unknown, tuple(broken))


def promise_of(entry_name: str) -> Promise | None:
    """`"family.llama"` -> `("family", "llama")`; None if it does not have that form."""
    kind, _, name = entry_name.partition(".")
    return (kind, name) if kind in KINDS and name else None


def canonical(distribution: str) -> str:
    """The normalized name by which distributions are compared: `My_Data` -> `my-data`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _promises(entry_names: Iterable[str]) -> tuple[Promise, ...]:
    return tuple(promise for name in entry_names if (promise := promise_of(name)))


def _is_named(entry: Entry, name: str) -> bool:
    """Whether `name` matches this entry point: `reallm-x`, `family.x` or `reallm-x[family.x]`."""
    distribution, bracket, rest = name.partition("[")
    if bracket:
        return canonical(distribution) == canonical(entry.distribution) and rest == f"{entry.name}]"
    return name == entry.name or canonical(name) == canonical(entry.distribution)


def _is_editable(distribution: Distribution) -> bool:
    origin = distribution.read_text("direct_url.json")
    return bool(origin) and bool(parse_json(origin or "{}").get("dir_info", {}).get("editable"))
