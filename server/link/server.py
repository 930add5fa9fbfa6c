"""The coordinator's end of the link: it sends requests and receives answers over mutual TLS.

::

    Grid ── LinkServer.post(site, request) ──► Future of the answer
             │  one asyncio loop in a thread of its own
             ├── Attend     a stream for each site: requests, answers
             ├── Download   the model, from any byte; one copy in memory for all sites
             └── Upload     a release, into a spool file, from the byte where it was cut

A site may disconnect and return. A request stays open until it is answered or withdrawn, and is
sent again on each new stream of its site. Every call is checked against the members; a site that is
revoked loses its streams at once. A request is answered once: an answer that arrives after the
request was withdrawn is counted as late and never used.

Both ends send heartbeats (:mod:`privet.common.link.beats`): a site that sends nothing for some
seconds counts as gone, even if its connection stands.

On the same port, the standard health service answers members and
:mod:`privet.server.research.service` answers researchers. The port serves nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from privet.common.errors import InputError, PrivetError
from privet.common.flat import CHUNK, Arrays, StreamDecoder, chunks, digest_arrays, size_of
from privet.common.link import link_pb2 as pb
from privet.common.link.beats import PIECE, REPLACED, Patience
from privet.common.link.identity import require_tls_1_3
from privet.common.link.notices import notice_digest
from privet.server.link.calls import STALL_TIMEOUT_S, RpcAbort, Serve, listen, make_server, stop
from privet.server.link.parcel import LateReply, LinkReply, PendingRequest
from privet.server.link.service import Service, Session
from privet.server.link.spool import Upload, clear
from privet.server.link.tally import LinkCounters
from privet.server.link.twins import Twins

INLINE = 1 << 16
"""Shorter streams travel inside their message."""
_MAX_RECORD_BYTES = 4 << 20
_MAX_CALLS = 16
_MAX_WITHDRAWN = 4_096
_MIN_RENEWAL_INTERVAL_S = 600.0
"""Seconds between two certificates of one site."""
_MIN_ANSWER_LIMIT_BYTES = 64 << 20
"""Bytes that an answer may have in any case; else four times those of its request."""
_OPTIONS = [
    # Each costs a stranger a TCP connection, and us a descriptor.
    ("grpc.max_allowed_incoming_connections", 2_000),
    ("grpc.max_receive_message_length", _MAX_RECORD_BYTES + CHUNK),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),
]

_LOG = logging.getLogger("privet.link")

Identify = Callable[[bytes], str | None]
"""Returns the member to which a client certificate (PEM) belongs now, or None."""
Renew = Callable[[str, bytes, bytes, str], bytes]
"""Return a further certificate for a member, by its request and the one it shows, all as PEM, and
by the fingerprint of the newest authority that it trusts."""


@dataclass(frozen=True)
class Call:
    """A running call of a site; use it as a context manager."""

    link_server: LinkServer
    site: str
    begun: int
    shown: bytes = b""

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.link_server.done(self)

    @property
    def is_cut(self) -> bool:
        """Whether the site was revoked after the call began."""
        return self.link_server.is_cut(self)


class LinkServer:
    """Send requests to sites and receive their answers.

    Public methods above the mark "in the loop" may be called from any thread; those below it run in
    the server's event loop.

    Args:
        coordinator: its name, which is sent to sites.
        identify: returns the member of a certificate, or None; called on every call.
        spool: folder for releases that are being uploaded.
        renew: issues further certificates to members; None issues none.
        newest_head: returns the newest head of a member's log that was cosigned here, or "".
        beside: makes the other services of the port, which check their callers themselves.
        most_numbers: longest flat stream that is accepted, in bytes.
        patience: seconds that a call may make no progress.

    Example::

        link_server = LinkServer("coordinator", members.identify, folder / "spool")
        port = link_server.start("127.0.0.1:0", credentials)
        number, answer = link_server.post("Hospital 1", "query", "", b"{}", {})
        print(answer.result(timeout=10).records)
        link_server.stop()
    """

    def __init__(
        self,
        coordinator: str,
        identify: Identify,
        spool: Path,
        *,
        renew: Renew | None = None,
        newest_head: Callable[[str], str] = lambda site: "",
        beside: Callable[[LinkServer], Mapping[str, Mapping[str, Serve]]] | None = None,
        most_numbers: int = 16 << 30,
        patience: float = STALL_TIMEOUT_S,
    ) -> None:
        self.coordinator = coordinator
        self.identify = identify
        self.spool = spool
        self.renew: Renew = renew or _renew_nothing
        self.most_numbers = most_numbers
        self._newest_head = newest_head
        self._beside = beside
        self.tally = LinkCounters()
        self.twins = Twins()
        self._silence: dict[str, Patience] = {}
        self._patience = patience
        # A site keeps its answers by request id. A restarted coordinator counts from 1 again, and
        # must not get the answers to the requests of its earlier process.
        self._life = secrets.token_hex(8)
        self._numbers = self._uploads = 0
        self._open: dict[str, PendingRequest] = {}
        self._withdrawn: dict[str, PendingRequest] = {}
        self._sessions: dict[str, Session] = {}
        self.notice: pb.Notice | None = None
        self.noted: dict[str, bytes] = {}
        """By site, the digest of the notice that it has kept; compare :attr:`notice_digest`."""
        self._calls: Counter[str] = Counter()
        self._cuts: Counter[str] = Counter()
        self._renewed: dict[str, float] = {}
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._server: aio.Server | None = None
        self._changed = threading.Condition()

    # from other threads

    def start(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Clear the spool, start the thread, and listen.

        Args:
            address: ``host:port``; port 0 takes a free one.
            credentials: TLS credentials that require a certificate of the caller.

        Returns:
            The port.

        Raises:
            InputError: if the server cannot listen on the address.
            RunError: if this process would speak TLS 1.2.
        """
        require_tls_1_3()
        clear(self.spool)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hub", daemon=True)
        self._thread.start()
        port: int = self._do(self._listen(address, credentials))
        return port

    def stop(self) -> None:
        """End all streams and the thread; open requests stay unanswered."""
        if self._thread is not None and self._thread.is_alive():
            self._do(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def late(self) -> Counter[str]:
        """Number of late answers, by site."""
        return self.tally.late

    def open_parcels(self) -> int:
        """Return the number of open requests."""
        return len(self._open)

    def present(self) -> list[str]:
        """Return the names of the connected sites."""
        return list(self._sessions)

    def wait_for(self, sites: set[str], timeout: float) -> set[str]:
        """Wait until all of several sites are connected.

        Args:
            sites: names to wait for.
            timeout: longest wait in seconds.

        Returns:
            Those of ``sites`` that are connected when the wait ends.
        """
        with self._changed:
            self._changed.wait_for(lambda: sites <= set(self._sessions), timeout)
            return sites & set(self._sessions)

    def wait_for_any(self, sites: set[str], timeout: float) -> set[str]:
        """Wait until one of several sites is connected.

        Args:
            sites: names to wait for.
            timeout: longest wait in seconds.

        Returns:
            Those of ``sites`` that are connected when the wait ends.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(sites & set(self._sessions)), timeout)
            return sites & set(self._sessions)

    def post(
        self, site: str, kind: str, group: str, records: bytes, arrays: Arrays
    ) -> tuple[str, Future[LinkReply]]:
        """Send a request to a site, now or when it connects.

        Args:
            site: name of the member.
            kind: of the request: Flower's message type, or a kind of
                :mod:`privet.common.link.offer`.
            group: the round's number as text, or "".
            records: the request without its arrays, encoded.
            arrays: the model beside the request; empty for none. The caller must not change them
                while the request is open.

        Returns:
            The request's id, and a future of the answer. It is never set if the request is
            withdrawn and no late answer comes.
        """
        self._numbers += 1
        number = f"{self._life}-{self._numbers}"
        message = pb.ToSite(parcel=pb.Parcel(id=number, kind=kind, group=group, records=records))
        if arrays:
            message.parcel.numbers.CopyFrom(self._announce(arrays))
        most = min(self.most_numbers, max(_MIN_ANSWER_LIMIT_BYTES, 4 * message.parcel.numbers.size))
        parcel = PendingRequest(site, message, arrays, most)
        self._loop.call_soon_threadsafe(self._offer, number, parcel)
        return number, parcel.answer

    def withdraw(self, number: str) -> None:
        """Withdraw a request that was not answered.

        An answer that arrives later is counted as late. For the last few requests, the future of
        the answer then raises :class:`LateReply`.
        """
        self._loop.call_soon_threadsafe(self._drop, number)

    def revoke(self, site: str) -> None:
        """End all streams of a site at once."""
        self._loop.call_soon_threadsafe(self._cut, site)

    def tell(self, notice: pb.Notice) -> None:
        """Send all sites a notice, now and when they connect; the same notice is sent once."""
        if self.notice != notice:
            self.notice = notice  # at once: no site has kept this one yet
            self._loop.call_soon_threadsafe(self._tell)

    @property
    def notice_digest(self) -> bytes:
        """The digest by which a site confirms that it has kept the notice."""
        return b"" if self.notice is None else notice_digest(self.notice)

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @staticmethod
    def _announce(arrays: Arrays) -> pb.Numbers:
        size = size_of(arrays)
        digest = bytes.fromhex(digest_arrays(arrays).removeprefix("sha256:"))
        numbers = pb.Numbers(sha256=digest, size=size)
        if size <= INLINE:
            numbers.inline = b"".join(chunks(arrays))
        return numbers

    # in the loop

    async def _listen(self, address: str, credentials: grpc.ServerCredentials) -> int:
        services = {**Service(self, self._patience).services}
        if self._beside is not None:
            services |= {name: dict(one) for name, one in self._beside(self).items()}
        self._server = make_server(services, _OPTIONS)
        return await listen(self._server, address, credentials)

    async def _close(self) -> None:
        for session in self._sessions.values():
            session.outgoing.put_nowait(None)
        if self._server is not None:
            await stop(self._server, 0.2)

    def _tell(self) -> None:
        for session in self._sessions.values():
            self._show_notice(session)

    def _show_notice(self, session: Session) -> None:
        if self.notice is not None and session.notices:
            session.outgoing.put_nowait(pb.ToSite(notice=self.notice))

    def _show_head(self, session: Session) -> None:
        if not session.heads:
            return
        try:
            note = self._newest_head(session.site)
        except PrivetError as error:
            # Nothing is sent: the site waits, where it is of several coordinators.
            more = {"site": session.site, "why": error}
            _LOG.error("what was seen of a site's log cannot be read", extra=more)
            return
        session.outgoing.put_nowait(pb.ToSite(head=pb.Head(note=note.encode())))

    def _offer(self, number: str, parcel: PendingRequest) -> None:
        self._open[number] = parcel
        if parcel.site in self._sessions:
            self._sessions[parcel.site].outgoing.put_nowait(parcel.message)

    def _drop(self, number: str) -> None:
        parcel = self._open.pop(number, None)
        if parcel is None:
            return
        if parcel.upload is not None:
            parcel.upload.discard()
        parcel.arrays = {}
        # The grid learns from a late answer that its site is free again; it needs no model for it.
        self._withdrawn[number] = parcel
        while len(self._withdrawn) > _MAX_WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]

    def _cut(self, site: str) -> None:
        self._cuts[site] += 1
        if site in self._sessions:
            self._sessions[site].outgoing.put_nowait(None)

    def open_parcel(self, number: str, site: str) -> PendingRequest | None:
        """Return an open request.

        Args:
            number: the request's id.
            site: that answers it.

        Returns:
            The request; None if there is none of this id for this site.
        """
        parcel = self._open.get(number)
        return parcel if parcel is not None and parcel.site == site else None

    def offered(self, site: str, sha256: bytes) -> Arrays | None:
        """Return the arrays of an open request by their digest.

        Args:
            site: that downloads them.
            sha256: digest of the arrays' flat stream, 32 bytes.

        Returns:
            The arrays; None if no open request of this site has them. A site thus cannot download
            what was not sent to it.
        """
        for parcel in self._open.values():
            if parcel.site == site and parcel.message.parcel.numbers.sha256 == sha256:
                return parcel.arrays
        return None

    def begin(self, session: Session) -> None:
        """Make ``session`` the site's only stream, and send the open requests."""
        before = self._sessions.get(session.site)
        if before is not None:
            text = REPLACED + session.peer
            # No refusal that counts: mostly it is the same site, whose old connection is dead.
            before.fault = RpcAbort(grpc.StatusCode.ABORTED, text, reason="")
            before.outgoing.put_nowait(None)
            self.twins.note(session.site, before.peer, session.peer)
        self._sessions[session.site] = session
        self.tally.streams[session.site] += 1
        self._silence_of(session.site).is_back(time.monotonic())
        _LOG.info("a site attends", extra={"site": session.site, "peer": session.peer})
        self._show_head(session)
        self._show_notice(session)
        for parcel in self._open.values():
            if parcel.site == session.site:
                session.outgoing.put_nowait(parcel.message)
        with self._changed:
            self._changed.notify_all()

    def end(self, session: Session) -> None:
        """Forget a stream that has ended."""
        if self._sessions.get(session.site) is session:
            del self._sessions[session.site]
            _LOG.info("a site is gone", extra={"site": session.site})
            with self._changed:
                self._changed.notify_all()

    def give_up(self, session: Session) -> None:
        """End and forget a stream whose site has fallen silent."""
        if self._sessions.get(session.site) is session:
            text = "nothing is heard of a site; it counts as gone"
            _LOG.warning(text, extra={"site": session.site, "peer": session.peer})
            self._silence_of(session.site).gave_up(time.monotonic())
        self.end(session)
        session.outgoing.put_nowait(None)

    def silence(self, site: str) -> float:
        """Return how many seconds a site may be silent before it counts as gone."""
        seconds = self._silence_of(site).seconds
        coming = any(
            one.announced and (one.upload is None or not one.upload.whole)
            for one in self._open.values()
            if one.site == site
        )
        return max(PIECE, seconds) if coming else seconds

    def _silence_of(self, site: str) -> Patience:
        return self._silence.setdefault(site, Patience())

    def call(self, site: str, shown: bytes = b"") -> Call | None:
        """Count a call of a site until it is done; None if there are too many.

        Args:
            site: that calls.
            shown: the certificate that the site presents, as PEM.
        """
        if self._calls[site] >= _MAX_CALLS:
            return None
        self._calls[site] += 1
        return Call(self, site, self._cuts[site], shown)

    def is_cut(self, call: Call) -> bool:
        """Whether the site's streams were ended since the call began."""
        # A counter, no flag: a revoked site may be invited again while an old call still runs.
        return self._cuts[call.site] != call.begun

    def done(self, call: Call) -> None:
        """Count a call as done."""
        self._calls[call.site] -= 1

    def may_renew(self, site: str) -> bool:
        """Note that a site requests a certificate; return False if it did so a short while ago."""
        now = time.monotonic()
        if now - self._renewed.get(site, -_MIN_RENEWAL_INTERVAL_S) < _MIN_RENEWAL_INTERVAL_S:
            return False
        self._renewed[site] = now
        return True

    def upload(self, parcel: PendingRequest, sha256: bytes, size: int) -> Upload:
        """Return the upload of a request's answer; a different stream replaces the one before.

        Args:
            parcel: the open request.
            sha256: digest of the whole stream, 32 bytes, as the site announced it.
            size: of the whole stream in bytes, as the site announced it.

        Returns:
            The upload, which holds the bytes that arrived so far.
        """
        known = parcel.upload
        if known is None or (known.sha256, known.size) != (sha256, size):
            if known is not None:
                known.discard()
            # A name of its own: a thread may still be writing to the one before.
            self._uploads += 1
            path = self.spool / f"{parcel.message.parcel.id}-{self._uploads}.part"
            known = parcel.upload = Upload(path, sha256, size)
        return known

    async def answered(self, site: str, answer: pb.Answer) -> bool:
        """Accept an answer to a request.

        Args:
            site: that answers.
            answer: its message; its arrays are inline, or were uploaded before.

        Returns:
            Whether the answer was used. It is not if it is late, or answers no request.

        Raises:
            InputError: if its arrays are missing, or do not match what it announced.
        """
        parcel = self.open_parcel(answer.id, site)
        if parcel is None:
            self._note_late(site, answer.id)
            return False
        arrays = await self._numbers_of(parcel, answer)
        if self._open.pop(answer.id, None) is None:
            # It was withdrawn, or answered on another stream, meanwhile.
            self._note_late(site, answer.id)
            return False
        if parcel.upload is not None:
            parcel.upload.discard()
        parcel.answer.set_result(LinkReply(answer.records, arrays))
        return True

    def _note_late(self, site: str, number: str) -> None:
        self.tally.late[site] += 1
        parcel = self._withdrawn.get(number)
        if parcel is not None and parcel.site == site:
            del self._withdrawn[number]
            parcel.answer.set_exception(LateReply())

    async def _numbers_of(self, parcel: PendingRequest, answer: pb.Answer) -> Arrays:
        numbers = answer.numbers
        if not numbers.size:
            return {}
        if numbers.inline:
            if len(numbers.inline) != numbers.size:
                raise InputError("an answer's numbers have another length than announced")
            intake = StreamDecoder(numbers.size)
            intake.take(numbers.inline)
            arrays, digest = intake.finish()
            if digest != "sha256:" + numbers.sha256.hex():
                raise InputError("an answer's numbers are not those of its digest")
            return arrays
        # Taken out of the request: where that is withdrawn meanwhile, the file is still being read.
        upload, parcel.upload = parcel.upload, None
        if upload is None or not upload.whole or upload.sha256 != numbers.sha256:
            if upload is not None:
                upload.discard()
            raise InputError("an answer names numbers that were not brought")
        try:
            return await asyncio.to_thread(upload.read)
        finally:
            upload.discard()  # also where the stream was cut before it was read


def _renew_nothing(site: str, request: bytes, shown: bytes, authority: str) -> bytes:
    del request, shown, authority
    raise InputError(f"site '{site}' gets its certificates another way")
