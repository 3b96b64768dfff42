"""prompt: prompts alone, plain or rendered, and what becomes of long ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm.data.datasets import Dataset, DatasetUtility, make_dataset
from reallm.errors import ConfigError, DataError
from reallm_datasets.config import PromptOnlyDatasetConfig
from reallm_datasets.prompt import PromptOnlyDataset
from tests.helpers.tokenizers import tiny_tokenizer

Write = Callable[..., Path]


def texts(util: DatasetUtility, dataset: Any) -> dict[str, str]:
    samples = [dataset[i] for i in range(len(dataset))]
    return {sample.metadata["ids"][0]: str(util.tokenizer.decode(sample.prompt_ids)) for sample in samples}


@pytest.fixture
def with_bos() -> DatasetUtility:
    return DatasetUtility(1, 0, 1, tiny_tokenizer(bos=True))


def test_prompts_plain_and_as_conversations(jsonl: Write, with_bos: DatasetUtility) -> None:
    messages = [{"role": "user", "content": "hi"}]
    dataset = PromptOnlyDataset(
        with_bos, path=jsonl({"id": "a", "prompt": "the fox"}, {"id": "b", "messages": messages})
    )
    assert texts(with_bos, dataset) == {
        "a": "<s>the fox",
        "b": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    }
    sample = dataset[0]
    assert sample.prompt_ids.dtype == torch.int64
    assert sample.metadata["seqlens"] == {"prompt_ids": ((len(sample.prompt_ids),),)}


LONG = {"id": "long", "prompt": "the fox" + " dog" * 20}


def test_long_prompts_are_dropped(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"id": "a", "prompt": "the"}, LONG, {"prompt": ""})
    dataset = PromptOnlyDataset(util, path=path, max_prompt_len=8)
    assert texts(util, dataset) == {"a": "the"}
    report = dataset.report()
    assert report.startswith(f"{path}: 3 rows -> 1 prompt, ")
    assert set(report.split("; ")[1:]) == {"1 dropped: longer than 8 tokens", "1 dropped: the prompt is empty"}


def test_long_prompts_keep_their_end_and_the_beginning_of_sequence(
    jsonl: Write, util: DatasetUtility, with_bos: DatasetUtility
) -> None:
    for each, start in ((util, " dog"), (with_bos, "<s>")):
        dataset = PromptOnlyDataset(each, path=jsonl(LONG), max_prompt_len=8, overlong="truncate")
        assert texts(each, dataset) == {"long": start + " dog" * 7}
        assert "1 cut to 8 tokens" in dataset.report()


def test_padding_for_benchmarks_is_at_the_beginning(jsonl: Write, util: DatasetUtility) -> None:
    dataset = PromptOnlyDataset(util, path=jsonl({"prompt": "the"}), max_prompt_len=4, pad_to_max_length=True)
    pad = util.tokenizer.pad_token_id
    ids = util.tokenizer("the")["input_ids"]
    assert dataset[0].prompt_ids.tolist() == [pad] * (4 - len(ids)) + ids


def test_mistakes(jsonl: Write, util: DatasetUtility) -> None:
    with pytest.raises(DataError, match="rows.jsonl: no sample is left of 1 row .*raise max_prompt_len"):
        PromptOnlyDataset(util, path=jsonl(LONG), max_prompt_len=8)
    with pytest.raises(DataError, match=r"rows.jsonl:1: found no such key .*, wanted 'messages' or 'prompt'"):
        PromptOnlyDataset(util, path=jsonl({"text": "x"}))
    with pytest.raises(ConfigError, match="max_prompt_len=0 must be a whole number, at least 1"):
        PromptOnlyDataset(util, path=jsonl(LONG), max_prompt_len=0)
    with pytest.raises(ConfigError, match="train_bs_n_seqs=0"):
        PromptOnlyDatasetConfig(path="x", train_bs_n_seqs=0)


def test_it_is_made_by_its_name_and_pickles(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"prompt": "the"}, {"prompt": "a"})
    dataset = make_dataset(Dataset("prompt", {"path": path}), seed=1, tokenizer=util.tokenizer)
    assert isinstance(dataset, PromptOnlyDataset)
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]
