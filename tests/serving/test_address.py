"""The address that the server listens on."""

from __future__ import annotations

import socket

import pytest

from reallm.errors import ConfigError
from reallm.serving.address import bind, is_local, url


def test_a_free_port_is_taken() -> None:
    with bind("localhost", 0) as bound:
        port = bound.getsockname()[1]
        assert url(bound) == f"http://127.0.0.1:{port}" or url(bound) == f"http://[::1]:{port}"
        assert is_local(bound)


def test_all_addresses_of_the_machine_are_not_local() -> None:
    with bind("0.0.0.0", 0) as bound:
        assert url(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert not is_local(bound)


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: in use already; give another one, or 0"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no such host", "192.0.2.7"])
def test_an_address_that_the_machine_does_not_have_is_an_error(host: str) -> None:
    with pytest.raises(ConfigError, match=f"--host {host}: not an address"):
        bind(host, 0)
