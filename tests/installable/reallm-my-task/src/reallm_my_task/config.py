"""The options of the dataset `my-task`."""

from dataclasses import dataclass

from reallm import option


@dataclass
class SumsConfig:
    """What `dataset.name=my-task` understands."""

    size: int = option(1000, "number of sums")
    largest: int = option(99, "largest number that is added")
    train_bs_n_seqs: int = option(32, "batch size: prompts in a step")
