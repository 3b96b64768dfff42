"""Distributions of third parties, really built and installed, each test with those it names and no others.

Every distribution in `tests/installable` is built into a wheel once and installed into a folder of its own (a wheel of
pure Python is installed by unpacking it). An environment is this Python with some of these folders on its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.forked import ForkedPython

PLUGINS = Path(__file__).parent.parent / "installable"


@dataclass(frozen=True)
class Environment:
    """A Python, where its path is extended, and the folder it runs in."""

    python: Path
    path: tuple[Path, ...]
    folder: Path

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments and environment variables.

        A module is run in a process that has imported torch already, if the environment is that of this Python.
        """
        if arguments[0] == "-m" and self.python == Path(sys.executable):
            return self._run_forked(arguments, variables)
        command, environment = [str(self.python), *arguments], self._variables(variables)
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    def _run_forked(self, arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            code = ForkedPython(arguments, self._variables(variables), out, err, self.folder).wait(300)
            return subprocess.CompletedProcess([str(self.python), *arguments], code, out.read_text(), err.read_text())

    def reallm(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the command `reallm`."""
        return self.run("-m", "reallm", *arguments, **variables)

    def _variables(self, added: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != "REALLM_DISABLE_PLUGINS"}
        paths = {"PYTHONPATH": os.pathsep.join(map(str, self.path))} if self.path else {}
        return {**inherited, **paths, **added}

    def evaluate(self, code: str, **variables: str) -> str:
        """What a program prints, which must succeed."""
        done = self.run("-c", code, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def compute(self, code: str, **variables: str) -> str:
        """What a program prints that needs torch, in a process that has imported it already; it must succeed."""
        assert self.python == Path(sys.executable)
        done = self._run_forked(["-c", code], variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def forked(self) -> Environment:
        """What pip has installed here (and not as editable), in processes that have imported torch already."""
        site = self.evaluate("import sysconfig; print(sysconfig.get_path('purelib'))")
        return Environment(Path(sys.executable), (Path(site),), self.folder)

    def error(self, kind: str, name: str, **variables: str) -> str:
        """The message of the error that looking up a name ends in."""
        return self.evaluate(
            "from reallm.errors import PluginError\n"
            "from reallm.plugins import registry\n"
            "try:\n"
            f"    registry.get({kind!r}, {name!r})\n"
            "except PluginError as error:\n"
            "    print(error)\n",
            **variables,
        )


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `tests/installable`, since building leaves files behind."""
    copy = tmp_path_factory.mktemp("sources") / "plugins"
    shutil.copytree(PLUGINS, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    return copy


@pytest.fixture(scope="session")
def installed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distribution -> the folder it is installed in."""
    wheels = tmp_path_factory.mktemp("wheels")
    folders = sorted(path.parent for path in sources.glob("*/pyproject.toml"))
    build = [sys.executable, str(Path(__file__).with_name("build.py")), str(wheels), *map(str, folders)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installed = {}
    for folder in folders:
        (wheel,) = wheels.glob(f"{folder.name.replace('-', '_')}-*.whl")
        installed[folder.name] = tmp_path_factory.mktemp(folder.name)
        zipfile.ZipFile(wheel).extractall(installed[folder.name])
    return installed


@pytest.fixture
def environment(installed: dict[str, Path], tmp_path: Path) -> Callable[..., Environment]:
    """`environment("reallm-my-data", ...)`: this Python with these distributions installed as well."""
    return lambda *names: Environment(Path(sys.executable), tuple(installed[name] for name in names), tmp_path)


@pytest.fixture(scope="module")
def editable(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtual environment of its own in which pip has installed `reallm-my-data` with `--editable`."""
    environment = fresh_environment(tmp_path_factory.mktemp("editable"))
    pip_install(environment, "--editable", str(sources / "reallm-my-data"))
    return environment


def fresh_environment(folder: Path) -> Environment:
    """A virtual environment of its own, in `folder`, that sees what is installed here beside it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = Environment(python, (), folder)
    site = Path(environment.evaluate("import sysconfig; print(sysconfig.get_path('purelib'))"))
    ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Not plain lines, since the `.pth` files in those folders count as well.
    lines = (f"import site; site.addsitedir({path!r})\n" for path in ours)
    (site / "outer.pth").write_text("".join(lines), encoding="utf-8")
    return environment


def pip_install(environment: Environment, *arguments: str) -> None:
    """Have pip build and install sources into an environment, without their dependencies."""
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", *arguments]
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), *install]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
