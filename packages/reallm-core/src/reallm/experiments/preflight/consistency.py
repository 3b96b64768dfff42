"""Values that must be equal on all processes of a job, as text: settings, package versions, model configs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from reallm.config.training import TrainingConfig, model_args
from reallm.errors import CheckpointError
from reallm.experiments.runs.settings import flatten
from reallm.hf.checkpoint_folder import resolve_path
from reallm.hf.file_names import CONFIG_NAME
from reallm.plugins.finder import installed


def settings_and_versions(config: TrainingConfig, settings: Mapping[str, Any], roles: Sequence[str]) -> dict[str, str]:
    """Settings, versions of packages and hashes of model configs: name -> text, settings first.

    Args:
        config: configuration of the run.
        settings: all settings as nested mappings.
        roles: roles whose `config.json` is hashed.
    """
    found = {key: str(value) for key, value in flatten(settings).items()}
    found |= {"the version of Python": platform.python_version()}
    found |= {f"the version of {name}": version(name) for name in ("torch", "reallm-core")}
    found |= {f"the version of {name}": number for name, number in _plugin_versions().items()}
    for role in roles:
        with suppress(CheckpointError):  # a resumed run may not need it; if it does, loading reports that it is missing
            path = resolve_path(model_args(config, role).path) / CONFIG_NAME
            if path.is_file():
                found[f"the content of {path}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def _plugin_versions() -> dict[str, str]:
    """Distribution -> version, for all distributions that offer plugins."""
    entries, _ = installed()
    return dict(sorted((entry.distribution, entry.version) for entry in entries))
