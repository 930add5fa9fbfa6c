"""Let researchers submit, watch, cancel, resume and fetch their own runs over the link.

The service shares the port of the link with the service of the sites. Each call is checked against
the researchers, and continues only while its caller is one: a site's certificate is not valid here,
and a researcher's is not valid there. A call orders and spends nothing. It queues a run, as `privet
server submit` does, and each site decides by its own policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import StatusCode

from privet.common.canonical import hash_of_file
from privet.common.errors import BudgetExceededError, InputError, PrivetError
from privet.common.link import link_pb2 as pb
from privet.common.link.address import show_peer
from privet.common.link.pieces import CHUNK as CHUNK_DATA
from privet.common.link.pieces import head
from privet.server import queue
from privet.server.evidence.journal import FILE as JOURNAL
from privet.server.link.calls import STALL_TIMEOUT_S, Context, MessageStream, RpcAbort, Serve
from privet.server.membership.registry import MemberRegistry
from privet.server.membership.researchers import Researchers
from privet.server.queue import OPEN, Run
from privet.server.research.proposal import TIMEOUT_S, read_proposal

NAME = "privet.link.v1.Research"
CHUNK = 1 << 20
MAX_CALLS = 4
"""Calls of one researcher at once."""
MAX_PER_MINUTE = {"Submit": 6, "Fetch": 600}
OTHERS_PER_MINUTE = 60
MAX_OPEN_RUNS = 32
"""Runs of one researcher that wait or train."""
MAX_PRICED = 2
"""Plans that are priced at once, of all researchers; of one researcher it is one."""
FIRST_WORD_S = 10.0
_FILES = (
    "plan.json", "status.json", "roster.json", "roster-fingerprints.json",
    "model/model.safetensors", "model/snapshot.safetensors",
)  # fmt: skip
_FIGURES = re.compile(r"round-\d{1,9}\.json")
_COPIED_JOURNAL = ".journal-to-fetch.db"

_LOG = logging.getLogger("privet.research")

Answer = dict[str, Any]
T = TypeVar("T")


class ResearchService:
    """The gRPC service of researchers.

    Args:
        federation: of the coordinator.
        present: returns the names of the connected sites.
        refused: counts refused calls, by reason.
        patience: seconds that a call may make no progress.
    """

    def __init__(
        self,
        federation: MemberRegistry,
        present: Callable[[], Iterable[str]],
        refused: Counter[str],
        patience: float = STALL_TIMEOUT_S,
    ) -> None:
        self._federation = federation
        self._researchers = Researchers(federation)
        self._present = present
        self._refused = refused
        self._patience = patience
        self._calls: Counter[str] = Counter()
        self._times: dict[tuple[str, str], deque[float]] = {}
        self._turn = threading.Lock()
        # Apart from the threads that store sites' uploads: no researcher makes a site wait.
        self._threads = ThreadPoolExecutor(4 * MAX_CALLS, "research")
        self._pricing = threading.Semaphore(MAX_PRICED)
        self._prices_for: set[str] = set()

    @property
    def services(self) -> dict[str, dict[str, Serve]]:
        """The methods of the service, by its name and theirs."""
        asked: dict[str, tuple[type[Message], Callable[[str, Any], Answer]]] = {
            "Submit": (pb.Proposal, self._submit),
            "Show": (pb.RunName, self._show),
            "Cancel": (pb.RunName, self._cancel),
            "Resume": (pb.RunName, self._resume),
            "Files": (pb.RunName, self._list),
        }
        methods = {
            name: self._checked(name, self._answering(kind, answer))
            for name, (kind, answer) in asked.items()
        }
        return {NAME: {**methods, "Fetch": self._checked("Fetch", self._fetch)}}

    def _checked(self, method: str, serve: Callable[[str, Context], Awaitable[None]]) -> Serve:
        async def served(context: Context) -> None:
            known = {"peer": show_peer(context.peer())}
            try:
                name = self._require_researcher(context)
                known = {"researcher": name}
                self._require_rate(name, method)
                self._calls[name] += 1
                try:
                    await serve(name, context)
                finally:
                    self._calls[name] -= 1
            except RpcAbort as fault:
                if fault.reason:
                    self._refused[fault.reason] += 1
                    more = {"method": method, "reason": fault.reason, "why": str(fault), **known}
                    _LOG.warning("a call was refused", extra=more)
                raise

        return served

    def _require_researcher(self, context: Context) -> str:
        shown = context.auth_context().get("x509_pem_cert", [b""])[0]
        try:
            name = self._researchers.identify(shown)
        except PrivetError as error:
            _LOG.error("the researchers cannot be read", extra={"why": error})
            raise RpcAbort(StatusCode.UNAVAILABLE, "come again later", "unread") from error
        if name is None:
            raise RpcAbort(StatusCode.UNAUTHENTICATED, "not a researcher", "not-a-member")
        return name

    def _require_rate(self, name: str, method: str) -> None:
        status = StatusCode.RESOURCE_EXHAUSTED
        if self._calls[name] >= MAX_CALLS:
            raise RpcAbort(status, "too many calls at once", "too-many-calls")
        times, now = self._times.setdefault((name, method), deque()), time.monotonic()
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= MAX_PER_MINUTE.get(method, OTHERS_PER_MINUTE):
            raise RpcAbort(status, "too many calls a minute; come again later", "too-many-calls")
        times.append(now)

    def _answering(
        self, kind: type[Message], answer: Callable[[str, Any], Answer]
    ) -> Callable[[str, Context], Awaitable[None]]:
        async def serve(name: str, context: Context) -> None:
            asked = await MessageStream(context, kind).one(FIRST_WORD_S)
            try:
                found = await self._in_thread(answer, name, asked)
            except (InputError, BudgetExceededError) as error:
                raise RpcAbort(StatusCode.INVALID_ARGUMENT, str(error), "") from error
            except (PrivetError, OSError) as error:
                _LOG.error("a researcher was not answered", extra={"why": error})
                raise RpcAbort(StatusCode.UNAVAILABLE, "come again later", "unread") from error
            except Exception as error:
                _LOG.exception("a researcher was not answered")
                status = StatusCode.INTERNAL
                raise RpcAbort(status, "a fault of the coordinator, see its log", "") from error
            line, text = MessageStream(context, kind), json.dumps(found).encode()
            for start in range(0, len(text), CHUNK):
                await self._write(line, text[start : start + CHUNK])

        return serve

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    async def _write(self, line: MessageStream[Any], data: bytes) -> None:
        await line.write(head(CHUNK_DATA, len(data)) + data, self._patience)

    # each returns JSON values, in a thread

    def _submit(self, name: str, asked: pb.Proposal) -> Answer:
        with self._priced(name):
            plan = read_proposal(asked.plan)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        run_id = asked.run or f"{plan.name.replace(' ', '-')}-{stamp}"
        with self._turn:
            mine = [run for run in self._mine(name).values() if run.status["state"] in OPEN]
            if len(mine) >= MAX_OPEN_RUNS:
                raise InputError(f"{MAX_OPEN_RUNS} runs of yours wait or train; cancel some first")
            if run_id in queue.lost(self._federation):
                raise InputError(f"sites know a run '{run_id}' already; name another --run")
            if not asked.again:
                queue.require_new(self._federation, plan, told=self._mine(name))
            run = queue.submit(self._federation, plan, run_id, by=name)
        about = {"run": run.id, "plan": plan.digest, "researcher": name}
        _LOG.info("a run was submitted", extra=about)
        return {"run": run.id, "plan": plan.digest}

    @contextlib.contextmanager
    def _priced(self, name: str) -> Iterator[None]:
        """Wait for a place among the plans that are priced.

        Raises:
            InputError: if a plan of this researcher is priced already, or none becomes free.
        """
        with self._turn:
            if name in self._prices_for:
                raise InputError("another plan of yours is being priced; submit this one after it")
            self._prices_for.add(name)
        try:
            if not self._pricing.acquire(timeout=TIMEOUT_S / 4):
                raise InputError("plans of others are being priced; submit it again in a while")
            try:
                yield
            finally:
                self._pricing.release()
        finally:
            with self._turn:
                self._prices_for.discard(name)

    def _show(self, name: str, asked: pb.RunName) -> Answer:
        present = set(self._present())
        members = self._federation.members().values()
        return {
            "federation": self._federation.name,
            "listening": True,
            "sites": [
                {"site": one.name, "state": one.state, "connected": one.name in present}
                for one in members
            ],
            "runs": [
                queue.in_words(run.status)
                for run in self._mine(name).values()
                if asked.run in ("", run.id)
            ],
        }

    def _cancel(self, name: str, asked: pb.RunName) -> Answer:
        run = self._own(name, asked.run)
        queue.cancel(self._federation, run.id, by=name)
        _LOG.info("a run was cancelled", extra={"run": run.id, "researcher": name})
        return {"run": run.id, "state": "cancelled"}

    def _resume(self, name: str, asked: pb.RunName) -> Answer:
        run = self._own(name, asked.run)
        queued = queue.resume(self._federation, run.id)
        _LOG.info("a run was resumed", extra={"run": run.id, "researcher": name})
        return {"run": run.id, "state": "queued", "round": queued.status.get("round", 0)}

    def _list(self, name: str, asked: pb.RunName) -> Answer:
        run = self._own(name, asked.run)
        if run.status["state"] in OPEN:
            raise InputError(f"run '{run.id}' has not ended: it is {run.status['state']}")
        _copy_journal(run)
        files = []
        for file, path in _files(run).items():
            data = path.stat().st_size
            files.append({"name": file, "size": data, "sha256": hash_of_file(path)})
        return {"run": run.id, "files": files}

    async def _fetch(self, name: str, context: Context) -> None:
        line = MessageStream(context, pb.File)
        asked = await line.one(FIRST_WORD_S)
        try:
            run = await self._in_thread(self._own, name, asked.run)
        except InputError as error:
            raise RpcAbort(StatusCode.NOT_FOUND, str(error)) from error
        path = _files(run).get(asked.name)
        if path is None or run.status["state"] in OPEN:
            raise RpcAbort(StatusCode.NOT_FOUND, "no such file of this run", "not-offered")
        try:
            opened = path.open("rb")
        except OSError as error:
            raise RpcAbort(StatusCode.NOT_FOUND, "it is not there any more", "") from error
        with opened as stream:
            stream.seek(min(asked.offset, os.fstat(stream.fileno()).st_size))
            while data := await self._in_thread(stream.read, CHUNK):
                self._require_researcher(context)  # a revoked researcher gets no further byte
                await self._write(line, data)

    def _mine(self, name: str) -> Mapping[str, Run]:
        runs = queue.runs(self._federation)
        return {run.id: run for run in runs if run.status.get("by") == name}

    def _own(self, name: str, run: str) -> Run:
        """Return a run that this researcher submitted; a run of another counts as missing.

        Raises:
            InputError: if there is none.
        """
        found = self._mine(name).get(run)
        if found is None:
            raise InputError("you have submitted no run of this name")
        return found


def _files(run: Run) -> dict[str, Path]:
    """Return the files of a run that may be fetched, by their names there; none is a key."""
    found = {name: run.folder / name for name in _FILES}
    found |= {
        f"figures/{path.name}": path
        for path in sorted((run.folder / "figures").glob("*.json"))
        if _FIGURES.fullmatch(path.name)
    }
    found[f"coordinator/{JOURNAL}"] = run.folder / _COPIED_JOURNAL
    return {name: path for name, path in found.items() if path.is_file() and not path.is_symlink()}


def _copy_journal(run: Run) -> None:
    """Copy the journal as one state of it, whatever lies beside its file."""
    source, copy = run.folder / "coordinator" / JOURNAL, run.folder / _COPIED_JOURNAL
    if not source.exists():
        return
    where = f"{source.absolute().as_uri()}?mode=ro"
    half = copy.with_name(f"{copy.name}.part")
    half.unlink(missing_ok=True)
    try:
        with (
            contextlib.closing(sqlite3.connect(where, uri=True)) as database,
            contextlib.closing(sqlite3.connect(half)) as made,
        ):
            database.backup(made)
            made.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise InputError(f"the journal of run '{run.id}' cannot be copied: {error}") from error
    half.replace(copy)
