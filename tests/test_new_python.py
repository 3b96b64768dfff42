"""New processes of this Python import nothing from the working folder, which may be that of somebody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reallm.new_python import module_command


@pytest.mark.parametrize("first", ["/nowhere", ""])
def test_a_module_is_taken_from_the_working_folder_only_if_this_process_would_take_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    (tmp_path / "this.py").write_text("print('from the working folder')")  # `this` of Python prints the Zen
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [first, *filter(None, sys.path)])
    printed = subprocess.run(module_command("this"), capture_output=True, text=True, check=True, timeout=240).stdout
    assert ("working folder" in printed) == (first == "")
