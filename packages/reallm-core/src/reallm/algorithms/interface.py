"""Protocols of an algorithm's interfaces: one method for each kind of call that the graph makes to their role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.training.engine import TrainEngine
from reallm.training.objective import Objective


@dataclass(frozen=True)
class Example:
    """A prompt as token ids, and the expected completion if it is known."""

    prompt_ids: list[int]
    expected_ids: list[int] | None = None


class TrainInterface(Objective, Protocol):
    """Interface of a role that is trained: defines the loss and makes an optimizer step with it.

    With an optional class attribute `metric_names`, a tuple of the names that `metrics` may give, a mistyped
    `best_metric` is found before anything is loaded.

    With an optional method `example(sample: NamedArray) -> Example | None`, the model continues a few prompts of the
    validation data at each evaluation, for people to read.
    """

    def train_step(self, engine: TrainEngine, batch: NamedArray) -> dict[str, float]:
        """Train on `batch`, which holds the call's input keys; usually `engine.train_batch(batch, self)`."""


class InferenceInterface(Protocol):
    """Interface of a role that computes outputs for a batch without being trained."""

    def inference(self, model: ReaLModel, batch: NamedArray) -> NamedArray:
        """The call's output keys for the samples of `batch`, in the same order."""


class GenerateInterface(Protocol):
    """Interface of a role that generates completions of prompts."""

    def generate(self, model: ReaLModel, batch: NamedArray) -> NamedArray:
        """The call's output keys for the samples of `batch`, in the same order."""


Interface = TrainInterface | InferenceInterface | GenerateInterface
