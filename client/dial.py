"""The site's end of the link: it dials out, takes parcels, and brings answers.

::

    Dialer.run ── connect ── Attend ─┬─ parcel ── numbers (inline, kept, or Download) ── serve
                     ▲               └─ answer ── numbers (inline, or Upload) ── Answer
                     └─ cut: wait a little longer each time, dial again

What was asked and not yet answered is offered again on the next stream; an answer that was
ready when the stream broke is sent then, without asking ``serve`` twice. A download or an
upload goes on from the byte where it was cut.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from privet import __version__
from privet.common.errors import InputError, RunError
from privet.common.flat import CHUNK, Arrays, Intake, chunks, digest_arrays, size_of
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import SERVER_NAME, require_tls_1_3

VERSIONS = (1,)
INLINE = 1 << 16
_SHORTEST, _LONGEST = 0.2, 30.0
"""Seconds between two attempts to dial."""
_OPTIONS = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
]
_HOPELESS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION)

_LOG = logging.getLogger("privet.dial")


@dataclass(frozen=True)
class Asked:
    """A parcel, with its numbers."""

    kind: str
    group: str
    records: bytes
    arrays: Arrays


@dataclass(frozen=True)
class Told:
    """The answer to a parcel."""

    records: bytes
    arrays: Arrays


@dataclass
class Tally:
    """What passed since the dialer was made.

    Attributes:
        connected: whether the coordinator has welcomed this site on the stream that is open.
        streams: streams that were begun.
        received, sent: bytes of messages, before gRPC and TLS add theirs.
    """

    connected: bool = False
    streams: int = 0
    received: int = 0
    sent: int = 0


Serve = Callable[[Asked], Told]
"""Answers a parcel; runs in a thread, one at a time."""


class Dialer:
    """Keeps a site at its coordinator.

    Args:
        address: ``host:port``.
        credentials: of the site, with the authority that signed the coordinator's.
        serve: answers parcels.
        most_numbers: longest flat stream that is fetched, in bytes.
        on_state: told ``connected``, ``cut``.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials,
        serve: Serve,
        *,
        most_numbers: int = 16 << 30,
        on_state: Callable[[str], None] = lambda state: None,
    ) -> None:
        self.address = address
        self._credentials = credentials
        self._serve = serve
        self._most_numbers = most_numbers
        self._on_state = on_state
        self._answers: dict[str, asyncio.Task[Told]] = {}
        self._kept: dict[bytes, Arrays] = {}
        self._partial: dict[bytes, Intake] = {}
        self._turn = asyncio.Lock()
        self._wait = _SHORTEST
        self.tally = Tally()
        self.on_answer: Callable[[Asked, Told, float], None] = lambda asked, told, seconds: None
        """Told of each answer that was made, and of the seconds that it took."""

    async def run(self) -> None:
        """Dial, and dial again, until cancelled.

        Raises:
            RunError: if the coordinator does not know this site, or speaks another version.
        """
        require_tls_1_3()
        while True:
            try:
                async with aio.secure_channel(
                    self.address, self._credentials, options=_OPTIONS
                ) as channel:
                    await self._attend(rpc.LinkStub(channel))
            except aio.AioRpcError as error:
                if error.code() in _HOPELESS:
                    raise RunError(f"{self.address}: {error.details()}") from None
                _LOG.info("cut", extra={"address": self.address, "why": error.details()})
            except InputError as error:
                _LOG.warning("cut", extra={"address": self.address, "why": error})
            finally:
                self.tally.connected = False
            self._on_state("cut")
            await asyncio.sleep(self._wait * random.uniform(0.5, 1.0))
            self._wait = min(2 * self._wait, _LONGEST)

    async def _attend(self, stub: rpc.LinkStub) -> None:
        stream = stub.Attend()
        hello = pb.Hello(versions=VERSIONS, software=f"privet {__version__}")
        await stream.write(pb.FromSite(hello=hello))
        first = await stream.read()
        if first is aio.EOF:
            raise await _ended(stream)
        if first.WhichOneof("what") != "welcome" or first.welcome.version not in VERSIONS:
            raise InputError("the coordinator did not say which version it speaks")
        self.tally.connected = True
        self.tally.streams += 1
        self._on_state("connected")
        self._wait = _SHORTEST
        sending: set[asyncio.Task[None]] = set()
        try:
            while (message := await stream.read()) is not aio.EOF:
                self.tally.received += message.ByteSize()
                if message.WhichOneof("what") == "parcel":
                    task = asyncio.create_task(self._answer(stub, stream, message.parcel))
                    sending.add(task)
                    task.add_done_callback(sending.discard)
            raise await _ended(stream)
        finally:
            for task in sending:
                task.cancel()

    async def _answer(self, stub: rpc.LinkStub, stream: Any, parcel: pb.Parcel) -> None:
        """Answer a parcel on this stream; where it breaks, the next one asks again."""
        try:
            told = await self._told(stub, parcel)
            numbers = await self._bring(stub, parcel.id, told.arrays)
            answer = pb.Answer(id=parcel.id, records=told.records, numbers=numbers)
            message = pb.FromSite(answer=answer)
            await stream.write(message)
            self.tally.sent += message.ByteSize()
        except aio.AioRpcError as error:
            _LOG.info("cut while answering", extra={"why": error.details()})
            stream.cancel()
        except (InputError, aio.UsageError, asyncio.InvalidStateError) as error:
            _LOG.warning("a parcel was not answered", extra={"why": error})
        except Exception:
            _LOG.exception("a parcel was not answered")

    async def _told(self, stub: rpc.LinkStub, parcel: pb.Parcel) -> Told:
        """Return the parcel's answer, made once however often it is asked for."""
        task = self._answers.get(parcel.id)
        if task is None:
            arrays = await self._fetch(stub, parcel.numbers)
            asked = Asked(parcel.kind, parcel.group, parcel.records, arrays)
            task = self._answers[parcel.id] = asyncio.create_task(self._make(asked))
            while len(self._answers) > 64:
                self._answers.pop(next(iter(self._answers)))
        return await asyncio.shield(task)

    async def _make(self, asked: Asked) -> Told:
        async with self._turn:
            began = time.monotonic()
            told = await asyncio.to_thread(self._serve, asked)
            self.on_answer(asked, told, time.monotonic() - began)
            return told

    async def _fetch(self, stub: rpc.LinkStub, numbers: pb.Numbers) -> Arrays:
        """Return the arrays that a parcel names.

        Raises:
            InputError: if they are too long, or not those of their digest.
        """
        if not numbers.size:
            return {}
        if numbers.sha256 in self._kept:
            return self._kept[numbers.sha256]
        if numbers.size > self._most_numbers:
            raise InputError(f"{numbers.size} bytes are more than this site takes")
        intake = self._partial.pop(numbers.sha256, None) or Intake(numbers.size)
        if numbers.inline:
            intake = Intake(numbers.size)
            intake.take(numbers.inline)
        else:
            await self._download(stub, numbers.sha256, intake)
        arrays, digest = intake.finish()
        if digest != "sha256:" + numbers.sha256.hex():
            raise InputError("the numbers that came are not those of their digest")
        self._kept = {numbers.sha256: arrays}
        return arrays

    async def _download(self, stub: rpc.LinkStub, sha256: bytes, intake: Intake) -> None:
        want = pb.Want(sha256=sha256, offset=intake.taken)
        try:
            async for chunk in stub.Download(want):
                intake.take(chunk.data)
                self.tally.received += len(chunk.data)
        except (aio.AioRpcError, asyncio.CancelledError):
            self._partial = {sha256: intake}
            raise

    async def _bring(self, stub: rpc.LinkStub, number: str, arrays: Arrays) -> pb.Numbers | None:
        """Bring the arrays of an answer, from where an earlier stream was cut."""
        if not arrays:
            return None
        size = size_of(arrays)
        digest = await asyncio.to_thread(digest_arrays, arrays)
        sha256 = bytes.fromhex(digest.removeprefix("sha256:"))
        if size <= INLINE:
            return pb.Numbers(sha256=sha256, size=size, inline=b"".join(chunks(arrays)))
        held = await stub.Status(pb.Want(sha256=sha256, parcel=number))
        if held.offset < size:
            await stub.Upload(_pieces(number, sha256, size, held.offset, arrays, self.tally))
        return pb.Numbers(sha256=sha256, size=size)


async def _ended(stream: Any) -> aio.AioRpcError:
    """Return how a stream ended, as an error."""
    return aio.AioRpcError(
        await stream.code(),
        await stream.initial_metadata(),
        await stream.trailing_metadata(),
        await stream.details(),
    )


async def _pieces(
    number: str, sha256: bytes, size: int, offset: int, arrays: Arrays, tally: Tally
) -> AsyncIterator[pb.Piece]:
    head: dict[str, Any] = {
        "parcel": number, "sha256": sha256, "size": size, "offset": offset,
    }  # fmt: skip
    for part in chunks(arrays, offset, CHUNK):
        yield pb.Piece(data=part, **head)
        tally.sent += len(part)
        head = {}
