"""`reallm generate` with a checkpoint: streaming, how texts end, sampling, files, a conversation, and Ctrl-C."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.cli.main import run
from reallm.engine.real_model import ReaLModel
from reallm.generation.engine import GenerationEngine
from tests.helpers.hf_grid import raw_config
from tests.helpers.tokenizers import tiny_tokenizer
from tests.helpers.waiting import wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    config = {**raw_config("gqa"), "vocab_size": len(tokenizer), "initializer_range": 0.3}
    ReaLModel.from_llama(config, seed=4).save_pretrained(folder, tokenizer=tokenizer)
    return folder


def completions(model: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    assert run(["generate", "--model", str(model), "--json", "--max-new-tokens", "12", *options, "The fox"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_text_ends_before_a_stop_string_even_inside_a_token(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    [free] = ReaLModel.from_pretrained(model).generate(["The fox"], tokenizer=tokenizer, max_new_tokens=12)
    pieces = [tokenizer.decode([token]) for token in free.token_ids]
    at = next(i for i, piece in enumerate(pieces) if i and len(piece) > 2 and piece.isascii())
    stop = pieces[at][1]
    assert free.text is not None
    expected = free.text[: free.text.index(stop)]
    [found] = completions(model, capsys, "--stop", "never", "--stop", stop)
    assert found["completion"] == expected
    assert found["finish_reason"] == "stop"
    assert found["n_tokens"] <= at + 1


def test_a_special_token_may_be_a_stop_string(model: Path) -> None:
    tokenizer = tiny_tokenizer()
    loaded = ReaLModel.from_pretrained(model)
    [free] = loaded.generate(["The fox"], tokenizer=tokenizer, max_new_tokens=4)
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(free.token_ids[2])]})
    stop = tokenizer.convert_ids_to_tokens(free.token_ids[2])
    [ended] = loaded.generate(["The fox"], tokenizer=tokenizer, max_new_tokens=4, stop=[stop])
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[2]) + 1]


def test_top_p_and_top_k_sample_without_a_temperature(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = ReaLModel.from_pretrained(model)
    greedy = completions(model, capsys)
    assert greedy == completions(model, capsys, "--temperature", "0") == completions(model, capsys, "--seed", "7")
    for option, value in (("top_p", 0.99), ("top_k", 50)):
        sampled = completions(model, capsys, f"--{option.replace('_', '-')}", str(value))
        assert sampled != greedy
        assert sampled == completions(model, capsys, f"--{option.replace('_', '-')}", str(value), "--temperature", "1")
        [from_library] = loaded.generate(["The fox"], max_new_tokens=12, **{option: value})
        assert from_library.text == sampled[0]["completion"]


def test_logits_that_are_not_finite_are_an_error(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] *= 1e38  # finite, but products with it are not
    save_file(tensors, tmp_path / "model.safetensors")
    assert run(["generate", "--model", str(tmp_path), "The fox"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith(
        "error: prompt 1: the logits of new token 1 are not finite; the weights are finite, but"
    )
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    assert run(["generate", "--model", str(tmp_path), "The fox"]) == 2
    assert "tensor 'model.norm.weight' has 1 of 32 values that are NaN or infinite" in capsys.readouterr().err


def test_the_model_may_be_the_first_argument(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--max-new-tokens", "4"]
    assert run(["generate", str(model), "The fox", "A dog", *options]) == 0
    out = capsys.readouterr().out
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["The fox", "A dog"]
    assert run(["generate", "--model", str(model), "The fox", "A dog", *options]) == 0
    assert capsys.readouterr().out == out


def test_text_is_written_while_it_is_generated(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, written = GenerationEngine.step, list[str]()

    def watched(engine: GenerationEngine) -> Any:
        written.append(capsys.readouterr().out)
        return step(engine)

    monkeypatch.setattr(GenerationEngine, "step", watched)
    arguments = ["generate", str(model), "The fox", "A dog", "--n", "2", "--max-new-tokens", "12", "--seed", "3"]
    assert run(arguments) == 0
    written.append(capsys.readouterr().out)
    assert sum(map(bool, written)) > 4
    assert written[1].startswith("> The fox\n[1 of 2]\n")
    monkeypatch.undo()
    assert run(arguments) == 0
    assert capsys.readouterr().out == "".join(written)
    [fox, dog] = [line for line in "".join(written).splitlines() if line.startswith(">")]
    assert (fox, dog) == ("> The fox", "> A dog")


def press_ctrl_c(monkeypatch: pytest.MonkeyPatch, *, before_step: int) -> None:
    """Send this process SIGINT before a step of the engine, of which the first is 0."""
    step, steps = GenerationEngine.step, itertools.count()

    def interrupted(engine: GenerationEngine) -> Any:
        if next(steps) == before_step:
            os.kill(os.getpid(), signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(GenerationEngine, "step", interrupted)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_ctrl_c_ends_with_what_was_generated(
    as_json: bool, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    press_ctrl_c(monkeypatch, before_step=5)
    arguments = ["generate", str(model), "The fox", "A dog", "--min-new-tokens", "100", *["--json"] * as_json]
    assert run(arguments) == 130
    printed = capsys.readouterr()
    assert printed.err.endswith("\ninterrupted\n")
    assert "Traceback" not in printed.err
    if as_json:
        rows = [json.loads(line) for line in printed.out.splitlines()]
        assert [(row["prompt"], row["n_tokens"], row["finish_reason"]) for row in rows] == [
            ("The fox", 6, "cancelled"),
            ("A dog", 6, "cancelled"),
        ]
        assert all(row["completion"] for row in rows)
    else:
        assert printed.out.count("[interrupted after 6 tokens]") == 2


def test_a_file_is_completed_as_if_it_had_not_been_killed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"The fox {number}", "id": number} for number in range(600)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(output: str) -> list[str]:
        options = ["--max-new-tokens", "24", "--temperature", "1.5"]
        return ["generate", str(model), "--prompts", str(tmp_path / "in.jsonl"), "--output", output, *options]

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert run(arguments(str(whole))) == 0
    assert [
        {"prompt": row["prompt"], "id": row["id"]} for row in map(json.loads, whole.read_text().splitlines())
    ] == rows
    partial = tmp_path / "killed.jsonl.partial" / "rows.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "reallm", *arguments(str(killed))])
    wait_until(lambda: (partial.exists() and partial.stat().st_size) or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    n_done = partial.read_bytes().count(b"\n")
    assert 0 < n_done < len(rows)
    capsys.readouterr()
    assert run(arguments(str(killed))) == 0
    printed = capsys.readouterr()
    assert f"{n_done} of 600 rows are done; going on with the next" in printed.err
    assert printed.out == f"{killed}: 600 rows\n"
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "killed.jsonl", "whole.jsonl"]


def test_ctrl_c_keeps_the_rows_of_a_file_and_says_how_to_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("The fox\nA dog\n")
    press_ctrl_c(monkeypatch, before_step=3)
    output = tmp_path / "out.jsonl"
    assert run(["generate", str(model), "--prompts", str(tmp_path / "in.txt"), "--output", str(output)]) == 130
    error = capsys.readouterr().err
    assert f"0 of 2 rows are done, and kept in {output}.partial; the same command goes on with the next" in error
    assert not output.exists()


def test_a_conversation_on_a_terminal(model: Path) -> None:
    """The real thing: a process with a terminal, in which Ctrl-C is a key."""
    take_terminal = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    program = f"{take_terminal}; from reallm.cli.main import main; main()"
    options = ["--min-new-tokens", "5000", "--max-new-tokens", "5000"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, "generate", str(model), "--chat", *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = bytearray()

    def shown(text: str, *, after: int = 0) -> bool:
        if select.select([ours], [], [], 0.05)[0]:
            seen.extend(os.read(ours, 4096))
        return text.encode() in seen[after:]

    try:
        wait_until(lambda: shown("> "))
        assert b"Ctrl-C ends an answer, Ctrl-D leaves" in seen
        os.write(ours, b"hello\n")
        wait_until(lambda: shown("hello\r\n"))
        begun = len(seen)
        wait_until(lambda: shown("", after=begun) and len(seen) > begun + 20)
        os.write(ours, b"\x03")
        wait_until(lambda: shown("[interrupted after", after=begun))
        wait_until(lambda: shown("\r\n> ", after=begun))
        asked = len(seen)
        os.write(ours, b"/sytem\n")
        wait_until(lambda: shown("did you mean '/system'?", after=asked))
        os.write(ours, b"\x04")
        wait_until(lambda: process.poll() is not None)
        assert process.returncode == 0
        assert b"Traceback" not in seen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
