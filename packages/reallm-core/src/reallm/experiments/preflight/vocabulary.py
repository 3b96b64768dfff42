"""Models that read each other's tokens must have the same vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from reallm.errors import ConfigError
from reallm.hf.checkpoint_folder import files_of, resolve_path
from reallm.hf.conversion.transformers_io import load_tokenizer
from reallm.hf.file_names import TOKENIZER_FILES


def check_vocabulary(key: str, path: str, vocabulary: Mapping[str, int], role: str) -> None:
    """Check that a checkpoint's tokenizer gives each token the id that it has in the vocabulary of the run.

    Either may have tokens that the other lacks, such as those that a chat template needs: a model without a row for a
    token refuses the data that has it. A checkpoint without a tokenizer, such as one of a run's state, passes.

    Args:
        key: the key of the checkpoint, such as `ref.path`.
        path: the checkpoint.
        vocabulary: token -> id, of the tokenizer of the run.
        role: the role whose tokenizer that is.

    Raises:
        ConfigError: a token has another id, or the vocabularies have no token in common.
    """
    folder = resolve_path(path, weights=False)
    if not files_of(folder, TOKENIZER_FILES):
        return
    others = load_tokenizer(folder).get_vocab()
    common = vocabulary.keys() & others.keys()
    token = min((token for token in common if vocabulary[token] != others[token]), default=None)
    why = "they have no token in common" if not common else ""
    if token is not None:
        why = f"{token!r} is {others[token]} there, and {vocabulary[token]} in that of {role}.path"
    if why:
        raise ConfigError(
            f"{key}={path}: its tokenizer has another vocabulary ({why}), so that it would read other text; take a "
            f"model with the tokenizer of {role}.path"
        )
