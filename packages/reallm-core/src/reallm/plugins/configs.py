"""Looks up configuration classes of datasets that are plugins, such as `reallm.PromptAnswerDatasetConfig`."""

from __future__ import annotations

from reallm.errors import did_you_mean
from reallm.plugins import registry
from reallm.plugins.known import known_distributions
from reallm.specs import DatasetSpec


def dataset_config_class(name: str) -> type:
    """The configuration class of an installed or known dataset, by the class's name.

    Raises:
        AttributeError: no installed dataset and no known distribution has such a class.
        UnknownNameError: the distribution is not installed; says what to install.
        PluginError: its plugin failed or is blocked.
    """
    datasets = {config: dataset for item in known_distributions() for config, dataset in item.config_classes.items()}
    if name not in datasets:  # all plugins are imported only if that is necessary
        datasets |= dataset_config_names()
    if name not in datasets:
        raise AttributeError(f"module 'reallm' has no attribute '{name}'{did_you_mean(name, datasets)}")
    config_class = registry.get("dataset", datasets[name]).config_class()
    assert isinstance(config_class, type)
    return config_class


def dataset_config_names() -> dict[str, str]:
    """Name of a configuration class -> its dataset, for all installed datasets. Imports the plugins, no classes."""
    return {_class_name(spec): name for name, spec in reversed(registry.offers("dataset").items())}


def _class_name(spec: DatasetSpec) -> str:
    config = spec.config
    return config.rpartition(":")[2] if isinstance(config, str) else config.__name__
