"""The JSON of a training state: its fields, with their types and ranges. Whatever else a file has is named."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reallm.errors import one_line
from reallm.foreign_files import shown
from reallm.machine_errors import raise_shortage

LARGEST_STEP = 10**12


@dataclass(frozen=True)
class Best:
    """The best evaluation so far by `best_metric`, and its checkpoint, relative to the run folder."""

    metric: str
    value: float
    step: int
    checkpoint: str


@dataclass(frozen=True)
class Generators:
    """The states of the global random generators of Python, numpy and torch, for code that draws from them."""

    python: Any
    numpy: Any
    torch: Mapping[str, list[int]]
    """Generator state by device: `cpu`, `cuda:0`."""

    @classmethod
    def capture(cls) -> Generators:
        """The current states in this process."""
        algorithm, keys, *rest = np.random.get_state(legacy=True)
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        return cls(
            random.getstate(), [algorithm, np.asarray(keys).tolist(), *rest], {k: v.tolist() for k, v in states.items()}
        )

    def restore(self) -> None:
        """Set the generators of this process to these states."""
        random.setstate(self._python_state())
        np.random.set_state(self._numpy_state())
        for device, state in self.torch.items():
            tensor = torch.tensor(state, dtype=torch.uint8)
            if device == "cpu":
                torch.set_rng_state(tensor)
            elif torch.cuda.is_available() and int(device.partition(":")[2]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(tensor, device)

    def check(self) -> None:
        """Raise ValueError if a generator would refuse its state."""
        try:
            random.Random().setstate(self._python_state())
            np.random.RandomState().set_state(self._numpy_state())
            for device, state in self.torch.items():
                tensor = torch.tensor(state, dtype=torch.uint8)
                if device == "cpu":
                    torch.Generator().set_state(tensor)
                elif not re.fullmatch(r"cuda:\d{1,4}", device):
                    raise ValueError(f"'{device}' is no device")
        except Exception as error:  # each generator has its own ways to refuse what a file holds
            raise_shortage(error)
            raise ValueError(f"generators: {one_line(error)}") from error

    def _python_state(self) -> tuple[Any, ...]:
        number, keys, gauss = self.python
        return number, tuple(keys), gauss

    def _numpy_state(self) -> tuple[Any, ...]:
        algorithm, keys, *rest = self.numpy
        return algorithm, np.array(keys, dtype=np.uint32), *rest


@dataclass(frozen=True)
class StateFile:
    """What `state.json` holds for all ranks."""

    format: int
    step: int
    evaluated_step: int | None
    engines: Mapping[str, Mapping[str, int]]
    """Role -> its numbers of steps: `step`, `skipped_steps`."""
    metrics: Mapping[str, float]
    best: Best | None
    evals_without_gain: int
    seconds: float
    data: str
    interfaces: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, content: Any) -> StateFile:
        """The content of the file.

        Raises:
            ValueError: a field is missing, or has a value that it cannot have; names it.
        """
        fields = _mapping(content, "it")
        return cls(
            _read(fields, "format", _count),
            _read(fields, "step", _count),
            _read(fields, "evaluated_step", _or_none(_count)),
            _read(fields, "engines", _engines),
            _read(fields, "metrics", _metrics),
            _read(fields, "best", _or_none(_best)),
            _read(fields, "evals_without_gain", _count, default=0),  # earlier versions do not write it
            _read(fields, "seconds", _seconds),
            _read(fields, "data", _text),
            _read(fields, "interfaces", _mapping, default={}),  # earlier versions do not write it
            _read(fields, "versions", _versions),
        )


@dataclass(frozen=True)
class RankFile:
    """What a rank has for itself, in `state.json` or in a file of its own."""

    generators: Generators
    callbacks: Mapping[str, Any]
    """State of each callback, by name."""

    @classmethod
    def of(cls, content: Any) -> RankFile:
        """The content of the file.

        Raises:
            ValueError: as for `StateFile.of`.
        """
        fields = _mapping(content, "it")
        return cls(
            _read(fields, "generators", _generators),
            _read(fields, "callbacks", _mapping, default={}),  # earlier versions do not write it
        )


Reader = Callable[[Any, str], Any]
"""Returns the value of a field of this name, or raises ValueError."""


def _read(fields: Mapping[str, Any], name: str, reader: Reader, **default: Any) -> Any:
    if name not in fields and "default" in default:
        return default["default"]
    if name not in fields:
        raise ValueError(f"'{name}' is missing")
    return reader(fields[name], name)


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_STEP:
        raise ValueError(f"'{name}' is {shown(value)}, not a number from 0 to {LARGEST_STEP}")
    return value


def _seconds(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"'{name}' is {shown(value)}, not a number of seconds")
    return float(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {shown(value)}, not text")
    return value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"'{name}' is {shown(value)}, not an object")
    return value


def _or_none(reader: Reader) -> Reader:
    return lambda value, name: None if value is None else reader(value, name)


def _engines(value: Any, name: str) -> dict[str, dict[str, int]]:
    found = {}
    for role, numbers in _mapping(value, name).items():
        if not role.isidentifier():  # it is the name of a folder
            raise ValueError(f"'{name}' has {shown(role)}, which is no role")
        fields = _mapping(numbers, f"{name}.{role}")
        found[role] = {key: _count(fields.get(key), f"{name}.{role}.{key}") for key in ("step", "skipped_steps")}
    return found


def _metrics(value: Any, name: str) -> dict[str, float]:
    found = {}
    for metric, number in _mapping(value, name).items():
        if number is not None and (not isinstance(number, int | float) or isinstance(number, bool)):
            raise ValueError(f"'{name}.{metric}' is {shown(number)}, not a number")
        found[metric] = math.nan if number is None else number
    return found


def _best(value: Any, name: str) -> Best:
    fields = _mapping(value, name)
    best = Best(
        _read(fields, "metric", _text),
        _metrics({"value": fields.get("value")}, name)["value"],
        _read(fields, "step", _count),
        _read(fields, "checkpoint", _text),
    )
    if not re.fullmatch(r"checkpoints/step-\d+", best.checkpoint):
        raise ValueError(f"'{name}.checkpoint' is {shown(best.checkpoint)}, not a checkpoint of the run")
    return best


def _versions(value: Any, name: str) -> dict[str, str]:
    return {package: _text(version, f"{name}.{package}") for package, version in _mapping(value, name).items()}


def _generators(value: Any, name: str) -> Generators:
    fields = _mapping(value, name)
    found = Generators(fields.get("python"), fields.get("numpy"), _mapping(fields.get("torch"), f"{name}.torch"))
    found.check()
    return found
