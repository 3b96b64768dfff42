"""What the metrics of reinforcement learning say, on the page of a run and in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from reallm.experiments.reports.metric_guide import guide_of, guide_page

DOCS = Path(__file__).parents[3] / "docs"


def test_the_documentation_says_the_same() -> None:
    assert (DOCS / "rl-metrics.md").read_text(encoding="utf-8") == guide_page()


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("train/reward", "Reward"),
        ("eval/reward", "Reward"),
        ("actor_train/rewards/accuracy/mean", "Rewards by function"),
        ("actor_train/rewards/accuracy/std", "Spread of rewards"),
        ("train/clip_ratio/low_mean", "Clipped share"),
        ("train/rewards/chosen", None),
        ("train/sampling/kl", None),
        ("eval/loss/reward", None),
        ("train/loss", None),
    ],
)
def test_a_metric_has_the_guide_of_its_name(metric: str, title: str | None) -> None:
    guide = guide_of(metric)
    assert (guide and guide.title) == title


def test_a_divergence_falls_in_distillation_and_rises_elsewhere() -> None:
    for algorithm, title in {"distill": "KL divergence from the teacher", "grpo": "KL divergence from the ref"}.items():
        guide = guide_of("train/kl", algorithm)
        assert guide is not None
        assert guide.title.startswith(title)
        assert ("falls" in guide.healthy) == (algorithm == "distill")
