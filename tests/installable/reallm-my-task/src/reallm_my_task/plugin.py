"""What this package offers. Names classes without importing them, so that looking around stays fast."""

from reallm import DatasetSpec, RewardSpec, hookimpl

REALLM_HOOK_API = "1.5"


@hookimpl
def reallm_datasets() -> dict[str, DatasetSpec]:
    """The prompts of the task."""
    return {
        "my-task": DatasetSpec(
            dataset="reallm_my_task.dataset:SumsDataset",
            config="reallm_my_task.config:SumsConfig",
            description="sums of two numbers, to be answered",
            keys=("prompt_ids",),
        )
    }


@hookimpl
def reallm_rewards() -> dict[str, RewardSpec]:
    """What rewards answers to them."""
    return {"my-task": RewardSpec("reallm_my_task.reward:right_sum", "whether an answer has the right sum", ("total",))}
