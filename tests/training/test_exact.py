"""An exact training step computes the log-probabilities with which its tokens were generated, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import cu_seqlens, gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.model.config import GradientCheckpointing, MoEConfig, ReaLModelConfig
from reallm.model.exact import why_not_exact
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.eval_engine import EvalEngine
from reallm.training.objective import LossOutput

CONFIG = ReaLModelConfig(
    n_layers=2, hidden_size=64, n_q_heads=4, n_kv_heads=2, head_dim=16, intermediate_size=96, vocab_size=50,
    max_positions=256, init_std=0.2,
)  # fmt: skip
CONFIGS = {
    "dense": CONFIG,
    "experts": CONFIG.replace(moe=MoEConfig(4, 2, 24)),
    "soft cap": CONFIG.replace(attn_softcap=3.0, logit_softcap=5.0, sliding_window=20),
}
FLAT = OptimizerConfig(lr=1e-2, schedule="constant", warmup_steps=0)

pytestmark = pytest.mark.skipif(
    why_not_exact(ReaLModel(CONFIG).network) is not None,
    reason=f"not exact on this machine: {why_not_exact(ReaLModel(CONFIG).network)}",
)


class PolicyGradient(SFTInterface):
    """Minus the sum of log-probabilities, which it keeps."""

    def __init__(self) -> None:
        self.logprobs: list[float] = []

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        tokens, bounds = batch["input_ids"], cu_seqlens(batch, "input_ids")
        positions, targets = next_token_targets(tokens, bounds, batch["loss_mask"])
        logprobs: Tensor = network.logprobs(network.hidden(tokens, bounds)[positions], targets)
        self.logprobs += logprobs.tolist()
        return LossOutput(-logprobs.sum(), {"correct": torch.zeros(())})


def generated(model: ReaLModel) -> tuple[NamedArray, list[float]]:
    """A batch of exact completions, and their log-probabilities."""
    prompts = [[3, 1, 4], list(range(50)), [(7 * i) % 50 for i in range(63)]]
    completions = model.generate(prompts, max_new_tokens=20, temperature=1.0, exact=True)
    samples = []
    for row, each in enumerate(completions):
        ids = torch.tensor([*each.prompt_ids, *each.token_ids])
        sample = NamedArray(input_ids=ids, loss_mask=torch.arange(len(ids)) >= len(each.prompt_ids))
        seqlens = {"input_ids": [[len(ids)]], "loss_mask": [[len(ids)]]}
        samples.append(sample.with_metadata(seqlens=seqlens, ids=[f"row-{row}"]))
    return gather(samples), [logprob for each in completions for logprob in each.logprobs]


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_sees_the_log_probabilities_of_the_rollout(
    name: str, checkpointing: GradientCheckpointing
) -> None:
    model = ReaLModel(CONFIGS[name], seed=3)
    model.network.gradient_checkpointing = checkpointing
    engine = TrainEngine(model, FLAT, total_steps=10, max_tokens_per_microbatch=10_000, exact=True)
    for _ in range(2):  # the second time with other weights
        batch, logprobs = generated(model)
        objective = PolicyGradient()
        engine.train_batch(batch, objective)
        assert objective.logprobs == logprobs
    assert not model.network.exact


def test_evaluation_too() -> None:
    model = ReaLModel(CONFIG, seed=3)
    batch, logprobs = generated(model)
    objective = PolicyGradient()
    EvalEngine(model, 100, exact=True).evaluate([batch], objective)
    assert sorted(objective.logprobs) == sorted(logprobs)  # micro-batches may be in another order


def test_steps_differ_from_the_usual_ones_by_rounding_only() -> None:
    metrics = []
    for exact in (False, True):
        model = ReaLModel(CONFIG, seed=3)
        engine = TrainEngine(model, FLAT, total_steps=10, max_tokens_per_microbatch=100, exact=exact)
        batch, _ = generated(model)
        metrics.append([engine.train_batch(batch, SFTInterface()) for _ in range(3)])
    for usual, exactly in zip(*metrics, strict=True):
        assert exactly == pytest.approx(usual, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG.replace(attn_dropout=0.1), "exact=True does not go together with attn_dropout=0.1"),
        (CONFIG.replace(moe=MoEConfig(4, 2, 24, jitter=0.1)), "exact=True does not go together with moe.jitter=0.1"),
    ],
)
def test_noise_in_training_is_refused(config: ReaLModelConfig, message: str) -> None:
    model = ReaLModel(config)
    engine = TrainEngine(model, FLAT, total_steps=1, max_tokens_per_microbatch=100, exact=True)
    batch, logprobs = generated(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ConfigError, match=message):
        engine.train_batch(batch, PolicyGradient())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    objective = PolicyGradient()
    objective.dropout = False
    engine.train_batch(batch, objective)
    assert objective.logprobs == logprobs


def test_parameters_for_which_exact_mode_is_not_possible_are_refused() -> None:
    with pytest.raises(ConfigError, match="exact mode is not possible: it needs float32 parameters on a CPU"):
        EvalEngine(ReaLModel(CONFIG, dtype=torch.bfloat16), 100, exact=True)
