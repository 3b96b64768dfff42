"""`Order`: what is to be measured, as a JSON file that the processes of a job are started with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reallm.dtype_device import as_dtype
from reallm.model.config import Extra, MoEConfig, ReaLModelConfig, RopeConfig
from reallm.planning.profiling.measure import MeasuredModel
from reallm.planning.profiling.model_times import Sizes


@dataclass(frozen=True)
class Order:
    """What is to be measured, and in which time."""

    models: tuple[MeasuredModel, ...]
    sizes: Sizes = field(default_factory=Sizes)
    seconds: float = 120.0

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        models = [
            {
                **vars(model),
                "config": dataclasses.asdict(model.config),
                "dtype": str(model.dtype).removeprefix("torch."),
            }
            for model in self.models
        ]
        values = {"models": models, "sizes": dataclasses.asdict(self.sizes), "seconds": self.seconds}
        file.write_text(json.dumps(values, default=_plain), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Order:
        """Read what `write` wrote."""
        values = json.loads(file.read_text(encoding="utf-8"))
        models = [
            MeasuredModel(**{**each, "config": _config(each["config"]), "dtype": as_dtype(each["dtype"])})
            for each in values["models"]
        ]
        sizes = Sizes(**{name: _tuples(each) for name, each in values["sizes"].items()})
        return cls(tuple(models), sizes, values["seconds"])


def _plain(value: Any) -> Any:
    """An `Extra` as a mapping of JSON."""
    assert isinstance(value, Mapping)
    return dict(value)


def _config(values: Mapping[str, Any]) -> ReaLModelConfig:
    found = {name: _tuples(value) for name, value in values.items()}
    rope, moe = values["rope"], values["moe"]
    found["rope"] = tuple(map(_rope, rope)) if isinstance(rope, list) else _rope(rope)
    found["moe"] = None if moe is None else MoEConfig(**{name: _tuples(value) for name, value in moe.items()})
    found["extra"] = Extra(values["extra"])
    return ReaLModelConfig(**found)


def _rope(values: Mapping[str, Any] | None) -> RopeConfig | None:
    return None if values is None else RopeConfig(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
