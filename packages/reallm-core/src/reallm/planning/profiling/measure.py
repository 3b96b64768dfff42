"""Measures models and links on the ranks of this job: a profile, in a given time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from reallm.errors import counted
from reallm.model.config import ReaLModelConfig
from reallm.planning.profiling.link_times import measure_links
from reallm.planning.profiling.model_times import Sizes, measure_model
from reallm.planning.profiling.profile import ModelProfile, Profile, model_key

LINKS_SHARE = 0.1
"""Share of the time that links get."""


@dataclass(frozen=True)
class MeasuredModel:
    """An architecture that is to be measured."""

    config: ReaLModelConfig
    dtype: torch.dtype = torch.float32
    trains: bool = True
    generates: bool = True


def setting_of(device: torch.device, n_ranks: int, n_threads: int) -> str:
    """What a profile's times hold for: device, number of ranks that measure side by side, version of torch."""
    threads = counted(n_threads, "thread")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU with {threads} a rank"
    return f"{name}, {counted(n_ranks, 'rank')}, torch {torch.__version__}"


def measure(
    models: Sequence[MeasuredModel],
    device: torch.device,
    sizes: Sizes | None = None,
    *,
    seconds: float = 120.0,
    advance: Callable[[str, float], None] = lambda what, share: None,
) -> Profile:
    """Measure models and links. All ranks of a job make the same call, and get the same profile.

    On a CPU models are measured on one rank while the others are idle, and on all at the same time; on GPUs only so.

    Args:
        models: what to measure; equal architectures are measured once.
        device: where this rank computes.
        sizes: numbers of tokens and sequences; None: the default ones.
        seconds: time for all measurements together; preparations come on top, and few rounds are always made.
        advance: called with what is measured, and the share of all that is done.
    """
    merged = merged_models(models)
    each = (1 - LINKS_SHARE) * seconds / max(1, len(merged))
    n_ranks = dist.get_world_size() if dist.is_initialized() else 1
    n_busy = (1, n_ranks) if device.type == "cpu" and n_ranks > 1 else (n_ranks,)
    found: dict[str, Mapping[int, ModelProfile]] = {}
    for number, (key, model) in enumerate(merged.items()):

        def of_model(share: float, begin: float = number / len(merged)) -> None:
            advance("models", (1 - LINKS_SHARE) * (begin + share / len(merged)))

        found[key] = measure_model(
            model.config,
            model.dtype,
            device,
            sizes or Sizes(),
            trains=model.trains,
            generates=model.generates,
            n_busy=n_busy,
            seconds=each,
            advance=of_model,
        )
    links = measure_links(device, LINKS_SHARE * seconds, lambda share: advance("links", 1 - LINKS_SHARE * (1 - share)))
    return Profile(setting_of(device, n_ranks, torch.get_num_threads()), found, links)


def merged_models(models: Sequence[MeasuredModel]) -> dict[str, MeasuredModel]:
    """The models by their key, each with all that is asked of it."""
    merged: dict[str, MeasuredModel] = {}
    for model in models:
        key = model_key(model.config, str(model.dtype))
        known = merged.get(key, model)
        merged[key] = MeasuredModel(
            model.config, model.dtype, model.trains or known.trains, model.generates or known.generates
        )
    return merged
