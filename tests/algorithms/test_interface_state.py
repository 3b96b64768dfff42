"""The state of interfaces: as JSON, and mistakes in one line that names role and plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from reallm.algorithms.interface_state import interface_states, load_interface_states
from reallm.algorithms.sft.interface import SFTInterface
from reallm.errors import PluginError


class Controller:
    def __init__(self, state: Any = None) -> None:
        self.saved = state

    def state(self) -> Mapping[str, Any]:
        return {"saved": self.saved}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.saved = state["saved"]


class InCore(SFTInterface):
    """Of the plugin whose package its module is in."""

    def state(self) -> Mapping[str, Any]:
        raise ValueError("no\nstate")


InCore.__module__ = "reallm.somewhere"


def test_states_come_back() -> None:
    states = interface_states({"actor": Controller([0.1, None]), "ref": object()})
    assert states == {"actor": {"saved": [0.1, None]}}
    loaded = {"actor": Controller(), "critic": Controller(7)}
    load_interface_states(loaded, {**states, "gone": {}})
    assert loaded["actor"].saved == [0.1, None]
    assert loaded["critic"].saved == 7


@pytest.mark.parametrize("value", [np.float32(1), {1, 2}, object()])
def test_a_state_that_is_not_json_is_named(value: object) -> None:
    with pytest.raises(
        PluginError,
        match=r"^the interface of 'actor', Controller of tests\.algorithms\.test_interface_state, has a state that is "
        r"not made of JSON's types: \S+",
    ):
        interface_states({"actor": Controller(value)})


def test_an_error_of_the_interface_is_one_line() -> None:
    with pytest.raises(
        PluginError,
        match=r"^the interface of 'actor', Controller of tests\S+, failed in load_state: KeyError: 'saved'$",
    ):
        load_interface_states({"actor": Controller()}, {"actor": {}})
    with pytest.raises(
        PluginError,
        match=r"^the interface of 'actor', InCore of reallm-core \S+, failed in state: ValueError: no",
    ):
        interface_states({"actor": InCore()})
