"""The address that the server listens on. Imports no torch."""

from __future__ import annotations

import errno
import ipaddress
import socket

from reallm.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not listening yet; port 0 takes a free one.

    Raises:
        ConfigError: the machine has no such address, the port is in use, or the system does not allow it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: not an address ({error.strerror})") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port {port}: in use already; give another one, or 0 for any that is free") from error
        if error.errno == errno.EACCES:
            raise ConfigError(f"--port {port}: not allowed for this user; give one from 1024 on") from error
        raise ConfigError(f"--host {host}: not an address of this machine ({error.strerror})") from error
    return bound


def is_local(bound: socket.socket) -> bool:
    """Whether only this machine can reach the address."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def url(bound: socket.socket) -> str:
    """The URL of the address; if it is all of the machine's, that of the local one."""
    address, port, *_ = bound.getsockname()
    found = ipaddress.ip_address(address)
    if found.is_unspecified:
        found = ipaddress.ip_address("127.0.0.1" if found.version == 4 else "::1")
    return f"http://[{found}]:{port}" if found.version == 6 else f"http://{found}:{port}"
