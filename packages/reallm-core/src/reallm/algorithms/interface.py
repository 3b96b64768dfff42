"""Protocols of an algorithm's interfaces: one method for each kind of call that the graph makes to their role.

An interface class is constructed with an instance of the algorithm's configuration. What it knows of the step and the
run comes with each call, as a `CallContext`.

An interface whose model does not read the tokens of the run, but text that the interface encodes, has the attribute
`own_tokenizer = True`. Without it, a model with another tokenizer than that of the first trained model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reallm.algorithms.context import CallContext
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
    """Interface of a role that is trained: defines the loss and makes optimizer steps with it.

    Optional attributes and methods:

    - `metric_names`, a class attribute: a tuple of the names that `metrics` may give, with which a mistyped
      `best_metric` is found before anything is loaded; `*` stands for any name;
    - `call_metric_names`, a class attribute: those of further metrics that `train_step` gives;
    - `optimizer_steps`, an attribute: the optimizer steps of one `train_step`, 1 without it. The schedule of the
      learning rate covers all of them;
    - `weighs_tokens`, an attribute: True if `loss_weight` is a number of tokens, which a dry run then tells;
    - `planned_tokens(sample: NamedArray) -> list[int]`: the most tokens that a sample of the dataset can put through
      the model, if what is trained is generated first; the memory is planned for them;
    - `example(sample: NamedArray) -> Example | None`: with it, the model continues a few prompts of the validation
      data at each evaluation, for people to read.
    """

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """Train on `batch`, which holds the call's input keys; usually `engine.train_batch(batch, self)`."""


class InferenceInterface(Protocol):
    """Interface of a role that computes outputs for a batch without being trained.

    Optional attribute: `precompute_key`, JSON types: what the outputs of a precomputed call depend on besides inputs,
    weights and code, such as a setting of the configuration. With another one they are computed anew.
    """

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """The call's output keys for the samples of `batch`, in the same order."""


class GenerateInterface(Protocol):
    """Interface of a role that generates completions of prompts.

    Optional method: `planned_kv_tokens(batch_size: int) -> int`, the most tokens, of prompts and completions, whose
    keys and values are held at once for a batch of so many samples; the memory is planned for them.
    """

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """The call's output keys for the samples of `batch`, in the same order."""


class RewardInterface(Protocol):
    """Interface of a role without a model, which computes rewards by a function.

    Optional attributes and methods:

    - `needed_columns`, an attribute: the columns that every row must have, each with what needs it, for the error that
      names one that is missing before a model is loaded;
    - `call_metrics() -> dict[str, float]`: metrics of the last call, among those of the step;
    - `call_metric_names`, a class attribute: a tuple of the names that it may give; `*` stands for any name.
    """

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """The call's output keys for the samples of `batch`, in the same order."""


class StatefulInterface(Protocol):
    """An interface with something to remember from step to step, such as a controller or running statistics.

    State is the same on all ranks: it may only depend on what all ranks compute alike.
    """

    def state(self) -> Mapping[str, Any]:
        """What to continue from, as JSON types; saved with each checkpoint."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned at the save that the run is resumed from; called before the first step."""


class EvalMetrics(Protocol):
    """An interface that measures what its call, or one that it depends on, has made of the validation data.

    An evaluation makes the calls of such interfaces, and those that they depend on: generation and rewards, but not
    what only training needs.

    Optional attribute: `metric_names`, a class attribute, as for `TrainInterface`.
    """

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        """Numbers for each sample, or each sequence, of a batch that holds the call's outputs; `eval/<name>` is their
        mean over all validation data, without those that are NaN.

        If interfaces of several calls give the same name, their numbers for a sequence are added: parts of a total.
        """


Interface = TrainInterface | InferenceInterface | GenerateInterface | RewardInterface


def optimizer_steps(interface: Any) -> int:
    """The optimizer steps that one `train_step` of an interface takes."""
    return int(getattr(interface, "optimizer_steps", 1))
