"""The architecture of a checkpoint by its config alone, and whether the data fits it, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from reallm.data.datasets import Samples
from reallm.errors import DataError
from reallm.experiments.config import ModelArgs
from reallm.experiments.survey import Survey
from reallm.hf import config_io, families
from reallm.hf.file_names import CONFIG_NAME
from reallm.model.config import ReaLModelConfig


def architecture(args: ModelArgs) -> ReaLModelConfig:
    """What `config.json` of a model's folder states."""
    folder = config_io.resolve_path(args.path)
    raw = config_io.read_config(folder)
    return config_io.from_hf(families.family_for(raw, folder), raw, source=folder / CONFIG_NAME)


def check_lengths(samples: Samples, survey: Survey, models: Sequence[ModelArgs]) -> None:
    """Whether the models have positions for the samples that were looked at.

    Raises:
        DataError: a sample is longer than the positions that a model has learned; names it.
    """
    for args in models:
        longest = architecture(args).longest_sequence
        if longest is None or max(survey.lengths) <= longest:
            continue
        place = survey.lengths.index(max(survey.lengths))
        ids = samples[survey.rows[place]].metadata.get("ids")
        name = f"sample '{ids[0]}'" if ids else f"sample {survey.rows[place]}"
        raise DataError(
            f"{name} has {survey.lengths[place]:,} tokens, but {args.path} has learned {longest:,} positions; have the "
            f"dataset cut or drop what is longer (dataset.max_seqlen={longest})"
        )
