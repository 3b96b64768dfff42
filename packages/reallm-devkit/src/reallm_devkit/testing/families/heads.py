"""Checks of the output head, tied or not, and of the scalar head of a critic."""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.errors import CheckpointError, ReallmError, one_line
from reallm.hf.conversion.config import config_from_hf, config_to_hf
from reallm.hf.conversion.state_dict import hf_names, state_dict_to_hf
from reallm.hf.conversion.transformers_io import checkpoint_state
from reallm.hf.tables.weights import as_source, names_in
from reallm.model.parameter_names import EMBEDDING_WEIGHT
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.closeness import LOGITS_TOLERANCE, max_difference, tolerance_scale
from reallm_devkit.testing.families.numerics import logits
from reallm_devkit.testing.families.saving import load_theirs, save_ours
from reallm_devkit.testing.families.subject import FamilySubject, load_network, run_packed
from reallm_devkit.testing.scratch import scratch_folder


@check(needs=[logits])
def tied(subject: FamilySubject) -> str:
    """a tied head is the embedding's own tensor and in no file twice; an untied one has a tensor of its own"""
    model, hf_state = subject.model, subject.hf_state
    (head,) = _head_names(subject)
    embedding = model.get_parameter(EMBEDDING_WEIGHT)
    table = subject.at(["tied_embeddings"], ["out", "tokens"])
    is_tied = bool(getattr(subject.hf_model.config, "tie_word_embeddings", False))
    if (model.head_weight is embedding) != is_tied:
        expected = f"a head {'tied to the embedding' if is_tied else 'of its own'}, as {subject.architecture} has it"
        seen = f"one {'of its own' if is_tied else 'tied to the embedding'}"
        raise CheckFailed(expected, seen, look_at=table)
    written = hf_names(subject.family, subject.config)
    if (head in written) == is_tied:
        raise CheckFailed(f"'{head}' in a checkpoint unless it is tied", f"{is_tied=}", look_at=table)
    if not is_tied:
        changed = load_network(subject.family, subject.config, {**hf_state, head: -hf_state[head]}).eval()
        with torch.no_grad():
            found = run_packed(changed, *subject.packed)
        if torch.equal(found, subject.logits):
            raise CheckFailed("logits that follow the head", "logits that do not", f"tensor '{head}'", table)
        return f"'{head}' is a tensor of its own"
    (name,) = state_dict_to_hf(subject.family, {EMBEDDING_WEIGHT: embedding}, subject.config)
    try:
        load_network(subject.family, subject.config, {**hf_state, head: hf_state[name].clone()})
    except ReallmError as error:
        expected = "a checkpoint that has the embedding again as its head is read"
        raise CheckFailed(expected, str(error), look_at=table) from error
    try:
        load_network(subject.family, subject.config, {**hf_state, head: -hf_state[name]})
    except CheckpointError:
        return f"'{head}' is '{name}', and is read where a file repeats it"
    raise CheckFailed(f"an error about a head '{head}' that differs from the embedding", "none", look_at=table)


@check(needs=[logits])
def critic(subject: FamilySubject) -> str:
    """scores of a scalar head are those of transformers, and it is saved and loaded"""
    family = subject.family
    if not family.critic_architectures:
        raise Skipped("critic_architectures is empty: transformers has no class with a scalar head, or none is named")
    architecture = family.critic_architectures[0]
    if reference.hf_class(architecture) is None:
        seen = f"transformers has no class '{architecture}'"
        raise CheckFailed("a class of transformers for each of critic_architectures", seen, look_at=subject.table)
    entry = subject.lines.entry("out", ["critic_head"])
    look_at = entry or f'weights.critic_head, which has no entry "out", {subject.lines.family_line()}'
    raw = {**subject.raw, "architectures": [architecture], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    theirs = reference.hf_model(raw)
    config = config_from_hf(family, raw)
    head = family.weights.critic_head.get("out")
    if head is None:
        raise CheckFailed("an entry 'out' in weights.critic_head", "none", f"{architecture}", look_at)
    try:
        ours = load_network(family, config, checkpoint_state(theirs)).eval()
        scorer = theirs.get_submodule(as_source(head).name)
    except (ReallmError, AttributeError) as error:
        raise CheckFailed(f"the tensors of {architecture}", one_line(error), look_at=look_at) from error
    with torch.no_grad():
        expected = torch.cat([_scores(theirs, scorer, sample) for sample in subject.samples])
        found = run_packed(ours, *subject.packed)
    if found.shape != expected.shape:
        raise CheckFailed(f"scores of shape {list(expected.shape)}", f"{list(found.shape)}", look_at=look_at)
    difference, row, _ = max_difference(found, expected)
    if not difference <= LOGITS_TOLERANCE * tolerance_scale(expected):
        seen = f"they differ by up to {difference:.2g}"
        raise CheckFailed(
            f"scores of {architecture} within {LOGITS_TOLERANCE:.0e}", seen, subject.token_position(row), look_at
        )
    with scratch_folder() as folder:
        save_ours(folder, family, ours, config_to_hf(family, config, subject.raw))
        again, mismatch = load_theirs(folder, architecture)
        if mismatch:
            raise CheckFailed(f"a folder that {architecture} loads", mismatch, look_at=look_at)
        for name, tensor in checkpoint_state(theirs).items():
            if not torch.equal(checkpoint_state(again)[name], tensor):
                raise CheckFailed("the same tensors after saving", "other ones", f"tensor '{name}'", look_at)
    return f"{architecture} within {difference:.1e}"


def _head_names(subject: FamilySubject) -> list[str]:
    """Names of the tensor of an untied language model head."""
    table = subject.family.weights.head
    return [f"{as_source(theirs).name}.weight" for key, theirs in table.items() if "out" in names_in(key)]


def _scores(model: torch.nn.Module, scorer: torch.nn.Module, sample: Tensor) -> Tensor:
    """Scores [T] of every token; the model's own forward pass returns only the last."""
    hidden = model.base_model(sample[None], use_cache=False)[0]  # type: ignore[operator]
    scores = scorer(hidden)[0, :, 0]
    assert isinstance(scores, Tensor)
    return scores
