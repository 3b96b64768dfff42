"""The keys `plan.*`: what a plan that a run searches for itself is made for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from reallm.config.group import ConfigGroup
from reallm.field_types import check_fields
from reallm.options import option

PLAN_PREFIX = "plan."
"""Prefix of the keys. They decide where a run is computed, not what."""


@dataclass(frozen=True)
class PlanArgs(ConfigGroup, group="plan"):
    """What `allocation` plans for, named as the options of `reallm plan`.

    Raises:
        ConfigError: a value of a wrong type; names the key without `plan.`.
    """

    machine: str | None = option(
        None, "the machine whose figures a plan takes: h100, a YAML file; null: those of the one that runs it"
    )
    profile: str | None = option(
        None, "file of times that `reallm plan --profile` measured on this machine; null: the machine's figures count"
    )
    prompt_lens: str | None = option(
        None, "lengths of prompts in tokens: 512, uniform:64:512; null: those of the dataset"
    )
    answer_lens: str | None = option(
        None, "lengths of answers: 256, lognormal:256:1, a rollouts.jsonl; null: half of max_new_tokens"
    )

    def __post_init__(self) -> None:
        check_fields(self)
