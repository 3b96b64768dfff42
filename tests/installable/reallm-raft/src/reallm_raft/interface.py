"""The interfaces of `raft`: the model that answers and is trained, and the function that scores its answers.

Shapes: S answers.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from reallm import (
    ConfigError,
    DataError,
    GenerationConfig,
    LossOutput,
    NamedArray,
    PluginError,
    ReaLModel,
    Totals,
    TrainEngine,
    answer_logprobs,
    cu_seqlens,
    lengths,
    select,
    split_groups,
    split_samples,
)
from reallm.algorithms.context import CallContext
from reallm.algorithms.interface import Example
from reallm.algorithms.pairs import only
from reallm.model.transformer import Transformer
from reallm.references import resolve
from reallm.training.sequence_scores import answer_lengths
from reallm_raft.config import RaftConfig


class RaftInterface:
    """Answers prompts, and learns the best answer to each by supervised fine-tuning."""

    metric_names = ("loss", "best_score")

    def __init__(self, config: RaftConfig) -> None:
        self.config = config

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`n` answers to each prompt, or in an evaluation the most likely one, as `input_ids` and `prompt_lens` [S]."""
        n = self.config.n if context.training else 1
        temperature = self.config.temperature if context.training else 0.0
        settings = GenerationConfig(n=n, max_new_tokens=self.config.max_new_tokens, temperature=temperature)
        prompts = [sample["prompt_ids"].tolist() for sample in split_samples(batch)]
        found = context.generate(model, prompts, settings, batch.metadata["ids"])
        answers = [one.prompt_ids + one.token_ids for one in found]
        sizes = [len(answer) for answer in answers]
        return NamedArray(
            input_ids=torch.tensor([token for answer in answers for token in answer]),
            prompt_lens=torch.tensor([len(one.prompt_ids) for one in found]),
        ).with_metadata(
            seqlens={
                "input_ids": [sizes[i : i + n] for i in range(0, len(sizes), n)],
                "prompt_lens": [(1,) * n] * len(prompts),
            }
        )

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step."""
        return engine.train_batch(batch, self)

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The best answer to each prompt, a sample each; of equal ones the first."""
        sequences = {"input_ids": 1, "prompt_lens": 1, "scores": 1}
        answers = split_groups(only(batch, sequences), sequences)
        best = batch["scores"].view(-1, self.config.n).argmax(dim=1).tolist()
        return select(answers, [row * self.config.n + one for row, one in enumerate(best)])

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each answer with its prompt."""
        return lengths(batch, "input_ids")

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest answer with its prompt, for which memory is planned before anything is generated."""
        return [n + self.config.max_new_tokens for n in lengths(sample, "prompt_ids")]

    def loss_weight(self, batch: NamedArray) -> float:
        """Number of tokens of answers, by which the sum of their losses is divided."""
        return float(answer_lengths(batch).sum())

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """The summed negative log-likelihood of answers, in nats."""
        answers = answer_logprobs(network, batch)
        n = torch.tensor(len(answers.sums))
        return LossOutput(-answers.sums.sum(), {"score": batch["scores"].sum(), "answers": n})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """The mean loss of a token, and the mean score of the best answers."""
        if not totals.loss_weight:
            return {}
        return {"loss": totals.loss, "best_score": totals.stats["score"] / totals.stats["answers"]}

    def example(self, sample: NamedArray) -> Example:
        """A prompt whose answer is shown to people at each evaluation."""
        return Example(sample["prompt_ids"].tolist())


class ScoreInterface:
    """Scores answers by the function `reward`."""

    metric_names = ("reward",)

    def __init__(self, config: RaftConfig) -> None:
        self.name = config.reward
        try:
            self.function = resolve(config.reward)
        except PluginError as error:
            raise ConfigError(f"reward={config.reward}: {error}") from error

    def reward(self, batch: NamedArray, context: CallContext) -> NamedArray:
        """`scores` [S] float32."""
        bounds, prompt_lens = cu_seqlens(batch, "input_ids").tolist(), batch["prompt_lens"].tolist()
        tokens = batch["input_ids"].tolist()
        counts = [len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
        rows = [row for row, n in enumerate(counts) for _ in range(n)]
        columns, scores = context.columns(batch), []
        for i, row in enumerate(rows):
            prompt, answer = (
                context.tokenizer.decode(tokens[start:end], skip_special_tokens=True)
                for start, end in (
                    (bounds[i], bounds[i] + prompt_lens[i]),
                    (bounds[i] + prompt_lens[i], bounds[i + 1]),
                )
            )
            score = self.function(prompt, answer, columns[row])
            if not isinstance(score, int | float) or not math.isfinite(score):
                raise DataError(f"reward={self.name} gives {score!r} for '{batch.metadata['ids'][row]}', not a number")
            scores.append(float(score))
        return NamedArray(scores=torch.tensor(scores)).with_metadata(seqlens={"scores": [(1,) * n for n in counts]})

    def eval_metrics(self, batch: NamedArray, context: CallContext) -> Mapping[str, Sequence[float]]:
        """`eval/reward`: the mean score over the validation prompts."""
        return {"reward": batch["scores"].tolist()}
