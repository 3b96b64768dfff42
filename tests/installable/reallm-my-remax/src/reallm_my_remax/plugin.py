"""What this package offers: ReMax, with the rewards of GRPO, and a graph and a policy of its own."""

import dataclasses

from reallm import Algorithm, hookimpl
from reallm.plugins import registry

REALLM_HOOK_API = "1.5"


@hookimpl
def reallm_algorithms() -> dict[str, Algorithm]:
    """GRPO, with another configuration, graph and policy."""
    grpo = registry.get("algorithm", "grpo")
    return {
        "my-remax": dataclasses.replace(
            grpo,
            config="reallm_my_remax.config:RemaxConfig",
            graph="reallm_my_remax.config:calls",
            interfaces={**grpo.interfaces, "actor": "reallm_my_remax.actor:RemaxInterface"},
            description="REINFORCE with the reward of the most likely answer as its baseline: ReMax",
        )
    }
