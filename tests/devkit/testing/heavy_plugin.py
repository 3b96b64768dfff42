"""A plugin that imports torch to say what it offers."""

import torch

from reallm import LoggerSpec, hookimpl
from tests.devkit.testing.loggers.broken_loggers import Good

DTYPE = torch.float32


@hookimpl
def reallm_loggers() -> dict[str, LoggerSpec]:
    return {"heavy": LoggerSpec(Good, f"{DTYPE} alone")}
