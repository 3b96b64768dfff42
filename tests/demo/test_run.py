"""`reallm demo`: what it makes and shows, in a few steps; that it learns in full length is for its own environment."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import transformers
from rich.console import Console

from reallm.demo.rows import demo_rows
from reallm.demo.run import run_demo
from reallm.demo.tokenizer import byte_tokenizer
from reallm.errors import PluginError, UnknownNameError
from reallm.plugins import registry


def test_it_shows_and_leaves_what_a_newcomer_wants_to_see(tmp_path: Path) -> None:
    printed = io.StringIO()
    result = run_demo(tmp_path, steps=3, console=Console(file=printed, width=100))
    output = printed.getvalue()
    for expected in (
        "step 3/3", "train/loss", "⠉", "Spell", "What is reallm?", "before", "after", "questions it has never seen",
        f'AutoModelForCausalLM.from_pretrained("{result.checkpoint}")', str(result.run_dir / "loss.png"),
    ):  # fmt: skip
        assert expected in output, expected
    assert (result.run_dir / "loss.png").is_file()
    assert (
        result.metrics["eval/loss"]
        < json.loads((result.run_dir / "metrics.jsonl").read_text().splitlines()[0])["eval/loss"]
    )
    assert result.checkpoint is not None
    assert transformers.AutoModelForCausalLM.from_pretrained(result.checkpoint).config.model_type == "llama"
    assert transformers.AutoTokenizer.from_pretrained(result.checkpoint).eos_token == "<|end|>"


def test_without_the_plugins_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(kind: str, name: str) -> None:
        raise UnknownNameError(f"no {kind} '{name}'")

    monkeypatch.setattr(registry, "get", nothing)
    monkeypatch.setattr(registry, "offers", lambda kind: {})
    with pytest.raises(PluginError, match=r"pip install reallm-datasets reallm-hf-llama$"):
        run_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_any_family_that_has_such_models_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = registry.offers
    families = {name: offers("family")[name] for name in ("gemma", "gpt2", "mistral")}  # two have no such models
    monkeypatch.setattr(registry, "offers", lambda kind: families if kind == "family" else offers(kind))
    result = run_demo(tmp_path, steps=1, console=Console(file=io.StringIO()))
    assert result.checkpoint is not None
    assert transformers.AutoConfig.from_pretrained(result.checkpoint).model_type == "mistral"


def test_rows_are_the_same_every_time_and_none_is_both_trained_and_held_out() -> None:
    rows = demo_rows(1)
    assert rows == demo_rows(1)
    assert rows != demo_rows(2)
    trained = {row["prompt"] for row in rows.train}
    assert not trained & {row["prompt"] for row in rows.valid}
    assert {"Spell", "Shout", "What"} == {row["prompt"].split()[0] for row in rows.valid}
    assert trained & {row["prompt"] for row in rows.shown}
    assert {row["prompt"] for row in rows.shown} & {row["prompt"] for row in rows.valid}


def test_the_tokenizer_has_a_token_for_each_byte_and_one_for_the_end(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Spell größe 日本.\n  two  spaces ,x"
    ids = tokenizer.encode(text)
    assert len(tokenizer) == 257
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
