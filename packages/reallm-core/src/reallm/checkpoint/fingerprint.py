"""A fingerprint of a checkpoint, which tells it from others without reading all of it. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from reallm.hf.checkpoint_folder import files_of
from reallm.hf.file_names import SMALL_FILES

_SAMPLED = 1 << 20


def checkpoint_fingerprint(folder: Path) -> str:
    """SHA-256 of what generation depends on: configuration, tokenizer, and the ends and sizes of the files of weights.

    Training changes all weights, so the first and the last MiB of each file tell one checkpoint from another.

    Raises:
        CheckpointError: a file is a link that leads out of the folder.
    """
    digest = hashlib.sha256()
    for file in files_of(folder, SMALL_FILES):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    for path in files_of(folder, ("*.safetensors",)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\0".encode())
        with path.open("rb") as weights:
            digest.update(weights.read(_SAMPLED))
            weights.seek(max(0, size - _SAMPLED))
            digest.update(weights.read(_SAMPLED))
    return digest.hexdigest()
