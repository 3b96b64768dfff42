"""What this package offers: PPO with one of its interfaces replaced."""

import dataclasses

from reallm import Algorithm, hookimpl
from reallm.plugins import registry

REALLM_HOOK_API = "1.5"


@hookimpl
def reallm_algorithms() -> dict[str, Algorithm]:
    """PPO, whose role `reward` is played by an interface of this package."""
    ppo = registry.get("algorithm", "ppo")
    interfaces = {**ppo.interfaces, "reward": "reallm_my_ppo.reward:ShortAnswerInterface"}
    config = "reallm_my_ppo.config:MyPPOConfig"
    description = "PPO whose reward model prefers short answers"
    return {"my-ppo": dataclasses.replace(ppo, config=config, interfaces=interfaces, description=description)}
