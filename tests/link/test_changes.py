"""A coordinator moves and changes its authority: sites follow over the link, and nobody else leads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from link_kit import Dialed, Wire, until

from privet.client.link.addresses import Addresses
from privet.client.link.coordinators import LINK
from privet.client.link.dial import Dialer, LinkRequest, LinkResponse
from privet.client.link.join import Join, keep
from privet.client.link.move import move
from privet.client.link.notices import Notices
from privet.client.link.order_keys import kept_handovers
from privet.client.link.renewal import Renewal
from privet.common.errors import InputError
from privet.common.link import link_pb2 as pb
from privet.common.link.identity import read_certificate, request
from privet.common.link.notices import (
    followed,
    notice_digest,
    read_certificates,
    write_certificates,
)
from privet.common.link.validity import is_signed_by
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.order_keys import KeyHandover
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.server.link.server import LinkServer
from privet.server.membership import authority_files, order_key_files
from privet.server.membership.certificates import Authority
from privet.server.membership.credentials import credentials
from privet.server.membership.notice import notice_of
from privet.server.membership.order_key_files import handovers, rotate_order_key
from privet.server.membership.registry import MemberRegistry


@pytest.fixture
def federation(tmp_path: Path) -> MemberRegistry:
    return MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2")


@contextmanager
def hub_of(
    federation: MemberRegistry, folder: Path, port: int = 0
) -> Iterator[tuple[LinkServer, int]]:
    """A coordinator's end of the link; what it says of itself is the folder's word."""
    hub = LinkServer("hub", federation.identify, folder / "spool", renew=federation.renew)
    port = hub.start(f"127.0.0.1:{port}", credentials(federation, mutual=True))
    hub.tell(notice_of(federation))
    try:
        yield hub, port
    finally:
        with suppress(RuntimeError):
            hub.stop()


def vkeys(name: str = "North") -> tuple[str, str]:
    made = []
    for kind, type_ in (("ledger", SIGN), ("witness", COSIGN)):
        public = FileSigner.generate().public
        made.append(str(Key(key_name(kind, name, public), public, type_)))
    return made[0], made[1]


class Site:
    """A site's folder for the link, and its dialer."""

    def __init__(self, federation: MemberRegistry, home: Path, name: str = "North") -> None:
        self.federation, self.home, self.name = federation, home, name
        self.keys, self.folder = vkeys(name), home / "link"
        self.folder.mkdir(parents=True)
        self.come_in(again=False)
        self.addresses = Addresses(self.folder, federation.address)

    def come_in(self, *, again: bool = True) -> Join:
        path = self.home / "join.json"
        path.write_text(json.dumps(self.federation.invite(self.name, again=again)))
        join = Join.load(path)
        asked, key = request(self.name)
        own = self.folder / ("next-link.key" if (self.folder / "link.pem").exists() else "link.key")
        own.write_bytes(key)
        own.chmod(0o600)
        pem = self.federation.enrol(self.name, join.token, asked, *self.keys)
        keep(join, self.folder, pem)
        return join

    def dial(self) -> Dialed:
        renewal = Renewal(self.folder, self.name)

        def answer(asked: LinkRequest) -> LinkResponse:
            return LinkResponse(asked.records, asked.arrays)

        def take(notice: pb.Notice) -> None:
            Notices(self.folder, self.addresses).take(notice)

        dialer = Dialer(
            self.addresses.all, renewal.credentials, answer, renewal=renewal, on_notice=take
        )
        return Dialed(dialer)

    @property
    def authorities(self) -> list[bytes]:
        found = read_certificates((self.folder / "authority.pem").read_bytes())
        return [write_certificates([one]) for one in found]


# the address


def test_a_planned_move_needs_nobody_at_the_sites(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    with hub_of(federation, tmp_path) as (old, port), hub_of(federation, tmp_path / "2") as (_, to):
        federation.set_address(f"127.0.0.1:{port}")
        old.tell(notice_of(federation))
        site = Site(federation, tmp_path / "north")
        end = site.dial()
        until(lambda: old.noted.get("North") == old.notice_digest != b"")
        assert site.addresses.all() == [f"127.0.0.1:{port}"]
        federation.set_address(f"127.0.0.1:{to}")
        old.tell(notice_of(federation))
        until(lambda: old.noted.get("North") == old.notice_digest)
        assert site.addresses.all() == [f"127.0.0.1:{to}", f"127.0.0.1:{port}"]
        assert old.present() == ["North"]  # it stays until the old place is gone
        old.stop()
        until(lambda: end.dialer.address == f"127.0.0.1:{to}" and end.dialer.tally.connected)
        end.stop()


def test_a_site_goes_back_where_another_authority_answers(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    """A coordinator that lies of its address, or a man in the middle, gains nothing."""
    other = MemberRegistry.found(tmp_path / "evil", "hub", "127.0.0.1:1", "127.0.0.1:2")
    with hub_of(federation, tmp_path) as (hub, port), hub_of(other, tmp_path / "2") as (evil, to):
        wire = Wire(port)
        site = Site(federation, tmp_path / "north")
        federation.set_address(f"127.0.0.1:{wire.port}")
        move(site.home / LINK, address=federation.address)
        end = site.dial()
        until(lambda: hub.present() == ["North"])
        federation.set_address(f"127.0.0.1:{to}")
        hub.tell(notice_of(federation))
        until(lambda: site.addresses.all()[0] == federation.address)
        site.addresses.note_worked(f"127.0.0.1:{wire.port}")
        for count in (2, 3):
            wire.cut()
            until(lambda: hub.tally.streams["North"] >= count)  # noqa: B023
        assert not evil.tally.streams and not evil.present()
        end.stop()
        wire.close()


def test_what_a_coordinator_may_not_make_a_site_dial(tmp_path: Path) -> None:
    away = Addresses(tmp_path, "hub.example.org:7443")
    for local in (
        "127.0.0.1:22", "localhost:22", "[::1]:22", "0.0.0.0:22", "169.254.169.254:80", "2130706433:22",
        "0x7f000001:22", "127.1:22", "[::ffff:127.0.0.1]:22", "a.localhost:22", "[fe80::1]:22",
        "LOCALHOST.:22",
    ):  # fmt: skip
        with pytest.raises(InputError, match="this machine"):
            away.take_told(local)
    for wrong in (
        "",
        "host",
        "host:0",
        "host:x",
        " h:1",
        "h:1\n",
        "x" * 400 + ":1",
        "ü:1",
        "::1:5",
    ):
        with pytest.raises(InputError):
            away.take_told(wrong)
    assert away.all() == ["hub.example.org:7443"]
    assert away.take_told("10.0.0.7:7443") and not away.take_told("10.0.0.7:7443")
    away.take("127.0.0.1:7443")  # its own operator may
    assert away.all() == ["127.0.0.1:7443", "hub.example.org:7443"]


# the authority


def rotated(federation: MemberRegistry) -> tuple[bytes, bytes]:
    """Return the certificates of the former authority and of the new one."""
    former = (federation.folder / "authority.pem").read_bytes()
    federation.authorities.change(federation.name)
    return former, (federation.folder / "authority.pem").read_bytes()


def test_sites_follow_a_new_authority_and_the_former_is_dropped(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    with hub_of(federation, tmp_path) as (hub, port):
        federation.set_address(f"127.0.0.1:{port}")
        north = Site(federation, tmp_path / "north")
        away = Site(federation, tmp_path / "east", "East")
        end = north.dial()
        until(lambda: hub.present() == ["North"])
        former, new = rotated(federation)
        hub.tell(notice_of(federation))
        until(lambda: federation.left_behind() == ["East"])
        assert north.authorities == [new, former] and away.authorities == [former]
        # In the overlap both come in, each with what it has, and one that joins now.
        other = away.dial()
        until(lambda: sorted(hub.present()) == ["East", "North"])
        until(lambda: federation.left_behind() == [])
        west = Site(federation, tmp_path / "west", "West")
        assert west.authorities == [new, former]
        own = read_certificate((west.folder / "link.pem").read_bytes())
        assert is_signed_by(own, read_certificate(new))
        assert federation.authorities.drop_former()
        hub.tell(notice_of(federation))
        until(lambda: north.authorities == away.authorities == [new])
        end.stop(), other.stop()
        again = north.dial()
        until(lambda: hub.present() == ["North"])
        shown = read_certificate(federation.serving_pair()[1])
        assert is_signed_by(shown, read_certificate(new))
        again.stop()


def test_who_never_heard_of_the_new_authority_stays_out_once_the_former_is_dropped(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    with hub_of(federation, tmp_path) as (hub, port):
        federation.set_address(f"127.0.0.1:{port}")
        north = Site(federation, tmp_path / "north")
        rotated(federation)
        assert federation.left_behind() == ["North"]
        federation.authorities.drop_former()
        end = north.dial()
        until(lambda: end.dialer._away != "")
        assert not hub.present()
        end.stop()
        (north.folder / "authority.pem").unlink()  # its operator was told by telephone
        north.come_in()
        again = north.dial()
        until(lambda: hub.present() == ["North"])
        again.stop()


def test_only_the_present_authority_certifies_the_next() -> None:
    first, second, thief = (Authority.found("hub", distinct=True) for _ in range(3))
    one, two, evil = (made.certificate for made in (first, second, thief))
    assert followed([one], [two, one], first.cross(second)) == [two, one]
    assert followed([two, one], [two, one], b"") == [two, one]
    assert followed([two, one], [two], b"") == [two]
    # An older one does not come back, and nothing that the newest did not certify comes.
    assert followed([two, one], [one], b"") == [two, one]
    for told, cross in (
        ([evil], b""), ([evil, one], thief.cross(thief)), ([evil, one], first.cross(second)),
        ([two, one], thief.cross(second)),
    ):  # fmt: skip
        with pytest.raises(InputError):
            followed([one], told, cross)
    with pytest.raises(InputError):  # what the former certified counts no more
        followed([two, one], [evil, two], first.cross(thief))
    leaf = read_certificate(first.admit(request("North")[0], "North"))
    with pytest.raises(InputError):  # a site's own certificate is no authority
        followed([one], [leaf], write_certificates([leaf]))


# the order key


def test_a_handover_that_the_old_key_did_not_sign_is_not_kept(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    """Whoever speaks as the coordinator, and has not its order key, brings no other one in."""
    first, thief = federation.order_key(), FileSigner.generate()
    forged = KeyHandover.make("hub", thief, FileSigner.generate()).to_json()
    with hub_of(federation, tmp_path) as (hub, port):
        federation.set_address(f"127.0.0.1:{port}")
        site = Site(federation, tmp_path / "north")
        end = site.dial()
        until(lambda: hub.present() == ["North"])
        notice = notice_of(federation)
        notice.order_keys.append(json.dumps({**forged, "old": str(first)}).encode())
        hub.tell(notice)
        rotate_order_key(federation.keys, "hub", None)
        hub.tell(notice_of(federation))
        until(lambda: hub.noted.get("North") == hub.notice_digest)
        (kept,) = kept_handovers(site.folder)
        assert (kept.old, kept.new) == (first, federation.order_key())
        assert notice_digest(notice) not in hub.noted.values()
        end.stop()


# a process that is killed


class Killed(Exception):
    pass


def killed_at(number: int, patch: pytest.MonkeyPatch, *modules: object) -> None:
    """End the process, so to speak, before its write or rename of this number."""
    left = [number]

    def dies(real):  # type: ignore[no-untyped-def]
        def call(*given, **named):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*given, **named)

        return call

    for module in modules:
        for name in ("write_atomic", "write_json"):
            if hasattr(module, name):
                patch.setattr(module, name, dies(getattr(module, name)))
    patch.setattr(Path, "replace", dies(Path.replace))


@pytest.mark.parametrize("step", range(16))
def test_a_rotation_of_the_authority_that_is_killed_is_run_again(
    federation: MemberRegistry, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(federation, tmp_path / "north")
    held = read_certificates((site.folder / "authority.pem").read_bytes())
    with monkeypatch.context() as patch:
        killed_at(step, patch, authority_files)
        with suppress(Killed):
            federation.authorities.change("hub")
    files = federation.authorities
    if not files.in_overlap or files.is_moving:
        files.change("hub")
    assert files.in_overlap and not files.is_moving
    files.load(), files.load(former=True)
    notice = notice_of(federation)
    now = followed(held, read_certificates(notice.authorities), notice.cross)
    assert len(now) == 2 and now[1] == held[0]
    assert not list(federation.folder.glob("next-*"))
    with pytest.raises(InputError, match="already"):
        files.change("hub")


@pytest.mark.parametrize("step", range(8))
def test_a_rotation_of_the_order_key_that_is_killed_is_run_again(
    federation: MemberRegistry, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = federation.order_key()
    with monkeypatch.context() as patch:
        killed_at(step, patch, order_key_files)
        with suppress(Killed):
            rotate_order_key(federation.keys, "hub", None)
    if (federation.keys / "orders-next.pem").exists() or federation.order_key() == first:
        assert handovers(federation.keys) == []  # sites are shown nothing of it yet
        rotate_order_key(federation.keys, "hub", None)
    (shown,) = handovers(federation.keys)
    assert (shown["old"], shown["key"]) == (str(first), str(federation.order_key()))
    (kept,) = federation.keys.glob("orders-until-*.pem")
    assert FileSigner.load(kept, None).public == first.public


# ways back


def test_a_certificate_in_use_stays_whatever_became_of_those_after_it(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    """A site whose clock was wrong threw its two newest certificates away."""
    site = Site(federation, tmp_path / "north")
    own = (site.folder / "link.pem").read_bytes()
    for _ in range(3):
        federation.renew("North", request("North")[0], own)
    assert federation.identify(own) == "North"
    # The control: by a caller who does not show the one in use, it is gone after two.
    for _ in range(2):
        federation.renew("North", request("North")[0])
    assert federation.identify(own) is None


def test_a_renewal_uses_no_invitation_up(federation: MemberRegistry, tmp_path: Path) -> None:
    site = Site(federation, tmp_path / "north")
    join = federation.invite("North", again=True)
    federation.renew("North", request("North")[0])
    federation.enrol("North", join["token"], request("North")[0], *site.keys)
    with pytest.raises(InputError, match="no such invitation"):
        federation.enrol("North", join["token"], request("North")[0], *site.keys)


def test_a_revoked_name_comes_back_with_its_ledger_and_no_other(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    with hub_of(federation, tmp_path) as (hub, port):
        federation.set_address(f"127.0.0.1:{port}")
        north = Site(federation, tmp_path / "north")
        before = (north.folder / "link.pem").read_bytes()
        federation.revoke("North")
        with pytest.raises(InputError, match="revoked already"):
            federation.invite("North")
        join = federation.invite("North", again=True)
        assert federation.members()["North"].state == "revoked" and federation.invites
        asked = request("North")[0]
        for keys in (vkeys(), (north.keys[0], vkeys()[1]), (vkeys()[0], north.keys[1])):
            with pytest.raises(InputError, match="other keys"):
                federation.enrol("North", join["token"], asked, *keys)
        assert federation.identify(before) is None
        federation.withdraw("North")  # and the name is not free by that
        assert federation.members()["North"].state == "revoked"
        federation.invite("North", again=True)
        federation.revoke("North")  # ends the invitation, too
        with pytest.raises(InputError, match="no such invitation"):
            federation.enrol("North", join["token"], asked, *north.keys)
        north.come_in()
        assert federation.members()["North"].state == "enrolled"
        assert federation.identify(before) is None  # who may have its old key stays out
        end = north.dial()
        until(lambda: hub.present() == ["North"])
        end.stop()


def test_a_join_file_of_somebody_else_moves_no_site(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    site = Site(federation, tmp_path / "north")
    good = federation.invite("North", again=True)
    other = MemberRegistry.found(tmp_path / "evil", "hub", "127.0.0.1:9", "127.0.0.1:2")
    path = tmp_path / "made-up.json"
    for changes, said in (
        ({"authority": (other.folder / "authority.pem").read_text()}, "another authority"),
        ({"federation": "club"}, "another one"), ({"site": "East"}, "is for site 'East'"),
        ({"coordinator": other.invite("North")["coordinator"]}, "another one"),
    ):  # fmt: skip
        path.write_text(json.dumps({**good, "address": "127.0.0.1:9", **changes}))
        with pytest.raises(InputError, match=said):
            move(site.home / LINK, join=Join.load(path))
    assert site.addresses.all() == [federation.address]
    path.write_text(json.dumps({**good, "address": "127.0.0.1:9"}))
    assert move(site.home / LINK, join=Join.load(path)) == ["127.0.0.1:9", federation.address]
