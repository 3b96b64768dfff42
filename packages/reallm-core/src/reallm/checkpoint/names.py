"""Names of a checkpoint's tensors as its family has them, without what wrappers of the saved module have added."""

from __future__ import annotations

from reallm.checkpoint.reader import Checkpoint
from reallm.errors import CheckpointError
from reallm.hf.family import HFFamily
from reallm.hf.tables.weights import as_source
from reallm.notices import notify_once

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Part of a name, at any place in it -> what adds it."""

OUTER_WRAPPERS = {
    "module.": "DistributedDataParallel",
    "_forward_module.": "DeepSpeed",
    "base_model.model.": "PEFT",
}
"""Prefix of all names -> what adds it."""


def with_family_names(checkpoint: Checkpoint, family: HFFamily) -> Checkpoint:
    """The checkpoint with its tensors under the names that the family's table has.

    Parts that wrappers such as DistributedDataParallel have added to the names are left out, and the prefix that the
    file of a class without output head lacks (`LlamaModel`: `layers.0...`) is added; a notice says so.

    Raises:
        CheckpointError: the tensors are those of a LoRA adapter.
    """
    lora = next((name for name in checkpoint if ".lora_" in name), None)
    if lora is not None:
        raise CheckpointError(
            f"{checkpoint.infos[lora].file}: '{lora}' belongs to an adapter; merge it into its base model with peft "
            "(merge_and_unload), or save it apart with save_pretrained"
        )
    names, left_out = _without_wrappers(list(checkpoint))
    prefix = base_prefix(family)
    is_headless = bool(prefix) and not any(name.startswith(prefix) for name in names)
    if is_headless:
        names = _with_prefix(names, prefix, family)
    if left_out:
        origin = " and ".join(dict.fromkeys({**WRAPPERS, **OUTER_WRAPPERS}[each] for each in left_out))
        parts = ", ".join(f"'{each.rstrip('.')}.'" for each in left_out)
        notify_once(f"{checkpoint.folder}: {parts}, added by {origin}, is stripped from the names of tensors")
    if is_headless and prefix != family.weights.optional_prefix:
        notify_once(f"{checkpoint.folder}: '{prefix}' is added to the names of tensors, which lack it")
    present = dict(zip(names, checkpoint, strict=True))
    return checkpoint if list(present) == list(checkpoint) else checkpoint.renamed(present)


def base_prefix(family: HFFamily) -> str:
    """The prefix of all tensors but those of the head, such as `model.`; empty if the family has none."""
    if family.weights.optional_prefix:
        return family.weights.optional_prefix
    entries = (*family.weights.embedding.values(), *family.weights.block.values())
    firsts = {as_source(entry).name.partition(".")[0] for entry in entries if not callable(entry)}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""


def _without_wrappers(names: list[str]) -> tuple[list[str], list[str]]:
    """The names without the wrappers' parts, and the parts; unchanged if two names would become one."""
    left_out: dict[str, None] = {}
    found = names
    while True:
        inner = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in found]
        left_out |= dict.fromkeys(part for name in found for part in name.split(".") if part in WRAPPERS)
        outer = next((each for each in OUTER_WRAPPERS if all(name.startswith(each) for name in inner)), None)
        if outer is None:
            break
        left_out[outer] = None
        found = [name.removeprefix(outer) for name in inner]
    return (inner, list(left_out)) if len(set(inner)) == len(inner) else (names, [])


def _with_prefix(names: list[str], prefix: str, family: HFFamily) -> list[str]:
    # the head's modules are not under the prefix: `transformer.h.0...`, but `lm_head`
    entries = (*family.weights.head.values(), *family.weights.critic_head.values())
    outside = tuple(name for entry in entries if not (name := as_source(entry).name).startswith(prefix))
    return [name if name.startswith(outside) else prefix + name for name in names]
