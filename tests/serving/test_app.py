"""The endpoints, through the official client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest

from tests.helpers.running_server import CONTEXT, RunningServer, running_server

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def complete(client: openai.OpenAI, prompt: Any = "The fox", **options: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "max_tokens": 12, **options})


def chat(client: openai.OpenAI, messages: Any = QUESTION, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": messages, "max_tokens": 12, **options})


def test_a_completion_is_what_the_model_generates(running: RunningServer, client: openai.OpenAI) -> None:
    prompt = running.tokenizer.encode("The fox")
    [expected] = running.model.generate([prompt], tokenizer=running.tokenizer, max_new_tokens=12, temperature=0)
    answer = complete(client, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == len(prompt) + len(expected.token_ids)


def test_prompts_may_be_texts_or_token_ids_one_or_many(running: RunningServer, client: openai.OpenAI) -> None:
    texts = ["The fox", "What is"]
    ids = [running.tokenizer.encode(text) for text in texts]
    alone = [complete(client, text, temperature=0).choices[0].text for text in texts]
    for many in (texts, ids):
        answer = complete(client, many, temperature=0)
        assert [choice.text for choice in answer.choices] == alone
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert complete(client, ids[1], temperature=0).choices[0].text == alone[1]


def test_n_samples_of_each_prompt_come_in_order(client: openai.OpenAI) -> None:
    answer = complete(client, ["The fox", "What is"], n=3, seed=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 6
    assert [choice.text for choice in complete(client, n=3, seed=1).choices] == texts[:3]


def test_with_a_seed_the_answer_is_always_the_same(client: openai.OpenAI) -> None:
    assert complete(client, seed=7).choices[0].text == complete(client, seed=7).choices[0].text
    assert complete(client, seed=7).choices[0].text != complete(client, seed=8).choices[0].text
    assert chat(client, seed=-3).choices[0].message == chat(client, seed=-3).choices[0].message


def test_without_a_seed_each_request_draws_anew_and_a_server_with_the_same_seed_repeats_it(
    running: RunningServer,
) -> None:
    def answers(seed: int) -> list[str]:
        with running_server(running.model, running.tokenizer, seed=seed) as server, server.client() as client:
            return [complete(client).choices[0].text for _ in range(3)]

    first = answers(5)
    assert len(set(first)) == 3
    assert answers(5) == first
    assert answers(6) != first


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI) -> None:
    greedy = complete(client, temperature=0).choices[0].text
    assert complete(client).choices[0].text != greedy  # the temperature is 1 if none is given
    for options in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert complete(client, **options).choices[0].text == greedy
    assert complete(client, seed=1, extra_body={"top_k": -1, "min_p": 0}).choices == complete(client, seed=1).choices
    ended = complete(client, logit_bias={}, presence_penalty=0, user="someone", extra_body={"min_tokens": 12})
    assert ended.usage.completion_tokens == 12


@pytest.mark.parametrize("as_list", [False, True])
def test_a_text_ends_before_a_stop_string(client: openai.OpenAI, as_list: bool) -> None:
    free = complete(client, temperature=0).choices[0].text
    stop = free[3:5]
    answer = complete(client, temperature=0, stop=[stop, "never"] if as_list else stop)
    assert answer.choices[0].text == free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert complete(client, temperature=0).choices[0].finish_reason == "length"


def test_log_probabilities_of_completions(running: RunningServer, client: openai.OpenAI) -> None:
    [expected] = running.model.generate(
        ["The fox"], tokenizer=running.tokenizer, max_new_tokens=12, temperature=0, top_logprobs=3
    )
    found = complete(client, temperature=0, logprobs=3).choices[0].logprobs
    assert len(found.tokens) == len(found.text_offset) == len(expected.token_ids)
    assert found.token_logprobs == pytest.approx(expected.logprobs)
    assert expected.top_logprobs is not None
    for token, logprob, top, likely in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, expected.top_logprobs, strict=True
    ):
        assert list(top.values()) == pytest.approx([logprob for _, logprob in likely])
        assert top[token] == logprob == max(top.values())
    drawn = complete(client, seed=3, logprobs=0).choices[0].logprobs
    assert [list(top) for top in drawn.top_logprobs] == [[token] for token in drawn.tokens]
    assert complete(client).choices[0].logprobs is None


def test_log_probabilities_of_chats(client: openai.OpenAI) -> None:
    answer = chat(client, temperature=0, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert all(len(one.top_logprobs) == 2 for one in content)
    assert all(one.top_logprobs[0].token == one.token for one in content)
    text = b"".join(bytes(one.bytes) for one in content).decode(errors="replace")
    assert text.startswith(answer.choices[0].message.content.rstrip("\ufffd"))
    plain = chat(client, temperature=0, logprobs=True).choices[0].logprobs.content
    assert [one.logprob for one in plain] == [one.logprob for one in content]
    assert all(one.top_logprobs == [] for one in plain)


def test_a_chat_is_prompted_by_the_chat_template(running: RunningServer, client: openai.OpenAI) -> None:
    prompt = running.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    ids = running.tokenizer.encode(prompt, add_special_tokens=False)
    answer = chat(client, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == complete(client, ids, temperature=0).choices[0].text
    assert answer.usage.prompt_tokens == len(ids)
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert chat(client, parts, temperature=0).choices == answer.choices


def test_an_answer_without_a_limit_may_fill_the_context(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": " fox" * (CONTEXT - 40)}]
    answer = chat(client, long, max_tokens=None, extra_body={"min_tokens": 20})
    assert CONTEXT - 40 < answer.usage.prompt_tokens < CONTEXT - 20
    assert answer.usage.total_tokens == CONTEXT
    assert answer.choices[0].finish_reason == "length"
    assert chat(client, max_tokens=30, max_completion_tokens=2).usage.completion_tokens == 2


def test_models_and_health(running: RunningServer, client: openai.OpenAI) -> None:
    [model] = client.models.list()
    assert model.id == "tiny"
    assert model.max_model_len == CONTEXT  # type: ignore[attr-defined]
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with urllib.request.urlopen(f"{running.url}/health") as response:
        assert json.load(response) == {"status": "ok"}


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"temperature": "hot"}, "temperature", r"'temperature': found text \('hot'\), wanted a number"),
        ({"temperature": -1}, "temperature", "temperature=-1.0 must be at least 0"),
        ({"top_p": 3}, "top_p", "top_p=3.0 must be more than 0 and at most 1"),
        ({"n": 0}, "n", r"'n': found a number \(0\), wanted at least 1"),
        ({"n": 129}, "n", "wanted at most 128"),
        ({"n": 2, "temperature": 0}, "n", "n=2 with temperature=0 would give 2 equal samples"),
        ({"max_tokens": 1.5}, "max_tokens", "wanted a whole number"),
        ({"max_tokens": True}, "max_tokens", "wanted a whole number"),
        ({"max_tokens": CONTEXT}, "max_tokens", r"'prompt' has \d tokens, and with 4,096 new ones .* 4,096 tokens"),
        ({"prompt": [5] * 5000}, "prompt", "'prompt' has 5,000 tokens.* 4,096 tokens of context that 'tiny' has; shor"),
        ({"prompt": ["fox", "fox " * 5000]}, "prompt", r"'prompt\[1\]' has [\d,]+ tokens"),
        ({"extra_body": {"min_tokens": 50}}, "min_tokens", "min_tokens=50 is more than max_tokens=12"),
        ({"stop": [1]}, "stop", "wanted text or a list of texts"),
        ({"stop": ""}, "stop", "stop has an empty string"),
        ({"logprobs": 21}, "logprobs", "at most 20"),
        ({"stream": "yes"}, "stream", "wanted true or false"),
        ({"stream_options": 3}, "stream_options", "wanted an object"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage", "wanted true or false"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"prompt": None}, "prompt", "parameter 'prompt' is missing"),
        ({"prompt": []}, "prompt", "found an empty list, wanted text, a list of texts"),
        ({"prompt": ""}, "prompt", "'prompt' has no tokens"),
        ({"prompt": ["a", 3]}, "prompt", r"'prompt\[1\]': found a number \(3\)"),
        ({"prompt": [[5], []]}, "prompt", r"'prompt\[1\]'"),
        ({"prompt": [5, 10_000]}, "prompt", "'prompt' has token 10000, but the model has tokens 0 to"),
        ({"prompt": ["a"] * 100, "n": 21}, "prompt", "100 prompts with n=21 are more than 2,048 completions"),
        ({"suffix": "x"}, "suffix", "'suffix' is not supported; leave it out$"),
        ({"best_of": 2}, "best_of", "leave it out or give 1"),
        ({"echo": True}, "echo", "leave it out or give false"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "leave it out or give 0"),
        ({"extra_body": {"temprature": 1}}, "temprature", "there is no parameter 'temprature'; did you mean 'temperat"),
        ({"extra_body": {"foo": 1}}, "foo", "there is no parameter 'foo'; leave it out"),
    ],
)
def test_a_wrong_parameter_of_a_completion_is_named(
    client: openai.OpenAI, options: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        complete(client, **options)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert "pydantic" not in raised.value.message


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"messages": None}, "messages", "parameter 'messages' is missing"),
        ({"messages": "hi"}, "messages", r"found text \('hi'\), wanted a list"),
        ({"messages": []}, "messages", "found an empty list"),
        ({"messages": ["hi"]}, "messages", r"'messages\[0\]': found text \('hi'\), wanted a message with role and"),
        ({"messages": [{"role": "user"}]}, "messages", r"'messages\[0\].content': found no such key"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, "messages", "wanted one to be answered"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
            r"'messages\[0\].content\[0\]': found a part of type 'image_url', wanted text",
        ),
        ({"messages": [{"role": "user", "content": "fox " * 5000}]}, "messages", "'messages' has [0-9,]+ tokens"),
        ({"tools": [3]}, "tools", r"'tools\[0\]': found a number"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "the chat template .* ignores tools"),
        ({"tool_choice": "required"}, "tool_choice", "only 'auto' and 'none'"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ],
)
def test_a_wrong_parameter_of_a_chat_is_named(
    client: openai.OpenAI, options: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        chat(client, **options)
    assert raised.value.param == param


def test_what_is_too_long_has_the_code_of_the_api(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        complete(client, [5] * 5000)
    assert raised.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here; this server has 'tiny'") as raised:
        complete(client, model="gpt-4")
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"


def post(running: RunningServer, path: str, body: bytes | None, kind: str = "application/json") -> tuple[int, Any]:
    request = urllib.request.Request(f"{running.url}{path}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{bad", "application/json", "the body is not JSON: .* at character 1"),
        (b"\xff\xfe{", "application/json", "body"),
        (b"[1]", "application/json", "must be a JSON object, not a list of 1"),
        (b"", "application/json", "the request has no body"),
        (b'{"prompt": "x"}', "application/x-www-form-urlencoded", "header 'Content-Type: application/json'"),
        (b'{"prompt": "\\ud83d"}', "application/json", "half of a surrogate pair"),
        (b'{"prompt": "x", "\\ud83d": 1}', "application/json", "the name of a parameter is not valid Unicode"),
        (b'{"prompt": "x", "temperature": NaN}', "application/json", "temperature=nan must be"),
    ],
)
def test_a_body_that_is_wrong_as_a_whole(running: RunningServer, body: bytes, kind: str, message: str) -> None:
    status, answer = post(running, "/v1/completions", body, kind)
    assert status == 400
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(answer))


def test_what_an_error_quotes_is_printable_and_short(running: RunningServer) -> None:
    body = json.dumps({"prompt": "x", "model": f"\ud83d\n\x1b[2J{'x' * 100_000}"}).encode()
    status, message = post(running, "/v1/completions", body)
    assert status == 404
    assert message.startswith(r"there is no model '\ud83d\n\x1b[2Jxxx")
    assert len(message) == 1000


def test_the_model_may_be_left_out_and_null_counts_as_left_out(running: RunningServer) -> None:
    body = json.dumps({"prompt": "The fox", "max_tokens": 2, "temperature": None, "stop": None, "logprobs": None})
    status, answer = post(running, "/v1/completions", body.encode())
    assert status == 200
    assert answer["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize(("path", "status"), [("/v1/embeddings", 404), ("/v1/models", 405)])
def test_a_path_that_does_not_exist_lists_those_that_do(running: RunningServer, path: str, status: int) -> None:
    assert post(running, path, b"{}") == (
        status,
        f"there is no POST {path} here; see POST /v1/chat/completions, POST /v1/completions and GET /v1/models",
    )


def test_with_an_api_key_requests_must_have_it(running: RunningServer) -> None:
    with running_server(running.model, running.tokenizer, api_key="secret") as server:
        with server.client(api_key="secret") as client:
            assert complete(client).choices
        with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError, match="is wrong"):
            complete(client)
        status, answer = post(server, "/v1/completions", b'{"prompt": "x"}')
        assert status == 401
        assert answer == "an API key is needed; send the header 'Authorization: Bearer KEY'"
        with urllib.request.urlopen(f"{server.url}/health") as response:
            assert response.status == 200
