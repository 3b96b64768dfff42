"""What this package offers. Names classes without importing them, so that looking around stays fast."""

from reallm import DatasetSpec, hookimpl

REALLM_HOOK_API = "1.0"


@hookimpl
def reallm_datasets() -> dict[str, DatasetSpec]:
    return {
        "my-dataset": DatasetSpec(
            dataset="reallm_my_data.dataset:MyDataset",
            config="reallm_my_data.config:MyDatasetConfig",
            description="the lines of a text file",
            keys=("input_ids", "loss_mask"),
        )
    }
