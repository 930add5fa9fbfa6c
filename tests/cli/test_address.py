"""Addresses as people write them, and as they are shown: IPv6 in brackets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk

from privet.client.link.join import Join, enrol
from privet.common.errors import InputError
from privet.common.link.address import bracketed, read_address, show_address, show_peer
from privet.common.output.metrics import parse_address
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.server.membership import enrolment
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("hub.example.org:7443", "hub.example.org", 7443), ("192.0.2.7:1", "192.0.2.7", 1),
        ("[2001:db8::7]:7443", "2001:db8::7", 7443), ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
        (" localhost:0 ", "localhost", 0),
    ],
)  # fmt: skip
def test_an_address_is_read_and_shown_alike(text: str, host: str, port: int) -> None:
    assert read_address(text) == (host, port)
    assert show_address(host, port) == text.strip()
    assert bracketed(bracketed(host)) == bracketed(host)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not host:port"), ("hub", "not host:port"), ("hub:", "not host:port"),
        (":1", "not host:port"), ("hub:65536", "not host:port"), ("hub:-1", "not host:port"),
        ("hub:¹", "not host:port"), ("::1:7443", r"in brackets, \[::1\]:7443"),
        ("2001:db8:1:2:3:4:5:6", r"in brackets, \[2001:db8:1:2:3:4:5:6\]:PORT"),
        ("[hub]:1", "no IPv6"), ("[127.0.0.1]:1", "no IPv6"),
    ],
)  # fmt: skip
def test_what_is_no_address(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_address(text)


def test_figures_at_an_ipv6_address() -> None:
    assert parse_address("[::1]:9464") == ("::1", 9464)
    with pytest.raises(InputError, match=r"--metrics ::1:9464.*in brackets, \[::1\]:9464"):
        parse_address("::1:9464")


def test_a_coordinator_at_an_ipv6_address(tmp_path: Path, desk: Desk) -> None:
    code, _, err = desk.run("server", "init", "hub", "--name", "hub", "--plain-keys",
                            "--address", "[2001:db8::7]:7443")  # fmt: skip
    assert code == 0, err
    value = json.loads((tmp_path / "hub" / "federation.json").read_text())
    assert (value["address"], value["enrolment"]) == ("[2001:db8::7]:7443", "[2001:db8::7]:7444")


def vkey(kind: str, type_: int) -> str:
    public = FileSigner.generate().public
    return str(Key(key_name(kind, "North", public), public, type_))


def test_who_is_let_in_is_shown_in_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(enrolment, "_POLL_INTERVAL_S", 0.05)
    federation = MemberRegistry.found(tmp_path / "hub", "hub", "[::1]:1", "[::1]:2")
    join = federation.invite("North")
    with caplog.at_level(logging.INFO), EnrolmentServer(federation, "[::1]:0") as door:
        (tmp_path / "join.json").write_text(json.dumps({**join, "enrolment": door.address}))
        assert door.address.startswith("[::1]:")
        own = Join.load(tmp_path / "join.json")
        enrol(own, tmp_path / "link", vkey("ledger", SIGN), vkey("witness", COSIGN))
    (peer,) = [one.peer for one in caplog.records if one.message == "enrolled"]
    assert peer.startswith("ipv6:[::1]:")
    assert show_peer("ipv4:10.1.2.3:40112") == "ipv4:10.1.2.3:40112"
