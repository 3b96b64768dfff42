"""The Python of the page on many ranks runs as it stands, on four of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.helpers.hf_grid import raw_config, save_hf
from tests.helpers.tokenizers import tiny_tokenizer
from workspace import ROOT


def test_models_on_many_ranks(tmp_path):
    text = (ROOT / "docs/distributed-models.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    tokenizer = tiny_tokenizer()
    check = """
assert logprobs.shape == (3,) and logprobs[0] == 0 and logprobs[1] < 0, logprobs
assert len(completions) == 1 and completions[0].token_ids, completions
"""
    (tmp_path / "script.py").write_text("\n".join([*blocks, check]), encoding="utf-8")
    save_hf({**raw_config("gqa"), "vocab_size": len(tokenizer)}, tmp_path / "path/to/checkpoint")
    tokenizer.save_pretrained(tmp_path / "path/to/checkpoint")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "path/to/copy/config.json").is_file()
