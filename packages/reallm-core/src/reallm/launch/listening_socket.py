"""The socket on which rank 0 serves the store of a job on several machines."""

from __future__ import annotations

import errno
import socket


def listening_socket(address: str, port: int, reached_from_elsewhere: bool) -> socket.socket | None:
    """A socket that listens on one address of this machine, and so on no other of its networks.

    torch's server by itself listens on all of them.

    Args:
        address: name or number under which the other processes look for this machine.
        port: the port.
        reached_from_elsewhere: whether processes on other machines use it.

    Returns:
        None if the address is none that this machine can listen on (a forwarded one, or one that is looked up
        differently elsewhere).

    Raises:
        OSError: the port is in use.
    """
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return None
    for family, *_, target in found:
        # Debian's /etc/hosts gives a machine's own name the address 127.0.1.1.
        if reached_from_elsewhere and str(target[0]).startswith(("127.", "::1")):
            continue
        try:
            return socket.create_server(target, family=family, backlog=socket.SOMAXCONN)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    return None
