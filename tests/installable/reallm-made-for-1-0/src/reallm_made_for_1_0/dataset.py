"""A dataset of hook API 1.0, which has no `train_path` and gets all its fields."""

from dataclasses import dataclass

import torch

from reallm import DatasetUtility, NamedArray, option


@dataclass
class NumbersConfig:
    """What it counts up to."""

    n_rows: int = option(8, "how many samples there are")


class Numbers(torch.utils.data.Dataset):
    """Sample i is the numbers 0 to i."""

    def __init__(self, util: DatasetUtility, n_rows: int = 8) -> None:
        self.rows = util.shard(range(1, n_rows + 1))
        self.end = util.tokenizer.eos_token_id

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        length = self.rows[index] + 1
        tokens = torch.tensor([*range(length - 1), self.end])
        return NamedArray(input_ids=tokens, loss_mask=torch.ones(length, dtype=torch.bool)).with_metadata(
            seqlens={"input_ids": [[length]], "loss_mask": [[length]]}, ids=[f"up to {length - 1}"]
        )
