"""Checks of the config table: reading, round trips, and defaults of missing keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from reallm.errors import ConfigError, PluginError, ReallmError, counted
from reallm.hf.conversion.config import config_from_hf, config_to_hf
from reallm.hf.tables.ignored_keys import is_irrelevant
from reallm.model.config import ReaLModelConfig
from reallm.references import resolve
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families import reference, tiny
from reallm_devkit.testing.families.ropes import check_ropes
from reallm_devkit.testing.families.same_config import check_same, check_transformers, differing, read_again
from reallm_devkit.testing.families.subject import FamilySubject
from reallm_devkit.testing.families.undeclared import check_keys
from reallm_devkit.testing.families.values import switched_on

CHANGED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "n_kv_heads": (1, 4), "intermediate_size": (40,), "vocab_size": (89,), "max_positions": (48,), "norm_eps": (0.003,),
    "init_std": (0.03,), "attn_dropout": (0.25,), "residual_dropout": (0.25,), "embedding_dropout": (0.25,),
    "embedding_multiplier": (3.0,), "residual_multiplier": (0.5,), "logit_multiplier": (0.5,), "attn_softcap": (20.0,),
    "logit_softcap": (15.0,), "attn_scale": (0.3,), "qkv_clip": (2.0,), "sliding_window": (3,),
}  # fmt: skip
"""Field -> other values, which are written and read back if the table can state them."""


@check()
def default_config(subject: FamilySubject) -> str:
    """the table reads what transformers writes by default, and states small sizes of the same kind"""
    try:
        config = subject.config
    except ReallmError as error:
        expected = f"a table that reads the configuration '{subject.case}'"
        raise CheckFailed(expected, str(error), look_at=subject.lines.mentioned_in(str(error))) from error
    _check_custom_classes(subject)
    if reference.hf_class(subject.architecture) is None:
        raise CheckFailed(
            "a model class of transformers, to compare with", f"architecture '{subject.architecture}'",
            look_at=subject.table,
        )  # fmt: skip
    try:
        subject.expected  # noqa: B018 - builds and runs it
    except Exception as error:  # from transformers, about sizes that do not fit together
        expected = f"a configuration '{subject.case}' with which {subject.architecture} runs"
        look_at = f"check_configs of {subject.table}, or configs of the kit: state sizes that fit"
        raise CheckFailed(expected, f"{type(error).__name__}: {error}", look_at=look_at) from error
    check_keys(subject)
    sizes = f"{config.n_layers} blocks, hidden {config.hidden_size}, heads {config.n_q_heads}/{config.n_kv_heads}"
    return f"{sizes} of {config.head_dim}, {'tied' if config.tied_embeddings else 'untied'}"


@check(needs=[default_config])
def blocks(subject: FamilySubject) -> str:
    """a configuration has blocks of each kind that transformers' default model has"""
    if not subject.is_first:
        raise Skipped("checked once for all configurations")
    in_default = len(set(tiny.kinds_of(tiny.default_config(subject.lines))))
    if not in_default:
        raise Skipped(f"transformers cannot make {subject.architecture} without values, to compare its blocks")
    wanted = min(in_default, tiny.MAX_KINDS)
    found = max(len(set(tiny.kinds_of(raw))) for raw in (subject.raw, *(subject.others or ())))
    if found < wanted:
        raise CheckFailed(
            f"a configuration with {wanted} of the {counted(in_default, 'kind')} of blocks that "
            f"{subject.architecture} has by default",
            f"at most {found} in each",
            look_at=f"check_configs of {subject.table}, or configs of the kit: more blocks, or another pattern of them",
        )
    return f"{counted(found, 'kind')} of blocks, of {in_default} by default"


@check(needs=[default_config])
def config_round_trip(subject: FamilySubject) -> str:
    """a configuration is the same after it was written and read, for us and for transformers"""
    family, config = subject.family, subject.config
    for base, how in ((subject.raw, "on the file it came from"), (None, "as a new file")):
        written = _write_config(subject, config, base, how)
        check_same(subject, config, config_from_hf(family, written), f"written {how}")
        check_transformers(subject, subject.raw, written, f"written {how}")
    n_changes = 0
    for changed in _changed_configs(config):
        for base in (subject.raw, None):
            try:
                written = config_to_hf(family, changed, base)
            except ConfigError:  # the family refuses the value
                continue
            fields = [item.name for item in dataclasses.fields(config)]
            (field,) = (name for name in fields if getattr(changed, name) != getattr(config, name))
            where = f"{field}={getattr(changed, field)!r}"
            check_same(subject, changed, read_again(subject, written, where), where)
            n_changes += base is None
    n_ropes = check_ropes(subject)
    ropes = f", and {counted(n_ropes, 'kind')} of RoPE" if n_ropes else ""
    return f"on its file and as a new one, and with {n_changes} fields changed{ropes}"


@check(needs=[default_config])
def defaults(subject: FamilySubject) -> str:
    """a key that `config.json` does not have means what transformers takes it to mean"""
    keys = [key for key in subject.raw if not is_irrelevant(key)]
    count = 0
    cases: list[tuple[list[str], Mapping[str, Any]]] = [*(([key], {}) for key in keys), (keys, {})]
    cases += [([key], also) for key in keys if (also := switched_on(subject.raw, key))]
    for absent, also in cases:
        raw = {key: value for key, value in subject.raw.items() if key not in absent} | dict(also)
        try:
            full = {**reference.hf_config(raw).to_dict(), "architectures": raw["architectures"]}
            expected = config_from_hf(subject.family, full)
        except Exception:  # transformers cannot do without this key either
            continue
        try:
            found = config_from_hf(subject.family, raw)
        except ReallmError as error:
            if any(key in str(error) for key in absent):
                continue  # refused by name
            what = f"the key '{absent[0]}'" if len(absent) == 1 else "any key"
            raise CheckFailed(
                f"a configuration without {what}, or an error that names what is missing",
                str(error),
                look_at=subject.lines.key(absent[0]),
            ) from error
        count += 1
        for item in dataclasses.fields(expected):
            theirs, ours = getattr(expected, item.name), getattr(found, item.name)
            if theirs != ours:
                what = f"without the key '{absent[0]}'" if len(absent) == 1 else "without any key"
                what += "".join(f", with {name}={value!r}" for name, value in also.items())
                one, other = differing(item.name, theirs, ours)
                look_at = subject.lines.field(item.name) or subject.lines.config()
                raise CheckFailed(f"{one}, as transformers has it", other, f"a config.json {what}", look_at)
    return f"{count} configurations with keys left out"


def _check_custom_classes(subject: FamilySubject) -> None:
    for name, kind in subject.config.custom_classes.items():
        try:
            resolve(name)
        except PluginError as error:
            expected = "a class for the layers of the family's own, as 'module:Class'"
            raise CheckFailed(expected, str(error), f"{kind}='{name}'", subject.at([kind])) from error


def _write_config(
    subject: FamilySubject, config: ReaLModelConfig, base: Mapping[str, Any] | None, how: str
) -> Mapping[str, Any]:
    try:
        return config_to_hf(subject.family, config, base)
    except ConfigError as error:
        expected = "a table that states what it has read"
        raise CheckFailed(expected, str(error), f"written {how}", subject.lines.mentioned_in(str(error))) from error


def _changed_configs(config: ReaLModelConfig) -> Iterator[ReaLModelConfig]:
    for field, values in CHANGED_VALUES.items():
        for value in values:
            before = getattr(config, field)
            if isinstance(before, tuple):
                value = tuple(None if one is None else value for one in before)
            if before is None or value == before:  # the check `config-fields` turns features on
                continue
            try:
                yield config.replace(**{field: value})
            except ConfigError:
                continue
