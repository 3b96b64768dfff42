"""The kit for model families: inputs, checks, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reallm.errors import ConfigError, ReallmError
from reallm.hf.family import HFFamily
from reallm.plugins import registry
from reallm_devkit.testing.checks import Check, CheckFailed
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.families import (
    configs,
    decoding,
    fields,
    heads,
    numbers,
    saving,
    shards,
    tensors,
    tiny,
    training,
)
from reallm_devkit.testing.families.lines import TableLines, module_of
from reallm_devkit.testing.families.subject import FamilySubject, own_classes
from reallm_devkit.testing.kit import Kit
from reallm_devkit.testing.report import Report

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

FAMILY_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    configs.default_config,
    configs.config_round_trip,
    configs.defaults,
    tensors.table,
    tensors.names,
    tensors.state_dict,
    numbers.packing,
    numbers.logits,
    numbers.gradients,
    numbers.bf16,
    fields.config_fields,
    heads.tied,
    heads.critic,
    decoding.decode,
    saving.save,
    shards.shards,
    training.initialisation,
    training.checkpointing,
    training.experts,
    saving.checkpoint,
)
"""All promises of a model family."""

Raw = Mapping[str, Any]


class FamilyKit(Kit[FamilySubject]):
    """The checks of a model family. As a test suite:

    class TestMyModel(FamilyKit):
        family = "my-model"

    Small configurations follow from what transformers assumes for the model type, with tied and untied embeddings
    where the family has both.
    """

    kind = "family"
    checks: ClassVar[tuple[Check[Any], ...]] = FAMILY_CHECKS
    has_cases: ClassVar[bool] = True

    family: str | HFFamily = ""
    """The name it is installed under, or the `HFFamily` itself, of one that is not installed yet."""

    configs: Mapping[str, Raw] = {}
    """Small configurations of your own, as `config.json` would have them, by a name each, in place of those that follow
    from transformers': `{"windows": {"vocab_size": 97, ...}}`."""

    checkpoint: str | Path | None = None
    """A real checkpoint of the family, a folder or hub id, which is loaded, compared and saved again."""

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """The kit for `reallm plugins check my-model --checkpoint path/to/model`."""
        if arguments:
            raise ConfigError(f"a family takes no {arguments[0].partition('=')[0]}=...; it may have --checkpoint PATH")
        return cls.of(family=offer.name, checkpoint=checkpoint)

    def title(self) -> str:
        """The first name of the family."""
        return self.family if isinstance(self.family, str) else self.family.names[0]

    def provided_by(self) -> str:
        """Distribution and version of an installed family."""
        return self._offer().plugin.release if isinstance(self.family, str) else ""

    def module(self, subject: FamilySubject) -> str:
        """The module that makes the family."""
        return subject.lines.module

    def cases(self) -> Sequence[str]:
        """Names of the configurations."""
        return list(self._contents())

    def subject(self, case: str) -> FamilySubject:
        """The family with one of its configurations."""
        content = self._contents()[case]
        family = self._family()
        modules = (self._offer().plugin.module,) if isinstance(self.family, str) else ()
        lines = TableLines(family, module_of(family))
        first, *rest = self._contents()
        others = [raw for name in rest if isinstance(raw := self._contents()[name], Mapping)] if case == first else None
        return FamilySubject(family, case, content, lines, self.checkpoint, modules, others)

    def source_location(self, subject: FamilySubject) -> str:
        """The family's own layers: where one of them is wrong, torch may only find out later."""
        try:
            return own_classes(subject)
        except (CheckFailed, ReallmError):  # there is no configuration
            return ""

    def _family(self) -> HFFamily:
        if not self.family:
            raise ConfigError(f"{type(self).__name__}: say which family is to be checked: family = 'my-model'")
        family = self._offer().value if isinstance(self.family, str) else self.family
        assert isinstance(family, HFFamily)
        return family

    def _offer(self) -> Offer:
        assert isinstance(self.family, str)
        return registry.registry().offer("family", self.family)

    def _contents(self) -> Mapping[str, Raw | CheckFailed]:
        family = self._family()
        if not self.configs:
            return _derived(family)
        contents: dict[str, Raw | CheckFailed] = {}
        for name, raw in self.configs.items():
            whole = tiny.as_given(family, raw)
            contents[name] = whole
            other = tiny.other_head(family, whole)
            if other is not None:
                contents[f"{name}-{'untied' if _is_tied(family, whole) else 'tied'}"] = other
        return contents


def check_family(
    family: str | HFFamily,
    *,
    configs: Mapping[str, Raw] | None = None,
    checkpoint: str | Path | None = None,
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Check a model family, given as the attributes of `FamilyKit` are: `assert check_family("my-model").passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    inputs = {"family": family, "configs": configs or {}, "checkpoint": checkpoint, "skip": skip or {}}
    return FamilyKit.of(**inputs).run()


@lru_cache(maxsize=64)
def _derived(family: HFFamily) -> Mapping[str, Raw | CheckFailed]:
    """Small configurations by name; why there is none, under the name of the one there would have been."""
    try:
        raw = tiny.tiny_config(TableLines(family, module_of(family)))
    except CheckFailed as reason:
        return {"default": reason}
    other = tiny.other_head(family, raw)
    if other is None:
        return {"default": raw}
    names = ("tied", "untied") if _is_tied(family, raw) else ("untied", "tied")
    return dict(zip(names, (raw, other), strict=True))


def _is_tied(family: HFFamily, raw: Raw) -> bool:
    return bool(family.config.read(raw)["tied_embeddings"]) if _states_tie(family) else False


def _states_tie(family: HFFamily) -> bool:
    return any("tied_embeddings" in row.fields for row in family.config.rows)
