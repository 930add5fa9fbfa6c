"""A clock that is wrong, a certificate that has ended, a key of another one: said in words, here."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from observe_kit import Commands

from privet.client.link.renewal import Renewal
from privet.common.errors import PrivateKeyError
from privet.common.link.identity import SERVER_NAME, request
from privet.common.plan import Plan
from privet.server.membership import certificates
from privet.server.membership.certificates import Authority, validity_faults
from privet.server.membership.registry import MemberRegistry

Shift = Callable[[float], None]


@pytest.fixture
def shift(monkeypatch: pytest.MonkeyPatch) -> Shift:
    """From now on certificates are made as if it were so many days later."""

    def make(days: float) -> None:
        class Elsewhen(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + timedelta(days=days)

        monkeypatch.setattr(certificates, "datetime", Elsewhen)

    return make


def folder_of(authority: Authority, folder: Path) -> Path:
    asked, key = request("North")
    folder.mkdir(exist_ok=True)
    (folder / "link.pem").write_bytes(authority.admit(asked, "North"))
    (folder / "link.key").touch(mode=0o600)
    (folder / "link.key").write_bytes(key)
    (folder / "authority.pem").write_bytes(authority.pem())
    return folder


def test_files_that_are_good_have_no_fault(tmp_path: Path) -> None:
    """The control."""
    renewal = Renewal(folder_of(Authority.found("x"), tmp_path / "link"), "North")
    renewal.require_fit()
    assert renewal.faults() == []
    assert renewal.explain("Socket closed") == "Socket closed"


@pytest.mark.parametrize(
    ("days", "said"),
    [(-500, "certificate ended at"), (3, "the clock is behind"), (3, "this machine's clock says")],
)
def test_times_are_said_with_the_clock(tmp_path: Path, shift: Shift, days: int, said: str) -> None:
    authority = Authority.found("x")
    shift(days)
    (fault,) = Renewal(folder_of(authority, tmp_path / "link"), "North").faults()
    assert said in fault and "date -u" in fault and str(datetime.now(UTC).year) in fault
    assert ("enroll … --again" in fault) == (days < 0)


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    folder = folder_of(Authority.found("x"), tmp_path / "link")
    (folder / "link.key").write_bytes(request("North")[1])
    renewal = Renewal(folder, "North")
    with pytest.raises(PrivateKeyError, match=r"link\.key does not fit the certificate beside it"):
        renewal.require_fit()
    assert "does not fit" in renewal.explain("Failed to create security handshaker.")


def test_files_of_two_federations(tmp_path: Path) -> None:
    folder = folder_of(Authority.found("x"), tmp_path / "link")
    (folder / "authority.pem").write_bytes(Authority.found("x").pem())
    (fault,) = Renewal(folder, "North").faults()
    assert "is not of the authority beside it" in fault


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (-500, "the coordinator's certificate has ended by this machine's clock"),
        (3, "the coordinator's certificate begins later than this machine's clock says"),
        (None, "another authority than that of this site's join file"),
    ],
)
def test_what_a_handshake_says_of_the_coordinator(
    tmp_path: Path, shift: Shift, days: int | None, said: str
) -> None:
    """Real handshakes: the words of gRPC are not our own, and may change."""
    authority = Authority.found("x")
    folder = folder_of(authority, tmp_path / "link")
    if days is not None:
        shift(days)
    certificate, key = (authority if days is not None else Authority.found("x")).serve("hub")
    shown = grpc.ssl_server_credentials([(key, certificate)])
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", shown)
    server.start()
    renewal = Renewal(folder, "North")
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    channel = grpc.secure_channel(f"127.0.0.1:{port}", renewal.credentials(), options)
    with channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/x/y")(b"", timeout=10)
    server.stop(0)
    details = caught.value.details()  # type: ignore[attr-defined]
    assert said not in details and said in renewal.explain(details)


def test_a_coordinators_own_files(tmp_path: Path, shift: Shift) -> None:
    MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2")
    assert validity_faults(tmp_path / "hub") == []
    shift(3)
    MemberRegistry.found(tmp_path / "later", "hub", "127.0.0.1:1", "127.0.0.1:2")
    faults = validity_faults(tmp_path / "later")
    assert len(faults) == 2 and all("the clock is behind" in fault for fault in faults)
    shutil.copy(tmp_path / "hub" / "server.pem", tmp_path / "later" / "server.pem")
    assert any("is not of the authority beside it" in one for one in
               validity_faults(tmp_path / "later"))  # fmt: skip


@pytest.fixture
def town(tmp_path: Path, root: Path, plan_value: Any, frame_of: Any) -> Iterator[Commands]:
    plan = Plan.parse(
        plan_value(metrics={"source": "gate"}, sites=[{"name": "North", "nominal_size": 40}])
    )
    made = Commands(tmp_path / "town", root, plan, {"North": frame_of(40, 1)})
    yield made
    made.close()


@pytest.mark.slow
def test_a_client_says_at_its_start_what_is_wrong(town: Commands, shift: Shift) -> None:
    """The commands as they are typed; a coordinator listens, so that the link itself fails too."""
    link = town.folder / "North" / "link"
    good = {path.name: path.read_bytes() for path in link.iterdir()}
    authority = Authority.load(*((town.folder / "hub" / f"authority.{end}").read_bytes()
                                 for end in ("pem", "key")), None)  # fmt: skip
    town.run("hub", "--log", "json", metrics=False)
    (link / "link.key").write_bytes(request("North")[1])
    assert town.run("North", "--log", "json", metrics=False).wait(60) == 2
    assert "does not fit the certificate beside it" in town.said("North")
    # An ended certificate may be replaced while the client runs: it says so, and stays.
    shift(-500)
    folder_of(authority, link)
    (town.folder / "North.log").write_text("")
    running = town.run("North", "--log", "json", metrics=False)
    events = lambda: [json.loads(line) for line in town.said("North").splitlines()]  # noqa: E731
    until(lambda: any("does not answer" in one["event"] for one in events()), town)
    for event in ("the link cannot work now", "the coordinator does not answer; calling again"):
        (line,) = [one for one in events() if one["event"].startswith(event)]
        assert "this site's certificate ended at" in line["why"]
    for name, data in good.items():
        (link / name).write_bytes(data)
    until(lambda: "connected" in [one["event"] for one in events()], town)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 0
    said = [one["event"] for one in events()]
    assert said[0] == "started" and said[-1] == "stopped"
    town.running["hub"].send_signal(signal.SIGTERM)
    assert town.running["hub"].wait(30) == 0
    told = [json.loads(line)["event"] for line in town.said("hub").splitlines()]
    assert told[0] == "started" and told[-1] == "stopped"


def until(check: Callable[[], bool], town: Commands, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, town.said("North") + town.said("hub")
        time.sleep(0.1)
