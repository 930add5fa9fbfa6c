"""The site's endpoint as a process of its own, asked over a socket in the site's folder.

::

    flwr-clientapp ── stock.sock ── SiteEndpoint  one process, while the SuperNode runs
    (one per message)

Stock Flower starts a program for each message; the first one starts this process, which keeps the
model and the records' snapshot warm, as `privet client start` does on the link. It answers one
message at a time and ends with the SuperNode. The socket belongs to the site's user alone, and
what travels over it is what travels over the link: JSON and flat numbers, no pickle.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from privet.common.errors import InputError, PrivetError, RunError
from privet.common.flat import CHUNK, Arrays, StreamDecoder, chunks, size_of
from privet.common.output.logs import Level, Style, set_up, why_ended
from privet.common.output.process_output import protect_process, to_operator

if TYPE_CHECKING:
    from privet.client.endpoint import SiteEndpoint

_SOCKET, _LOCK = "stock.sock", "stock.lock"
_ALREADY_RUNNING_EXIT_CODE = 3
"""Exit code of a second daemon: another process is at work for this site."""
_START_TIMEOUT_S = 300.0
"""Seconds that a daemon may take to start."""
_POLL_INTERVAL_S = 1.0
"""Seconds between two checks that the SuperNode is still there."""
_MAX_RECORD_BYTES = 64 << 20
"""Bytes of a message's records."""

_LOG = logging.getLogger("privet.stock")


def ask(
    policy: Path, kind: str, records: bytes, arrays: Arrays, parent: int
) -> tuple[bytes, Arrays]:
    """Have a message answered by the site's daemon, which is started if need be.

    Args:
        policy: the site's.
        kind: of the message.
        records: its content, as :func:`privet.common.flower.wire.pack` takes it apart.
        arrays: its numbers, likewise.
        parent: process with which the daemon ends.

    Raises:
        RunError: if the daemon cannot be started, or ended while it answered.
    """
    for last in (False, True):
        with _connected(policy, parent) as connection:
            try:
                _send(connection, kind, records, arrays)
                _, said, numbers = _receive(connection)
                return said, numbers
            except (OSError, EOFError):
                # It was about to end. What was asked twice is answered once.
                if last:
                    raise RunError(f"{policy.parent}: the site's process ended") from None
    raise AssertionError


@contextmanager
def _connected(policy: Path, parent: int) -> Iterator[Connection]:
    child, end = 0, time.monotonic() + _START_TIMEOUT_S
    while (found := _connect(policy.parent)) is None:
        child = child or _start(policy, parent)
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            if os.waitstatus_to_exitcode(ended[1]) != _ALREADY_RUNNING_EXIT_CODE:
                raise RunError(f"{policy.parent}: the site's process did not start; see above")
            child = 0  # Another one is at work; either it answers, or it is about to end.
        if time.monotonic() > end:
            raise RunError(f"{policy.parent}: the site's process does not answer")
        time.sleep(0.05)
    with found:
        yield found


def _start(policy: Path, parent: int) -> int:
    """Start the daemon, which outlives this process; return its number."""
    words = [sys.executable, "-I", "-m", __name__, str(policy), str(parent)]
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawn(sys.executable, words, os.environ, file_actions=[nothing])


def _connect(home: Path) -> Connection | None:
    found = socket.socket(socket.AF_UNIX)
    try:
        with _short(home) as path:
            found.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        found.close()
        return None
    return Connection(found.detach())


@contextmanager
def _short(home: Path) -> Iterator[str]:
    """Give the socket's path in few bytes: the system allows 107."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{_SOCKET}"
    finally:
        os.close(folder)


def _send(connection: Connection, kind: str, records: bytes, arrays: Arrays) -> None:
    header = {"kind": kind, "numbers": size_of(arrays)}
    connection.send_bytes(json.dumps(header).encode())
    connection.send_bytes(records)
    for chunk in chunks(arrays):
        connection.send_bytes(chunk)


def _receive(connection: Connection) -> tuple[str, bytes, Arrays]:
    header = json.loads(connection.recv_bytes(4096))
    records = connection.recv_bytes(_MAX_RECORD_BYTES)
    intake = StreamDecoder(int(header["numbers"]))
    while intake.taken < intake.size:
        intake.take(connection.recv_bytes(CHUNK))
    return str(header["kind"]), records, intake.finish()[0]


def main() -> None:
    """Answer for the site of a policy until a process ends: ``resident POLICY PID``."""
    policy, parent = Path(sys.argv[1]), int(sys.argv[2])
    log = policy.parent / "operator.log"
    set_up(Style.TEXT, Level.INFO, operator=log)
    protect_process()
    with (policy.parent / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(_ALREADY_RUNNING_EXIT_CODE)
        try:
            # Two would close each other's reservations, also where the other dials by itself.
            with to_operator(log), _alone(policy), closing(_open(policy)) as endpoint:
                _serve(endpoint, policy.parent, parent)
        except PrivetError as error:
            if (said := why_ended(error)) is not None:
                sys.exit(f"privet: {said}")
            _LOG.error("ended", exc_info=error)  # its text in the operator's log alone
            sys.exit(1)


def _alone(policy: Path) -> AbstractContextManager[None]:
    from privet.client.start import only_client

    return only_client(policy)


def _open(policy: Path) -> SiteEndpoint:
    from privet.client.start import make_endpoint
    from privet.privacy.evidence.keys import passphrase_from_environment

    return make_endpoint(policy, passphrase_from_environment())


def _serve(endpoint: SiteEndpoint, home: Path, parent: int) -> None:
    os.umask(0o077)
    with socket.socket(socket.AF_UNIX) as listener, _short(home) as path:
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
        listener.listen()
        listener.settimeout(_POLL_INTERVAL_S)
        _LOG.info("the site answers", extra={"site": endpoint.join.site})
        while _alive(parent):
            with suppress(TimeoutError):
                found, _ = listener.accept()
                found.setblocking(True)
                with Connection(found.detach()) as connection:
                    _answer(endpoint, connection)
        Path(path).unlink(missing_ok=True)


def _answer(endpoint: SiteEndpoint, connection: Connection) -> None:
    from privet.client.link.dial import LinkRequest

    try:
        kind, records, arrays = _receive(connection)
        told = endpoint(LinkRequest(kind, "", records, arrays))
        _send(connection, kind, told.records, told.arrays)
    except (OSError, EOFError) as error:
        _LOG.error("the answer could not be handed over, and is kept", extra={"why": error})
    except (InputError, ValueError, KeyError) as error:
        _LOG.error("a malformed message was not answered", extra={"why": error})


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
