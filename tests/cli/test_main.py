"""The command `reallm`: commands, help, exit codes, and what it does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import pytest

from reallm.cli import main
from reallm.experiments.preflight import checks
from tests.helpers import fake_plugins


@pytest.fixture
def reallm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs a command line in an empty folder, with plugins for tests; returns exit code, output and errors."""
    fake_plugins.install(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main.run(arguments)
        return (code, *capsys.readouterr())

    return run


def command(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Runs `python -m reallm` in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=240, **options
    )


# ---------------------------------------------------------------- commands


def test_help_lists_the_commands_and_what_entry_points_promise(reallm):
    code, out, _ = reallm("--help")
    assert code == 0
    for name in ("sft", "generate", "plugins", "demo"):
        assert f"\n  {name} " in out
    assert "hidden" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_without_arguments_it_prints_its_help(reallm):
    assert reallm() == reallm("-h")


def test_version(reallm):
    assert reallm("--version") == (0, f"reallm-core {version('reallm-core')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stf"], "no command 'stf'; did you mean 'sft'? Commands: "),
        (["generat"], "did you mean 'generate'?"),
        (["zzz"], "no command 'zzz'; commands: "),
        (["--zzz"], "no such option: --zzz"),
        (["sft", "lr=1e-4"], "did you mean 'optimizer.lr'?"),
        (["sft", "--lr", "1e-4"], "optimizer.lr=1e-4"),
        (["sft", "--config"], "option '--config' requires an argument"),
        (["sft"], "model.path is required"),
        (["sft", "--config", "run.yaml"], "run.yaml: No such file"),
        (["sft", "model.path=nope", "dataset.train_path=t.jsonl"], "model.path: nope does not exist"),
        (["generate"], 'no model is given; write reallm generate MODEL "Once upon a time"'),
        (["generate", "--model", "m"], 'nothing to continue; give prompts (reallm generate m "Once upon a time")'),
        (["generate", "org/m"], "nothing to continue"),
        (["generate", "Once upon"], "is the model, and 'Once upon' is none; write reallm generate MODEL 'Once upon'"),
        (["generate", "Once " * 100], "the first argument is the model, and 'Once Once"),
        (["generate", "--model", "m", ""], "prompt 1: the prompt is empty"),
        (["generate", "m", "a", ""], "prompt 2: the prompt is empty"),
        (["generate", "m", "a", "--min-new-tokens", "200"], "--min-new-tokens 200 is more than --max-new-tokens 128"),
        (
            ["generate", "m", "a", "--n", "2", "--temperature", "0"],
            "--n 2 with --temperature 0 would give 2 equal samples",
        ),
        (["generate", "m", "a", "--min-p", "2"], "--min-p 2.0 must be at least 0 and at most 1"),
        (["generate", "m", "a", "--output", "a.jsonl"], "--output FILE is for the prompts of a file"),
        (["generate", "m", "--prompts", "p.txt", "--output", "a.csv"], "--output a.csv: the name must end in .jsonl"),
        (["generate", "m", "--prompts", "p.txt", "--output", "x/a.jsonl"], "x/a.jsonl: there is no folder x"),
        (["generate", "m", "--prompts", "p.txt", "--output", "a.jsonl", "--json"], "leave --json out"),
        (["generate", "m", "a", "--overwrite"], "--overwrite is for --output FILE"),
        (["generate", "m", "--prompts", "p.txt", "--output", "a.jsonl"], "p.txt: no such file"),
        (["generate", "m", "--chat"], "a conversation needs a terminal; give a message (reallm generate m --chat"),
        (["generate", "--model", "m", "--max-new-tokens", "many", "a"], "'--max-new-tokens'"),
        (["generate", "--model", "m", "--max-new-tokens", "0", "a"], "'--max-new-tokens'"),
        (["generate", "--model", "m", "--n", "1000000000", "a"], "'--n': Input should be less than or equal to 65536"),
        (["generate", "--model", "m", "--device", "gpu", "a"], "--device gpu: must be auto, cpu or cuda"),
        (["generate", "--model", "m", "--prompts", "a.pdf"], "a.pdf: no such file"),
        (["generate", "--model", "nope", "a"], "--model: nope does not exist"),
        (["generate", "nope", "a"], "MODEL: nope does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(reallm, arguments, message):
    code, out, err = reallm(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_an_algorithm_that_no_entry_point_names_is_a_command_too(reallm):
    code, out, _ = reallm("hidden", "--help")
    assert code == 0
    assert "Promised by no entry point." in out


def test_print_config_prints_and_does_nothing_else(reallm):
    code, out, err = reallm("sft", "optimizer.lr=1e-4", "--print-config")
    assert (code, err) == (0, "")
    assert "lr: 0.0001" in out
    assert "path: ???" in out
    Path("run.yaml").write_text(out)
    assert reallm("sft", "--config", "run.yaml", "--print-config") == (0, out, "")


@pytest.mark.parametrize(("interrupted", "exit_code"), [(False, 0), (True, 130)])
def test_sft_hands_configuration_and_algorithm_to_the_runner(reallm, monkeypatch, interrupted, exit_code):
    seen = []

    def run(config, algorithm, *, name, job):
        assert name == "sft"
        assert job is None, "alone"
        seen.extend([config, algorithm])
        return types.SimpleNamespace(interrupted=interrupted)

    runner = types.ModuleType("reallm.experiments.run.runner")
    runner.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reallm.experiments.run.runner", runner)
    monkeypatch.setattr(checks, "check", lambda config, graph: seen.append(config))
    code, _, _ = reallm("sft", "model.path=m", "dataset.train_path=t.jsonl", "epochs=2")
    assert code == exit_code
    checked, config, algorithm = seen
    assert checked is config
    assert config.epochs == 2
    assert algorithm is fake_plugins.OFFERS["algorithm"]["sft"]


# ---------------------------------------------------------------- how it ends


def fails_with(error: BaseException):
    def fail(name: str, files: list[Path], arguments: list[str]) -> None:
        raise error

    return fail


def test_ctrl_c_is_a_line_and_exit_code_130(reallm, monkeypatch):
    monkeypatch.setattr("reallm.cli.algorithm._run", fails_with(KeyboardInterrupt()))
    assert reallm("sft") == (130, "", "\ninterrupted\n")


def test_an_error_of_our_own_keeps_its_traceback(reallm, monkeypatch):
    monkeypatch.setattr("reallm.cli.algorithm._run", fails_with(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        reallm("sft")


def test_a_reader_that_leaves_is_no_error(tmp_path):
    script = f"{sys.executable} -m reallm --help | true; exit ${{PIPESTATUS[0]}}"
    for _ in range(3):  # whether the reader leaves before or after the writing is up to the machine
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.stderr == ""


def test_python_m_reallm_is_the_command():
    done = command("-m", "reallm", "stf")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no command 'stf'")


THREAD_AND_EXIT_FUNCTION = """
import atexit, sys, threading, time
import reallm.cli.main
def work():
    time.sleep(0.2)
    sys.stdout.write("thread, ")
def run(arguments):
    threading.Thread(target=work).start()
    atexit.register(sys.stdout.write, "exit function")
    return 3
reallm.cli.main.run = run
reallm.cli.main.main()
"""


def test_a_command_ends_after_its_threads_and_exit_functions():
    done = command("-c", THREAD_AND_EXIT_FUNCTION)
    assert (done.returncode, done.stdout, done.stderr) == (3, "thread, exit function", "")


# ---------------------------------------------------------------- imports

HEAVY = {"torch", "transformers", "numpy", "safetensors", "matplotlib", "huggingface_hub", "fastapi", "uvicorn"}


@pytest.mark.parametrize(
    ("arguments", "light"),
    [
        (["--help"], HEAVY | {"omegaconf", "yaml", "reallm.builtin"}),
        (["--version"], HEAVY | {"omegaconf", "yaml"}),
        (["plugins"], HEAVY),
        (["plugins", "--json"], HEAVY),
        (["plugins", "show", "sft"], HEAVY),
        (["sft", "--help"], HEAVY),
        (["sft", "--print-config", "seed=3"], HEAVY),
        (["sft", "lr=3"], HEAVY),
        (["generate", "--help"], HEAVY | {"omegaconf"}),
        (["demo", "--help"], HEAVY | {"omegaconf"}),
    ],
)
def test_nothing_heavy_is_imported(arguments, light):
    code = (
        "import json, sys; from reallm.cli.main import run; run(json.loads(sys.argv[1])); "
        "print('imported:', json.dumps(sorted(sys.modules)))"
    )
    done = command("-c", code, json.dumps(arguments), env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.rpartition("imported:")[2]))
    assert not imported & light


@pytest.mark.parametrize("name", ["eval", "preview"])
def test_a_key_written_as_an_option_tells_how_to_write_it(reallm, name):
    code, _, errors = reallm(name, "--model", "x")
    said = "error: '--model x': keys are written without dashes and with '=': model.path=x\n"
    assert (code, errors) == (2, said)


@pytest.mark.parametrize(
    ("name", "typed", "meant"), [("eval", "--lm-evl", "--lm-eval"), ("preview", "--rws", "--rows")]
)
def test_a_misspelt_option_names_the_nearest(reallm, name, typed, meant):
    code, _, errors = reallm(name, typed, "x")
    assert (code, errors) == (2, f"error: no such option: {typed} (Possible options: {meant})\n")


def test_a_mistake_with_control_characters_is_one_line_that_does_not_drive_the_terminal(reallm):
    code, _, err = reallm("sft", "model.pa\x1b]0;title\x07th=m")
    assert code == 2
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert r"\x1b]0;title" in err


@pytest.mark.parametrize(
    ("shell", "code", "message"),
    [
        ("{} runs . > /dev/full", 2, "error: standard output cannot be written: No space left on device; free the"),
        ("{} runs . >&-", 0, ""),
        ("{} runs . 2>&-", 0, ""),
        ("mkdir gone; cd gone; rmdir ../gone; {} runs", 2, "error: the folder that this command was started in no lon"),
    ],
)
def test_streams_that_cannot_be_written_and_a_folder_that_is_gone(
    tmp_path: Path, shell: str, code: int, message: str
) -> None:
    command = shell.format(f"{sys.executable} -m reallm")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == bool(message)
