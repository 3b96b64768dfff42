"""`Profile`: measured times of models and links, and the JSON file that keeps them. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reallm.atomic_files import atomic_write
from reallm.errors import DataError
from reallm.foreign_files import parse_json, read_bytes, reading, shown
from reallm.model.config import ReaLModelConfig
from reallm.planning.rates import Division

FORMAT = 2
NOT_MEASURED = ("max_positions", "init_std")
"""Fields of a configuration that no time depends on; nor on the number of blocks, which are measured one by one."""


@dataclass(frozen=True)
class PassTimes:
    """Seconds of a forward and a backward pass over packed sequences of one length, on one rank."""

    tp: int
    n_sequences: int
    length: int
    forward_block: float
    forward_ends: float
    """Of embedding and head with log-probabilities or scores, and of all that is done once for a pass."""
    backward_block: float
    backward_ends: float

    @property
    def n_tokens(self) -> int:
        """Tokens of the pass."""
        return self.n_sequences * self.length


@dataclass(frozen=True)
class DecodeTimes:
    """Seconds of a step of generation that computes one token of each sequence."""

    tp: int
    n_sequences: int
    context: int
    """Tokens before the new one, in the middle of the steps that were measured."""
    block: float
    ends: float
    """Of embedding, head, sampling, and of all that is done once in a step."""
    division: Division = ""


@dataclass(frozen=True)
class ModelProfile:
    """Measured times of one architecture."""

    passes: tuple[PassTimes, ...] = ()
    decoding: tuple[DecodeTimes, ...] = ()
    optimizer: tuple[tuple[int, float], ...] = ()
    """Number of parameters, and seconds of an optimizer step."""
    starts: tuple[tuple[int, float], ...] = ()
    """Number of parameters, and seconds of what is done once before a model generates."""

    @property
    def trains(self) -> bool:
        """Whether backward passes and optimizer steps are measured."""
        return bool(self.optimizer)

    @property
    def generates(self) -> bool:
        """Whether decoding is measured."""
        return bool(self.decoding)

    def towards(self, other: ModelProfile, share: float) -> ModelProfile:
        """Times between these and others: these with a share of 0, the others with 1, and where these have no point."""
        return ModelProfile(
            _between(self.passes, other.passes, share),
            _between(self.decoding, other.decoding, share),
            _between(self.optimizer, other.optimizer, share),
            _between(self.starts, other.starts, share),
        )


@dataclass(frozen=True)
class LinkProfile:
    """Measured times of messages: number of bytes, and seconds."""

    all_reduce: Mapping[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """By the number of ranks."""
    all_gather: Mapping[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """By the number of ranks, with the bytes of the whole."""
    reduce_scatter: Mapping[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """By the number of ranks, with the bytes of the whole."""
    point_to_point: tuple[tuple[int, float], ...] = ()
    host_copy: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Profile:
    """What was measured in one setting: a device, a version of torch, a number of ranks."""

    setting: str
    models: Mapping[str, Mapping[int, ModelProfile]] = field(default_factory=dict)
    """By `model_key`, and by the number of ranks that computed the same at the same time."""
    links: LinkProfile = field(default_factory=LinkProfile)


def model_key(config: ReaLModelConfig, dtype: str) -> str:
    """The name of an architecture in a profile: a hash of what its times depend on, but not the number of blocks."""
    one_block = config.with_blocks(0)
    values = {
        item.name: str(getattr(one_block, item.name))
        for item in dataclasses.fields(one_block)
        if item.name not in NOT_MEASURED
    }
    return hashlib.sha256(json.dumps([dtype, values], sort_keys=True).encode()).hexdigest()[:16]


def read_profiles(file: Path) -> dict[str, Profile]:
    """All profiles in a file, by setting; none without a file.

    Raises:
        DataError: it is not such a file.
    """
    if not file.exists():
        return {}
    remedy = "measure again into a new file"
    with reading(file, remedy, error=DataError, problem="is not a file of measurements"):
        content = parse_json(read_bytes(file))
        if content["format"] != FORMAT:
            raise DataError(f"{file}: has format {shown(content['format'])}, not {FORMAT}; {remedy}")
        return {setting: _profile(setting, values) for setting, values in content["profiles"].items()}


def write_profile(file: Path, profile: Profile) -> Profile:
    """Add a profile to a file, in place of what it has of the same setting and models. Atomic.

    Returns:
        All that the file has of the setting.

    Raises:
        DataError: the file is no such file, or cannot be written.
    """
    profiles = read_profiles(file)
    known = profiles.get(profile.setting, profile)
    links = {
        item.name: getattr(profile.links, item.name) or getattr(known.links, item.name)
        for item in dataclasses.fields(LinkProfile)
    }
    merged = Profile(profile.setting, {**known.models, **profile.models}, LinkProfile(**links))
    profiles[profile.setting] = merged
    values = {setting: _values(each) for setting, each in profiles.items()}
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, "profiles": values}, indent=1), encoding="utf-8")
    return merged


def _between(first: tuple[Any, ...], last: tuple[Any, ...], share: float) -> tuple[Any, ...]:
    """Linear between times at equal points; what is no float belongs to the point."""
    known = {_point(each): each for each in first}
    found = []
    for each in last:
        pairs = zip(_flat(known.get(_point(each), each)), _flat(each), strict=True)
        values = [one + (end - one) * share if isinstance(one, float) else one for one, end in pairs]
        found.append(tuple(values) if isinstance(each, tuple) else type(each)(*values))
    return tuple(found)


def _flat(times: Any) -> tuple[Any, ...]:
    return times if isinstance(times, tuple) else dataclasses.astuple(times)


def _point(times: Any) -> tuple[Any, ...]:
    return tuple(value for value in _flat(times) if not isinstance(value, float))


def _values(profile: Profile) -> dict[str, Any]:
    values = dataclasses.asdict(profile)
    del values["setting"]
    return values


def _profile(setting: str, values: Mapping[str, Any]) -> Profile:
    links = values["links"]
    return Profile(
        setting,
        {key: {int(n): _model(each) for n, each in by_ranks.items()} for key, by_ranks in values["models"].items()},
        LinkProfile(
            _by_ranks(links["all_reduce"]),
            _by_ranks(links["all_gather"]),
            _by_ranks(links["reduce_scatter"]),
            _points(links["point_to_point"]),
            _points(links["host_copy"]),
        ),
    )


def _model(values: Mapping[str, Any]) -> ModelProfile:
    return ModelProfile(
        tuple(PassTimes(**each) for each in values["passes"]),
        tuple(DecodeTimes(**each) for each in values["decoding"]),
        _points(values["optimizer"]),
        _points(values["starts"]),
    )


def _by_ranks(values: Mapping[str, Any]) -> dict[int, tuple[tuple[int, float], ...]]:
    return {int(n): _points(points) for n, points in values.items()}


def _points(values: Any) -> tuple[tuple[int, float], ...]:
    return tuple((int(x), float(seconds)) for x, seconds in values)
