"""A family under test: one small configuration of it, in transformers and in our network.

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
from reallm.model.config import ReaLModelConfig, is_custom_class
from reallm.model.transformer import Transformer
from reallm.references import resolve
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.lines import TableLines
from reallm_devkit.testing.source import location

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER_KINDS = ("norm", "attention", "mlp", "block")
"""Fields that name kinds of layers, or classes of the family's own."""


@dataclass(frozen=True, eq=False)
class FamilySubject:
    """A family and one small configuration.

    Everything is made when it is first asked for, and once: the checks share models and their results.

    Attributes:
        family: the tables.
        case: name of the configuration.
        content: of its `config.json`, or why there is none.
        lines: where the tables stand in the plugin's source.
        checkpoint: a real one, a folder or hub id; None if none is given.
        light_modules: imported to look at the plugin.
        others: the configurations after this one, of the first of them all; None of any other.
    """

    family: HFFamily
    case: str
    content: Mapping[str, Any] | CheckFailed
    lines: TableLines
    checkpoint: str | Path | None = None
    light_modules: tuple[str, ...] = ()
    others: Sequence[Mapping[str, Any]] | None = ()

    @property
    def is_first(self) -> bool:
        """Whether it is the first of several configurations: what is the same in all is checked with that."""
        return self.others is not None

    @property
    def description(self) -> str:
        """What the plugin says of the family."""
        return self.family.description

    @property
    def table(self) -> str:
        """Where the family is stated."""
        return f"the HFFamily '{self.family.names[0]}', {self.lines.family_line()}"

    @property
    def raw(self) -> Mapping[str, Any]:
        """The `config.json`."""
        if isinstance(self.content, CheckFailed):
            raise self.content
        return self.content

    @property
    def architecture(self) -> str:
        """The class of transformers that it is compared with."""
        return str(self.raw["architectures"][0])

    @cached_property
    def config(self) -> ReaLModelConfig:
        """What the table makes of it."""
        return config_from_hf(self.family, self.raw)

    @cached_property
    def theirs(self) -> PreTrainedModel:
        """The model of transformers, float32 with random weights."""
        return reference.hf_model(self.raw)

    @cached_property
    def hf_state(self) -> dict[str, Tensor]:
        """Its tensors as its checkpoint has them."""
        return {name: tensor.detach().clone() for name, tensor in checkpoint_state(self.theirs).items()}

    @cached_property
    def ours(self) -> Transformer:
        """Our network with the same weights, in evaluation mode."""
        return network(self.family, self.config, self.hf_state).eval()

    @cached_property
    def samples(self) -> list[Tensor]:
        """Sequences [T] of unequal lengths."""
        return reference.sequences(self.config.vocab_size)

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """The same as one pack: tokens [T] and bounds."""
        return reference.packed(self.samples)

    @cached_property
    def expected(self) -> Tensor:
        """Logits [T, V] of transformers, for each sequence alone."""
        with torch.no_grad():
            return reference.logits_of(self.theirs, self.samples)

    @cached_property
    def logits(self) -> Tensor:
        """Our logits [T, V] of the pack."""
        with torch.no_grad():
            return run_packed(self.ours, *self.packed)

    def at(self, fields: Iterable[str] = (), entries: Iterable[str] = (), *, unstated: bool = False) -> str:
        """The rows of fields and the entries of parameters that there are; `unstated` tells also what is missing."""
        rows = {field: self.lines.field(field) for field in fields}
        found = [*filter(None, rows.values()), *filter(None, map(self.lines.entry, entries))]
        lacking = [field for field, row in rows.items() if not row and field not in LAYER_KINDS]
        if unstated and lacking:
            found.append(f"stated nowhere: {', '.join(lacking)}")
        return "; ".join(dict.fromkeys(found)) or self.lines.config()

    def place(self, row: int) -> str:
        """`sequence 3 of 33 tokens, token 12`, of a row of the pack."""
        for number, sample in enumerate(self.samples):
            if row < len(sample):
                return f"sequence {number} of {len(sample)} tokens, token {row}"
            row -= len(sample)
        raise AssertionError(row)


def network(family: HFFamily, config: ReaLModelConfig, hf_state: Mapping[str, Tensor]) -> Transformer:
    """Our network with the tensors of a checkpoint.

    Raises:
        ReallmError: they are not those that the tables say.
    """
    state = state_dict_from_hf(family, hf_state, config)
    model = empty_network(config)
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


def empty_network(config: ReaLModelConfig) -> Transformer:
    """Our network; its parameters have yet to get values."""
    return Transformer(config)


def run_packed(model: Transformer, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Logits [T, V] or scores [T]."""
    out = model(tokens, cu_seqlens)
    assert isinstance(out, Tensor)
    return out


def own_class(model: Transformer, path: str) -> str:
    """Where the innermost class of the family's own is written that a module is, or is a part of; empty if none is."""
    while path:
        cls = type(model.get_submodule(path))
        if not cls.__module__.startswith(("reallm.model.", "torch.")):
            return location(cls)
        path = path.rpartition(".")[0]
    return ""


def own_classes(subject: FamilySubject) -> str:
    """Where the family's own layers are written; empty if it has none."""
    named = {kind: getattr(subject.config, kind) for kind in LAYER_KINDS}
    return "; ".join(f"{kind}: {location(resolve(name))}" for kind, name in named.items() if is_custom_class(name))
