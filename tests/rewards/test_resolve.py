from __future__ import annotations

from pathlib import Path

import pytest

from reallm import RewardError
from reallm.rewards.functions import accepted, load
from reallm.rewards.resolve import resolve

FILE = Path(__file__).parent / "functions_to_try.py"


def test_a_function_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILE.parent)
    found = resolve(f"{FILE.name}:matches")
    assert found.location == f"{FILE}:matches"
    assert found.columns == ("answer",)
    assert accepted(load(found.location), ["prompts", "completions", "answer", "other"]) == ["completions", "answer"]


def test_a_function_of_verl() -> None:
    found = resolve(f"verl:{FILE}:compute_score")
    assert found.columns == ()
    function = load(found.location)
    texts, chats = ["4", "5"], [[{"role": "assistant", "content": text}] for text in ("4", "5")]
    assert function(completions=texts, ground_truth=["4", "4"]) == [1.0, 0.0]
    assert function(completions=chats, reward_model=[{"ground_truth": "5"}] * 2, prompts=["?"] * 2) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such", r"reward=no_such: no installed plugin offers the reward 'no_such'"),
        ("no_such:f", r"'no_such:f': there is no module 'no_such'; give package\.module:function or file\.py:function"),
        ("os.path:joi", r"'os\.path:joi': os\.path has no 'joi'; did you mean 'join'\?"),
        ("os:sep", r"'os:sep': 'sep' is not a function"),
        ("os:", r"'os:' is not package\.module:function"),
        ("no_such.py:f", r"there is no file .*no_such\.py"),
        ("mine.py", r"reward=mine\.py: say which of its functions, reward=mine\.py:<function>"),
        ("a.py:f,b.py:g", r"write several functions as a list, reward=\[a\.py:f,b\.py:g\]"),
        ("exact_match,length", r"write several functions as a list, reward=\[exact_match,length\]"),
    ],
)
def test_what_is_not_found(name: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        resolve(name)


def test_a_file_that_is_named_like_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text("def f(completions): ...\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match=r"no module 'mine'; for the function of the file, write mine/own\.py:f$"):
        resolve("mine.own:f")


def test_a_file_whose_name_has_a_comma(tmp_path: Path) -> None:
    file = tmp_path / "a,b.py"
    file.write_text("def f(completions): ...\n")
    assert resolve(f"{file}:f").location == f"{file}:f"


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module\n")
    with pytest.raises(RewardError, match=r"there is no module 'no_such_module', which .*broken\.py imports"):
        resolve(f"{file}:f")
    file.write_text("1 / 0\n")
    with pytest.raises(RewardError, match=r"broken\.py cannot be imported: ZeroDivisionError: division by zero"):
        resolve(f"{file}:f")
