"""Previews the data of a run with its tokenizer; of the model nothing else is needed."""

from __future__ import annotations

from reallm.algorithms.graph import Graph
from reallm.config.training import TrainingConfig
from reallm.data.preview.preview import Preview, preview
from reallm.errors import CheckpointError, ConfigError
from reallm.experiments.run.setup import load_run_tokenizer
from reallm.specs import Algorithm


def preview_data(config: TrainingConfig, algorithm: Algorithm, n: int, split: str = "train") -> Preview:
    """Preview what a run trains on.

    Args:
        config: configuration of the run.
        algorithm: the algorithm, for the model whose tokenizer is used.
        n: number of rows to show.
        split: `train` or `valid`.

    Raises:
        ReallmError: the tokenizer or the data cannot be read, or a row is wrong.
    """
    splits = config.datasets()
    if split not in splits:
        raise ConfigError("there is no validation data to preview; give dataset.valid_path or dataset.valid_fraction")
    graph = Graph.of(algorithm, config)
    try:
        tokenizer, _ = load_run_tokenizer(config, graph)
    except CheckpointError as error:
        raise CheckpointError(f"{graph.trained_roles[0]}.path: {error}") from error
    return preview(splits[split], n, seed=config.seed, tokenizer=tokenizer)
