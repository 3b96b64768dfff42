"""Real text without a download: functions of the standard library and their docstrings."""

from __future__ import annotations

import importlib
import inspect

MODULES = (
    "argparse", "ast", "asyncio", "base64", "bisect", "calendar", "cmath", "collections", "configparser", "copy", "csv",
    "datetime", "decimal", "difflib", "email.utils", "fnmatch", "fractions", "functools", "gettext", "glob", "heapq",
    "hashlib", "html", "imaplib", "inspect", "ipaddress", "itertools", "json", "linecache", "locale", "logging", "math",
    "mimetypes", "operator", "os", "os.path", "pathlib", "pickle", "pkgutil", "platform", "posixpath", "pprint",
    "random", "re", "shlex", "shutil", "socket", "sqlite3", "statistics", "string", "struct", "subprocess", "sys",
    "tarfile", "tempfile", "textwrap", "threading", "time", "tokenize", "traceback", "types", "unittest.mock",
    "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "xml.etree.ElementTree", "zipfile", "zlib",
)  # fmt: skip


def docstring_rows() -> list[dict[str, str]]:
    """About 750 sorted rows: a question with a signature as prompt, the docstring's first paragraph as answer."""
    rows: dict[str, dict[str, str]] = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, member in inspect.getmembers(module, callable):
            if name.startswith("_") or getattr(member, "__module__", None) != module_name:
                continue
            text = (inspect.getdoc(member) or "").split("\n\n")[0].strip()
            if not 20 < len(text) < 300:
                continue
            try:
                signature = str(inspect.signature(member))
            except (TypeError, ValueError):
                continue
            prompt = f"What does {module_name}.{name}{signature} do in Python?\n"
            if len(prompt) < 200 and " at 0x" not in prompt:
                rows[f"{module_name}.{name}"] = {"prompt": prompt, "answer": text}
    return [rows[name] for name in sorted(rows)]
