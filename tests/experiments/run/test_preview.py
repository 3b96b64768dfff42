"""`reallm preview`: the first rows as training gets them, with the reason for those that it does not get."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reallm.cli.main import run
from reallm.data.datasets import Dataset, make_dataset
from reallm.data.preview.preview import N_MEASURED, Preview, preview
from reallm.data.row_sources import RowSource
from reallm.errors import DataError
from tests.helpers.tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS = [
    {"prompt": "Say 0:", "answer": " The quick"},
    {"prompt": "Say 1:", "answer": " The quick brown fox jumps over the lazy dog."},
    {"prompt": "0123456789" * 3, "answer": " x"},
    {"prompt": "Say 3:", "answer": " a"},
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[dict[str, Any]]], RowSource]:
    """Writes rows to a file, and returns it as a source."""

    def write_rows(rows: list[dict[str, Any]]) -> RowSource:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return RowSource(path)

    return write_rows


def preview_of(name: str, n: int, **args: Any) -> Preview:
    return preview(Dataset(name, args), n, seed=1, tokenizer=TOKENIZER)


def text(row: Any) -> str:
    (sequence,) = row.sequences
    return "".join(token.text for token in sequence.tokens)


def test_rows_come_in_the_order_of_the_file_with_their_places(write):
    source = write(ROWS)
    found = preview_of("prompt_answer", 2, path=source)
    assert [row.place for row in found.rows] == [f"{source.path}:1", f"{source.path}:2"]
    assert [text(row) for row in found.rows] == [
        "Say 0: The quick<|im_end|>",
        "Say 1: The quick brown fox jumps over the lazy dog.<|im_end|>",
    ]


def test_the_tokens_are_those_of_the_samples(write):
    source = write(ROWS)
    dataset = Dataset("prompt_answer", {"path": source, "max_seqlen": 16})
    samples = make_dataset(dataset, seed=1, tokenizer=TOKENIZER)
    by_id = {samples[i].metadata["ids"][0]: samples[i] for i in range(len(samples))}
    found = preview(dataset, 9, seed=1, tokenizer=TOKENIZER)
    kept = [row for row in found.rows if row.dropped is None]
    assert {row.id for row in kept} == set(by_id)
    for row in kept:
        tokens = row.sequences[0].tokens
        assert [token.id for token in tokens] == by_id[row.id]["input_ids"].tolist()
        assert [token.is_trained for token in tokens] == by_id[row.id]["loss_mask"].tolist()
    assert found.lengths == tuple(len(samples[i]["input_ids"]) for i in range(len(samples)))
    assert found.n_trained == sum(int(sample["loss_mask"].sum()) for sample in by_id.values())


def test_what_is_cut_is_counted_and_what_is_dropped_says_why(write):
    source = write(ROWS)
    whole = [len(row.sequences[0].tokens) for row in preview_of("prompt_answer", 4, path=source).rows]
    found = preview_of("prompt_answer", 4, path=source, max_seqlen=12)
    assert [row.dropped for row in found.rows] == [None, None, "the prompt alone fills 12 tokens", None]
    assert [one.n_cut for row in found.rows for one in row.sequences] == [max(0, whole[0] - 12), whole[1] - 12, 0]
    dropped = preview_of("prompt_answer", 2, path=source, max_seqlen=12, overlong="drop").rows[1]
    assert (dropped.sequences, dropped.dropped) == ((), "longer than 12 tokens")


def test_padding_is_shown_and_not_counted_as_cut(write):
    found = preview_of("prompt_answer", 1, path=write(ROWS), max_seqlen=64, pad_to_max_length=True)
    (sequence,) = found.rows[0].sequences
    assert len(sequence.tokens) == 64
    assert sequence.n_cut == 0
    assert text(found.rows[0]).startswith("Say 0: The quick<|im_end|><pad>")
    assert text(found.rows[0]).endswith("<pad><pad>")


def test_if_no_row_is_left_each_says_why(write):
    found = preview_of("prompt_answer", 2, path=write(ROWS), max_seqlen=3)
    assert [row.dropped for row in found.rows] == ["the prompt alone fills 3 tokens"] * 2
    assert "no sample is left of 4 rows" in found.report
    assert found.lengths == ()


def test_turns_of_a_conversation_are_apart(write):
    turns = [("user", "hi"), ("assistant", "well"), ("user", "more"), ("assistant", "bye")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (sequence,) = preview_of("prompt_answer", 1, path=write([row])).rows[0].sequences
    assert ["".join(token.text for token in sequence.tokens[start:end]) for start, end in sequence.turns] == [
        "well<|im_end|>",
        "bye<|im_end|>",
    ]


def test_rows_of_another_form_are_previewed(write):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "well"}]
    source = write([{"conversations": turns}])
    (row,) = preview_of("prompt_answer", 1, path=source).rows
    assert text(row) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nwell<|im_end|>"
    source = write([{"question": "Who?", "reply": " Me."}])
    columns = {"prompt": "question", "answer": "reply"}
    (row,) = preview_of("prompt_answer", 1, path=RowSource(source.path, columns=columns)).rows
    assert text(row) == "Who? Me.<|im_end|>"


def test_pairs_show_both_answers(write):
    rows = [{"prompt": "Say:", "chosen": " The fox", "rejected": " the dog"}]
    (row,) = preview_of("rw_pair", 1, path=write([{**rows[0], "margin": 2}])).rows
    chosen, rejected = row.sequences
    assert (chosen.name, rejected.name) == ("chosen", "rejected")
    assert "".join(token.text for token in chosen.tokens if token.is_trained) == " The fox<|im_end|>"
    assert row.notes == ("margin 2",)


def test_a_prompt_that_is_in_both_answers_is_shown_as_the_prompt(write):
    rows = [{"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}]
    found = preview_of("rw_pair", 1, path=write(rows))
    chosen = found.rows[0].sequences[0]
    prompt = "".join(token.text for token in chosen.tokens[: chosen.n_prompt])
    assert prompt == "\n\nHuman: hi\n\nAssistant:"
    assert found.report.endswith("; 1 with a prompt that both answers begin with")


def test_a_pair_that_is_dropped_says_why(write):
    rows = [{"prompt": "Say:", "chosen": "a", "rejected": "a"}, {"prompt": "Say:", "chosen": "a", "rejected": "b"}]
    found = preview_of("rw_pair", 2, path=write(rows))
    assert [row.dropped for row in found.rows] == ["both answers are the same; without a pair left", None]


def test_completions_are_shown_with_those_of_other_rows(write):
    rows = [
        {"prompt": "A:", "completion": " yes", "label": True},
        {"prompt": "B:", "completion": " no no no no no no", "label": False},
        {"prompt": "C:" * 20, "completion": " no", "label": False},
        {"id": "d", "prompt": "D:", "chosen": " x", "rejected": " y"},
    ]
    found = preview_of("unpaired_preference", 3, path=write(rows[:3]), max_seqlen=12)
    first, second, third = found.rows
    assert [one.name for one in first.sequences] == ["good completion", "completion of another row"]
    assert [one.name for one in second.sequences] == ["bad completion", "completion of another row"]
    assert second.sequences[0].n_cut > 0
    assert first.sequences[0].n_cut == 0
    assert third.dropped == "the prompt alone fills 12 tokens"
    assert second.place.endswith("rows.jsonl:2")
    pairs = [{**rows[3], "id": name} for name in "de"]
    (row,) = preview_of("unpaired_preference", 1, path=write(pairs)).rows
    assert [one.name for one in row.sequences[::2]] == ["good completion", "bad completion"]
    with pytest.raises(DataError, match=r"rows.jsonl: one row is left, .*; give two rows or more"):
        preview_of("unpaired_preference", 1, path=write(rows[:1]))


def test_prompts_show_their_columns(write):
    messages = [{"role": "user", "content": "2+2?"}]
    rows = [{"prompt": messages, "answer": "4", "level": 2}]
    (row,) = preview_of("prompt", 1, path=write(rows)).rows
    assert text(row) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert row.notes == ('answer="4"', "level=2")


def test_prompts_that_are_cut_lose_their_beginning(write):
    found = preview_of("prompt", 4, path=write(ROWS), max_prompt_len=8, overlong="truncate")
    (sequence,) = found.rows[2].sequences
    assert sequence.cut_at == "start"
    assert sequence.n_cut == len(TOKENIZER.encode(ROWS[2]["prompt"])) - 8


def test_of_many_rows_only_the_first_are_read(write, monkeypatch):
    source = write([{"prompt": f"Say {i}:", "answer": " a"} for i in range(N_MEASURED + 5)])
    with Path(source.path).open("a") as file:
        file.write("not JSON\n")
    found = preview_of("prompt_answer", 1, path=source)
    assert not found.is_whole
    assert (found.n_measured, len(found.lengths)) == (N_MEASURED, N_MEASURED)
    assert found.report.startswith(f"{source.path}, first 1,000 rows: 1,000 rows -> 1,000 samples, ")


def test_a_wrong_row_has_its_place_in_the_file(write):
    source = write([ROWS[0], {"prompt": "x"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: key 'answer': found no such key \(keys: 'prompt'\)"):
        preview_of("prompt_answer", 1, path=source)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: key 'answer': found no such key \(keys: 'prompt'\)"):
        preview_of("prompt_answer", 2, path=source)


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command line in a folder with a tokenizer and rows; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    TOKENIZER.save_pretrained("tokenizer")
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def reallm(*arguments: str) -> tuple[int, str, str]:
        code = run([arguments[0], "model.path=tokenizer", "dataset.train_path=train.jsonl", *arguments[1:]])
        return (code, *capsys.readouterr())

    return reallm


def test_a_tokenizer_is_enough(command):
    code, out, err = command("preview", "-n", "2", "optimizer.lr=1e-5")
    assert (code, err) == (0, "")
    assert out.count(" tokens, ") >= 3
    assert "⟦ The quick<|im_end|>⟧" in out
    assert command("sft", "--preview", "2", "optimizer.lr=1e-5") == (0, out, "")
    assert not Path("runs").exists()


@pytest.mark.parametrize("given", ["0", "-1", "epochs=1", "many"])
def test_a_preview_is_of_a_number_of_rows(command, given):
    message = f"error: --preview {given}: must be a number of rows, such as --preview 3\n"
    assert command("sft", "--preview", given) == (2, "", message)


def test_a_page_and_json(command):
    assert command("preview", "--html", "a.html") == (0, "written: a.html\n", "")
    assert "<!doctype html>" in Path("a.html").read_text()
    code, out, _ = command("preview", "--json")
    found = json.loads(out)
    assert code == 0
    assert [len(row["sequences"]) for row in found["rows"]] == [1, 1, 1]
    (sequence,) = found["rows"][0]["sequences"]
    assert "".join(token["text"] for token in sequence["tokens"]).endswith("<|im_end|>")
    assert len(sequence["tokens"]) == sequence["n_tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "valid"], "there is no validation data to preview; give dataset.valid_path"),
        (["--split", "vald"], "--split vald: must be train or valid; did you mean 'valid'?"),
        (["--html", "a.txt"], "--html a.txt: the name must end in .html"),
        (["dataset.max_seqlen=1"], "dataset.max_seqlen=1 must be a whole number, at least 2"),
        (["model.path=elsewhere"], "model.path: elsewhere does not exist"),
        (["--algorithm", "stf"], "no installed plugin offers the algorithm 'stf'; did you mean 'sft'?"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, message):
    code, out, err = command("preview", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
