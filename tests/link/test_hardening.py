"""What the hostile campaign found, each as one case: on either end of the link, and at the door."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio
from link_kit import Ends, until

from privet.client.app import context_of, create_app, serve
from privet.client.link.dial import LinkRequest, LinkResponse
from privet.client.link.offers import Offers
from privet.common.errors import InputError
from privet.common.flat import Arrays, StreamDecoder, digest_arrays
from privet.common.link import link_pb2 as pb
from privet.common.link.identity import request
from privet.common.plan import Plan
from privet.server.link.server import LinkServer
from privet.server.membership import enrolment
from privet.server.membership.credentials import credentials
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "campaigns"))
from hostile_attacks import ENROL, HELLO, LINK
from raw_http2 import Answer, Connection, message

MB = 1 << 20
LARGE: Arrays = {"w": np.arange(8 * MB, dtype="<f4")}


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "hub", ["North", "East"])
    yield made
    made.close()


def context(ends: Ends, pair: tuple[bytes, bytes], folder: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=ends.authority.pem().decode())
    (folder / "pair.pem").write_bytes(pair[1] + pair[0])
    made.load_cert_chain(folder / "pair.pem")
    made.set_alpn_protocols(["h2"])
    return made


@pytest.fixture
def north(ends: Ends, tmp_path: Path) -> Iterator[Connection]:
    made = Connection(ends.port, context(ends, ends.keys["North"], tmp_path))
    yield made
    made.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Connection]]:
    made: list[Connection] = []

    def make(port: int, how: ssl.SSLContext, **more: Any) -> Connection:
        made.append(Connection(port, how, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


Connect = Callable[..., Connection]


def sent(message_: Any) -> bytes:
    return message(message_.SerializeToString())


def attend(one: Connection, *words: bytes, end: bool = False) -> int:
    stream = one.open(LINK + "Attend")
    one.put(stream, HELLO + b"".join(words), end=end)
    assert one.wait(stream, data=True).data
    return stream


def posted(ends: Ends, arrays: Arrays | None = None) -> str:
    number, _ = ends.hub.post("North", "train", "1", b"{}", arrays or {})
    until(lambda: ends.hub.open_parcel(number, "North") is not None)
    return number


# the coordinator


def test_a_methods_name_that_is_no_text_does_not_shut_the_port(
    ends: Ends, north: Connection
) -> None:
    """gRPC's own loop ends at it, and nobody is served any more."""
    for path in ("/\xff\xfe", LINK + "Attend\xff", "\xfe"):
        stream = north.open(path)
        north.put(stream, message(b""), end=True)
        assert north.wait(stream, 0.3).status is None
    attend(north)
    ends.dial("East", lambda asked: LinkResponse(asked.records, {}))
    assert ends.hub.post("East", "query", "", b"{}", {})[1].result(10).records == b"{}"


@pytest.mark.parametrize("method", ["Attend", "Download", "Status", "Upload"])
def test_what_is_no_message_is_a_status_and_no_error(
    ends: Ends, north: Connection, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    for body in (b"\xff\xff", b"\x0b" * 300, b"\x0a\xff\xff\xff\xff\x0f"):
        assert north.call(LINK + method, message(body)).status == 3
        north.call(LINK + method, message(b""), more=[("x", "\xff")])
    assert not [record for record in caplog.records if record.exc_info]


def test_who_is_no_member_is_told_so_before_anything_is_read(
    ends: Ends, tmp_path: Path, connect: Connect
) -> None:
    asked, key = request("West")
    one = connect(ends.port, context(ends, (ends.authority.admit(asked, "West"), key), tmp_path))
    for method in ("Attend", "Download", "Status", "Upload"):
        for body in (message(b"\xff"), b"\0\0", message(b"", length=1 << 30)):
            answer = one.wait(begun(one, method, body))
            assert (answer.status, answer.data) == (16, b"")
    stream = begun(one, "Nothing", message(b""))
    assert one.wait(stream, 0.3).status in (None, 1)


def begun(one: Connection, method: str, body: bytes) -> int:
    stream = one.open(LINK + method)
    one.put(stream, body)
    return stream


def test_a_session_from_before_lets_no_revoked_member_in(
    ends: Ends, tmp_path: Path, connect: Connect
) -> None:
    how = context(ends, ends.keys["North"], tmp_path)
    one = connect(ends.port, how)
    attend(one)
    session = one.tls.session
    again = connect(ends.port, how, session=session)
    attend(again)
    assert again.tls.session_reused
    ends.members.known.clear()
    ends.hub.revoke("North")
    last = connect(ends.port, how, session=session)
    assert last.call(LINK + "Status", message(b"")).status == 16


def test_what_is_compressed_is_refused_unread(north: Connection) -> None:
    import gzip

    bomb = message(gzip.compress(bytes(200 * MB)), flag=1)
    for coding in ("gzip", "deflate"):
        assert north.call(LINK + "Upload", bomb, more=[("grpc-encoding", coding)]).status == 12


def test_numbers_that_come_along_are_as_long_as_they_say(ends: Ends, north: Connection) -> None:
    """Else a label could claim memory for a shape of any size."""
    label = b"w\0<f4\x0099999999999"
    inline = len(label).to_bytes(8, "little") + label + (4 * 99999999999).to_bytes(8, "little")
    numbers = pb.Numbers(sha256=hashlib.sha256(inline).digest(), size=1 << 50, inline=inline)
    word = pb.FromSite(answer=pb.Answer(id=posted(ends), records=b"{}", numbers=numbers))
    stream = attend(north, sent(word))
    assert north.wait(stream).status == 3


def test_a_shape_that_cannot_be_is_refused() -> None:
    label = b"w\0<f4\x000,999999999999999,999999999999999"
    intake = StreamDecoder(1000)
    with pytest.raises(InputError, match="cannot be"):
        intake.take(len(label).to_bytes(8, "little") + label + bytes(8))


def piece(number: str, data: bytes, size: int, sha256: bytes = b"0" * 32) -> bytes:
    return sent(pb.Piece(parcel=number, sha256=sha256, size=size, data=data))


def test_a_parcel_that_is_withdrawn_while_it_is_answered_leaves_no_file(
    ends: Ends, north: Connection
) -> None:
    number = posted(ends)
    stream = begun(north, "Upload", piece(number, b"x" * 1000, 5000))
    until(lambda: len(list(ends.hub.spool.iterdir())) == 1)
    ends.hub.withdraw(number)
    until(lambda: ends.hub.open_parcel(number, "North") is None)
    north.put(stream, sent(pb.Piece(data=b"y" * 1000)))
    assert north.wait(stream).status == 5
    assert list(ends.hub.spool.iterdir()) == []


def test_rubbish_that_was_brought_whole_leaves_no_file(ends: Ends, north: Connection) -> None:
    number, rubbish = posted(ends), b"\xff" * 70_000
    sha256 = hashlib.sha256(rubbish).digest()
    assert north.call(LINK + "Upload", piece(number, rubbish, len(rubbish), sha256)).status == 0
    numbers = pb.Numbers(sha256=sha256, size=len(rubbish))
    word = pb.FromSite(answer=pb.Answer(id=number, records=b"{}", numbers=numbers))
    assert north.wait(attend(north, sent(word))).status == 3
    assert list(ends.hub.spool.iterdir()) == []
    assert ends.hub.open_parcel(number, "North") is not None


def test_a_disk_that_is_full_loses_nothing_of_what_was_held(
    ends: Ends, north: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = posted(ends)
    assert north.call(LINK + "Upload", piece(number, b"12", 4)).status == 0
    upload = ends.hub.open_parcel(number, "North").upload  # type: ignore[union-attr]
    assert upload is not None
    path = upload._path
    with path.open("ab") as stream:
        stream.write(b"what a full disk took of it")
    upload.write(b"34")
    assert path.read_bytes() == b"1234"
    monkeypatch.setattr(upload, "_path", path.parent / "nowhere" / "x")
    upload.held = 2
    again = pb.Piece(parcel=number, sha256=b"0" * 32, size=4, offset=2, data=b"34")
    assert north.call(LINK + "Upload", sent(again)).status == 14


def test_an_answer_may_not_be_much_longer_than_what_was_asked_with(
    ends: Ends, north: Connection
) -> None:
    small, large = posted(ends), posted(ends, LARGE)
    assert north.call(LINK + "Upload", piece(small, b"x", 65 * MB)).status == 8
    assert north.call(LINK + "Upload", piece(large, b"x", 127 * MB)).status == 0
    assert north.call(LINK + "Upload", piece(large, b"x", 129 * MB)).status == 8


def test_a_site_that_answers_to_nothing_all_the_time_is_cut(ends: Ends, north: Connection) -> None:
    word = sent(pb.FromSite(answer=pb.Answer(id="nothing", records=b"{}")))
    stream = attend(north, word * 90)
    until(lambda: ends.hub.late["North"] == 90)
    assert not north.wait(stream, 0.2).ended
    north.put(stream, word * 20)
    assert north.wait(stream).status == 3


def test_calls_that_do_not_go_on_are_ended(ends: Ends, tmp_path: Path, connect: Connect) -> None:
    ends.hub.stop()
    hub = ends.hub = type(ends.hub)(
        "coordinator", ends.members.identify, tmp_path / "s", patience=0.3
    )
    certificate, key = ends.authority.serve("coordinator")
    both = [(key, certificate)]
    ends.port = hub.start(
        "127.0.0.1:0", grpc.ssl_server_credentials(both, ends.authority.pem(), True)
    )
    one = connect(ends.port, context(ends, ends.keys["North"], tmp_path))
    stream = begun(one, "Upload", piece(posted(ends), b"x", 5000))
    assert one.wait(stream).status == 4


def test_a_reader_that_stops_keeps_no_model_alive(
    ends: Ends, tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends.hub.stop()
    hub = ends.hub = type(ends.hub)(
        "coordinator", ends.members.identify, tmp_path / "s", patience=0.3
    )
    certificate, key = ends.authority.serve("coordinator")
    both = [(key, certificate)]
    ends.port = hub.start(
        "127.0.0.1:0", grpc.ssl_server_credentials(both, ends.authority.pem(), True)
    )
    model = {"w": np.zeros(8 * MB, "<f4")}
    alive = weakref.ref(model["w"])
    sha256 = bytes.fromhex(digest_arrays(model).removeprefix("sha256:"))
    number = posted(ends, model)
    del model
    taken, offered = threading.Event(), hub.offered
    monkeypatch.setattr(hub, "offered", lambda *asked: (taken.set(), offered(*asked))[1])
    slow = connect(ends.port, context(ends, ends.keys["North"], tmp_path), window=0)
    stream = slow.open(LINK + "Download")
    slow.put(stream, sent(pb.Want(sha256=sha256)), end=True)
    assert taken.wait(10)
    hub.withdraw(number)
    until(lambda: gc.collect() >= 0 and alive() is None)
    # It counts until it is over: nobody opens more of them than other calls.
    assert hub._calls["North"] == 1
    slow.close(reset=True)
    until(lambda: hub._calls["North"] == 0)


# the site


class Chief:
    """A coordinator that says what a test lets it say."""

    def __init__(self, ends: Ends, says: Callable[[Any], Awaitable[None]]) -> None:
        self.says, self.streams = says, 0
        self.answers: list[pb.Answer] = []
        self.download: Callable[[Any], Awaitable[None]] = self._none
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        pair = ends.authority.serve("coordinator")
        self._credentials = grpc.ssl_server_credentials(
            [(pair[1], pair[0])], ends.authority.pem(), True
        )
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    async def _none(self, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "withdrawn")

    async def _listen(self) -> int:
        self._server = aio.server(options=[("grpc.http2.max_ping_strikes", 0)])
        chief = self

        class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: Any) -> Any:
                attends = details.method.endswith("Attend")

                async def handle(_: Any, context: Any) -> None:
                    await (chief._attend if attends else chief.download)(context)

                return grpc.stream_stream_rpc_method_handler(handle)

        self._server.add_generic_rpc_handlers((Handlers(),))
        port = self._server.add_secure_port("127.0.0.1:0", self._credentials)
        await self._server.start()
        return int(port)

    async def _attend(self, context: Any) -> None:
        self.streams += 1
        await context.read()
        await context.write(pb.ToSite(welcome=pb.Welcome(version=1)).SerializeToString())
        await self.says(context)
        while isinstance(raw := await context.read(), bytes):
            self.answers.append(pb.FromSite.FromString(raw).answer)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def chief(ends: Ends) -> Iterator[Callable[..., Chief]]:
    made: list[Chief] = []

    def make(says: Callable[[Any], Awaitable[None]]) -> Chief:
        made.append(Chief(ends, says))
        return made[-1]

    yield make
    for one in ends.threads:
        one.stop()
    for each in made:
        each.close()


def parcel(number: str, numbers: pb.Numbers | None = None) -> bytes:
    made = pb.ToSite(parcel=pb.Parcel(id=number, kind="query", records=b"{}", numbers=numbers))
    return bytes(made.SerializeToString())


def echo(asked: LinkRequest) -> LinkResponse:
    return LinkResponse(asked.records, {})


def test_a_client_goes_on_after_what_it_cannot_read(
    ends: Ends, chief: Callable[..., Chief]
) -> None:
    """It was ended by a message that is none, and by a download that failed."""
    rubbish = [b"\xff\xff", b"", pb.ToSite(welcome=pb.Welcome(version=1)).SerializeToString()]

    async def says(context: Any) -> None:
        await context.write(rubbish.pop(0) if rubbish else parcel("right"))

    one = chief(says)
    dialed = ends.dial("North", echo, address=f"127.0.0.1:{one.port}")
    until(lambda: [answer.id for answer in one.answers] == ["right"], 20)
    assert one.streams == 4 and dialed.error is None


@pytest.mark.parametrize("how", ["failed", "empty", "unreadable"])
def test_a_client_goes_on_after_a_download_that_fails(
    ends: Ends, chief: Callable[..., Chief], how: str
) -> None:
    numbers = pb.Numbers(sha256=b"0" * 32, size=1_000_000)

    async def says(context: Any) -> None:
        await context.write(parcel("with", numbers))
        await context.write(parcel("without"))

    async def download(context: Any) -> None:
        if how == "failed":
            await context.abort(grpc.StatusCode.NOT_FOUND, "withdrawn")
        for _ in range(1000):
            await context.write(b"" if how == "empty" else b"\xff\xff")

    one = chief(says)
    one.download = download
    dialed = ends.dial("North", echo, address=f"127.0.0.1:{one.port}")
    until(lambda: any(answer.id == "without" for answer in one.answers), 20)
    assert dialed.error is None and all(answer.id == "without" for answer in one.answers)


def test_a_client_reads_no_more_parcels_than_it_can_answer(
    ends: Ends, chief: Callable[..., Chief]
) -> None:
    written, free = [0], threading.Event()

    async def says(context: Any) -> None:
        for number in range(100):
            large = pb.ToSite(parcel=pb.Parcel(id=str(number), kind="q", records=bytes(MB // 2)))
            await context.write(large.SerializeToString())
            written[0] += 1

    def slow(asked: LinkRequest) -> LinkResponse:
        free.wait(20)
        return LinkResponse(b"{}", {})

    one = chief(says)
    ends.dial("North", slow, address=f"127.0.0.1:{one.port}")
    until(lambda: written[0] >= 16)
    time.sleep(0.5)
    # Sixteen are read; what else was written is in the buffers of one connection.
    assert written[0] < 80
    free.set()
    until(lambda: len(one.answers) == 100, 60)
    assert one.streams == 1


def test_many_answers_at_once_do_not_end_the_stream(
    ends: Ends, chief: Callable[..., Chief]
) -> None:
    async def says(context: Any) -> None:
        for number in range(300):
            await context.write(parcel(str(number)))

    one = chief(says)
    ends.dial("North", echo, address=f"127.0.0.1:{one.port}")
    until(lambda: len(one.answers) == 300, 30)
    assert one.streams == 1


def test_a_client_keeps_no_more_answers_with_numbers_than_two(ends: Ends) -> None:
    made: list[weakref.ref[Any]] = []

    def large(asked: LinkRequest) -> LinkResponse:
        arrays = {"w": np.zeros(MB, "<f4")}
        made.append(weakref.ref(arrays["w"]))
        return LinkResponse(b"{}", arrays)

    dialed = ends.dial("North", large)
    for number in range(5):
        ends.hub.post("North", "train", str(number), b"{}", {})[1].result(10)
    until(lambda: gc.collect() >= 0 and sum(one() is not None for one in made) <= 2)
    assert len(dialed.dialer._answers) == 2


def test_a_failure_keeps_nothing_of_what_was_asked(ends: Ends) -> None:
    kept: list[weakref.ref[Any]] = []

    def fails(asked: LinkRequest) -> LinkResponse:
        kept.append(weakref.ref(asked.arrays["w"]))
        raise InputError("cannot be read")

    dialed = ends.dial("North", fails)
    for number in range(3):
        posted(ends, {"w": np.full(100_000, number, "<f4")})
    until(lambda: len(kept) == 3)
    # The dialer keeps the last numbers that came, and nothing for the parcels that failed.
    gc.disable()
    try:
        until(lambda: sum(one() is not None for one in kept) <= 1)
        until(lambda: not dialed.dialer._answers)
    finally:
        gc.enable()


def test_a_parcel_of_no_known_kind_is_no_error() -> None:
    app = create_app(lambda context: pytest.fail("asked"))
    for kind in ("", "none", "query.nothing", "x" * 1000):
        with pytest.raises(InputError, match="not one that a site answers"):
            serve(app, context_of("North"), kind, b"{}", {})


def test_a_site_keeps_the_newest_plans_that_were_offered(
    tmp_path: Path, plan_value: Callable[..., Any]
) -> None:
    offers = Offers(tmp_path)
    offers.keep_run(b"{}")
    plans = [Plan.parse(plan_value(name=f"plan {number}")) for number in range(70)]
    for plan in plans:
        offers.keep(plan)
    kept = {path.name for path in (tmp_path / "offers").iterdir()}
    names = [plan.digest[7:] for plan in plans[-64:]]
    assert kept == {"run.json", *(f"{name}{end}" for name in names for end in (".json", ".from"))}


def test_what_a_site_keeps_of_offers_is_bounded(
    tmp_path: Path, plan_value: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indented, a hundred kilobytes of brackets would be twenty megabytes."""
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    offers, task = Offers(tmp_path), plan_value()["task"]
    monkeypatch.setattr("privet.client.link.offers._MAX_TOTAL_BYTES", 500_000)
    for number in range(8):
        wide = {f"a{k}": deep for k in range(350)}
        plan = plan_value(name=f"plan {number}", task={**task, "kind": "own:task", "options": wide})
        offers.keep(Plan.parse(plan))
    sizes = [path.stat().st_size for path in (tmp_path / "offers").iterdir()]
    assert 100_000 < sum(sizes) <= 500_000 and len(sizes) >= 2


# the ports


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_port_is_ours_at_all_of_its_addresses_or_not_at_all(tmp_path: Path, taken: str) -> None:
    """Where gRPC has one address of ``localhost`` only, sites would dial another program."""
    federation = MemberRegistry.found(tmp_path / "hub", "hub", "localhost:7443", "localhost:7444")

    def listens(address: str) -> int:
        hub = LinkServer(federation.name, federation.identify, tmp_path / "spool")
        try:
            return hub.start(address, credentials(federation, mutual=True))
        finally:
            hub.stop()

    with socket.socket(socket.AF_INET6 if ":" in taken else socket.AF_INET) as other:
        try:
            other.bind((taken, 0))
        except OSError:
            pytest.skip(f"there is no {taken} here")
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at {taken}: Address already in use"):
            listens(f"localhost:{port}")
    assert listens(f"localhost:{port}") == port
    with pytest.raises(InputError, match="there is no such address here"):
        listens("no.such.host.invalid:7443")


# the door


@pytest.fixture
def door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[MemberRegistry, EnrolmentServer]]:
    monkeypatch.setattr(enrolment, "_POLL_INTERVAL_S", 0.05)
    federation = MemberRegistry.found(tmp_path / "fed", "hub", "127.0.0.1:1", "127.0.0.1:0")
    federation.invite("North")
    with EnrolmentServer(federation, "127.0.0.1:0") as made:
        until(lambda: made.is_open)
        yield federation, made


def knock(connect: Connect, federation: MemberRegistry, door: EnrolmentServer) -> Connection:
    made = ssl.create_default_context(cafile=str(federation.folder / "authority.pem"))
    made.set_alpn_protocols(["h2"])
    return connect(int(door.address.rpartition(":")[2]), made)


def asks(one: Connection, asked: pb.Request) -> Answer:
    return one.call(ENROL, sent(asked))


def test_half_open_calls_at_the_door_keep_nobody_out(
    door: tuple[MemberRegistry, EnrolmentServer], monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(enrolment, "_WRONG_REQUEST_DELAY_S", 0.0)
    held = [knock(connect, *door) for _ in range(10)]
    for one in held:
        for _ in range(4):
            one.put(one.open(ENROL), b"\0\0")
    assert asks(knock(connect, *door), pb.Request(site="North", token="x")).status == 7
    for one in held:
        one.close()


def test_wrong_requests_at_the_door_hold_nobody_up(
    door: tuple[MemberRegistry, EnrolmentServer], monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(enrolment, "_WRONG_REQUEST_DELAY_S", 30.0)
    federation, _ = door
    for _ in range(5):
        one = knock(connect, *door)
        for _ in range(4):
            stream = one.open(ENROL)
            one.put(stream, sent(pb.Request(site="North", token="x")), end=True)
    token = federation.invite("East")["token"]
    from test_enrolment import vkeys

    ledger, witness = vkeys("East")
    right = pb.Request(
        site="East", token=token, request=request("East")[0], ledger=ledger, witness=witness
    )
    answer = asks(knock(connect, *door), right)
    assert answer.status == 0 and b"BEGIN CERTIFICATE" in answer.data


def test_whatever_is_wrong_at_the_door_the_answer_is_the_same(
    door: tuple[MemberRegistry, EnrolmentServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    connect: Connect,
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from test_enrolment import vkeys

    from privet.common.link.identity import common_name

    monkeypatch.setattr(enrolment, "_WRONG_REQUEST_DELAY_S", 0.0)
    federation, made = door
    token = federation.invite("North")["token"]
    ledger, witness = vkeys("North")
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name("North"))
    edwards = builder.sign(ed25519.Ed25519PrivateKey.generate(), None)
    one = knock(connect, federation, made)
    with caplog.at_level(logging.INFO):
        for asked in (edwards.public_bytes(serialization.Encoding.PEM), b"", b"\0" * 60_000):
            value = pb.Request(
                site="North", token=token, request=asked, ledger=ledger, witness=witness
            )
            assert asks(one, value).status == 7
        stream = one.open("/\xff")
        one.put(stream, message(b""), end=True)
        assert one.wait(stream, 0.2).status is None
        assert one.call(ENROL, message(b"\xff\xff")).status == 3
        assert asks(one, pb.Request(site="North", token="x")).status == 7
    assert not [record for record in caplog.records if record.exc_info]
    assert federation.members()["North"].state == "invited"
    with socket.create_connection(("127.0.0.1", int(made.address.rpartition(":")[2]))):
        pass
