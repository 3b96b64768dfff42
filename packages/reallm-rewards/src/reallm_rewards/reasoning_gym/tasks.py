"""Tasks of the library reasoning-gym, by name. Imports it when it is used, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.errors import ConfigError, did_you_mean


def make_task(task: str, parameters: Mapping[str, Any], *, size: int = 1, seed: int = 1) -> Any:
    """A `ProceduralDataset` of the library.

    Args:
        task: name of the task: `basic_arithmetic`.
        parameters: fields of its configuration, without `size` and `seed`.
        size: number of entries; at least 1.
        seed: seed of the first entry; the others have the following numbers.

    Raises:
        ConfigError: the library is not installed, it has no such task, or a parameter is wrong.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError("reasoning_gym needs reasoning-gym; pip install 'reallm-rewards[reasoning-gym]'") from error
    if task not in DATASETS:
        hint = did_you_mean(task, DATASETS) or f"; there are {', '.join(sorted(DATASETS))}"
        raise ConfigError(f"task={task}: reasoning-gym has no such task{hint}")
    names = [name for name in DATASETS[task][1].__dataclass_fields__ if name not in ("size", "seed")]
    for name in parameters:
        if name not in names:
            hint = did_you_mean(name, names) or f"; it has {', '.join(names)}"
            raise ConfigError(f"parameters.{name}: the task {task} has no such parameter{hint}")
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **parameters)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"parameters: the task {task} refuses them: {error}") from error
