"""What an algorithm's interface offers: one method for each kind of call that the graph makes to its role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.training.engine import TrainEngine
from reallm.training.objective import Objective


@dataclass(frozen=True)
class Example:
    """A prompt, as token ids, and what is expected to follow it, if that is known."""

    prompt_ids: list[int]
    expected_ids: list[int] | None = None


class TrainInterface(Objective, Protocol):
    """A role that is trained: it says how its loss is computed, and makes a step of it.

    One that also has `example(sample: NamedArray) -> Example | None` has its model continue a few prompts of the
    validation data at each evaluation, for people to read.
    """

    def train_step(self, engine: TrainEngine, batch: NamedArray) -> dict[str, float]:
        """Train on `batch`, which holds the call's input keys; usually `engine.train_batch(batch, self)`."""


class InferenceInterface(Protocol):
    """A role that computes something of a batch without being changed."""

    def inference(self, model: ReaLModel, batch: NamedArray) -> NamedArray:
        """The call's output keys for the samples of `batch`, in the same order."""


class GenerateInterface(Protocol):
    """A role that continues prompts."""

    def generate(self, model: ReaLModel, batch: NamedArray) -> NamedArray:
        """The call's output keys for the samples of `batch`, in the same order."""


Interface = TrainInterface | InferenceInterface | GenerateInterface
