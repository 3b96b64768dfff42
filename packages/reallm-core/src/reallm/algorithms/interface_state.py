"""The state of interfaces that have one: what a resumed run continues from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reallm.errors import PluginError, one_line


def interface_states(interfaces: Mapping[str, Any]) -> dict[str, Any]:
    """The state of each interface that has one, as JSON types, by role.

    Raises:
        PluginError: a state is not made of JSON's types; names the role.
    """
    found: dict[str, Any] = {}
    for role, interface in interfaces.items():
        if not hasattr(interface, "state"):
            continue
        try:
            found[role] = json.loads(json.dumps(interface.state()))
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"the interface of '{role}' has a state that is not made of JSON's types: {one_line(error)}"
            ) from error
    return found


def load_interface_states(interfaces: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Restore saved states; those of roles that the algorithm no longer has are dropped."""
    for role, interface in interfaces.items():
        if role in states and hasattr(interface, "load_state"):
            interface.load_state(states[role])
