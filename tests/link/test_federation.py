"""The coordinator's folder: invitations, members, revocation; what is open to whom."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from privet.common.errors import InputError, PrivetError
from privet.common.link.identity import read_certificate, request, site_of
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.server.membership import registry as module
from privet.server.membership.folder_format import FORMATS
from privet.server.membership.registry import MemberRegistry


@pytest.fixture
def federation(tmp_path: Path) -> MemberRegistry:
    return MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2")


def keys_of(site: str) -> dict[str, str]:
    found = {}
    for kind, type_ in (("ledger", SIGN), ("witness", COSIGN)):
        public = FileSigner.generate().public
        found[kind] = str(Key(key_name(kind, site, public), public, type_))
    return found


def enrol(federation: MemberRegistry, site: str, join: dict[str, Any] | None = None) -> bytes:
    join = join or federation.invite(site)
    return federation.enrol(site, join["token"], request(site)[0], **keys_of(site))


def test_a_site_comes_in_by_its_invitation_once(federation: MemberRegistry) -> None:
    join = federation.invite("New England")
    assert federation.invites
    certificate = enrol(federation, "New England", join)
    assert site_of(read_certificate(certificate)) == "New England"
    assert federation.identify(certificate) == "New England"
    assert not federation.invites
    with pytest.raises(InputError, match="no such invitation"):
        enrol(federation, "New England", join)


def test_the_folder_holds_no_token_and_no_open_key(tmp_path: Path) -> None:
    made = MemberRegistry.found(tmp_path / "hub", "hub", "a:1", "a:2", "a long passphrase")
    join = made.invite("North")
    for path in made.folder.rglob("*"):
        if path.is_file():
            assert join["token"].encode() not in path.read_bytes()
        if path.suffix in (".key", ".pem") and path.name not in ("authority.pem", "server.pem"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in (made.folder / "authority.key").read_bytes()
    with pytest.raises(PrivetError):
        MemberRegistry.load(made.folder, "another one").order_key()
    assert enrol(MemberRegistry.load(made.folder, "a long passphrase"), "North", join)


@pytest.mark.parametrize("how", ["token", "site", "late", "revoked", "unknown"])
def test_whatever_is_wrong_with_an_invitation_the_answer_is_the_same(
    federation: MemberRegistry, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    join, site = federation.invite("North"), "North"
    federation.invite("East")
    if how == "token":
        join["token"] = "x" * 43
    elif how == "site":
        site = "East"
    elif how == "late":
        now = time.time()
        monkeypatch.setattr(module.time, "time", lambda: now + 73 * 3600)
    elif how == "revoked":
        federation.revoke("North")
    else:
        site = "Nowhere"
    with pytest.raises(InputError) as caught:
        federation.enrol(site, join["token"], request(site)[0], **keys_of(site))
    assert str(caught.value).startswith("there is no such invitation")


def test_a_new_invitation_replaces_the_older_one(federation: MemberRegistry) -> None:
    older, newer = federation.invite("North"), federation.invite("North")
    with pytest.raises(InputError, match="no such invitation"):
        enrol(federation, "North", older)
    enrol(federation, "North", newer)
    for name in ("North", "NORTH"):
        with pytest.raises(InputError, match="enrolled already"):
            federation.invite(name)


def test_a_wrong_key_uses_no_invitation_up(federation: MemberRegistry) -> None:
    join, good, other = federation.invite("North"), keys_of("North"), keys_of("East")
    for bad in (
        {**good, "ledger": other["ledger"]}, {**good, "ledger": good["witness"]},
        {**good, "witness": "rubbish"},
    ):  # fmt: skip
        with pytest.raises(InputError):
            federation.enrol("North", join["token"], request("North")[0], **bad)
    with pytest.raises(InputError, match="request"):
        federation.enrol("North", join["token"], b"rubbish", **good)
    assert enrol(federation, "North", join)


def test_a_request_for_another_name_gets_the_invited_one(federation: MemberRegistry) -> None:
    join = federation.invite("North")
    asked, _ = request("East")
    certificate = federation.enrol("North", join["token"], asked, **keys_of("North"))
    assert site_of(read_certificate(certificate)) == "North"


def test_revocation_and_renewal_need_no_restart(federation: MemberRegistry) -> None:
    running = MemberRegistry.load(federation.folder)
    first = enrol(federation, "North")
    assert running.identify(first) == "North"
    second = federation.renew("North", request("North")[0])
    assert running.identify(first) == running.identify(second) == "North"
    third = federation.renew("North", request("North")[0])
    assert running.identify(first) is None and running.identify(third) == "North"
    federation.revoke("North")
    assert running.identify(second) is None is running.identify(third)
    with pytest.raises(InputError, match="not enrolled"):
        federation.renew("North", request("North")[0])
    with pytest.raises(InputError, match="revoked already"):
        federation.invite("North")


def test_a_certificate_of_the_authority_alone_is_no_member(federation: MemberRegistry) -> None:
    asked, _ = request("North")
    enrol(federation, "North")
    assert federation.identify(federation.authorities.load().admit(asked, "North")) is None
    assert federation.identify(b"rubbish") is None


def test_the_roster_has_the_enrolled_sites(federation: MemberRegistry) -> None:
    for name in ("North", "East", "South"):
        enrol(federation, name)
    run = federation.folder / "runs" / "one"
    roster = federation.roster(["North", "South"], run)
    assert federation.roster(["North", "South"], run) == roster
    assert [member.name for member in roster.sites] == ["North", "South"]
    assert roster.quorum == 2 and roster.coordinator.name == "hub"
    with pytest.raises(InputError, match="not enrolled"):
        federation.roster(["North", "West"], run)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "é", "x" * 65, "HUB"])
def test_names_that_cannot_be_a_sites(federation: MemberRegistry, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a site"):
        federation.invite(name)


def test_what_is_no_federation(tmp_path: Path, federation: MemberRegistry) -> None:
    with pytest.raises(InputError, match="privet server init"):
        MemberRegistry.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not an empty folder"):
        MemberRegistry.found(federation.folder, "hub", "a:1", "a:2")
    for text in ("", "{", "[]", json.dumps({"format": "x"}), json.dumps(FORMATS.marks)):
        (federation.folder / "federation.json").write_text(text)
        with pytest.raises(InputError):
            MemberRegistry.load(federation.folder)


@pytest.mark.parametrize("name", ["north", " North", "North ", "NORTH\t"])
def test_one_site_by_whatever_spelling(federation: MemberRegistry, name: str) -> None:
    assert federation.invite(" North ")["site"] == "North"
    join = federation.invite(name)
    assert join["site"] == "North" and list(federation.members()) == ["North"]
    enrol(federation, "North", join)
    with pytest.raises(InputError, match="'North' is enrolled already"):
        federation.invite(name)
    if name.strip() != "North":
        with pytest.raises(InputError, match="known as 'North': spell it so"):
            federation.require_enrolled([name])
    federation.revoke(name)
    assert federation.members()["North"].revoked


def test_an_invitation_is_withdrawn(federation: MemberRegistry) -> None:
    join = federation.invite("North")
    federation.withdraw(" north")
    assert not federation.members() and not federation.invites
    with pytest.raises(InputError, match="no such invitation"):
        enrol(federation, "North", join)
    for name in ("North", "Nowhere"):
        with pytest.raises(InputError, match=f"'{name}' has no invitation"):
            federation.withdraw(name)
    # The name is free, also in another spelling.
    enrol(federation, "NORTH", federation.invite("NORTH"))
    with pytest.raises(InputError, match="no invitation"):
        federation.withdraw("NORTH")
    again = federation.invite("NORTH", again=True)
    federation.withdraw("NORTH")
    assert federation.members()["NORTH"].state == "enrolled"
    with pytest.raises(InputError, match="no such invitation"):
        enrol(federation, "NORTH", again)
