"""Looks up configuration classes of datasets that are plugins, such as `reallm.PromptAnswerDatasetConfig`."""

from __future__ import annotations

from reallm.errors import did_you_mean
from reallm.plugins import registry
from reallm.plugins.known import known_distributions


def dataset_config_class(name: str) -> type:
    """The configuration class of a known dataset, by the class's name, from the plugin that offers the dataset.

    Raises:
        AttributeError: no known distribution has such a class.
        UnknownNameError: the distribution is not installed; says what to install.
        PluginError: its plugin failed or is blocked.
    """
    datasets = {config: dataset for item in known_distributions() for config, dataset in item.config_classes.items()}
    if name not in datasets:
        raise AttributeError(f"module 'reallm' has no attribute '{name}'{did_you_mean(name, datasets)}")
    config_class = registry.get("dataset", datasets[name]).config_class()
    assert isinstance(config_class, type)
    return config_class
