"""Enrolment over a port of its own: real TLS, one use, nothing for a stranger."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from link_kit import until

from privet.client.link import join as module
from privet.client.link.join import Join, enrol, keep, trusted
from privet.common.errors import InputError, RunError
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import SERVER_NAME, request
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.server.membership import enrolment
from privet.server.membership.certificates import Authority
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemberRegistry:
    monkeypatch.setattr(enrolment, "_POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr(enrolment, "_WRONG_REQUEST_DELAY_S", 0.0)
    return MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:0")


@pytest.fixture
def door(federation: MemberRegistry) -> Iterator[EnrolmentServer]:
    with EnrolmentServer(federation, "127.0.0.1:0") as opened:
        yield opened


def vkeys(site: str) -> tuple[str, str]:
    found = []
    for kind, type_ in (("ledger", SIGN), ("witness", COSIGN)):
        public = FileSigner.generate().public
        found.append(str(Key(key_name(kind, site, public), public, type_)))
    return found[0], found[1]


def join_file(
    federation: MemberRegistry, door: EnrolmentServer, path: Path, site: str = "North", **more: Any
) -> Join:
    value = federation.invite(site)
    until(lambda: door.is_open)
    path.write_text(json.dumps({**value, "enrolment": door.address, **more}))
    return Join.load(path)


def done(coming: Future[str], timeout: float) -> bool:
    return bool(wait([coming], timeout).done)


def test_a_site_enrols_and_the_door_is_shut(
    federation: MemberRegistry, door: EnrolmentServer, tmp_path: Path
) -> None:
    assert not door.is_open
    join = join_file(federation, door, tmp_path / "join.json")
    home = tmp_path / "site"
    enrol(join, home, *vkeys("North"))
    certificate = (home / "link.pem").read_bytes()
    assert federation.identify(certificate) == "North"
    assert stat.S_IMODE((home / "link.key").stat().st_mode) == 0o600
    assert join.token not in "".join(p.read_text() for p in home.iterdir())
    until(lambda: not door.is_open)
    with pytest.raises(OSError), socket.create_connection(_place(door), timeout=1):
        pass


def _place(door: EnrolmentServer) -> tuple[str, int]:
    host, _, port = door.address.rpartition(":")
    return host, int(port)


def test_a_token_works_once_and_a_wrong_one_not_at_all(
    federation: MemberRegistry, door: EnrolmentServer, tmp_path: Path
) -> None:
    join = join_file(federation, door, tmp_path / "join.json")
    federation.invite("East")  # keeps the door open
    wrong = Join(**{**vars(join), "token": "x"})
    with pytest.raises(InputError, match="Ask for a new join file"):
        enrol(wrong, tmp_path / "thief", *vkeys("North"))
    assert federation.members()["North"].state == "invited"
    enrol(join, tmp_path / "site", *vkeys("North"))
    with pytest.raises(InputError, match="was used or has ended"):
        enrol(join, tmp_path / "thief", *vkeys("North"))


def test_a_site_enrols_with_no_other_coordinator(
    federation: MemberRegistry, door: EnrolmentServer, tmp_path: Path
) -> None:
    """The token is not even sent to one whose certificate is of another authority."""
    other = Authority.found("other").pem().decode()
    join = join_file(federation, door, tmp_path / "join.json", authority=other)
    with pytest.raises(RunError):
        enrol(join, tmp_path / "site", *vkeys("North"), timeout=5)
    assert federation.members()["North"].state == "invited"


def test_what_is_too_long_is_not_read(
    federation: MemberRegistry, door: EnrolmentServer, tmp_path: Path
) -> None:
    join = join_file(federation, door, tmp_path / "join.json")
    credentials = grpc.ssl_channel_credentials(join.authority.encode())
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with grpc.secure_channel(door.address, credentials, options) as channel:
        stub = rpc.EnrolmentStub(channel)
        for message, code in (
            (pb.Request(request=b"x" * 100_000), grpc.StatusCode.RESOURCE_EXHAUSTED),
            (pb.Request(), grpc.StatusCode.PERMISSION_DENIED),
            (pb.Request(site="\0", token="\u202e"), grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Enrol(message, timeout=10)
            assert caught.value.code() is code


def test_a_certificate_by_file_must_be_of_the_sites_own_key(
    federation: MemberRegistry, door: EnrolmentServer, tmp_path: Path
) -> None:
    join = join_file(federation, door, tmp_path / "join.json")
    home = tmp_path / "site"
    home.mkdir()
    asked, key = request("North")
    (home / "link.key").write_bytes(key)
    (home / "link.key").chmod(0o600)
    ledger, witness = vkeys("North")
    pem = federation.enrol("North", join.token, asked, ledger, witness)
    other = federation.authorities.load().admit(request("North")[0], "North")
    with pytest.raises(RunError, match="not for this site and its key"):
        keep(join, home, other)
    assert keep(join, home, pem).startswith("sha256:")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "privet/join/v1"}'])
def test_what_is_no_join_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "join.json").write_text(text)
    with pytest.raises(InputError, match="join file"):
        Join.load(tmp_path / "join.json")
    with pytest.raises(InputError, match="cannot be read"):
        Join.load(tmp_path / "nowhere")
    assert module.FORMAT == "privet/join/v1"


def test_a_site_that_comes_before_the_port_is_open_waits_for_it(
    federation: MemberRegistry, door: EnrolmentServer, tmp_path: Path, monkeypatch: Any
) -> None:
    """The port is shut after the last invitation, and opens a moment after the next."""
    first = join_file(federation, door, tmp_path / "join.json")
    enrol(first, tmp_path / "north", *vkeys("North"))
    until(lambda: not door.is_open)
    monkeypatch.setattr(enrolment.EnrolmentServer, "_look", lambda self: None)
    value = {**federation.invite("South"), "enrolment": door.address}
    (tmp_path / "south.json").write_text(json.dumps(value))
    join = Join.load(tmp_path / "south.json")
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(enrol, join, tmp_path / "south", *vkeys("South"))
        assert not done(coming, 0.5) and not door.is_open
        monkeypatch.undo()
        coming.result(60)
    assert (tmp_path / "south" / "link.pem").exists()
    # The control: a port that stays shut is named.
    with pytest.raises(RunError, match="nobody answers"):
        enrol(replace(join, enrolment="127.0.0.1:9"), tmp_path / "other", *vkeys("South"))


def test_a_join_file_that_names_two_authorities_takes_no_site_away(
    federation: MemberRegistry, door: EnrolmentServer, tmp_path: Path
) -> None:
    """Another coordinator names this one's authority beside its own, and answers the enrolment."""
    keys, folder = vkeys("North"), tmp_path / "north" / "link"
    good = join_file(federation, door, tmp_path / "good.json")
    enrol(good, folder, *keys)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pem")}
    evil = MemberRegistry.found(tmp_path / "evil", "evil", "127.0.0.1:1", "127.0.0.1:0")
    authority = (evil.folder / "authority.pem").read_text()
    chief = {**good.coordinator, "orders": evil.order_key().fingerprint}
    with EnrolmentServer(evil, "127.0.0.1:0") as theirs:
        made = join_file(evil, theirs, tmp_path / "forged.json")
        forged = replace(
            made, federation="hub", coordinator=chief, authority=authority + good.authority
        )
        with pytest.raises(RunError, match="nobody answers"):
            enrol(forged, folder, *keys)
    assert {path.name: path.read_bytes() for path in folder.glob("*.pem")} == before
    assert Join.kept(folder).coordinator == good.coordinator
    assert len(trusted(forged, folder)) == 1
    # The control: a site that comes in for the first time knows no better, and trusts its file.
    assert len(trusted(forged, tmp_path / "new")) == 2
