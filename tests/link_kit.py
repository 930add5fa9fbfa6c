"""A coordinator and sites over the link on loopback, with certificates of their own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privet.client.app import context_of, create_app, serve
from privet.client.link.dial import Dialer, LinkRequest, LinkResponse, Serve
from privet.client.site import Site
from privet.common.link.identity import fingerprint_of, read_certificate, request, site_of
from privet.server.link.grid import LinkGrid
from privet.server.link.server import LinkServer
from privet.server.membership.certificates import Authority


@dataclass
class Members:
    """Who may call: certificates by fingerprint, as a federation keeps them."""

    known: dict[str, str] = field(default_factory=dict)

    def add(self, pem: bytes) -> None:
        certificate = read_certificate(pem)
        self.known[fingerprint_of(certificate)] = site_of(certificate)

    def identify(self, pem: bytes) -> str | None:
        certificate = read_certificate(pem)
        return self.known.get(fingerprint_of(certificate))


class Ends:
    """One hub, and a dialer in a thread for each site that was started."""

    def __init__(self, folder: Path, sites: list[str]) -> None:
        import grpc

        self.grpc, self.sites = grpc, sites
        self.authority = Authority.found("test")
        self.members = Members()
        self.keys: dict[str, tuple[bytes, bytes]] = {}
        for name in sites:
            asked, key = request(name)
            self.keys[name] = self.authority.admit(asked, name), key
            self.members.add(self.keys[name][0])
        self.port = self._listen(folder)
        self.threads: list[Dialed] = []

    def _listen(self, folder: Path) -> int:
        self.hub = LinkServer("coordinator", self.members.identify, folder / "spool")
        certificate, key = self.authority.serve("coordinator")
        credentials = self.grpc.ssl_server_credentials(
            [(key, certificate)], self.authority.pem(), True
        )
        return self.hub.start("127.0.0.1:0", credentials)

    def again(self, folder: Path) -> int:
        """End the hub and start another one, as a new process would; return its port."""
        self.hub.stop()
        self.port = self._listen(folder)
        return self.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def credentials(self, name: str) -> Any:
        certificate, key = self.keys[name]
        return self.grpc.ssl_channel_credentials(self.authority.pem(), key, certificate)

    def dial(self, name: str, answer: Serve, **how: Any) -> Dialed:
        dialer = Dialer(
            how.pop("address", self.address), lambda: self.credentials(name), answer, **how
        )
        thread = Dialed(dialer)
        self.threads.append(thread)
        return thread

    def grid(self) -> LinkGrid:
        assert self.hub.wait_for(set(self.sites), 10) == set(self.sites)
        return LinkGrid(self.hub, self.sites)

    def close(self) -> None:
        for thread in self.threads:
            thread.stop()
        self.hub.stop()


class Dialed:
    """A dialer in a thread of its own, as its process would run it."""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.error: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(dialer.run())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(10)
            self._loop.close()


_ONE_MODEL = threading.Lock()
"""Sites of one process share the model that they train with."""


def answering(site: Site) -> Serve:
    """Answer by the site's Flower app."""
    app, context = create_app(lambda _: site), context_of(site.name)

    def answer(asked: LinkRequest) -> LinkResponse:
        with _ONE_MODEL:
            return LinkResponse(*serve(app, context, asked.kind, asked.records, asked.arrays))

    return answer


def until(check: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Wire:
    """A TCP proxy that can be cut, now or after so many bytes one way, and can fall silent.

    While ``open`` is not set nothing passes, and nobody is told; ``rate`` is in bytes a second, one
    way, 0 for as fast as it goes.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.up = self.down = 0
        self.cut_up = self.cut_down = 0
        self.cuts = 0
        self.closed = False
        self.rate = 0
        self.open = threading.Event()
        self.open.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.closed:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._pairs.append((near, far))
            for way, source, sink in (("up", near, far), ("down", far, near)):
                threading.Thread(target=self._pump, args=(way, source, sink), daemon=True).start()

    def _pump(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(4096 if self.rate else 65536):
                self.open.wait()
                if self.rate:
                    time.sleep(len(data) / self.rate)
                setattr(self, way, getattr(self, way) + len(data))
                limit = getattr(self, f"cut_{way}")
                if limit and getattr(self, way) >= limit:
                    setattr(self, f"cut_{way}", 0)
                    self.cut()
                    return
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def turn_to(self, port: int) -> None:
        """Lead to another port from now on."""
        self._target = port
        self.cut()

    def cut(self) -> None:
        """Cut all connections that there are."""
        self.cuts += 1
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.closed = True
        self.open.set()
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
