"""What this distribution offers to reallm."""

from __future__ import annotations

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec


@hookimpl
def reallm_datasets() -> dict[str, DatasetSpec]:
    return {
        "prompt_answer": DatasetSpec(
            dataset="reallm_datasets.prompt_answer:PromptAnswerDataset",
            config="reallm_datasets.config:PromptAnswerDatasetConfig",
            description="prompts with their answers, or conversations: for supervised fine-tuning",
            keys=("input_ids", "loss_mask"),
        ),
        "rw_pair": DatasetSpec(
            dataset="reallm_datasets.rw_pair:PairedComparisonDataset",
            config="reallm_datasets.config:PairedComparisonDatasetConfig",
            description="better and worse answers to a prompt: for reward models and preference optimization",
            keys=("input_ids", "prompt_lens", "margins"),
        ),
        "unpaired_preference": DatasetSpec(
            dataset="reallm_datasets.unpaired_preference:UnpairedPreferenceDataset",
            config="reallm_datasets.config:UnpairedPreferenceDatasetConfig",
            description="completions that are labelled good or bad: for preference optimization (KTO)",
            keys=("input_ids", "prompt_lens", "labels"),
        ),
        "prompt": DatasetSpec(
            dataset="reallm_datasets.prompt:PromptOnlyDataset",
            config="reallm_datasets.config:PromptOnlyDatasetConfig",
            description="prompts alone: for generation and reinforcement learning",
            keys=("prompt_ids",),
        ),
    }
