"""rw_pair: better and worse answers, in every form that rows give them."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm.data.datasets import Dataset, DatasetUtility, make_dataset
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import RowSource
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


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(None, [0, 0]), (0.5, [0.5, 0.5]), ([2, -1], [2, -1]), ("1.5", [1.5, 1.5]), (0, [0, 0])],
)
def test_margins_are_of_the_pairs(jsonl: Write, util: DatasetUtility, margin: Any, expected: list[float]) -> None:
    row = {"prompt": "the ", "pos_answers": ["fox", "dog"], "neg_answers": ["hello", ""], "margin": margin}
    dataset = PairedComparisonDataset(util, path=jsonl(row))
    assert dataset[0].margins.dtype == torch.float32
    assert dataset[0].margins.tolist() == expected
    assert dataset[0].metadata["seqlens"]["margins"] == ((1, 1),)
    assert ("1 with a margin" in dataset.report()) == (margin is not None)


def test_pairs_that_are_left_out_take_their_margins_along(jsonl: Write, util: DatasetUtility) -> None:
    row = {"prompt": "the ", "pos_answers": ["same", "dog"], "neg_answers": ["same", "cat"], "margin": [1, 2]}
    assert PairedComparisonDataset(util, path=jsonl(row))[0].margins.tolist() == [2]
    row = {**ROW, "margin": list(range(8))}
    sample = PairedComparisonDataset(util, path=jsonl(row), max_pairs_per_prompt=3)[0]
    assert sample.margins.tolist() == ["abcdefgh".index(answer[0]) for _, answer in sequences(util, sample)[::2]]


def test_a_column_of_margins_is_named(jsonl: Write, util: DatasetUtility) -> None:
    source = RowSource(jsonl({"prompt": "x", "chosen": "a", "rejected": "b", "gap": 3}), columns={"margin": "gap"})
    assert PairedComparisonDataset(util, path=source)[0].margins.tolist() == [3]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        (
            "\n\nHuman: a\n\nAssistant: fox",
            "\n\nHuman: a\n\nAssistant: dog",
            "\n\nHuman: a\n\nAssistant:",
            [" fox", " dog"],
        ),
        ("The sum is 12.", "The sum is 13.", "The sum is", [" 12.", " 13."]),
    ],
)
def test_a_prompt_that_is_in_both_texts_is_found_and_told(
    jsonl: Write, util: DatasetUtility, chosen: str, rejected: str, prompt: str, answers: list[str]
) -> None:
    dataset = PairedComparisonDataset(util, path=RowSource(jsonl({"chosen": chosen, "rejected": rejected})))
    assert sequences(util, dataset[0]) == [(prompt, f"{answer}<|im_end|>") for answer in answers]
    assert dataset.report().endswith("; 1 with a prompt that both answers begin with")
    told = PairedComparisonDataset(util, path=RowSource(jsonl({"prompt": "x", "chosen": "a", "rejected": "b"})))
    assert "begin with" not in told.report()


def test_the_first_token_is_never_of_the_answer(jsonl: Write, util: DatasetUtility) -> None:
    sample = PairedComparisonDataset(util, path=jsonl({"prompt": "", "chosen": "ab", "rejected": "c"}))[0]
    assert sequences(util, sample) == [("a", "b<|im_end|>"), ("c", "<|im_end|>")]  # nothing predicts it


def test_answers_that_are_cut_where_they_differ_say_so(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"prompt": "the ", "chosen": "aaaaaaaab", "rejected": "aaaaaaaac"})
    with pytest.raises(DataError) as caught:
        PairedComparisonDataset(util, path=path, max_seqlen=8)
    assert str(caught.value) == (
        f"{path}: no sample is left of 1 row (1 pair dropped: the answers do not differ within 8 tokens; "
        "1 without a pair left); raise max_seqlen"
    )


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
        (
            {"prompt": "x", "chosen": "a", "rejcted": "b"},
            "wanted text or a list of messages; give dataset.columns.rejected=rejcted",
        ),
        (
            {"prompt": "x", "better": "a", "rejected": "b"},
            "key 'chosen': found no such key (keys: 'prompt', 'better', ",
        ),
        ({"chosen": "a", "rejected": "b"}, "key 'prompt': found no such key"),
        ({"chosen": [USER, GOOD], "rejected": "no"}, "key 'prompt': found no such key"),
        ({**ROW, "margin": math.nan}, "key 'margin': found a number (nan), wanted a finite number"),
        ({**ROW, "margin": 1e99}, "key 'margin': found a number (1e+99), wanted a finite number"),
        ({**ROW, "margin": "much"}, "key 'margin': found text ('much'), wanted a finite number"),
        ({**ROW, "margin": True}, "key 'margin': found true, wanted a finite number"),
        ({**ROW, "margin": [1]}, "key 'margin': found a list of 1, wanted a number for each of 8 pairs"),
        ({**ROW, "margin": [1] * 7 + [None]}, "key 'margin[7]': found null, wanted a finite number"),
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


def test_labelled_answers_belong_to_another_dataset(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"prompt": "x", "completion": "a", "label": True})
    with pytest.raises(DataError) as caught:
        PairedComparisonDataset(util, path=path)
    assert str(caught.value) == (
        f"{path}:1: it has one answer and 'label', which dataset.name=unpaired_preference reads; "
        "pairs have 'chosen' and 'rejected'"
    )


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
