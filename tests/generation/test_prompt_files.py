"""Completions of a file of prompts: order, columns, and going on after a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reallm.errors import DataError
from reallm.generation.completion_file import CompletionFile, partial_folder
from reallm.generation.config import GenerationConfig
from reallm.generation.prompt_files import check_prompts, complete_prompts
from reallm.generation.prompts import PromptEncoder, read_prompts
from tests.helpers.fake_engine import FakeEngine, as_engine
from tests.helpers.tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTINGS = {"model": "a", "weights": "1", "temperature": 0.7, "stop": ("a",)}
N_ROWS = 40


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"id": number, "prompt": f"Tell me {number}.", "tags": ["é", None]} for number in range(N_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def complete(
    prompts: Path,
    output: Path,
    engine: FakeEngine | None = None,
    *,
    settings: dict[str, Any] = SETTINGS,
    overwrite: bool = False,
    stop_after: int = 10**9,
    **fields: Any,
) -> bool:
    engine = engine or FakeEngine(TOKENIZER)
    steps: Iterator[int] = iter(range(10**9))
    with CompletionFile.open(output, settings, overwrite=overwrite) as file:
        done = complete_prompts(
            read_prompts(prompts),
            file,
            as_engine(engine),
            PromptEncoder(TOKENIZER, "model"),
            GenerationConfig(max_new_tokens=5, **fields),
            stopped=lambda: next(steps) >= stop_after,
            on_progress=lambda n_rows, n_tokens: None,
        )
        if done:
            file.finish()
    return done


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_have_their_order_their_columns_and_the_completion(prompts: Path, tmp_path: Path) -> None:
    engine = FakeEngine(TOKENIZER)
    assert complete(prompts, tmp_path / "out.jsonl", engine)
    found = rows(tmp_path / "out.jsonl")
    assert [{key: row[key] for key in ("id", "prompt", "tags")} for row in found] == rows(prompts)
    assert [list(row)[3:] for row in found] == [["completion", "n_tokens", "finish_reason"]] * N_ROWS
    assert {row["finish_reason"] for row in found} == {"stop", "length"}
    assert [request.key for request in engine.requests] == list(range(N_ROWS))
    assert not partial_folder(tmp_path / "out.jsonl").exists()


def test_several_samples_are_lists(prompts: Path, tmp_path: Path) -> None:
    assert complete(prompts, tmp_path / "out.jsonl", n=3)
    for row in rows(tmp_path / "out.jsonl"):
        assert [len(row[key]) for key in ("completions", "n_tokens", "finish_reason")] == [3, 3, 3]
        assert "completion" not in row


def test_any_column_is_carried_along(tmp_path: Path) -> None:
    column = json.dumps({"half": "\ud83d", "é": [None, 1.5, float("nan")]})
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "a", "column": {column}}}\n' * 2)
    first_row_is_short = FakeEngine(TOKENIZER, length=lambda request: 1 if request.key == 0 else 5)
    assert not complete(tmp_path / "in.jsonl", tmp_path / "out.jsonl", first_row_is_short, stop_after=2)
    assert complete(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [json.dumps(row["column"]) for row in rows(tmp_path / "out.jsonl")] == [column] * 2


def test_lines_of_a_text_become_rows(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n\ntwo\n")
    assert complete(tmp_path / "in.txt", tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows(tmp_path / "out.jsonl")] == ["one", "two"]


@pytest.mark.parametrize("half_line", [b"", b'{"id": 7, "prom', "\u00e9".encode()[:1], b"\0" * 20])
def test_after_a_kill_it_goes_on_without_repeating_or_losing_a_row(
    half_line: bytes, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reallm.generation.prompt_files.MAX_RUNNING", 8)
    assert complete(prompts, tmp_path / "whole.jsonl")
    output, partial = tmp_path / "out.jsonl", partial_folder(tmp_path / "out.jsonl") / "rows.jsonl"
    n_requests = n_kills = 0
    is_done = False
    while not is_done and n_kills < 30:
        steps = iter(range(6))

        def kill(steps: Iterator[int] = steps) -> None:
            if next(steps, None) is None:
                raise Killed

        engine = FakeEngine(TOKENIZER, on_step=kill)
        try:
            is_done = complete(prompts, output, engine)
        except Killed:
            n_kills += 1
            assert not output.exists()
            if partial.exists():
                with partial.open("ab") as file:
                    file.write(half_line)
        n_requests += len(engine.requests)
    assert 2 < n_kills < 30
    assert n_requests > N_ROWS
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_it_can_be_stopped_and_goes_on(prompts: Path, tmp_path: Path) -> None:
    assert complete(prompts, tmp_path / "whole.jsonl")
    assert not complete(prompts, tmp_path / "out.jsonl", stop_after=3)
    assert complete(prompts, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_rows_that_another_user_has_put_where_everyone_can_are_not_gone_on_with(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "everyones"
    (place / "out.jsonl.partial").mkdir(parents=True)
    place.chmod(0o1777)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(DataError, match=r"out\.jsonl\.partial belongs to .*; give another --output"):
        complete(prompts, place / "out.jsonl")


def test_a_short_row_waits_for_a_long_one_before_it(prompts: Path, tmp_path: Path) -> None:
    engine = FakeEngine(TOKENIZER, length=lambda request: 5 if request.key == 0 else 1)
    with CompletionFile.open(tmp_path / "out.jsonl", SETTINGS) as file:
        written = []
        complete_prompts(
            read_prompts(prompts),
            file,
            as_engine(engine),
            PromptEncoder(TOKENIZER, "model"),
            GenerationConfig(),
            stopped=lambda: False,
            on_progress=lambda n_rows, n_tokens: written.append((n_rows, n_tokens)),
        )
    assert written == [(0, N_ROWS), (0, 1), (0, 1), (0, 1), (N_ROWS, 1)]


def test_rows_are_read_while_they_are_needed(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reallm.generation.prompt_files.MAX_RUNNING", 6)
    engine = FakeEngine(TOKENIZER)
    assert complete(prompts, tmp_path / "out.jsonl", engine, n=2)
    assert engine.most_running == 6
    monkeypatch.setattr("reallm.generation.prompt_files.MAX_WAITING_ROWS", 2)
    engine = FakeEngine(TOKENIZER)
    assert complete(prompts, tmp_path / "again.jsonl", engine)
    assert engine.most_running == 2


def test_other_settings_another_model_or_other_prompts_are_told(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert not complete(prompts, output, stop_after=4)
    for changed, told in [
        ({"temperature": 0.1}, r"temperature=0\.7, not 0\.1"),
        ({"stop": ("b",)}, r'stop=\["a"\], not \["b"\]'),
        ({"weights": "2"}, "other weights of a"),
        ({"weights": "2", "model": "b"}, "another model, a"),
        ({"new": 1}, "new=null, not 1"),
    ]:
        with pytest.raises(DataError, match=rf"out\.jsonl\.partial were made with {told}; .* --overwrite to start"):
            complete(prompts, output, settings={**SETTINGS, **changed})
    assert not complete(prompts, output, stop_after=0, settings={**SETTINGS, "model": "moved"})
    lines = prompts.read_text().splitlines(keepends=True)
    prompts.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(DataError, match=r"in\.jsonl:1 is another row than the one that .* has the completion of"):
        complete(prompts, output)
    prompts.write_text(lines[0])
    with pytest.raises(DataError, match="the file of prompts ends before row"):
        complete(prompts, output)
    prompts.write_text("".join(lines))
    assert complete(prompts, output)


def test_a_file_that_exists_is_replaced_only_if_that_is_wanted(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    with pytest.raises(DataError, match=r"out\.jsonl exists; give another --output, or --overwrite"):
        complete(prompts, output)
    assert not complete(prompts, output, overwrite=True, stop_after=4)
    assert output.read_text() == "precious\n"
    assert complete(prompts, output)  # goes on with what was begun
    assert len(rows(output)) == N_ROWS
    assert not complete(prompts, output, overwrite=True, stop_after=4)
    assert complete(prompts, output, overwrite=True, settings={**SETTINGS, "temperature": 0.1})
    assert len(rows(output)) == N_ROWS


def test_two_processes_cannot_write_one_file(prompts: Path, tmp_path: Path) -> None:
    with (
        CompletionFile.open(tmp_path / "out.jsonl", SETTINGS),
        pytest.raises(DataError, match=r"another process is writing .*out\.jsonl"),
    ):
        complete(prompts, tmp_path / "out.jsonl")


def test_what_is_damaged_is_told(prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert not complete(prompts, output, stop_after=4)
    partial = partial_folder(output) / "rows.jsonl"
    content = partial.read_bytes()
    partial.write_bytes(b"\0" + content[1:])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the row is damaged; start afresh with --overwrite"):
        complete(prompts, output)
    partial.write_bytes(content)
    (partial_folder(output) / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"settings\.json cannot be read as JSON .*; start afresh with --overwrite"):
        complete(prompts, output)


def test_a_prompt_that_does_not_fit_is_named_after_the_rows_before_it_are_written(tmp_path: Path) -> None:
    prompts, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = ["short", "short", "long " * 20, "short"]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with pytest.raises(DataError, match=r"in\.jsonl:3 has \d+ tokens; shorten it"):
        complete(prompts, output, FakeEngine(TOKENIZER, max_prompt=30))
    assert len(rows(partial_folder(output) / "rows.jsonl")) == 2
    texts[2] = "not so long"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    assert complete(prompts, output, FakeEngine(TOKENIZER, max_prompt=30))
    assert [row["prompt"] for row in rows(output)] == texts


def test_nothing_is_left_if_no_row_was_written(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed), CompletionFile.open(tmp_path / "out.jsonl", SETTINGS):
        raise Killed
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_all_rows_are_checked_before_anything_is_generated(prompts: Path) -> None:
    seen: list[None] = []
    assert check_prompts(prompts, chat=False, on_row=lambda: seen.append(None)) == N_ROWS == len(seen)
    with prompts.open("a") as file:
        file.write('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:41: has the key 'completion', .* rename it"):
        check_prompts(prompts, chat=False, on_row=lambda: None)
