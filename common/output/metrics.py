"""Metrics for Prometheus, on a port that only this machine can reach.

``GET /metrics`` returns the metrics, ``/-/healthy`` says that the process runs and ``/-/ready``
whether it can do its work (200 or 503). There is no authentication: the metrics are for any user of
this machine. Nothing is pushed anywhere.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from privet import __version__
from privet.common.errors import InputError
from privet.common.link.address import read_address, show_address

_LOG = logging.getLogger("privet.metrics")
_REQUEST_TIMEOUT_S = 10.0
"""Seconds that a caller has to say what it wants."""


def parse_address(text: str) -> tuple[str, int]:
    """Read ``[HOST:]PORT``; the host must belong to this machine alone, default 127.0.0.1.

    Raises:
        InputError: if it is no address, or one that other machines can reach.
    """
    address = text
    if _is_port(text):
        address = f"127.0.0.1:{text.removeprefix(':')}"
    try:
        host, port = read_address(address)
    except InputError as error:
        raise InputError(f"--metrics {text}: it is not [HOST:]PORT: {error}") from None
    try:
        here = ipaddress.ip_address({"localhost": "127.0.0.1"}.get(host, host))
    except ValueError:
        raise InputError(f"--metrics {text}: '{host}' is not an address of a machine") from None
    if not here.is_loopback:
        raise InputError(
            f"--metrics {text}: {host} can be reached from other machines, and the metrics have no "
            "authentication. Use 127.0.0.1, and let an agent of your monitoring on this machine, "
            "or a reverse proxy that asks who is calling, take them from there"
        )
    return str(here), port


def _is_port(text: str) -> bool:
    return text.removeprefix(":").isdigit()


def registry(role: str, *collectors: Collector) -> CollectorRegistry:
    """Return a new registry of version, process, platform, and ``collectors``."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    for one in (_Version(role), *collectors):
        made.register(one)
    return made


Values = Mapping[tuple[str, ...], float]
"""Values of a metric, by the values of its labels."""


def gauge(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """Return a metric whose values go up and down.

    Args:
        name: without the prefix ``privet_``.
        text: its help text.
        labels: names of its labels.
        values: value by the labels' values, in the order of ``labels``.
    """
    return _filled(GaugeMetricFamily(f"privet_{name}", text, labels=labels), values)


def counter(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """Return a metric whose values only grow.

    Args:
        name: without the prefix ``privet_`` and the suffix ``_total``.
        text: its help text.
        labels: names of its labels.
        values: value by the labels' values, in the order of ``labels``.
    """
    return _filled(CounterMetricFamily(f"privet_{name}", text, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for names, value in values.items():
        family.add_metric(list(names), float(value))
    return family


class _Version(Collector):
    def __init__(self, role: str) -> None:
        self._value = {"version": __version__, "role": role}

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily("privet", "Version of Privet, and which end this is.", self._value)


class Endpoint:
    """Serve a registry until it is closed; use it as a context manager.

    Args:
        registry: whose metrics are served.
        address: as :func:`parse_address` returns it; port 0 takes a free one.
        is_ready: returns whether the process can do its work.

    Raises:
        InputError: if it cannot listen on the port.
    """

    def __init__(
        self, registry: CollectorRegistry, address: tuple[str, int], is_ready: Callable[[], bool]
    ) -> None:
        self._exposition = make_wsgi_app(registry)
        self._is_ready = is_ready
        self._turn = threading.Lock()
        kind = _Server6 if ":" in address[0] else _Server
        try:
            self._server = make_server(*address, self._answer, kind, _Handler)
        except OSError as error:
            raise InputError(
                f"--metrics: cannot listen at {show_address(*address)}: {error.strerror}"
            ) from None
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def __enter__(self) -> Endpoint:
        self._thread.start()
        host = self._server.server_address[0]
        _LOG.info("metrics", extra={"address": host, "port": self.port})
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                try:
                    with self._turn:
                        found: Iterable[bytes] = self._exposition(environ, start)
                except Exception as error:
                    _LOG.error("the metrics cannot be collected", extra={"why": error})
                    return _short(start, "500 Internal Server Error")
                return found
            case "/-/ready" if not self._is_ready():
                return _short(start, "503 Service Unavailable")
            case "/-/healthy" | "/-/ready":
                return _short(start, "200 OK")
        return _short(start, "404 Not Found")


def _short(start: Callable[..., Any], status: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [status.encode() + b"\n"]


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the standard library would write to standard error."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind; the standard library would ask the name service for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a caller that goes away."""


class _Server6(_Server):
    address_family = socket.AF_INET6
