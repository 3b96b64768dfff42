"""prompt: prompts alone, plain or rendered, and what becomes of long ones."""

from __future__ import annotations

import datetime
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from reallm.data.batching import gather, select
from reallm.data.datasets import Dataset, DatasetUtility, make_dataset
from reallm.data.metadata import thaw
from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import RowSource
from reallm.data.tokenization.cache import entry_for, read_or_write
from reallm.data.tokenization.walk import encode_source
from reallm.errors import ConfigError, DataError
from reallm_datasets.columns import decode_columns
from reallm_datasets.config import PromptOnlyDatasetConfig
from reallm_datasets.encoders.prompt import PromptEncoder
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


USER, BOT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


def columns(util: DatasetUtility, path: Any, **args: Any) -> list[Any]:
    """The columns of each sample, in the order of ids."""
    dataset = PromptOnlyDataset(util, path=RowSource(path, **args))
    found = [dataset[i].metadata for i in range(len(dataset))]
    return [thaw(one["columns"][0]) for one in sorted(found, key=lambda one: str(one["ids"][0]))]


def test_the_other_columns_go_with_the_sample(jsonl: Write, util: DatasetUtility) -> None:
    rows = [
        {"id": "a", "prompt": "2+2=", "answer": "4", "n": 1, "tests": [{"in": [1, None]}], "none": None, "é": "\ud83d"},
        {"id": "b", "prompt": "x", "score": 0.5, "ok": True, "nan": math.nan},
    ]
    assert columns(util, jsonl(*rows)) == [
        {"id": "a", "answer": "4", "n": 1, "tests": [{"in": [1, None]}], "é": "\ud83d"},
        {"id": "b", "score": 0.5, "ok": True, "nan": None},
    ]
    assert columns(util, jsonl({"prompt": "x"})) == [{}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER], "answer": "4"}, {"messages": [USER], "answer": "4"}),
        ({"prompt": [USER], "answer": "4"}, {"messages": [USER], "answer": "4"}),
        ({"prompt": [USER], "solution": {"x": 4}}, {"messages": [USER], "solution": {"x": 4}}),
        ({"prompt": [USER], "completion": [BOT]}, {"messages": [USER], "completion": [BOT]}),
        ({"prompt": "2+2?", "completion": [BOT, USER, BOT]}, {"messages": [USER], "completion": [BOT, USER, BOT]}),
        (
            {"prompt": [USER, BOT, USER], "answer": "4"},
            {"messages": [USER, {**BOT, "train": False}, USER], "answer": "4"},
        ),
        ({"conversations": [{"from": "human", "value": "2+2?"}], "n": 1}, {"messages": [USER], "n": 1}),
        (
            {"instruction": "2+2?", "input": "", "output": "4"},
            {"messages": [USER], "instruction": "2+2?", "input": "", "output": "4"},
        ),
    ],
)
def test_conversations_have_their_messages_and_no_answer_in_the_prompt(
    jsonl: Write, util: DatasetUtility, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert columns(util, jsonl(row)) == [expected]
    dataset = PromptOnlyDataset(util, path=RowSource(jsonl(row)))
    end = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert str(util.tokenizer.decode(dataset[0].prompt_ids)).endswith(end)


def test_columns_have_the_names_that_they_are_given(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"question": "2+2=", "reply": "4", "level": 2})
    assert columns(util, path, columns={"prompt": "question", "answer": "reply"}) == [{"answer": "4", "level": 2}]


def test_values_that_json_lacks(util: DatasetUtility) -> None:
    rows = [{"prompt": "x", "day": datetime.date(2026, 1, 2), "grid": np.eye(2), "image": b"...", "n": np.int64(3)}]
    dataset = PromptOnlyDataset(util, path=rows)
    assert thaw(dataset[0].metadata["columns"]) == [{"day": "2026-01-02", "grid": [[1, 0], [0, 1]], "n": 3}]
    assert dataset.report().endswith("; 1 without the column 'image', which holds bytes")


def test_columns_survive_cache_workers_and_batches(jsonl: Write, util: DatasetUtility, tmp_path: Path) -> None:
    path = jsonl(*({"id": i, "prompt": f"{i}:", "answer": ["é" * i, {"n": i}]} for i in range(40)))
    expected = {str(i): {"id": i, "answer": ["é" * i, {"n": i}]} for i in range(40)}

    def found(batch: NamedArray) -> dict[str, Any]:
        return dict(zip(batch.metadata["ids"], thaw(batch.metadata["columns"]), strict=True))

    encoder = PromptEncoder(util.tokenizer, 64, "drop", ())
    entry = entry_for(path, encoder, str(tmp_path / "cache"), min_bytes=0)
    assert entry is not None
    for _ in range(2):  # written, then read
        store = read_or_write(
            entry,
            lambda builder: encode_source(
                path, encoder, builder, num_proc=2, console=Console(quiet=True), workers_pay_after=0
            ),
            Console(quiet=True),
        )
        assert [decode_columns(store.field("columns", i)) for i in range(40)] == list(expected.values())
    dataset = PromptOnlyDataset(util, path=path)
    batch = gather([dataset[i] for i in range(40)])
    assert found(batch) == expected
    part = select(batch, [7, 3])
    assert found(part) == {name: expected[name] for name in part.metadata["ids"]}
    assert found(pickle.loads(pickle.dumps(part))) == found(part)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1)
    assert found(gather(list(loader))) == expected
    mixed = MixedSamples({"a": dataset, "b": dataset}, {})
    assert thaw(mixed[41].metadata["columns"]) == thaw(dataset[1].metadata["columns"])


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
        PromptOnlyDatasetConfig(train_path="x", train_bs_n_seqs=0)


def test_it_is_made_by_its_name_and_pickles(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"prompt": "the"}, {"prompt": "a"})
    dataset = make_dataset(Dataset("prompt", {"path": path}), seed=1, tokenizer=util.tokenizer)
    assert isinstance(dataset, PromptOnlyDataset)
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]
