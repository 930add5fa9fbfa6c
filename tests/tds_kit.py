"""A stand-in that speaks as much of TDS 7.4 as pymssql needs: it parses no SQL.

It answers the statements that Privet and SQLAlchemy send by their texts, from tables that a test
sets down. So the driver, TLS, the conversion of cells and the errors are tried for real; what a SQL
Server makes of the statements is not.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

_COLLATION = bytes.fromhex("0904d00034")
_PRELOGIN, _LOGIN, _BATCH, _ATTENTION, _REPLY = 0x12, 0x10, 0x01, 0x06, 0x04
_OFF, _ON, _NOT_SUPPORTED = 0, 1, 2
_MAX = (1 << 64) - 1


class ServerError(Exception):
    """An error that the server sends: number and text."""


@dataclass
class Result:
    """Columns by name and kind, and rows."""

    columns: list[tuple[str, str]]
    rows: list[tuple[Any, ...]]


@dataclass
class Table:
    """What the catalogue and the data say of one name."""

    fields: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    type: str = "U"
    definition: str | None = None
    external: int = 0
    may_see: int = 1
    predicates: int = 0


class Tds:
    """A server on loopback; ``tls`` is "none", "on", "login" (unless the client wants more), "login-only"."""

    def __init__(self, tls: str = "none", certificate: Path | None = None) -> None:
        self.tls, self.certificate = tls, certificate
        self.tables: dict[str, Table] = {}
        self.failures: dict[str, ServerError] = {}
        self.statements: list[str] = []
        self.logins: list[dict[str, Any]] = []
        self.encrypted: list[bool] = []
        self.sleep = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            with connection:
                _Session(self, connection).run()
        except (OSError, EOFError, ssl.SSLError):
            pass

    def answer(self, sql: str) -> Result | None:
        """Return what a statement gives."""
        self.statements.append(sql)
        for part, failure in self.failures.items():
            if part in sql:
                raise failure
        if "@@version" in sql:
            return Result([("", "text")], [("Microsoft SQL Server 2022 - 16.0.1000.6 (X64)",)])
        if "sys.objects" in sql and "sys.security_predicates" in sql:
            name = re.search(r"o\.name = N?'((?:[^']|'')*)'", sql)
            assert name, sql
            return self._object(name[1].replace("''", "'"))
        if "FROM sys.columns c" in sql:
            key = re.search(r"c\.object_id = (\d+)", sql)
            assert key, sql
            table = list(self.tables.values())[int(key[1]) - 1]
            kinds = ["text", "text", "int", "int", "int"]
            names = ["name", "type", "precision", "scale", "computed"]
            return Result(list(zip(names, kinds, strict=True)), list(table.fields))
        if sql.upper().lstrip().startswith("SELECT") and "[dbo]." in sql:
            time.sleep(self.sleep)
            name = re.search(r"FROM \[dbo\]\.\[((?:[^\]]|\]\])*)\]", sql)
            assert name, sql
            table = self.tables[name[1].replace("]]", "]")]
            kinds = [*table.kinds, "int"]
            columns = [(f"c{place}", kind) for place, kind in enumerate(kinds)]
            return Result(columns, [(*row, 0) for row in table.rows])
        if sql.upper().lstrip().startswith("SELECT"):
            return Result([("", "text")], [("dbo",)])  # SQLAlchemy's own questions
        return None

    def _object(self, name: str) -> Result:
        names = ["schema", "name", "type", "key", "definition", "external", "see", "predicates"]
        kinds = ["text", "text", "text", "int", "text", "int", "int", "int"]
        rows = []
        if (table := self.tables.get(name)) is not None:
            key = list(self.tables).index(name) + 1
            rows.append(
                (
                    "dbo", name, table.type, key, table.definition, table.external,
                    table.may_see, table.predicates,
                )
            )  # fmt: skip
        return Result(list(zip(names, kinds, strict=True)), rows)


class _Session:
    def __init__(self, server: Tds, connection: socket.socket) -> None:
        self.server, self.socket = server, connection
        self.read: Callable[[int], bytes] = self._plain_read
        self.write: Callable[[bytes], None] = connection.sendall
        self._wire: ssl.SSLObject | None = None

    def _plain_read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def message(self) -> tuple[int, bytes]:
        whole = b""
        while True:
            kind, status, length = struct.unpack(">BBH4x", self.read(8))
            whole += self.read(length - 8)
            if status & 1:
                return kind, whole

    def send(self, data: bytes, kind: int = _REPLY) -> None:
        pieces = [data[at : at + 4000] for at in range(0, len(data), 4000)] or [b""]
        for number, piece in enumerate(pieces, 1):
            last = int(number == len(pieces))
            self.write(
                struct.pack(">BBHHBB", kind, last, len(piece) + 8, 0, number % 256, 0) + piece
            )

    def run(self) -> None:
        kind, offer = self.message()
        assert kind == _PRELOGIN
        wanted = _encryption(offer)
        modes = {"none": _NOT_SUPPORTED, "login": _OFF, "login-only": _OFF, "on": _ON}
        mode = modes[self.server.tls]
        if self.server.tls == "login" and wanted in (_ON, 3):
            mode = _ON
        body = struct.pack(">BHH", 0, 11, 6) + struct.pack(">BHH", 1, 17, 1) + b"\xff"
        self.send(body + bytes([16, 0, 3, 232, 0, 0]) + bytes([mode]))
        if mode != _NOT_SUPPORTED and wanted != _NOT_SUPPORTED:
            self._handshake()
        kind, login = self.message()
        assert kind == _LOGIN, kind
        self.server.encrypted.append(self._wire is not None)
        if mode == _OFF:
            self.read, self.write = self._plain_read, self.socket.sendall
        self.server.logins.append(_login(login))
        if failure := self.server.failures.get("login"):
            self.send(_error(failure) + _done(2))
            return
        program = "Stand-in".encode("utf-16-le")
        ack = b"\x01" + bytes.fromhex("74000004") + bytes([8]) + program + bytes([16, 0, 3, 232])
        self.send(
            _change(4, "4096", "4096")
            + b"\xe3" + struct.pack("<HBB", 8, 7, 5) + _COLLATION + b"\x00"
            + b"\xad" + struct.pack("<H", len(ack)) + ack + _done()
        )  # fmt: skip
        while True:
            kind, body = self.message()
            if kind == _ATTENTION:
                self.send(_done(0x20))
                continue
            assert kind == _BATCH, kind
            text = body[struct.unpack("<I", body[:4])[0] :].decode("utf-16-le")
            try:
                self.send(_tokens(self.server.answer(text)))
            except ServerError as failure:
                self.send(_error(failure) + _done(2))

    def _handshake(self) -> None:
        """TLS inside of packets of the kind of PRELOGIN, then TDS inside of TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert self.server.certificate is not None
        context.load_cert_chain(self.server.certificate)
        # Tickets of TLS 1.3 would come after the handshake, where a client reads no packet.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        wire = context.wrap_bio(inward, outward, server_side=True)
        while True:
            try:
                wire.do_handshake()
                break
            except ssl.SSLWantReadError:
                if pending := outward.read():
                    self.send(pending, _PRELOGIN)
                inward.write(self.message()[1])
        if pending := outward.read():
            self.send(pending, _PRELOGIN)
        self._wire = wire

        def read(size: int) -> bytes:
            data = b""
            while len(data) < size:
                try:
                    more = wire.read(size - len(data))
                    if not more:
                        raise EOFError
                    data += more
                except ssl.SSLWantReadError:
                    fresh = self.socket.recv(65536)
                    if not fresh:
                        raise EOFError from None
                    inward.write(fresh)
            return data

        def write(data: bytes) -> None:
            wire.write(data)
            self.socket.sendall(outward.read())

        self.read, self.write = read, write


def _encryption(offer: bytes) -> int:
    place = 0
    while offer[place] != 0xFF:
        token, start, length = struct.unpack(">BHH", offer[place : place + 5])
        if token == 1 and length:
            return offer[start]
        place += 5
    return _NOT_SUPPORTED


def _login(data: bytes) -> dict[str, Any]:
    def text(at: int) -> bytes:
        start, count = struct.unpack("<HH", data[at : at + 4])
        return data[start : start + 2 * count]

    secret = bytes(((b ^ 0xA5) >> 4 | (b ^ 0xA5) << 4) & 0xFF for b in text(44))
    return {
        "user": text(40).decode("utf-16-le"),
        "password": secret.decode("utf-16-le"),
        "app": text(48).decode("utf-16-le"),
        "database": text(68).decode("utf-16-le"),
        "read_only": bool(data[26] & 0x20),
    }


def _named(text: str) -> bytes:
    return bytes([len(text)]) + text.encode("utf-16-le")


def _change(kind: int, new: str, old: str) -> bytes:
    body = bytes([kind]) + _named(new) + _named(old)
    return b"\xe3" + struct.pack("<H", len(body)) + body


def _done(status: int = 0, rows: int = 0) -> bytes:
    return b"\xfd" + struct.pack("<HHQ", status, 0, rows)


def _error(failure: ServerError) -> bytes:
    number, said = failure.args
    body = struct.pack("<iBB", number, 1, 16) + struct.pack("<H", len(said))
    body += said.encode("utf-16-le") + _named("stand-in") + _named("") + struct.pack("<i", 1)
    return b"\xaa" + struct.pack("<H", len(body)) + body


_KINDS = {
    "text": b"\xe7" + struct.pack("<H", 8000) + _COLLATION,
    "int": b"\x26\x08",
    "bit": b"\x68\x01",
    "float": b"\x6d\x08",
    "real": b"\x6d\x04",
    "decimal": b"\x6c\x11\x26\x03",
    "money": b"\x6e\x08",
    "guid": b"\x24\x10",
    "bytes": b"\xa5\xff\xff",
}


def _cell(kind: str, cell: Any) -> bytes:
    if kind == "bytes":
        if cell is None:
            return struct.pack("<Q", _MAX)
        chunk = struct.pack("<I", len(cell)) + cell if cell else b""
        return struct.pack("<Q", len(cell)) + chunk + struct.pack("<I", 0)
    if kind == "text":
        data = None if cell is None else cell.encode("utf-16-le")
        return b"\xff\xff" if data is None else struct.pack("<H", len(data)) + data
    if cell is None:
        return b"\x00"
    if kind == "decimal":
        number = int(Decimal(cell) * 1000)
        return b"\x11" + bytes([number >= 0]) + abs(number).to_bytes(16, "little")
    if kind == "money":
        high, low = divmod(int(Decimal(cell) * 10000), 1 << 32)
        return b"\x08" + struct.pack("<iI", high, low)
    if kind == "guid":
        return b"\x10" + uuid.UUID(cell).bytes_le
    form = {"int": "<q", "bit": "<B", "float": "<d", "real": "<f"}[kind]
    data = struct.pack(form, cell)
    return bytes([len(data)]) + data


def _tokens(result: Result | None) -> bytes:
    if result is None:
        return _done()
    head = b"\x81" + struct.pack("<H", len(result.columns))
    for name, kind in result.columns:
        head += struct.pack("<IH", 0, 9) + _KINDS[kind] + _named(name)
    kinds = [kind for _, kind in result.columns]
    rows = [
        b"\xd1" + b"".join(_cell(kind, cell) for kind, cell in zip(kinds, row, strict=True))
        for row in result.rows
    ]
    return head + b"".join(rows) + _done(0x10, len(rows))
