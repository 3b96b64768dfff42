"""Configuration of a model's adapters. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reallm.config.group import ConfigGroup
from reallm.errors import ConfigError
from reallm.field_types import check_fields, value_text
from reallm.model.lora_config import check_alpha
from reallm.options import changed, option


@dataclass(frozen=True)
class LoRAArgs(ConfigGroup, group="lora"):
    """The low-rank adapters of a model: new ones of a rank, or those of a folder.

    Raises:
        ConfigError: a value is not allowed, or has no effect; names the field without its group.
    """

    rank: int | None = option(None, "rank of LoRA adapters, which alone are trained; null: all parameters are trained")
    alpha: float | None = option(
        None, "numerator of the factor alpha / rank on what an adapter adds; null: twice the rank"
    )
    targets: str | list[str] = option(
        "all-linear",
        "linear layers that get an adapter, as the checkpoint calls them, such as [q_proj,v_proj]; all-linear: all of "
        "the blocks, experts and routers included",
    )
    dropout: float = option(0.0, "probability with which each input of an adapter is dropped in training")
    rslora: bool = option(False, "rsLoRA: the factor is alpha / sqrt(rank), so that a high rank learns as fast")
    dora: bool = option(False, "DoRA: train the length of each row of an adapted weight apart from its direction")
    path: str | None = option(
        None, "folder of the adapter to start from, as PEFT or an earlier run has saved it, with its own rank and so on"
    )
    quantize_base: Literal["nf4"] | None = option(
        None,
        "nf4: hold the linear layers of the base model in 4 bits (QLoRA), an eighth of float32; for one process with a "
        "CUDA GPU",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank={self.rank} must be at least 1")
        if self.alpha is not None:
            check_alpha(self.alpha)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout={self.dropout} must be at least 0 and less than 1")
        if not self.targets:
            raise ConfigError("targets is empty; name layers, or leave it out for all-linear")
        if self.quantize_base is not None and self.dora:
            raise ConfigError(f"quantize_base={self.quantize_base} does not work with dora; leave one of the two out")
        if self.path is not None:
            for name, value in changed(self, ("rank", "alpha", "targets", "rslora", "dora")).items():
                raise ConfigError(f"{name}={value_text(value)}: the adapter in path has its own; leave {name} out")
        if not self.is_on:
            for name, value in changed(self).items():
                raise ConfigError(
                    f"{name}={value_text(value)} has no effect without rank; give a rank, such as rank=16"
                )

    @property
    def is_on(self) -> bool:
        """Whether there are adapters."""
        return self.rank is not None or self.path is not None

    @property
    def scale(self) -> float:
        """The value of `alpha`."""
        assert self.rank is not None
        return float(2 * self.rank if self.alpha is None else self.alpha)
