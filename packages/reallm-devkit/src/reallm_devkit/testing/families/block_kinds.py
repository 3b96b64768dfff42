"""The kinds of blocks of a transformers model, found by comparing their modules, whatever the configuration says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from reallm.hf.tables.ignored_keys import is_irrelevant
from reallm_devkit.testing.families import reference

Raw = Mapping[str, Any]
Facts = dict[tuple[str, str], Any]
"""(path of a module within its block, name of an attribute) -> the attribute's value."""

NUMBER_OF_BLOCK = re.compile(r"idx|index|layer_id|layer_num")
"""Names of attributes that only count the blocks."""


def block_kinds(raw: Raw) -> tuple[int, ...]:
    """A number for each block of the transformers model, the same for blocks of the same kind; empty if there are none.

    Blocks are of one kind if their modules have the same classes, shapes and settings, and lists of the configuration
    with an entry per block the same entries.

    Raises:
        Exception: whatever transformers raises for a configuration that it refuses.
    """
    return _block_kinds(json.dumps(raw, sort_keys=True, default=str))


@lru_cache(maxsize=256)
def _block_kinds(raw_json: str) -> tuple[int, ...]:
    raw = json.loads(raw_json)
    config = reference.hf_config(raw)
    model = reference.meta_model(raw)
    n_layers = config.num_hidden_layers
    blocks = next((one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == n_layers), ())
    lists = per_block_lists(raw)
    kinds: dict[str, int] = {}
    found = []
    for number, block in enumerate(blocks):
        facts = repr([sorted(_facts(block).items(), key=repr), [values[number] for values in lists.values()]])
        found.append(kinds.setdefault(facts, len(kinds)))
    return tuple(found)


def per_block_lists(raw: Raw) -> dict[str, list[Any]]:
    """Keys of transformers' configuration whose value is a list with an entry per block, and these lists.

    Raises:
        Exception: whatever transformers raises for a configuration that it refuses.
    """
    config = reference.hf_config(raw)
    n_layers = config.num_hidden_layers
    return {
        key: value
        for key, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == n_layers and not is_irrelevant(key)
        if value != list(range(n_layers))  # the numbers of all blocks
    }


def _facts(block: nn.Module) -> Facts:
    """The classes, shapes and plain attributes of a block's modules, without those that number the blocks."""
    found: Facts = {}
    for path, module in block.named_modules():
        found[path, "class"] = type(module).__qualname__
        for name, parameter in module.named_parameters(recurse=False):
            found[path, name] = tuple(parameter.shape)
        for name, value in vars(module).items():
            is_plain = value is None or isinstance(value, bool | int | float | str)
            if is_plain and not name.startswith("_") and not NUMBER_OF_BLOCK.search(name):
                found[path, name] = value
    return found
