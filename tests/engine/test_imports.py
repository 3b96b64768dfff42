"""What importing the engine brings along: seconds that every command and every worker would pay."""

from __future__ import annotations

import subprocess
import sys


def test_the_engine_imports_neither_the_compiler_nor_transformers():
    program = (
        "import sys, reallm; reallm.ReaLModel;"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
