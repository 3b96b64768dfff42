"""`FamilySubject`, the family under test: one small configuration, as a transformers model and as ours.

Shapes: T packed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reallm.errors import ReallmError
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.conversion.state_dict import state_dict_from_hf
from reallm.hf.conversion.transformers_io import checkpoint_state
from reallm.hf.family import HFFamily
from reallm.model.config import LAYER_CLASSES, ReaLModelConfig
from reallm.model.transformer import Transformer
from reallm.references import resolve
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.lines import TableLines
from reallm_devkit.testing.source import location

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class FamilySubject:
    """A family and one small configuration.

    Models and their results are computed lazily and once, and shared by the checks.

    Attributes:
        family: the tables.
        case: the name of the configuration.
        config_json: its `config.json`, or the reason why there is none.
        lines: finds the source lines of the tables.
        checkpoint: the folder or hub id of a real checkpoint, if one is given.
        light_modules: modules that are imported to list the plugin.
        others: the other configurations if this is the first one, otherwise None.
        twin: the name of an earlier configuration from which this one differs in the tied head alone; empty: none.
    """

    family: HFFamily
    case: str
    config_json: Mapping[str, Any] | CheckFailed
    lines: TableLines
    checkpoint: str | Path | None = None
    light_modules: tuple[str, ...] = ()
    others: Sequence[Mapping[str, Any]] | None = ()
    twin: str = ""

    @property
    def is_first(self) -> bool:
        """Whether it is the first configuration, with which is checked what all of them share."""
        return self.others is not None

    @property
    def description(self) -> str:
        """The plugin's description of the family."""
        return self.family.description

    @property
    def table(self) -> str:
        """The location of the family."""
        return f"the HFFamily '{self.family.names[0]}', {self.lines.family_line()}"

    @property
    def raw(self) -> Mapping[str, Any]:
        """The `config.json`; raises the reason if there is none."""
        if isinstance(self.config_json, CheckFailed):
            raise self.config_json
        return self.config_json

    @property
    def architecture(self) -> str:
        """The model class of transformers."""
        return str(self.raw["architectures"][0])

    @cached_property
    def config(self) -> ReaLModelConfig:
        """The configuration as our table reads it."""
        return config_from_hf(self.family, self.raw)

    @cached_property
    def hf_model(self) -> PreTrainedModel:
        """The transformers model, float32 with random weights."""
        return reference.hf_model(self.raw)

    @cached_property
    def hf_state(self) -> dict[str, Tensor]:
        """The tensors of the transformers model, as in a checkpoint."""
        return {name: tensor.detach().clone() for name, tensor in checkpoint_state(self.hf_model).items()}

    @cached_property
    def model(self) -> Transformer:
        """Our model with the same weights, in evaluation mode."""
        return load_network(self.family, self.config, self.hf_state).eval()

    @cached_property
    def samples(self) -> list[Tensor]:
        """Sequences [T] of different lengths."""
        return reference.sequences(self.config.vocab_size)

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """The sequences as one pack: tokens [T] and cu_seqlens [S+1]."""
        return reference.pack(self.samples)

    @cached_property
    def expected(self) -> Tensor:
        """Logits [T, V] of transformers, which runs each sequence alone."""
        with torch.no_grad():
            return reference.logits_of(self.hf_model, self.samples)

    @cached_property
    def logits(self) -> Tensor:
        """Our logits [T, V] of the pack."""
        with torch.no_grad():
            return run_packed(self.model, *self.packed)

    def at(self, fields: Iterable[str] = (), entries: Iterable[str] = (), *, unstated: bool = False) -> str:
        """The locations of the rows of fields and the entries of parameters; `unstated` adds fields without one."""
        rows = {field: self.lines.field(field) for field in fields}
        found = [*filter(None, rows.values()), *filter(None, map(self.lines.entry, entries))]
        lacking = [field for field, row in rows.items() if not row and field not in LAYER_CLASSES]
        if unstated and lacking:
            found.append(f"stated nowhere: {', '.join(lacking)}")
        return "; ".join(dict.fromkeys(found)) or self.lines.config()

    def token_position(self, row: int) -> str:
        """`sequence 3 of 33 tokens, token 12`, for a row of the pack."""
        for number, sample in enumerate(self.samples):
            if row < len(sample):
                return f"sequence {number} of {len(sample)} tokens, token {row}"
            row -= len(sample)
        raise AssertionError(row)


def load_network(family: HFFamily, config: ReaLModelConfig, hf_state: Mapping[str, Tensor]) -> Transformer:
    """Our model with the tensors of a checkpoint.

    Raises:
        ReallmError: they are not the tensors that the tables name, or have other shapes.
    """
    state = state_dict_from_hf(family, hf_state, config)
    model = Transformer(config)
    parameters = dict(model.named_parameters())
    missing = [name for name in parameters if name not in state]
    if missing:
        raise ReallmError(f"no tensor of the checkpoint is '{missing[0]}'")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != state[name].shape:
                wanted, found = list(parameter.shape), list(state[name].shape)
                raise ReallmError(f"'{name}' has the shape {wanted}, but the checkpoint's tensor {found}")
            parameter.copy_(state[name])
    return model


def run_packed(model: Transformer, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Logits [T, V] or scores [T]."""
    out = model(tokens, cu_seqlens)
    assert isinstance(out, Tensor)
    return out


def custom_class_location(model: Transformer, path: str) -> str:
    """The location of the innermost class of the plugin around a module of the model; empty if there is none."""
    while path:
        cls = type(model.get_submodule(path))
        if not cls.__module__.startswith(("reallm.model.", "torch.")):
            return location(cls)
        path = path.rpartition(".")[0]
    return ""


def custom_layers_location(subject: FamilySubject) -> str:
    """The locations of the plugin's layer classes; empty if there are none."""
    return "; ".join(f"{kind}: {location(resolve(name))}" for name, kind in subject.config.custom_classes.items())
