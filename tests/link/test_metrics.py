"""The port for Prometheus by itself: where it may be, what it serves, whom it asks."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterable

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from privet.common.errors import InputError
from privet.common.output.metrics import Endpoint, gauge, parse_address, registry


class Two(Collector):
    fault: Exception | None = None

    def collect(self) -> Iterable[Metric]:
        if self.fault is not None:
            raise self.fault
        yield gauge("two", "Two.", ("of",), {("shoes",): 2})


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("localhost:9464", ("127.0.0.1", 9464)),
        ("127.0.0.2:1", ("127.0.0.2", 1)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_an_address_of_this_machine(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize("text", ["0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464", "[2001:db8::1]:1"])
def test_an_address_that_others_reach_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="reached from other machines.*reverse proxy"):
        parse_address(text)


@pytest.mark.parametrize("text", ["", "x", "hub.example.org:9464", "127.0.0.1:", "1:2:3", "99999"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--metrics"):
        parse_address(text)


def test_figures_and_states(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("the name service was asked")

    monkeypatch.setattr(socket, "getfqdn", asked)
    monkeypatch.setattr(socket, "gethostbyaddr", asked)
    ready = False
    with Endpoint(registry("test", Two()), ("127.0.0.1", 0), lambda: ready) as endpoint:
        status, text = get(endpoint.port, "/metrics")
        assert status == 200 and 'privet_two{of="shoes"} 2.0' in text
        assert 'privet_info{role="test"' in text and "process_cpu_seconds_total" in text
        assert get(endpoint.port, "/-/healthy")[0] == 200
        assert get(endpoint.port, "/-/ready")[0] == 503
        ready = True
        assert get(endpoint.port, "/-/ready")[0] == 200
        assert get(endpoint.port, "/")[0] == 404
        with pytest.raises(InputError, match="cannot listen at 127.0.0.1"):
            Endpoint(registry("test"), ("127.0.0.1", endpoint.port), lambda: True)
    with pytest.raises(ConnectionRefusedError):
        get(endpoint.port, "/metrics")


def test_it_listens_on_loopback_alone() -> None:
    with Endpoint(registry("test"), ("127.0.0.1", 0), lambda: True) as endpoint:
        for other in ("127.0.0.2", "::1"):
            with pytest.raises(OSError):
                get(endpoint.port, "/metrics", other)


def test_figures_that_cannot_be_had_are_an_error_and_no_traceback(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    broken = Two()
    figures = registry("test", broken)
    with Endpoint(figures, ("127.0.0.1", 0), lambda: True) as endpoint:
        broken.fault = OSError("the disk is gone")
        assert get(endpoint.port, "/metrics") == (500, "500 Internal Server Error\n")
        broken.fault = None
        assert get(endpoint.port, "/metrics")[0] == 200
    errors = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert "the metrics cannot be collected" in errors
    assert "Traceback" not in capfd.readouterr().err
