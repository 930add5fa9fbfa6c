"""The processes of the goodput benchmark: our hub and dialers, and bare gRPC streams.

    python benchmarks/link_streams.py KIND FOLDER NAME

KIND is ``site`` (our dialer, answering at once), ``bare`` (bare streams) or ``unary`` (one message
each way). Each reads where to dial from FOLDER, and ends when its coordinator does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import privet.common.link  # before gRPC

assert privet.common.link

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from grpc import aio  # noqa: E402

from privet.client.link.dial import Dialer, LinkRequest, LinkResponse  # noqa: E402
from privet.common.flat import CHUNK  # noqa: E402
from privet.common.link.identity import SERVER_NAME  # noqa: E402

OPTIONS = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
BARE = "bare.Streams"


def bytes_of(megabytes: int) -> int:
    """Return whole chunks of a model of so many MB."""
    return megabytes * 1_000_000 // CHUNK * CHUNK


class BareServer(grpc.GenericRpcHandler):
    """What gRPC does alone: the model down, an update up, a digest at each end.

    Args:
        model: what is sent to whoever asks.
        done: told the digest of each update that came.
    """

    def __init__(self, model: np.ndarray, done: Callable[[str], None]) -> None:
        self.model, self.done = model, done
        self.go = asyncio.Event()
        self.waiting = 0

    def service(self, details: Any) -> Any:
        """Return the handler of a call."""
        name = details.method.rpartition("/")[2]
        if name == "Down":
            return grpc.unary_stream_rpc_method_handler(self._down)
        if name == "Up":
            return grpc.stream_unary_rpc_method_handler(self._up)
        if name == "DownAtOnce":
            return grpc.unary_unary_rpc_method_handler(self._down_at_once)
        return grpc.unary_unary_rpc_method_handler(self._up_at_once)

    async def _until_told(self) -> None:
        self.waiting += 1
        try:
            await self.go.wait()
        finally:
            self.waiting -= 1

    async def _down(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        await self._until_told()
        view = self.model.view(np.uint8).data
        for start in range(0, view.nbytes, CHUNK):
            yield bytes(view[start : start + CHUNK])

    async def _up(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        running = hashlib.sha256()
        kept = np.empty(self.model.nbytes, np.uint8)
        at = 0
        async for part in requests:
            running.update(part)
            kept[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)
        self.done(running.hexdigest())
        return b""

    async def _down_at_once(self, request: bytes, context: Any) -> bytes:
        await self._until_told()
        return self.model.tobytes()

    async def _up_at_once(self, request: bytes, context: Any) -> bytes:
        self.done(hashlib.sha256(request).hexdigest())
        return b""


async def bare_site(address: str, credentials: Any, size: int, *, unary: bool) -> None:
    """Fetch the model, hash it, bring an update and its hash; again and again."""
    update = np.ones(size // 4, "<f4").view(np.uint8).data
    async with aio.secure_channel(address, credentials, options=OPTIONS) as channel:
        while True:
            running = hashlib.sha256()
            if unary:
                running.update(await channel.unary_unary(f"/{BARE}/DownAtOnce")(b""))
                hashlib.sha256(update).digest()
                await channel.unary_unary(f"/{BARE}/UpAtOnce")(bytes(update))
                continue
            kept = np.empty(size, np.uint8)
            at = 0
            async for part in channel.unary_stream(f"/{BARE}/Down")(b""):
                running.update(part)
                kept[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
            await channel.stream_unary(f"/{BARE}/Up")(_hashed(update))


async def _hashed(update: memoryview) -> AsyncIterator[bytes]:
    running = hashlib.sha256()
    for start in range(0, update.nbytes, CHUNK):
        part = bytes(update[start : start + CHUNK])
        running.update(part)
        yield part


def main() -> None:
    kind, folder, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    facts = json.loads((folder / "facts.json").read_text())
    credentials = grpc.ssl_channel_credentials(
        *((folder / file).read_bytes() for file in ("authority.pem", f"{name}.key", f"{name}.pem"))
    )
    if kind != "site":
        work = bare_site(facts["address"], credentials, facts["size"], unary=kind == "unary")
    else:
        # Never the same twice in a row, and hashed each time, as the bare ones are.
        updates = [np.full(facts["size"] // 4, number, "<f4") for number in (1, 2)]

        def answer(asked: LinkRequest) -> LinkResponse:
            updates.reverse()
            return LinkResponse(b"{}", {"w": updates[0]})

        work = Dialer(facts["address"], lambda: credentials, answer).run()
    try:
        asyncio.run(work)
    except (grpc.RpcError, KeyboardInterrupt):
        return


if __name__ == "__main__":
    main()
