"""`reallm serve` with a checkpoint, from its first line to its exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.cli.main import run
from tests.helpers.running_server import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    made, tokenizer = tiny_model()
    made.save_pretrained(folder, dtype="float32", tokenizer=tokenizer)
    return folder


class Served:
    """`reallm serve` in this process, used from another thread and ended by a signal."""

    def __init__(self, capfd: pytest.CaptureFixture[str], use: Callable[[str], None], number: signal.Signals) -> None:
        self._capfd, self._use, self._number = capfd, use, number
        self.out = self.err = ""
        self._error: BaseException | None = None

    def run(self, *arguments: str) -> int:
        """The exit code."""
        has_ended = threading.Event()
        using = threading.Thread(target=self._wait_and_use, args=(has_ended,))
        using.start()
        code = run(["serve", *arguments])
        has_ended.set()
        using.join()
        self._read()
        if self._error is not None:
            raise self._error
        return code

    def _wait_and_use(self, has_ended: threading.Event) -> None:
        while "Ctrl-C stops the server" not in self.out:
            if has_ended.wait(0.01):
                return
            self._read()
        try:
            self._use(re.findall(r"http://\S+(?=/v1:)", self.out)[0])
        except BaseException as error:
            self._error = error
        finally:
            os.kill(os.getpid(), self._number)

    def _read(self) -> None:
        out, err = self._capfd.readouterr()
        self.out, self.err = self.out + out, self.err + err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_says_what_it_serves_answers_and_stops_at_a_signal(
    model: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    def use(url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            assert client.completions.create(model="tiny", prompt="The fox", max_tokens=3).choices

    served = Served(capfd, use, number)
    assert served.run(str(model), "--port", "0", "--device", "cpu", "--kv-cache-tokens", "1024") == code
    greeting, *_, example, body, _, _, access = served.out.splitlines()
    assert re.fullmatch(
        r"serving 'tiny' at http://127.0.0.1:\d+/v1: [\d.]+K parameters, float32 on cpu, context of 1,024 tokens",
        greeting,
    )
    assert re.fullmatch(
        r"  curl http://127.0.0.1:\d+/v1/chat/completions -H 'Content-Type: application/json' \\", example
    )
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert (
        body.removeprefix("    -d ") == f"'{json.dumps({'messages': messages, 'temperature': 0, 'max_tokens': 100})}'"
    )
    assert re.fullmatch(r"POST /v1/completions 200: 2 prompt tokens, 3 new tokens in [\d.]+ s, [\d.]+ tokens/s", access)
    assert served.err == ("\ninterrupted\n" if code else "")


def test_weights_that_are_not_finite_are_found_before_anything_is_served(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    assert run(["serve", str(tmp_path), "--port", "0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert "tensor 'model.norm.weight' has 1 of 32 values that are NaN or infinite" in line


def test_an_address_that_others_may_reach_is_warned_of_unless_there_is_a_key(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--model",
        str(model),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--name",
        "mine",
        "--kv-cache-tokens",
        "512",
    ]

    def use(url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            assert client.models.retrieve("mine").id == "mine"

    served = Served(capfd, use, signal.SIGTERM)
    assert served.run(*arguments) == 0
    assert served.err == "warning: other machines may reach 0.0.0.0, and no API key is asked for (--api-key)\n"
    monkeypatch.setenv("REALLM_API_KEY", "secret")
    served = Served(capfd, use, signal.SIGTERM)
    assert served.run(*arguments) == 0
    assert served.err == ""
