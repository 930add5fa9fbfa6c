"""A site's gRPC calls, with arrays as raw bytes, and counters of their traffic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from grpc import aio

from privet.common.errors import InputError
from privet.common.flat import CHUNK, Arrays, chunks
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.pieces import CHUNK as CHUNK_DATA
from privet.common.link.pieces import PIECE as PIECE_DATA
from privet.common.link.pieces import data_of, head


@dataclass
class DialerCounters:
    """Traffic since the dialer was made.

    Attributes:
        connected: whether the coordinator has welcomed this site on the stream that is open.
        streams: streams that the site opened.
        received, sent: bytes of messages, without the bytes of gRPC and TLS.
    """

    connected: bool = False
    streams: int = 0
    received: int = 0
    sent: int = 0


async def ended(stream: Any) -> aio.AioRpcError:
    """Return the error with which a stream ended."""
    return aio.AioRpcError(
        await stream.code(),
        await stream.initial_metadata(),
        await stream.trailing_metadata(),
        await stream.details(),
    )


async def pieces_of(
    number: str, sha256: bytes, size: int, offset: int, arrays: Arrays, tally: DialerCounters
) -> AsyncIterator[bytes]:
    """Yield the messages of an upload; the first one announces what follows.

    Args:
        number: id of the request that is answered.
        sha256: digest of the whole flat stream, 32 bytes.
        size: of the whole flat stream in bytes.
        offset: byte of the stream at which the upload starts.
        arrays: the answer's; they must not change meanwhile.
        tally: counts the bytes sent.
    """
    announced = pb.Piece(parcel=number, sha256=sha256, size=size, offset=offset)
    first: bytes = announced.SerializeToString()

    def before(count: int) -> bytes:
        nonlocal first
        said, first = bytes(first), b""
        return said + head(PIECE_DATA, count)

    for piece in chunks(arrays, offset, CHUNK, before):
        yield piece
        tally.sent += len(piece)


class Stub(rpc.LinkStub):
    """The generated stub, but with arrays as raw bytes (:mod:`privet.common.link.pieces`)."""

    def __init__(self, channel: aio.Channel) -> None:
        super().__init__(channel)
        self.Download = channel.unary_stream(
            "/privet.link.v1.Link/Download", request_serializer=pb.Want.SerializeToString
        )
        self.Upload = channel.stream_unary(
            "/privet.link.v1.Link/Upload", response_deserializer=pb.Held.FromString
        )


def data_in(raw: bytes | None) -> bytes | memoryview:
    """Return the bytes of the arrays in a chunk.

    Raises:
        InputError: if it holds none.
    """
    try:
        found = data_of(CHUNK_DATA, raw or b"")
        data: bytes | memoryview = found or pb.Chunk.FromString(raw or b"").data
    except DecodeError:
        raise InputError("what came is no chunk of numbers") from None
    if not data:
        raise InputError("a chunk of the numbers is empty, or none")
    return data
