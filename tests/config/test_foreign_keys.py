"""Names that other tools have for a setting are answered with ours, or with why there is none."""

from __future__ import annotations

import re

import pytest

from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.ppo.config import PPOConfig
from reallm.algorithms.rw.config import RWConfig
from reallm.algorithms.sft.config import SFTConfig
from reallm.config.foreign_keys import EXPLAINED, RENAMED, explanation, our_key
from reallm.config.load import load
from reallm.config.schema import groups
from reallm.errors import ConfigError

CONFIGS = (SFTConfig, RWConfig, DPOConfig, GRPOConfig, PPOConfig, DistillConfig)
KEYS = {key.name for config in CONFIGS for group in groups(config) for key in group.keys}


def message(argument: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(SFTConfig, [], [argument])
    return str(caught.value)


def test_every_target_is_a_key() -> None:
    assert RENAMED.keys() <= KEYS
    mentioned = {
        key
        for sentence in EXPLAINED
        for key in re.findall(r"\b(?:model|dataset|optimizer|parallel)(?:\.\w+)+|\b\w+(?==)|\b\w+_\w+\b", sentence)
    }
    assert {key for key in mentioned if not key.isupper()} <= KEYS | {key.rpartition(".")[2] for key in KEYS}


def test_no_name_has_two_meanings_or_is_a_key() -> None:
    names = [name for of_one in (*RENAMED.values(), *EXPLAINED.values()) for name in of_one.split()]
    assert len(names) == len(set(names))
    assert not set(names) & KEYS
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("learning_rate=1e-4", "optimizer.lr"),
        ("optimizer.learning_rate=1e-4", "optimizer.lr"),
        ("training_args.learning_rate=1e-4", "optimizer.lr"),
        ("base_model=x", "model.path"),
        ("model.model_name_or_path=x", "model.path"),
        ("num_train_epochs=3", "epochs"),
        ("trainer.total_epochs=3", "epochs"),
        ("data.max_length=512", "dataset.max_seqlen"),
        ("sequence_len=512", "dataset.max_seqlen"),
        ("lr_scheduler_type=cosine", "optimizer.schedule"),
        ("warmup_ratio=0.1", "optimizer.warmup_ratio"),
        ("save_total_limit=3", "keep_last"),
        ("report_to=wandb", "loggers"),
        ("micro_batch_size=2", "max_tokens_per_microbatch"),
        ("optim=sgd", "optimizer.name"),
        ("torch_dtype=bfloat16", "model.dtype"),
        ("tensor_parallel_size=2", "parallel.tp"),
        ("data.train_files=x", "dataset.train_path"),
        ("dataset_text_field=content", "dataset.columns"),
        ("datasets.type=sharegpt", "dataset.format"),
        ("val_set_size=0.05", "dataset.valid_fraction"),
        ("dataset_mixer=x", "dataset.mix"),
        ("early_stopping_patience=3", "stop_after_evals_without_gain"),
        ("lora.r=8", "model.lora.rank"),
        ("lora_target_modules=[q_proj]", "model.lora.targets"),
        ("use_dora=true", "model.lora.dora"),
    ],
)
def test_a_name_of_another_tool_is_answered_with_the_key(argument: str, key: str) -> None:
    assert message(argument) == f"unknown key '{argument.partition('=')[0]}'; did you mean '{key}'?"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("packing=true", "sequences are always packed without padding"),
        ("dataset.packed=true", "sequences are always packed without padding"),
        ("gradient_accumulation_steps=4", "it follows from dataset.train_bs_n_seqs and max_tokens_per_microbatch"),
        ("per_device_train_batch_size=4", "the batch size is dataset.train_bs_n_seqs"),
        ("batch_size=8", "the batch size is dataset.train_bs_n_seqs"),
        ("use_peft=true", "model.lora.rank=16 trains LoRA adapters"),
        ("peft.type=lora", "other adapters are not available"),
        ("load_in_4bit=true", "model.lora.quantize_base=nf4 holds the base model of adapters in 4 bits"),
        ("load_in_8bit=true", "8 bits are not available"),
        ("bf16=true", "write model.dtype=bfloat16"),
        ("fp16=true", "float16 cannot be trained"),
        ("deepspeed=zero3.json", "training is split by parallel.dp, parallel.tp, parallel.pp and parallel.zero"),
        ("fsdp_config.x=1", "training is split by"),
        ("logging_steps=10", "every step is logged"),
        ("training.gradient_accumulation_steps=2", "results do not depend on it"),
        ("attn_implementation=sdpa", "attention uses the fastest kernel"),
    ],
)
def test_what_has_no_key_is_explained(argument: str, said: str) -> None:
    text = message(argument)
    assert text.startswith(f"unknown key '{argument.partition('=')[0]}': ")
    assert said in text
    assert "did you mean" not in text


def test_options_with_dashes_are_answered_too() -> None:
    assert message("--per-device-train-batch-size").startswith(
        "unknown option '--per-device-train-batch-size': the batch size is dataset.train_bs_n_seqs"
    )
    with pytest.raises(ConfigError, match=r"with '=': optimizer\.lr=1e-4$"):
        load(SFTConfig, [], ["--learning_rate", "1e-4"])


def test_names_are_looked_up_whole_and_by_their_parts() -> None:
    assert our_key("Training.Learning-Rate") == "optimizer.lr"
    assert our_key("peft.r") is our_key("path") is None
    assert explanation("peft.r") == explanation("peft")
    assert explanation("optimizer.r") is None


@pytest.mark.parametrize(
    ("argument", "keys"),
    [
        ("model_name_or_path=x", "'actor.path' or 'ref.path'"),
        ("torch_dtype=bfloat16", "'actor.dtype' or 'ref.dtype'"),
        ("ref_model=x", "'ref.path'"),
        ("precompute_ref_log_probs=true", "'ref_logprobs'"),
        ("dpo_beta=0.1", "'beta'"),
        ("cpo_alpha=1", "'rpo_alpha'"),
    ],
)
def test_names_of_preference_optimisation_are_answered_too(argument: str, keys: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DPOConfig, [], [argument])
    assert str(caught.value) == f"unknown key '{argument.partition('=')[0]}'; did you mean {keys}?"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("max_completion_length=64", "did you mean 'gen.max_new_tokens'?"),
        ("data.max_response_length=64", "did you mean 'gen.max_new_tokens'?"),
        ("temperature=0.7", "did you mean 'gen.temperature'?"),
        ("reward_funcs=accuracy", "did you mean 'reward.functions'?"),
        ("reward_model=x", "did you mean 'reward.path'?"),
        ("actor.clip_ratio_high=0.3", "did you mean 'epsilon_high'?"),
        ("n_samples_per_prompt=4", "did you mean 'num_generations'?"),
        ("algorithm.filter_groups.enable=true", "did you mean 'drop_zero_std_groups'?"),
        ("max_prompt_length=64", "of prompts alone it is dataset.max_prompt_len"),
        ("use_vllm=true", "answers are generated by the engine of reallm itself"),
        ("algorithm.adv_estimator=rloo", "preset=rloo, for example, sets them"),
    ],
)
def test_names_of_reinforcement_learning_are_answered_too(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(GRPOConfig, [], [argument])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("cliprange=0.1", "did you mean 'ppo.eps_clip'?"),
        ("max_completion_length=64", "did you mean 'ppo.gen.max_new_tokens'?"),
        ("algorithm.kl_ctrl.kl_coef=0.1", "did you mean 'ppo.kl_ctl'?"),
        ("gamma=0.9", "did you mean 'ppo.discount'?"),
        ("num_ppo_epochs=2", "did you mean 'ppo.ppo_n_epochs'?"),
        ("vf_coef=0.1", "policy and critic have optimizers of their own"),
    ],
)
def test_names_of_ppo_are_answered_too(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(PPOConfig, [], [argument])
    assert said in str(caught.value)


def test_names_of_distillation_are_answered_too() -> None:
    for argument, said in {
        "lmbda=0.5": "on_policy=true trains on the student's own answers",
        "teacher_model_name_or_path=x": "did you mean 'teacher.path'?",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load(DistillConfig, [], [argument])
        assert said in str(caught.value)


def test_a_model_of_an_algorithm_with_roles_is_that_of_the_first() -> None:
    with pytest.raises(ConfigError, match=r"keys are written without dashes and with '=': actor\.path=x$"):
        load(GRPOConfig, [], ["--model", "x"])
