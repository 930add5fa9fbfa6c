"""What strangers, outsiders and a hostile member do to a coordinator, kind by kind.

A *stranger* has no certificate of the authority, and may see nothing but the handshake. An
*outsider* has one, but is no member (any more): the one answer is UNAUTHENTICATED, or CANCELLED
in the end where the method does not exist. A *member* may do what the protocol lets it do. A
*newcomer* is anybody at the enrolment port, and gets PERMISSION_DENIED. Each attack gives a word
for each request: what came of it. Its kind says which words are right.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raw_http2 import (
    CONTINUATION,
    DATA,
    HEADERS,
    PING,
    PREFACE,
    RST,
    SERVER,
    SETTINGS,
    WINDOW,
    Answer,
    Closed,
    Connection,
    frame,
    headers,
    message,
)  # fmt: skip

from privet.common.link import link_pb2 as pb

REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
LINK, ENROL = "/privet.link.v1.Link/", "/privet.link.v1.Enrolment/Enrol"
METHODS = ("Attend", "Download", "Status", "Upload")
GONE = {"closed", "alert", "reset", "ended"}
REFUSED = GONE | {"status 3", "status 8"}
"""Malformed, or too much; or the connection ended."""
REPLACED = "status 10"
"""A newer stream of the member, by another session, ended this one."""
ENDED = {"status 0", REPLACED}


@dataclass
class AttackContext:
    """What the attackers know and hold."""

    link: int
    enrolment: int
    traffic: Path
    contexts: dict[str, ssl.SSLContext]
    session: ssl.SSLSession | None
    requests: dict[str, bytes]
    tokens: dict[str, str]
    vkeys: tuple[str, str]
    seen: dict[str, Any] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)
    read_at: float = 0.0

    def open_now(self) -> dict[str, Any]:
        """Return what the coordinator has open now."""
        if time.monotonic() - self.read_at > 0.3:
            with suppress(OSError, ValueError):
                self.seen = json.loads(self.traffic.read_text())
            self.read_at = time.monotonic()
        return self.seen

    def hold(self, what: Any) -> None:
        """Keep a socket or a connection open, among the last sixty."""
        self.held.append(what)
        while len(self.held) > 60:
            with suppress(IndexError):
                self.held.pop(0).close()


class AttackSession:
    """One attacker at a time: a context, chance, and a member's connection that is used again."""

    def __init__(self, context: AttackContext, chance: random.Random) -> None:
        self.context, self.chance = context, chance
        self._member: Connection | None = None

    def member(self) -> Connection:
        """Return a connection of the hostile member."""
        if self._member is None or self._member.goaway or self._member.last > 2000:
            self.drop()
            self._member = Connection(self.context.link, self.context.contexts["member"])
        return self._member

    def drop(self) -> None:
        """Close the member's connection."""
        if self._member is not None:
            self._member.close(reset=self.chance.random() < 0.5)
        self._member = None

    def open_request(self) -> str:
        """Return a parcel that is open for the hostile member."""
        return self.chance.choice(self.context.open_now().get("for_attackers") or ["none"])

    def others(self) -> str:
        """Return a parcel that is open for somebody else."""
        return self.chance.choice(self.context.open_now().get("open") or ["none"])


Attack = Callable[[AttackSession], Iterator[str]]


@dataclass(frozen=True)
class Kind:
    """One kind of attack."""

    name: str
    who: str
    attack: Attack
    right: frozenset[str]
    weight: int


KINDS: list[Kind] = []


def kind(who: str, right: set[str], weight: int = 4) -> Callable[[Attack], Attack]:
    """Add a kind; ``right`` are the words that may come of it."""

    def add(attack: Attack) -> Attack:
        name = (attack.__doc__ or "").strip().rstrip(".")
        KINDS.append(Kind(name, who, attack, frozenset(right), weight))
        return attack

    return add


def word(answer: Answer) -> str:
    """Say what came of a call."""
    if answer.data:
        return "data"
    if answer.status is not None:
        return f"status {answer.status}"
    return "reset" if answer.reset else "ended" if answer.ended else "silence"


def mutated(chance: random.Random, body: bytes) -> bytes:
    """Return ``body`` with a few bytes turned, cut, doubled or put in."""
    value = bytearray(body or b"\0")
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(value) + 1)
        what = chance.randrange(5)
        if what == 0 and at < len(value):
            value[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            value[at:at] = chance.randbytes(chance.randint(1, 9))
        elif what == 2:
            del value[at : at + chance.randint(1, 9)]
        elif what == 3:
            value[at:at] = value[: chance.randint(1, 40)]
        else:
            value[at:at] = chance.choice(_NASTY)
    return bytes(value)


_NASTY = [
    b"\xff" * 9 + b"\x01", b"\x80" * 10, b"\x0b" * 200, b"\x0a\xff\xff\xff\xff\x0f", b"\x00",
    b"\x7f\xf8\x00\x00\x00\x00\x00\x00", b"../../etc/passwd", b"\xed\xa0\x80", b"{" * 300,
]  # fmt: skip


def fields(chance: random.Random, depth: int = 0) -> bytes:
    """Return made-up protobuf fields of any number and type."""
    made = b""
    for _ in range(chance.randint(0, 6)):
        number, wire = chance.randint(0, 8), chance.randrange(8)
        made += bytes([number << 3 | wire])
        if wire == 0:
            made += chance.choice([b"\x00", b"\x01", b"\xff" * 9 + b"\x01", chance.randbytes(3)])
        elif wire == 2:
            inner = fields(chance, depth + 1) if depth < 4 else chance.randbytes(5)
            inner = inner[:120]
            made += bytes([len(inner)]) + inner
        else:
            made += chance.randbytes(8 if wire == 1 else 4)
    return made


def real(session: AttackSession, method: str) -> bytes:
    """Return a message as a site might send it."""
    chance, parcel = session.chance, session.open_request()
    if method == "Attend":
        if chance.random() < 0.5:
            return bytes(
                pb.FromSite(hello=pb.Hello(versions=[1], software="x")).SerializeToString()
            )
        numbers = pb.Numbers(sha256=b"0" * 32, size=4, inline=b"1234")
        answer = pb.Answer(id=parcel, records=b'{"a": 1}', numbers=numbers)
        return bytes(pb.FromSite(answer=answer).SerializeToString())
    if method == "Upload":
        head = {"parcel": parcel, "sha256": b"0" * 32, "size": 9, "data": b"123"}
        return bytes(pb.Piece(**head).SerializeToString())
    return bytes(pb.Want(sha256=b"0" * 32, offset=3, parcel=parcel).SerializeToString())


HELLO = message(pb.FromSite(hello=pb.Hello(versions=[1])).SerializeToString())


# strangers: bytes at a port


def _bytes(session: AttackSession, data: bytes, *, port: int = 0, wait: float = 0.05) -> str:
    """Send bytes to one of the ports; say what came."""
    port = port or session.chance.choice([session.context.link, session.context.enrolment])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall(data)
            plain.settimeout(wait)
            came = plain.recv(4096)
            if session.chance.random() < 0.5:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except TimeoutError:
        return "silence"
    except OSError:
        return "closed"
    if not came:
        return "closed"
    return {0x15: "alert", 0x16: "handshake"}.get(came[0], "bytes")


def _client_hello(session: AttackSession) -> bytes:
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = session.context.contexts["nobody"].wrap_bio(into, out, server_hostname=SERVER)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


@kind("stranger", {"closed", "alert", "silence"})
def random_bytes(session: AttackSession) -> Iterator[str]:
    """Random bytes instead of TLS."""
    yield _bytes(session, session.chance.randbytes(session.chance.choice([1, 5, 60, 2000, 60_000])))


@kind("stranger", {"closed", "alert", "silence"})
def half_a_hello(session: AttackSession) -> Iterator[str]:
    """A TLS hello cut short."""
    hello = _client_hello(session)
    yield _bytes(session, hello[: session.chance.randrange(1, len(hello))], wait=0.005)


@kind("stranger", {"closed", "alert", "silence", "handshake"})
def turned_hello(session: AttackSession) -> Iterator[str]:
    """A TLS hello with bytes turned."""
    yield _bytes(session, mutated(session.chance, _client_hello(session)), wait=0.02)


@kind("stranger", {"closed", "alert", "silence"})
def plain_http(session: AttackSession) -> Iterator[str]:
    """HTTP/2 and HTTP/1 without TLS."""
    call = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 4, 1, headers(LINK + "Attend"))
    yield _bytes(
        session, session.chance.choice([call, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"])
    )


@kind("stranger", {"closed", "silence"}, 6)
def connects_and_goes(session: AttackSession) -> Iterator[str]:
    """Connects and resets at once."""
    for _ in range(5):
        try:
            port = session.chance.choice([session.context.link, session.context.enrolment])
            plain = socket.create_connection(("127.0.0.1", port), timeout=5)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            plain.close()
            yield "silence"
        except OSError:
            yield "closed"


@kind("stranger", {"silence", "closed"}, 2)
def connects_and_waits(session: AttackSession) -> Iterator[str]:
    """Connects and says nothing, or half of a hello."""
    try:
        port = session.chance.choice([session.context.link, session.context.enrolment])
        plain = socket.create_connection(("127.0.0.1", port), timeout=5)
        if session.chance.random() < 0.5:
            plain.sendall(_client_hello(session)[:50])
        session.context.hold(plain)
        yield "silence"
    except OSError:
        yield "closed"


# strangers: TLS


def _calls_as(session: AttackSession, who: str, port: int = 0) -> str:
    """Shake hands, call at once, and say whether anything came beyond the handshake."""
    try:
        with_session = session.context.session if who == "revoked" else None
        call = Connection(
            port or session.context.link, session.context.contexts[who], session=with_session
        )
    except Closed as how:
        return str(how)
    except OSError:
        return "closed"
    try:
        stream = call.open(LINK + session.chance.choice(METHODS))
        call.send(frame(DATA, 0, stream, HELLO))
        return "bytes" if call._more(5) else "silence"
    except Closed as how:
        return str(how)
    finally:
        call.close(reset=session.chance.random() < 0.5)


@kind("stranger", {"closed", "alert"}, 6)
def tls_1_2(session: AttackSession) -> Iterator[str]:
    """TLS 1.2, with a member's certificate."""
    yield _calls_as(session, "tls 1.2")


@kind("stranger", {"closed", "alert"}, 8)
def no_certificate(session: AttackSession) -> Iterator[str]:
    """No certificate."""
    yield _calls_as(session, "nobody")


@kind("stranger", {"closed", "alert"}, 12)
def wrong_certificate(session: AttackSession) -> Iterator[str]:
    """A certificate of its own or of another authority."""
    yield _calls_as(session, session.chance.choice(["self-signed", "other authority"]))


@kind("stranger", {"closed", "alert"}, 12)
def untimely_certificate(session: AttackSession) -> Iterator[str]:
    """A certificate that is over, not yet valid, or a server's."""
    yield _calls_as(session, session.chance.choice(["expired", "not yet", "server"]))


# outsiders


@kind("outsider", {"status 16", "status 1", "silence", *GONE}, 12)
def outsider_calls(session: AttackSession) -> Iterator[str]:
    """A certificate of the authority, but no member: never enrolled, re-issued, another name."""
    yield from _outsider(session, session.chance.choice(["never enrolled", "re-issued", "no name"]))


@kind("outsider", {"status 16", "status 1", "silence", *GONE}, 6)
def revoked_calls(session: AttackSession) -> Iterator[str]:
    """A revoked member, with the TLS session from before."""
    yield from _outsider(session, "revoked")


def _outsider(session: AttackSession, who: str) -> Iterator[str]:
    chance = session.chance
    try:
        context = session.context
        before = context.session if who == "revoked" else None
        call = Connection(context.link, context.contexts[who], session=before)
    except Closed as how:
        yield str(how)
        return
    try:
        for _ in range(chance.randint(1, 12)):
            method = chance.choice([*METHODS, "Nothing", "", "../x"])
            path = chance.choice(
                [
                    LINK + method,
                    LINK + method,
                    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                ]
            )
            body = chance.choice([real(session, "Attend"), fields(chance), b"", b"\xff" * 50])
            known = method in METHODS and path.startswith(LINK)
            yield word(call.call(path, message(body), seconds=10 if known else 0.02))
    except Closed as how:
        yield str(how)
    finally:
        call.close()


# a member: messages


@kind(
    "member", REFUSED | {"status 0", "status 5", "status 9", "status 10", "status 11", "data"}, 60
)
def turned_messages(session: AttackSession) -> Iterator[str]:
    """Real messages with bytes turned, of every call."""
    yield from _speaks(session, lambda method: mutated(session.chance, real(session, method)))


@kind(
    "member", REFUSED | {"status 0", "status 5", "status 9", "status 10", "status 11", "data"}, 40
)
def made_up_messages(session: AttackSession) -> Iterator[str]:
    """made-up fields of any type."""
    yield from _speaks(session, lambda method: fields(session.chance))


def _speaks(session: AttackSession, make: Callable[[str], bytes]) -> Iterator[str]:
    for _ in range(10):
        method = session.chance.choice(METHODS)
        call = session.member()
        if method == "Attend" and session.chance.random() < 0.6:
            stream = call.open(LINK + method)
            call.put(stream, HELLO)
            call.wait(stream, data=True)
            call.put(stream, message(make(method)), end=True)
            answer = call.wait(stream)
            # Welcome came; what came after it is what counts.
            yield f"status {answer.status}" if answer.status is not None else word(answer)
        else:
            yield word(call.call(LINK + method, message(make(method))))


@kind("member", REFUSED | {"silence", "status 1"}, 8)
def unknown_methods(session: AttackSession) -> Iterator[str]:
    """Calls that do not exist, with names that are no text."""
    chance = session.chance
    name = chance.choice(["Nothing", "", "attend", "x" * 3000, "Attend/", "\xff\xfe", "\0"])
    path = chance.choice([LINK + name, "/" + name, name, REFLECTION])
    call = session.member()
    stream = call.open(path)
    call.put(stream, message(b""), end=True)
    answer = call.wait(stream, 0.02)
    call.forget(stream)
    yield word(answer)


@kind("member", REFUSED | {"silence", "data", "status 1", "status 4", "status 13"}, 6)
def odd_headers(session: AttackSession) -> Iterator[str]:
    """Metadata that is no text, is doubled, or must not be there."""
    more = session.chance.choice([
        [("x", "\xff\xfe")], [("\xff", "x")], [("x-bin", "!!!")], [("", "")], [("te", "x")],
        [("grpc-timeout", "99999999999S")], [("grpc-timeout", "1n")], [("content-type", "x")],
        [(":path", "/x")], [("connection", "close")], [("X", "y")], [("user-agent", "\0\r\n")],
    ])  # fmt: skip
    yield word(session.member().call(LINK + "Status", message(b""), more=more, seconds=1))


@kind("member", REFUSED | {"status 9", *ENDED}, 8)
def wrong_words(session: AttackSession) -> Iterator[str]:
    """Other versions, Hello twice, no Hello, nothing."""
    chance, call = session.chance, session.member()
    words = chance.choice([
        [pb.FromSite(hello=pb.Hello(versions=[2, 1 << 31]))], [pb.FromSite(hello=pb.Hello())],
        [pb.FromSite(hello=pb.Hello(versions=[1]))] * 2, [pb.FromSite()], [],
        [pb.FromSite(answer=pb.Answer(id=session.open_request()))],
        [pb.FromSite(hello=pb.Hello(versions=[1], software="x" * 100_000))] * 3,
    ])  # fmt: skip
    stream = call.open(LINK + "Attend")
    call.put(stream, b"".join(message(w.SerializeToString()) for w in words), end=True)
    answer = call.wait(stream)
    yield f"status {answer.status}" if answer.status is not None else word(answer)


@kind("member", REFUSED | ENDED, 12)
def answers_to_others(session: AttackSession) -> Iterator[str]:
    """Answers to parcels of others, or to nothing, again and again."""
    chance, call = session.chance, session.member()
    number = chance.choice([session.others(), session.others(), "1", "", "x" * 5000, "../../x"])
    body = message(pb.FromSite(answer=pb.Answer(id=number, records=b"{}")).SerializeToString())
    stream = call.open(LINK + "Attend")
    many = chance.choice([1, 20, 150])
    call.put(stream, HELLO + body * many, end=True)
    answer = call.wait(stream)
    for _ in range(many):
        yield f"status {answer.status}" if answer.status is not None else word(answer)


@kind("member", REFUSED | ENDED, 16)
def wrong_numbers(session: AttackSession) -> Iterator[str]:
    """Answers whose numbers have another digest, length or shape than they say."""
    chance = session.chance
    label = chance.choice([
        b"w\0<f4\0" + b"99999999999", b"w\0<f8\0" + b",".join([b"999999999999999"] * 16),
        b"w\0<f4\0" + b"0,999999999999999,999999999999999", b"w\0<f4\0" + b"2", b"w\0|O\0" + b"2",
        b"\0<f4\0", b"w\0<f4\0-1", chance.randbytes(20),
    ])  # fmt: skip
    size = chance.choice([0, 8, 4 * 99999999999, (1 << 64) - 1, 1 << 63])
    inline = len(label).to_bytes(8, "little") + label + size.to_bytes(8, "little") + b"\x7f" * 8
    digest = hashlib.sha256(inline).digest() if chance.random() < 0.7 else b"0" * 32
    length = chance.choice([len(inline), len(inline), 1, 1 << 40, (1 << 64) - 1])
    numbers = pb.Numbers(sha256=digest, size=length, inline=chance.choice([inline, inline, b""]))
    body = pb.FromSite(answer=pb.Answer(id=session.open_request(), records=b"{}", numbers=numbers))
    stream = session.member().open(LINK + "Attend")
    session.member().put(stream, HELLO + message(body.SerializeToString()), end=True)
    answer = session.member().wait(stream)
    yield f"status {answer.status}" if answer.status is not None else word(answer)


# a member: uploads and downloads


def _piece(**values: Any) -> bytes:
    return message(pb.Piece(**values).SerializeToString())


@kind("member", REFUSED | {"status 5", "status 10", "status 11"}, 16)
def bad_uploads(session: AttackSession) -> Iterator[str]:
    """Uploads too long, too large, at a wrong byte, for others, with no digest."""
    chance = session.chance
    head: dict[str, Any] = {
        "parcel": session.open_request(),
        "sha256": chance.randbytes(32),
        "size": 4,
    }
    change = chance.choice([
        {"data": b"12345"}, {"size": (1 << 64) - 1}, {"size": 1 << 34, "data": b"x"}, {"size": 0},
        {"offset": 1}, {"offset": (1 << 64) - 1}, {"sha256": b""}, {"sha256": b"0" * 31},
        {"parcel": session.others()}, {"parcel": "../../x"}, {"parcel": ""}, {"parcel": "\0"},
    ])  # fmt: skip
    yield word(session.member().call(LINK + "Upload", _piece(**{**head, **change})))


@kind("member", GONE | {"sent"}, 8)
def unfinished_uploads(session: AttackSession) -> Iterator[str]:
    """Uploads that are begun and never finished, cut by a reset."""
    call = session.member()
    sha256 = session.chance.randbytes(32)
    stream = call.open(LINK + "Upload")
    call.put(
        stream,
        _piece(parcel=session.open_request(), sha256=sha256, size=1 << 25, data=b"x" * 100_000),
    )
    if session.chance.random() < 0.5:
        call.put(stream, _piece(data=b"y" * 50_000)[: session.chance.randrange(50_000)])
    if session.chance.random() < 0.2:
        session.drop()
    else:
        call.forget(stream)
    yield "sent"


@kind("member", REFUSED | {"status 0", "status 5", "status 10", "status 11"}, 8)
def whole_uploads_of_rubbish(session: AttackSession) -> Iterator[str]:
    """Whole uploads whose digest is right and whose content is no stream of numbers."""
    chance, parcel = session.chance, session.open_request()
    rubbish = chance.randbytes(70_000)
    sha256 = hashlib.sha256(rubbish).digest()
    call = session.member()
    came = call.call(
        LINK + "Upload", _piece(parcel=parcel, sha256=sha256, size=len(rubbish), data=rubbish)
    )
    yield "status 0" if came.data else word(came)
    numbers = pb.Numbers(sha256=sha256, size=len(rubbish))
    body = pb.FromSite(answer=pb.Answer(id=parcel, records=b"{}", numbers=numbers))
    stream = call.open(LINK + "Attend")
    call.put(stream, HELLO + message(body.SerializeToString()), end=True)
    answer = call.wait(stream)
    yield f"status {answer.status}" if answer.status is not None else word(answer)


@kind("member", REFUSED | {"status 0", "status 5", "data"}, 16)
def bad_downloads(session: AttackSession) -> Iterator[str]:
    """Downloads of what was never offered, or from beyond the end."""
    chance = session.chance
    want = pb.Want(
        sha256=chance.choice([chance.randbytes(32), b"", b"0", chance.randbytes(5000)]),
        offset=chance.choice([0, 1 << 20, 1 << 40, (1 << 64) - 1]),
    )
    yield word(session.member().call(LINK + "Download", message(want.SerializeToString())))


@kind("member", GONE | {"held", "sent", "silence"}, 6)
def slow_readers(session: AttackSession) -> Iterator[str]:
    """Downloads that are asked for and never read."""
    try:
        call = Connection(session.context.link, session.context.contexts["idler"], window=0)
    except Closed as how:
        yield str(how)
        return
    stream = call.open(LINK + "Attend")
    call.put(stream, HELLO)
    digest = _large_digest()
    for _ in range(3):
        asked = call.open(LINK + "Download")
        call.put(asked, message(pb.Want(sha256=digest).SerializeToString()), end=True)
        yield "sent"
    if session.chance.random() < 0.3:
        session.context.hold(call)
    else:
        call.close(reset=True)


def _large_digest(made: list[bytes] = []) -> bytes:  # noqa: B006
    if not made:
        import numpy as np

        from privet.common.flat import digest_arrays

        arrays = {"w": np.arange(1 << 19, dtype="<f4")}
        made.append(bytes.fromhex(digest_arrays(arrays).removeprefix("sha256:")))
    return made[0]


# a member: the transport


@kind("member", REFUSED | {"silence"}, 2)
def oversize(session: AttackSession) -> Iterator[str]:
    """Messages of eight megabytes."""
    method = session.chance.choice(METHODS)
    yield word(session.member().call(LINK + method, message(bytes(8 << 20)), seconds=20))


@kind("member", GONE | {"sent"}, 8)
def lengths_that_lie(session: AttackSession) -> Iterator[str]:
    """A message that is announced as up to four gigabytes and stops in the middle."""
    call = session.member()
    length = session.chance.choice([1 << 20, (1 << 22), (1 << 32) - 1])
    stream = call.open(LINK + session.chance.choice(METHODS))
    call.put(
        stream, message(b"x" * session.chance.choice([0, 10, 30_000]), length=length), seconds=1
    )
    if session.chance.random() < 0.8 and not call.goaway:
        call.forget(stream)
    else:
        session.drop()
    yield "sent"


_BOMBS: list[bytes] = []


@kind("member", REFUSED | {"status 12", "status 13"}, 6)
def bombs(session: AttackSession) -> Iterator[str]:
    """Compressed messages that would unpack to 256 MB, or say so and are not."""
    if not _BOMBS:
        _BOMBS.append(gzip.compress(bytes(1 << 28)))
    body = session.chance.choice([_BOMBS[0], b"not compressed"])
    coding = session.chance.choice(["gzip", "deflate", "identity", "br", ""])
    more = [("grpc-encoding", coding)] if coding else []
    method = session.chance.choice(METHODS)
    yield word(session.member().call(LINK + method, message(body, flag=1), more=more))


@kind("member", REFUSED | {"status 13", "status 12", "silence", "data"}, 6)
def large_headers(session: AttackSession) -> Iterator[str]:
    """A hundred kilobytes of metadata, in one header or in thousands."""
    more = session.chance.choice([
        [("x", "y" * 100_000)], [(f"x{n}", "y" * 20) for n in range(3000)], [("x" * 30_000, "y")],
    ])  # fmt: skip
    yield word(session.member().call(LINK + "Status", message(b""), more=more, seconds=5))
    session.drop()


@kind("member", GONE | {"sent"}, 10)
def many_calls(session: AttackSession) -> Iterator[str]:
    """Calls that are opened and reset at once, and more at once than are allowed."""
    call = session.member()
    if session.chance.random() < 0.7:
        for _ in range(25):
            call.forget(call.open(LINK + session.chance.choice(METHODS)))
            yield "sent"
    else:
        for _ in range(40):
            call.open(LINK + session.chance.choice(METHODS))
            yield "sent"
        session.drop()


@kind("member", GONE | {"silence", "sent"}, 6)
def bad_frames(session: AttackSession) -> Iterator[str]:
    """Frames of HTTP/2 that must not be: too long, of no stream, without end, floods."""
    chance = session.chance
    session.drop()
    call = session.member()
    flood = chance.choice([
        frame(PING, 0, 0, b"12345678") * 500,
        frame(SETTINGS, 0, 0, bytes([0, 3, 0, 0, 0, 1])) * 300,
        frame(DATA, 0, 77, b"x"), frame(DATA, 0, 0, b"x"), frame(HEADERS, 4, 2, headers("/x")),
        frame(HEADERS, 0, 1, headers("/x")[:10])
        + frame(CONTINUATION, 0, 1, b"\0\1a\1b" * 500) * 40,
        frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 3, frame(RST, 0, 0, b"1234"),
        frame(99, 0, 1, b"x"),
        b"\xff\xff\xff" + chance.randbytes(600), chance.randbytes(5000),
        frame(HEADERS, 5, 1, chance.randbytes(100)),
    ])  # fmt: skip
    call.send(flood)
    try:
        call.hear(0.05)
        yield "sent"
    finally:
        session.drop()


@kind("member", GONE | {"held"}, 4)
def half_open(session: AttackSession) -> Iterator[str]:
    """Streams without a word, and half of a message, held open."""
    try:
        call = Connection(session.context.link, session.context.contexts["idler"])
    except Closed as how:
        yield str(how)
        return
    for method in session.chance.sample(METHODS, 2):
        stream = call.open(LINK + method)
        if session.chance.random() < 0.5:
            call.put(stream, HELLO[:-3])
        yield "held"
    session.context.hold(call)


@kind("member", REFUSED | {"data", REPLACED}, 6)
def comes_and_goes(session: AttackSession) -> Iterator[str]:
    """attends, is welcomed, and is gone without a word."""
    session.drop()
    call = session.member()
    stream = call.open(LINK + "Attend")
    call.put(stream, HELLO)
    yield word(call.wait(stream, data=True))
    session.drop()


# newcomers, at the enrolment port


def _asks(
    session: AttackSession, *bodies: bytes, path: str = ENROL, wait: bool = False
) -> Iterator[str]:
    try:
        call = Connection(session.context.enrolment, session.context.contexts["nobody"])
    except Closed as how:
        yield str(how)
        return
    try:
        streams = []
        for body in bodies:
            streams.append(call.open(path))
            call.put(streams[-1], body, end=True)
        for stream in streams:
            yield word(call.wait(stream)) if wait else "sent"
    except Closed as how:
        yield str(how)
    finally:
        call.close(reset=not wait)


DENIED = REFUSED | {"status 7", "sent"}


@kind("newcomer", DENIED, 8)
def wrong_tokens(session: AttackSession) -> Iterator[str]:
    """Requests with wrong tokens, used ones, and tokens of another name."""
    context, chance = session.context, session.chance
    bodies = []
    for _ in range(4):
        site = chance.choice(["Newcomer", "Mallory", "Honest 1", "Nobody", "\0", "../x", "hub"])
        token = chance.choice(["", "x" * 43, context.tokens["used"], "\u202e"])
        if site != "Newcomer":
            token = chance.choice([token, context.tokens["open"]])
        asked = pb.Request(site=site, token=token, request=context.requests["right"],
                           ledger=context.vkeys[0], witness=context.vkeys[1])  # fmt: skip
        bodies.append(message(asked.SerializeToString()))
    yield from _asks(session, *bodies, wait=chance.random() < 0.15)


@kind("newcomer", DENIED, 8)
def wrong_requests(session: AttackSession) -> Iterator[str]:
    """The right token with a request or keys that are none, of another kind, or turned."""
    context, chance = session.context, session.chance
    bodies = []
    for _ in range(4):
        name = chance.choice(sorted(set(context.requests) - {"right"}))
        request, keys = context.requests[name], list(context.vkeys)
        if chance.random() < 0.4:
            # The request may be right, then: without its keys nobody comes in.
            request = mutated(chance, context.requests["right"])
            keys[chance.randrange(2)] = chance.choice(["", "x+y+z", keys[0] + keys[1], "\0", "+"])
        asked = pb.Request(site="Newcomer", token=context.tokens["open"], request=request,
                           ledger=keys[0], witness=keys[1])  # fmt: skip
        bodies.append(message(asked.SerializeToString()))
    yield from _asks(session, *bodies, wait=chance.random() < 0.15)


@kind("newcomer", DENIED | {"status 12", "status 13", "silence"}, 6)
def no_requests(session: AttackSession) -> Iterator[str]:
    """At the enrolment port: no message, rubbish, too long, other methods, half-open calls."""
    context, chance = session.context, session.chance
    path = chance.choice([ENROL, ENROL, ENROL + "x", LINK + "Attend", "/x", ENROL + "\xff", "\xfe"])
    body = chance.choice([
        message(fields(chance)), message(chance.randbytes(200)), message(bytes(100_000)), b"\0",
        message(b"x", flag=1), message(b"", length=1 << 31),
    ])  # fmt: skip
    if chance.random() < 0.2:
        call = Connection(context.enrolment, context.contexts["nobody"])
        for _ in range(4):
            call.put(call.open(ENROL), b"\0\0\0")
            yield "sent"
        context.hold(call)
    else:
        yield from _asks(session, body, path=path, wait=chance.random() < 0.1)
