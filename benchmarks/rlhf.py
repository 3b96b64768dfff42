"""Reinforcement learning: steps of GRPO and PPO, reallm against TRL, on the same prompts and weights.

SmolLM2-135M-Instruct, float32, AdamW, clipping, two threads, prompts of 16 to 64 tokens. A step is all that a run does
for it: loading, answers, rewards, the loss, the optimizer. GRPO: 2 prompts, 8 answers to each, a reward function, no
reference, one optimizer step. PPO: 8 prompts, reward model, reference and critic, four epochs over one minibatch, as
is TRL's default; with `--quick` one epoch.

Answers are sampled, and end at one frequent token, or at 96 tokens. So their lengths are as unequal as real ones, but
not the same on both sides: figures are ratios of seconds per token of an answer, within a round. The mean lengths of
the sides must be alike, or the benchmark stops. That losses are the same is what `tests/against_trl` checks.

- `trl`: GRPOTrainer as it comes (transformers' `generate`, padding, gradient checkpointing);
- `trl_no_checkpointing`: the same with `gradient_checkpointing=False`;
- PPO's `trl`: TRL 1.16 has no PPOTrainer any more; 1.12 has, in `trl.experimental`. With `--ppo-trl FOLDER`, after
  `pip install --no-deps --target FOLDER trl==1.12.0`, it runs on the installed transformers; else PPO is left out.

    python benchmarks/rlhf.py --quick --json figures.json
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from common import Ratio, machine, parser, write_json
from rlhf_work import STOP_WORD, RLHFJob, with_stop_token
from rounds import Pace, Steps, run_sides
from workers import Step
from workloads import LLAMA_TINY, LOGNORMAL, Work, model_folder, random_llama, why_not

BAR = 4.0
RUNNER_SHARE = 0.02
"""The most of a step that may be neither generation, inference, rewards nor training."""
LENGTHS_DIFFER = 2.0
"""Sides whose mean answers, over all rounds, differ by more than this factor do not do the same work."""
QUICK_SECONDS, GRPO_SECONDS = 430.0, 260.0
"""When `--quick` begins no more rounds, and when it begins none of GRPO if PPO follows."""
N_GROUPS, GROUP_SIZE, N_PROMPTS, MAX_NEW_TOKENS = 2, 8, 8, 96
"""Prompts of a step of GRPO and answers to each; prompts of a step of PPO; the longest answer."""


@dataclass(frozen=True)
class Comparison:
    """Sides of one algorithm, the first of which is reallm."""

    name: str
    title: str
    sides: Mapping[str, str]
    quick: tuple[str, ...]
    """Sides that `--quick` has."""


COMPARISONS = (
    Comparison(
        "grpo",
        "GRPO",
        {
            "reallm": "rlhf_sides:grpo",
            "exact": "rlhf_sides:grpo_exact",
            "trl": "rlhf_trl:grpo",
            "trl_no_checkpointing": "rlhf_trl:grpo_no_checkpointing",
        },
        ("reallm", "exact", "trl"),
    ),
    Comparison("ppo", "PPO", {"reallm": "rlhf_sides:reallm_ppo", "trl": "rlhf_trl:ppo"}, ("reallm", "trl")),
)


def main() -> None:
    """Measure, print a table for each algorithm, and write the figures if asked to."""
    started = time.monotonic()
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--tiny", action="store_true", help="a tiny model, one round: does it all still run?")
    arguments_of.add_argument("--threads", type=int, default=2, metavar="N", help="threads of each side; by default 2")
    arguments_of.add_argument("--ppo-trl", type=Path, metavar="FOLDER", help="a TRL that has a PPOTrainer")
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}

    import torch  # after the number of threads is set
    import transformers

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    if missing := why_not(Work("", "tiny" if arguments.tiny else "smollm2", LOGNORMAL, 0, 12)):
        raise SystemExit(missing)
    has_trl = find_spec("trl") is not None
    if not has_trl:
        say("TRL is not installed (pip install trl): its sides are left out")
    has_ppo = arguments.ppo_trl is not None or (has_trl and find_spec("trl.experimental.ppo") is not None)
    if not has_ppo:
        say("the installed TRL has no PPOTrainer, and --ppo-trl is not given: PPO is left out")
    print(f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}")
    chosen = [one for one in COMPARISONS if one.name != "ppo" or has_ppo]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(Path(scratch), tiny=arguments.tiny, ppo_epochs=1 if arguments.quick or arguments.tiny else 4)
        job = replace(job, ppo_trl=arguments.ppo_trl)
        for number, comparison in enumerate(chosen, 1):
            say(f"algorithm {number} of {len(chosen)}: {comparison.title}")
            until = started + (GRPO_SECONDS if number < len(chosen) else QUICK_SECONDS)
            pace = Pace(1) if arguments.tiny else Pace(3, until) if arguments.quick else Pace(7)
            names = comparison.quick if arguments.quick else tuple(comparison.sides)
            names = tuple(name for name in names if has_trl or comparison.name == "ppo" or "trl" not in name)
            of_job = replace(job, prompts=job.prompts[:N_GROUPS]) if comparison.name == "grpo" else job
            steps = run_sides({name: comparison.sides[name] for name in names}, of_job, pace, _check_lengths, say)
            figures |= _report(comparison, steps)
            write_json(arguments.json, figures)  # after each: a long run that is stopped leaves what it has
    say("done")


def _job(scratch: Path, *, tiny: bool, ppo_epochs: int) -> RLHFJob:
    import torch
    import transformers

    from reallm import ReaLModel
    from reallm.demo.tokenizer import byte_tokenizer

    if tiny:
        tokenizer = byte_tokenizer()
        source = random_llama(LLAMA_TINY | {"vocab_size": len(tokenizer)}, scratch / "tiny")
        tokenizer.save_pretrained(source)
        stop_id = tokenizer.encode("e")[-1]
    else:
        source = model_folder("smollm2", scratch)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        (stop_id,) = tokenizer.encode(STOP_WORD)
    folder = with_stop_token(source, scratch / "model", stop_id)
    reward = scratch / "reward"
    ReaLModel.from_pretrained(folder, is_critic=True, dtype=torch.float32, seed=1).save_pretrained(reward)
    return RLHFJob(
        folder,
        reward,
        _prompts(tokenizer),
        GROUP_SIZE,
        max_new_tokens=32 if tiny else MAX_NEW_TOKENS,
        stop_id=stop_id,
        ppo_epochs=ppo_epochs,
        scratch=scratch,
    )


def _prompts(tokenizer: object) -> tuple[str, ...]:
    """English text of 16 to 64 tokens, pieces of the documentation of Python."""
    import pydoc_data.topics

    texts = pydoc_data.topics.topics
    lengths = [16 + 48 * i // (N_PROMPTS - 1) for i in range(N_PROMPTS)]
    lengths = [*lengths[::2], *lengths[1::2]]  # short and long ones among the first
    encoded = [tokenizer.encode(texts[name]) for name in sorted(texts)[:N_PROMPTS]]  # type: ignore[attr-defined]
    return tuple(
        tokenizer.decode(ids[:n])  # type: ignore[attr-defined]
        for ids, n in zip(encoded, lengths, strict=True)
    )


def _n_tokens(step: Step) -> int:
    assert step.tokens is not None
    return sum(len(answer) for answer in step.tokens)


def _mean_length(steps: Mapping[int, Step]) -> float:
    """Tokens of an answer."""
    return sum(map(_n_tokens, steps.values())) / sum(len(step.tokens or ()) for step in steps.values())


def _check_lengths(steps: Steps) -> None:
    """Stop if a side has other numbers of answers than reallm, or answers of other lengths."""
    ours = steps["reallm"]
    n_answers = len(ours[0].tokens or ())
    for name, theirs in steps.items():
        if any(len(step.tokens or ()) != n_answers for step in theirs.values()):
            raise SystemExit(f"{name} has other numbers of answers than reallm, which has {n_answers} in a step")
        ratio = _mean_length(theirs) / _mean_length(ours)
        if len(theirs) > 1 and not 1 / LENGTHS_DIFFER < ratio < LENGTHS_DIFFER:
            raise SystemExit(f"the answers of {name} are {ratio:.2f} times as long as those of reallm")


def _per_token(steps: Mapping[int, Step], others: Mapping[int, Step]) -> Ratio:
    """Seconds per token of an answer, of two sides in the rounds that both took part in, the warm-up left out."""
    both = [turn for turn in steps if turn and turn in others]
    above, below = ([side[turn].seconds / _n_tokens(side[turn]) for turn in both] for side in (steps, others))
    return Ratio.of(above, below)


def _report(comparison: Comparison, steps: Steps) -> dict[str, float]:
    """Print the table of an algorithm and return its figures."""
    name, ours = comparison.name, steps["reallm"]
    print(f"\n{comparison.title}; ratios are theirs over ours, seconds per token of an answer, medians of the rounds")
    figures: dict[str, float] = {}
    for side, theirs in steps.items():
        ratio = _per_token(theirs, ours)
        seconds = _median(theirs, lambda step: step.seconds)
        speed = _median(theirs, lambda step: _n_tokens(step) / step.seconds)
        line = f"  {side:22s}{seconds:7.2f} s/step{speed:8.1f} tokens/s, answers of {_mean_length(theirs):5.1f}"
        if side == "exact":
            figures["exact_cost"] = ratio.median
        elif side != "reallm":
            figures[f"{name}_over_{side}"] = ratio.median
        if side == "trl":
            figures[f"{name}_over_trl_bar"] = BAR
        print(line + ("" if side == "reallm" else f"  {ratio!s:22s}{f'bar {BAR:g}' if side == 'trl' else ''}"))
    share = _median(ours, lambda step: step.loss)
    print(f"  {share:.2%} of a step of reallm is neither generation, inference, rewards nor training\n", flush=True)
    prefix = "" if name == "grpo" else f"{name}_"
    return figures | {
        f"{prefix}runner_share_of_step": share,
        f"{prefix}runner_share": RUNNER_SHARE / max(share, 1e-6),
        f"{prefix}runner_share_bar": 1.0,
    }


def _median(steps: Mapping[int, Step], number: Callable[[Step], float]) -> float:
    """Of the rounds, the warm-up left out."""
    return statistics.median(number(step) for turn, step in steps.items() if turn)


if __name__ == "__main__":
    main()
