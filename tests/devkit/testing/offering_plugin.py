"""A plugin for tests of the command line. Imports nothing heavy."""

from reallm import DatasetSpec, LoggerSpec, hookimpl

_HERE = "tests.devkit.testing"
_DATASETS = f"{_HERE}.datasets.broken_datasets"
_LOGGERS = f"{_HERE}.loggers.broken_loggers"
KEYS = ("input_ids", "loss_mask", "weight")


@hookimpl
def reallm_datasets() -> dict[str, DatasetSpec]:
    return {
        "words": DatasetSpec(f"{_DATASETS}:Good", f"{_HERE}.offering_plugin_config:WordsConfig", "a few words", KEYS),
        "both": DatasetSpec(f"{_DATASETS}:Good", f"{_DATASETS}:Config", "a few words"),
        "strange": DatasetSpec(f"{_DATASETS}:Good", f"{_DATASETS}:StrangeConfig", "cannot be configured"),
    }


@hookimpl
def reallm_loggers() -> dict[str, LoggerSpec]:
    return {
        "lines": LoggerSpec(f"{_LOGGERS}:Good", "a line for each call"),
        "both": LoggerSpec(f"{_LOGGERS}:Good", "a line for each call"),
        "forgetful": LoggerSpec(f"{_LOGGERS}:ForgetsTheStepItself", "forgets too much"),
        "first-line": LoggerSpec(f"{_LOGGERS}:Overwrites", "begins anew"),
        "loud": LoggerSpec(f"{_LOGGERS}:Loud", "prints"),
    }
