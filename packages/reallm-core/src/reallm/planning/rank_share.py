"""`RankShare`: how much of a model the fullest rank of a layout holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch

from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import is_trained
from reallm.model.parameters import ParameterInfo
from reallm.parallel.layout import Layout
from reallm.parallel.sharding import fsdp_box, stage_parameters, tp_box
from reallm.planning.kept_tokens import kept_numbers, state_bytes


@dataclass(frozen=True)
class RankShare:
    """Numbers of elements of a model's parameters on the fullest rank of a layout."""

    config: ReaLModelConfig
    layout: Layout
    zero: int
    """ZeRO level, if the layout has FSDP."""

    @property
    def held(self) -> int:
        """Parameters that it holds between calls."""
        return _most(self.config, self.layout.pp, self.layout.tp, self.layout.dp if self.layout.fsdp else 1)

    @property
    def held_trained(self) -> int:
        """Those that training changes; the optimizer's state is that of these."""
        n = self.layout.dp if self.layout.fsdp else 1
        return _most(self.config, self.layout.pp, self.layout.tp, n, only_trained=True)

    @property
    def gathered(self) -> int:
        """Parameters of its stage and tensor-parallel shard: those that it computes with."""
        return _most(self.config, self.layout.pp, self.layout.tp, 1)

    @property
    def while_called(self) -> int:
        """Parameters that it has while it computes without training: with FSDP what it holds stays beside the rest."""
        return self.held + self.gathered if self.layout.fsdp and self.layout.dp > 1 else self.gathered

    @property
    def while_trained(self) -> int:
        """Most parameters that it has at a time in a training step: with ZeRO 3 those of two blocks are gathered."""
        if self.zero < 3:
            return self.while_called
        n_units = self.config.n_layers / self.layout.pp + 1  # each block, and the rest together
        return min(self.while_called, self.held + int(2 * self.gathered / n_units))

    @property
    def gradients(self) -> int:
        """Gradients that it accumulates: whole ones below ZeRO 2."""
        if self.zero >= 2:
            return self.held_trained
        return _most(self.config, self.layout.pp, self.layout.tp, 1, only_trained=True)

    @property
    def cache(self) -> float:
        """Share of what is kept of a token, such as keys and values; tensor-parallel ranks may hold the same heads.

        If no block keeps anything of a token, that of the states of a sequence.
        """
        tp, pp = self.layout.tp, self.layout.pp
        if not kept_numbers(self.config, 1):
            whole = state_bytes(self.config, 1, torch.float32)
            return state_bytes(self.config, tp, torch.float32) / max(1, whole) / pp
        return kept_numbers(self.config, tp) / kept_numbers(self.config, 1) / pp


@lru_cache(maxsize=4096)
def _most(config: ReaLModelConfig, pp: int, tp: int, dp: int, *, only_trained: bool = False) -> int:
    """Parameters of the fullest stage, sharded over `tp` and `dp` ranks."""
    return max(
        sum(n * fsdp_box(tp_box(info, tp, 0), dp, 0).numel for info, n in alike)
        for alike in _alike_parameters(config, pp, only_trained)
    )


@lru_cache(maxsize=1024)
def _alike_parameters(config: ReaLModelConfig, pp: int, only_trained: bool) -> list[list[tuple[ParameterInfo, int]]]:
    """Of each stage one of the parameters that are sharded alike, and how many there are."""
    found = []
    for stage in range(pp):
        infos = [
            info for info in stage_parameters(config, pp, stage) if not only_trained or is_trained(info.name, config)
        ]
        kinds = [(info.shape, info.shard, info.needs_distinct_parts) for info in infos]
        one_of = dict(zip(kinds, infos, strict=True))
        found.append([(one_of[kind], n) for kind, n in Counter(kinds).items()])
    return found
