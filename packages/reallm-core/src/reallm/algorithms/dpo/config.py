"""Configuration of preference optimisation. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from reallm.algorithms.dpo.loss_types import LOSS_TYPES, SFT, LossType
from reallm.config.args import CallArgs, ModelArgs, ReferenceArgs, dataset_option
from reallm.config.dataset import dataset_name
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError, did_you_mean
from reallm.field_types import value_text
from reallm.options import changed, is_missing, option

PAIRS, SINGLE_ANSWERS = "rw_pair", "unpaired_preference"


@dataclass(frozen=True)
class DPOConfig(TrainingConfig):
    """Preference optimisation of a policy against a reference that it starts from: DPO and its kin.

    As a library: `DPOConfig(actor=ModelArgs(path="..."), dataset=PairedComparisonDatasetConfig(train_path="..."))`.

    Raises:
        ConfigError: a required value is missing, a value is not allowed, or values contradict each other; names the
            key.
    """

    actor: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the policy, which is trained"})
    ref: ReferenceArgs = field(
        default_factory=ReferenceArgs, metadata={"help": "the reference, which the policy is held to; never trained"}
    )
    actor_train: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the policy is trained"})
    actor_inf: CallArgs = field(
        default_factory=CallArgs, metadata={"help": "where the policy scores answers before a step, for kto and aot"}
    )
    ref_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the reference scores answers"})
    dataset: Any = dataset_option(PAIRS, "pairs to train on; unpaired_preference for single answers with a label")

    loss_type: str | list[str] = option(
        "sigmoid", f"loss, or several to be added, under TRL's names: {', '.join([*LOSS_TYPES, SFT])}"
    )
    loss_weights: list[float] | None = option(None, "weight of each loss type; null: 1")
    beta: float = option(
        0.1,
        "how strongly the policy is held to the reference. For ipo it is the paper's tau, for simpo the scale of the "
        "difference, for orpo the weight of the odds ratio",
    )
    label_smoothing: float = option(
        0.0, "sigmoid, sigmoid_norm, simpo, robust, exo_pair, aot*: probability that a preference is wrong"
    )
    rpo_alpha: float | None = option(
        None, "weight of the negative log-likelihood of chosen answers, a mean over tokens; null: none"
    )
    simpo_gamma: float = option(0.5, "simpo: target margin")
    discopop_tau: float = option(0.05, "discopop: temperature of the mixture, up to 1")
    desirable_weight: float = option(1.0, "kto, apo_zero_unpaired: weight of good answers")
    undesirable_weight: float = option(1.0, "kto, apo_zero_unpaired: weight of bad answers")
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = option(
        "reverse_kl", "divergence from the reference, for losses of a difference of two answers"
    )
    f_alpha_divergence_coef: float = option(0.5, "alpha of alpha_divergence")
    ref_logprobs: Literal["auto", "cache", "live"] = option(
        "auto",
        "cache: the reference scores all rows once, before training, and is dropped; live: it scores each batch. "
        "auto is cache, unless sync_ref_model changes the reference",
    )
    sync_ref_model: bool = option(False, "move the reference towards the policy during training (TR-DPO)")
    ref_model_mixup_alpha: float = option(0.6, "sync_ref_model: share of the policy in the new reference; 1 copies it")
    ref_model_sync_steps: int = option(512, "sync_ref_model: steps between updates of the reference")

    def __post_init__(self) -> None:
        if not self.ref.path and not is_missing(self.actor.path):
            object.__setattr__(self, "ref", self.ref.following(self.actor))
        super().__post_init__()
        _check_loss_types(self)
        _check_ranges(self)
        _check_reference(self)

    @property
    def loss_types(self) -> dict[str, float]:
        """Loss type -> its weight, `sft` left out."""
        return {name: weight for name, weight in self._weights().items() if name != SFT}

    @property
    def sft_weight(self) -> float:
        """Weight of the negative log-likelihood of chosen answers; `orpo` has it as its first term."""
        weights = self._weights()
        return (self.rpo_alpha or 0.0) + weights.get(SFT, 0.0) + weights.get("orpo", 0.0)

    @property
    def is_unpaired(self) -> bool:
        """Whether it trains on single answers with a label instead of pairs."""
        return any(one.unpaired for one in self._table().values())

    @property
    def needs_reference(self) -> bool:
        """Whether a loss compares policy and reference."""
        return any(one.needs_reference for one in self._table().values())

    @property
    def caches_reference(self) -> bool:
        """Whether the reference scores all rows once, before training."""
        return self.ref_logprobs == "cache" or (self.ref_logprobs == "auto" and not self.sync_ref_model)

    def _weights(self) -> dict[str, float]:
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        return dict(zip(names, self.loss_weights or [1.0] * len(names), strict=True))

    def _table(self) -> dict[str, LossType]:
        return {name: LOSS_TYPES[name] for name in self.loss_types}


def _check_loss_types(config: DPOConfig) -> None:
    names = [config.loss_type] if isinstance(config.loss_type, str) else config.loss_type
    known = [*LOSS_TYPES, SFT]
    if not names:
        raise ConfigError(f"loss_type is empty; give one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ConfigError(f"loss_type={name} is not one of {', '.join(known)}{did_you_mean(name, known)}")
        if names.count(name) > 1:
            raise ConfigError(f"loss_type has {name} twice; give it once, with its weight in loss_weights")
    if config.loss_weights is not None and len(config.loss_weights) != len(names):
        raise ConfigError(
            f"loss_weights has {len(config.loss_weights)} numbers, but loss_type has {len(names)}; give one for each"
        )
    if not config.loss_types:
        raise ConfigError("loss_type=sft alone is no preference optimisation; use `reallm sft`")
    if config.is_unpaired and len(names) > 1:
        raise ConfigError(f"loss_type=[{','.join(names)}]: a loss of single answers cannot be added to others")
    if config.is_unpaired and config.sft_weight:
        raise ConfigError(f"rpo_alpha={config.rpo_alpha} needs chosen answers, which loss_type={names[0]} has not")
    chosen = None if is_missing(config.dataset) else dataset_name(config.dataset)
    if config.is_unpaired and chosen == PAIRS:
        raise ConfigError(f"loss_type={names[0]} is for single answers with a label: set dataset.name={SINGLE_ANSWERS}")
    if not config.is_unpaired and chosen == SINGLE_ANSWERS:
        raise ConfigError(
            f"dataset.name={SINGLE_ANSWERS} has single answers: set loss_type to kto or apo_zero_unpaired"
        )
    _check_used(config, names)


def _check_used(config: DPOConfig, names: list[str]) -> None:
    """Refuse a setting that differs from its default and that no loss type reads: it would be silently ignored."""
    readers = {
        key: [name for name, one in LOSS_TYPES.items() if key in one.settings.values()]
        for key in {key for one in LOSS_TYPES.values() for key in one.settings.values()} - {"beta"}
    }
    readers["f_divergence_type"] = [name for name, one in LOSS_TYPES.items() if one.takes_f_divergence]
    for key, value in changed(config, sorted(readers)).items():
        if not set(readers[key]) & set(names):
            raise ConfigError(
                f"{key}={value_text(value)} has no effect on loss_type={','.join(names)}; it is for "
                f"{', '.join(readers[key])}"
            )
    if config.f_divergence_type != "reverse_kl":
        for name in config.loss_types:
            if name not in readers["f_divergence_type"]:
                raise ConfigError(
                    f"f_divergence_type={config.f_divergence_type} does not go together with loss_type={name}; it is "
                    f"for {', '.join(readers['f_divergence_type'])}"
                )


def _check_ranges(config: DPOConfig) -> None:
    names = list(config.loss_types)
    above_0 = ("beta", "discopop_tau", "f_alpha_divergence_coef")
    for key in above_0:
        if not getattr(config, key) > 0:
            raise ConfigError(f"{key}={getattr(config, key)} must be more than 0")
    for key in ("simpo_gamma", "rpo_alpha", "desirable_weight", "undesirable_weight"):
        if getattr(config, key) is not None and not getattr(config, key) >= 0:
            raise ConfigError(f"{key}={getattr(config, key)} must be at least 0")
    if config.discopop_tau > 1:
        raise ConfigError(f"discopop_tau={config.discopop_tau} must be at most 1; the loss has no bound for more")
    eps = config.label_smoothing
    if not 0 <= eps <= 0.5:
        raise ConfigError(f"label_smoothing={eps} must be from 0 to 0.5; above it, preferences are wrong on average")
    if eps == 0.5 and "robust" in names:
        raise ConfigError("label_smoothing=0.5 must be below 0.5 for loss_type=robust, which divides by 1 - 2 * 0.5")
    if eps == 0 and "exo_pair" in names:
        raise ConfigError("label_smoothing=0 must be more than 0 for loss_type=exo_pair; 1e-3 is usual")


def _check_reference(config: DPOConfig) -> None:
    if config.ref_model_sync_steps < 1:
        raise ConfigError(f"ref_model_sync_steps={config.ref_model_sync_steps} must be at least 1")
    if not 0 < config.ref_model_mixup_alpha <= 1:
        raise ConfigError(f"ref_model_mixup_alpha={config.ref_model_mixup_alpha} must be more than 0 and at most 1")
    if config.sync_ref_model and not config.needs_reference:
        raise ConfigError(f"sync_ref_model=true: loss_type={','.join(config.loss_types)} has no reference")
    if config.sync_ref_model and config.ref_logprobs == "cache":
        raise ConfigError(
            "ref_logprobs=cache does not go together with sync_ref_model=true, which changes the reference; "
            "set ref_logprobs=live"
        )
