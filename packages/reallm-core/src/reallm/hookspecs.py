"""The whole extension API. A plugin is a module with some of these functions, marked `@reallm.hookimpl`,
and entry points in the group `reallm` named `<kind>.<name>` for the things that it offers:

    [project.entry-points.reallm]
    "dataset.my-dataset" = "my_package.plugin"

Hooks take no arguments and return values. They are called once, at the first look-up, and must import
neither torch nor transformers: refer to classes lazily, as `"my_package.dataset:MyDataset"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from reallm.hf.family import HFFamily
    from reallm.specs import Algorithm, CallbackSpec, DatasetSpec, ImplementationSpec, LoggerSpec, RewardSpec

HOOK_API = (1, 5)
"""Version (major, minor) of the hook API. A plugin may state the one it was made for: `REALLM_HOOK_API = "1.5"`."""

hookspec = pluggy.HookspecMarker("reallm")
hookimpl = pluggy.HookimplMarker("reallm")
"""Marks a plugin's function as a hook. `@hookimpl(optionalhook=True)` is for one that an older reallm-core lacks."""


@hookspec
def reallm_datasets() -> Mapping[str, DatasetSpec]:  # type: ignore[empty-body]
    """Datasets by name: `{"my-data": DatasetSpec("my_package.data:MyDataset", "my_package.config:MyDataConfig")}`."""


@hookspec
def reallm_hf_families() -> Iterable[HFFamily]:  # type: ignore[empty-body]
    """HuggingFace model families: `[HFFamily(names=("llama",), architectures=("LlamaForCausalLM",), ...)]`."""


@hookspec
def reallm_algorithms() -> Mapping[str, Algorithm]:  # type: ignore[empty-body]
    """Algorithms by name, each a command too: `{"sft": Algorithm("reallm.algorithms.sft.config:SFTConfig", ...)}`."""


@hookspec
def reallm_loggers() -> Mapping[str, LoggerSpec]:  # type: ignore[empty-body]
    """Metric loggers by name: `{"jsonl": LoggerSpec("reallm.loggers.jsonl:JsonlLogger")}`."""


@hookspec
def reallm_callbacks() -> Mapping[str, CallbackSpec]:  # type: ignore[empty-body]
    """Callbacks of training runs by name: `{"notify": CallbackSpec("my_package.notify:Notify")}`."""


@hookspec
def reallm_rewards() -> Mapping[str, RewardSpec]:  # type: ignore[empty-body]
    """Reward functions by name: `{"exact_match": RewardSpec("my_package.rewards:exact_match")}`."""


@hookspec
def reallm_implementations() -> Mapping[str, ImplementationSpec]:  # type: ignore[empty-body]
    """Other networks for checkpoints, by name: `{"other": ImplementationSpec("my_package.family:family_of")}`."""
