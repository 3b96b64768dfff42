"""Answers that a policy samples to the prompts of a batch, and how many tokens they can be."""

from __future__ import annotations

from dataclasses import replace

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.config import RolloutConfig
from reallm.algorithms.rl.keys import ANSWERS, GREEDY
from reallm.algorithms.rl.rollout import pack, sequences, with_prefix
from reallm.data.batching import lengths
from reallm.data.namedarray import NamedArray, split
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig


def sample_answers(model: ReaLModel, batch: NamedArray, context: CallContext, config: RolloutConfig) -> NamedArray:
    """Answers to the prompts of a batch, as a batch of rollouts; see `generation_config` for how many.

    Args:
        model: the policy.
        batch: `prompt_ids` [T] int64.
        context: the run and the step, which say whether this is training.
        config: the configuration of the run.

    Returns:
        The keys of `rollout_keys(config)`.

    Raises:
        DataError: a prompt is empty or, with its answer, longer than the model's learned positions.
        NonFiniteError: logits are not finite.
    """
    settings = generation_config(config, training=context.training)
    return answer_prompts(model, batch, context, settings, exact=config.exact)


def answer_prompts(
    model: ReaLModel, batch: NamedArray, context: CallContext, settings: GenerationConfig, *, exact: bool = False
) -> NamedArray:
    """As `sample_answers`, with settings for generation of the caller's own."""
    prompts = [ids.tolist() for ids in sequences(batch, "prompt_ids")]
    return pack(context.generate(model, prompts, settings, batch.metadata["ids"], exact=exact), settings.n)


def greedy_answers(model: ReaLModel, batch: NamedArray, context: CallContext, config: RolloutConfig) -> NamedArray:
    """The most likely answer to each prompt, as `greedy_input_ids` and `greedy_prompt_lens`; with the same limits."""
    settings = replace(config.sampling.config(n=1), temperature=0.0)
    return with_prefix(split(answer_prompts(model, batch, context, settings), [ANSWERS])[0], GREEDY)


def generation_config(config: RolloutConfig, *, training: bool) -> GenerationConfig:
    """How prompts are answered: those of training `n_answers` times, those of validation `eval_num_generations` times
    at `eval_temperature`.
    """
    settings = config.sampling.config(n=config.n_answers)
    return (
        settings if training else replace(settings, n=config.eval_num_generations, temperature=config.eval_temperature)
    )


def planned_tokens(sample: NamedArray, config: RolloutConfig) -> list[int]:
    """The longest that each answer to the prompt of a sample can be, with the prompt; for `TrainInterface`."""
    longest = [n + config.sampling.max_new_tokens for n in lengths(sample, "prompt_ids")]
    return [n for n in longest for _ in range(config.n_answers)]


def planned_kv_tokens(batch_size: int, config: RolloutConfig) -> int:
    """The most tokens whose keys and values are held at once; for `GenerateInterface`.

    Prompts are as long as `dataset.max_prompt_len` allows; without a limit, as long as answers.
    """
    longest = config.sampling.max_new_tokens
    prompt = getattr(config.dataset, "max_prompt_len", None) or longest
    return batch_size * (prompt + config.n_answers * longest)
