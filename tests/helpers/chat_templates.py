"""Chat templates that behave like those of well-known models, shortened, with tokenizers that have their tokens."""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.helpers.tokenizers import tiny_tokenizer

QWEN3 = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}{{ '<|im_start|>system\n<tools>' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}
{{- '\n</tools><|im_end|>\n' }}{% endif %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in m.tool_calls or [] %}
            {%- set f = call.function if call.function else call %}
            {{- '\n' if content or not loop.first else '' }}
            {{- '<tool_call>\n{"name": "' + f.name + '", "arguments": ' }}
            {{- f.arguments if f.arguments is string else f.arguments | tojson }}{{ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

GLM4 = """
{{- '[gMASK]<sop>' }}
{%- if tools %}{{ '<|system|>\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>\n' + (m.content or '') }}
        {%- for call in m.tool_calls or [] %}
            {{- '<tool_call>' + call.function.name }}
            {%- for key, value in call.function.arguments.items() %}
                {{- '\n<arg_key>' + key + '</arg_key>\n<arg_value>' + (value if value is string else value | tojson) }}
                {{- '</arg_value>' }}
            {%- endfor %}
            {{- '\n</tool_call>' }}
        {%- endfor %}
    {%- elif m.role == 'tool' %}{{ '<|observation|>\n' + m.content }}
    {%- else %}{{ '<|' + m.role + '|>\n' + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

LLAMA3 = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + system }}
{%- for t in tools or [] %}{{ t | tojson(indent=4) }}{% endfor %}
{{- '<|eot_id|>' }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set f = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + f.name + '", "parameters": ' }}
        {{- f.arguments | tojson + '}<|eot_id|>' }}
    {%- else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

MISTRAL = """
{%- if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {{- '[INST]' + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | default('') | length != 9 %}{{ raise_exception('an id has 9 letters') }}{% endif %}
            {%- set f = call.function | tojson %}
            {{- f[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']' + eos_token) }}
        {%- endfor %}
    {%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
    {%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]{"content": ' + m.content + '}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

SMOLLM2 = """
{%- for m in messages %}
    {%- if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}
    {{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

DEEPSEEK_R1 = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<|User|>' + m.content }}{% endif %}
    {%- if m.role == 'assistant' and m.content is none %}
        {{- '<|Assistant|><|call|>' }}
        {%- for call in m.tool_calls %}
            {{- call.function.name + '\n```json\n' + call.function.arguments + '\n```' }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- endif %}
    {%- if m.role == 'assistant' and m.content is not none %}
        {{- '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}
    {%- endif %}
    {%- if m.role == 'tool' %}{{ '<|tool_output|>' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"""

DEEPSEEK_R1_THINKING = DEEPSEEK_R1.replace("{{ '<|Assistant|>' }}", "{{ '<|Assistant|><think>\n' }}")
"""The prompt for generation opens the reasoning, which the text of a conversation never has."""

MARKED = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{ m.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

_TEMPLATES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "qwen3": (QWEN3, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "glm4": (
        GLM4,
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "mistral": (
        MISTRAL,
        (
            "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]", "</s>",
        ),
        "</s>",
    ),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>", "<eos>"), "<eos>"),
    "smollm2": (SMOLLM2, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "deepseek-r1": (DEEPSEEK_R1, ("<|User|>", "<|Assistant|>", "<|call|>", "<|tool_output|>", "<|end|>"), "<|end|>"),
    "deepseek-r1-thinking": (
        DEEPSEEK_R1_THINKING,
        ("<|User|>", "<|Assistant|>", "<|call|>", "<|tool_output|>", "<|end|>"),
        "<|end|>",
    ),
    "marked": (MARKED, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
}  # fmt: skip


def model_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """A tiny tokenizer with the chat template and the special tokens of a model; see `_TEMPLATES` for the names."""
    template, special, eos = _TEMPLATES[model]
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in special], special_tokens=True)
    tokenizer.eos_token = eos
    return tokenizer
