"""Serve the five calls of the link at the coordinator.

A caller that is no member gets one and the same status, whatever it calls, and nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from grpc import StatusCode

from privet.common.errors import InputError, PrivetError
from privet.common.flat import CHUNK, chunks
from privet.common.link import link_pb2 as pb
from privet.common.link.address import show_peer
from privet.common.link.beats import BEAT, until_silent
from privet.common.link.pieces import CHUNK as CHUNK_DATA
from privet.common.link.pieces import PIECE as PIECE_DATA
from privet.common.link.pieces import data_of, head
from privet.server.link.calls import STALL_TIMEOUT_S, Context, MessageStream, RpcAbort, Serve
from privet.server.link.health import HEALTH, check, watch

if TYPE_CHECKING:
    from privet.server.link.server import Call, LinkServer
    from privet.server.link.spool import Upload

NAME = "privet.link.v1.Link"
VERSION = 1
FIRST_WORD = 10.0
"""Seconds that a new call has to say what it wants."""
_MAX_REQUEST_BYTES = 8 << 10
_MAX_UNASKED_ANSWERS = 100
"""Answers to nothing that one stream may bring."""

_LOG = logging.getLogger("privet.link")


class Session:
    """One stream of a site."""

    def __init__(self, site: str, peer: str = "") -> None:
        self.site, self.peer = site, peer
        self.notices = False
        """Whether the site accepts a notice."""
        self.heads = False
        """Whether it accepts the newest head of its log that was seen here."""
        self.outgoing: asyncio.Queue[pb.ToSite | None] = asyncio.Queue()
        self.useless = 0
        self.fault: RpcAbort | None = None


class Service:
    """Serve the calls of a link server.

    Args:
        link_server: the link server.
        patience: seconds that a call may make no progress.
    """

    def __init__(self, link_server: LinkServer, patience: float = STALL_TIMEOUT_S) -> None:
        self._link_server = link_server
        self._patience = patience

    @property
    def services(self) -> dict[str, dict[str, Serve]]:
        """The link and gRPC's health service, each with its methods by name."""
        health = {"Check": check, "Watch": watch}
        return {
            NAME: self.methods,
            HEALTH: {name: self._for_members(call) for name, call in health.items()},
        }

    @property
    def methods(self) -> dict[str, Serve]:
        """The five calls of the link, by name."""
        calls = {
            "Attend": self._attend,
            "Download": self._download,
            "Status": self._status,
            "Upload": self._upload,
            "Renew": self._renew,
        }
        return {name: self._for_members(call) for name, call in calls.items()}

    def _for_members(self, serve: Callable[[Call, Context], Awaitable[None]]) -> Serve:
        async def served(context: Context) -> None:
            known = {"peer": show_peer(context.peer())}
            try:
                with self._member(context) as call:
                    known = {"site": call.site}
                    await serve(call, context)
                    # A site that was revoked meanwhile learns it now, not at its next call.
                    self._require_member(call)
            except RpcAbort as fault:
                if not fault.reason:
                    raise
                self._link_server.tally.refused[fault.reason] += 1
                more = {"reason": fault.reason, "why": str(fault), **known}
                _LOG.warning("a call was refused", extra=more)
                raise

        return served

    def _member(self, context: Context) -> Call:
        found = context.auth_context().get("x509_pem_cert", [b""])[0]
        try:
            site = self._link_server.identify(found)
        except PrivetError as error:
            _LOG.error("the members cannot be read", extra={"why": error})
            raise RpcAbort(StatusCode.UNAVAILABLE, "come again later", "unread") from error
        if site is None:
            raise RpcAbort(StatusCode.UNAUTHENTICATED, "not a member", "not-a-member")
        call = self._link_server.call(site, found)
        if call is None:
            status = StatusCode.RESOURCE_EXHAUSTED
            raise RpcAbort(status, "too many calls at once", "too-many-calls")
        return call

    @staticmethod
    def _require_member(call: Call) -> None:
        if call.is_cut:
            raise RpcAbort(StatusCode.UNAUTHENTICATED, "not a member any more", "not-a-member")

    async def _attend(self, call: Call, context: Context) -> None:
        line = MessageStream(context, pb.FromSite)
        hello = await self._greet(line)
        session = Session(call.site, context.peer())
        session.notices, session.heads = hello.notices, hello.heads
        self._link_server.begin(session)
        leave = functools.partial(self._link_server.end, session)
        beside = [asyncio.create_task(self._listen(session, line))]
        if hello.beats:
            beside += [asyncio.create_task(one(session)) for one in (self._beat, self._mind)]
        try:
            while (message := await session.outgoing.get()) is not None:
                await line.write(message, self._patience, leave)
                self._link_server.tally.sent[call.site] += message.ByteSize()
        finally:
            leave()
            for task in beside:
                task.cancel()
        if session.fault is not None:
            raise session.fault

    @staticmethod
    async def _beat(session: Session) -> None:
        while True:
            await asyncio.sleep(BEAT)
            if session.outgoing.empty():
                session.outgoing.put_nowait(pb.ToSite(beat=pb.Beat()))

    async def _mind(self, session: Session) -> None:
        """End a silent stream: it brings neither answers, nor heartbeats, nor arrays."""
        site, received = session.site, self._link_server.tally.received
        await until_silent(lambda: received[site], lambda: self._link_server.silence(site))
        self._link_server.give_up(session)

    async def _greet(self, line: MessageStream[pb.FromSite]) -> pb.Hello:
        first = await line.one(FIRST_WORD)
        if first.WhichOneof("what") != "hello":
            raise RpcAbort(StatusCode.INVALID_ARGUMENT, "a stream begins with Hello")
        if VERSION not in first.hello.versions:
            status = StatusCode.FAILED_PRECONDITION
            raise RpcAbort(status, f"this coordinator speaks version {VERSION}", "version")
        welcome = pb.Welcome(
            version=VERSION,
            coordinator=self._link_server.coordinator,
            most_numbers=self._link_server.most_numbers,
            beats=first.hello.beats,
        )
        await line.write(pb.ToSite(welcome=welcome), self._patience)
        return first.hello

    async def _listen(self, session: Session, line: MessageStream[pb.FromSite]) -> None:
        """Receive answers until the site goes, or breaks the protocol."""
        try:
            while (word := await line.read()) is not None:
                self._link_server.tally.received[session.site] += word.ByteSize()
                if word.HasField("beat"):
                    continue
                if word.HasField("noted"):
                    self._link_server.noted[session.site] = word.noted.sha256[:64]
                    continue
                if word.WhichOneof("what") != "answer":
                    raise InputError("only answers follow Hello")
                if not await self._link_server.answered(session.site, word.answer):
                    session.useless += 1
                if session.useless > _MAX_UNASKED_ANSWERS:
                    raise InputError("too many answers came late, or twice, or to nothing")
        except InputError as error:
            session.fault = RpcAbort(StatusCode.INVALID_ARGUMENT, str(error))
        except RpcAbort as fault:
            session.fault = fault
        finally:
            if session.useless:
                more = {"site": session.site, "count": session.useless}
                _LOG.warning("answers came late, or twice, or to nothing", extra=more)
            session.outgoing.put_nowait(None)

    async def _download(self, call: Call, context: Context) -> None:
        line = MessageStream(context, pb.Want)
        want = await line.one(FIRST_WORD)
        arrays = self._link_server.offered(call.site, want.sha256)
        if arrays is None:
            raise RpcAbort(StatusCode.NOT_FOUND, "not offered to this site", "not-offered")
        parts = chunks(arrays, want.offset, head=functools.partial(head, CHUNK_DATA))
        del arrays  # a call that stalls keeps no model
        for part in parts:
            self._require_member(call)
            await line.write(part, self._patience, parts.close)
            self._link_server.tally.sent[call.site] += len(part)

    async def _status(self, call: Call, context: Context) -> None:
        line = MessageStream(context, pb.Want)
        want = await line.one(FIRST_WORD)
        parcel = self._link_server.open_parcel(want.parcel, call.site)
        held = 0
        if parcel is not None:
            parcel.announced = True
            if parcel.upload is not None and parcel.upload.sha256 == want.sha256:
                held = parcel.upload.held
        await line.write(pb.Held(offset=held), self._patience)

    async def _upload(self, call: Call, context: Context) -> None:
        line = MessageStream(context, pb.Piece)
        first = await line.one(FIRST_WORD)
        upload = self._begin_upload(call.site, first)
        data: bytes | memoryview = first.data
        while True:
            self._require_member(call)
            await self._keep(call.site, upload, data)
            self._link_server.tally.received[call.site] += len(data)
            raw = await line.raw(self._patience)
            if raw is None:
                break
            quick = data_of(PIECE_DATA, raw)
            data = line.parse(raw).data if quick is None else quick
        await line.write(pb.Held(offset=upload.held), self._patience)

    def _begin_upload(self, site: str, piece: pb.Piece) -> Upload:
        parcel = self._link_server.open_parcel(piece.parcel, site)
        if parcel is None:
            raise RpcAbort(StatusCode.NOT_FOUND, "no such request is open", "not-offered")
        if not 0 < piece.size <= parcel.most or len(piece.sha256) != 32:
            raise RpcAbort(StatusCode.RESOURCE_EXHAUSTED, "too long, or no digest")
        upload = self._link_server.upload(parcel, piece.sha256, piece.size)
        # What Status said may be old by now: another call of the site may have brought more.
        if piece.offset != upload.held:
            words = f"continue from byte {upload.held}"
            raise RpcAbort(StatusCode.ABORTED, words, "out-of-step")
        return upload

    async def _renew(self, call: Call, context: Context) -> None:
        line = MessageStream(context, pb.Renewal)
        asked = await line.one(FIRST_WORD)
        if len(asked.request) > _MAX_REQUEST_BYTES:
            raise RpcAbort(StatusCode.INVALID_ARGUMENT, "not a certificate request")
        if not self._link_server.may_renew(call.site):
            status = StatusCode.RESOURCE_EXHAUSTED
            raise RpcAbort(status, "a certificate was given a short while ago", "too-many-calls")
        try:
            pem = await asyncio.to_thread(
                self._link_server.renew, call.site, asked.request, call.shown, asked.authority[:128]
            )
        except InputError as error:
            raise RpcAbort(StatusCode.INVALID_ARGUMENT, str(error)) from error
        except (PrivetError, OSError) as error:
            _LOG.error("no certificate can be given", extra={"site": call.site, "why": error})
            raise RpcAbort(StatusCode.UNAVAILABLE, "come again later", "unread") from error
        _LOG.info("a certificate was renewed", extra={"site": call.site})
        await line.write(pb.Certificate(pem=pem), self._patience)

    @staticmethod
    async def _keep(site: str, upload: Upload, data: Any) -> None:
        async with upload.turn:
            if len(data) > min(2 * CHUNK, upload.size - upload.held):
                raise RpcAbort(StatusCode.OUT_OF_RANGE, "more than was announced")
            try:
                await asyncio.to_thread(upload.write, data)
            except InputError as error:
                raise RpcAbort(StatusCode.NOT_FOUND, str(error)) from error
            except OSError as error:
                _LOG.error("what a site brings cannot be kept", extra={"site": site, "why": error})
                raise RpcAbort(StatusCode.UNAVAILABLE, "cannot be kept now", "disk") from error
