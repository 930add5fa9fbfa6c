"""Certificates that are renewed without a restart, and an organisation's own authority."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from link_kit import Dialed, until

from privet.client.link import dial
from privet.client.link.dial import Dialer, LinkRequest, LinkResponse
from privet.client.link.renewal import Renewal
from privet.common.errors import InputError, RunError
from privet.common.files.private_pem import private_pem
from privet.common.link.identity import (
    SERVER_NAME,
    belongs,
    common_name,
    is_due,
    read_certificate,
    request,
)
from privet.common.link.proxy import use_proxy_variables
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.server.link.server import LinkServer
from privet.server.membership import certificates
from privet.server.membership.certificates import Authority
from privet.server.membership.credentials import credentials
from privet.server.membership.registry import MemberRegistry


@pytest.fixture
def federation(tmp_path: Path) -> MemberRegistry:
    return MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2")


@pytest.fixture
def hub(federation: MemberRegistry, tmp_path: Path) -> Iterator[LinkServer]:
    made = LinkServer("hub", federation.identify, tmp_path / "spool", renew=federation.renew)
    yield made
    made.stop()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """New certificates are good for so many days; those of none are due at once."""

    def make(days: int) -> None:
        monkeypatch.setattr(certificates, "_CLOCKS", timedelta(days=10))
        monkeypatch.setattr(certificates, "LEAF_DAYS", days)
        monkeypatch.setattr(Authority.admit, "__defaults__", (days,))
        monkeypatch.setattr(Authority._leaf, "__defaults__", (days,))

    return make


def vkey(kind: str, type_: int) -> str:
    public = FileSigner.generate().public
    return str(Key(key_name(kind, "North", public), public, type_))


def site(federation: MemberRegistry, folder: Path, again: bool = False) -> Path:
    """Let North in; return its folder for the link."""
    asked, key = request("North")
    known = federation.members().get("North")
    ledger, witness = (
        (known.ledger, known.witness) if known else (vkey("ledger", SIGN), vkey("witness", COSIGN))
    )
    join = federation.invite("North", again=again)
    pem = federation.enrol("North", join["token"], asked, ledger, witness)
    folder.mkdir(exist_ok=True)
    for name, data in (("link.key", key), ("link.pem", pem)):
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    (folder / "authority.pem").write_text(join["authority"])
    return folder


def dialed(port: int, folder: Path) -> Dialed:
    renewal = Renewal(folder, "North")

    def answer(asked: LinkRequest) -> LinkResponse:
        return LinkResponse(asked.records, asked.arrays)

    return Dialed(Dialer(f"127.0.0.1:{port}", renewal.credentials, answer, renewal=renewal))


def test_a_sites_certificate_is_renewed_over_the_link(
    federation: MemberRegistry, hub: LinkServer, tmp_path: Path, short: Callable[[int], None]
) -> None:
    short(1)
    folder = site(federation, tmp_path / "link")
    first, key = (folder / "link.pem").read_bytes(), (folder / "link.key").read_bytes()
    assert is_due(read_certificate(first))
    short(100)
    port = hub.start("127.0.0.1:0", credentials(federation, mutual=True))
    end = dialed(port, folder)
    until(lambda: (folder / "link.pem").read_bytes() != first)
    second = (folder / "link.pem").read_bytes()
    assert (folder / "link.key").read_bytes() != key
    assert belongs(read_certificate(second), (folder / "link.key").read_bytes())
    assert (folder / "link.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in folder.iterdir()) == [
        "authority.pem", "link.key", "link.pem",
    ]  # fmt: skip
    # The stream goes on, and both certificates are good; the next one is dialed with.
    _, answer = hub.post("North", "query", "", b"{}", {})
    assert answer.result(10).records == b"{}"
    assert federation.identify(first) == federation.identify(second) == "North"
    end.stop()
    again = dialed(port, folder)
    _, answer = hub.post("North", "query", "", b"[]", {})
    assert answer.result(10).records == b"[]"
    again.stop()
    assert (folder / "link.pem").read_bytes() == second


def test_a_certificate_that_is_not_due_is_left_alone(
    federation: MemberRegistry, hub: LinkServer, tmp_path: Path
) -> None:
    folder = site(federation, tmp_path / "link")
    first = (folder / "link.pem").read_bytes()
    port = hub.start("127.0.0.1:0", credentials(federation, mutual=True))
    end = dialed(port, folder)
    _, answer = hub.post("North", "query", "", b"{}", {})
    answer.result(10)
    end.stop()
    assert (folder / "link.pem").read_bytes() == first
    assert len(federation.members()["North"].certificates) == 1


def renew(port: int, folder: Path, asked: bytes) -> bytes:
    """Ask as a site of any make would."""
    from privet.common.link import link_pb2 as pb
    from privet.common.link import link_pb2_grpc as rpc

    names = ("authority.pem", "link.key", "link.pem")
    shown = grpc.ssl_channel_credentials(*((folder / name).read_bytes() for name in names))
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with grpc.secure_channel(f"127.0.0.1:{port}", shown, options) as channel:
        answer = rpc.LinkStub(channel).Renew(pb.Renewal(request=asked), timeout=10)
    return bytes(answer.pem)


def test_who_asks_for_certificates_without_end_gets_one(
    federation: MemberRegistry, hub: LinkServer, tmp_path: Path
) -> None:
    folder = site(federation, tmp_path / "link")
    port = hub.start("127.0.0.1:0", credentials(federation, mutual=True))
    for rubbish in (b"rubbish", b"x" * 9000):
        with pytest.raises(grpc.RpcError) as caught:
            renew(port, folder, rubbish)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        hub._renewed.clear()
    # Whatever name the request bears, the certificate has the caller's.
    pem = renew(port, folder, request("East")[0])
    assert federation.identify(pem) == "North"
    with pytest.raises(grpc.RpcError) as caught:
        renew(port, folder, request("North")[0])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    federation.revoke("North")
    hub._renewed.clear()
    with pytest.raises(grpc.RpcError) as caught:
        renew(port, folder, request("North")[0])
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_site_that_is_revoked_while_its_certificate_is_made_stays_out(
    federation: MemberRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site(federation, tmp_path / "link")
    honest = Authority.admit

    def slow(self: Authority, asked: bytes, name: str) -> bytes:
        MemberRegistry.load(federation.folder).revoke("North")
        return honest(self, asked, name)

    monkeypatch.setattr(Authority, "admit", slow)
    with pytest.raises(InputError, match="revoked"):
        federation.renew("North", request("North")[0])
    assert federation.members()["North"].state == "revoked"
    assert federation.identify((folder / "link.pem").read_bytes()) is None


def test_a_change_that_was_cut_in_two_is_finished(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    folder = site(federation, tmp_path / "link")
    renewal = Renewal(folder, "North")
    pem = federation.renew("North", renewal.ask())
    key = (folder / "next-link.key").read_bytes()
    (folder / "next-link.pem").write_bytes(pem)
    (folder / "next-link.key").replace(folder / "link.key")  # and here the process was killed
    Renewal(folder, "North")
    assert (folder / "link.pem").read_bytes() == pem
    assert (folder / "link.key").read_bytes() == key
    # A request that was never answered changes nothing.
    renewal.ask()
    Renewal(folder, "North")
    assert (folder / "link.key").read_bytes() == key


def test_what_is_no_certificate_for_the_new_key_is_not_kept(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    folder = site(federation, tmp_path / "link")
    renewal, before = Renewal(folder, "North"), (folder / "link.pem").read_bytes()
    renewal.ask()
    for pem in (
        b"",
        b"rubbish",
        before,
        federation.authorities.load().admit(request("East")[0], "East"),
    ):
        with pytest.raises(RunError, match="not a new one"):
            renewal.keep(pem)
    assert (folder / "link.pem").read_bytes() == before


def test_the_coordinators_certificate_is_renewed_while_it_runs(
    federation: MemberRegistry, hub: LinkServer, tmp_path: Path, short: Callable[[int], None]
) -> None:
    folder = site(federation, tmp_path / "link")
    port = hub.start("127.0.0.1:0", credentials(federation, mutual=True))
    shown = [server_certificate(port)]
    short(1)
    key, pem = (federation.authorities.load().serve("hub")[k] for k in (1, 0))
    (federation.folder / "server.key").write_bytes(key)
    (federation.folder / "server.pem").write_bytes(pem)
    short(100)
    shown += [server_certificate(port), server_certificate(port)]
    assert shown[0] != shown[1] == shown[2] != pem
    end = dialed(port, folder)
    _, answer = hub.post("North", "query", "", b"{}", {})
    assert answer.result(10).records == b"{}"
    end.stop()


def server_certificate(port: int) -> bytes:
    """Return the certificate that the port shows, asked without one of our own."""
    import socket
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname=SERVER_NAME) as line,
    ):
        found = line.getpeercert(binary_form=True)
    assert found is not None
    return ssl.DER_cert_to_PEM_cert(found).encode()


def test_a_site_that_was_away_too_long_is_let_in_again(
    federation: MemberRegistry, tmp_path: Path
) -> None:
    folder = site(federation, tmp_path / "link")
    with pytest.raises(InputError, match="enrolled already"):
        federation.invite("North")
    first = (folder / "link.pem").read_bytes()
    site(federation, folder, again=True)
    second = (folder / "link.pem").read_bytes()
    assert federation.identify(first) == federation.identify(second) == "North"
    assert not federation.invites
    # Not with other keys of its ledger: that would be another site under its name.
    join = federation.invite("North", again=True)
    assert federation.invites and federation.identify(second) == "North"
    asked, _ = request("North")
    with pytest.raises(InputError, match="other keys"):
        federation.enrol(
            "North", join["token"], asked, vkey("ledger", SIGN), vkey("witness", COSIGN)
        )
    with pytest.raises(InputError, match="not enrolled"):
        federation.invite("West", again=True)


def organisation(*, ca: bool = True, curve: ec.EllipticCurve | None = None) -> tuple[bytes, bytes]:
    """Return an authority below another one, as an organisation has it: certificate and key."""
    root, key = (ec.generate_private_key(curve or ec.SECP256R1()) for _ in "12")
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        common_name("Root"), common_name("Hospital group"), key.public_key(), 7,
        now - timedelta(days=1), now + timedelta(days=30),
    ).add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)  # fmt: skip
    found = builder.sign(root, hashes.SHA256())
    return found.public_bytes(serialization.Encoding.PEM), private_pem(key)


def test_an_organisations_own_authority(tmp_path: Path) -> None:
    pem, key = organisation()
    mine = MemberRegistry.found(
        tmp_path / "own", "own", "127.0.0.1:1", "127.0.0.1:2", "correct horse",
        Authority.load(pem, key, None),
    )  # fmt: skip
    assert (mine.folder / "authority.pem").read_bytes() == pem
    assert b"ENCRYPTED" in (mine.folder / "authority.key").read_bytes()
    hub = LinkServer("own", mine.identify, tmp_path / "own-spool", renew=mine.renew)
    try:
        port = hub.start("127.0.0.1:0", credentials(mine, mutual=True))
        folder = site(mine, tmp_path / "link")
        ends = read_certificate((folder / "link.pem").read_bytes()).not_valid_after_utc
        assert ends == read_certificate(pem).not_valid_after_utc  # no later than the authority
        end = dialed(port, folder)
        _, answer = hub.post("North", "query", "", b"{}", {})
        assert answer.result(10).records == b"{}"
        end.stop()
    finally:
        hub.stop()


def test_what_is_no_authority(tmp_path: Path) -> None:
    pem, key = organisation(ca=False)
    with pytest.raises(InputError, match="may not sign"):
        Authority.load(pem, key, None)
    with pytest.raises(InputError, match="does not belong"):
        Authority.load(organisation()[0], key, None)


def test_a_renewal_that_fails_is_tried_again(
    federation: MemberRegistry,
    hub: LinkServer,
    tmp_path: Path,
    short: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dial, "_MIN_RENEWAL_INTERVAL_S", 0.05)
    short(1)
    folder = site(federation, tmp_path / "link")
    first = (folder / "link.pem").read_bytes()
    short(100)
    good, calls = hub.renew, []

    def fails_once(name: str, asked: bytes, *more: Any) -> bytes:
        calls.append(name)
        hub._renewed.clear()
        if len(calls) == 1:
            raise OSError("the disk is full")
        return good(name, asked, *more)

    hub.renew = fails_once
    port = hub.start("127.0.0.1:0", credentials(federation, mutual=True))
    end = dialed(port, folder)
    until(lambda: (folder / "link.pem").read_bytes() != first)
    end.stop()
    assert calls == ["North"] * 2


def test_a_site_reaches_its_coordinator_through_an_http_proxy(
    federation: MemberRegistry, hub: LinkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = hub.start("127.0.0.1:0", credentials(federation, mutual=True))
    folder = site(federation, tmp_path / "link")
    with Proxy() as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("no_grpc_proxy", raising=False)
        end = dialed(port, folder)
        _, answer = hub.post("North", "query", "", b"{}", {})
        assert answer.result(10).records == b"{}"
        end.stop()
        assert proxy.asked == [f"CONNECT 127.0.0.1:{port} HTTP/1.1"]


@pytest.fixture
def no_proxies() -> Iterator[None]:
    """No variable that names a proxy, before and after."""
    before = dict(os.environ)
    for name in list(before):
        if name.lower().endswith("_proxy"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("form", ["http://{}", "{}", "http://{}/"])
def test_a_proxy_in_capitals(
    federation: MemberRegistry, hub: LinkServer, tmp_path: Path, no_proxies: None, form: str
) -> None:
    port = hub.start("127.0.0.1:0", credentials(federation, mutual=True))
    folder = site(federation, tmp_path / "link")
    with Proxy() as proxy:
        os.environ["HTTPS_PROXY"] = form.format(f"127.0.0.1:{proxy.port}")
        # The control: gRPC alone does not see it.
        for use in (False, True):
            assert not use or use_proxy_variables() == f"127.0.0.1:{proxy.port}"
            end = dialed(port, folder)
            _, answer = hub.post("North", "query", "", b"{}", {})
            assert answer.result(10).records == b"{}"
            end.stop()
            assert proxy.asked == [f"CONNECT 127.0.0.1:{port} HTTP/1.1"] * use


def test_which_variable_goes_first(no_proxies: None) -> None:
    assert use_proxy_variables() == ""
    os.environ |= {"HTTPS_PROXY": "http://me:secret@big:1/", "NO_PROXY": "a.example,b.example"}
    assert use_proxy_variables() == "big:1"
    assert os.environ["https_proxy"] == "http://me:secret@big:1/"
    assert os.environ["no_proxy"] == "a.example,b.example"
    os.environ |= {"https_proxy": "http://small:2", "no_proxy": ""}
    assert use_proxy_variables() == "small:2"
    assert os.environ["no_proxy"] == ""
    os.environ["https_proxy"] = "https://small:2"
    with pytest.raises(InputError, match="reached by http://, not by https://"):
        use_proxy_variables()


class Proxy:
    """An HTTP proxy that connects (RFC 9110, 9.3.6) and notes to where."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Proxy:
        import threading

        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0)
        )
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._server.close()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line = head.splitlines()[0]
        self.asked.append(line)
        host, _, port = line.split()[1].rpartition(":")
        there, here = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pass(reader, here), _pass(there, writer))


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()
