"""`reallm realloc`: what a reallocation sends, known beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reallm.cli.main import run
from reallm.cli.realloc import bytes_per_second
from reallm.cli.tables import duration, size
from reallm.errors import CheckpointError, ConfigError
from reallm.parallel.layout import Layout
from reallm.reallocation.plan import plan
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(vocab_size=96)


@pytest.fixture
def reallm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs `reallm realloc` where `model` is a checkpoint's folder; returns exit code, output and errors.

    No family is installed here: what `config.json` means is given.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("model").mkdir()
    Path("model/config.json").write_text('{"dtype": "float32"}')

    def architecture(path):
        if path != "model":
            raise CheckpointError(f"{path} does not exist")
        return CONFIG

    monkeypatch.setattr("reallm.hf.conversion.config.load_model_config", architecture)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run(["realloc", *arguments])
        return (code, *capsys.readouterr())

    return command


def test_the_table_in_80_columns(reallm):
    code, out, err = reallm("--from", "tp2@0,1", "--to", "dp2@1,2", "model.path=model")
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    made = plan(CONFIG, Layout.parse("tp2@0,1"), Layout.parse("dp2@1,2"))
    assert lines[:2] == ["model, float32", "from tp2 to dp2@1-2"]
    assert lines[3].split() == ["Bytes", "to", "1", "to", "2"]
    pairs = {pair: size(4 * n) for pair, n in made.elements_by_pair.items()}
    assert lines[4].split() == ["from", "0", *pairs[0, 1].split(), *pairs[0, 2].split()]
    assert lines[5].split() == ["from", "1", "-", *pairs[1, 2].split()]
    assert lines[7].split() == ["Rank", "Sends", "Receives", "Keeps"]
    sent, received, kept = (size(4 * n(2)) for n in (made.sent_elements, made.received_elements, made.kept_elements))
    assert lines[10].split() == ["2", *sent.split(), *received.split(), *kept.split()]
    summary = dict(line.split("  ", 1) for line in lines[12:])
    assert list(summary) == ["Sent", "Kept", "Busiest sender", "Busiest receiver", "Messages", "Time"]
    assert (
        summary["Sent"].strip()
        == f"{size(4 * made.lower_bound)}, the lower bound: no rank is sent what it already holds"
    )
    assert "in each direction, by rank" in summary["Time"]
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("columns", "shown"), [("80", "Bytes"), ("40", "Pair")])
def test_a_narrow_terminal_gets_a_list_instead_of_columns(reallm, monkeypatch, columns, shown):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = reallm("--from", "fsdp4", "--to", "tp2dp2", "model.path=model")
    assert code == 0
    lines = out.splitlines()
    assert lines[3].startswith(shown)
    assert max(map(len, lines[2:])) <= int(columns)
    assert ("the busiest of 12 pairs" in out) == (shown == "Pair")


def test_of_many_ranks_the_busiest(reallm):
    code, out, _ = reallm("--from", "fsdp16", "--to", "tp2dp16", "model.path=model")
    assert code == 0
    assert "the busiest of 32 ranks" in out
    assert " pairs\n" in out
    assert len(out.splitlines()) < 40


def test_nothing_to_send(reallm):
    code, out, err = reallm("--from", "dp2", "--to", "tp2", "model.path=model")
    assert (code, err) == (0, "")
    assert "nothing: every rank already holds what it needs" in out
    assert "Time" not in out


def test_json_is_one_object_that_agrees_with_the_plan(reallm):
    code, out, err = reallm("--from", "tp2pp2", "--to", "fsdp3", "model.path=model", "--json",
                            "--dtype", "bfloat16", "--bandwidth", "1KB/s")  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    made = plan(CONFIG, Layout.parse("tp2pp2"), Layout.parse("fsdp3"))
    ranks, pairs = found.pop("ranks"), found.pop("pairs")
    most_received = max(map(made.received_elements, range(4)))
    assert found == {
        "model": "model",
        "dtype": "bfloat16",
        "from": "tp2pp2dp1",
        "to": "tp1pp1fsdp3",
        "sent_bytes": 2 * made.total_elements,
        "lower_bound_bytes": 2 * made.total_elements,
        "kept_bytes": 2 * sum(map(made.kept_elements, range(4))),
        "messages": made.n_messages,
        "most_sent_bytes": 2 * made.max_sent,
        "most_sent_bytes_at_best": 2 * made.min_max_sent,
        "most_received_bytes": 2 * most_received,
        "bandwidth_bytes_per_second": 1000.0,
        "seconds": 2 * max(most_received, made.max_sent) / 1000,
    }
    assert [item["rank"] for item in ranks] == [0, 1, 2, 3]
    assert sum(item["received_bytes"] for item in ranks) == sum(item["bytes"] for item in pairs) == found["sent_bytes"]


LAYOUTS = ("--from", "tp2", "--to", "dp2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "dp2", "model.path=model"], "--from LAYOUT is required, such as --from tp2pp2dp4"),
        (["--from", "dp2", "model.path=model"], "--to LAYOUT is required"),
        (["--from", "tp2", "--to", "xp2", "model.path=model"], "--to: 'xp2' is not a layout; write one like tp2pp1dp2"),
        (["--from", "tp2@0", "--to", "dp2", "model.path=model"], "--from: layout tp2pp1dp1 takes 2 different ranks"),
        (["--from", "tp2", "--to", "tp3", "model.path=model"], "--to tp3: tp=3 does not fit the model's 4 query"),
        (["--from", "pp3", "--to", "tp2", "model.path=model"], "--from pp3: pp=3 stages are too many"),
        ([*LAYOUTS], "model.path is required"),
        ([*LAYOUTS, "model.pth=model"], "unknown key 'model.pth'; did you mean 'model.path'?"),
        ([*LAYOUTS, "model"], "'model' is not key=value"),
        ([*LAYOUTS, "model.path=nowhere"], "nowhere does not exist"),
        ([*LAYOUTS, "model.path=model", "--dtype", "bf16"], "did you mean 'bfloat16'?"),
        ([*LAYOUTS, "model.path=model", "--bandwidth", "fast"], "--bandwidth fast: must be a rate such as 25GB/s"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(reallm, arguments, message):
    code, out, err = reallm(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("arguments", [["--help"], [*LAYOUTS, "model.pth=model"], ["--from", "x"]])
def test_help_and_mistakes_import_nothing_heavy(arguments):
    script = (
        "import sys\nfrom reallm.cli.main import run\n"
        f"run(['realloc', *{arguments!r}])\nprint(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25GB/s", 25e9),
        ("25 GB/s", 25e9),
        ("200Gbit/s", 25e9),
        ("200Gb/s", 25e9),
        ("400Gbps", 50e9),
        ("1.5MiB/s", 1.5 * 2**20),
        ("900MB", 9e8),
        ("3B/s", 3),
    ],
)
def test_rates(text, rate):
    assert bytes_per_second(text) == rate


@pytest.mark.parametrize("text", ["25", "0GB/s", "GB/s", "25gb/s", "-1GB/s", "25GB/h", "25 G"])
def test_what_is_no_rate(text):
    with pytest.raises(ConfigError, match="must be a rate such as 25GB/s"):
        bytes_per_second(text)


def test_sizes_and_times_as_people_read_them():
    assert list(map(size, (0, 1, 999, 1000, 999_600, 2.5e10, 1e17))) == [
        "-", "1 B", "999 B", "1 KB", "1 MB", "25 GB", "100 PB",
    ]  # fmt: skip
    assert list(map(duration, (75, 1.234, 0.9996, 0.0015, 2e-6, 3e-8))) == [
        "75 s", "1.23 s", "1 s", "1.5 ms", "2 µs", "0.03 µs",
    ]  # fmt: skip
