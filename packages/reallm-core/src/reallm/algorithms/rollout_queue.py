"""`RolloutQueue`: rollouts that were made some steps before they are trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm.algorithms.call_outputs import WEIGHTS_VERSIONS
from reallm.algorithms.placement import Placement
from reallm.data.namedarray import NamedArray, merge, split
from reallm.specs import ModelFunctionCall

Outputs = Mapping[tuple[int, str], NamedArray]
"""Step and call -> what the call has written of the rollout that the step trains on."""


class RolloutQueue:
    """The rollouts of later steps, made with the weights that were newest then.

    The rollout of a step is made `async_steps` steps before; those of the first steps, before the first one. So every
    step trains, and no rollout is left at the end. A rank has of a rollout what its own calls have written, in host
    memory: about 16 bytes for each token.

    Args:
        placement: where calls are computed.
        rank: this rank.
        async_steps: steps between the making of a rollout and the training on it; 0: none is ever kept.
    """

    def __init__(self, placement: Placement, rank: int, async_steps: int) -> None:
        self._placement, self._rank, self._async_steps = placement, rank, async_steps
        self.calls = [call for call in placement.graph.rollout_calls if not call.precompute]
        """The calls that make a rollout."""
        self._waiting: dict[int, NamedArray] = {}

    @property
    def steps(self) -> list[int]:
        """The steps whose rollouts are made."""
        return list(self._waiting)

    def missing(self, step: int, total_steps: int) -> list[int]:
        """The later steps whose rollouts are made in a step."""
        last = min(step + self._async_steps, total_steps)
        return [later for later in range(step + 1, last + 1) if later not in self._waiting]

    def rollout(self, step: int, samples: NamedArray) -> NamedArray:
        """The samples of a step with what this rank has of their rollout."""
        return merge([samples, self._waiting[step]])

    def put(self, made: Mapping[int, NamedArray], done: int) -> None:
        """Keep rollouts, by step, after a step is done, and drop its own and earlier ones."""
        for step, batch in made.items():
            self._waiting[step] = self._outputs(batch, [key for call in self._own_calls() for key in call.outputs])
        self._waiting = {step: outputs for step, outputs in sorted(self._waiting.items()) if step > done}

    def state(self) -> dict[tuple[int, str], NamedArray]:
        """What this rank saves: the outputs of the calls whose first rank it is."""
        led = [call for call in self._own_calls() if self._rank == self._placement.ranks(call.name)[0]]
        return {
            (step, call.name): self._outputs(outputs, call.outputs)
            for step, outputs in self._waiting.items()
            for call in led
        }

    def load_state(self, saved: Outputs) -> bool:
        """Restore what all ranks saved; returns whether it fits: the rollouts are not older than `async_steps` allows,
        and have the keys that the calls write now. Otherwise they are dropped."""
        steps = sorted({step for step, _ in saved})
        wanted = {(step, call.name): set(call.outputs) for step in steps for call in self.calls}
        fits = len(steps) <= self._async_steps and {name: set(outputs) for name, outputs in saved.items()} == wanted
        if fits:
            own = [call.name for call in self._own_calls()]
            self._waiting = {step: merge([saved[step, name] for name in own]) for step in steps}
        return fits

    def _own_calls(self) -> list[ModelFunctionCall]:
        return [call for call in self.calls if self._rank in self._placement.ranks(call.name)]

    @staticmethod
    def _outputs(batch: NamedArray, keys: Sequence[str]) -> NamedArray:
        """Some keys of a batch that it has, without what is known of its samples."""
        outputs = split(batch, [[key for key in keys if key in batch]])[0]
        kept = (WEIGHTS_VERSIONS, "seqlens")
        return outputs.with_metadata(**{name: None for name in outputs.metadata if name not in kept})
