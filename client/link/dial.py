"""The site's end of the link: it connects, receives requests, and sends answers.

::

    Dialer.run ── connect ── Attend ─┬─ request ── arrays (inline, kept, or Download) ── serve
                     ▲               └─ answer ── arrays (inline, or Upload) ── Answer
                     └─ cut: wait a little longer each time, connect again

The coordinator sends an unanswered request again on the next stream. If the answer was ready when
the stream broke, it is sent then, and ``serve`` is not called twice. A download or an upload
continues at the byte where it was cut. To stop a dialer, let it begin nothing more, wait until it
owes nothing, and close it.

A coordinator cannot make a site hold more than one set of its arrays, beside a few answers:
requests are handled one after the other, and no further one is read while many wait. A request
without arrays (:data:`BESIDE`) does not wait for an order that is being answered.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from privet import __version__
from privet.client.link.line import DialerCounters, Stub, data_in, ended, pieces_of
from privet.client.link.renewal import Renewal
from privet.common.errors import InputError, NoteError, PrivetError, RolledBackError, RunError
from privet.common.flat import Arrays, StreamDecoder, chunks, digest_arrays, size_of
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.beats import BEAT, PIECE, REPLACED, Patience, until_silent
from privet.common.link.identity import SERVER_NAME, require_tls_1_3
from privet.common.link.notices import notice_digest

VERSIONS = (1,)
INLINE = 1 << 16
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.2, 30.0
"""Seconds between two attempts to connect."""
_MIN_TWIN_PAUSE_S, _MAX_TWIN_PAUSE_S = 5.0, 300.0
"""The same where another process attends as this site."""
_REPLY_TIMEOUT_S = 30.0
"""Seconds within which a coordinator says a word that is due."""
_DOWNLOAD_STALL_TIMEOUT_S = 120.0
"""Seconds that a download may stand still."""
_CERTIFICATE_CHECK_INTERVAL_S = 3600.0
"""Seconds between two checks whether the certificate should be renewed."""
_MIN_RENEWAL_INTERVAL_S = 660.0
"""The same after one that failed: a coordinator gives a certificate every ten minutes at most."""
_HEAD_AGAIN = 15.0
"""Seconds after which a head is compared again if the log could not be read."""
_MAX_OPEN_PARCELS = 16
"""Requests that are read and not answered yet; further ones wait at the coordinator."""
_MAX_KEPT_ANSWERS, _MAX_KEPT_TENSORS = 64, 2
"""Answers that are kept in case they are asked for again; those with numbers are large."""
_OPTIONS = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
    # Nothing here is compressed; a compressed message is refused unread.
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
]
_HOPELESS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION)

_LOG = logging.getLogger("privet.dial")


@dataclass(frozen=True)
class LinkRequest:
    """A request of the coordinator, with its arrays."""

    kind: str
    group: str
    records: bytes
    arrays: Arrays


@dataclass(frozen=True)
class LinkResponse:
    """The answer to a request, with its arrays."""

    records: bytes
    arrays: Arrays


Serve = Callable[[LinkRequest], LinkResponse]
"""Answers a request; runs in a thread, one at a time beside one of :data:`BESIDE`."""
BESIDE = ("query", "query.show", "query.runs")
"""Kinds of requests that are answered while a trainer is at work, or hangs."""


class Dialer:
    """Keep a site connected to its coordinator.

    Args:
        address: ``host:port``, or a function that returns several, to be tried in their order.
        credentials: returns the site's TLS credentials and the authority that signed the
            coordinator's certificate; called at each connection.
        serve: answers requests.
        renewal: renews the site's certificate before it ends; None does not.
        most_numbers: longest flat stream that is downloaded, in bytes.
        on_state: called with ``connected`` and ``cut``.
        on_notice: stores the coordinator's notice, in a thread; with None the coordinator sends
            none.
        on_head: receives the newest head of the site's log that the coordinator saw, in a thread.
    """

    def __init__(
        self,
        address: str | Callable[[], Sequence[str]],
        credentials: Callable[[], grpc.ChannelCredentials],
        serve: Serve,
        *,
        renewal: Renewal | None = None,
        most_numbers: int = 16 << 30,
        on_state: Callable[[str], None] = lambda state: None,
        on_notice: Callable[[pb.Notice], None] | None = None,
        on_head: Callable[[pb.Head], None] | None = None,
    ) -> None:
        self._addresses = (lambda: [address]) if isinstance(address, str) else address
        self._left: list[str] = []
        self.address = self._addresses()[0]
        self._on_notice, self._on_head = on_notice, on_head
        self._renew_now = asyncio.Event()
        self._credentials = credentials
        self._serve = serve
        self._renewal = renewal
        self._most_numbers = most_numbers
        self._on_state = on_state
        self._answers: dict[str, asyncio.Task[LinkResponse | None]] = {}
        self._owed: set[str] = set()
        self._stopping = self._closed = False
        self._stream: Any = None
        self._kept: dict[bytes, Arrays] = {}
        self._partial: dict[bytes, StreamDecoder] = {}
        self._turn = asyncio.Lock()
        self._serving = asyncio.Lock()
        self._beside = asyncio.Lock()
        self._saying = asyncio.Lock()
        self._noting = asyncio.Lock()
        self._wait = _MIN_PAUSE_S
        self._away = ""
        self._silence = Patience()
        self._downloads = 0
        self._twin_wait = 0.0
        self._began = 0.0
        self.tally = DialerCounters()
        self.on_connected: Callable[[str], None] = lambda address: None
        """Called with the address at which the coordinator answered."""
        self.on_answer: Callable[[LinkRequest, LinkResponse, float], None] = (
            lambda asked, told, seconds: None
        )
        """Called with each answer that was made, and its duration in seconds."""

    @property
    def owes(self) -> bool:
        """Whether an order's answer is being made, or not sent yet; other answers do not count."""
        return bool(self._owed)

    def begin_nothing(self) -> None:
        """From now on, answer only requests that were begun, and questions beside orders."""
        self._stopping = True

    async def close(self) -> None:
        """End :meth:`run` once the coordinator has read everything that was sent."""
        self._closed = True
        if (stream := self._stream) is None:
            return
        with suppress(aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(_REPLY_TIMEOUT_S):
                async with self._saying:
                    await stream.done_writing()
                # To cancel a stream may lose what the other end has not read yet.
                await stream.code()

    async def run(self) -> None:
        """Connect, and connect again after each cut, until cancelled or closed.

        Raises:
            RunError: if the coordinator does not know this site, or speaks another version.
        """
        require_tls_1_3()
        task = asyncio.current_task()
        while not self._closed:
            # gRPC may say "cut" where the task was cancelled at the same moment.
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
            if not self._left:
                self._left = list(self._addresses())
            self.address = self._left.pop(0)
            try:
                async with aio.secure_channel(
                    self.address, self._credentials(), options=_OPTIONS
                ) as channel:
                    await self._attend(Stub(channel))
            except aio.AioRpcError as error:
                if self._closed:
                    return
                if error.code() in _HOPELESS:
                    raise RunError(f"{self.address}: {error.details()}") from None
                if (error.details() or "").startswith(REPLACED):
                    self._note_twin(error.details() or "")
                self._note_away(error.details() or str(error.code()))
            except (InputError, TimeoutError) as error:
                self._note_away(str(error) or "the coordinator did not answer in time")
            except asyncio.CancelledError:
                # gRPC raises it too where a stream was cut by ourselves, while answering.
                if task is None or task.cancelling():
                    raise
            finally:
                self._stream = None
                was_connected, self.tally.connected = self.tally.connected, False
            if was_connected:
                self._on_state("cut")
            # Spread at random: a coordinator that restarts cuts all its sites at the same moment.
            wait = _MIN_PAUSE_S if self._left else self._wait
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            if not self._left:
                self._wait = min(2 * self._wait, _MAX_PAUSE_S)

    def _explained(self, details: str) -> str:
        return details if self._renewal is None else self._renewal.explain(details)

    def _note_away(self, why: str) -> None:
        """Say once why there is no coordinator, and not at each call."""
        if self.tally.connected:
            said = self._explained(why)
            _LOG.warning("cut off; calling again", extra={"address": self.address, "why": said})
        elif why != self._away:
            text = "the coordinator does not answer; calling again until it does"
            _LOG.warning(text, extra={"address": self.address, "why": self._explained(why)})
        self._away = why

    def _note_twin(self, why: str) -> None:
        """Leave the place to another process of this site, for longer each time."""
        lasted = time.monotonic() - self._began
        # A place that was held for long was not fought over: the next pause is short again.
        before = self._twin_wait if lasted < 2 * _MAX_TWIN_PAUSE_S else 0.0
        self._twin_wait = self._wait = min(max(_MIN_TWIN_PAUSE_S, 2 * before), _MAX_TWIN_PAUSE_S)
        text = (
            "another process attends with this site's certificate: a second client, or a copy of "
            "this folder. Stop one of the two"
        )
        peer = why.removeprefix(REPLACED)
        _LOG.warning(text, extra={"peer": peer, "again_s": round(self._wait)})

    async def _attend(self, stub: rpc.LinkStub) -> None:
        stream = stub.Attend()
        hello = pb.Hello(
            versions=VERSIONS, software=f"privet {__version__}", beats=True,
            notices=self._on_notice is not None, heads=self._on_head is not None,
        )  # fmt: skip
        await stream.write(pb.FromSite(hello=hello))
        async with asyncio.timeout(_REPLY_TIMEOUT_S):
            first = await stream.read()
        if first is aio.EOF:
            raise await ended(stream)
        # gRPC gives None for a message that it cannot read.
        if first is None or not first.HasField("welcome") or first.welcome.version not in VERSIONS:
            raise InputError("the coordinator did not say which version it speaks")
        self.tally.connected = True
        self.tally.streams += 1
        self._stream = stream
        self._away, self._left = "", []
        _LOG.info("connected", extra={"address": self.address})
        self._on_state("connected")
        try:
            self.on_connected(self.address)
        except OSError as error:
            _LOG.warning("which address works cannot be kept", extra={"why": error})
        self._wait = _MIN_PAUSE_S
        self._began = time.monotonic()
        self._silence.is_back(self._began)
        sending: set[asyncio.Task[None]] = set()
        beside = [asyncio.create_task(self._renew(stub))]
        if first.welcome.beats:
            beside += [asyncio.create_task(one(stream)) for one in (self._beat, self._mind)]
        try:
            while (message := await stream.read()) is not aio.EOF:
                what = ""
                if message is not None:
                    self.tally.received += message.ByteSize()
                    what = message.WhichOneof("what")
                if what == "beat":
                    continue
                if what not in ("parcel", "notice", "head"):
                    raise InputError("only requests, heads and notices follow Welcome")
                if what == "head":
                    task = asyncio.create_task(self._take_head(message.head))
                elif what == "notice":
                    task = asyncio.create_task(self._keep_notice(stream, message.notice))
                else:
                    task = asyncio.create_task(self._answer(stub, stream, message.parcel))
                sending.add(task)
                task.add_done_callback(sending.discard)
                while len(sending) >= _MAX_OPEN_PARCELS:
                    await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            raise await ended(stream)
        finally:
            for task in (*beside, *sending):
                task.cancel()

    async def _keep_notice(self, stream: Any, notice: pb.Notice) -> None:
        """Keep a notice, and confirm it; an unacceptable one is only logged."""
        keep = self._on_notice
        if keep is None:
            return  # the site did not announce that it accepts one
        try:
            async with self._noting:
                await asyncio.to_thread(keep, notice)
        except (PrivetError, OSError) as error:
            why = error.with_traceback(None)
            _LOG.warning("the coordinator's notice is not accepted", extra={"why": why})
            return
        self._renew_now.set()
        message = pb.FromSite(noted=pb.Noted(sha256=notice_digest(notice)))
        with suppress(aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
            async with self._saying:
                await stream.write(message)

    async def _take_head(self, head: pb.Head) -> None:
        """Have a head compared with the log; a fault is logged, and the site acts on it."""
        if self._on_head is None:
            return  # the site did not announce that it accepts one
        while True:
            try:
                async with self._noting:  # one at a time, however many come
                    await asyncio.to_thread(self._on_head, head)
                return
            except (RolledBackError, NoteError) as error:
                why = error.with_traceback(None)
                _LOG.error("the coordinator saw another ledger of this site", extra={"why": why})
                return
            except (PrivetError, OSError) as error:
                # It comes once on a stream, and others wait for it.
                text = "what the coordinator saw of the ledger cannot be compared; tried again"
                _LOG.warning(text, extra={"why": error.with_traceback(None)})
            await asyncio.sleep(_HEAD_AGAIN)

    async def _beat(self, stream: Any) -> None:
        """Say every two seconds that this site is there."""
        beat = pb.FromSite(beat=pb.Beat())
        with suppress(aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(BEAT)
                async with self._saying:
                    await stream.write(beat)
                self.tally.sent += beat.ByteSize()

    async def _mind(self, stream: Any) -> None:
        """Cut a silent stream: it brings neither requests, nor heartbeats, nor arrays."""

        def limit() -> float:
            seconds = self._silence.seconds
            return max(PIECE, seconds) if self._downloads else seconds

        await until_silent(lambda: self.tally.received, limit)
        self._silence.gave_up(time.monotonic())
        self._note_away("nothing is heard of it")
        stream.cancel()

    async def _renew(self, stub: rpc.LinkStub) -> None:
        """Renew the certificate when it is due; the next connection uses it."""
        while self._renewal is not None:
            self._renew_now.clear()
            seconds = _CERTIFICATE_CHECK_INTERVAL_S
            try:
                if self._renewal.is_due():
                    asked = pb.Renewal(
                        request=self._renewal.ask(), authority=self._renewal.authority
                    )
                    answer = await stub.Renew(asked, timeout=_REPLY_TIMEOUT_S)
                    self._renewal.keep(answer.pem if answer is not None else b"")
                    _LOG.info("the certificate was renewed")
            except (aio.AioRpcError, PrivetError, OSError) as error:
                why = error.details() if isinstance(error, aio.AioRpcError) else error
                _LOG.warning("the certificate was not renewed; tried again", extra={"why": why})
                seconds = _MIN_RENEWAL_INTERVAL_S
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._renew_now.wait()

    async def _answer(self, stub: rpc.LinkStub, stream: Any, parcel: pb.Parcel) -> None:
        """Answer a request on this stream; if it breaks, the next stream brings it again."""
        try:
            told = await self._told(stub, parcel)
            numbers = await self._bring(stub, parcel.id, told.arrays)
            answer = pb.Answer(id=parcel.id, records=told.records, numbers=numbers)
            message = pb.FromSite(answer=answer)
            async with self._saying:  # two at once would end the stream
                await stream.write(message)
            self.tally.sent += message.ByteSize()
            self._owed.discard(parcel.id)
        except (aio.AioRpcError, TimeoutError) as error:
            why = error.details() if isinstance(error, aio.AioRpcError) else "it stood still"
            _LOG.info("cut while answering", extra={"why": why})
            stream.cancel()
        except (InputError, aio.UsageError, asyncio.InvalidStateError) as error:
            _LOG.warning("a request was not answered", extra={"why": error})
        except Exception:
            _LOG.exception("a request was not answered")

    async def _told(self, stub: rpc.LinkStub, parcel: pb.Parcel) -> LinkResponse:
        """Return the request's answer, made once however often it is requested."""
        beside = parcel.kind in BESIDE and not parcel.numbers.size
        task = self._answers.get(parcel.id)
        if task is None:
            begins, serves = (self._beside, None) if beside else (self._turn, self._serving)
            async with begins:
                # Again: an earlier stream may have begun this answer while this one waited.
                task = self._answers.get(parcel.id)
                if task is None:
                    if self._stopping and not beside:
                        raise InputError("the client is being stopped: nothing more is begun")
                    arrays = await self._fetch(stub, parcel.numbers)
                    asked = LinkRequest(parcel.kind, parcel.group, parcel.records, arrays)
                    if not beside:
                        self._owed.add(parcel.id)
                    task = self._answers[parcel.id] = asyncio.create_task(
                        self._make(parcel.id, asked, serves)
                    )
                    del asked, arrays
                    await asyncio.wait([task])
                    self._forget()
        # Shielded: a stream that is cut must not end an answer that the next one will send.
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
        for number in failed + large[:-_MAX_KEPT_TENSORS] + small[:-_MAX_KEPT_ANSWERS]:
            del self._answers[number]

    async def _make(
        self, number: str, asked: LinkRequest, turn: asyncio.Lock | None
    ) -> LinkResponse | None:
        # Also if the request's stream was cut meanwhile.
        async with turn or nullcontext():
            began = time.monotonic()
            told = await asyncio.to_thread(self._try, asked)
            if told is not None:
                self.on_answer(asked, told, time.monotonic() - began)
            else:
                self._owed.discard(number)
            return told

    def _try(self, asked: LinkRequest) -> LinkResponse | None:
        """Answer, or log why not: a stored error would keep the request in memory."""
        try:
            return self._serve(asked)
        except InputError as error:
            # Without its frames, which hold the request.
            _LOG.warning("a request could not be read", extra={"why": error.with_traceback(None)})
        except Exception:
            _LOG.exception("a request was not answered")
        return None

    async def _fetch(self, stub: rpc.LinkStub, numbers: pb.Numbers) -> Arrays:
        """Return the arrays of a request.

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
            intake = StreamDecoder(numbers.size)
            intake.take(numbers.inline)
        else:
            intake = self._partial.pop(numbers.sha256, StreamDecoder(numbers.size))
            self._partial.clear()
            if intake.size != numbers.size:
                intake = StreamDecoder(numbers.size)
            await self._download(stub, numbers.sha256, intake)
        arrays, digest = intake.finish()
        if digest != "sha256:" + numbers.sha256.hex():
            raise InputError("the numbers that came are not those of their digest")
        self._kept = {numbers.sha256: arrays}
        return arrays

    async def _download(self, stub: rpc.LinkStub, sha256: bytes, intake: StreamDecoder) -> None:
        call = stub.Download(pb.Want(sha256=sha256, offset=intake.taken))
        self._downloads += 1
        try:
            while True:
                async with asyncio.timeout(_DOWNLOAD_STALL_TIMEOUT_S):
                    raw = await call.read()
                if raw is aio.EOF:
                    break
                data = data_in(raw)
                intake.take(data)
                self.tally.received += len(data)
            if await call.code() is not grpc.StatusCode.OK:
                raise await ended(call)
        except (aio.AioRpcError, asyncio.CancelledError, TimeoutError):
            self._partial = {sha256: intake}
            raise
        finally:
            self._downloads -= 1
            call.cancel()

    async def _bring(self, stub: rpc.LinkStub, number: str, arrays: Arrays) -> pb.Numbers | None:
        """Upload the arrays of an answer, from the byte where an earlier stream was cut."""
        if not arrays:
            return None
        size = size_of(arrays)
        digest = await asyncio.to_thread(digest_arrays, arrays)
        sha256 = bytes.fromhex(digest.removeprefix("sha256:"))
        if size <= INLINE:
            return pb.Numbers(sha256=sha256, size=size, inline=b"".join(chunks(arrays)))
        # The coordinator decides where to continue: only it knows what an earlier stream left.
        held = await stub.Status(pb.Want(sha256=sha256, parcel=number), timeout=_REPLY_TIMEOUT_S)
        if held is None:
            raise InputError("the coordinator does not say what it holds")
        if held.offset < size:
            await stub.Upload(pieces_of(number, sha256, size, held.offset, arrays, self.tally))
        return pb.Numbers(sha256=sha256, size=size)
