"""What the metrics of reinforcement learning say: the range that is healthy, and what to do outside it.

The page of a run shows this beside its curves, and the page `docs/rl-metrics.md` is `guide_page()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class MetricGuide:
    """How to read the metrics of one chart."""

    title: str
    """Title of the chart."""
    metrics: tuple[str, ...]
    """Names without the call or the phase before them; `*` stands for any name."""
    meaning: str
    healthy: str
    otherwise: str
    """What to do if it is not."""
    from_zero: bool = True
    """Whether the axis of the chart begins at 0, unless a number is negative."""
    algorithm: str | None = None
    """The algorithm whose metrics of these names it is about; None: all others."""


GUIDES = (
    MetricGuide(
        "Reward",
        ("reward",),
        "mean of the total reward over the answers of a step, or over those to validation prompts",
        "rises over tens of steps, with noise; on validation prompts too",
        "Flat from the start: look at the share of groups without variance, whether the reward reads answers as they "
        "are (the rollouts show both), and raise the learning rate. Rises while answers get worse to read: the "
        "reward is being exploited; mend it, or hold the policy closer to the reference (beta, ppo.kl_ctl). Rises on "
        "training prompts only: more or other prompts.",
        from_zero=False,
    ),
    MetricGuide(
        "Rewards by function",
        ("rewards/*/mean",),
        "mean of each reward, before weights",
        "all rise, or hold",
        "One rises while another falls: change reward_weights, or compare them in groups one by one "
        "(multi_objective_aggregation=normalize_then_sum). One never changes: it teaches nothing, and is noise or a "
        "mistake.",
        from_zero=False,
    ),
    MetricGuide(
        "Spread of rewards",
        ("reward_std", "rewards/*/std"),
        "standard deviation of rewards over the answers of a step",
        "above 0; falls slowly as the task is learnt",
        "Near 0: nothing is left to compare. Use harder or easier prompts, a finer reward, or a higher temperature.",
    ),
    MetricGuide(
        "Groups without variance",
        ("frac_reward_zero_std",),
        "share of prompts whose answers all have the same reward; they teach nothing",
        "below 0.5",
        "Near 1 from the start: the prompts are too hard, or too easy, for this model; choose others, raise "
        "num_generations, or use a finer reward. Rises late: the easy prompts are learnt; drop_zero_std_groups=true "
        "with oversampling=2 trains on those that are left.",
    ),
    MetricGuide(
        "Length of answers (tokens)",
        ("completions/mean_length", "completions/min_length", "completions/max_length",
         "completions/mean_terminated_length"),
        "tokens of the answers of a step",
        "steady, or changing slowly together with the reward",
        "Grows to the limit without more reward: loss_type=dr_grpo, which does not favour long wrong answers, or "
        "overlong_buffer. Collapses to a few tokens: the reward is had without an answer.",
    ),
    MetricGuide(
        "Truncated answers",
        ("completions/clipped_ratio",),
        "share of answers that ended because they were as long as allowed",
        "below 0.2, and falling",
        "Raise gen.max_new_tokens (ppo.gen.max_new_tokens), or have long answers cost something: overlong_buffer, "
        "ppo.missing_eos_penalty. At 1: the model does not know how to end; begin with supervised fine-tuning, and "
        "look at the chat template. mask_truncated_completions=true leaves them out of the loss.",
    ),
    MetricGuide(
        "Entropy (nats a token)",
        ("entropy",),
        "mean entropy of the next token's distribution at the tokens of answers",
        "falls slowly; between 0.1 and 2 for language models",
        "Falls to nearly 0 within tens of steps: the policy no longer explores. Raise epsilon_high to 0.28, lower the "
        "learning rate, or add a little entropy_coef. Rises without end: training diverges; lower the learning rate.",
    ),
    MetricGuide(
        "KL divergence from the teacher (nats a token)",
        ("kl",),
        "in distillation, how far the student's own answers are from the teacher, mean over their tokens",
        "falls, towards 0; a small batch may be below 0, since it is an estimate",
        "Stays: raise the learning rate, and look at the rollouts: does the teacher find the chat template unlikely? "
        "Rises: lower the learning rate.",
        algorithm="distill",
    ),
    MetricGuide(
        "KL divergence from the reference (nats a token)",
        ("kl",),
        "how far the policy has moved from the reference, mean over the tokens of answers",
        "0 at the first step, then rises slowly, to between 0.01 and 0.1",
        "Jumps, or is above 0.3 while answers get worse: lower the learning rate, or raise beta (ppo.kl_ctl). Stays 0: "
        "the policy is not changing; raise the learning rate, and look at the groups without variance.",
    ),
    MetricGuide(
        "Clipped share",
        ("clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/low_min",
         "clip_ratio/high_max"),
        "share of tokens whose ratio to the policy before the step is outside the bounds, and that have no gradient",
        "0 with one optimizer step in a step; up to 0.2 with several",
        "Above 0.3: the mini-batches move too far; lower the learning rate, or have fewer of them (num_minibatches, "
        "num_iterations). Above 0 with one optimizer step: training and sampling compute different numbers; see the "
        "difference below.",
    ),
    MetricGuide(
        "Difference of log-probabilities between training and sampling (nats)",
        ("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"),
        "absolute difference for the same tokens and weights; with async_steps, what the policy has changed since "
        "sampling is in it",
        "below 0.0001 in float32; in bfloat16 a mean below 0.02, and a maximum below 1",
        "Larger from the first step: another temperature or template in training than in sampling, or a layer that "
        "computes differently. Use actor.dtype=float32 to tell. Grows during training: the policy has become so sure "
        "that unlikely tokens round; off-policy correction cuts their weight.",
    ),
    MetricGuide(
        "Staleness (optimizer steps)",
        ("staleness",),
        "age of the answers of a step: updates of the policy between sampling and training, with async_steps",
        "async_steps times the optimizer steps of a step; up to 4 is usually harmless",
        "Rewards rise more slowly than with async_steps=0: lower async_steps, num_minibatches or the learning rate, or "
        "set old_logprobs=inference importance_sampling_correction=truncate.",
    ),
    MetricGuide(
        "Masked as off-policy",
        ("frac_off_policy_masked",),
        "share of trained tokens that off_policy_mask_threshold leaves out of the policy loss",
        "0 in the first optimizer step of a step; below 0.1",
        "Above that: answers are too old, or training and sampling compute different numbers; lower async_steps, the "
        "learning rate or num_minibatches, and see the difference of log-probabilities.",
    ),
    MetricGuide(
        "Weights of the off-policy correction",
        ("sampling/importance_sampling_ratio/*",),
        "ratio of the probability in training to that in sampling, before it is bounded",
        "close to 1",
        "Minimum near 0 or a maximum far above 1: see the difference of log-probabilities; with rollouts of older "
        "weights, have fewer steps between.",
    ),
    MetricGuide(
        "Share of answers trained on",
        ("frac_trained",),
        "share of a step's answers that the loss reads",
        "1, or what masks and dropped groups leave: above 0.3",
        "Near 0: steps are noise. Drop less, raise oversampling or dataset.train_bs_n_seqs.",
    ),
    MetricGuide(
        "Failed rewards (answers)",
        ("rewards/*/errors", "rewards/*/timeouts", "greedy_rewards/*/errors", "greedy_rewards/*/timeouts"),
        "answers of a step for which a reward function raised an exception, or took longer than reward_timeout_s",
        "0",
        "Read the trace that the run has shown, and mend the function. Time-outs: raise reward_timeout_s or "
        "reward_processes.",
    ),
    MetricGuide(
        "Values and returns",
        ("values/mean", "returns/mean"),
        "what the critic expects of each token, and what came",
        "the values follow the returns after some tens of steps",
        "They stay apart: train the critic before the policy, raise its learning rate, or begin from the reward model.",
        from_zero=False,
    ),
)  # fmt: skip
"""One for each chart, in the order in which a page shows them."""


def guide_of(metric: str, algorithm: str | None = None) -> MetricGuide | None:
    """The guide to a metric as a run of an algorithm names it, `train/reward` or `actor_train/kl`; None if there is
    none."""
    name = metric.removeprefix("eval/") if metric.startswith("eval/") else metric.partition("/")[2]
    found = [guide for guide in GUIDES if any(fnmatch(name, pattern) for pattern in guide.metrics)]
    return next((guide for wanted in (algorithm, None) for guide in found if guide.algorithm == wanted), None)


def guide_page() -> str:
    """All guides as a page of the documentation."""
    lines = [
        "# Metrics of reinforcement learning",
        "",
        "What the metrics of `reallm grpo`, `reallm ppo` and `reallm distill` say. The page of a run shows the same "
        "beside its curves. Ranges are rules of thumb for language models: a curve that changes its direction says "
        "more than a value.",
        "",
        "Read rollouts first. The page of a run has the answers of some steps side by side, with their rewards and the "
        "numbers of each token; `rollouts.jsonl` in its folder has those of all steps (`keep_rollouts`). Most mistakes "
        "are seen there within a minute: an answer that is right and gets no reward, a template that is not closed, an "
        "answer cut in the middle.",
    ]
    for guide in GUIDES:
        names = ", ".join(f"`{name}`" for name in guide.metrics)
        lines += [
            "",
            f"## {guide.title}",
            "",
            f"{names}: {guide.meaning}.",
            "",
            f"**Healthy:** {guide.healthy}.",
            "",
            f"**Otherwise:** {guide.otherwise}",
        ]
    return "\n".join(lines) + "\n"
