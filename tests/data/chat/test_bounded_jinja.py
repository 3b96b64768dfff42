"""Templates of strangers end, and make no more text than any conversation needs."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from reallm.data.chat.bounded_jinja import BoundsError, render
from reallm.data.chat.template import ChatTemplate
from reallm.errors import DataError
from reallm.generation.conversation import Conversation
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2", "reasoning_content": "easy"},
    {"role": "user", "content": "été"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]

HOSTILE = {
    "loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "product": "{{ 'a' * 10 ** 12 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by +": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled lists": "{% set n = namespace(s=[]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s }}",
    "as JSON": "{% set n = namespace(s=[]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s | tojson }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "macro": "{% macro f() %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endmacro %}{{ f() }}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "width of a method": "{{ 'a'.ljust(10 ** 11) }}",
    "width of a filter": "{{ 'a' | center(100000000000) }}",
    "width of a format": "{{ '%99999999999d' % 1 }}",
    "width of another format": "{{ '{:99999999999d}'.format(1) }}",
    "width as an argument": "{{ '{:{}d}'.format(1, 99999999999) }}",
    "replacing": "{{ ('a' * 9999).replace('a', 'b' * 99999) }}",
    "replacing by a filter": "{{ ('a' * 9999) | replace('a', 'b' * 99999) }}",
    "joining": "{{ ('b' * 9999999).join(range(99999)) }}",
    "indent": "{{ messages | tojson(indent=99999999999) }}",
    "indent of many items": "{{ range(99999) | list | tojson(indent=999999) }}",
    "indent of many lines": "{{ ('a\n' * 10 ** 6) | indent(10 ** 6) }}",
    "indent that is a text": "{{ ('a\n' * 10 ** 6) | indent('x' * 10 ** 6) }}",
    "ends of lines": "{{ ('a ' * 10 ** 6) | wordwrap(1, wrapstring='x' * 10 ** 6) }}",
    "many short lines": "{{ ('a ' * 10 ** 7) | wordwrap(1) }}",
    "tabs": "{{ ('\t' * 10 ** 6).expandtabs(10 ** 6) }}",
    "translating": "{{ ('a' * 10 ** 6).translate({97: 'x' * 10 ** 6}) }}",
    "bytes": "{{ 'a'.encode('utf-32') * 10 ** 11 }}",
    "a value formatted often": "{{ ('%(a)s' * 10 ** 5) % {'a': 'x' * 10 ** 6} }}",
    "a value formatted often by a method": "{{ ('{0}' * 10 ** 5).format('x' * 10 ** 6) }}",
    "a value formatted often by a mapping": "{{ ('{a}' * 10 ** 5).format_map({'a': 'x' * 10 ** 6}) }}",
    "a value formatted often by a filter": "{{ ('%(a)s' * 10 ** 5) | format(a='x' * 10 ** 6) }}",
    "pretty": "{{ ([range(99999) | list] * 9) | pprint }}",
    "conditions": "".join(f"{{% set a{i} = {i} %}}{{% if a{i} %}}{{% endif %}}" for i in range(2000)),
    "names in each include": "".join(f"{{% set a{i} = {i} %}}{{% include a{i} %}}" for i in range(1000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused(name: str) -> None:
    with pytest.raises((BoundsError, OverflowError), match="it |Range"):
        render(HOSTILE[name], {"messages": MESSAGES, "tools": []})


@pytest.mark.parametrize(
    "template",
    [
        HOSTILE["loops"],
        "{{ messages | no_such_filter }}",
        "{% for m in messages %}",
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ undefined.attribute }}",
    ],
)
def test_a_conversation_says_in_one_line_that_its_template_cannot_be_used(template: str) -> None:
    tokenizer = tiny_tokenizer(chat_template=template)
    with pytest.raises(DataError, match="the conversation: the chat template refuses it: ") as found:
        Conversation(tokenizer, ChatTemplate(tokenizer)).ask("hi")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{%- for m in messages %}{{ loop.index }}{{ m.role | upper }}: {{ m.reasoning_content ~ m.content | trim }}\n"
        "{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}",
        "{% macro show(m) %}{{ m['content'].replace('e', 'EE').split(' ') | join('-') }}{% endmacro %}"
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ show(m) }}{{ '=' * 3 + '%s' % 2 ** 3 }}"
        "{% endfor %}{{ messages | map(attribute='role') | list }}{{ 'x' | center(9) }}{{ 1.5 | round }}"
        "{{ 'a\n\tb' | indent(2) }}{{ '%s, %s' | format('a', 1) }}{{ '{0}{x}{0}'.format(1, x='y') }}"
        "{{ 'a\tb'.expandtabs(4) }}{{ 'a b' | wordwrap(1) | title }}{{ messages | tojson(indent=4) }}",
        "{% for m in messages %}{% generation %}{{ m.thinking }}{{ bos_token }}{% endgeneration %}{% endfor %}",
    ],
)
def test_other_templates_give_what_transformers_gives(template: str) -> None:
    given = {"add_generation_prompt": True, "bos_token": "<s>"}
    expected, _ = render_jinja_template([MESSAGES], TOOLS, chat_template=template, **given)
    assert render(template, {"messages": MESSAGES, "tools": TOOLS, "documents": None, **given}) == expected[0]
