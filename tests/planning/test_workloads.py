"""Workloads: lengths as text or from a run, and the workload of a configuration."""

import json

import pytest

from reallm.algorithms.graph import Graph
from reallm.cli.algorithm import load_configuration
from reallm.errors import ConfigError
from reallm.planning.configured_workload import configured_workload
from reallm.planning.lengths import parse_lengths
from reallm.plugins import registry


def test_lengths_are_written_as_text():
    assert parse_lengths("answer_lens", "300", longest=256).values == (256,)
    drawn = parse_lengths("answer_lens", "lognormal:100:1", longest=400)
    assert drawn.longest == 400
    longer = sum(value > 100 for value in drawn.values) / len(drawn.values)
    assert longer == pytest.approx(0.5, abs=0.02)
    even = parse_lengths("prompt_lens", "uniform:10:30")
    assert even.mean == pytest.approx(20, abs=0.5)
    assert (even.values[0], even.longest) == (10, 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", r"answer_lens=0: must be a number \(512\), lognormal:MEDIAN:SIGMA, uniform"),
        ("long", "answer_lens=long: must be a number"),
        ("normal:1:2", "answer_lens=normal:1:2: must be a number"),
        ("lognormal:256", "answer_lens=lognormal:256: must be a number"),
        ("lognormal:256:-1", "lognormal needs a MEDIAN of at least 1 and a SIGMA of at least 0"),
        ("uniform:9:3", "uniform needs 1 <= SHORTEST <= LONGEST"),
        ("none.jsonl", "answer_lens=none.jsonl cannot be read .*No such file or directory"),
    ],
)
def test_lengths_that_are_none_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_lengths("answer_lens", text)


def test_lengths_of_a_runs_answers_are_read(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps({"step": 1, "answers": [{"length": n}, {"length": 5}]}) + "\n" for n in (3, 9)))
    assert parse_lengths("answer_lens", str(file)).values == (3, 5, 5, 9)
    file.write_text('{"step": 1}\n')
    with pytest.raises(
        ConfigError, match=r"answer_lens=.*rollouts.jsonl cannot be read as the rollouts.jsonl of a run"
    ):
        parse_lengths("answer_lens", str(file))


def _workload(algorithm, *arguments, **given):
    config = load_configuration(algorithm, [], arguments).with_placeholders().build()
    return configured_workload(config, Graph.of(registry.get("algorithm", algorithm), config), **given)


def test_the_workload_of_a_configuration():
    found = _workload("grpo", "reward=math", "dataset.train_bs_n_seqs=6", "num_generations=4", "num_minibatches=2")
    assert (found.workload.n_prompts, found.workload.n_answers, found.workload.n_sequences) == (6, 4, 24)
    assert (found.workload.n_minibatches, found.workload.n_epochs) == (2, 1)
    assert found.prompts_from.startswith("assumed")
    assert found.answers_from == "assumed: 128 tokens, half of max_new_tokens"

    ppo = ("reward.path=rw", "ppo.ppo_n_minibatches=2", "ppo.ppo_n_epochs=3", "ppo.gen.max_new_tokens=64")
    found = _workload("ppo", *ppo, prompt_lens="20", answer_lens="lognormal:50:1")
    assert (found.workload.n_minibatches, found.workload.n_epochs, found.workload.answers.longest) == (2, 3, 64)
    assert (found.prompts_from, found.answers_from) == ("given", "given, cut at max_new_tokens=64")
    assert _workload("ppo", *ppo, answer_lens="64").answers_from == "given"

    found = _workload("sft", measured_prompts=[10, 20, 30])
    assert (found.workload.answers.mean, found.workload.prompts.mean) == (0, 20)
    assert (found.prompts_from, found.answers_from) == ("measured", "none")
