"""`reallm generate` with a checkpoint: how texts end, sampling, and weights that are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.cli.main import run
from reallm.engine.real_model import ReaLModel
from tests.helpers.hf_grid import raw_config
from tests.helpers.tokenizers import tiny_tokenizer


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


def test_a_special_token_may_be_a_stop_string(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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
        "error: prompt 0: the logits of new token 1 are not finite; the weights are finite, but"
    )
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    assert run(["generate", "--model", str(tmp_path), "The fox"]) == 2
    assert "tensor 'model.norm.weight' has 1 of 32 values that are NaN or infinite" in capsys.readouterr().err
