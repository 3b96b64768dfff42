"""Keys of a batch of rollouts: prompts with the answers that a policy has sampled. Imports no torch.

Shapes: S sequences, N tokens of answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reallm.algorithms.rl.config import RolloutConfig

ANSWERS = ("input_ids", "prompt_lens")
"""Keys of prompts with their answers, which are all that rewards and other models read."""
ROLLOUT = (*ANSWERS, "logprobs", "truncated")
"""Keys of every batch of rollouts: prompts with their answers as `input_ids` int64, one sequence for each answer;
`prompt_lens` [S] int64; the `logprobs` [N] float32 of the answers' tokens when they were sampled, at the temperature of
sampling; and `truncated` [S] bool, the answers that ended because they were as long as allowed."""
KEPT_MASS = "kept_mass"
"""Key of the probability [N] float32, at the temperature of sampling, of the tokens that `top_k`, `top_p` and `min_p`
left. What was sampled had the log-probability `logprobs - log(kept_mass)`."""
GREEDY = "greedy_"
"""Beginning of the keys of the most likely answers, which are a baseline: `greedy_input_ids`, `greedy_scores`, ..."""


def rollout_keys(config: RolloutConfig) -> tuple[str, ...]:
    """The keys that a generate call writes: those of `ROLLOUT`, and `kept_mass` if unlikely tokens are not sampled."""
    return (*ROLLOUT, KEPT_MASS) if config.sampling.truncates else ROLLOUT
