"""Files of prompts for `reallm generate`."""

from __future__ import annotations

import pytest

from reallm.cli.generate import read_prompts
from reallm.errors import DataError


def test_prompts_from_files(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffone\n\n two\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\\nb", "id": 3}\n\n{"prompt": "c"}\n')
    assert read_prompts(tmp_path / "p.txt") == ["one", " two"]
    assert read_prompts(tmp_path / "p.jsonl") == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"prompt": "a"}\nx\n', r"p\.jsonl:2: not JSON"), ('{"text": "a"}\n', r'p\.jsonl:1: .*"prompt"'), ("[]", ":1: ")],
)
def test_a_bad_line_of_prompts_is_named(content, message, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path)
