"""Prompts of files: what is read, what is refused, and the tokens they become."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from reallm.errors import DataError
from reallm.generation.prompts import PromptEncoder, as_prompts, read_prompts
from tests.helpers.tokenizers import tiny_tokenizer


def test_prompts_are_lines_of_a_text_or_rows(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffone\r\n\n two\u2028three\n".encode())
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\\nb", "id": 3}\n\n{"prompt": "c"}\n')
    (tmp_path / "p.csv").write_text("prompt,id\na,1\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.txt")] == ["one", " two\u2028three"]
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.txt.gz")] == ["one"]
    found = list(read_prompts(tmp_path / "p.jsonl"))
    assert [prompt.text for prompt in found] == ["a\nb", "c"]
    assert [prompt.row.index for prompt in found] == [0, 1]
    assert found[0].row.values == {"prompt": "a\nb", "id": 3}
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.csv")] == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\nx\n', r"p\.jsonl:2: invalid JSON"),
        ('{"text": "a"}\n', r"p\.jsonl:1: found no such key \(keys: 'text'\), wanted 'prompt' or 'messages'"),
        ("[]", "p.jsonl: has no prompts"),
        ("", "p.jsonl: has no prompts"),
        ("3\n", r"p\.jsonl:1: found a number \(3\), wanted an object"),
        ('{"prompt": 3}', r"p\.jsonl:1: key 'prompt': found a number \(3\), wanted text"),
        ('{"prompt": ""}', r"p\.jsonl:1: the prompt is empty"),
        ('{"prompt": "a", "messages": []}', r"p\.jsonl:1: has both 'prompt' and 'messages'"),
        ('{"messages": [{"role": "user"}]}', r"p\.jsonl:1: key 'messages\[0\]\.content': found no such key"),
    ],
)
def test_a_wrong_row_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_prompts(path))


def test_a_file_that_does_not_exist_or_is_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"prompt\.txt: no such file; did you mean 'prompts\.txt'\?"):
        list(read_prompts(tmp_path / "prompt.txt"))
    (tmp_path / "p.pdf").write_text("a")
    with pytest.raises(DataError, match=r"p\.pdf: unknown extension '\.pdf', wanted \.jsonl"):
        list(read_prompts(tmp_path / "p.pdf"))


def test_texts_are_continued_and_messages_are_answered(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    encode = PromptEncoder(tokenizer, "model")
    [text], [question] = as_prompts(["Hi"]), as_prompts(["Hi"], chat=True)
    assert encode(text) == tokenizer.encode("Hi")
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert encode(question) == tokenizer.encode(expected, add_special_tokens=False)
    messages = '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]'
    for key in ("messages", "prompt"):
        (tmp_path / "p.jsonl").write_text(f'{{"{key}": {messages}}}\n')
        [row] = read_prompts(tmp_path / "p.jsonl")
        assert row.text == "Hi"
        assert tokenizer.decode(encode(row)) == f"<|im_start|>system\nBe brief.<|im_end|>\n{expected}"


def test_what_a_chat_template_cannot_write_is_named(tmp_path: Path) -> None:
    answered = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "p.jsonl").write_text(answered)
    [row] = read_prompts(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match=r"p\.jsonl:1: the last message is the assistant's"):
        PromptEncoder(tiny_tokenizer(), "model")(row)
    with pytest.raises(DataError, match=r"p\.jsonl:1: has messages, and the tokenizer in 'model' has no chat template"):
        PromptEncoder(tiny_tokenizer(chat_template=None), "model")(row)


def test_an_empty_or_broken_text_is_named() -> None:
    with pytest.raises(DataError, match="prompt 2: the prompt is empty"):
        as_prompts(["a", ""])
    with pytest.raises(DataError, match="prompt 1: key 'prompt': found half of a surrogate pair"):
        as_prompts(["\udc80"])
