"""Rank 0 of a job on several machines listens on one address of its machine."""

import errno
import socket

import pytest

from reallm.launch.listening_socket import listening_socket


def test_it_listens_on_the_address_alone():
    with listening_socket("127.0.0.1", 0, reached_from_elsewhere=False) as server:
        assert server.getsockname()[0] == "127.0.0.1"
        with socket.create_connection(server.getsockname()):
            pass


def test_a_port_in_use_is_an_error():
    with listening_socket("127.0.0.1", 0, reached_from_elsewhere=False) as server:
        with pytest.raises(OSError) as caught:
            listening_socket("127.0.0.1", server.getsockname()[1], reached_from_elsewhere=False)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("address", ["192.0.2.1", "no-such-host.invalid"])  # RFC 5737 and 2606: of nobody
def test_an_address_of_another_machine_is_none(address):
    assert listening_socket(address, 0, reached_from_elsewhere=True) is None


def test_the_loopback_address_of_a_name_is_none_that_others_reach():
    assert listening_socket("127.0.1.1", 0, reached_from_elsewhere=True) is None
