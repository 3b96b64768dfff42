"""`NamedArray`: a group of named tensors, the type of all data passed between components.

    batch = NamedArray(input_ids=torch.arange(5), loss_mask=torch.ones(5, dtype=torch.bool))
    batch = batch.with_metadata(seqlens={"input_ids": [[3], [2]], "loss_mask": [[3], [2]]}, ids=["a", "b"])
    batch.input_ids is batch["input_ids"]

Its fields are torch tensors, numpy arrays, nested `NamedArray`s, or None. `reallm.data.batching` packs samples into one
and splits it again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeAlias, overload

import numpy as np
import torch

from reallm.data.array import Array, Index, describe, equal, index, is_array, move
from reallm.data.metadata import PER_SAMPLE, Metadata, SeqLens, freeze_metadata, sample_count, thaw
from reallm.dtype_device import as_device, as_dtype_or_device
from reallm.errors import ConfigError, DataError, did_you_mean, kind_of, one_line, with_article
from reallm.machine_errors import raise_shortage

Value: TypeAlias = "Array | NamedArray | None"
Method: TypeAlias = "Callable[[NamedArray, object], NamedArray]"


class FieldError(DataError, KeyError, AttributeError):
    """Raised for a field that does not exist; also a `KeyError` and an `AttributeError`, as `x[...]` and `x.y` need."""

    __str__ = Exception.__str__  # a KeyError would print its message in quotes


def _arithmetic(op: Callable[[Any, Any], Any]) -> tuple[Method, Method]:
    """The methods for `batch op other` and `other op batch`."""
    return lambda self, other: _combined(op, self, other), lambda self, other: _combined(op, other, self)


class NamedArray:
    """An immutable ordered mapping from names to arrays, with attribute and key access.

    Iteration, `len`, `in`, `keys` and `items` are those of a mapping from field names; the number of samples is
    `batching.n_samples(batch)`. Fields can neither be set nor removed (elements of their tensors can be set):
    `with_fields` and `with_metadata` return changed copies that share the arrays.

    Indexing with a name gives the field. Indexing with anything else (a number, a slice, a list, a mask) indexes
    dim 0 of every array, for arrays that are aligned there. A batch with metadata of samples refuses that, because
    it would cut through the samples: use `batching.select`.

    Arithmetic (`+ - * / // % **` and unary `-`) works field by field between two `NamedArray`s of the same
    structure, or with a number or an array on all fields. Fields of None stay None.

    `==` compares names, kinds, dtypes, shapes, values (NaN equals NaN) and metadata, and gives one bool; like
    that of a dict, it ignores the order of fields.

    Args:
        **fields: torch tensors, numpy arrays, `NamedArray`s without metadata, or None.

    Raises:
        DataError: a name is not allowed (empty, with a dot, with a leading underscore, or a method's name), or a
            value has another type; names the field.
    """

    __slots__ = ("_fields", "_metadata")
    __hash__: ClassVar[None]  # type: ignore[assignment]
    __array_ufunc__ = None  # `numpy_array + batch` calls the batch's method, instead of looping over it

    _fields: Mapping[str, Value]
    _metadata: Metadata

    def __init__(self, /, **fields: Value) -> None:
        _initialize(self, fields, {})

    @property
    def metadata(self) -> Metadata:
        """Read-only items that accompany the arrays: `seqlens`, `ids` and all others given to `with_metadata`."""
        return self._metadata

    def with_metadata(self, **items: Any) -> NamedArray:
        """A copy with these items of metadata added or replaced; an item of None is removed.

        Args:
            **items: values made of JSON's types. `seqlens` maps names of fields to the lengths of the sequences
                of each sample, `((5,), (3, 2))`, which must sum to the field's size on dim 0. `ids` holds one
                string for each sample, `groups` one integer, and `columns` one mapping.

        Raises:
            DataError: one of these contradicts the fields or another; names the field.
        """
        added = freeze_metadata(items)
        _check_fit(self._fields, added)
        removed = items.keys() - added.keys()
        found = {**self._metadata, **added}
        return _from_valid(self._fields, {name: value for name, value in found.items() if name not in removed})

    def with_fields(self, **fields: Value) -> NamedArray:
        """A copy with these fields added or replaced, and the same metadata, which must still fit."""
        found = {**self._fields, **{name: _checked(name, value, "") for name, value in fields.items()}}
        _check_fit(found, self._metadata)
        return _from_valid(found, self._metadata)

    def to(self, *targets: torch.device | torch.dtype | str, non_blocking: bool = False) -> NamedArray:
        """A copy on another device, or with its floating-point fields in another dtype: `to("cuda")`, `to("bfloat16")`.

        Integers and masks keep their dtype, as in `torch.nn.Module.to`. Numpy arrays stay in host memory.

        Raises:
            ConfigError: there is no such dtype or device.
            DataError: a numpy array would take a dtype that numpy lacks; names the field.
        """
        found = [as_dtype_or_device(target) if isinstance(target, str) else target for target in targets]
        dtypes = [target for target in found if isinstance(target, torch.dtype)]
        devices = [as_device(target) for target in found if not isinstance(target, torch.dtype)]
        return recursive_apply(self, lambda array: move(array, devices, dtypes, non_blocking))

    def keys(self) -> KeysView[str]:
        """The names of the fields, in order."""
        return self._fields.keys()

    def items(self) -> ItemsView[str, Any]:
        """Names and values of the fields, in order; nested ones as `NamedArray`s (`flatten` for all arrays)."""
        return self._fields.items()

    def __len__(self) -> int:
        return len(self._fields)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    @overload
    def __getitem__(self, at: str) -> Any: ...
    @overload
    def __getitem__(self, at: Index) -> NamedArray: ...
    def __getitem__(self, at: str | Index) -> Any:
        if not isinstance(at, str):
            return _sliced(self, at)
        if at not in self._fields:
            raise FieldError(f"no field '{at}'{did_you_mean(at, self)}; fields: {', '.join(self) or 'none'}")
        return self._fields[at]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # never a field; `copy` and `pickle` look such names up on unfinished objects
            raise AttributeError(f"'NamedArray' object has no attribute '{name}'")
        return self[name]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(_immutable(name))

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(_immutable(name))

    def __setitem__(self, name: str, value: object) -> NoReturn:
        raise TypeError(_immutable(name))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._fields]

    def __repr__(self) -> str:
        count = sample_count(self._metadata)
        samples = [] if count is None else [f"{count} sample{'' if count == 1 else 's'}"]
        return f"NamedArray({', '.join([*samples, *(f'{k}={_describe(v)}' for k, v in self._fields.items())])})"

    def __reduce__(self) -> tuple[Callable[..., NamedArray], tuple[Any, ...]]:
        # Used when a data loader's worker sends it. Read-only mappings cannot be pickled, so plain ones are sent.
        return _new, (dict(self._fields), thaw(self._metadata))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NamedArray):
            return NotImplemented
        if self.keys() != other.keys() or self._metadata != other._metadata:
            return False
        return all(equal(a, b) if is_array(a) else a == b for a, b in ((a, other[name]) for name, a in self.items()))

    def __neg__(self) -> NamedArray:
        return recursive_apply(self, operator.neg)

    __add__, __radd__ = _arithmetic(operator.add)
    __sub__, __rsub__ = _arithmetic(operator.sub)
    __mul__, __rmul__ = _arithmetic(operator.mul)
    __truediv__, __rtruediv__ = _arithmetic(operator.truediv)
    __floordiv__, __rfloordiv__ = _arithmetic(operator.floordiv)
    __mod__, __rmod__ = _arithmetic(operator.mod)
    __pow__, __rpow__ = _arithmetic(operator.pow)


def from_dict(values: Mapping[str, Any], metadata: Metadata | None = None) -> NamedArray:
    """A `NamedArray` of these fields, nested where a value is a mapping.

    Raises:
        DataError: the fields are not a mapping, or a value is not an array; names the field.
    """
    if not isinstance(values, Mapping):
        raise DataError(f"a NamedArray is made from a mapping of names to arrays, not from {kind_of(values)}")
    return _nested(values, metadata or {})


def flatten(x: NamedArray) -> list[tuple[str, Value]]:
    """All fields as (dotted name, value) in order: `[("input_ids", ...), ("critic.values", ...)]`.

    Values are arrays and None; a nested `NamedArray` without fields is its own value, so that it is not lost.

    Raises:
        DataError: it is not a `NamedArray`.
    """
    if not isinstance(x, NamedArray):
        raise DataError(f"a NamedArray is needed, not {kind_of(x)}; from_dict makes one from a mapping")
    items: list[tuple[str, Value]] = []
    for name, value in x.items():
        if isinstance(value, NamedArray) and len(value):
            items += [(f"{name}.{inner}", leaf) for inner, leaf in flatten(value)]
        else:
            items.append((name, value))
    return items


def from_flattened(items: Iterable[tuple[str, Value]], metadata: Metadata | None = None) -> NamedArray:
    """The inverse of `flatten`: `from_flattened(flatten(x), x.metadata) == x`.

    Raises:
        DataError: a name is given twice, or both as an array and as a group of fields; names it.
    """
    _check_list(items, "a list of names and values, as from flatten,")
    tree: dict[str, Any] = {}
    for name, value in items:
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise DataError(f"field '{name}': '{group}' is a field already and cannot hold others")
        if last in node:
            raise DataError(f"field '{name}' is given twice")
        if isinstance(value, Mapping):
            raise DataError(f"field '{name}' is a mapping; give each of its fields by its dotted name")
        node[last] = value
    return from_dict(tree, metadata)


def aligned(xs: Sequence[NamedArray]) -> list[tuple[str, list[Any]]]:
    """Dotted name -> its values in several `NamedArray`s of the same structure, in the order of the first of them.

    Raises:
        DataError: they differ in fields, or a field is None in only some of them; names the field.
    """
    _check_list(xs, "a list of NamedArrays")
    columns: dict[str, list[Any]] = {name: [value] for name, value in flatten(xs[0])} if xs else {}
    for i, x in enumerate(xs[1:], start=1):
        values = dict(flatten(x))
        for name in [*columns.keys() - values.keys(), *values.keys() - columns.keys()]:
            having, lacking = (0, i) if name in columns else (i, 0)
            raise DataError(f"field '{name}' is in NamedArray {having} but not in {lacking}")
        for name, column in columns.items():
            first, value = column[0], values[name]
            if is_array(first) != is_array(value) or (first is None) != (value is None):
                raise DataError(f"field '{name}' is {_describe(first)} in NamedArray 0, {_describe(value)} in {i}")
            column.append(value)
    return list(columns.items())


def recursive_apply(x: NamedArray, fn: Callable[[Any], Value]) -> NamedArray:
    """`fn(array)` for every array, nested ones too. None stays None; metadata is kept and must still fit.

    An exception of `fn` is raised with a note that names the field.

    Raises:
        ConfigError: `fn` is not a function.
    """
    _check_function("fn", fn)
    return from_flattened(
        [(name, _call_with_note(name, fn, value) if is_array(value) else value) for name, value in flatten(x)],
        x.metadata,
    )


def recursive_aggregate(xs: Sequence[NamedArray], aggregate_fn: Callable[[list[Any]], Value]) -> NamedArray:
    """`aggregate_fn([x.field for x in xs])` for every array, nested ones too: `recursive_aggregate(xs, torch.stack)`.

    Fields that are None in all of them stay None. The result has no metadata, since `aggregate_fn` may have changed
    sizes (`batching.gather` packs samples together with theirs). An exception of `aggregate_fn` is raised with a note
    that names the field.

    Raises:
        ConfigError: `aggregate_fn` is not a function.
        DataError: the structures differ; names the field.
    """
    _check_function("aggregate_fn", aggregate_fn)
    return from_flattened(
        [
            (name, _call_with_note(name, aggregate_fn, values) if is_array(values[0]) else values[0])
            for name, values in aligned(xs)
        ]
    )


def merge(parts: Iterable[NamedArray]) -> NamedArray:
    """One `NamedArray` with the fields of all parts, which describe the same samples.

    Raises:
        DataError: two parts have a field of the same name, or different metadata; names it.
    """
    _check_list(parts, "a list of NamedArrays")
    fields: dict[str, Value] = {}
    metadata: dict[str, Any] = {}
    seqlens: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, NamedArray):
            raise DataError(f"cannot merge: parts must be a list of NamedArrays; found {kind_of(part)}")
        for name, value in part.items():
            if name in fields:
                raise DataError(f"cannot merge: field '{name}' is in more than one part")
            fields[name] = value
        seqlens |= part.metadata.get("seqlens", {})
        metadata = _joined(metadata, {k: v for k, v in part.metadata.items() if k != "seqlens"}, "parts")
    return _from_valid(fields, _with_seqlens(metadata, seqlens))


def split(x: NamedArray, groups: Iterable[Iterable[str]] | None = None) -> list[NamedArray]:
    """One `NamedArray` for each group of field names, with their metadata, and a last one with all other fields.

    Without groups, there is one for each field. Always `merge(split(x, groups)) == x`. To cut a batch into its samples
    instead, see `batching.split_samples`.

    Raises:
        DataError: a name is not a field, or is in two groups; names it.
    """
    if groups is None:
        return [_with_only(x, [name]) for name in x] or [x]
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise DataError(f"cannot split: groups are lists of field names, as in [['a', 'b'], ['c']]; found {groups!r}")
    named = [[group] if isinstance(group, str) else list(group) for group in groups]
    taken: set[str] = set()
    for name in (name for group in named for name in group):
        if name in taken:
            raise DataError(f"cannot split: field '{name}' is named twice")
        taken.add(name)
    return [_with_only(x, group) for group in [*named, [name for name in x if name not in taken]]]


def _nested(values: Mapping[str, Any], metadata: Metadata, prefix: str = "") -> NamedArray:
    fields = {
        name: _nested(value, {}, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in values.items()
    }
    return _new(fields, metadata, prefix)


def _new(fields: Mapping[str, Value], metadata: Metadata, prefix: str = "") -> NamedArray:
    array = NamedArray.__new__(NamedArray)
    _initialize(array, fields, metadata, prefix)
    return array


def _initialize(array: NamedArray, fields: Mapping[str, Value], metadata: Metadata, prefix: str = "") -> None:
    """Set the slots of a new `array`; `prefix` is the dotted name it will have, for messages."""
    checked = {name: _checked(name, value, prefix) for name, value in fields.items()}
    frozen = freeze_metadata(metadata)
    _check_fit(checked, frozen)
    _set_slots(array, checked, frozen)


def _from_valid(fields: Mapping[str, Value], metadata: Metadata) -> NamedArray:
    """A `NamedArray` of checked fields and frozen metadata, which fit each other: parts of one that exists, or several.

    Raises:
        DataError: items of metadata disagree about the number of samples; names two.
    """
    array = NamedArray.__new__(NamedArray)
    _set_slots(array, fields, metadata)
    return array


def _set_slots(array: NamedArray, fields: Mapping[str, Value], metadata: Metadata) -> None:
    sample_count(metadata)
    object.__setattr__(array, "_fields", fields)
    object.__setattr__(array, "_metadata", MappingProxyType(dict(metadata)))


def _check_fit(fields: Mapping[str, Value], metadata: Metadata) -> None:
    """Raise an error if `seqlens` of metadata contradict the fields."""
    for key, samples in metadata.get("seqlens", {}).items():
        if key not in fields:
            raise DataError(f"seqlens of '{key}': no such field{did_you_mean(key, fields)}")
        total = sum(map(sum, samples))
        value = fields[key]
        for name, leaf in flatten(value) if isinstance(value, NamedArray) else [("", value)]:
            if isinstance(leaf, Array) and tuple(leaf.shape[:1]) != (total,):
                full = f"{key}.{name}" if name else key
                raise DataError(f"field '{full}' is {describe(leaf)}, but the seqlens of '{key}' sum to {total}")


def _checked(name: Any, value: Any, prefix: str) -> Value:
    full = f"{prefix}{name}"
    if not isinstance(name, str) or not name or "." in name or name.startswith("_"):
        raise DataError(f"field {full!r}: a name is a string without dots and without a leading underscore")
    if hasattr(NamedArray, name):
        raise DataError(f"field '{full}': NamedArray has a method of that name; choose another")
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        raise DataError(f"field '{full}' is a numpy array of {value.dtype}; only numbers and booleans can be held")
    if isinstance(value, NamedArray) and value.metadata:
        items = ", ".join(f"{item}=None" for item in value.metadata)
        raise DataError(f"field '{full}': only the outermost NamedArray has metadata; nest x.with_metadata({items})")
    if value is None or isinstance(value, Array | NamedArray):
        return value
    hint = "; from_dict nests dicts" if isinstance(value, Mapping) else ""
    raise DataError(
        f"field '{full}' is {with_article(type(value).__name__)}; wanted: torch tensor, numpy array, NamedArray or "
        f"None{hint}"
    )


def _describe(value: Value) -> str:
    return describe(value) if isinstance(value, Array) else repr(value)


def _immutable(name: object) -> str:
    return f"a NamedArray cannot be changed (field {name!r}): use batch.with_fields(...), merge or split"


def _check_list(values: object, what: str) -> None:
    if isinstance(values, NamedArray | Mapping | str) or not isinstance(values, Iterable):
        raise DataError(f"{what} is needed, not {kind_of(values)}")


def _check_function(argument: str, function: object) -> None:
    if not callable(function):
        raise ConfigError(f"{argument} must be a function of an array, not {kind_of(function)}")


def _call_with_note(name: str, fn: Callable[[Any], Value], value: Any) -> Value:
    try:
        return fn(value)
    except DataError as error:
        raise DataError(f"field '{name}': {error}") from error
    except Exception as error:  # of the caller's function: keep its type
        error.add_note(f"in field '{name}' of a NamedArray")
        raise


def _with_only(x: NamedArray, names: Iterable[str]) -> NamedArray:
    fields = {name: x[name] for name in names}
    seqlens = {key: value for key, value in x.metadata.get("seqlens", {}).items() if key in fields}
    return _from_valid(fields, _with_seqlens(x.metadata, seqlens))


def _with_seqlens(metadata: Metadata, seqlens: SeqLens) -> Metadata:
    """Frozen metadata with these `seqlens` in place of its own; without any, there is no such item."""
    if seqlens:
        return {**metadata, "seqlens": MappingProxyType(dict(seqlens))}
    return {name: value for name, value in metadata.items() if name != "seqlens"}


def _joined(left: Metadata, right: Metadata, what: str) -> dict[str, Any]:
    for name in left.keys() & right.keys():
        if left[name] != right[name]:
            raise DataError(f"metadata '{name}' differs between the {what}; drop it with with_metadata({name}=None)")
    return {**left, **right}


def _sliced(x: NamedArray, at: Index) -> NamedArray:
    for item in PER_SAMPLE:
        if item in x.metadata:
            raise DataError(f"a batch with {item} is not indexed by elements: use batching.select(batch, samples)")
    items: list[tuple[str, Value]] = []
    for name, value in flatten(x):
        try:
            items.append((name, index(value, at) if isinstance(value, Array) else value))
        except (IndexError, TypeError, ValueError) as error:
            raise DataError(f"field '{name}' ({_describe(value)}) cannot be indexed with {at!r}: {error}") from error
    return from_flattened(items, x.metadata)


def _combined(op: Callable[[Any, Any], Any], left: object, right: object) -> NamedArray:
    """`left op right`, at least one a `NamedArray`; NotImplemented if the other is neither number nor array."""
    plain = (torch.Tensor, np.ndarray, np.generic, float, int)
    if isinstance(left, NamedArray) and isinstance(right, NamedArray):
        metadata = _joined(left.metadata, right.metadata, "operands")
        pairs = [(name, values[0], values[1]) for name, values in aligned([left, right])]
    elif isinstance(left, NamedArray) and isinstance(right, plain):
        metadata = dict(left.metadata)
        pairs = [(name, value, right) for name, value in flatten(left)]
    elif isinstance(right, NamedArray) and isinstance(left, plain):
        metadata = dict(right.metadata)
        pairs = [(name, left, value) for name, value in flatten(right)]
    else:
        return NotImplemented
    return from_flattened([(name, _apply_op(name, op, a, b)) for name, a, b in pairs], metadata)


def _apply_op(name: str, op: Callable[[Any, Any], Any], a: Any, b: Any) -> Value:
    for value in (a, b):
        if value is None or isinstance(value, NamedArray):  # None, or nested without fields, stays what it is
            return value
    if is_array(a) and is_array(b) and isinstance(a, np.ndarray) != isinstance(b, np.ndarray):
        raise DataError(f"field '{name}': cannot combine {describe(a)} with {describe(b)}")
    try:
        return op(a, b)
    except (RuntimeError, TypeError, ValueError) as error:
        raise_shortage(error)
        raise DataError(f"field '{name}': {one_line(error)}") from error
