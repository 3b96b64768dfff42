"""A configuration dataclass as a typed OmegaConf tree."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reallm.field_types import is_text_or_list
from reallm.options import copy_of_field


def structured(cls: type) -> DictConfig:
    """The tree of a configuration dataclass, with its defaults.

    Fields that are a text or a list of texts are of any type in it, since OmegaConf has no such type.

    Raises:
        OmegaConfBaseException: a field has a type that a configuration cannot have.
        ValueError: likewise.
    """
    hints = typing.get_type_hints(cls)
    untyped = [item for item in dataclasses.fields(cls) if is_text_or_list(hints[item.name])]
    if not untyped:
        return OmegaConf.structured(cls)
    fields = [(item.name, Any, copy_of_field(item)) for item in untyped]
    frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]  # a frozen class has only frozen subclasses
    return OmegaConf.structured(dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=frozen))
