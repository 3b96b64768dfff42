"""`reallm merge`, and `--adapter` of commands that generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reallm.cli.main import run
from reallm.config.lora import LoRAArgs
from reallm.engine.real_model import ReaLModel
from tests.helpers.hf_grid import raw_config
from tests.helpers.tokenizers import tiny_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = raw_config("gqa") | {"vocab_size": 512}
    ReaLModel.from_llama(config, seed=1).save_pretrained(tmp_path / "base", tokenizer=tiny_tokenizer())
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    model = ReaLModel.from_pretrained(base, lora=LoRAArgs(rank=4))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if name.endswith("lora_b"):
                parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(number))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def said(capsys: Any, *arguments: str | Path) -> str:
    """What a command prints; its errors too."""
    run([str(each) for each in arguments])
    return "".join(capsys.readouterr())


def test_in_place_and_merged_a_model_says_the_same(base: Path, adapter: Path, tmp_path: Path, capsys: Any) -> None:
    merged = tmp_path / "merged"
    assert f"{merged}: {base} with the adapter of {adapter} merged" in said(
        capsys, "merge", adapter, "--output", merged
    )
    tokens, bounds = torch.arange(9), torch.tensor([0, 9])
    expected = ReaLModel.from_pretrained(adapter)(tokens, bounds)
    torch.testing.assert_close(ReaLModel.from_pretrained(merged)(tokens, bounds), expected, rtol=1e-4, atol=1e-4)
    rest = ("--max-new-tokens", "6", "Say 3:")
    texts = [
        said(capsys, "generate", *model, *rest) for model in ([merged], [adapter], [base, "--adapter", adapter], [base])
    ]
    assert texts[0] == texts[1] == texts[2] != texts[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "{base}", "--output", "{new}"], "base holds no adapter (no adapter_config.json), but a whole model"),
        (["merge", "{adapter}", "--output", "{base}"], "--output {base} exists; choose another folder, or remove it"),
        (
            ["generate", "{adapter}", "--adapter", "{adapter}", "x"],
            "{adapter} holds an adapter too; give its base",
        ),
        (["generate", "{base}", "--adapter", "nowhere", "x"], "--adapter: nowhere does not exist"),
    ],
)
def test_mistakes(base: Path, adapter: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str) -> None:
    places = {"base": base, "adapter": adapter, "new": tmp_path / "new"}
    assert message.format(**places) in said(capsys, *(each.format(**places) for each in arguments))
    assert not (tmp_path / "new").exists()
