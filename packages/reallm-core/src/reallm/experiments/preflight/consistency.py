"""What all processes of a job must have in common, as text to compare: settings, packages, models."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points, version
from typing import Any

from reallm.config.training import TrainingConfig, model_args
from reallm.errors import CheckpointError
from reallm.experiments.checkpointing.resume import leaves
from reallm.hf.checkpoint_folder import resolve_path
from reallm.hf.file_names import CONFIG_NAME
from reallm.plugins.finder import GROUP


def settings_and_versions(config: TrainingConfig, settings: Mapping[str, Any], roles: Sequence[str]) -> dict[str, str]:
    """Name -> value, settings first.

    Args:
        config: of the run.
        settings: all of them, as nested mappings.
        roles: whose models' `config.json` counts too.
    """
    found = {key: str(value) for key, value in leaves(settings)}
    found |= {"the version of Python": platform.python_version()}
    found |= {f"the version of {name}": version(name) for name in ("torch", "reallm-core")}
    found |= {f"the version of {name}": number for name, number in _plugins().items()}
    for role in roles:
        with suppress(CheckpointError):  # a resumed run has its own copy; whoever needs it will say that it is gone
            path = resolve_path(model_args(config, role).path) / CONFIG_NAME
            if path.is_file():
                found[f"the content of {path}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def _plugins() -> dict[str, str]:
    """The distributions that offer plugins, with their versions."""
    dists = [point.dist for point in entry_points(group=GROUP)]
    return dict(sorted((dist.name, dist.version) for dist in dists if dist is not None))
