"""Checks of an algorithm's configuration."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any

from reallm.config.load import describe, load
from reallm.config.training import TrainingConfig
from reallm.config.trust import TRUST_CODE
from reallm.errors import ReallmError, one_line
from reallm_devkit.testing.algorithms.subject import AlgorithmSubject
from reallm_devkit.testing.checks import CheckFailed, check

ODD_VALUES: dict[type, Sequence[Any]] = {
    float: (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e30),
    int: (-1, 0, 10**9),
    str: ("", "no-such-value"),
}


@check()
def configuration(subject: AlgorithmSubject) -> str:
    """its configuration derives from `TrainingConfig`, explains its keys, and is read as it was written"""
    cls = subject.config_class
    if not (isinstance(cls, type) and issubclass(cls, TrainingConfig) and dataclasses.is_dataclass(cls)):
        expected = "a dataclass that derives from reallm.TrainingConfig, which has the keys of every training"
        raise CheckFailed(expected, repr(cls), look_at=subject.at_config)
    own = own_fields(cls)
    for item in own:
        if not item.metadata.get("help"):
            expected = f"what '{item.name}' means, for --help: {item.name}: ... = option(default, \"what it means\")"
            raise CheckFailed(expected, "no text", f"key '{item.name}'", subject.at_config)
    path = subject.folder.path / "config.yaml"
    path.write_text(describe(subject.config).to_yaml(), encoding="utf-8")
    again = load(cls, [path], [TRUST_CODE]).build()  # the code of its own reward functions
    for item in dataclasses.fields(cls):
        before, after = getattr(subject.config, item.name), getattr(again, item.name)
        if before != after:
            where = f"key '{item.name}', written to config.yaml and read again"
            raise CheckFailed(f"{before!r}", f"{after!r}", where, subject.at_config)
    return f"{cls.__qualname__}: {', '.join(item.name for item in own) or 'no keys of its own'}"


@check(needs=[configuration])
def odd_values(subject: AlgorithmSubject) -> str:
    """a value that makes no sense is refused by a ConfigError of one line that names the key"""
    n_refused = n_tried = 0
    hints = typing.get_type_hints(subject.config_class)
    for item in own_fields(subject.config_class):
        for value in _odd_values(hints[item.name]):
            n_tried += 1
            where = f"{item.name}={value!r}"
            try:
                config = dataclasses.replace(subject.config, **{item.name: value})
                subject.spec.calls(config)
                for role in subject.graph.all_roles:
                    subject.spec.interface_class(role)(config)
            except ReallmError as error:
                n_refused += 1
                if item.name not in str(error) or len(str(error).splitlines()) > 1:
                    raise CheckFailed(
                        f"one line that names '{item.name}'", str(error), where, subject.at_config
                    ) from error
            except Exception as error:
                seen = f"raised {type(error).__name__}: {one_line(error)}"
                raise CheckFailed(_remedy(item.name), seen, where, subject.at_config) from error
            else:
                if isinstance(value, float) and math.isnan(value):
                    raise CheckFailed(_remedy(item.name), "it is accepted", where, subject.at_config)
    return f"{n_refused} of {n_tried} odd values refused"


def own_fields(config_class: Any) -> list[dataclasses.Field[Any]]:
    """The fields that a configuration has beyond those of every training."""
    common = {item.name for item in dataclasses.fields(TrainingConfig)}
    return [item for item in dataclasses.fields(config_class) if item.name not in common]


def _odd_values(hint: Any) -> list[Any]:
    choices = typing.get_args(hint) or (hint,)
    return [value for one in choices if isinstance(one, type) for value in ODD_VALUES.get(one, ())]


def _remedy(name: str) -> str:
    return f'a ConfigError in __post_init__: if not self.{name} >= 0: raise ConfigError(f"{name}={{self.{name}}} ...")'
