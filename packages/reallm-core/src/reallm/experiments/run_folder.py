"""Where a run writes: `config.yaml`, `metrics.jsonl`, `checkpoints/step-000100/`, `loss.png`, `summary.json`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from reallm.data.files import atomic_write
from reallm.errors import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of one run."""

    path: Path

    @classmethod
    def create(cls, output_dir: str | Path, name: str | None, default_prefix: str) -> RunFolder:
        """Make `output_dir/name`, or `output_dir/<prefix>-<date>-<time>` without a name.

        Raises:
            ConfigError: the folder exists and is not empty, or cannot be made.
        """
        parent = Path(output_dir)
        stem = name or f"{default_prefix}-{datetime.now():%Y%m%d-%H%M%S}"
        path = parent / stem
        try:
            number = 2
            while name is None and path.exists():  # two runs in one second
                path = parent / f"{stem}_{number}"
                number += 1
            if path.exists() and any(path.iterdir()):
                raise ConfigError(f"run folder {path} exists and is not empty; give another name=, or remove it")
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run folder {path}: {error.strerror}; give another output_dir="
            ) from error
        return cls(path)

    def remove_if_empty(self) -> None:
        """Leave nothing behind if nothing was written."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @property
    def metrics(self) -> Path:
        """All metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def plot(self) -> Path:
        """The loss curves."""
        return self.path / "loss.png"

    @property
    def last_checkpoint(self) -> Path:
        """A link to the newest checkpoint."""
        return self.path / "checkpoints" / "last"

    def checkpoint(self, step: int) -> Path:
        """The HuggingFace folder of the model after `step`."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration; `--config` reads it back."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        with atomic_write(self.path / "config.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what came out of the run."""
        with atomic_write(self.path / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    def point_last_at(self, checkpoint: Path) -> None:
        """Let `checkpoints/last` lead to `checkpoint`; left out where the file system has no links."""
        link = self.last_checkpoint
        temporary = link.with_name(".last")
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(checkpoint.name, target_is_directory=True)
            temporary.replace(link)
        except OSError:
            temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Settings as mappings, lists and values that YAML and JSON know; anything else, such as a function, as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
