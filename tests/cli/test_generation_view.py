"""What `reallm generate` writes while tokens are generated."""

from __future__ import annotations

import json

from reallm.cli.generation_view import JsonView, ShownText, TextView
from reallm.generation.prompts import as_prompts
from reallm.generation.request import Completion, FinishedEvent, FinishReason, TokenEvent


def token(request_id: int, text: str, sample: int = 0) -> TokenEvent:
    return TokenEvent(request_id, sample, 0, -1.0, text)


def finished(
    request_id: int, text: str, rest: str = "", reason: FinishReason = "stop", sample: int = 0
) -> FinishedEvent:
    completion = Completion([1], [0] * len(text), text=text, finish_reason=reason, sample=sample)
    return FinishedEvent(request_id, sample, completion, rest)


def test_whitespace_at_the_ends_is_left_out_and_control_characters_are_escaped() -> None:
    shown = ShownText()
    pieces = ["\n ", " Once", " upon", "  ", "\n", "a\x1b[0m", " time", " \n"]
    assert [shown.push(piece) for piece in pieces] == ["", "Once", " upon", "", "", "  \na\\x1b[0m", " time", ""]


def test_the_first_prompt_is_written_at_once_and_the_others_in_their_order() -> None:
    written: list[str] = []

    def new() -> str:
        text = "".join(written)
        written.clear()
        return text

    view = TextView(as_prompts(["a", "b\x07\nb", "c"]), 1, written.append)
    view.show(token(1, " two"))
    assert new() == ""
    view.show(token(0, " one"))
    assert new() == "\x1b[1m> a\x1b[0m\none"
    view.show(token(2, " three"))
    view.show(finished(2, " three", reason="length"))
    assert new() == ""
    view.show(token(0, " and"))
    assert new() == " and"
    view.show(finished(0, " one and a half", " a half"))
    assert new() == " a half\n\n\x1b[1m> b\\x07\n> b\x1b[0m\ntwo"
    view.show(finished(1, " two"))
    assert new() == "\n\n\x1b[1m> c\x1b[0m\nthree\x1b[2m\n[cut after 6 tokens; --max-new-tokens N for more]\x1b[0m\n"


def test_samples_are_numbered() -> None:
    written: list[str] = []
    view = TextView(as_prompts(["a"]), 2, written.append)
    view.show(finished(0, "two", "two", sample=1))
    view.show(finished(0, "one", "one", sample=0))
    expected = "\x1b[1m> a\x1b[0m\n\x1b[2m[1 of 2]\x1b[0m\none\n\n\x1b[2m[2 of 2]\x1b[0m\ntwo\n"
    assert "".join(written) == expected


def test_what_is_interrupted_is_written_as_it_is_and_what_has_not_begun_is_not() -> None:
    prompts = as_prompts(["a", "b", "c"])
    text, lines = list[str](), list[str]()
    for view in (TextView(prompts, 1, text.append), JsonView(prompts, 1, lines.append)):
        view.show(token(1, "two"))
        for request_id, shown in ((0, ""), (1, "two"), (2, "")):
            view.show(finished(request_id, shown, reason="cancelled"))
    assert "".join(text) == "\n\x1b[1m> b\x1b[0m\ntwo\x1b[2m\n[interrupted after 3 tokens]\x1b[0m\n"
    assert [json.loads(line) for line in lines] == [
        {"prompt": "b", "completion": "two", "n_tokens": 3, "finish_reason": "cancelled"}
    ]


def test_json_has_a_line_for_each_prompt_in_order() -> None:
    lines: list[str] = []
    view = JsonView(as_prompts(["a", "b\x1b"]), 2, lines.append)
    for request_id, sample in ((1, 1), (0, 1), (1, 0)):
        view.show(finished(request_id, f"{request_id} {sample}\x1b", sample=sample))
        assert lines == []
    view.show(finished(0, "0 0", reason="length"))
    assert "\x1b" not in "".join(lines)
    assert [json.loads(line) for line in lines] == [
        {
            "prompt": prompt,
            "completions": completions,
            "n_tokens": [3, 4] if prompt == "a" else [4, 4],
            "finish_reason": reasons,
        }
        for prompt, completions, reasons in (
            ("a", ["0 0", "0 1\x1b"], ["length", "stop"]),
            ("b\x1b", ["1 0\x1b", "1 1\x1b"], ["stop", "stop"]),
        )
    ]
