"""Traces of activations that commands keep for each other: used again, and never wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from reallm import ReaLModelConfig
from reallm.training import kept_traces as module
from reallm.training import memory
from reallm.training.kept_traces import kept_traces
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(n_layers=4)
META = torch.device("meta")
Traced = list[ReaLModelConfig]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which traces are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "reallm" / "traces"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """The networks that are traced."""
    found: Traced = []

    def new(config: ReaLModelConfig) -> object:
        found.append(config)
        return new_meta_model(config)

    new_meta_model = memory.new_meta_model
    monkeypatch.setattr(memory, "new_meta_model", new)
    yield found
    _forget()


def _forget() -> None:
    """Forget what this process has traced, as a new one would not know it."""
    memory._trace_step.cache_clear()  # type: ignore[attr-defined]
    memory._trace_call.cache_clear()  # type: ignore[attr-defined]


def _command(config: ReaLModelConfig = CONFIG, device: torch.device = META) -> list[object]:
    """The activations of a model that is trained, and of one that is only called, as a command of its own has them."""
    _forget()
    with kept_traces():
        return [
            memory.activation_peaks(config, torch.bfloat16, device, [40, 24], how) for how in ("none", "full", None)
        ]


def test_the_next_command_traces_nothing_and_finds_the_same(traced: Traced) -> None:
    first = _command()
    assert traced, "a test of nothing"
    traced.clear()
    assert _command() == first
    assert not traced


def test_what_is_kept_is_what_is_traced_without_a_cache(traced: Traced, cache: Path) -> None:
    _command()
    kept = _command()
    _forget()
    assert kept == [
        memory.activation_peaks(CONFIG, torch.bfloat16, META, [40, 24], how) for how in ("none", "full", None)
    ]
    assert len(list(cache.iterdir())) == 1


def _other_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "99.0")


def _other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOMS", ("training",))


@pytest.mark.parametrize("change", [_other_torch, _other_sources])
def test_another_torch_or_another_source_traces_again(
    change: Callable[[pytest.MonkeyPatch], None], traced: Traced, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _command()
    traced.clear()
    change(monkeypatch)
    _command()
    assert traced
    assert len(list(cache.iterdir())) == 2


def test_another_architecture_has_traces_of_its_own(traced: Traced) -> None:
    _command()
    traced.clear()
    wider = _command(CONFIG.replace(intermediate_size=96))
    assert traced
    assert wider != _command()


def test_layers_of_plugins_are_traced_each_time(traced: Traced, cache: Path) -> None:
    config = CONFIG.replace(mlp="reallm.model.layers:GatedMLP")  # as a plugin names its own
    assert _command(config) == _command()
    traced.clear()
    _command(config)
    assert traced


def test_traces_on_a_cpu_are_not_kept(traced: Traced, cache: Path) -> None:
    _command(device=torch.device("cpu"))
    assert traced
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"a": 1}', '{"a": [true]}', '{"a": ["1"]}', "[" * 5000, "{}", '{"a": [-1]}', "\0"]
)
def test_a_damaged_file_costs_the_time_of_the_traces(content: str, traced: Traced, cache: Path) -> None:
    first = _command()
    (file,) = cache.iterdir()
    file.write_text(content)
    traced.clear()
    assert _command() == first
    assert traced
    assert all(isinstance(one, list) for one in json.loads(file.read_text()).values())  # it has been written anew


def test_a_trace_of_the_wrong_length_is_made_again(traced: Traced, cache: Path) -> None:
    first = _command()
    (file,) = cache.iterdir()
    file.write_text(json.dumps({key: [1] for key in json.loads(file.read_text())}))
    assert _command() == first


def test_a_cache_that_cannot_be_written_is_no_error(
    traced: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _command()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _command() == first


def test_a_file_has_the_modes_of_the_umask(traced: Traced, cache: Path, tmp_path: Path) -> None:
    _command()
    (tmp_path / "usual").touch()
    (file,) = cache.iterdir()
    assert file.stat().st_mode == (tmp_path / "usual").stat().st_mode
