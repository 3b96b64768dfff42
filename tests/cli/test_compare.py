"""`reallm compare`: curves, results and settings of runs side by side, and the plots in text that it draws."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from reallm.cli.main import run
from tests.helpers.run_folders import write_run


@pytest.fixture
def reallm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs a command line in a folder with three runs; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    about = {"model": {"path": "m"}, "optimizer": {"lr": 1e-5, "warmup_steps": None}, "name": "first-try"}
    write_run(Path("runs/first-try"), losses=[3.0, 1.0, 2.0], eval_losses={0: 4.0, 3: 2.0}, settings=about)
    about = {"model": {"path": "m"}, "optimizer": {"lr": 3e-5, "warmup_steps": None}, "name": "second-try"}
    write_run(
        Path("runs/second-try"), losses=[3.0, 2.5], eval_losses={0: 4.0, 2: 2.5}, settings=about, status="stopped"
    )
    write_run(Path("runs/no-config"), call="actor")

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        return (code, *capsys.readouterr())

    return command


def cells(out: str) -> dict[str, list[str]]:
    """The rows of the tables, by their first cells."""
    rows = [re.split(r"\s{2,}", line.rstrip()) for line in out.splitlines() if "│" not in line]
    return {row[0] or row[1]: row[1:] if row[0] else row[2:] for row in rows if len(row) > 1}


# ---------------------------------------------------------------- what is shown


def test_last_and_best_values_are_side_by_side_and_the_better_one_is_marked(reallm):
    code, out, err = reallm("compare", "first-try", "second-try")
    assert (code, err) == (0, "")
    table = cells(out)
    assert table["state"] == ["done", "stopped"]
    assert table["steps"] == ["3/3", "2/2"]
    assert table["tokens"] == ["300", "200"]
    assert table["train/loss"] == ["2.000 *", "2.500"]
    assert table["lowest, at step"] == ["1.000 @2 *", "2.500 @2"]
    assert table["eval/loss"] == ["2.000 *", "2.500"]
    assert not {"train/lr", "train/tokens", "epoch"} & set(table)


def test_only_settings_that_differ_are_listed_and_not_where_a_run_writes(reallm):
    _, out, _ = reallm("compare", "first-try", "second-try")
    table = cells(out)
    assert table["settings that differ"] == ["A first-try", "B second-try"]
    assert table["optimizer.lr"] == ["1e-05", "3e-05"]
    assert not {"name", "model.path", "optimizer.warmup_steps"} & set(table)


def test_a_setting_that_one_run_has_and_the_other_has_not_differs(reallm):
    write_run(Path("runs/third"), settings={"model": {"path": "m"}, "loggers": ["jsonl"]})
    write_run(Path("runs/fourth"), settings={"model": {"path": "m"}, "loggers": []})
    table = cells(reallm("compare", "first-try", "third", "fourth")[1])
    assert table["optimizer.lr"] == ["1e-05", "-", "-"]
    assert table["loggers"] == ["-", '["jsonl"]', "[]"]


def test_each_loss_has_a_plot_with_the_letters_of_its_runs_in_80_columns(reallm):
    _, out, _ = reallm("compare", "first-try", "second-try", "no-config")
    assert max(map(len, out.splitlines())) <= 80
    legend = out.splitlines()[:3]
    assert legend == ["A  first-try", "B  second-try", "C  no-config"]
    plots = dict(re.findall(r"^(\S+/loss)\n(.*?└.*?\n.*?)\n", out, re.MULTILINE | re.DOTALL))
    letters = {name: set(re.findall("[A-Z]", plot)) for name, plot in plots.items()}
    assert letters == {"train/loss": {"A", "B"}, "actor/loss": {"C"}, "eval/loss": {"A", "B"}}
    assert plots["train/loss"].endswith("step 3")


def test_a_run_without_settings_is_named(reallm):
    _, out, _ = reallm("compare", "first-try", "no-config")
    assert "the settings of B are unknown: runs/no-config has no config.yaml" in out.splitlines()
    assert "no settings differ" not in out


def test_runs_with_the_same_settings_say_so(reallm):
    write_run(Path("runs/again"))
    shutil.copy("runs/first-try/config.yaml", "runs/again")
    assert "no settings differ" in reallm("compare", "first-try", "again")[1].splitlines()


@pytest.mark.parametrize(("by", "end"), [("steps", "step 3"), ("tokens", "300 tokens"), ("epochs", "epoch 0.3")])
def test_curves_run_along_steps_tokens_or_epochs(reallm, by, end):
    _, out, _ = reallm("compare", "first-try", "second-try", "--by", by)
    assert out.count(f"{end}\n") == 2


def test_json_has_the_same(reallm):
    code, out, _ = reallm("compare", "first-try", "second-try", "--by", "tokens", "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["name"] for one in found["runs"]] == ["first-try", "second-try"]
    assert found["by"] == "tokens"
    assert found["losses"]["train/loss"]["first-try"] == [[100, 3.0], [200, 1.0], [300, 2.0]]
    assert found["losses"]["eval/loss"]["second-try"] == [[0, 4.0], [200, 2.5]]
    assert found["metrics"]["train/loss"]["first-try"] == {"last": 2.0, "best": 1.0, "best_step": 2}
    assert found["metrics"]["train/lr"]["first-try"] == {"last": 1e-3, "best": None, "best_step": None}
    assert found["settings"] == {"optimizer.lr": {"first-try": 1e-5, "second-try": 3e-5}}
    assert not Path("runs/compare.png").exists()


# ---------------------------------------------------------------- the picture


def test_the_picture_is_beside_the_runs_unless_another_place_is_given(reallm):
    _, out, _ = reallm("compare", "first-try", "second-try")
    assert out.splitlines()[-1] == "as a picture: runs/compare.png"
    assert Path("runs/compare.png").read_bytes().startswith(b"\x89PNG")
    _, out, _ = reallm("compare", "first-try", "second-try", "--output", "new/mine.png")
    assert out.splitlines()[-1] == "as a picture: new/mine.png"
    assert Path("new/mine.png").read_bytes().startswith(b"\x89PNG")
    assert reallm("compare", "first-try", "second-try", "--json", "--output", "json.png")[1].endswith("}\n")
    assert Path("json.png").exists()


def test_without_a_folder_of_runs_the_picture_is_in_this_one(reallm, monkeypatch):
    monkeypatch.chdir("runs/first-try")
    _, out, _ = reallm("compare", "../first-try", "../second-try")
    assert out.splitlines()[-1] == "as a picture: compare.png"


def test_runs_without_losses_are_compared_without_plots(reallm):
    for name in ("x", "y"):
        write_run(Path(f"runs/{name}"))
        Path(f"runs/{name}/metrics.jsonl").write_text('{"step": 1, "actor/ratio": 0.5}\n')
    code, out, _ = reallm("compare", "x", "y")
    assert code == 0
    assert cells(out)["actor/ratio"] == ["0.5000", "0.5000"]
    assert "picture" not in out
    code, out, err = reallm("compare", "x", "y", "--json", "--output", "a.png")
    assert (code, err) == (2, "error: no picture a.png: none of the runs has logged a loss or a reward\n")


def test_rewards_come_before_losses(reallm):
    for name, reward in (("x", 0.5), ("y", 0.75)):
        write_run(Path(f"runs/{name}"))
        lines = [{"step": step, "train/loss": 0.1, "train/reward": reward - step} for step in (1, 2)]
        Path(f"runs/{name}/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, out, _ = reallm("compare", "x", "y", "first-try")
    assert out.index("\ntrain/reward\n") < out.index("\ntrain/loss\n"), "the loss of first-try, which has no rewards"
    shown = cells(out)
    assert list(shown).index("train/reward") < list(shown).index("train/loss")
    assert shown["train/reward"] == ["-1.500", "-1.250 *"]
    found = json.loads(reallm("compare", "x", "y", "--json")[1])
    assert found["rewards"] == {"train/reward": {"x": [[1, -0.5], [2, -1.5]], "y": [[1, -0.25], [2, -1.25]]}}


def test_runs_without_metrics_are_named_and_left_out(reallm):
    write_run(Path("runs/empty"), losses=[], status="failed", error="no memory")
    code, out, err = reallm("compare", "first-try", "empty", "second-try")
    assert (code, err) == (0, "")
    left_out = "left out, no metrics yet: empty (failed: no memory)"
    assert out.splitlines()[:3] == ["A  first-try", "B  second-try", left_out]
    assert cells(out)["state"] == ["done", "stopped"]
    code, out, _ = reallm("compare", "first-try", "empty", "--json")
    compared = json.loads(out)
    assert code == 0
    assert [run["name"] for run in compared["runs"]] == ["first-try"]
    assert [run["name"] for run in compared["without_metrics"]] == ["empty"]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to compare; name at least two runs: reallm compare RUN RUN"),
        (["first-try"], "there is nothing to compare; name at least two runs: reallm compare RUN RUN"),
        (["first-try", "secnd-try"], "no run runs/secnd-try; did you mean runs/second-try?"),
        (["first-try", "runs/first-try"], "the run runs/first-try is named twice"),
        (["empty", "new"], "none of these runs has metrics to compare: empty (failed: no memory), new (stopped)"),
        (
            ["first-try", "second-try", "--by", "token"],
            "--by token: must be steps, tokens or epochs; did you mean tokens?",
        ),
        (["first-try", "x", "--by", "epochs"], "--by epochs: the run runs/x has not logged them; use --by steps"),
        (["first-try", "second-try", "--output", "a.jpg"], "--output a.jpg: the name must end in .png"),
        (["first-try", "second-try", "--dir", "other"], "no run other/first-try: there is no folder other"),
    ],
)
def test_a_mistake_is_one_line(reallm, arguments, message):
    write_run(Path("runs/empty"), losses=[], status="failed", error="no memory")
    write_run(Path("runs/new"), losses=[], status="stopped")
    write_run(Path("runs/x"))
    Path("runs/x/metrics.jsonl").write_text('{"step": 1, "train/loss": 1.5}\n')
    assert reallm("compare", *arguments) == (2, "", f"error: {message}\n")
