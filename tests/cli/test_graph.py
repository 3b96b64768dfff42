"""`reallm graph`: what it prints for algorithms with one call and with several, and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reallm.cli.main import run
from reallm.specs import Algorithm, DatasetSpec
from tests.helpers import fake_plugins
from tests.helpers.imports import imported_by
from tests.helpers.rl_graphs import GRPO, PPO


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    install_algorithms(monkeypatch)


def install_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = DatasetSpec("nowhere:Prompts", fake_plugins.RowsConfig)
    broken = Algorithm(PPO.config, "tests.helpers.rl_graphs:not_there", PPO.interfaces)
    monkeypatch.setitem(fake_plugins.OFFERS["dataset"], "prompt", prompts)
    for name, algorithm in {"ppo": PPO, "grpo": GRPO, "broken": broken}.items():
        monkeypatch.setitem(fake_plugins.OFFERS["algorithm"], name, algorithm)
    fake_plugins.install(monkeypatch)


def test_one_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", "sft"]) == 0
    assert capsys.readouterr().out == (
        "sft: supervised fine-tuning on prompt/answer pairs or conversations\n"
        "1 call a step; models: model (trained)\n"
        "needed of the dataset: input_ids, loss_mask\n"
        "\n"
        "1. train  trains model\n"
        "   reads      input_ids, loss_mask of the dataset\n"
        "   waits for  train of the step before: its new weights\n"
    )


def test_each_call_says_what_it_reads_of_whom_and_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", "ppo", "actor_gen.layout=dp4", "critic_train.offload=true"]) == 0
    printed = capsys.readouterr().out
    assert "6 calls a step, made in this order" in printed
    assert (
        "1. actor_gen  generates with actor\n"
        "   reads      prompt_ids of the dataset\n"
        "   writes     input_ids, prompt_lens, logprobs\n"
        "   waits for  actor_train of the step before: its new weights\n"
        "   layout     dp4\n"
    ) in printed
    assert (
        "6. critic_train  trains critic\n"
        "   reads      input_ids, prompt_lens, logprobs of actor_gen; scores of rew_inf;\n"
        "              ref_logprobs of ref_inf; values of critic_inf\n"
        "   offload    critic goes to host memory until its next call\n"
    ) in printed


def test_the_graph_is_that_of_the_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["graph", "grpo"]) == 0
    assert "ref" not in capsys.readouterr().out
    file = tmp_path / "run.yaml"
    file.write_text("beta: 0.1\nsync_ref_every: 512\n", encoding="utf-8")
    assert run(["graph", "grpo", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "ref_inf  inference with ref" in printed
    assert "   then       ref becomes actor, every 512 steps\n" in printed


def test_svg(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "graph.svg"
    assert run(["graph", "ppo", "--svg", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"\nwritten: {file}\n")
    assert "critic_train" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppoo"], "no algorithm 'ppoo' is installed; pip install the-package"),
        (["sft", "lrr=3"], "unknown key 'lrr'; did you mean 'optimizer.lr'?"),
        (["sft", "--lr", "3"], "'--lr 3': keys are written without dashes and with '=': optimizer.lr=3"),
        (["ppo", "actor_gen.layout=xp4"], "actor_gen.layout=xp4: 'xp4' is not a layout; write one like tp2pp1dp2"),
        (["sft", "--svg", "graph.png"], "--svg graph.png: the name must end in .svg"),
        ([], "missing argument 'ALGORITHM'; write reallm graph [OPTIONS] {ALGORITHM} [key=value]..."),
        (["broken"], "cannot import 'tests.helpers.rl_graphs:not_there'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_neither_torch_nor_transformers_is_imported() -> None:
    program = (
        "import contextlib, io, pytest\n"
        "from tests.cli import test_graph\n"
        "test_graph.install_algorithms(pytest.MonkeyPatch())\n"
        "with contextlib.redirect_stdout(io.StringIO()) as printed: test_graph.run(['graph', 'ppo'])\n"
        "from reallm.experiments.reports import graph_svg\n"
        "assert 'critic_train' in printed.getvalue()"
    )
    assert imported_by(program, "torch", "transformers") == []
