"""The dataset `my-task`."""

import random

import torch

from reallm import DatasetUtility, NamedArray


class SumsDataset(torch.utils.data.Dataset):
    """Sums of two numbers, drawn from the seed: `prompt_ids` int64 [L], with the right answer as column `total`."""

    def __init__(self, util: DatasetUtility, size: int = 1000, largest: int = 99) -> None:
        numbers = random.Random(util.seed)
        pairs = [(numbers.randint(0, largest), numbers.randint(0, largest)) for _ in range(size)]
        self.rows = util.shard(list(enumerate(pairs)))
        self.tokenizer = util.tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> NamedArray:
        number, (a, b) = self.rows[index]
        prompt = f"{a} + {b} ="
        prompt_ids = torch.tensor(self.tokenizer.encode(prompt))
        return NamedArray(prompt_ids=prompt_ids).with_metadata(
            seqlens={"prompt_ids": [[len(prompt_ids)]]},
            ids=[f"sum {number}"],
            columns=[{"prompt": prompt, "total": a + b}],
        )
