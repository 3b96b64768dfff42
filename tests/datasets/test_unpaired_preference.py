"""unpaired_preference: completions with labels, and the completions of other rows beside them."""

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
from reallm.data.row_sources import RowSource
from reallm.errors import ConfigError, DataError, TooFewSamplesError
from reallm_datasets.config import UnpairedPreferenceDatasetConfig
from reallm_datasets.unpaired_preference import UnpairedPreferenceDataset

Write = Callable[..., Path]

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "well"}
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


def row(i: int, **others: Any) -> dict[str, Any]:
    return {"id": f"row {i}", "prompt": f"{i}: ", "completion": f"c{i}", "label": i % 2 == 0, **others}


def made(util: DatasetUtility, path: Any, **args: Any) -> Any:
    return UnpairedPreferenceDataset(util, path=RowSource(path), **args)


def texts(util: DatasetUtility, sample: NamedArray) -> list[tuple[str, str]]:
    """Prompt and completion of both sequences of a sample."""
    split = sample.input_ids.split(list(sample.metadata["seqlens"]["input_ids"][0]))
    decode = util.tokenizer.decode
    return [(decode(s[:n]), decode(s[n:])) for s, n in zip(split, sample.prompt_lens.tolist(), strict=True)]  # type: ignore[misc]


def samples(dataset: Any) -> dict[str, NamedArray]:
    found = [dataset[i] for i in range(len(dataset))]
    return {sample.metadata["ids"][0]: sample for sample in found}


def test_a_sample_has_its_own_completion_and_that_of_another_row(jsonl: Write, util: DatasetUtility) -> None:
    dataset = made(util, jsonl(*map(row, range(5))))
    found = samples(dataset)
    assert set(found) == {f"row {i}" for i in range(5)}
    others = set()
    for i in range(5):
        sample = found[f"row {i}"]
        (prompt, own), (same_prompt, other) = texts(util, sample)
        assert (prompt, own, same_prompt) == (f"{i}: ", f"c{i}{END}", f"{i}: ")
        assert other != own
        others.add(other)
        assert sample.labels.tolist() == [i % 2 == 0]
        assert sample.metadata["seqlens"]["prompt_lens"] == ((1, 1),)
        assert sample.metadata["seqlens"]["labels"] == ((1,),)
        assert (sample.input_ids.dtype, sample.prompt_lens.dtype, sample.labels.dtype) == (
            torch.int64,
            torch.int64,
            torch.bool,
        )
    assert others == {f"c{i}{END}" for i in range(5)}  # each completion is used once
    assert "5 samples, 3 of them good and 2 bad, " in dataset.report()


def test_the_other_row_depends_on_the_rows_and_the_seed_alone(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(*map(row, range(11)))

    def others(**changes: Any) -> dict[str, str]:
        found = samples(made(dataclasses.replace(util, **changes), path))
        return {name: texts(util, sample)[1][1] for name, sample in found.items()}

    one = others()
    assert one == others()
    assert one == {name: other for rank in range(3) for name, other in others(dp_rank=rank, dp_size=3).items()}
    assert one != others(seed=2)


def test_the_other_row_has_another_prompt_if_there_is_one(jsonl: Write, util: DatasetUtility) -> None:
    rows = [row(i, prompt="same: " if i else "other: ") for i in range(4)]
    found = samples(made(util, jsonl(*rows)))
    for i in (1, 2, 3):
        assert texts(util, found[f"row {i}"])[1] == ("same: ", f"c0{END}")
    found = samples(made(util, jsonl(*(row(i, prompt="same: ") for i in range(3)))))
    assert {texts(util, sample)[1][1] for sample in found.values()} == {f"c{i}{END}" for i in range(3)}


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"prompt": [USER], "completion": [BOT]}, id="messages"),
        pytest.param({"prompt": [USER], "completion": "well"}, id="completion as text"),
        pytest.param({"prompt": "hi", "completion": [BOT]}, id="prompt as text"),
        pytest.param({"messages": [USER, BOT]}, id="one conversation"),
        pytest.param({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "well"}]}, id="gpt"),
        pytest.param({"prompt": [USER], "answer": "well"}, id="answer"),
    ],
)
def test_conversations(jsonl: Write, util: DatasetUtility, values: dict[str, Any]) -> None:
    found = made(util, jsonl({**values, "id": "a", "label": True}, {**values, "id": "b", "label": False}))
    assert [texts(util, sample)[0] for sample in samples(found).values()] == [(RENDERED, "well" + END)] * 2


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        (1.0, True),
        ("True", True),
        ("false", False),
        ("1", True),
        ("0", False),
        ("chosen", True),
        ("rejected", False),
        (" Desirable", True),
        ("undesirable", False),
    ],
)
def test_labels(jsonl: Write, util: DatasetUtility, label: Any, expected: bool) -> None:
    assert samples(made(util, jsonl(row(0, label=label), row(1))))["row 0"].labels.tolist() == [expected]


def test_labels_of_a_table_of_text(util: DatasetUtility, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,prompt,response,good\na,x,y,False\nb,z,w,true\n")
    source = RowSource(path, columns={"completion": "response", "label": "good"})
    dataset: Any = UnpairedPreferenceDataset(util, path=source)
    assert {name: sample.labels.tolist() for name, sample in samples(dataset).items()} == {"a": [False], "b": [True]}


def test_pairs_give_a_good_and_a_bad_sample_each(jsonl: Write, util: DatasetUtility) -> None:
    rows = [
        {"id": "a", "prompt": "A: ", "chosen": "yes", "rejected": "no"},
        {"id": "b", "prompt": "B: ", "pos_answers": ["1", "2"], "neg_answers": ["3", "4"]},
        {"id": "c", "prompt": "C: ", "chosen": "same", "rejected": "same"},
    ]
    dataset = made(util, jsonl(*rows))
    found = samples(dataset)
    assert {name: (texts(util, one)[0][1].removesuffix(END), bool(one.labels)) for name, one in found.items()} == {
        "a/chosen": ("yes", True),
        "a/rejected": ("no", False),
        "b/chosen": ("1", True),
        "b/rejected": ("3", False),
        "b/chosen 2": ("2", True),
        "b/rejected 2": ("4", False),
    }
    assert all(texts(util, one)[1][1].removesuffix(END) in "1234" for name, one in found.items() if name[0] == "a")
    assert dataset.report().endswith("; 1 dropped: both answers are the same")


def test_long_and_empty_rows(jsonl: Write, util: DatasetUtility) -> None:
    rows = [row(0), row(1, completion=""), row(2, completion="x" * 40), row(3, prompt="y" * 40)]
    path = jsonl(*rows)
    cut = made(util, path, max_seqlen=12)
    assert set(cut.report().split("; ")[1:]) == {
        "1 with an empty completion",
        "1 cut to 12 tokens",
        "1 dropped: the prompt alone fills 12 tokens",
    }
    for sample in samples(cut).values():
        assert all(length <= 12 for length in sample.metadata["seqlens"]["input_ids"][0])
        assert all(completion for _, completion in texts(util, sample))
    dropped = made(util, path, max_seqlen=12, overlong="drop")
    assert set(samples(dropped)) == {"row 0", "row 1"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"label": "meh"}, "key 'label': found text ('meh'), wanted true or false: whether the completion is good"),
        ({"label": 0.5}, "key 'label': found a number (0.5), wanted true or false"),
        ({"label": None}, "key 'label': found null, wanted true or false"),
        ({"label": [True]}, "key 'label': found a list of 1, wanted true or false"),
        ({"completion": 3}, "key 'completion': found a number (3), wanted text"),
        ({"prompt": [USER], "completion": [USER]}, "key 'completion': the last message is the user's, wanted the assi"),
        ({"prompt": [BOT], "completion": [BOT]}, "the chat template refuses it"),
    ],
)
def test_a_bad_row_names_itself(jsonl: Write, util: DatasetUtility, values: dict[str, Any], problem: str) -> None:
    if "refuses" in problem:
        template = str(util.tokenizer.chat_template)
        refusal = "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('roles must alternate') }}{% endif %}"
        util.tokenizer.chat_template = refusal + template
    path = jsonl(row(0), row(1, **values))
    with pytest.raises(DataError) as caught:
        made(util, path)
    assert str(caught.value).startswith(f"{path}:2: {problem}")


def test_rows_without_a_completion_or_a_label(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl({"prompt": "a", "label": True}, {"prompt": "b", "label": True})
    with pytest.raises(DataError, match=r"rows.jsonl:1: key 'completion': found no such key .*\(and 1 more row\)"):
        made(util, path)
    path = jsonl({"prompt": "a", "completion": "x", "lable": True}, row(1))
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: key 'label': found no such key .*; give dataset.columns.label=l"
    ):
        made(util, path)
    path = jsonl({"prompt": "a", "response": "x", "label": True}, {"prompt": "b", "response": "y", "label": True})
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: key 'completion': .*; give dataset.columns.completion=response"
    ):
        made(util, path)


def test_a_single_row_has_no_other_one(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(row(0))
    with pytest.raises(TooFewSamplesError) as caught:
        made(util, path)
    assert str(caught.value) == (
        f"{path}: one row is left, but each needs the completion of another row, from which the KL divergence is "
        "estimated; give two rows or more"
    )
    with pytest.raises(ConfigError, match="max_seqlen=1"):
        made(util, path, max_seqlen=1)
    with pytest.raises(ConfigError, match="max_seqlen=1"):
        UnpairedPreferenceDatasetConfig(max_seqlen=1)


def test_it_is_made_by_its_name_and_pickles(jsonl: Write, util: DatasetUtility) -> None:
    path = jsonl(row(0), row(1))
    dataset: Any = make_dataset(Dataset("unpaired_preference", {"path": path}), seed=1, tokenizer=util.tokenizer)
    assert isinstance(dataset, UnpairedPreferenceDataset)
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]
    for index in (2, -1):
        with pytest.raises(IndexError):
            dataset[index]
