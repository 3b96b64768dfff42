"""Runs chat templates, which are programs of strangers, within bounds of time and size.

transformers runs them in jinja's sandbox, in which they reach nothing but what they are given. It bounds `range` alone:
nested loops never end, and `'a' * 10 ** 12` fills the memory. Here loops, macros and jinja's compiler check the CPU
time that was used, and whatever makes texts and lists counts their sizes before they are made. The CPU time is that of
the thread, so that other work on the machine changes nothing. Imports no torch, but transformers for its environment.
"""

from __future__ import annotations

import copy
import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 1.0
"""Seconds of CPU time for rendering one conversation."""
MAX_TEMPLATE = 1 << 17
"""Characters of a template, several times the longest ones in use."""
MAX_BRANCHES = 10**6
"""Conditions of a template times names in it: jinja's compiler copies all names for each condition."""
MAX_PROGRAM = 1 << 22
"""Characters of the Python program that jinja makes of a template."""
MAX_CHARACTERS = 1 << 26
"""Characters of a rendered text, or of any text that a template makes."""
MAX_WORK = 1 << 28
"""Characters of all texts that a template makes while it is rendered."""
MAX_ITEMS = 1 << 20
"""Items of lists and mappings, at any depth, that are printed or given to a filter."""
MAX_NUMBER = 10**6
"""The largest whole number that may be an argument, such as a width."""

_WIDE = re.compile(r"%[^%a-zA-Z]*(\*|\d{5})|\{[^{}]*:[^{}]*(\{|\d{5})")
"""A format with a width of five digits, or one that is itself an argument."""


_SLOW_FILTERS = {"pprint": 1 << 10, "striptags": 1 << 6, "title": 1 << 6, "urlize": 1 << 6, "wordwrap": 1 << 6}
"""Filters that are loops in Python, which nothing interrupts -> how much more an item or character of theirs counts."""


class BoundsError(Exception):
    """A template takes more time or makes more text than any conversation needs."""


class _Used(threading.local):
    """What rendering in this thread has used so far."""

    until = float("inf")
    work = 0


_used = _Used()


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text of a template, given messages, tools and others by name, rendered as transformers renders it.

    Raises:
        BoundsError: it takes too long, or makes too much text.
        Exception: any that the template or jinja raises.
    """
    if len(template) > MAX_TEMPLATE:
        raise BoundsError(f"the template has more than {MAX_TEMPLATE:,} characters")
    _used.until, _used.work = time.thread_time() + MAX_SECONDS, 0
    given = {name: _plain(value) for name, value in variables.items()}
    given["messages"] = _with_reasoning(given["messages"])
    parts, size = [], 0
    for part in _compiled(template).generate(given):
        size += len(part)
        _check_size(size)
        parts.append(part)
    return "".join(parts)


def _plain(value: Any) -> Any:
    """A copy of a value made of plain data alone: other objects have methods that a template could call."""
    from transformers.utils import chat_template_utils

    return getattr(chat_template_utils, "_plain_template_data", copy.deepcopy)(value)


def _with_reasoning(messages: Any) -> Any:
    """Messages whose reasoning has each name that templates know, if transformers gives it all of them."""
    from transformers.utils import chat_template_utils

    return getattr(chat_template_utils, "_alias_reasoning_fields", lambda same: same)(messages)


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # nothing is computed while compiling, where bounds do not hold yet
    environment = _compile_jinja_template("").environment.overlay(optimized=False)
    environment.__class__ = _BoundedEnvironment  # its filters, globals and extensions stay those of transformers
    environment.filters = {name: _bounded_filter(name, filter_) for name, filter_ in environment.filters.items()}
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    environment.finalize = _within_bounds
    compiled: Template = environment.from_string(template)
    return compiled


class _Generator(CodeGenerator):
    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        _BoundedEnvironment.tick()
        return super().visit(node, *args, **kwargs)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja's name
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        names = {node.name for node in tree.find_all(nodes.Name)}
        if len(names) * sum(1 for _ in tree.find_all(nodes.If)) > MAX_BRANCHES:
            raise BoundsError("it has too many conditions")
        repeated: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in repeated:
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return tree

    def _compile(self, source: str, filename: str) -> Any:
        if len(source) > MAX_PROGRAM:  # an `include` has all names in it
            raise BoundsError("it makes a program that is too large")
        return super()._compile(source, filename)

    @staticmethod
    def tick() -> None:
        """Check the time; called for every node that is compiled, iteration of a loop, and call of a macro."""
        if time.thread_time() > _used.until:
            raise BoundsError(f"it takes more than {MAX_SECONDS:g} s")

    @staticmethod
    def concatenated(parts: Sequence[Any]) -> str:
        """The operator `~`."""
        return _joined("", parts)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The text of a macro or a block."""
        return _joined("", list(parts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result may be far larger than its operands."""
        if operator == "**" and not (abs(left) <= MAX_NUMBER and abs(right) <= 64):
            raise BoundsError("it computes with numbers that are too large")
        if operator == "*":
            count = next((one for one in (left, right) if isinstance(one, int)), 1)
            size = max((len(one) for one in (left, right) if isinstance(one, str | bytes | list | tuple)), default=0)
            _count(size * max(count, 0))
            if not size and isinstance(left, int) and isinstance(right, int):
                _check_number(left if abs(left) > abs(right) else right, 1 << 256)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _count(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _count_formatted(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja has it
        """A function, a macro or a method of a text."""
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            _check_arguments(text, *args, **kwargs)
            name = __obj.__name__
            if name == "join" and args:
                return _joined(text, args[0])
            if name == "replace":
                _count_replaced(text, *args[:2])
            if name == "translate":
                _count(len(text) * _size_of(args).total)
            if name == "expandtabs":
                _count(text.count("\t") * _largest_number(args, kwargs, default=8))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """The methods `format` and `format_map` of a text; None for other values."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @functools.wraps(formatted)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            _count_formatted(value.__self__, args, kwargs)
            return formatted(*args, **kwargs)

        return bounded


def _bounded_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is given, and counts a text that it returns."""

    @functools.wraps(filter_)  # with the mark that it wants the context
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _BoundedEnvironment.tick()
        _check_arguments(*args, **kwargs)
        texts = [one for one in args if isinstance(one, str)]
        if name == "replace":
            _count_replaced(*texts[:3])
        if name == "format" and texts:
            _count_formatted(texts[0], args, kwargs)
        if name == "indent" and texts:
            width = _largest_number(args, kwargs, default=4) + sum(map(len, texts[1:])) + _size_of(kwargs).total
            _count((len(texts[0].splitlines()) + 1) * width)
        if name == "wordwrap" and texts:
            _count(len(texts[0]) * (1 + sum(map(len, texts[1:])) + _size_of(kwargs).total))
        if name == "tojson":
            size = _size_of(args)
            _count(size.items * size.depth * _largest_number(args, kwargs, default=1))
        if name in _SLOW_FILTERS:
            _count(_size_of(args).total * _SLOW_FILTERS[name])
        if name == "join":
            items = next((one for one in args if isinstance(one, list | tuple)), ())
            separator = texts[-1] if texts else str(kwargs.get("d", ""))
            _count(sum(len(one) for one in items if isinstance(one, str)) + len(items) * len(separator))
        found = filter_(*args, **kwargs)
        if isinstance(found, str):
            _count(len(found))
        return found

    return bounded


def _check_arguments(*args: Any, **kwargs: Any) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int):
            _check_number(value)
        else:
            _within_bounds(value)


def _check_number(value: int, at_most: int = MAX_NUMBER) -> None:
    if abs(value) > at_most:
        raise BoundsError("it computes with numbers that are too large")


def _largest_number(args: tuple[Any, ...], kwargs: Mapping[str, Any], default: int) -> int:
    """The largest whole number among arguments, such as a width."""
    return max((one for one in (*args, *kwargs.values()) if isinstance(one, int)), default=default)


def _within_bounds(value: Any) -> Any:
    """The value itself, if printing it ends: the same list may be in a list many times, at many depths."""
    if isinstance(value, int):
        _check_number(value, 1 << 1024)
    if isinstance(value, list | tuple | dict):
        _size_of(value)
    return value


class _Size(NamedTuple):
    """How much is in a value, at any depth."""

    items: int
    characters: int
    depth: int

    @property
    def total(self) -> int:
        return self.items + self.characters


def _size_of(value: Any) -> _Size:
    n_items = n_characters = depth = 0
    level = [value]
    while level:
        n_items += len(level)
        n_characters += sum(len(one) for one in level if isinstance(one, str))
        if n_items > MAX_ITEMS or n_characters > MAX_CHARACTERS:
            raise BoundsError(f"it prints a list of more than {MAX_ITEMS:,} items")
        level = _inner(level)
        depth += 1
    return _Size(n_items, n_characters, depth)


def _inner(level: list[Any]) -> list[Any]:
    """What the lists and mappings in a list hold."""
    found: list[Any] = []
    for one in level:
        if isinstance(one, dict):
            found += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            found += one
        if len(found) > MAX_ITEMS:
            break
    return found


def _joined(separator: str, parts: Any) -> str:
    texts = [str(_within_bounds(part)) for part in parts]
    _count(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _count_replaced(text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _count(len(text) + text.count(old) * len(new))


def _count_formatted(text: str, *args: Any) -> None:
    if _WIDE.search(text):
        raise BoundsError("it formats texts of a width that is too large")
    _count(len(text) + (text.count("%") + text.count("{")) * _size_of(args).total)


def _count(n_characters: int) -> None:
    _check_size(n_characters)
    _used.work += n_characters
    if _used.work > MAX_WORK:
        raise BoundsError(f"it makes texts of more than {MAX_WORK:,} characters")


def _check_size(n_characters: int) -> None:
    if n_characters > MAX_CHARACTERS:
        raise BoundsError(f"it makes a text of more than {MAX_CHARACTERS:,} characters")
