"""Mistakes of an algorithm that came from a plugin: one line with the algorithm, its distribution and the place."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from reallm.algorithms.graph import Graph
from reallm.algorithms.interface_checks import check_interfaces
from reallm.algorithms.owner import errors_name, owner_of
from reallm.builtin import reallm_algorithms
from reallm.config.args import ModelArgs
from reallm.errors import ConfigError, DataError, PluginError
from reallm.plugins import registry
from reallm.plugins.finder import Plugin
from reallm.plugins.loader import Offer
from reallm.specs import Algorithm, ModelFunctionCall

SFT = reallm_algorithms()["sft"]
CONFIG: Any = SimpleNamespace(model=ModelArgs(path="m"))
OWNER = "algorithm 'mine' of my-algorithms 0.3"


@pytest.fixture
def _of_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every algorithm is that of a plugin whose module is this one."""
    plugin = Plugin("my-algorithms", "0.3", __name__, ("algorithm.mine",))
    owner = SimpleNamespace(owner=lambda value: Offer("algorithm", "mine", value, plugin))
    monkeypatch.setattr(registry, "registry", lambda: owner)


def with_interface(cls: type) -> Algorithm:
    return dataclasses.replace(SFT, interfaces={"model": cls})


def of_reward(cls: type) -> Algorithm:
    reward = ModelFunctionCall("judge", "judge", "reward", ("input_ids",), ("loss_mask",))
    assert isinstance(SFT.graph, tuple)
    return dataclasses.replace(SFT, graph=(reward, *SFT.graph), interfaces={**SFT.interfaces, "judge": cls})


def raising(config: Any) -> list[ModelFunctionCall]:
    raise ValueError("no such thing")


def refusing(config: Any) -> list[ModelFunctionCall]:
    raise ConfigError("beta=-1.0 must be at least 0")


class Old:
    """As before hook API 1.3: no configuration."""

    def train_step(self, engine: Any, batch: Any) -> dict[str, float]:
        return {}


class WithoutContext:
    def __init__(self, config: Any) -> None:
        pass

    def train_step(self, engine: Any, batch: Any) -> dict[str, float]:
        return {}


class WithoutMethod:
    def __init__(self, config: Any) -> None:
        pass


class OldEvalMetrics(WithoutMethod):
    def reward(self, batch: Any, context: Any) -> Any:
        return None

    def eval_metrics(self, batch: Any) -> dict[str, list[float]]:
        return {}


def test_an_algorithm_of_a_plugin_has_an_owner() -> None:
    registry.registry().listing()
    assert owner_of(registry.get("algorithm", "sft")).startswith("algorithm 'sft' of reallm-core ")
    assert owner_of(SFT) == ""  # equal, but another one


@pytest.mark.usefixtures("_of_plugin")
def test_a_mistake_in_the_graph_names_the_plugin() -> None:
    graph = (ModelFunctionCall("a", "model", "inference", ("x",), ("y",)),)
    with pytest.raises(PluginError) as error:
        Graph.of(dataclasses.replace(SFT, graph=graph), CONFIG)
    assert str(error.value) == f"{OWNER}: the call 'a' writes 'y', which no call reads"


@pytest.mark.usefixtures("_of_plugin")
def test_an_exception_in_the_function_of_the_graph_becomes_a_line_with_its_place() -> None:
    with pytest.raises(PluginError) as error:
        Graph.of(dataclasses.replace(SFT, graph=raising), CONFIG)
    assert str(error.value).startswith(f"{OWNER}: its graph cannot be made: ValueError: no such thing (")
    assert "test_owner.py:" in str(error.value)


def test_an_exception_of_an_algorithm_without_a_plugin_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="no such thing"):
        Graph.of(dataclasses.replace(SFT, graph=raising), CONFIG)


@pytest.mark.usefixtures("_of_plugin")
def test_the_message_for_a_wrong_setting_stays_what_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^beta=-1\.0 must be at least 0$"):
        Graph.of(dataclasses.replace(SFT, graph=refusing), CONFIG)


@pytest.mark.usefixtures("_of_plugin")
def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(PluginError, match=f"^{OWNER}: cannot import 'nowhere:graph': No module named 'nowhere'$"):
        Graph.of(dataclasses.replace(SFT, graph="nowhere:graph"), CONFIG)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            with_interface(Old),
            "Old, the interface of 'model', does not take the algorithm's configuration; since hook API 1.3 interfaces "
            "are constructed with it: def __init__(self, config)",
        ),
        (
            with_interface(WithoutContext),
            "WithoutContext.train_step, of the interface of 'model', does not take the arguments of hook API 1.3: "
            "def train_step(self, engine, batch, context)",
        ),
        (
            with_interface(WithoutMethod),
            "the call 'train' needs the method 'train_step', which the interface of 'model', WithoutMethod, does not "
            "have",
        ),
        (
            of_reward(OldEvalMetrics),
            "OldEvalMetrics.eval_metrics, of the interface of 'judge', does not take the arguments of hook API 1.3: "
            "def eval_metrics(self, batch, context)",
        ),
    ],
)
def test_an_interface_of_an_earlier_hook_api_is_one_line(algorithm: Algorithm, message: str) -> None:
    with pytest.raises(PluginError) as error:
        check_interfaces(algorithm, Graph.of(algorithm, CONFIG))
    assert str(error.value) == message


def test_errors_begin_with_the_owner_once() -> None:
    with pytest.raises(PluginError, match=f"^{OWNER}: wrong$"), errors_name(OWNER), errors_name(OWNER):
        raise PluginError("wrong")
    with pytest.raises(DataError, match=r"^row 3$"), errors_name(OWNER):
        raise DataError("row 3")


def test_an_exception_in_a_step_keeps_its_traceback_and_gets_a_note() -> None:
    with pytest.raises(KeyError) as error, errors_name(OWNER):
        raise KeyError("x")
    assert error.value.__notes__ == [f"raised in {OWNER}"]
