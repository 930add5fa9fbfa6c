"""TLS and HTTP/2 by hand: a gRPC client that can do what a well-behaved one never does."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import time
from collections.abc import Iterable
from contextlib import suppress

DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVER = "coordinator.privet.internal"
_STATUS = re.compile(rb"grpc-status[\x01\x02]([0-9]{1,2})")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one HTTP/2 frame."""
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def settings(window: int = 1 << 24) -> bytes:
    """Return our SETTINGS: no header table, so that a status can be read as it stands."""
    return frame(SETTINGS, 0, 0, struct.pack(">HIHI", 1, 0, 4, window))


def message(body: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """Return one gRPC message; its flag and its length may lie."""
    return bytes([flag]) + (len(body) if length is None else length).to_bytes(4, "big") + body


def headers(path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return a header block: literals, never indexed."""
    fields = [
        (":method", "POST"), (":scheme", "https"), (":path", path), (":authority", SERVER),
        ("te", "trailers"), ("content-type", "application/grpc"), *more,
    ]  # fmt: skip
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)


def _text(value: str) -> bytes:
    raw, length = value.encode("latin-1"), len(value)
    if length < 127:
        return bytes([length]) + raw
    length, prefix = length - 127, bytearray([127])
    while length >= 128:
        prefix.append(length % 128 + 128)
        length //= 128
    return bytes(prefix) + bytes([length]) + raw


class Closed(Exception):
    """The connection ended, in a word: ``alert``, ``closed``, ``silence``."""


class Answer:
    """What came on one stream."""

    def __init__(self) -> None:
        self.data = b""
        self.status: int | None = None
        self.ended = False
        self.reset = False


class Connection:
    """One connection over TLS.

    Args:
        port: on loopback.
        context: of TLS.
        session: to take up again.
        window: how many bytes a stream may send us before we let it go on.
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        *,
        session: ssl.SSLSession | None = None,
        window: int = 1 << 24,
        timeout: float = 10.0,
    ) -> None:
        self.answers: dict[int, Answer] = {}
        self.raw = b""  # all that came within TLS
        self.goaway = False
        self.last = -1
        self._space: dict[int, int] = {0: 65535}
        self._first_space = 65535
        self._largest = 16384
        plain = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.tls = context.wrap_socket(plain, server_hostname=SERVER, session=session)
        except ssl.SSLError as error:
            plain.close()
            raise Closed("alert" if "ALERT" in str(error).upper() else "closed") from None
        except TimeoutError:
            plain.close()
            raise Closed("silence") from None
        except OSError:
            plain.close()
            raise Closed("closed") from None
        start = PREFACE + settings(window)
        if window >= 1 << 20:
            start += frame(WINDOW, 0, 0, (1 << 28).to_bytes(4, "big"))
        self.send(start)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        try:
            self.tls.sendall(data)
        except ssl.SSLError as error:
            raise Closed("alert" if "ALERT" in str(error).upper() else "closed") from None
        except TimeoutError:
            raise Closed("silence") from None
        except OSError:
            raise Closed("closed") from None

    def open(self, path: str, more: Iterable[tuple[str, str]] = (), *, end: bool = False) -> int:
        """Begin a call; return its stream."""
        self.last += 2
        self.answers[self.last] = Answer()
        self._space[self.last] = self._first_space
        block, flags = headers(path, more), END_STREAM if end else 0
        first, rest = block[: self._largest], block[self._largest :]
        parts = [frame(HEADERS, flags | (0 if rest else END_HEADERS), self.last, first)]
        while rest:
            part, rest = rest[: self._largest], rest[self._largest :]
            parts.append(frame(CONTINUATION, 0 if rest else END_HEADERS, self.last, part))
        self.send(b"".join(parts))
        return self.last

    def put(self, stream: int, data: bytes, *, end: bool = False, seconds: float = 10) -> bool:
        """Send data on a stream as far as flow control lets it; False if the stream ended first."""
        until = time.monotonic() + seconds
        while data or end:
            room = min(self._space[0], self._space[stream], self._largest)
            if data and room <= 0:
                if self.answers[stream].ended or time.monotonic() > until:
                    return False
                self.hear(0.2)
                continue
            part, data = data[: max(room, 0)], data[max(room, 0) :]
            last = end and not data
            self.send(frame(DATA, END_STREAM if last else 0, stream, part))
            self._space[0] -= len(part)
            self._space[stream] -= len(part)
            if last:
                break
        return True

    def call(
        self, path: str, *messages: bytes, more: Iterable[tuple[str, str]] = (), seconds: float = 10
    ) -> Answer:
        """Make one call and wait for its end."""
        stream = self.open(path, more)
        self.put(stream, b"".join(messages), end=True, seconds=seconds)
        return self.wait(stream, seconds)

    def wait(self, stream: int, seconds: float = 10, *, data: bool = False) -> Answer:
        """Wait until a stream has ended, or until data came on it."""
        answer, until = self.answers[stream], time.monotonic() + seconds
        while not answer.ended and not (data and answer.data) and time.monotonic() < until:
            self.hear(max(0.01, until - time.monotonic()))
        return answer

    def forget(self, stream: int) -> None:
        """Reset a stream, and keep nothing of it."""
        self.send(frame(RST, 0, stream, (8).to_bytes(4, "big")))
        self.answers.pop(stream, None)
        self._space.pop(stream, None)

    def hear(self, seconds: float) -> None:
        """Take what comes within ``seconds``.

        Raises:
            Closed: if the connection ended.
        """
        while len(self.raw) < 9 or len(self.raw) < 9 + int.from_bytes(self.raw[:3], "big"):
            if not self._more(seconds):
                return
        while len(self.raw) >= 9 + (size := int.from_bytes(self.raw[:3], "big")):
            kind, flags = self.raw[3], self.raw[4]
            stream = int.from_bytes(self.raw[5:9], "big") & 0x7FFFFFFF
            payload, self.raw = self.raw[9 : 9 + size], self.raw[9 + size :]
            self._take(kind, flags, stream, payload)
            if len(self.raw) < 9:
                return

    def _more(self, seconds: float) -> bool:
        self.tls.settimeout(max(0.001, seconds))
        try:
            part = self.tls.recv(1 << 16)
        except TimeoutError:
            return False
        except ssl.SSLError as error:
            raise Closed("alert" if "ALERT" in str(error).upper() else "closed") from None
        except OSError:
            raise Closed("closed") from None
        finally:
            self.tls.settimeout(10)
        if not part:
            raise Closed("closed")
        self.raw += part
        return True

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        answer = self.answers.get(stream)
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload) - 5, 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == 4:
                    for key in self._space:
                        self._space[key] += (value - self._first_space) if key else 0
                    self._first_space = value
                elif name == 5:
                    self._largest = min(value, 1 << 20)
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW and stream in self._space:
            self._space[stream] += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway = True
        elif answer is not None:
            if kind == DATA:
                answer.data += payload
            elif kind == HEADERS and (found := _STATUS.search(payload)):
                answer.status = int(found.group(1))
            answer.reset |= kind == RST
            answer.ended |= kind == RST or bool(kind in (DATA, HEADERS) and flags & END_STREAM)

    def close(self, *, reset: bool = False) -> None:
        """Close; with ``reset``, without a word."""
        if reset:
            with suppress(OSError):
                self.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.tls.close()
