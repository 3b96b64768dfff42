"""Algorithms and loggers of the core, offered through the same hooks as a plugin's."""

from __future__ import annotations

from reallm.hookspecs import hookimpl
from reallm.specs import Algorithm, LoggerSpec, ModelFunctionCall


@hookimpl
def reallm_algorithms() -> dict[str, Algorithm]:
    return {
        "distill": Algorithm(
            config="reallm.algorithms.distill.config:DistillConfig",
            graph="reallm.algorithms.distill.graph:graph",
            interfaces={
                "actor": "reallm.algorithms.distill.interface:DistillInterface",
                "teacher": "reallm.algorithms.distill.teacher:TeacherInterface",
                "comparison": "reallm.algorithms.distill.teacher:ComparisonInterface",
            },
            description="distillation of a teacher into a student, on given answers or on the student's own",
        ),
        "dpo": Algorithm(
            config="reallm.algorithms.dpo.config:DPOConfig",
            graph="reallm.algorithms.dpo.graph:graph",
            interfaces={
                "actor": "reallm.algorithms.dpo.interface:DPOInterface",
                "ref": "reallm.algorithms.dpo.interface:ReferenceInterface",
            },
            description="preference optimisation without a reward model: DPO, IPO, SimPO, ORPO, KTO and others",
        ),
        "grpo": Algorithm(
            config="reallm.algorithms.grpo.config:GRPOConfig",
            graph="reallm.algorithms.grpo.graph:graph",
            interfaces={
                "actor": "reallm.algorithms.grpo.interface:GRPOInterface",
                "ref": "reallm.algorithms.rl.reference:ReferenceInterface",
                "reward": "reallm.algorithms.rl.reward_model:RewardModelInterface",
                "reward_functions": "reallm.algorithms.rl.reward_functions:RewardFunctionsInterface",
                "greedy_reward_functions": "reallm.algorithms.rl.reward_functions:GreedyRewardFunctionsInterface",
            },
            description="policy optimisation by rewards of several answers to each prompt: GRPO and its kin",
        ),
        "ppo": Algorithm(
            config="reallm.algorithms.ppo.config:PPOConfig",
            graph="reallm.algorithms.ppo.graph:graph",
            interfaces={
                "actor": "reallm.algorithms.ppo.actor:PPOActorInterface",
                "critic": "reallm.algorithms.ppo.critic:PPOCriticInterface",
                "ref": "reallm.algorithms.rl.reference:ReferenceInterface",
                "reward": "reallm.algorithms.rl.reward_model:RewardModelInterface",
                "reward_functions": "reallm.algorithms.rl.reward_functions:RewardFunctionsInterface",
            },
            description="policy optimisation by rewards, with a critic: PPO",
        ),
        "rw": Algorithm(
            config="reallm.algorithms.rw.config:RWConfig",
            graph=(ModelFunctionCall("train", "model", "train_step", inputs=("input_ids", "margins")),),
            interfaces={"model": "reallm.algorithms.rw.interface:RWInterface"},
            description="reward modelling on pairs of a better and a worse answer",
        ),
        "sft": Algorithm(
            config="reallm.algorithms.sft.config:SFTConfig",
            graph=(ModelFunctionCall("train", "model", "train_step", inputs=("input_ids", "loss_mask")),),
            interfaces={"model": "reallm.algorithms.sft.interface:SFTInterface"},
            description="supervised fine-tuning on prompt/answer pairs or conversations",
        ),
    }


@hookimpl
def reallm_loggers() -> dict[str, LoggerSpec]:
    return {
        "jsonl": LoggerSpec("reallm.loggers.jsonl:JsonlLogger", "one JSON object per line in metrics.jsonl"),
        "tensorboard": LoggerSpec(
            "reallm.loggers.tensorboard:TensorBoardLogger",
            "TensorBoard event files",
            requires=("tensorboard",),
            install="reallm-core[tensorboard]",
        ),
        "trackio": LoggerSpec(
            "reallm.loggers.trackio:TrackioLogger",
            "trackio: dashboards on this machine",
            requires=("trackio",),
            install="reallm-core[trackio]",
        ),
        "wandb": LoggerSpec(
            "reallm.loggers.wandb:WandbLogger",
            "Weights & Biases",
            requires=("wandb",),
            install="reallm-core[wandb]",
        ),
    }
