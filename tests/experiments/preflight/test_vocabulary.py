"""A model that reads the tokens of another one must mean the same by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reallm.errors import ConfigError
from reallm.experiments.preflight.vocabulary import check_vocabulary
from tests.helpers.tokenizers import tiny_tokenizer


def save_tokenizer(folder: Path, swapped: tuple[str, str] | None = None) -> dict[str, int]:
    """A tokenizer's files, in which two tokens may have changed places; its vocabulary."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    if swapped:
        content = json.loads((folder / "tokenizer.json").read_text())
        vocab, (one, other) = content["model"]["vocab"], swapped
        vocab[one], vocab[other] = vocab[other], vocab[one]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return tokenizer.get_vocab()


def test_the_same_vocabulary_passes_whoever_has_more_tokens(tmp_path: Path) -> None:
    vocabulary = save_tokenizer(tmp_path)
    check_vocabulary("ref.path", str(tmp_path), vocabulary, "actor")
    check_vocabulary("ref.path", str(tmp_path), {**vocabulary, "<think>": len(vocabulary)}, "actor")
    check_vocabulary("ref.path", str(tmp_path), dict(list(vocabulary.items())[:-3]), "actor")


def test_another_id_for_a_token_is_refused(tmp_path: Path) -> None:
    one, other = sorted(token for token in tiny_tokenizer().get_vocab() if token.isalpha())[:2]
    vocabulary = save_tokenizer(tmp_path, swapped=(one, other))
    with pytest.raises(ConfigError) as found:
        check_vocabulary("reward.path", str(tmp_path), vocabulary, "actor")
    said = f"reward.path={tmp_path}: its tokenizer has another vocabulary ('{one}' is {vocabulary[other]} there, and "
    assert str(found.value).startswith(f"{said}{vocabulary[one]} in that of actor.path)")
    assert str(found.value).endswith("take a model with the tokenizer of actor.path")


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="they have no token in common"):
        check_vocabulary("ref.path", str(tmp_path), {"§§": 5}, "actor")
