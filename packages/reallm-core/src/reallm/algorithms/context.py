"""`CallContext`: what an interface knows of the run and the step that it is called in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.request import Completion
from reallm.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class CallContext:
    """The run and the step that an interface is called in; the same on all ranks."""

    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of the run."""
    seed: int
    """The seed of the run."""
    step: int
    """The step in progress, counted from 1; in an evaluation, the last one done."""
    total_steps: int
    """Steps of the whole run; 0 in an evaluation outside of one."""
    max_tokens_per_microbatch: int
    """Limit on the tokens of a forward pass."""
    training: bool = True
    """Whether this is a training step; otherwise an evaluation."""
    weights_versions: Mapping[str, int] = field(default_factory=dict)
    """Number of updates that the weights of each trained role have had, at the beginning of the call; steps that are
    skipped are left out from the next step on. A batch with generated tokens remembers those that they were made with,
    as metadata of the same name."""
    call: str = ""
    """Name of the call in progress: a role may have several of a kind."""
    kept_rollouts: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict, compare=False, repr=False)
    """Records of rollouts that calls of the step have kept, by call; see `keep_rollouts`."""

    def for_call(self, call: str, max_tokens_per_microbatch: int | None = None) -> CallContext:
        """The same for a call, by its name, with the limit on tokens of the call or its role; None: that of the run."""
        return replace(
            self, call=call, max_tokens_per_microbatch=max_tokens_per_microbatch or self.max_tokens_per_microbatch
        )

    def after_updates(self, role: str, n_updates: int) -> CallContext:
        """The same after further updates of a role's weights, for the calls that follow in the step."""
        versions = {**self.weights_versions, role: self.weights_versions.get(role, 0) + n_updates}
        return replace(self, weights_versions=versions)

    def keep_rollouts(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep records of a step's rollouts, which the run writes into `rollouts.jsonl` and shows on its page.

        Args:
            records: JSON types, the same on all ranks; see `rollout_records`.
        """
        self.kept_rollouts.setdefault(self.call, []).extend(records)

    def seed_for(self, *purpose: str | int) -> int:
        """A seed for a purpose, such as `seed_for("dropped prompts", sample_id)`: another one in each step.

        All evaluations of a run have the same seeds, so that their results can be compared.
        """
        when: tuple[str | int, ...] = ("step", self.step) if self.training else ("evaluation",)
        return derive_seed(self.seed, *when, *purpose)

    def columns(self, batch: NamedArray) -> list[dict[str, Any]]:
        """The other columns of each sample's row, by name; empty without any."""
        found = batch.metadata.get("columns")
        return [dict(row) for row in found] if found is not None else [{} for _ in range(n_samples(batch))]

    def generate(
        self,
        model: ReaLModel,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        ids: Sequence[str],
        *,
        exact: bool = False,
    ) -> list[Completion]:
        """Continue prompts with random numbers that depend on the run's seed, the step, the call and the sample alone.

        Whatever else is in the batch, in whatever order, and in whatever layout, a sample gets the same completions.

        Args:
            model: the model.
            prompts: token ids of each prompt.
            config: settings; their seed is added to that of the step.
            ids: name of each prompt's sample, `batch.metadata["ids"]`.
            exact: whether log-probabilities are those of an exact `TrainEngine`, bit for bit.

        Returns:
            The completions in the order of the prompts, `config.n` of each.
        """
        seed = self.seed_for("generate", self.call, config.seed)
        return model.generate(
            prompts, replace(config, seed=seed), tokenizer=self.tokenizer, exact=exact, keys=list(ids)
        )
