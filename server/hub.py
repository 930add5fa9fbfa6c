"""The coordinator's end of the link: parcels out, answers in, over mutually authenticated gRPC.

::

    Grid ── Hub.post(site, parcel) ──► Future of the answer
             │  one asyncio loop in a thread of its own
             ├── Attend     a stream for each site: parcels, answers
             ├── Download   the model, from any byte; one copy in memory for all sites
             └── Upload     a release, into a spool file, from the byte where it was cut

A site may come and go: what was posted to it stays open until it is answered or withdrawn,
and is offered again on each new stream. Every call is checked against the members; a site
that is revoked loses its streams at once. A parcel's answer is taken once; one that comes
after the parcel was withdrawn is counted as late and never handed on.

The standard health service answers members on the same port; nothing else is served.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from privet.common.errors import InputError
from privet.common.flat import CHUNK, Arrays, Intake, chunks, digest_arrays, size_of
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import require_tls_1_3
from privet.server.health import Health
from privet.server.spool import Spooled
from privet.server.tally import Tally

VERSION = 1
INLINE = 1 << 16
"""Shorter streams travel inside their message."""
_MOST_RECORDS = 4 << 20
_MOST_CALLS = 16
_FIRST_WORD = 10.0
"""Seconds that a new stream has to say who it is."""
_OPTIONS = [
    ("grpc.max_receive_message_length", _MOST_RECORDS + CHUNK),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]

_LOG = logging.getLogger("privet.hub")

Identify = Callable[[bytes], str | None]
"""Return the member that a client certificate (PEM) stands for now, or None."""


@dataclass(frozen=True)
class Answered:
    """What a site answered to a parcel."""

    records: bytes
    arrays: Arrays


@dataclass
class _Parcel:
    """One that is open: posted, and neither answered nor withdrawn."""

    site: str
    message: pb.ToSite
    arrays: Arrays
    answer: Future[Answered] = field(default_factory=Future)
    upload: _Upload | None = None


@dataclass
class _Upload:
    """A flat stream that a site is bringing; the hash runs beside it."""

    path: Path
    sha256: bytes
    size: int
    held: int = 0
    running: Any = field(default_factory=hashlib.sha256)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as stream:
            stream.write(data)
        self.running.update(data)
        self.held += len(data)

    @property
    def whole(self) -> bool:
        return self.held == self.size and self.running.digest() == self.sha256


class _Session:
    """One stream of a site."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.outgoing: asyncio.Queue[pb.ToSite | None] = asyncio.Queue()
        self.fault = ""


@dataclass(frozen=True)
class Call:
    """A running call of a site; use as a context manager."""

    hub: Hub
    site: str
    begun: int

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.hub.done(self)

    @property
    def is_cut(self) -> bool:
        """Whether the site was revoked since."""
        return self.hub.is_cut(self)


class Hub:
    """Parcels out and answers in.

    Args:
        coordinator: its name, told to sites.
        identify: which member a certificate stands for; asked on every call.
        spool: folder for what is being brought.
        most_numbers: longest flat stream that is taken, in bytes.

    Example::

        hub = Hub("coordinator", members.identify, folder / "spool")
        port = hub.start("127.0.0.1:0", credentials)
        number, answer = hub.post("Hospital 1", "query", "", b"{}", {})
        print(answer.result(timeout=10).records)
        hub.stop()
    """

    def __init__(
        self, coordinator: str, identify: Identify, spool: Path, *, most_numbers: int = 16 << 30
    ) -> None:
        self.coordinator = coordinator
        self.identify = identify
        self.spool = spool
        self.most_numbers = most_numbers
        self.tally = Tally()
        # A site keeps its answers by parcel: a restarted coordinator must not get those of another.
        self._life = secrets.token_hex(8)
        self._numbers = 0
        self._open: dict[str, _Parcel] = {}
        self._sessions: dict[str, _Session] = {}
        self._calls: Counter[str] = Counter()
        self._cuts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub", daemon=True)
        self._server: aio.Server | None = None
        self._changed = threading.Condition()

    # from other threads

    def start(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Listen; return the port.

        Raises:
            InputError: if the address cannot be had.
            RunError: if this process would speak TLS 1.2.
        """
        require_tls_1_3()
        self.spool.mkdir(parents=True, exist_ok=True)
        for left in self.spool.glob("*.part"):
            left.unlink()
        self._thread.start()
        port: int = self._do(self._listen(address, credentials))
        return port

    def stop(self) -> None:
        """End all streams and the thread; what is open stays unanswered."""
        if self._thread.is_alive():
            self._do(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def present(self) -> list[str]:
        """Return the sites that attend now."""
        return list(self._sessions)

    @property
    def late(self) -> Counter[str]:
        """Answers that came late, by site."""
        return self.tally.late

    def open_parcels(self) -> int:
        """Return how many parcels were posted and neither answered nor withdrawn."""
        return len(self._open)

    def wait_for(self, sites: set[str], timeout: float) -> set[str]:
        """Wait until all of ``sites`` attend; return those that do."""
        with self._changed:
            self._changed.wait_for(lambda: sites <= set(self._sessions), timeout)
            return sites & set(self._sessions)

    def wait_for_any(self, sites: set[str], timeout: float) -> set[str]:
        """Wait until one of ``sites`` attends; return those that do."""
        with self._changed:
            self._changed.wait_for(lambda: bool(sites & set(self._sessions)), timeout)
            return sites & set(self._sessions)

    def post(
        self, site: str, kind: str, group: str, records: bytes, arrays: Arrays
    ) -> tuple[str, Future[Answered]]:
        """Offer a parcel to a site, now or when it comes; return its id and its answer."""
        self._numbers += 1
        number = f"{self._life}-{self._numbers}"
        message = pb.ToSite(parcel=pb.Parcel(id=number, kind=kind, group=group, records=records))
        if arrays:
            message.parcel.numbers.CopyFrom(self._announce(arrays))
        parcel = _Parcel(site, message, arrays)
        self._loop.call_soon_threadsafe(self._offer, number, parcel)
        return number, parcel.answer

    def withdraw(self, number: str) -> None:
        """Take back a parcel that was not answered; an answer after this is late."""
        self._loop.call_soon_threadsafe(self._drop, number)

    def revoke(self, site: str) -> None:
        """End all streams of a site, whatever they are doing."""
        self._loop.call_soon_threadsafe(self._cut, site)

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @staticmethod
    def _announce(arrays: Arrays) -> pb.Numbers:
        size = size_of(arrays)
        digest = bytes.fromhex(digest_arrays(arrays).removeprefix("sha256:"))
        inline = b"".join(chunks(arrays)) if size <= INLINE else b""
        return pb.Numbers(sha256=digest, size=size, inline=inline)

    # in the loop

    async def _listen(self, address: str, credentials: grpc.ServerCredentials) -> int:
        self._server = aio.server(options=_OPTIONS)
        service = _Service(self)
        rpc.add_LinkServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(Health(service.member), self._server)
        try:
            port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise InputError(f"{address}: cannot listen there: {error}") from None
        await self._server.start()
        return int(port)

    async def _close(self) -> None:
        for session in self._sessions.values():
            session.outgoing.put_nowait(None)
        if self._server is not None:
            await self._server.stop(0.2)

    def _offer(self, number: str, parcel: _Parcel) -> None:
        self._open[number] = parcel
        if parcel.site in self._sessions:
            self._sessions[parcel.site].outgoing.put_nowait(parcel.message)

    def _drop(self, number: str) -> None:
        parcel = self._open.pop(number, None)
        if parcel is not None and parcel.upload is not None:
            parcel.upload.path.unlink(missing_ok=True)

    def _cut(self, site: str) -> None:
        self._cuts[site] += 1
        if site in self._sessions:
            self._sessions[site].outgoing.put_nowait(None)

    def open_parcel(self, number: str, site: str) -> _Parcel | None:
        """Return a parcel that is open for ``site``."""
        parcel = self._open.get(number)
        return parcel if parcel is not None and parcel.site == site else None

    def offered(self, site: str, sha256: bytes) -> Arrays | None:
        """Return the arrays of a parcel that is open for ``site``, by their digest."""
        for parcel in self._open.values():
            if parcel.site == site and parcel.message.parcel.numbers.sha256 == sha256:
                return parcel.arrays
        return None

    def begin(self, session: _Session) -> None:
        """Make ``session`` the site's one stream, and offer what is open."""
        before = self._sessions.get(session.site)
        if before is not None:
            before.outgoing.put_nowait(None)
        self._sessions[session.site] = session
        self.tally.streams[session.site] += 1
        _LOG.info("a site attends", extra={"site": session.site})
        for parcel in self._open.values():
            if parcel.site == session.site:
                session.outgoing.put_nowait(parcel.message)
        with self._changed:
            self._changed.notify_all()

    def end(self, session: _Session) -> None:
        """Forget a stream that has ended."""
        if self._sessions.get(session.site) is session:
            del self._sessions[session.site]
            _LOG.info("a site is gone", extra={"site": session.site})
            with self._changed:
                self._changed.notify_all()

    def call(self, site: str) -> Call | None:
        """Count a call of a site until it is done; None if there are too many."""
        if self._calls[site] >= _MOST_CALLS:
            return None
        self._calls[site] += 1
        return Call(self, site, self._cuts[site])

    def is_cut(self, call: Call) -> bool:
        """Whether the site's streams were ended since the call began."""
        return self._cuts[call.site] != call.begun

    def done(self, call: Call) -> None:
        """Count a call as done."""
        self._calls[call.site] -= 1

    async def answered(self, site: str, answer: pb.Answer) -> None:
        """Take an answer.

        Raises:
            InputError: if its numbers are not what was brought.
        """
        parcel = self.open_parcel(answer.id, site)
        if parcel is None:
            self.tally.late[site] += 1
            _LOG.warning("an answer came late, or twice, or to nothing", extra={"site": site})
            return
        arrays = await self._numbers_of(parcel, answer)
        if self._open.pop(answer.id, None) is None:
            self.tally.late[site] += 1  # it was withdrawn, or answered on another stream, meanwhile
            return
        parcel.answer.set_result(Answered(answer.records, arrays))

    async def _numbers_of(self, parcel: _Parcel, answer: pb.Answer) -> Arrays:
        numbers = answer.numbers
        if not numbers.size:
            return {}
        named = "sha256:" + numbers.sha256.hex()
        if numbers.inline:
            intake = Intake(numbers.size)
            intake.take(numbers.inline)
            arrays, digest = intake.finish()
            if digest != named:
                raise InputError("an answer's numbers are not those of its digest")
            return arrays
        upload, parcel.upload = parcel.upload, None
        if upload is None or not upload.whole or upload.sha256 != numbers.sha256:
            if upload is not None:
                upload.path.unlink(missing_ok=True)
            raise InputError("an answer names numbers that were not brought")
        # What was hashed as it came is what the file holds: it is not read again before it is used.
        return await self._loop.run_in_executor(None, Spooled.take, upload.path, named)


async def _written(context: aio.ServicerContext[Any, Any], message: Any) -> bool:
    """Write a message; False if nobody is there any more."""
    try:
        await context.write(message)
    except Exception:  # gRPC has no public name for it
        return False
    return True


_NOT_A_MEMBER = grpc.StatusCode.UNAUTHENTICATED, "not a member"
_TOO_MANY = grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once"


class _Service(rpc.LinkServicer):
    """The four calls. Whoever is no member gets a status and nothing else."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def member(self, context: aio.ServicerContext[Any, Any]) -> Call:
        """Return the call of a member; anybody else's ends here."""
        found = context.auth_context().get("x509_pem_cert", [b""])[0]
        site = self._hub.identify(found)
        if site is None:
            await self._refuse(context, "not-a-member", _NOT_A_MEMBER)
        call = self._hub.call(site)
        if call is None:
            await self._refuse(context, "too-many-calls", _TOO_MANY, site)
        return call

    async def _refuse(
        self,
        context: aio.ServicerContext[Any, Any],
        reason: str,
        how: tuple[grpc.StatusCode, str],
        site: str = "",
    ) -> NoReturn:
        """Count why a call is refused, and end it."""
        self._hub.tally.refused[reason] += 1
        known = {"site": site} if site else {"peer": context.peer()}
        _LOG.warning("a call was refused", extra={"reason": reason, "why": how[1], **known})
        await context.abort(*how)
        raise AssertionError("abort raises")

    async def Attend(  # noqa: N802
        self, requests: AsyncIterator[pb.FromSite], context: aio.ServicerContext[Any, Any]
    ) -> None:
        with await self.member(context) as call:
            await self._greet(call.site, context)
            session = _Session(call.site)
            self._hub.begin(session)
            reader = asyncio.create_task(self._listen(session, context))
            try:
                while (message := await session.outgoing.get()) is not None:
                    if not await _written(context, message):
                        break
                    self._hub.tally.sent[call.site] += message.ByteSize()
            finally:
                self._hub.end(session)
                reader.cancel()
            if call.is_cut:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a member any more")
            if session.fault:
                how = grpc.StatusCode.INVALID_ARGUMENT, session.fault
                await self._refuse(context, "malformed", how, call.site)

    async def _greet(self, site: str, context: aio.ServicerContext[Any, Any]) -> None:
        try:
            first = await asyncio.wait_for(context.read(), _FIRST_WORD)
        except TimeoutError:
            first = None
        if not isinstance(first, pb.FromSite) or first.WhichOneof("what") != "hello":
            how = grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with Hello"
            await self._refuse(context, "malformed", how, site)
        if VERSION not in first.hello.versions:
            how = grpc.StatusCode.FAILED_PRECONDITION, f"this coordinator speaks version {VERSION}"
            await self._refuse(context, "version", how, site)
        await context.write(
            pb.ToSite(
                welcome=pb.Welcome(
                    version=VERSION,
                    coordinator=self._hub.coordinator,
                    most_numbers=self._hub.most_numbers,
                )
            )
        )

    async def _listen(self, session: _Session, context: aio.ServicerContext[Any, Any]) -> None:
        """Take answers until the site goes, or says what it must not."""
        try:
            while isinstance(word := await context.read(), pb.FromSite):
                self._hub.tally.received[session.site] += word.ByteSize()
                if word.WhichOneof("what") != "answer":
                    raise InputError("only answers follow Hello")
                await self._hub.answered(session.site, word.answer)
        except InputError as error:
            session.fault = str(error)
        finally:
            session.outgoing.put_nowait(None)

    async def Download(  # noqa: N802
        self, request: pb.Want, context: aio.ServicerContext[Any, Any]
    ) -> None:
        with await self.member(context) as call:
            arrays = self._hub.offered(call.site, request.sha256)
            if arrays is None:
                how = grpc.StatusCode.NOT_FOUND, "not offered to this site"
                await self._refuse(context, "not-offered", how, call.site)
            for part in chunks(arrays, request.offset):
                if call.is_cut:
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a member any more")
                if not await _written(context, pb.Chunk(data=part)):
                    return
                self._hub.tally.sent[call.site] += len(part)

    async def Status(  # noqa: N802
        self, request: pb.Want, context: aio.ServicerContext[Any, Any]
    ) -> pb.Held:
        with await self.member(context) as call:
            parcel = self._hub.open_parcel(request.parcel, call.site)
            upload = parcel.upload if parcel is not None else None
            same = upload is not None and upload.sha256 == request.sha256
            return pb.Held(offset=upload.held if upload is not None and same else 0)

    async def Upload(  # noqa: N802
        self, requests: AsyncIterator[pb.Piece], context: aio.ServicerContext[Any, Any]
    ) -> pb.Held:
        with await self.member(context) as call:
            upload: _Upload | None = None
            async for piece in requests:
                if call.is_cut:
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a member any more")
                if upload is None:
                    upload = await self._begin_upload(call.site, piece, context)
                async with upload.lock:
                    if len(piece.data) > min(2 * CHUNK, upload.size - upload.held):
                        how = grpc.StatusCode.OUT_OF_RANGE, "more than was announced"
                        await self._refuse(context, "malformed", how, call.site)
                    self._hub.tally.received[call.site] += len(piece.data)
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(None, upload.write, piece.data)
            return pb.Held(offset=upload.held if upload is not None else 0)

    async def _begin_upload(
        self, site: str, piece: pb.Piece, context: aio.ServicerContext[Any, Any]
    ) -> _Upload:
        parcel = self._hub.open_parcel(piece.parcel, site)
        if parcel is None:
            how = grpc.StatusCode.NOT_FOUND, "no such parcel is open"
            await self._refuse(context, "not-offered", how, site)
        if not 0 < piece.size <= self._hub.most_numbers or len(piece.sha256) != 32:
            how = grpc.StatusCode.RESOURCE_EXHAUSTED, "too long, or no digest"
            await self._refuse(context, "malformed", how, site)
        known = parcel.upload
        if known is None or (known.sha256, known.size) != (piece.sha256, piece.size):
            path = self._hub.spool / f"{piece.parcel}.part"
            path.unlink(missing_ok=True)
            known = parcel.upload = _Upload(path, piece.sha256, piece.size)
        if piece.offset != known.held:
            how = grpc.StatusCode.ABORTED, f"go on from byte {known.held}"
            await self._refuse(context, "out-of-step", how, site)
        return known
