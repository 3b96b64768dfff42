"""prompt_answer: samples, what becomes of long and empty rows, ranks, workers."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reallm.data.datasets import Dataset, DatasetUtility, make_dataset
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import RowSource
from reallm.errors import ConfigError, DataError
from reallm_datasets.config import PromptAnswerDatasetConfig
from reallm_datasets.prompt_answer import PromptAnswerDataset
from tests.helpers.tokenizers import tiny_tokenizer

Write = Callable[..., Path]


def by_id(dataset: Any) -> dict[str, NamedArray]:
    return {dataset[i].metadata["ids"][0]: dataset[i] for i in range(len(dataset))}


def trained(util: DatasetUtility, sample: NamedArray) -> str:
    return str(util.tokenizer.decode(sample.input_ids[sample.loss_mask]))


def test_a_sample_is_prompt_and_answer_of_which_the_answer_is_trained(jsonl: Write, util: DatasetUtility) -> None:
    dataset = PromptAnswerDataset(util, path=jsonl({"id": "x", "prompt": "What is ", "answer": "the fox"}))
    [sample] = (dataset[i] for i in range(len(dataset)))
    n = len(sample.input_ids)
    assert util.tokenizer.decode(sample.input_ids) == "What is the fox<|im_end|>"
    assert trained(util, sample) == "the fox<|im_end|>"
    assert (sample.input_ids.dtype, sample.loss_mask.dtype) == (torch.int64, torch.bool)
    assert sample.metadata["seqlens"] == {"input_ids": ((n,),), "loss_mask": ((n,),)}
    assert sample.metadata["ids"] == ("x",)


def test_conversations_are_trained_on_the_assistants_turns_and_come_before_prompt_and_answer(
    jsonl: Write, util: DatasetUtility
) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": "?"},
    ]
    path = jsonl({"messages": messages, "prompt": "p", "answer": "a"}, {"messages": None, "prompt": "p", "answer": "a"})
    samples = by_id(PromptAnswerDataset(util, path=path))
    assert trained(util, samples["rows.jsonl:1"]) == "hello<|im_end|>well<|im_end|>"
    assert trained(util, samples["rows.jsonl:2"]) == "a<|im_end|>"


SHARE = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "the fox"}]}
ALPACA = {"instruction": "hi", "input": "", "output": "the fox"}


def test_rows_of_other_forms_are_trained_like_our_own(jsonl: Write, util: DatasetUtility) -> None:
    chat = PromptAnswerDataset(
        util, path=jsonl({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the fox"}]})
    )
    for row in (SHARE, ALPACA):
        [sample] = by_id(PromptAnswerDataset(util, path=jsonl(row))).values()
        assert sample == chat[0]
    mine = PromptAnswerDataset(util, path=[{"prompt": "hi", "answer": "the fox"}])
    for source in (
        RowSource([{"prompt": "hi", "completion": "the fox"}]),
        RowSource([{"q": "hi", "prompt": "?", "answer": "the fox"}], columns={"prompt": "q"}),
        RowSource([{**SHARE, "prompt": "hi", "answer": "the fox"}], format="prompt_answer"),
    ):
        assert PromptAnswerDataset(util, path=source)[0] == mine[0]


def test_pairs_of_answers_are_for_another_dataset(util: DatasetUtility) -> None:
    rows = [{"prompt": "hi", "chosen": "the fox", "rejected": "dog"}]
    with pytest.raises(DataError, match=r"which dataset.name=rw_pair reads; .* give dataset.columns.answer=chosen"):
        PromptAnswerDataset(util, path=rows)
    better = PromptAnswerDataset(util, path=RowSource(rows, columns={"answer": "chosen"}))
    assert trained(util, better[0]) == "the fox<|im_end|>"


def test_alpaca_has_its_own_prompt_for_tokenizers_without_a_chat_template(jsonl: Write, util: DatasetUtility) -> None:
    util.tokenizer.chat_template = None
    [sample] = by_id(PromptAnswerDataset(util, path=jsonl(ALPACA))).values()
    assert util.tokenizer.decode(sample.input_ids).startswith("Below is an instruction that describes a task. Write")
    assert util.tokenizer.decode(sample.input_ids).endswith("### Instruction:\nhi\n\n### Response:\nthe fox<|im_end|>")
    assert trained(util, sample) == "the fox<|im_end|>"
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        PromptAnswerDataset(util, path=jsonl(SHARE))


ROWS = [
    {"id": "good", "prompt": "the fox", "answer": "dog"},
    {"id": "long answer", "prompt": "the", "answer": " fox" * 20},
    {"id": "long prompt", "prompt": " fox" * 20, "answer": "the"},
    {"id": "nothing", "prompt": "", "answer": ""},
    {"id": "no answer", "prompt": "the", "answer": ""},
    {"id": "no prompt", "prompt": "", "answer": "the dog"},
]


def test_long_and_empty_rows_when_cut(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(*ROWS)
    dataset = PromptAnswerDataset(util, path=path, max_seqlen=6)
    samples = by_id(dataset)
    assert set(samples) == {"good", "long answer", "no answer", "no prompt"}
    cut = samples["long answer"]
    assert len(cut.input_ids) == 6
    assert trained(util, cut).startswith(" fox")
    assert cut.input_ids[-1] != util.tokenizer.eos_token_id  # the model is not told that the answer ends here
    assert trained(util, samples["no answer"]) == "<|im_end|>"
    assert not samples["no prompt"].loss_mask[0]  # nothing comes before it
    report = dataset.report()
    n_tokens = sum(len(sample.input_ids) for sample in samples.values())
    n_trained = sum(int(sample.loss_mask.sum()) for sample in samples.values())
    assert report.startswith(f"{path}: 6 rows -> 4 samples, {n_tokens} tokens, {n_trained} of them trained; ")
    assert set(report.split("; ")[1:]) == {
        "1 cut to 6 tokens",
        "1 dropped: the prompt alone fills 6 tokens",
        "1 dropped: prompt and answer are empty",
        "1 with an empty answer",
    }


def test_long_rows_when_dropped(jsonl: Write, util: DatasetUtility) -> None:
    dataset = PromptAnswerDataset(util, path=jsonl(*ROWS), max_seqlen=6, overlong="drop")
    assert set(by_id(dataset)) == {"good", "no answer", "no prompt"}
    assert "1 dropped: longer than 6 tokens" in dataset.report()
    assert "1 dropped: the prompt alone fills 6 tokens" in dataset.report()


def test_a_row_that_just_fits_stays_whole(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(ROWS[0])
    n = len(PromptAnswerDataset(util, path=path)[0].input_ids)
    assert (
        PromptAnswerDataset(util, path=path, max_seqlen=n, overlong="drop")[0]
        == PromptAnswerDataset(util, path=path)[0]
    )
    assert "cut" in PromptAnswerDataset(util, path=path, max_seqlen=n - 1).report()


def test_no_sample_left(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(ROWS[2], ROWS[3])
    with pytest.raises(DataError) as caught:
        PromptAnswerDataset(util, path=path, max_seqlen=6)
    told = str(caught.value)
    assert told.startswith(f"{path}: no sample is left of 2 rows (1 dropped: ")
    assert told.endswith("; raise max_seqlen, or give rows with an answer")


def test_no_turn_left(jsonl: Write, util: DatasetUtility) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]
    with pytest.raises(DataError, match="; switch a turn of the assistant on in the data$"):
        PromptAnswerDataset(util, path=jsonl({"messages": turns}))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"promt": "x", "answer": "y"}, "found no such key (keys: 'promt', 'answer'"),
        (
            {"prompt": "x", "answr": "y"},
            "key 'answer': found no such key (keys: 'prompt', 'answr'), wanted text",
        ),
        ({"prompt": ["x"], "answer": "y"}, "key 'prompt': found a list of 1, wanted text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no message is the assistant's"),
    ],
)
def test_a_bad_row_names_itself(jsonl: Write, util: DatasetUtility, row: Any, problem: str) -> None:
    path = jsonl(ROWS[0], row)
    with pytest.raises(DataError) as caught:
        PromptAnswerDataset(util, path=path)
    assert str(caught.value).startswith(f"{path}:2: {problem}")


def test_padding_for_benchmarks_is_not_trained(jsonl: Write, util: DatasetUtility) -> None:
    dataset = PromptAnswerDataset(util, path=jsonl(*ROWS), max_seqlen=30, pad_to_max_length=True)
    plain = by_id(PromptAnswerDataset(util, path=jsonl(*ROWS), max_seqlen=30))
    for name, sample in by_id(dataset).items():
        n = len(plain[name].input_ids)
        assert sample.metadata["seqlens"]["input_ids"] == ((30,),)
        assert torch.equal(sample.input_ids[:n], plain[name].input_ids)
        assert torch.equal(sample.loss_mask[:n], plain[name].loss_mask)
        assert set(sample.input_ids[n:].tolist()) <= {util.tokenizer.pad_token_id}
        assert not sample.loss_mask[n:].any()


def test_padding_without_a_padding_token_is_the_end_of_sequence(jsonl: Write) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    sample = PromptAnswerDataset(
        DatasetUtility(1, 0, 1, tokenizer), path=jsonl(ROWS[0]), max_seqlen=30, pad_to_max_length=True
    )[0]
    assert sample.input_ids[-1] == tokenizer.eos_token_id


def test_indexing_past_the_end_stops_a_loop(jsonl: Write, util: DatasetUtility) -> None:
    dataset = PromptAnswerDataset(util, path=jsonl(*ROWS[:2]))
    with pytest.raises(IndexError):
        dataset[2]
    assert len(list(iter(dataset))) == 2  # by __getitem__, as Python does


@pytest.mark.parametrize(
    ("name", "value"), [("max_seqlen", 1), ("max_seqlen", 2.5), ("max_seqlen", True), ("overlong", "cut")]
)
def test_arguments_out_of_range(jsonl: Write, util: DatasetUtility, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value!r} must be "):
        PromptAnswerDataset(util, path=jsonl(*ROWS), **{name: value})
    with pytest.raises(ConfigError, match=f"{name}={value!r} must be "):
        PromptAnswerDatasetConfig(**{name: value})


def many(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"the {i}", "answer": "dog" * (i % 7)} for i in range(n)]


def test_ranks_hold_disjoint_slices_that_are_complete(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(*many(23))
    shards = [
        by_id(PromptAnswerDataset(dataclasses.replace(util, dp_rank=rank, dp_size=3), path=path)) for rank in range(3)
    ]
    whole = by_id(PromptAnswerDataset(util, path=path))
    assert sum(map(len, shards)) == len(whole) == 23
    assert {name: sample for shard in shards for name, sample in shard.items()} == whole


def test_the_same_seed_gives_the_same_order(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(*many(40))
    orders = [list(by_id(PromptAnswerDataset(dataclasses.replace(util, seed=seed), path=path))) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_tokens_lie_in_flat_arrays_and_a_pickled_dataset_is_small(jsonl: Write, util: DatasetUtility) -> None:
    dataset = PromptAnswerDataset(util, path=jsonl(*many(1000)))
    n_tokens = sum(len(dataset[i].input_ids) for i in range(len(dataset)))
    column = dataset._rows.of_all_ranks.columns["input_ids"]
    arrays = [value for value in vars(column).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 4 * n_tokens + 8 * (len(dataset) + 1)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5 * n_tokens + 64 * len(dataset)  # and neither the tokenizer nor the rows
    again = pickle.loads(pickled)
    assert all(again[i] == dataset[i] for i in range(len(dataset)))


def test_a_completion_that_should_not_be_imitated_is_not_trained(jsonl: Write, util: DatasetUtility) -> None:
    rows = [{"prompt": "the ", "completion": "fox", "label": label} for label in (True, False)]
    path = jsonl(rows[0])
    assert len(PromptAnswerDataset(util, path=RowSource(path))) == 1
    path = jsonl(*rows)
    with pytest.raises(DataError) as caught:
        PromptAnswerDataset(util, path=RowSource(path))
    assert str(caught.value) == (
        f"{path}:2: key 'label': false marks a completion that should not be imitated, which "
        "dataset.name=unpaired_preference reads; leave such rows out, or remove the key if it means something else"
    )
    meant = jsonl({"prompt": "the ", "answer": "fox", "label": False})
    assert len(PromptAnswerDataset(util, path=RowSource(meant))) == 1


def test_a_spawned_worker_gives_the_same_samples(jsonl: Write, util: DatasetUtility) -> None:
    dataset = PromptAnswerDataset(util, path=jsonl(*many(8)))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn", in_order=True
    )
    assert list(loader) == [dataset[i] for i in range(8)]


def test_it_is_made_by_its_name_as_the_plugin_offers_it(jsonl: Write, util: DatasetUtility) -> None:
    args = {"path": str(jsonl(*many(4))), "max_seqlen": 64, "overlong": "drop", "pad_to_max_length": False}
    dataset = make_dataset(Dataset("prompt_answer", args), seed=1, tokenizer=util.tokenizer, dp_rank=1, dp_size=2)
    assert isinstance(dataset, PromptAnswerDataset)
    assert len(dataset) == 2
    with pytest.raises(ConfigError, match=r"dataset 'prompt_answer' of reallm-datasets .* did you mean 'max_seqlen'"):
        make_dataset(Dataset("prompt_answer", {"path": "x", "max_seqlens": 3}), seed=1, tokenizer=util.tokenizer)


def test_rows_may_be_built_by_a_function(util: DatasetUtility) -> None:
    dataset = PromptAnswerDataset(util, path=lambda: many(3))
    assert len(dataset) == 3
    assert "<lambda>: 3 rows" in dataset.report()
