"""Checks of checkpoint folders: transformers loads what we save; and of a real checkpoint, if one is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reallm.checkpoint.load import read_checkpoint
from reallm.checkpoint.names import with_family_names
from reallm.checkpoint.reader import open_checkpoint
from reallm.checkpoint.save import Export, write_checkpoint
from reallm.errors import ReallmError
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens as generate_tokens
from reallm.hf.checkpoint_folder import read_hf_config, resolve_path
from reallm.hf.conversion.config import config_from_hf, config_to_hf
from reallm.hf.conversion.families import check_family
from reallm.hf.conversion.state_dict import state_dict_to_hf
from reallm.hf.family import HFFamily
from reallm.hf.file_names import CONFIG_NAME
from reallm.model.parameter_names import path_in_layer
from reallm.model.parameters import meta_model
from reallm.model.transformer import Transformer
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families.closeness import LOGITS_TOLERANCE, is_close, max_difference, tolerance_scale
from reallm_devkit.testing.families.configs import config_round_trip
from reallm_devkit.testing.families.decoding import decode
from reallm_devkit.testing.families.numerics import logits
from reallm_devkit.testing.families.reference import hf_class, logits_of, pack, quiet, sequences
from reallm_devkit.testing.families.subject import FamilySubject, run_packed
from reallm_devkit.testing.scratch import scratch_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

N_NEW = 12
SHARD_BYTES = 20_000
"""So small that even tiny models are saved in several files."""


@check(needs=[config_round_trip, decode, logits])
def save(subject: FamilySubject) -> str:
    """transformers loads what we save: the same logits bit for bit, and the same greedy tokens"""
    family, config = subject.family, subject.config
    for base, how in ((subject.raw, "with the config.json it came with"), (None, "with a new config.json")):
        with scratch_folder() as folder:
            raw = config_to_hf(family, config, base, "float32")
            save_ours(folder, family, subject.model, raw)
            again, mismatch = load_theirs(folder, subject.architecture)
            if mismatch:
                expected = f"a folder that {subject.architecture} loads"
                raise CheckFailed(expected, mismatch, f"saved {how}", subject.lines.weights())
            state = read_checkpoint(folder, family, config_from_hf(family, read_hf_config(folder)))
        for name, parameter in subject.model.named_parameters():
            if not torch.equal(state[name], parameter):
                look_at = subject.at((), [path_in_layer(name)])
                raise CheckFailed("the same parameters after saving and loading", "others", f"'{name}'", look_at)
        with torch.no_grad():
            found = logits_of(again, subject.samples)
        # a new file may spell an activation in another way, which transformers computes in other steps
        same = torch.equal(found, subject.expected) if base is not None else is_close(found, subject.expected)
        if not same:
            difference, row, _ = max_difference(found, subject.expected)
            raise CheckFailed(
                "the same logits of transformers, bit for bit", f"they differ by up to {difference:.2g}",
                f"saved {how}; {subject.token_position(row)}", subject.lines.config(),
            )  # fmt: skip
    _check_greedy(subject, again)
    return f"loaded by {subject.architecture}; {N_NEW} greedy tokens are the same"


@check()
def checkpoint(subject: FamilySubject) -> str:
    """a real checkpoint is loaded, computes what transformers computes, and is saved again bit for bit"""
    if subject.checkpoint is None:
        raise Skipped("give a real checkpoint: --checkpoint PATH, or checkpoint = ... in a test suite")
    if not subject.is_first:
        raise Skipped("it is checked with the first configuration, and is the same with all")
    family = subject.family
    folder = resolve_path(subject.checkpoint)
    raw = read_hf_config(folder)
    if raw.get("model_type") not in (None, family.model_type):
        check_family(family, raw, folder / CONFIG_NAME)
    config = config_from_hf(family, raw, source=folder / CONFIG_NAME)
    state = read_checkpoint(folder, family, config)
    ours = meta_model(config)
    ours.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    ours.eval()
    architecture = raw["architectures"][0] if raw.get("architectures") else family.architectures[0]
    theirs, mismatch = load_theirs(folder, architecture)
    samples = sequences(config.vocab_size, (5, 12, 24))
    with torch.no_grad():
        expected, found = logits_of(theirs, samples), run_packed(ours, *pack(samples))
    difference, row, _ = max_difference(found, expected)
    tolerance = 10 * LOGITS_TOLERANCE * tolerance_scale(expected)  # sums of thousands of terms
    if not difference <= tolerance:
        expectation = f"logits of {architecture} within {tolerance:.0e} in float32"
        raise CheckFailed(expectation, f"they differ by up to {difference:.2g}", f"token {row}", subject.lines.config())
    for sample in samples:
        prompt = sample.tolist()
        _check_same_tokens(prompt, _greedy(ours, [prompt])[0], _their_greedy(theirs, sample), subject)
    del theirs
    original = with_family_names(open_checkpoint(folder), family)
    n_tensors = 0
    for name, tensor in state_dict_to_hf(family, state, config).items():
        if name not in original or not torch.equal(original[name], tensor):
            seen = "another one" if name in original else "one that the checkpoint does not have"
            raise CheckFailed("the tensors of the checkpoint", seen, f"tensor '{name}'", subject.lines.weights())
        n_tensors += 1
    again = config_to_hf(family, config, raw)
    if {key: value for key, value in again.items() if raw.get(key) != value}.keys() - {"architectures"}:
        raise CheckFailed("the config.json of the checkpoint", "another one", look_at=subject.lines.config())
    note = f"; transformers says {mismatch}" if mismatch else ""
    return f"{folder.name}: {n_tensors} tensors, logits within {difference:.1e}{note}"


def save_ours(folder: Path, family: HFFamily, model: Transformer, raw: Mapping[str, Any]) -> None:
    """Save a model of ours as a checkpoint in several files."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    export = Export(raw, state_dict_to_hf(family, tensors, model.config), max_shard_size=SHARD_BYTES)
    write_checkpoint(folder, export)


def load_theirs(folder: Path, architecture: str) -> tuple[PreTrainedModel, str]:
    """Load a checkpoint by transformers in float32; returns the model and what transformers reports as mismatched."""
    cls = hf_class(architecture)
    if cls is None:
        raise ReallmError(f"transformers has no class '{architecture}'")
    with quiet():
        options: dict[str, Any] = {"output_loading_info": True, "attn_implementation": "eager", "dtype": torch.float32}
        loaded: Any = cls.from_pretrained(folder, **options)
    model: PreTrainedModel = loaded[0]
    info: Mapping[str, Any] = loaded[1]
    wrong = [f"{what.replace('_', ' ')}: {sorted(map(str, names))[0]}" for what, names in info.items() if names]
    for parameter in model.parameters():  # another memory layout may change the last bit of sums
        parameter.data = parameter.data.clone()
    return model.eval(), "; ".join(wrong)


def _check_greedy(subject: FamilySubject, theirs: PreTrainedModel) -> None:
    prompts = [sample for sample in subject.samples if len(sample) > 1]
    ours = _greedy(subject.model, [prompt.tolist() for prompt in prompts])
    for prompt, continued in zip(prompts, ours, strict=True):
        _check_same_tokens(prompt.tolist(), continued, _their_greedy(theirs, prompt), subject)


def _check_same_tokens(prompt: list[int], ours: list[int], theirs: list[int], subject: FamilySubject) -> None:
    if ours != theirs:
        index = next(i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        raise CheckFailed(
            f"the greedy tokens of transformers, {theirs}", f"{ours}",
            f"a prompt of {len(prompt)} tokens, new token {index}", subject.lines.config(),
        )  # fmt: skip


def _greedy(model: Transformer, prompts: list[list[int]]) -> list[list[int]]:
    found = generate_tokens(model, prompts, GenerationConfig(max_new_tokens=N_NEW, temperature=0.0))
    return [completion.token_ids for completion in found]


def _their_greedy(model: PreTrainedModel, prompt: Tensor) -> list[int]:
    options: dict[str, Any] = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "do_sample": False}
    options["use_cache"] = False  # its cache keeps keys rotated for the shorter sequence
    with quiet(), torch.no_grad():
        out = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), pad_token_id=0, **options)  # type: ignore[operator]
    new: list[int] = out[0, len(prompt) :].tolist()
    return new
