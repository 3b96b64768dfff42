"""The dataset `my-dataset`."""

from pathlib import Path

import torch

from reallm import DataError, DatasetUtility, NamedArray


class MyDataset(torch.utils.data.Dataset):
    """The lines of a text file; the first `my_arg` tokens of each are read, but not learnt.

    A sample has `input_ids` int64 [L] and `loss_mask` bool [L].
    """

    def __init__(self, util: DatasetUtility, path: str, my_arg: int = 0) -> None:
        numbered = enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1)
        rows = [(f"{path}:{number}", line) for number, line in numbered if line.strip()]
        if not rows:
            raise DataError(f"{path} is empty; it needs one sample a line")
        self.rows = util.shard(rows)
        self.tokenizer = util.tokenizer
        self.my_arg = my_arg

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> NamedArray:
        where, line = self.rows[index]
        tokens = torch.tensor([*self.tokenizer.encode(line), self.tokenizer.eos_token_id])
        length = len(tokens)
        sample = NamedArray(input_ids=tokens, loss_mask=torch.arange(length) >= self.my_arg)
        return sample.with_metadata(seqlens={"input_ids": [[length]], "loss_mask": [[length]]}, ids=[where])
