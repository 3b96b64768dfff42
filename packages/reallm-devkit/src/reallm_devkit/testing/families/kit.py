"""`FamilyKit`, the conformance kit for model families."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reallm.errors import ConfigError, ReallmError, one_line
from reallm.hf.family import HFFamily
from reallm_devkit.testing.checks import Check, CheckFailed
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.families import (
    configs,
    decoding,
    fields,
    heads,
    numerics,
    saving,
    shards,
    tensors,
    tiny,
    training,
)
from reallm_devkit.testing.families.lines import TableLines, module_of
from reallm_devkit.testing.families.subject import FamilySubject, custom_layers_location
from reallm_devkit.testing.plugin_kit import PluginKit
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.source import innermost_line

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

FAMILY_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    configs.default_config,
    configs.blocks,
    configs.config_round_trip,
    configs.defaults,
    tensors.table,
    tensors.names,
    tensors.state_dict,
    numerics.packing,
    numerics.logits,
    numerics.gradients,
    numerics.bf16,
    fields.config_fields,
    heads.tied,
    heads.critic,
    decoding.decode,
    decoding.generate,
    saving.save,
    shards.shards,
    training.initialisation,
    training.checkpointing,
    training.experts,
    saving.checkpoint,
)
"""The checks of a model family."""

Raw = Mapping[str, Any]


class FamilyKit(PluginKit[FamilySubject]):
    """The checks of a model family. As a test suite:

    class TestMyModel(FamilyKit):
        family = "my-model"

    It is tested with small configurations: those of `configs`, or else of the family's `check_configs`, or else ones
    derived from transformers' default one of the model type; with tied and untied embeddings if the family has both.
    """

    kind = "family"
    checks: ClassVar[tuple[Check[Any], ...]] = FAMILY_CHECKS
    has_cases: ClassVar[bool] = True

    family: str | HFFamily = ""
    """The name it is installed under, or the `HFFamily` of one that is not installed yet."""

    configs: Mapping[str, Raw] = {}
    """Name -> small configuration, as in `config.json`, to test instead of those of the family and the derived ones:
    `{"windows": {"vocab_size": 97, ...}}`."""

    checkpoint: str | Path | None = None
    """A real checkpoint of the family, a folder or hub id, to load, compare and save again."""

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """Make the kit for `reallm plugins check my-model --checkpoint path/to/model`."""
        if arguments:
            raise ConfigError(f"a family takes no {arguments[0].partition('=')[0]}=...; it may have --checkpoint PATH")
        return cls.of(family=offer.name, checkpoint=checkpoint)

    def title(self) -> str:
        """The first name of the family."""
        return self.family if isinstance(self.family, str) else self.family.names[0]

    def module(self, subject: FamilySubject) -> str:
        """The module that defines the family."""
        return subject.lines.module

    def cases(self) -> Sequence[str]:
        """Names of the configurations."""
        return list(self._configs_by_case())

    def subject(self, case: str) -> FamilySubject:
        """Make the subject: the family with one of its configurations."""
        configs, family = self._configs_by_case(), self._family()
        config_json = configs[case]
        lines = TableLines(family, module_of(family))
        first, *rest = configs
        others = [raw for name in rest if isinstance(raw := configs[name], Mapping)] if case == first else None
        earlier = itertools.takewhile(lambda name: name != case, configs)
        twin = next((name for name in earlier if _differ_in_head(family, configs[name], config_json)), "")
        return FamilySubject(family, case, config_json, lines, self.checkpoint, self._light_modules(), others, twin)

    def source_location(self, subject: FamilySubject) -> str:
        """The location of the family's custom layers, whose mistakes may raise only later, within torch."""
        try:
            return custom_layers_location(subject)
        except (CheckFailed, ReallmError):  # no configuration
            return ""

    def _family(self) -> HFFamily:
        if not self.family:
            raise ConfigError(f"{type(self).__name__}: say which family is to be checked: family = 'my-model'")
        family = self._spec()
        assert isinstance(family, HFFamily)
        return family

    def _configs_by_case(self) -> Mapping[str, Raw | CheckFailed]:
        family = self._family()
        stated = self.configs or family.check_configs
        if not stated:
            return _derived_configs(family)
        configs: dict[str, Raw | CheckFailed] = {}
        for name, raw in stated.items():
            config = tiny.completed(family, raw)
            configs[name] = config
            other = tiny.with_other_head(family, config)
            if other is not None:
                configs[f"{name}-{'untied' if _is_tied(family, config) else 'tied'}"] = other
        return configs


def check_family(
    family: str | HFFamily,
    *,
    configs: Mapping[str, Raw] | None = None,
    checkpoint: str | Path | None = None,
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Check a model family; the arguments are the attributes of `FamilyKit`: `assert check_family("my-model").passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    inputs = {"family": family, "configs": configs or {}, "checkpoint": checkpoint, "skip": skip or {}}
    return FamilyKit.of(**inputs).run()


@lru_cache(maxsize=64)
def _derived_configs(family: HFFamily) -> Mapping[str, Raw | CheckFailed]:
    """Name -> small configuration, or the reason why none can be made."""
    lines = TableLines(family, module_of(family))
    try:
        raw = tiny.tiny_config(lines)
    except CheckFailed as reason:
        return {"default": reason}
    except Exception as error:  # the family's functions and transformers may raise anything
        seen = f"raised {type(error).__name__}: {one_line(error)}"
        look_at = innermost_line(error, lines.module) or lines.config()
        return {"default": CheckFailed("small sizes that the tables can state", seen, look_at=look_at)}
    other = tiny.with_other_head(family, raw)
    if other is None:
        return {"default": raw}
    names = ("tied", "untied") if _is_tied(family, raw) else ("untied", "tied")
    return dict(zip(names, (raw, other), strict=True))


def _differ_in_head(family: HFFamily, one: Raw | CheckFailed, other: Raw | CheckFailed) -> bool:
    """Whether configurations are equal but for a tied head."""
    return isinstance(one, Mapping) and isinstance(other, Mapping) and tiny.with_other_head(family, one) == other


def _is_tied(family: HFFamily, raw: Raw) -> bool:
    return bool(family.config.read(raw)["tied_embeddings"]) if _states_tie(family) else False


def _states_tie(family: HFFamily) -> bool:
    return any("tied_embeddings" in row.fields for row in family.config.rows)
