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
    PluginError,
    ReallmError,
    UnknownNameError,
    did_you_mean,
)
from reallm.hookspecs import HOOK_API, hookimpl

if TYPE_CHECKING:
    from reallm.algorithms.sft.config import SFTConfig
    from reallm.config.args import ModelArgs
    from reallm.config.optimizer import OptimizerConfig
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
    from reallm.generation.engine import Completion
    from reallm.hf.family import HFFamily
    from reallm.model.config import Extra, MoEConfig, ReaLModelConfig, RopeConfig
    from reallm.options import REQUIRED, option
    from reallm.parallel.layout import Layout
    from reallm.parallel.mesh import Mesh
    from reallm.specs import Algorithm, CallbackSpec, DatasetSpec, LoggerSpec, ModelFunctionCall

_HOMES = {
    "Algorithm": "reallm.specs",
    "CallbackSpec": "reallm.specs",
    "Completion": "reallm.generation.engine",
    "Dataset": "reallm.data.datasets",
    "DatasetSpec": "reallm.specs",
    "DatasetUtility": "reallm.data.datasets",
    "Extra": "reallm.model.config",
    "HFFamily": "reallm.hf.family",
    "Layout": "reallm.parallel.layout",
    "LoggerSpec": "reallm.specs",
    "Mesh": "reallm.parallel.mesh",
    "MoEConfig": "reallm.model.config",
    "ModelArgs": "reallm.config.args",
    "ModelFunctionCall": "reallm.specs",
    "NamedArray": "reallm.data.namedarray",
    "OptimizerConfig": "reallm.config.optimizer",
    "REQUIRED": "reallm.options",
    "ReaLModel": "reallm.engine.real_model",
    "ReaLModelConfig": "reallm.model.config",
    "RopeConfig": "reallm.model.config",
    "SFTConfig": "reallm.algorithms.sft.config",
    "flatten": "reallm.data.namedarray",
    "from_dict": "reallm.data.namedarray",
    "from_flattened": "reallm.data.namedarray",
    "make_dataset": "reallm.data.datasets",
    "merge": "reallm.data.namedarray",
    "option": "reallm.options",
    "recursive_aggregate": "reallm.data.namedarray",
    "recursive_apply": "reallm.data.namedarray",
    "split": "reallm.data.namedarray",
}

__all__ = [
    "HOOK_API",
    "REQUIRED",
    "Algorithm",
    "CallbackSpec",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "DatasetUtility",
    "Extra",
    "HFFamily",
    "Layout",
    "LoggerSpec",
    "Mesh",
    "MoEConfig",
    "ModelArgs",
    "ModelFunctionCall",
    "NamedArray",
    "OptimizerConfig",
    "PluginError",
    "ReaLModel",
    "ReaLModelConfig",
    "ReallmError",
    "RopeConfig",
    "SFTConfig",
    "UnknownNameError",
    "flatten",
    "from_dict",
    "from_flattened",
    "hookimpl",
    "make_dataset",
    "merge",
    "option",
    "recursive_aggregate",
    "recursive_apply",
    "split",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value  # found once
        return value
    if name.startswith("_"):
        raise AttributeError(f"module 'reallm' has no attribute '{name}'")
    if name.endswith("Config"):
        from reallm.plugins import configs

        return configs.dataset_config_class(name)
    raise AttributeError(f"module 'reallm' has no attribute '{name}'{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
