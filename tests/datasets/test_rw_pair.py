"""rw_pair: better and worse answers, in every form that rows give them."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm.data.datasets import Dataset, DatasetUtility, make_dataset
from reallm.data.namedarray import NamedArray
from reallm.errors import ConfigError, DataError
from reallm_datasets.config import PairedComparisonDatasetConfig
from reallm_datasets.rw_pair import PairedComparisonDataset

Write = Callable[..., Path]


def sequences(util: DatasetUtility, sample: NamedArray) -> list[tuple[str, str]]:
    """Prompt and answer of each sequence of a sample."""
    split = sample.input_ids.split(list(sample.metadata["seqlens"]["input_ids"][0]))
    decode = util.tokenizer.decode
    return [(decode(s[:n]), decode(s[n:])) for s, n in zip(split, sample.prompt_lens.tolist(), strict=True)]  # type: ignore[misc]


def test_better_and_worse_take_turns(jsonl: Write, util: DatasetUtility) -> None:
    row = {"id": "x", "prompt": "the ", "pos_answers": ["fox", "dog"], "neg_answers": ["hello", ""]}
    dataset = PairedComparisonDataset(util, path=jsonl(row))
    sample = dataset[0]
    assert sequences(util, sample) == [("the ", answer + "<|im_end|>") for answer in ("fox", "hello", "dog", "")]
    assert (sample.input_ids.dtype, sample.prompt_lens.dtype) == (torch.int64, torch.int64)
    assert sample.metadata["seqlens"]["prompt_lens"] == ((1, 1, 1, 1),)
    assert sample.metadata["ids"] == ("x",)
    assert "1 sample, 2 pairs" in dataset.report()


USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "well"}
BAD = {"role": "assistant", "content": "no"}
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, id="whole"),
        pytest.param({"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, id="whole, and the question"),
        pytest.param({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, id="answers"),
        pytest.param({"prompt": "hi", "chosen": [GOOD], "rejected": [BAD]}, id="answers to a text"),
        pytest.param({"prompt": [USER], "chosen": "well", "rejected": "no"}, id="answers as text"),
    ],
)
def test_conversations(jsonl: Write, util: DatasetUtility, row: dict[str, Any]) -> None:
    dataset = PairedComparisonDataset(util, path=jsonl(row))
    assert sequences(util, dataset[0]) == [(RENDERED, "well<|im_end|>"), (RENDERED, "no<|im_end|>")]


def test_in_a_long_conversation_the_last_turn_is_the_answer(jsonl: Write, util: DatasetUtility) -> None:
    before = [USER, GOOD, USER]
    sample = PairedComparisonDataset(util, path=jsonl({"chosen": [*before, GOOD], "rejected": [*before, BAD]}))[0]
    prompt = RENDERED + "well<|im_end|>\n" + RENDERED
    assert sequences(util, sample) == [(prompt, "well<|im_end|>"), (prompt, "no<|im_end|>")]


def test_texts_without_a_template(jsonl: Write, util: DatasetUtility) -> None:
    sample = PairedComparisonDataset(util, path=jsonl({"prompt": "the ", "chosen": "fox", "rejected": "dog"}))[0]
    assert sequences(util, sample) == [("the ", "fox<|im_end|>"), ("the ", "dog<|im_end|>")]


ROW = {"prompt": "the ", "pos_answers": list("abcdefgh"), "neg_answers": list("ABCDEFGH")}


def test_at_most_so_many_pairs_chosen_by_the_seed_whatever_the_rank(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({**ROW, "id": "x"}, {**ROW, "id": "y"})

    def answers(**changes: Any) -> dict[str, list[str]]:
        dataset = PairedComparisonDataset(dataclasses.replace(util, **changes), path=path, max_pairs_per_prompt=3)
        samples = [dataset[i] for i in range(len(dataset))]
        return {s.metadata["ids"][0]: [answer[0] for _, answer in sequences(util, s)] for s in samples}

    chosen = answers()
    for found in chosen.values():
        assert [better.upper() for better in found[::2]] == found[1::2]
        assert sorted(found[::2]) == found[::2]
        assert len(set(found)) == 6
    assert chosen == answers() == answers(dp_size=2) | answers(dp_size=2, dp_rank=1)
    assert chosen["x"] != chosen["y"]
    assert chosen != answers(seed=2)


def test_long_pairs_and_pairs_of_equals(jsonl: Write, util: DatasetUtility) -> None:
    rows = [
        {"id": "one left", "prompt": "the ", "pos_answers": ["fox", "same"], "neg_answers": ["dog", "same"]},
        {"id": "long", "prompt": "the ", "chosen": "fox" * 20, "rejected": "dog"},
        {"id": "long prompt", "prompt": "the " * 20, "chosen": "fox", "rejected": "dog"},
    ]
    path = jsonl(*rows)
    cut = PairedComparisonDataset(util, path=path, max_seqlen=8)
    assert cut.report().startswith(f"{path}: 3 rows -> 2 samples, 2 pairs, ")
    assert set(cut.report().split("; ")[1:]) == {
        "1 pair dropped: both answers are the same",
        "1 pair cut to 8 tokens",
        "1 pair dropped: the prompt alone fills 8 tokens",
        "1 without a pair left",
    }
    dropped = PairedComparisonDataset(util, path=path, max_seqlen=8, overlong="drop")
    assert len(dropped) == 1
    assert "1 pair dropped: longer than 8 tokens" in dropped.report()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "x", "pos_answers": ["a"]}, "key 'neg_answers': found no such key"),
        ({"prompt": "x", "pos_answers": ["a"], "neg_answers": ["b", "c"]}, "found 1 and 2 texts, wanted as many"),
        ({"prompt": "x", "pos_answers": [], "neg_answers": []}, "key 'pos_answers': found an empty list"),
        ({"pos_answers": ["a"], "neg_answers": ["b"]}, "key 'prompt': found no such key"),
        ({"prompt": "x"}, "found no such key (keys: 'prompt'), wanted 'chosen' or 'pos_answers'"),
        ({"prompt": "x", "chosen": "a"}, "key 'rejected': found no such key"),
        ({"chosen": "a", "rejected": "b"}, "key 'prompt': found no such key"),
        ({"chosen": [USER, GOOD], "rejected": "no"}, "key 'prompt': found no such key"),
        ({"chosen": [USER, GOOD], "rejected": [USER, USER, BAD]}, "the conversations differ before their last message"),
        (
            {"chosen": [USER], "rejected": [USER]},
            "key 'chosen': the last message is the user's, wanted the assist",
        ),
    ],
)
def test_a_bad_row_names_itself(jsonl: Write, util: DatasetUtility, row: Any, problem: str) -> None:
    path = jsonl(ROW, row)
    with pytest.raises(DataError) as caught:
        PairedComparisonDataset(util, path=path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)


def test_mistakes(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"prompt": "x", "chosen": "a", "rejected": "a"})
    with pytest.raises(DataError, match="no sample is left of 1 row .1 pair dropped: both answers are the same"):
        PairedComparisonDataset(util, path=path)
    with pytest.raises(ConfigError, match="max_pairs_per_prompt=0"):
        PairedComparisonDataset(util, path=path, max_pairs_per_prompt=0)
    with pytest.raises(ConfigError, match="max_pairs_per_prompt=0"):
        PairedComparisonDatasetConfig(max_pairs_per_prompt=0)


def test_it_is_made_by_its_name_and_pickles(jsonl: Write, util: DatasetUtility) -> None:
    dataset: Any = make_dataset(Dataset("rw_pair", {"path": jsonl(ROW, ROW)}), seed=1, tokenizer=util.tokenizer)
    assert isinstance(dataset, PairedComparisonDataset)
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]
    with pytest.raises(IndexError):
        dataset[2]
