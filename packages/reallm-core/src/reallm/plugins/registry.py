"""Looks things up by kind and name in all installed plugins.

    registry.get("family", "llama")      the HFFamily, or an error that says what to install or fix
    registry.names("dataset")            the names of all datasets
    registry.declared("algorithm")       names from entry points alone: imports nothing

Plugins are found at the first look-up, and a look-up imports only those that can offer the name. The only inputs are
the metadata of installed distributions and the environment, so every process finds the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from reallm.errors import PluginError
from reallm.plugins import lookup_errors
from reallm.plugins.finder import Plan, Plugin, Promise, find
from reallm.plugins.kinds import KINDS
from reallm.plugins.known import install_hint
from reallm.plugins.loader import Loaded, Offer, load

__all__ = ["Registry", "declared", "get", "install_hint", "names", "offers", "registry"]


class Registry:
    """The plugins of a plan, each loaded when a look-up needs it, and only once.

    Args:
        plan: the installed plugins.
        load: function that loads a plugin.
    """

    def __init__(self, plan: Plan, load: Callable[[Plugin], Loaded] = load) -> None:
        self.plan = plan
        self._load = load
        self._loaded: dict[Plugin, Loaded] = {}

    def get(self, kind: str, name: str) -> Any:
        """The value that a plugin offers under this name; see `offer`."""
        return self.offer(kind, name).value

    def offer(self, kind: str, name: str) -> Offer:
        """The offer of this name, with the plugin it comes from.

        Raises:
            UnknownNameError: no plugin offers it.
            PluginError: the plugin that promises it failed or is blocked, or two plugins offer it.
        """
        assert kind in KINDS, kind
        found = self._search(kind, name)
        if not found:
            installed = self.names(kind)
            raise self._why_unavailable(kind, name) or lookup_errors.unknown(kind, name, installed, self.listing())
        return found[0]

    def offers_named(self, name: str) -> list[Offer]:
        """The offers of this name, of all kinds. Raises the same errors as `offer`."""
        found = [offer for kind in KINDS for offer in self._search(kind, name)]
        if not found:
            installed = sorted({name for kind in KINDS for name in self.names(kind)})
            errors = filter(None, (self._why_unavailable(kind, name) for kind in KINDS))
            raise next(errors, None) or lookup_errors.unknown(None, name, installed, self.listing())
        return found

    def declared(self, kind: str) -> list[str]:
        """The names that entry points promise, sorted, whether or not their plugins fail. Imports no plugin."""
        return sorted(name for its, name in self._promises if its == kind)

    def names(self, kind: str) -> list[str]:
        """All names of a kind that can be looked up, sorted. Imports all plugins."""
        return sorted(self.offers(kind))

    def offers(self, kind: str) -> dict[str, Any]:
        """All names of a kind that can be looked up, with their values. Imports all plugins."""
        conflicts = self.conflicts()
        return {
            offer.name: offer.value
            for offer in self._offers(self.plan.plugins)
            if offer.kind == kind and (kind, offer.name) not in conflicts
        }

    def conflicts(self) -> dict[Promise, list[Plugin]]:
        """The kinds and names that more than one plugin offers. Imports all plugins."""
        owners: dict[Promise, list[Plugin]] = {}
        for offer in self._offers(self.plan.plugins):
            owners.setdefault((offer.kind, offer.name), []).append(offer.plugin)
        return {what: plugins for what, plugins in owners.items() if len(plugins) > 1}

    def listing(self) -> list[Loaded]:
        """All plugins with their offers and failures. Imports all plugins that are not blocked."""
        return [self._loaded_plugin(plugin) for plugin in self.plan.plugins]

    def owner(self, value: object) -> Offer | None:
        """The offer of this very value, of the plugins that have been loaded so far; None if it is not theirs."""
        offers = (offer for loaded in self._loaded.values() for offer in loaded.offers)
        return next((offer for offer in offers if offer.value is value), None)

    @functools.cached_property
    def _promises(self) -> set[Promise]:
        """What entry points promise, whether or not their plugins fail."""
        return {promise for plugin in self.plan.plugins for promise in plugin.promises}

    def _offers(self, plugins: Iterable[Plugin]) -> list[Offer]:
        return [offer for plugin in plugins for offer in self._loaded_plugin(plugin).offers]

    def _loaded_plugin(self, plugin: Plugin) -> Loaded:
        if plugin not in self._loaded:
            self._loaded[plugin] = self._load(plugin) if plugin.active else Loaded(plugin)
        return self._loaded[plugin]

    def _search(self, kind: str, name: str) -> list[Offer]:
        """Search the plugins that promise the name and the open ones; returns at most one offer."""
        candidates = [plugin for plugin in self.plan.plugins if plugin.is_open or (kind, name) in plugin.promises]
        found = [offer for offer in self._offers(candidates) if (offer.kind, offer.name) == (kind, name)]
        if len(found) > 1:
            raise lookup_errors.conflict(kind, name, [offer.plugin for offer in found], self.plan)
        return found

    def _why_unavailable(self, kind: str, name: str) -> PluginError | None:
        """The error for a name that an entry point promises but that is not available; None if none promises it."""
        for plugin in self.plan.plugins:
            if (kind, name) in plugin.promises:
                return lookup_errors.failed(kind, name, self._loaded_plugin(plugin))
        for plugin in self.plan.plugins:
            if (kind, name) in plugin.blocked_promises:
                return lookup_errors.blocked(kind, name, plugin)
        return None


@functools.cache
def registry() -> Registry:
    """The registry of this process, built at the first look-up."""
    return Registry(find())


def get(kind: str, name: str) -> Any:
    """The value that a plugin offers under this name: `get("family", "llama")` is an `HFFamily`.

    Raises:
        UnknownNameError: no plugin offers it; gives similar names, what to install and what is installed.
        PluginError: the plugin that promises it failed or is blocked, or two plugins offer it.
    """
    return registry().get(kind, name)


def names(kind: str) -> list[str]:
    """All names of a kind that can be looked up, sorted. Imports all plugins."""
    return registry().names(kind)


def offers(kind: str) -> dict[str, Any]:
    """All names of a kind that can be looked up, with their values. Imports all plugins."""
    return registry().offers(kind)


def declared(kind: str) -> list[str]:
    """The names of a kind that entry points promise, sorted. Imports no plugin."""
    return registry().declared(kind)
