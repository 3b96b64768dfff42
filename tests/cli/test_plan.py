"""`reallm plan`: tables, JSON and drawing of a plan, and what beginners mistype."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reallm.cli.main import run
from reallm.planning.known_machines import KNOWN
from reallm.planning.profiling.profile import (
    DecodeTimes,
    LinkProfile,
    ModelProfile,
    PassTimes,
    Profile,
    model_key,
    write_profile,
)
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(vocab_size=96)
KEYS = ("actor.path=model", "reward.path=model", "ppo.gen.max_new_tokens=32", "max_tokens_per_microbatch=512")


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs `reallm plan` where `model` is a checkpoint's folder; returns exit code, output and errors.

    No family is installed here: what `config.json` means is given.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(
        "reallm.experiments.preflight.models.load_model_config",
        lambda path, *, is_critic, implementation: CONFIG.replace(is_critic=is_critic),
    )

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run(["plan", *arguments])
        return (code, *capsys.readouterr())

    return command


def test_the_tables_of_a_searched_plan(plan) -> None:
    code, out, err = plan("ppo", *KEYS, "--machine", "h100", "--ranks", "2", "--prompt-lens", "64")
    assert (code, err) == (0, "")
    for call in ("actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train"):
        assert f"\n{call} " in out
    assert "ppo on 2 ranks of h100" in out
    words = " ".join(out.split())
    assert "of 64 tokens (given), 1 answer each of 16 tokens (assumed: 16 tokens, half of max_new_tokens)" in words
    assert "Heuristic" in out
    assert "actor_train.layout=" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_has_what_the_tables_have(plan) -> None:
    code, out, _ = plan("ppo", *KEYS, "--machine", "h100", "--ranks", "2", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["fits"]
    assert found["calls"][0]["call"] == "actor_gen"
    assert found["step_seconds"] >= max(one["end"] for one in found["calls"]) > 0
    assert found["memory_bytes"] == KNOWN["h100"].memory
    assert found["search"]["heuristic_seconds"] >= found["step_seconds"]
    assert any(key.startswith("critic_train.layout=") for key in found["assignments"])


def test_a_given_plan_is_simulated_as_it_is(plan) -> None:
    layouts = ("actor_gen.layout=dp2", "actor_train.layout=tp2", "critic_train.layout=dp1@1", "parallel.dp=2")
    code, out, _ = plan("ppo", *KEYS, "allocation=manual", *layouts, "--machine", "h100", "--ranks", "2", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["search"] is None
    assert set(layouts[:3]) <= set(found["assignments"])
    assert [(move["role"], move["from"], move["to"]) for move in found["moves"]][:1] == [
        ("actor", "tp2pp1dp1", "tp1pp1dp2")
    ]


def test_micro_batches_of_their_own_are_shown(plan) -> None:
    given = ("ppo", *KEYS, "critic_train.max_tokens_per_microbatch=256", "--machine", "h100", "--ranks", "1")
    limits = {
        call["call"]: call["max_tokens_per_microbatch"] for call in json.loads(plan(*given, "--json")[1])["calls"]
    }
    assert (limits["actor_gen"], limits["actor_train"], limits["critic_train"]) == (None, 512, 256)
    out = plan(*given)[1]
    assert "Tokens" in out
    assert "\n  critic_train.max_tokens_per_microbatch=256\n" in out
    assert "actor_train.max_tokens" not in out
    assert "Tokens" not in plan("ppo", *KEYS, "--machine", "h100", "--ranks", "1")[1]


def test_the_drawing(plan, tmp_path: Path) -> None:
    code, out, _ = plan("grpo", "actor.path=model", "reward=f.py:f", "--machine", "h100", "--svg", "plan.svg")
    assert (code, out.splitlines()[-1]) == (0, "written: plan.svg")
    text = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "actor_train" in text


def test_an_algorithm_of_one_call(plan) -> None:
    code, out, _ = plan("sft", "model.path=model", "--machine", "h100", "--json")
    assert (code, len(json.loads(out)["calls"])) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ppo", "reward.path=model"), "error: actor.path is missing; a folder with the config.json of"),
        (("ppo", *KEYS, "--machine", "h10"), "h100"),
        (("ppo", *KEYS, "--svg", "plan.png"), "error: --svg plan.png: the name must end in .svg"),
        (("ppo", *KEYS, "--machine", "h100", "--answer-lens", "long"), "answer_lens=long: must be a number"),
        (("ppo", *KEYS, "allocation=best"), "allocation=best: must be manual, heuristic, search"),
        (("pp", *KEYS), "ppo"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line(plan, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = plan(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("elsewhere", [False, True])
def test_measured_times_are_used(plan, monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    models = {model_key(CONFIG.replace(is_critic=is_critic), "torch.float32") for is_critic in (False, True)}
    times = ModelProfile(
        (PassTimes(1, 1, 10, 0.1, 0.1, 0.2, 0.2),), (DecodeTimes(1, 1, 10, 0.1, 0.1),), ((100, 0.1),), ((100, 0.1),)
    )
    measured = Profile("this setting", {model: {1: times} for model in models}, LinkProfile())
    monkeypatch.setattr("reallm.cli.plan_profile.known_profile", lambda file, n_ranks: None)
    monkeypatch.setattr("reallm.cli.plan_profile.measure_on_ranks", lambda order, n_ranks, file: measured)
    arguments = ["grpo", "actor.path=model", "actor.dtype=float32", "reward=f.py:f", "--profile", "times.json"]
    if elsewhere:
        arguments += ["--machine", "h100", "--ranks", "1"]
        code, _, err = plan(*arguments)
        assert code == 2
        assert "times.json: has no measurements of these models; make them on h100" in err
        write_profile(Path("times.json"), measured)
    code, out, err = plan(*arguments)
    assert (code, err) == (0, "")
    assert "times.json" in out
