"""The HTTP proxy of the link: variables in capitals, which gRPC does not read.

gRPC reads ``grpc_proxy``, ``https_proxy``, ``http_proxy``, ``no_grpc_proxy`` and ``no_proxy``, in
lower case only, and accepts no proxy without ``http://`` before its name. Otherwise it connects to
the coordinator directly, without a message.
"""

from __future__ import annotations

import os

from privet.common.errors import InputError

_LOWER = ("grpc_proxy", "https_proxy", "http_proxy")
_SCHEME = "http://"


def use_proxy_variables() -> str:
    """Make gRPC in this process use the proxy that ``HTTPS_PROXY`` or ``https_proxy`` names.

    A variable in lower case takes precedence. Call this before a channel is made.

    Returns:
        The proxy, without user and password, or "".

    Raises:
        InputError: if it is not a proxy over plain HTTP.
    """
    upper = os.environ.get("HTTPS_PROXY", "")
    if upper and not any(os.environ.get(name) for name in _LOWER):
        os.environ["https_proxy"] = upper
    if (exceptions := os.environ.get("NO_PROXY")) and "no_proxy" not in os.environ:
        os.environ["no_proxy"] = exceptions
    for name in _LOWER:
        if found := os.environ.get(name):
            os.environ[name] = _readable(name, found)
            return os.environ[name].removeprefix(_SCHEME).rpartition("@")[2].rstrip("/")
    return ""


def _readable(name: str, proxy: str) -> str:
    """Return a proxy as gRPC reads it."""
    scheme, separator, _ = proxy.partition("://")
    if not separator:
        return _SCHEME + proxy
    if scheme.lower() != "http":
        raise InputError(
            f"{name}: a proxy is reached by http://, not by {scheme}://; what goes through it is "
            "TLS all the same"
        )
    return proxy
