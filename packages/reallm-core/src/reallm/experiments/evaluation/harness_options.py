"""Options of the LM Evaluation Harness. Imports neither the harness nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from reallm.errors import ConfigError

INSTALL = 'pip install "reallm-core[lm-eval]"'


@dataclass(frozen=True)
class TaskOptions:
    """Tasks of the harness, and how they are posed."""

    tasks: tuple[str, ...]
    """Names of tasks or groups, patterns such as `arc_*`, or YAML files."""
    num_fewshot: int | None = None
    """Examples in each prompt; None: as many as the task says."""
    limit: int | None = None
    """Number of documents of each task, for a quick look; None: all."""
    include_path: str | None = None
    """Folder with YAML files of further tasks."""
    apply_chat_template: bool = False
    """Whether prompts are given in the form of the tokenizer's chat template."""


def check_harness() -> None:
    """Check that the harness is installed.

    Raises:
        ConfigError: it is not; says what to install.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(f"--lm-eval needs the package lm-eval; {INSTALL}")
