"""The link by itself: who gets in, what is carried through cuts, what is refused."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from link_kit import Ends, Wire, until

from privet.client.link.dial import LinkRequest, LinkResponse
from privet.common.errors import InputError, RunError
from privet.common.flat import Arrays, digest_arrays
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.beats import REPLACED
from privet.common.link.identity import SERVER_NAME, request
from privet.server.link.parcel import LateReply
from privet.server.membership.certificates import Authority

MB = 1 << 20
BIG: Arrays = {"w": np.arange(3 * MB, dtype="<f4").reshape(3, MB), "b": np.ones(5, "<f4")}


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "hub", ["North", "New England"])
    yield made
    made.close()


def echo(asked: LinkRequest) -> LinkResponse:
    return LinkResponse(asked.records, {name: array + 1 for name, array in asked.arrays.items()})


def channel(ends: Ends, name: str | None, **how: bytes) -> grpc.Channel:
    """A plain gRPC client; without a name, one without a certificate."""
    certificate, key = ends.keys[name] if name else (None, None)
    credentials = grpc.ssl_channel_credentials(
        how.get("roots", ends.authority.pem()), how.get("key", key), how.get("chain", certificate)
    )
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    return grpc.secure_channel(ends.address, credentials, options)


def hello(*versions: int) -> pb.FromSite:
    return pb.FromSite(hello=pb.Hello(versions=versions or (1,)))


def fails(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        list(call)  # type: ignore[call-overload]
    code: grpc.StatusCode = caught.value.code()
    return code


# carried


def test_numbers_there_and_back(ends: Ends) -> None:
    ends.dial("New England", echo)
    for arrays in ({}, {"w": np.zeros((2, 0, 3), "<f4")}, BIG, {"w": np.float32(2).reshape(())}):
        _, answer = ends.hub.post("New England", "train", "1", b'{"a": 1}', arrays)
        found = answer.result(20)
        assert found.records == b'{"a": 1}'
        expected = {name: array + 1 for name, array in arrays.items()}
        assert digest_arrays(found.arrays) == digest_arrays(expected)
    assert list(ends.hub.spool.iterdir()) == []


def test_what_is_posted_before_a_site_comes_waits_for_it(ends: Ends) -> None:
    _, answer = ends.hub.post("North", "query", "", b"{}", {})
    time.sleep(0.2)
    assert not answer.done()
    ends.dial("North", echo)
    assert answer.result(10).records == b"{}"


@pytest.mark.parametrize("way", ["cut_down", "cut_up"])
def test_a_cut_stream_goes_on_from_the_byte_where_it_was_cut(ends: Ends, way: str) -> None:
    wire, asked = Wire(ends.port), []

    def once(what: LinkRequest) -> LinkResponse:
        asked.append(what)
        return echo(what)

    ends.dial("North", once, address=f"127.0.0.1:{wire.port}")
    setattr(wire, way, 20 * MB)
    large = {"w": np.arange(6 * MB, dtype="<f4")}
    _, answer = ends.hub.post("North", "train", "1", b"{}", large)
    found = answer.result(30)
    assert np.array_equal(found.arrays["w"], large["w"] + 1)
    assert wire.cuts == 1 and len(asked) == 1
    # Of the twenty megabytes before the cut, only what was in flight was sent again.
    assert max(wire.down, wire.up) < 24 * MB + 16 * MB
    wire.close()


def test_a_site_that_is_cut_while_it_works_is_not_asked_twice(ends: Ends) -> None:
    wire, asked = Wire(ends.port), []

    def slow(what: LinkRequest) -> LinkResponse:
        asked.append(what)
        if len(asked) == 1:
            wire.cut()
            time.sleep(0.5)
        return echo(what)

    ends.dial("North", slow, address=f"127.0.0.1:{wire.port}")
    _, answer = ends.hub.post("North", "train", "1", b"{}", {})
    assert answer.result(10).records == b"{}"
    assert len(asked) == 1
    wire.close()


def test_a_restarted_coordinator_gets_no_answer_to_an_earlier_question(
    ends: Ends, tmp_path: Path
) -> None:
    """Its first parcel may read as the first one of its life before."""
    count: list[LinkRequest] = []

    def counting(what: LinkRequest) -> LinkResponse:
        count.append(what)
        return LinkResponse(str(len(count)).encode(), {})

    wire = Wire(ends.port)
    ends.dial("North", counting, address=f"127.0.0.1:{wire.port}")
    assert ends.hub.post("North", "query", "", b"{}", {})[1].result(10).records == b"1"
    again = ends.again(tmp_path / "again")
    wire.turn_to(again)
    assert ends.hub.post("North", "query", "", b"{}", {})[1].result(20).records == b"2"
    wire.close()


def test_an_answer_after_its_time_is_counted_and_not_used(ends: Ends) -> None:
    def slow(what: LinkRequest) -> LinkResponse:
        time.sleep(0.5)
        return echo(what)

    ends.dial("North", slow)
    number, answer = ends.hub.post("North", "train", "1", b"{}", {})
    time.sleep(0.2)
    ends.hub.withdraw(number)
    until(lambda: ends.hub.late["North"] == 1)
    assert isinstance(answer.exception(10), LateReply)


def test_a_newer_stream_of_a_site_ends_the_older_one(ends: Ends) -> None:
    stub = rpc.LinkStub(channel(ends, "North"))
    older = stub.Attend(_held(hello()))
    assert next(older).welcome.version == 1
    newer = stub.Attend(_held(hello()))
    assert next(newer).welcome.version == 1
    assert fails(older) is grpc.StatusCode.ABORTED
    assert older.details().startswith(REPLACED + "ipv4:127.0.0.1:")
    assert ends.hub.present() == ["North"]
    newer.cancel()


def _held(*words: pb.FromSite) -> Iterator[pb.FromSite]:
    yield from words
    time.sleep(2)


# strangers


def test_whoever_has_no_certificate_ends_at_the_handshake(ends: Ends) -> None:
    other = Authority.found("other")
    asked, key = request("North")
    strangers = [
        channel(ends, None),
        channel(ends, "North", key=key, chain=other.admit(asked, "North")),
    ]
    for stranger in strangers:
        call = rpc.LinkStub(stranger).Attend(iter([hello()]), timeout=5)
        assert fails(call) is grpc.StatusCode.UNAVAILABLE
    assert ends.hub.present() == []


def test_a_site_talks_to_no_other_coordinator(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    """Neither to one of another authority, nor to a member that poses as it."""
    stub = rpc.LinkStub(channel(ends, "North", roots=Authority.found("other").pem()))
    assert fails(stub.Attend(iter([hello()]), timeout=5)) is grpc.StatusCode.UNAVAILABLE
    certificate, key = ends.keys["New England"]
    posing = grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(key, certificate)], ends.authority.pem(), True)
    port = posing.add_secure_port("127.0.0.1:0", credentials)
    posing.start()
    states: list[str] = []
    dialed = ends.dial("North", echo, address=f"127.0.0.1:{port}", on_state=states.append)
    until(lambda: "does not answer" in caplog.text)
    dialed.stop()
    posing.stop(None)
    assert states == [] and dialed.dialer.tally.streams == 0


def test_a_certificate_that_nobody_enrolled_is_told_nothing_else(ends: Ends) -> None:
    asked, key = request("East")
    ends.keys["East"] = ends.authority.admit(asked, "East"), key
    dialed = ends.dial("East", echo)
    until(lambda: dialed.error is not None)
    assert isinstance(dialed.error, RunError) and "not a member" in str(dialed.error)
    stub = rpc.LinkStub(channel(ends, "East"))
    calls = (
        stub.Attend(iter([hello()])), stub.Download(pb.Want(sha256=b"0" * 32)),
    )  # fmt: skip
    for call in calls:
        assert fails(call) is grpc.StatusCode.UNAUTHENTICATED
    for unary in (lambda: stub.Status(pb.Want()), lambda: stub.Upload(iter([pb.Piece()]))):
        with pytest.raises(grpc.RpcError) as caught:
            unary()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_revocation_ends_a_stream_that_is_open(ends: Ends) -> None:
    dialed = ends.dial("North", echo)
    assert ends.hub.wait_for({"North"}, 10)
    ends.members.known.clear()
    ends.hub.revoke("North")
    until(lambda: dialed.error is not None)
    assert "not a member" in str(dialed.error)
    assert ends.hub.present() == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nothing_below_tls_1_3_is_spoken(
    ends: Ends, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    certificate, key = ends.keys["North"]
    (tmp_path / "both.pem").write_bytes(key + certificate)
    context = ssl.create_default_context(cadata=ends.authority.pem().decode())
    context.load_cert_chain(tmp_path / "both.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", ends.port)) as plain:
        if version is ssl.TLSVersion.TLSv1_2:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_hostname=SERVER_NAME)
        else:
            with context.wrap_socket(plain, server_hostname=SERVER_NAME) as wrapped:
                assert wrapped.version() == "TLSv1.3"


# members that do what they must not


def test_an_unknown_version_is_refused_with_the_one_that_is_spoken(ends: Ends) -> None:
    stub = rpc.LinkStub(channel(ends, "North"))
    call = stub.Attend(iter([hello(2, 3)]))
    assert fails(call) is grpc.StatusCode.FAILED_PRECONDITION
    assert "speaks version 1" in call.details()


def test_a_stream_that_does_not_begin_with_hello_is_ended(ends: Ends) -> None:
    stub = rpc.LinkStub(channel(ends, "North"))
    for words in ([], [pb.FromSite()], [pb.FromSite(answer=pb.Answer(id="1"))]):
        assert fails(stub.Attend(iter(words))) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_site_gets_at_no_parcel_of_another(ends: Ends) -> None:
    number, answer = ends.hub.post("New England", "train", "1", b"{}", BIG)
    until(lambda: ends.hub.open_parcel(number, "New England") is not None)
    digest = bytes.fromhex(digest_arrays(BIG).removeprefix("sha256:"))
    stub = rpc.LinkStub(channel(ends, "North"))
    assert fails(stub.Download(pb.Want(sha256=digest))) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        stub.Upload(iter([pb.Piece(parcel=number, sha256=digest, size=4, data=b"1234")]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    stream = stub.Attend(_held(hello(), pb.FromSite(answer=pb.Answer(id=number, records=b"{}"))))
    next(stream)
    until(lambda: ends.hub.late["North"] == 1)
    assert not answer.done()
    ends.dial("New England", echo)
    assert answer.result(20).records == b"{}"


def test_uploads_that_do_not_fit_what_they_announce(ends: Ends) -> None:
    number, answer = ends.hub.post("North", "train", "1", b"{}", {})
    until(lambda: ends.hub.open_parcel(number, "North") is not None)
    stub = rpc.LinkStub(channel(ends, "North"))

    def bring(*pieces: pb.Piece) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Upload(iter(pieces))
        code: grpc.StatusCode = caught.value.code()
        return code

    head = {"parcel": number, "sha256": b"0" * 32}
    assert bring(pb.Piece(**head, size=2, data=b"123")) is grpc.StatusCode.OUT_OF_RANGE
    assert bring(pb.Piece(**head, size=0)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert bring(pb.Piece(**head, size=1 << 60)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert bring(pb.Piece(parcel=number, sha256=b"0", size=2)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert bring(pb.Piece(**head, size=4, offset=1, data=b"1")) is grpc.StatusCode.ABORTED
    assert stub.Upload(iter([pb.Piece(**head, size=4, data=b"12")])).offset == 2
    assert stub.Status(pb.Want(parcel=number, sha256=b"0" * 32)).offset == 2
    assert bring(pb.Piece(**head, size=4, offset=0, data=b"12")) is grpc.StatusCode.ABORTED
    assert not answer.done()


@pytest.mark.parametrize(
    "numbers",
    [
        pb.Numbers(sha256=b"0" * 32, size=4, inline=b"1234"),
        pb.Numbers(sha256=b"0" * 32, size=1 << 50),
        pb.Numbers(sha256=b"0" * 32, size=1 << 50, inline=b"1"),
    ],
)
def test_an_answer_whose_numbers_are_not_there_ends_the_stream(
    ends: Ends, numbers: pb.Numbers
) -> None:
    number, answer = ends.hub.post("North", "train", "1", b"{}", {})
    until(lambda: ends.hub.open_parcel(number, "North") is not None)
    word = pb.FromSite(answer=pb.Answer(id=number, records=b"{}", numbers=numbers))
    stream = rpc.LinkStub(channel(ends, "North")).Attend(_held(hello(), word))
    assert fails(stream) is grpc.StatusCode.INVALID_ARGUMENT
    assert not answer.done()
    # The parcel is still open, and another stream may answer it.
    ends.dial("North", echo)
    assert answer.result(10).records == b"{}"


def test_a_model_that_is_larger_than_a_site_takes_is_not_fetched(ends: Ends) -> None:
    asked: list[LinkRequest] = []
    ends.dial("North", lambda what: asked.append(what) or echo(what), most_numbers=MB)
    _, answer = ends.hub.post("North", "train", "1", b"{}", BIG)
    time.sleep(0.5)
    assert not answer.done() and not asked


def test_requests_for_certificates(ends: Ends) -> None:
    with pytest.raises(InputError, match="not a certificate request"):
        ends.authority.admit(b"rubbish", "North")
    found = Authority.load(
        ends.authority.pem(), ends.authority.key_pem(b"secret words"), b"secret words"
    )
    assert found.certificate == ends.authority.certificate
    for key, passphrase in ((ends.authority.key_pem(b"a"), b"b"), (b"rubbish", None),
                            (Authority.found("x").key_pem(None), None)):  # fmt: skip
        with pytest.raises(InputError):
            Authority.load(ends.authority.pem(), key, passphrase)
