"""Checks that an evaluation gives the metric that is tracked for the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from reallm.algorithms.graph import Graph
from reallm.config.mixture import mix_sources
from reallm.config.training import DEFAULT_BEST_METRIC, TrainingConfig
from reallm.errors import ConfigError, did_you_mean
from reallm.specs import Algorithm


def check_best_metric(config: TrainingConfig, algorithm: Algorithm, graph: Graph) -> None:
    """Check the name of the tracked metric before anything is loaded, if the algorithm declares its metrics.

    Raises:
        ConfigError: an evaluation does not give the metric; names the nearest and all that it gives.
    """
    if config.tracked_metric is not None:
        names = graph.eval_metric_names({role: algorithm.interface_class(role) for role in graph.all_roles})
        if names is not None:
            names += [f"{name}/{source}" for source in mix_sources(config.dataset) for name in names]
            check_metric_name(config, names)


def check_metric_name(config: TrainingConfig, names: Sequence[str]) -> None:
    """Check that the tracked metric is among the names of an evaluation's metrics, where `*` stands for any name.

    Raises:
        ConfigError: see `check_best_metric`.
    """
    name = config.tracked_metric
    if name is None or any(fnmatchcase(name, pattern) for pattern in names):
        return
    if config.best_metric is None:
        raise ConfigError(
            f"stop_after_evals_without_gain={config.stop_after_evals_without_gain} needs best_metric, since an "
            f"evaluation does not give {DEFAULT_BEST_METRIC}; it gives {', '.join(names)}"
        )
    raise ConfigError(
        f"best_metric={name} is not among the metrics of an evaluation ({', '.join(names)}){did_you_mean(name, names)}"
    )
