"""`reallm.PromptAnswerDatasetConfig` and the like: configuration classes of datasets that are plugins."""

from __future__ import annotations

from reallm.errors import did_you_mean
from reallm.plugins import registry
from reallm.plugins.known import known


def offered_config(name: str) -> type:
    """The configuration class of a known dataset, by the class's name, from the plugin that offers the dataset.

    Raises:
        AttributeError: if no known distribution has such a class.
        UnknownNameError: if the distribution is not installed; says what to install.
        PluginError: if its plugin failed or is blocked.
    """
    datasets = {config: dataset for item in known() for config, dataset in item.config_classes.items()}
    if name not in datasets:
        raise AttributeError(f"module 'reallm' has no attribute '{name}'{did_you_mean(name, datasets)}")
    config_class = registry.get("dataset", datasets[name]).config_class()
    assert isinstance(config_class, type)
    return config_class
