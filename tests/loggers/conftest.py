"""Stand-ins for modules that are not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a module in the place of an installed one: `stand_in("wandb", init=...)`."""
    names: list[str] = []

    def put(name: str, **content: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, origin="stand-in")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, f"reallm.loggers.{name}", raising=False)
        names.append(name)

    for variable in ("WANDB_PROJECT", "WANDB_RUN_ID", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    yield put
    for name in names:  # imported with the stand-in in it
        sys.modules.pop(f"reallm.loggers.{name}", None)
