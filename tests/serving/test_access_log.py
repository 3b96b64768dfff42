"""The log of requests."""

from __future__ import annotations

import logging
import re
import urllib.error
import urllib.request

import openai
import pytest

from reallm.serving.access_log import LOGGER
from tests.helpers.running_server import RunningServer
from tests.helpers.waiting import wait_until


def test_each_request_is_one_line(
    running: RunningServer, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == LOGGER.name]

    with caplog.at_level(logging.INFO, LOGGER.name):
        usage = client.completions.create(model="tiny", prompt="The fox", n=2, max_tokens=4).usage
        assert usage is not None
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="tiny", prompt="The fox", temperature="hot")  # type: ignore[call-overload]
        stream = client.completions.create(
            model="tiny", prompt="The fox", max_tokens=4000, stream=True, extra_body={"min_tokens": 3000}
        )
        next(iter(stream))
        stream.close()
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{running.url}/a%0Ab%1B")
        raised.value.close()
        wait_until(lambda: len(lines()) == 4)
    answered, wrong, unknown, left = sorted(lines(), key=lambda line: re.findall(r" (\d{3})", line)[0])
    n_new = usage.completion_tokens
    assert answered.startswith(f"POST /v1/completions 200: {usage.prompt_tokens} prompt tokens, {n_new} new tokens in ")
    assert answered.endswith(" tokens/s")
    assert wrong == "POST /v1/completions 400: parameter 'temperature': found text ('hot'), wanted a number"
    assert left.startswith("POST /v1/completions 499: ")
    assert left.endswith("the client went away")
    assert unknown.startswith("GET /a%0Ab%1B 404: there is no GET /a%0Ab%1B here")
