"""reallm: LLM post-training with packed sequences, parameter reallocation and plugins.

Public names are imported when first used, so that `import reallm` costs nothing. Names that plugins offer, such as
`reallm.PromptAnswerDatasetConfig`, are imported from the plugin installed for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reallm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MachineError,
    NonFiniteError,
    PeerError,
    PluginError,
    ReallmError,
    RewardError,
    UnknownNameError,
    did_you_mean,
)
from reallm.hookspecs import HOOK_API, hookimpl

if TYPE_CHECKING:
    from reallm.algorithms.context import CallContext
    from reallm.algorithms.dpo.config import DPOConfig
    from reallm.algorithms.dpo.interface import DPOInterface
    from reallm.algorithms.rw.config import RWConfig
    from reallm.algorithms.rw.interface import RWInterface
    from reallm.algorithms.sft.config import SFTConfig
    from reallm.algorithms.sft.interface import SFTInterface
    from reallm.config.args import CallArgs, CriticArgs, ModelArgs, ReferenceArgs
    from reallm.config.load import Configuration
    from reallm.config.load import describe as describe_config
    from reallm.config.load import load as load_config
    from reallm.config.lora import LoRAArgs
    from reallm.config.optimizer import OptimizerConfig
    from reallm.config.parallel import ParallelArgs
    from reallm.config.plan import PlanArgs
    from reallm.config.training import TrainingConfig
    from reallm.data.batching import (
        cu_seqlens,
        gather,
        lengths,
        n_samples,
        partition,
        select,
        split_groups,
        split_samples,
    )
    from reallm.data.datasets import Dataset, DatasetUtility, make_dataset
    from reallm.data.namedarray import (
        NamedArray,
        flatten,
        from_dict,
        from_flattened,
        merge,
        recursive_aggregate,
        recursive_apply,
        split,
    )
    from reallm.engine.real_model import ReaLModel
    from reallm.experiments.run.runner import RunResult, run
    from reallm.generation.config import GenerationConfig
    from reallm.generation.engine import GenerationEngine
    from reallm.generation.mismatch import logprob_mismatch
    from reallm.generation.request import Completion, FinishedEvent, Request, TokenEvent
    from reallm.hf.family import HFFamily
    from reallm.model.config import Extra, MoEConfig, ReaLModelConfig, RopeConfig
    from reallm.model.lora_config import LoRAConfig
    from reallm.options import REQUIRED, option
    from reallm.parallel.layout import Layout
    from reallm.parallel.mesh import Mesh
    from reallm.specs import (
        Algorithm,
        CallbackSpec,
        DatasetSpec,
        ImplementationSpec,
        LoggerSpec,
        ModelFunctionCall,
        RewardSpec,
        WeightUpdate,
    )
    from reallm.training.engine import EngineState, TrainEngine
    from reallm.training.objective import LossOutput, Objective, Totals
    from reallm.training.sequence_scores import AnswerLogprobs, answer_logprobs, last_token_scores

_HOMES = {
    "Algorithm": "reallm.specs",
    "AnswerLogprobs": "reallm.training.sequence_scores",
    "CallbackSpec": "reallm.specs",
    "Completion": "reallm.generation.request",
    "Configuration": "reallm.config.load",
    "Dataset": "reallm.data.datasets",
    "DatasetSpec": "reallm.specs",
    "DatasetUtility": "reallm.data.datasets",
    "EngineState": "reallm.training.engine",
    "Extra": "reallm.model.config",
    "TokenEvent": "reallm.generation.request",
    "Request": "reallm.generation.request",
    "GenerationEngine": "reallm.generation.engine",
    "GenerationConfig": "reallm.generation.config",
    "FinishedEvent": "reallm.generation.request",
    "HFFamily": "reallm.hf.family",
    "ImplementationSpec": "reallm.specs",
    "LoRAArgs": "reallm.config.lora",
    "LoRAConfig": "reallm.model.lora_config",
    "Layout": "reallm.parallel.layout",
    "LoggerSpec": "reallm.specs",
    "LossOutput": "reallm.training.objective",
    "Mesh": "reallm.parallel.mesh",
    "MoEConfig": "reallm.model.config",
    "ModelArgs": "reallm.config.args",
    "ModelFunctionCall": "reallm.specs",
    "NamedArray": "reallm.data.namedarray",
    "Objective": "reallm.training.objective",
    "OptimizerConfig": "reallm.config.optimizer",
    "ParallelArgs": "reallm.config.parallel",
    "PlanArgs": "reallm.config.plan",
    "REQUIRED": "reallm.options",
    "ReaLModel": "reallm.engine.real_model",
    "ReaLModelConfig": "reallm.model.config",
    "RopeConfig": "reallm.model.config",
    "RunResult": "reallm.experiments.run.runner",
    "DPOConfig": "reallm.algorithms.dpo.config",
    "DPOInterface": "reallm.algorithms.dpo.interface",
    "RWConfig": "reallm.algorithms.rw.config",
    "RWInterface": "reallm.algorithms.rw.interface",
    "CriticArgs": "reallm.config.args",
    "ReferenceArgs": "reallm.config.args",
    "CallArgs": "reallm.config.args",
    "CallContext": "reallm.algorithms.context",
    "RewardSpec": "reallm.specs",
    "SFTConfig": "reallm.algorithms.sft.config",
    "SFTInterface": "reallm.algorithms.sft.interface",
    "Totals": "reallm.training.objective",
    "TrainEngine": "reallm.training.engine",
    "TrainingConfig": "reallm.config.training",
    "WeightUpdate": "reallm.specs",
    "answer_logprobs": "reallm.training.sequence_scores",
    "cu_seqlens": "reallm.data.batching",
    "describe_config": "reallm.config.load:describe",
    "flatten": "reallm.data.namedarray",
    "from_dict": "reallm.data.namedarray",
    "from_flattened": "reallm.data.namedarray",
    "gather": "reallm.data.batching",
    "last_token_scores": "reallm.training.sequence_scores",
    "lengths": "reallm.data.batching",
    "load_config": "reallm.config.load:load",
    "logprob_mismatch": "reallm.generation.mismatch",
    "make_dataset": "reallm.data.datasets",
    "merge": "reallm.data.namedarray",
    "n_samples": "reallm.data.batching",
    "option": "reallm.options",
    "partition": "reallm.data.batching",
    "recursive_aggregate": "reallm.data.namedarray",
    "recursive_apply": "reallm.data.namedarray",
    "run": "reallm.experiments.run.runner",
    "select": "reallm.data.batching",
    "split": "reallm.data.namedarray",
    "split_groups": "reallm.data.batching",
    "split_samples": "reallm.data.batching",
}
"""Public name -> the module that has it, with the name there if it is another one: `module:name`."""

__all__ = [
    "HOOK_API",
    "REQUIRED",
    "Algorithm",
    "AnswerLogprobs",
    "CallArgs",
    "CallContext",
    "CallbackSpec",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Configuration",
    "CriticArgs",
    "DPOConfig",
    "DPOInterface",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "DatasetUtility",
    "EngineState",
    "Extra",
    "FinishedEvent",
    "GenerationConfig",
    "GenerationEngine",
    "HFFamily",
    "ImplementationSpec",
    "Layout",
    "LoRAArgs",
    "LoRAConfig",
    "LoggerSpec",
    "LossOutput",
    "MachineError",
    "Mesh",
    "MoEConfig",
    "ModelArgs",
    "ModelFunctionCall",
    "NamedArray",
    "NonFiniteError",
    "Objective",
    "OptimizerConfig",
    "ParallelArgs",
    "PeerError",
    "PlanArgs",
    "PluginError",
    "RWConfig",
    "RWInterface",
    "ReaLModel",
    "ReaLModelConfig",
    "ReallmError",
    "ReferenceArgs",
    "Request",
    "RewardError",
    "RewardSpec",
    "RopeConfig",
    "RunResult",
    "SFTConfig",
    "SFTInterface",
    "TokenEvent",
    "Totals",
    "TrainEngine",
    "TrainingConfig",
    "UnknownNameError",
    "WeightUpdate",
    "answer_logprobs",
    "cu_seqlens",
    "describe_config",
    "flatten",
    "from_dict",
    "from_flattened",
    "gather",
    "hookimpl",
    "last_token_scores",
    "lengths",
    "load_config",
    "logprob_mismatch",
    "make_dataset",
    "merge",
    "n_samples",
    "option",
    "partition",
    "recursive_aggregate",
    "recursive_apply",
    "run",
    "select",
    "split",
    "split_groups",
    "split_samples",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, name_there = _HOMES[name].partition(":")
        value = getattr(importlib.import_module(module), name_there or name)
        globals()[name] = value  # found once
        return value
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("reallm-core")
    if name.startswith("_"):
        raise AttributeError(f"module 'reallm' has no attribute '{name}'")
    if name.endswith("Config"):
        from reallm.plugins import configs

        return configs.dataset_config_class(name)
    raise AttributeError(f"module 'reallm' has no attribute '{name}'{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    """The public names, the configurations of installed datasets among them; nothing heavy is imported for it."""
    from reallm.plugins import configs

    return sorted({*__all__, *configs.dataset_config_names()})
