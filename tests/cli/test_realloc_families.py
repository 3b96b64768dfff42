"""`reallm realloc` on a real `config.json`, in a folder that holds nothing else."""

from __future__ import annotations

import json

import pytest

from reallm.cli.main import run
from tests.helpers.hf_grid import raw_config


@pytest.mark.parametrize(("dtype", "itemsize"), [("bfloat16", 2), ("float32", 4), (None, 2)])
def test_a_config_is_enough(tmp_path, capsys, dtype, itemsize):
    (tmp_path / "config.json").write_text(json.dumps(raw_config("gqa") | ({"torch_dtype": dtype} if dtype else {})))
    assert run(["realloc", "--from", "dp1@0", "--to", "dp1@1", f"model.path={tmp_path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Two tables of 97 tokens, two blocks with 4 query and 2 KV heads of 8, five norms.
    n_parameters = 2 * 97 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48) + 5 * 32
    assert found["dtype"] == (dtype or "bfloat16")
    assert found["sent_bytes"] == itemsize * n_parameters
    assert found["ranks"][1]["received_bytes"] == itemsize * n_parameters
