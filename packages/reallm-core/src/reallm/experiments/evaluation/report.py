"""The result of an evaluation as JSON types."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from reallm.config.evaluation import evaluation_settings
from reallm.config.training import TrainingConfig
from reallm.experiments.evaluation.evaluate import EvalResult
from reallm.loggers.jsonl import finite


def as_dict(config: TrainingConfig, algorithm: str, result: EvalResult) -> dict[str, Any]:
    """Metrics, with None for one that is not finite, and what they were computed from. Keys are only ever added."""
    return {
        "algorithm": algorithm,
        "metrics": finite(result.metrics),
        "n_samples": result.n_samples,
        "seconds": round(result.seconds, 3),
        "settings": evaluation_settings(config),
        "reallm-core": version("reallm-core"),
    }
