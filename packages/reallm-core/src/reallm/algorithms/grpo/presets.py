"""Presets of `reallm grpo`: the settings by which published algorithms differ. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dapo": {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "drop_zero_std_groups": True,
        "oversampling": 1.5,
        "overlong_buffer": 0.2,
    },
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0},
    "rloo": {"loss_type": "dr_grpo", "baseline": "others", "scale_rewards": "none"},
    "reinforce_pp": {"loss_type": "dapo", "baseline": "batch", "scale_rewards": "batch", "num_generations": 1},
    "remax": {"loss_type": "dr_grpo", "baseline": "greedy", "scale_rewards": "none", "num_generations": 1},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "beta": 0.0,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.0},
}
"""Name of a preset -> its settings. Sources: DAPO arXiv 2503.14476, Dr. GRPO 2503.20783, RLOO 2402.14740, REINFORCE++
2501.03262, ReMax 2310.10505, GSPO 2507.18071, CISPO 2506.13585 with the bound of ScaleRL, 2510.13786.

RLOO and ReMax sum the log-probabilities of an answer's tokens. That is `loss_type=dr_grpo`, which divides the sum by a
constant."""
