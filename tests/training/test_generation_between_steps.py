"""Generating between training steps leaves training as it is, to the last bit."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.training.engine import TrainEngine
from tests.training.train_cases import LLAMA, batch_of

CONFIG = LLAMA.replace(n_layers=2, init_std=0.3)
CONFIGS = {
    "dense": CONFIG,
    "dropout": CONFIG.replace(residual_dropout=0.1),
    "experts": CONFIG.replace(moe=MoEConfig(4, 2, 24)),
}
OPTIMIZER = OptimizerConfig(lr=1e-2, schedule="constant", warmup_steps=0)
BATCH = batch_of((9, 2), (4, 2), (17, 2))
PROMPTS = [[3, 1, 4], [5], list(range(30))]


def trained(config: ReaLModelConfig, *, generates: bool, keep_cache: bool = False) -> tuple[list[float], ReaLModel]:
    """Losses of three steps, and the model after them; a rollout may come before each step and after the last."""
    model = ReaLModel(config, seed=3)
    engine = TrainEngine(model, OPTIMIZER, total_steps=10, max_tokens_per_microbatch=20)
    losses = []
    for _ in range(3):
        if generates:
            model.generate(PROMPTS, max_new_tokens=20, temperature=1.0, n=2, keep_cache=keep_cache)
        losses.append(engine.train_batch(BATCH, SFTInterface())["loss"])
    return losses, model


@pytest.mark.parametrize("keep_cache", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_the_bits_of_a_run_without_generation(name: str, keep_cache: bool) -> None:
    losses, model = trained(CONFIGS[name], generates=False)
    same_losses, same_model = trained(CONFIGS[name], generates=True, keep_cache=keep_cache)
    assert same_losses == losses
    for mine, theirs in zip(model.parameters(), same_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_cache_that_is_kept_is_not_of_older_weights() -> None:
    _, kept = trained(CONFIG, generates=True, keep_cache=True)
    _, fresh = trained(CONFIG, generates=False)
    assert kept.generate(PROMPTS, max_new_tokens=20, keep_cache=True) == fresh.generate(PROMPTS, max_new_tokens=20)
