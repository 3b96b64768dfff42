"""Each check of the kit for callbacks finds what it is for, and finds no fault with what is right."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest

from reallm.errors import ConfigError
from reallm.specs import Callback, CallbackSpec, RunView
from reallm_devkit import CALLBACK_CHECKS, CallbackKit, check_callback


class Good(Callback):
    """Stops at the third step in which the loss has risen."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.n_rises = 0

    def on_step_end(self, run: RunView) -> None:
        loss = run.metrics["train/loss"]
        self.n_rises += self.last is not None and loss > self.last
        self.last = loss
        if self.n_rises == 3:
            run.request_stop("it rises")

    def state(self) -> Mapping[str, Any]:
        return {"last": self.last, "n_rises": self.n_rises}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.last, self.n_rises = state["last"], state["n_rises"]


class NeedsArguments(Good):
    def __init__(self, limit: int) -> None:
        super().__init__()


class Misspelt(Good):
    def on_step_ends(self, run: RunView) -> None: ...


class FailsOnOtherRanks(Good):
    def on_evaluate(self, run: RunView) -> None:
        assert run.rank == 0


class SetsTheEnvironment(Good):
    def on_train_begin(self, run: RunView) -> None:
        os.environ["SEEN_BY_A_CALLBACK"] = str(run.run_dir)


class NotJson(Good):
    def state(self) -> Mapping[str, Any]:
        return {"self": self}


class RestoresNothing(Good):
    def load_state(self, state: Mapping[str, Any]) -> None: ...


class ForgetsTheLastLoss(Good):
    """Its state is restored, but is not all that it needs."""

    def state(self) -> Mapping[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...


BROKEN = [
    ("description", CallbackSpec(Good)),
    ("construction", CallbackSpec(NeedsArguments, "x")),
    ("construction", CallbackSpec(Misspelt, "x")),
    ("run", CallbackSpec(FailsOnOtherRanks, "x")),
    ("side-effects", CallbackSpec(SetsTheEnvironment, "x")),
    ("state", CallbackSpec(NotJson, "x")),
    ("state", CallbackSpec(RestoresNothing, "x")),
    ("resume", CallbackSpec(ForgetsTheLastLoss, "x")),
]


class TestGood(CallbackKit):
    callback = CallbackSpec(Good, "stops when the loss rises")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN_BY_A_CALLBACK", "")  # what a broken one sets is undone


@pytest.mark.parametrize(("name", "callback"), BROKEN, ids=[spec.callback.__name__ for _, spec in BROKEN])
def test_what_is_broken_is_found_by_one_check_and_no_other(name: str, callback: CallbackSpec) -> None:
    found = check_callback(callback)
    assert [result.check for result in found.failed] == [name], str(found)


def test_there_is_something_broken_for_each_check() -> None:
    assert {name for name, _ in BROKEN} | {"light-import"} == {check.name for check in CALLBACK_CHECKS}


def test_a_callback_that_uses_the_model_is_skipped_where_the_kit_has_none() -> None:
    class UsesTheModel(Callback):
        def on_evaluate(self, run: RunView) -> None:
            run.model().eval()

    found = check_callback(CallbackSpec(UsesTheModel, "looks at the model"))
    assert found.passed
    assert "uses the model of the role 'model'" in str(found)


def test_without_a_callback_there_is_nothing_to_check() -> None:
    with pytest.raises(ConfigError, match="say which callback is to be checked"):
        check_callback("")
