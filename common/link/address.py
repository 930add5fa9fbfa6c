"""Addresses as people write them: ``host:port``, an IPv6 host in brackets (RFC 3986, 3.2.2)."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote

from privet.common.errors import InputError

MAX_PORT = 65_535


def read_address(text: str) -> tuple[str, int]:
    """Return host, without brackets, and port of ``host:port`` or ``[IPv6]:port``.

    Raises:
        InputError: if it is neither.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise InputError(f"'{text}' is not host:port")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        if not is_ipv6(inner):
            raise InputError(f"'{text}': '{inner}' is no IPv6 address")
        return inner, int(port)
    if ":" in host:
        whole = text.strip()
        fit = f"[{whole}]:PORT" if is_ipv6(whole) and not is_ipv6(host) else f"[{host}]:{port}"
        raise InputError(f"'{text}' is not host:port: write an IPv6 address in brackets, {fit}")
    return host, int(port)


def show_address(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 host in brackets.

    Args:
        host: name or IP address, without brackets.
        port: from 0 to 65535.
    """
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """Return a host as addresses and URLs have it."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def is_ipv6(host: str) -> bool:
    """Whether this is an IPv6 address, with or without a zone."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def show_peer(peer: str) -> str:
    """Return gRPC's name of a peer, without the URL encoding of its brackets (``%5B``)."""
    return unquote(peer)
