"""GRPO on SmolLM2-135M-Instruct with a reward that is checked by a rule: how far the reward rises.

The model is asked which of two numbers is larger. An answer is right, and its reward 1, if it is that number and
nothing else, to the letter; if it ends within sixteen tokens and its last number is the larger one, the reward is 0.5.
Pairs of numbers in validation are in no training row. All weights are trained, in float32, on a CPU.

    python benchmarks/grpo_learns.py --json benchmarks/results/grpo-learns-cpu-2core.json

Beside the JSON file, which has figures and curves, the curve of the reward is drawn in an SVG file of the same name.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import machine, parser

if TYPE_CHECKING:
    from reallm.algorithms.grpo.config import GRPOConfig

SEED = 1
N_STEPS, QUICK_STEPS = 90, 12
N_PROMPTS, N_ANSWERS, MAX_NEW_TOKENS = 6, 8, 16
LEARNING_RATE = 1e-5
LARGEST_NUMBER, N_VALID = 99, 64
FIRST, LAST = 10, 10
"""Steps over whose rewards the figures at the beginning and at the end are means."""
CURVES = ("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio")


def is_larger_number(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """The reward: 1 if an answer is the number and nothing else, 0.5 if the number is the last of a whole answer.

    Args:
        completions: texts, or conversations whose last message is the answer.
        answer: the right number for each.
        columns: what else there is; `completion_ids` are the tokens of each.
    """
    rewards = []
    for completion, ids, right in zip(completions, columns["completion_ids"], answer, strict=True):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        numbers = re.findall(r"\d+", text)
        is_whole = len(ids) < MAX_NEW_TOKENS
        rewards.append(1.0 if text.strip() == right else 0.5 if is_whole and numbers and numbers[-1] == right else 0.0)
    return rewards


def main() -> None:
    """Train, print what was reached, and write figures and curves if asked to."""
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--steps", type=int, default=None, metavar="N", help=f"steps; by default {N_STEPS}")
    arguments_of.add_argument("--seed", type=int, default=SEED, metavar="N")
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    from reallm import run
    from reallm.experiments.runs.metrics import read_curves
    from workloads import model_folder

    print(machine())
    n_steps = arguments.steps or (QUICK_STEPS if arguments.quick else N_STEPS)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        config = _config(model_folder("smollm2", scratch), scratch, n_steps, arguments.seed)
        started = time.monotonic()
        result = run(config, "grpo")
        minutes = (time.monotonic() - started) / 60
        curves = read_curves(result.run_dir / "metrics.jsonl")
    rewards = [value for _, value in curves["train/reward"]]
    evaluations = [value for _, value in curves["eval/reward"]]
    figures = {
        "seed": arguments.seed,
        "steps": len(rewards),
        "minutes": round(minutes, 1),
        "reward_first": _mean(rewards[:FIRST]),
        "reward_last": _mean(rewards[-LAST:]),
        "eval_reward_before": evaluations[0],
        "eval_reward_after": evaluations[-1],
    }
    for key, value in figures.items():
        print(f"{key:24s}{value:.4g}")
    if arguments.json is not None:
        of_steps = {key: [round(value, 4) for _, value in curves.get(f"train/{key}", [])] for key in CURVES}
        arguments.json.write_text(json.dumps({**figures, "curves": of_steps}, indent=1) + "\n", encoding="utf-8")
        _draw(rewards, arguments.json.with_suffix(".svg"))


def _config(folder: Path, scratch: Path, n_steps: int, seed: int) -> GRPOConfig:
    from reallm.algorithms.grpo.config import GRPOConfig
    from reallm.config.args import ModelArgs, RewardArgs, SamplingArgs
    from reallm.config.optimizer import OptimizerConfig
    from reallm_datasets.config import PromptOnlyDatasetConfig

    rows = _rows(seed)
    paths = {name: scratch / f"{name}.jsonl" for name in ("train", "valid")}
    for path, part in zip(paths.values(), (rows[N_VALID:], rows[:N_VALID]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return GRPOConfig(
        actor=ModelArgs(path=str(folder), dtype="float32", device="cpu"),
        dataset=PromptOnlyDatasetConfig(
            train_path=str(paths["train"]),
            valid_path=str(paths["valid"]),
            train_bs_n_seqs=N_PROMPTS,
            valid_bs_n_seqs=N_VALID,
            cache_dir=None,
        ),
        reward=RewardArgs(functions=["grpo_learns:is_larger_number"]),
        gen=SamplingArgs(max_new_tokens=MAX_NEW_TOKENS),
        num_generations=N_ANSWERS,
        optimizer=OptimizerConfig(lr=LEARNING_RATE, beta2=0.99, schedule="constant", warmup_steps=5, weight_decay=0.0),
        max_steps=n_steps,
        eval_every=n_steps,
        seed=seed,
        save_every_minutes=None,
        output_dir=str(scratch),
        name="grpo",
    )


def _rows(seed: int) -> list[dict[str, str]]:
    """A question for each pair of different numbers, in random order; both orders of a pair are never apart."""
    pairs = list(itertools.combinations(range(1, LARGEST_NUMBER + 1), 2))
    generator = random.Random(seed)
    generator.shuffle(pairs)
    rows = []
    for pair in pairs:
        a, b = generator.sample(pair, 2)
        question = f"Which number is larger, {a} or {b}? Answer with the number only."
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        rows.append({"prompt": prompt, "answer": str(max(pair))})
    return rows


def _draw(rewards: Sequence[float], path: Path) -> None:
    """The reward of each step, and its mean over ten, as a plain SVG file."""
    width, height, margin = 640, 320, 40
    means = [_mean(rewards[max(0, i - LAST + 1) : i + 1]) for i in range(len(rewards))]

    def line(values: Sequence[float], style: str) -> str:
        step = (width - 2 * margin) / max(1, len(values) - 1)
        points = " ".join(
            f"{margin + i * step:.1f},{height - margin - value * (height - 2 * margin):.1f}"
            for i, value in enumerate(values)
        )
        return f'<polyline points="{points}" fill="none" {style}/>'

    ticks = [
        f'<line x1="{margin}" x2="{width - margin}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
        f'<text x="8" y="{y + 4:.0f}">{share:.2f}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        for y in [height - margin - share * (height - 2 * margin)]
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        *ticks,
        line(rewards, 'stroke="#9ab"'),
        line(means, 'stroke="#147" stroke-width="2"'),
        f'<text x="{margin}" y="20">mean reward of a step, and its mean over {LAST} steps</text>',
        f'<text x="{width - margin}" y="{height - 12}" text-anchor="end">step {len(rewards)}</text></svg>',
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
