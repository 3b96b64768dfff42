"""Checks of the weight table: names, shapes and round trips of tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from safetensors import safe_open
from torch import Tensor

from reallm.errors import CheckpointError, ConfigError, PluginError, ReallmError, quoted
from reallm.hf.conversion.mapping import WeightMapping, weight_mappings
from reallm.hf.conversion.state_dict import (
    hf_names,
    state_dict_from_hf,
    state_dict_to_hf,
)
from reallm.hf.file_names import WEIGHTS_NAME
from reallm.hf.tables.weights import as_source, names_in
from reallm.model.parameter_names import EMBEDDING_LAYER, all_layers, head_layer, layer_number, path_in_layer
from reallm.model.parameters import parameter_shapes
from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.families.configs import default_config
from reallm_devkit.testing.families.entries import belongs_to, check_entries, controlling_fields
from reallm_devkit.testing.families.reference import SEED, quiet
from reallm_devkit.testing.families.subject import FamilySubject, load_network
from reallm_devkit.testing.scratch import scratch_folder

N_SUBSETS = 20


@check(needs=[default_config])
def table(subject: FamilySubject) -> str:
    """every parameter of the network has one entry in the weight table, and every entry has an inverse"""
    try:
        found = weight_mappings(subject.family, subject.config)
    except PluginError as error:
        text = str(error)
        quoted = [part for part in text.split("'")[1::2] if subject.lines.entry(part)]
        look_at = subject.lines.entry(quoted[0]) if quoted else subject.lines.weights()
        raise CheckFailed(
            "an entry for each parameter, and a parameter for each entry", text, look_at=look_at
        ) from error
    n_tensors = sum(len(mapping.hf_names) for mapping in found)
    return f"{len(parameter_shapes(subject.config))} parameters in {n_tensors} tensors"


@check(needs=[table])
def names(subject: FamilySubject) -> str:
    """the table names exactly the tensors that transformers saves, each in one layer"""
    with scratch_folder() as folder, quiet():
        subject.hf_model.save_pretrained(folder)
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
            saved = set(file.keys())
    ours = hf_names(subject.family, subject.config)
    saved = {name for name in saved if not subject.family.weights.is_ignored(name)}
    if set(ours) != saved:
        expected, without = f"the {len(saved)} tensors that {subject.architecture} saves", _without_parameter(subject)
        unused = {name: path for name, path in without.items() if name in saved}
        if unused:
            name, path = next(iter(unused.items()))
            fields = controlling_fields(path)
            by = f", which depends on {' and '.join(fields)}" if fields else ""
            seen = f"{_compared(ours, saved)}: the entry '{path}' is there, but the network has no such parameter{by}"
            look_at = subject.at(fields, [path], unstated=True)
            raise CheckFailed(expected, seen, f"tensor '{name}'", look_at)
        raise CheckFailed(expected, _compared(ours, saved), look_at=_entry_near(subject, ours, saved))
    check_entries(subject)
    by_layer = _tensors_by_layer(subject)
    for name in ours:
        owners = [layer for layer, tensors in by_layer.items() if name in tensors]
        if len(owners) != 1:
            seen = f"in {len(owners)}: {', '.join(map(str, owners))}"
            raise CheckFailed("each tensor in one layer", seen, f"tensor '{name}'", subject.lines.weights())
    return f"{len(ours)} tensors, {len(by_layer)} layers"


@check(needs=[names])
def state_dict(subject: FamilySubject) -> str:
    """tensors convert to parameters and back bit for bit, in any subset that can be converted"""
    family, config, hf_state = subject.family, subject.config, subject.hf_state
    _check_shapes(subject)
    try:
        load_network(family, config, hf_state)
        state = state_dict_from_hf(family, hf_state, config)
    except ReallmError as error:
        raise CheckFailed(
            "parameters of the shapes that the network has", str(error), look_at=subject.lines.weights()
        ) from error
    _check_same(subject, state, list(weight_mappings(family, config)), "all parameters")
    generator = random.Random(SEED)
    everything = weight_mappings(family, config)
    for _ in range(N_SUBSETS):
        chosen = generator.sample(everything, generator.randrange(1, len(everything)))
        part = {name: state[name] for mapping in chosen for name in mapping.parameters}
        _check_same(subject, part, chosen, f"{len(part)} parameters chosen at random")
    for layer, tensors in _tensors_by_layer(subject).items():
        found = state_dict_from_hf(family, {name: hf_state[name] for name in tensors}, config)
        wanted = {name for name in state if layer_number(name) == layer}
        if set(found) != wanted:
            raise CheckFailed(
                f"the parameters of layer {layer}", _compared(found, wanted), look_at=subject.lines.weights()
            )
    n_split = _check_split(subject, state)
    shared = f", {n_split} that cannot be split" if n_split else ""
    return f"{len(state)} parameters, {N_SUBSETS} subsets, {len(_tensors_by_layer(subject))} layers{shared}"


def _without_parameter(subject: FamilySubject) -> dict[str, str]:
    """Tensors of the first block, embedding and head whose entry has no parameter in the network -> the entry."""
    family, config = subject.family, subject.config
    found: dict[str, str] = {}
    for layer in (EMBEDDING_LAYER, 1, head_layer(config)):
        names = [path_in_layer(name) for name in parameter_shapes(config) if layer_number(name) == layer]
        for key, theirs in family.weights.of_config(config).entries(layer, config.n_layers).items():
            name = as_source(theirs).name.replace("{}", "0")
            for path in names_in(key):
                if not any(belongs_to(one, path) for one in names):
                    found |= {f"{name}{kind}": path for kind in ("", ".weight", ".bias")}
    return found


def _tensors_by_layer(subject: FamilySubject) -> dict[int, list[str]]:
    family, config = subject.family, subject.config
    return {layer: hf_names(family, config, layer) for layer in all_layers(config)}


def _check_shapes(subject: FamilySubject) -> None:
    """Check the shapes that the table expects of tensors against those of transformers."""
    for mapping in weight_mappings(subject.family, subject.config):
        for name in mapping.hf_names:
            shape = tuple(subject.hf_state[name].shape)
            if shape != tuple(mapping.hf_shape):
                raise CheckFailed(
                    f"a tensor of shape {list(mapping.hf_shape)}, as the network and the table have it",
                    f"{list(shape)} in {subject.architecture}",
                    f"tensor '{name}'",
                    subject.at((), [path_in_layer(mapping.parameters[0])]),
                )


def _check_same(subject: FamilySubject, state: Mapping[str, Tensor], chosen: list[WeightMapping], where: str) -> None:
    """Convert parameters to tensors, which have to be those of transformers, and back."""
    tensors = dict(state_dict_to_hf(subject.family, state, subject.config))
    wanted = {name for mapping in chosen for name in mapping.hf_names}
    if set(tensors) != wanted:
        raise CheckFailed("the tensors that hold them", _compared(tensors, wanted), where, subject.lines.weights())
    again = state_dict_from_hf(subject.family, tensors, subject.config)
    for mapping in chosen:
        same = all(torch.equal(tensors[name], subject.hf_state[name]) for name in mapping.hf_names)
        back = all(name in again and torch.equal(again[name], state[name]) for name in mapping.parameters)
        if not (same and back):
            look_at = subject.at((), [path_in_layer(mapping.parameters[0])])
            seen = "other numbers in the tensor" if not same else "other numbers in the parameters, there and back"
            raise CheckFailed(
                "the same numbers, bit for bit", seen, f"{where}, tensor '{mapping.hf_names[0]}'", look_at
            )


def _check_split(subject: FamilySubject, state: Mapping[str, Tensor]) -> int:
    """Check that some but not all parameters of a tensor are refused by name; returns the number of such tensors."""
    family, config = subject.family, subject.config
    shared = [
        mapping
        for mapping in weight_mappings(family, config)
        if len(mapping.parameters) > 1 or len(mapping.hf_names) > 1
    ]
    for mapping in shared:
        one, tensor = mapping.parameters[0], mapping.hf_names[0]
        if len(mapping.parameters) > 1:
            to_hf = partial(state_dict_to_hf, family, {one: state[one]}, config)
            _check_refused(subject, to_hf, mapping.parameters[1])
        if len(mapping.hf_names) > 1:
            from_hf = partial(state_dict_from_hf, family, {tensor: subject.hf_state[tensor]}, config)
            _check_refused(subject, from_hf, mapping.hf_names[1])
    return len(shared)


def _check_refused(subject: FamilySubject, convert: Callable[[], object], missing: str) -> None:
    try:
        convert()
    except (ConfigError, CheckpointError) as error:
        if missing in str(error):
            return
    raise CheckFailed(f"an error that names '{missing}', which is missing", "none", look_at=subject.lines.weights())


def _compared(found: Iterable[str], wanted: set[str]) -> str:
    have = set(found)
    missing, extra = sorted(wanted - have), sorted(have - wanted)
    texts = [f"{quoted(missing, 3)} missing"] if missing else []
    return " and ".join([*texts, *([f"unexpected {quoted(extra, 3)}"] if extra else [])])


def _entry_near(subject: FamilySubject, ours: list[str], saved: set[str]) -> str:
    """The entry of the first tensor that transformers does not have, or the one nearest to a missing one."""
    for mapping in weight_mappings(subject.family, subject.config):
        if not set(mapping.hf_names) <= saved:
            return subject.at((), [path_in_layer(mapping.parameters[0])])
    missing = sorted(saved - set(ours))[0]
    module, _, kind = missing.rpartition(".")
    for mapping in weight_mappings(subject.family, subject.config):
        if mapping.hf_names[0].rpartition(".")[0] == module:  # the bias of a weight that is there
            name = path_in_layer(mapping.parameters[0])
            fields = [f"{name.split('.')[-2]}_bias"] if kind == "bias" else []
            return subject.at(fields, [name], unstated=True)
    return subject.lines.weights()
