"""The site's end of the link: it dials out, takes parcels, and brings answers.

::

    Dialer.run ── connect ── Attend ─┬─ parcel ── numbers (inline, kept, or Download) ── serve
                     ▲               └─ answer ── numbers (inline, or Upload) ── Answer
                     └─ cut: wait a little longer each time, dial again

What was asked and not yet answered is offered again on the next stream; an answer that was
ready when the stream broke is sent then, without asking ``serve`` twice. A download or an
upload goes on from the byte where it was cut.

A coordinator cannot make a site hold more than one set of numbers that it sends, beside a few
answers: parcels are taken one after the other, and no further one is read while many wait.
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
from google.protobuf.message import DecodeError
from grpc import aio

from privet import __version__
from privet.client.renewal import Renewal
from privet.common.errors import InputError, PrivetError, RunError
from privet.common.flat import CHUNK, Arrays, Intake, chunks, digest_arrays, size_of
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import SERVER_NAME, require_tls_1_3
from privet.common.link.pieces import CHUNK as CHUNK_DATA
from privet.common.link.pieces import PIECE as PIECE_DATA
from privet.common.link.pieces import data_of, head

VERSIONS = (1,)
INLINE = 1 << 16
_SHORTEST, _LONGEST = 0.2, 30.0
"""Seconds between two attempts to dial."""
_WORD = 30.0
"""Seconds within which a coordinator says a word that is due."""
_STILL = 120.0
"""Seconds that a download may stand still."""
_LOOK_AT_CERTIFICATE = 3600.0
"""Seconds between two looks whether the certificate should be renewed."""
_MOST_PARCELS = 16
"""Parcels that are read and not answered yet; further ones wait on the coordinator's side."""
_MOST_ANSWERS, _MOST_WITH_NUMBERS = 64, 2
"""Answers that are kept in case they are asked for again; those with numbers are large."""
_OPTIONS = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    # Nothing here is compressed, and what is gets refused unread.
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
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
        credentials: returns those of the site, with the authority that signed the coordinator's;
            asked each time it dials.
        serve: answers parcels.
        renewal: the site's certificate, to be renewed before it ends; None leaves it.
        most_numbers: longest flat stream that is fetched, in bytes.
        on_state: told ``connected``, ``cut``.
    """

    def __init__(
        self,
        address: str,
        credentials: Callable[[], grpc.ChannelCredentials],
        serve: Serve,
        *,
        renewal: Renewal | None = None,
        most_numbers: int = 16 << 30,
        on_state: Callable[[str], None] = lambda state: None,
    ) -> None:
        self.address = address
        self._credentials = credentials
        self._serve = serve
        self._renewal = renewal
        self._most_numbers = most_numbers
        self._on_state = on_state
        self._answers: dict[str, asyncio.Task[Told | None]] = {}
        self._kept: dict[bytes, Arrays] = {}
        self._partial: dict[bytes, Intake] = {}
        self._turn = asyncio.Lock()
        self._serving = asyncio.Lock()
        self._saying = asyncio.Lock()
        self._wait = _SHORTEST
        self._away = ""
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
                    self.address, self._credentials(), options=_OPTIONS
                ) as channel:
                    await self._attend(_Stub(channel))
            except aio.AioRpcError as error:
                if error.code() in _HOPELESS:
                    raise RunError(f"{self.address}: {error.details()}") from None
                self._note_away(error.details() or str(error.code()))
            except (InputError, TimeoutError) as error:
                self._note_away(str(error) or "no word came in time")
            except asyncio.CancelledError:
                # gRPC raises it too where a stream was cut by ourselves, while answering.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            finally:
                self.tally.connected = False
            self._on_state("cut")
            await asyncio.sleep(self._wait * random.uniform(0.5, 1.0))
            self._wait = min(2 * self._wait, _LONGEST)

    def _note_away(self, why: str) -> None:
        """Say once why there is no coordinator, and not at each call."""
        if self.tally.connected:
            _LOG.warning("cut off; calling again", extra={"address": self.address, "why": why})
        elif why != self._away:
            text = "the coordinator does not answer; calling again until it does"
            _LOG.warning(text, extra={"address": self.address, "why": why})
        self._away = why

    async def _attend(self, stub: rpc.LinkStub) -> None:
        stream = stub.Attend()
        hello = pb.Hello(versions=VERSIONS, software=f"privet {__version__}")
        await stream.write(pb.FromSite(hello=hello))
        async with asyncio.timeout(_WORD):
            first = await stream.read()
        if first is aio.EOF:
            raise await _ended(stream)
        welcome = None if first is None else first.welcome  # None: it cannot be read
        if welcome is None or not first.HasField("welcome") or welcome.version not in VERSIONS:
            raise InputError("the coordinator did not say which version it speaks")
        self.tally.connected = True
        self.tally.streams += 1
        self._away = ""
        _LOG.info("connected", extra={"address": self.address})
        self._on_state("connected")
        self._wait = _SHORTEST
        sending: set[asyncio.Task[None]] = set()
        renewing = asyncio.create_task(self._renew(stub))
        try:
            while (message := await stream.read()) is not aio.EOF:
                if message is None or message.WhichOneof("what") != "parcel":
                    raise InputError("only parcels follow Welcome")
                self.tally.received += message.ByteSize()
                task = asyncio.create_task(self._answer(stub, stream, message.parcel))
                sending.add(task)
                task.add_done_callback(sending.discard)
                while len(sending) >= _MOST_PARCELS:
                    await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            raise await _ended(stream)
        finally:
            renewing.cancel()
            for task in sending:
                task.cancel()

    async def _renew(self, stub: rpc.LinkStub) -> None:
        """Get another certificate when it is time; the next dialing is done with it."""
        while self._renewal is not None:
            try:
                if self._renewal.is_due():
                    asked = pb.Renewal(request=self._renewal.ask())
                    answer = await stub.Renew(asked, timeout=_WORD)
                    self._renewal.keep(answer.pem if answer is not None else b"")
                    _LOG.info("the certificate was renewed")
            except (aio.AioRpcError, PrivetError, OSError) as error:
                why = error.details() if isinstance(error, aio.AioRpcError) else error
                _LOG.warning("the certificate was not renewed; tried again", extra={"why": why})
            await asyncio.sleep(_LOOK_AT_CERTIFICATE)

    async def _answer(self, stub: rpc.LinkStub, stream: Any, parcel: pb.Parcel) -> None:
        """Answer a parcel on this stream; where it breaks, the next one asks again."""
        try:
            told = await self._told(stub, parcel)
            numbers = await self._bring(stub, parcel.id, told.arrays)
            answer = pb.Answer(id=parcel.id, records=told.records, numbers=numbers)
            message = pb.FromSite(answer=answer)
            async with self._saying:  # two at once would end the stream
                await stream.write(message)
            self.tally.sent += message.ByteSize()
        except (aio.AioRpcError, TimeoutError) as error:
            why = error.details() if isinstance(error, aio.AioRpcError) else "it stood still"
            _LOG.info("cut while answering", extra={"why": why})
            stream.cancel()
        except (InputError, aio.UsageError, asyncio.InvalidStateError) as error:
            _LOG.warning("a parcel was not answered", extra={"why": error})
        except Exception:
            _LOG.exception("a parcel was not answered")

    async def _told(self, stub: rpc.LinkStub, parcel: pb.Parcel) -> Told:
        """Return the parcel's answer, made once however often it is asked for."""
        task = self._answers.get(parcel.id)
        if task is None:
            async with self._turn:
                task = self._answers.get(parcel.id)
                if task is None:
                    arrays = await self._fetch(stub, parcel.numbers)
                    asked = Asked(parcel.kind, parcel.group, parcel.records, arrays)
                    task = self._answers[parcel.id] = asyncio.create_task(self._make(asked))
                    del asked, arrays
                    await asyncio.wait([task])
                    self._forget()
        told = await asyncio.shield(task)
        if told is None:
            raise InputError(f"'{parcel.kind[:40]}' could not be answered")
        return told

    def _forget(self) -> None:
        """Keep a few answers."""
        done = {k: task.result() for k, task in self._answers.items() if task.done()}
        failed = [number for number, told in done.items() if told is None]
        large = [number for number, told in done.items() if told is not None and told.arrays]
        small = [number for number in done if number not in failed and number not in large]
        for number in failed + large[:-_MOST_WITH_NUMBERS] + small[:-_MOST_ANSWERS]:
            del self._answers[number]

    async def _make(self, asked: Asked) -> Told | None:
        async with self._serving:  # also where the stream that asked was cut meanwhile
            began = time.monotonic()
            told = await asyncio.to_thread(self._try, asked)
            if told is not None:
                self.on_answer(asked, told, time.monotonic() - began)
            return told

    def _try(self, asked: Asked) -> Told | None:
        """Answer, or say in the log why not: an error that was kept would keep what was asked."""
        try:
            return self._serve(asked)
        except InputError as error:
            # Without its frames, which hold what was asked.
            _LOG.warning("a parcel could not be read", extra={"why": error.with_traceback(None)})
        except Exception:
            _LOG.exception("a parcel was not answered")
        return None

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
        self._kept.clear()
        if numbers.inline:
            if len(numbers.inline) != numbers.size:
                raise InputError("the numbers that came along are not as long as announced")
            intake = Intake(numbers.size)
            intake.take(numbers.inline)
        else:
            begun = self._partial.pop(numbers.sha256, None)
            self._partial.clear()
            same = begun is not None and begun.size == numbers.size
            intake = begun if begun is not None and same else Intake(numbers.size)
            await self._download(stub, numbers.sha256, intake)
        arrays, digest = intake.finish()
        if digest != "sha256:" + numbers.sha256.hex():
            raise InputError("the numbers that came are not those of their digest")
        self._kept = {numbers.sha256: arrays}
        return arrays

    async def _download(self, stub: rpc.LinkStub, sha256: bytes, intake: Intake) -> None:
        call = stub.Download(pb.Want(sha256=sha256, offset=intake.taken))
        try:
            while True:
                async with asyncio.timeout(_STILL):
                    raw = await call.read()
                if raw is aio.EOF:
                    break
                data = _data(raw)
                intake.take(data)
                self.tally.received += len(data)
            if await call.code() is not grpc.StatusCode.OK:
                raise await _ended(call)
        except (aio.AioRpcError, asyncio.CancelledError, TimeoutError):
            self._partial = {sha256: intake}
            raise
        finally:
            call.cancel()

    async def _bring(self, stub: rpc.LinkStub, number: str, arrays: Arrays) -> pb.Numbers | None:
        """Bring the arrays of an answer, from where an earlier stream was cut."""
        if not arrays:
            return None
        size = size_of(arrays)
        digest = await asyncio.to_thread(digest_arrays, arrays)
        sha256 = bytes.fromhex(digest.removeprefix("sha256:"))
        if size <= INLINE:
            return pb.Numbers(sha256=sha256, size=size, inline=b"".join(chunks(arrays)))
        held = await stub.Status(pb.Want(sha256=sha256, parcel=number), timeout=_WORD)
        if held is None:
            raise InputError("the coordinator does not say what it holds")
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
) -> AsyncIterator[bytes]:
    announced = pb.Piece(parcel=number, sha256=sha256, size=size, offset=offset)
    first: bytes = announced.SerializeToString()

    def before(count: int) -> bytes:
        nonlocal first
        said, first = bytes(first), b""
        return said + head(PIECE_DATA, count)

    for piece in chunks(arrays, offset, CHUNK, before):
        yield piece
        tally.sent += len(piece)


class _Stub(rpc.LinkStub):
    """The generated stub, but that numbers travel as bytes (:mod:`privet.common.link.pieces`)."""

    def __init__(self, channel: aio.Channel) -> None:
        super().__init__(channel)
        self.Download = channel.unary_stream(
            "/privet.link.v1.Link/Download", request_serializer=pb.Want.SerializeToString
        )
        self.Upload = channel.stream_unary(
            "/privet.link.v1.Link/Upload", response_deserializer=pb.Held.FromString
        )


def _data(raw: bytes | None) -> bytes | memoryview:
    """Return the numbers of a chunk.

    Raises:
        InputError: if it holds none.
    """
    try:
        found = data_of(CHUNK_DATA, raw) if raw else None
        data: bytes | memoryview = found or pb.Chunk.FromString(raw or b"").data
    except DecodeError:
        raise InputError("what came is no chunk of numbers") from None
    if not data:
        raise InputError("a chunk of the numbers is empty, or none")
    return data
