"""The options of `my-dataset`."""

from dataclasses import dataclass

from reallm import REQUIRED, option


@dataclass
class MyDatasetConfig:
    """What `dataset.name=my-dataset` understands."""

    train_path: str = option(REQUIRED, "text file to train on, one sample a line")
    valid_path: str | None = option(None, "text file to evaluate on; null: no evaluation")
    my_arg: int = option(0, "number of tokens at the start of each line that are read, but not learnt")
