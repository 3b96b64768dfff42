"""The state of interfaces that have one: what a resumed run continues from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reallm.errors import PluginError
from reallm.plugins import registry
from reallm.plugins.finder import Plugin
from reallm.plugins.foreign_errors import describe_error, shortened


def interface_states(interfaces: Mapping[str, Any]) -> dict[str, Any]:
    """The state of each interface that has one, as JSON types, by role.

    Raises:
        PluginError: an interface has raised, or its state is not made of JSON's types; names the role and the plugin.
    """
    found: dict[str, Any] = {}
    for role, interface in interfaces.items():
        if not hasattr(interface, "state"):
            continue
        try:
            state = interface.state()
        except Exception as error:  # a plugin's code may raise anything
            raise _error(role, interface, "failed in state", error) from error
        try:
            found[role] = json.loads(json.dumps(state))
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{_who(role, interface)} has a state that is not made of JSON's types: {shortened(str(error))}"
            ) from error
    return found


def load_interface_states(interfaces: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Restore saved states; those of roles that the algorithm no longer has are dropped.

    Raises:
        PluginError: an interface has raised; names the role and the plugin.
    """
    for role, interface in interfaces.items():
        if role in states and hasattr(interface, "load_state"):
            try:
                interface.load_state(states[role])
            except Exception as error:  # a plugin's code may raise anything
                raise _error(role, interface, "failed in load_state", error) from error


def _error(role: str, interface: Any, what: str, error: Exception) -> PluginError:
    plugin = _plugin(interface)
    described = f"{type(error).__name__}: {shortened(str(error))}" if plugin is None else describe_error(error, plugin)
    return PluginError(f"{_who(role, interface)} {what}: {described}")


def _who(role: str, interface: Any) -> str:
    cls, plugin = type(interface), _plugin(interface)
    return f"the interface of '{role}', {cls.__qualname__} of {cls.__module__ if plugin is None else plugin.release},"


def _plugin(interface: Any) -> Plugin | None:
    """The plugin whose package an interface's class is in, if it offers an algorithm."""
    package = type(interface).__module__.partition(".")[0]
    plugins = (registry.registry().offer("algorithm", name).plugin for name in registry.offers("algorithm"))
    return next((plugin for plugin in plugins if plugin.module.partition(".")[0] == package), None)
