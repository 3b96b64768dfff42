"""Presets: values of keys that whatever is given overrides, in files, on the command line and in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from reallm.config.group import ConfigGroup
from reallm.config.load import describe, load
from reallm.config.presets import Presets
from reallm.errors import ConfigError
from reallm.options import option


@dataclass(frozen=True)
class Config(Presets, ConfigGroup):
    """Two keys that a preset sets."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 1, "rate": 0.5}, "slow": {"steps": 9}}

    preset: Literal["quick", "slow"] | None = option(None, "a preset")
    steps: int = option(3, "steps")
    rate: float | None = option(None, "rate")

    def __post_init__(self) -> None:
        self.apply_preset()


def loaded(*arguments: str, files: tuple[Path, ...] = ()) -> tuple[int, float | None]:
    values = load(Config, files, arguments)
    config = values.build()
    assert values.tree() == describe(config).tree()  # what is printed is what is run
    return config.steps, config.rate


def test_on_the_command_line_keys_override_it_wherever_they_stand() -> None:
    assert loaded() == (3, None)
    assert loaded("preset=quick") == (1, 0.5)
    assert loaded("preset=quick", "rate=null") == loaded("rate=null", "preset=quick") == (1, None)
    assert loaded("preset=null") == (3, None)


def test_the_command_line_overrides_files_by_a_preset_as_by_a_key(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 7\npreset: quick\n")
    assert loaded(files=(file,)) == (7, 0.5)
    assert loaded("preset=slow", files=(file,)) == (9, 0.5)
    assert loaded("preset=slow", "steps=2", files=(file,)) == (2, 0.5)


def test_in_python_what_is_given_overrides_it_even_with_the_default() -> None:
    assert (Config(preset="quick").steps, Config(preset="quick", steps=3).steps) == (1, 3)
    assert replace(Config(preset="quick", steps=3), rate=0.1) == Config(preset="quick", steps=3, rate=0.1)


def test_an_unknown_preset_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"preset=quik: must be .*did you mean 'quick'"):
        load(Config, (), ["preset=quik"])
