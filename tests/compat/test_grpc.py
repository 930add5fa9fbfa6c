"""What :mod:`privet.common.compat.grpc` relies on, and the TLS that gRPC is told before it loads."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc._cython import cygrpc
from grpc.aio._server import Server

from privet.common.compat import grpc as compat
from privet.common.link.identity import request
from privet.server.membership.certificates import Authority

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "campaigns"))
from raw_http2 import PREFACE, frame, headers, message, settings

KNOWN, UNKNOWN, NO_TEXT = "/test/Echo", "/test/Other", "/test/\xff\xfe"


def handlers() -> dict[str, grpc.RpcMethodHandler]:
    async def echo(_: Any, context: Any) -> None:
        await context.write(await context.read())

    return {"Echo": grpc.stream_stream_rpc_method_handler(echo)}


def with_server(
    make: Callable[[], aio.Server],
    doing: Callable[[int], Awaitable[Any]],
    *,
    register: bool = True,
    shown: grpc.ServerCredentials | None = None,
) -> Any:
    async def all_of_it() -> Any:
        server = make()
        if register:
            server.add_registered_method_handlers("test", handlers())
        where = "127.0.0.1:0"
        port = server.add_secure_port(where, shown) if shown else server.add_insecure_port(where)
        await server.start()
        try:
            return await doing(port)
        finally:
            with suppress(TimeoutError):  # it does not stop once its loop has ended
                await asyncio.wait_for(server.stop(None), 5)

    return asyncio.run(all_of_it())


def ours(options: tuple[tuple[str, Any], ...] = (), most: int | None = None) -> aio.Server:
    return compat.known_methods_server((("grpc.so_reuseport", 0), *options), most)


async def called(port: int, path: str, seconds: float) -> bytes | grpc.StatusCode:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            stream = channel.stream_stream(path)(iter([b"hello"]), timeout=seconds)
            async for one in stream:
                return bytes(one)
            return await stream.code()
        except aio.AioRpcError as error:
            return error.code()


def knock(port: int, *more: tuple[str, str], path: str = KNOWN) -> bytes:
    """Call a method as no client of gRPC's would; return what came at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        block = headers(path, more)
        plain.sendall(PREFACE + settings() + frame(1, 4, 1, block) + frame(0, 1, 1, message(b"hi")))
        first = plain.recv(1000)
        time.sleep(0.3)
        return first


def test_the_parts_of_grpc_are_there() -> None:
    assert callable(cygrpc.AioServer._make_request_call_future)
    made = {name for name in Server.__init__.__code__.co_names if name.startswith("_")}
    assert {"_loop", "_server"} <= made, "what our constructor sets in place of gRPC's"
    assert {"AioServer"} <= set(Server.__init__.__code__.co_names)


def test_a_server_answers_its_own_methods_and_no_other() -> None:
    async def doing(port: int) -> tuple[Any, Any, Any]:
        before = await called(port, KNOWN, 10)
        other = await called(port, UNKNOWN, 0.5)
        return before, other, await called(port, KNOWN, 10)

    assert with_server(ours, doing) == (b"hello", grpc.StatusCode.DEADLINE_EXCEEDED, b"hello")


def test_a_methods_name_that_is_no_text_ends_grpcs_own_server_and_not_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first half fails once gRPC is repaired: then this part can go."""

    async def doing(port: int) -> Any:
        await asyncio.to_thread(knock, port, path=NO_TEXT)
        return await called(port, KNOWN, 3)

    def theirs() -> aio.Server:
        server = aio.server(options=(("grpc.so_reuseport", 0),))
        handler = grpc.method_handlers_generic_handler("test", handlers())
        server.add_generic_rpc_handlers((handler,))
        return server

    assert with_server(ours, doing) == b"hello"
    with caplog.at_level(logging.CRITICAL, logger="asyncio"):
        assert with_server(theirs, doing, register=False) != b"hello"


def test_no_more_calls_at_once_than_are_let_in() -> None:
    async def doing(port: int) -> Any:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            waiting = channel.stream_stream(KNOWN)()
            await waiting.write(b"first")
            assert await waiting.read() == b"first"
            second = await called(port, KNOWN, 5)
            await waiting.done_writing()
            return second

    async def slow(_: Any, context: Any) -> None:
        while (asked := await context.read()) is not aio.EOF:
            await context.write(asked)

    def make() -> aio.Server:
        server = ours(most=1)
        handler = grpc.stream_stream_rpc_method_handler(slow)
        server.add_registered_method_handlers("test", {"Echo": handler})
        return server

    assert with_server(make, doing, register=False) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_options_reach_the_core() -> None:
    limited = (("grpc.max_receive_message_length", 3),)

    async def doing(port: int) -> Any:
        return await called(port, KNOWN, 5)

    assert with_server(lambda: ours(limited), doing) != b"hello"


def test_metadata_that_is_no_text_writes_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("grpc._cython.cygrpc")

    async def doing(port: int) -> Any:
        await asyncio.to_thread(knock, port, ("x", "\xff"))
        return await called(port, KNOWN, 10)

    kept = [one for one in logger.filters if one is compat._is_of_interest]
    for one in kept:
        logger.removeFilter(one)
    try:
        assert with_server(ours, doing) == b"hello"
        said = [one for one in caplog.records if one.name == logger.name]
        assert said and all(str(one.msg).startswith("Invalid encoding") for one in said)
        caplog.clear()
        compat.quiet_metadata()
        assert with_server(ours, doing) == b"hello"
        assert not [one for one in caplog.records if one.name == logger.name]
        logger.error("something else")
        assert [one.msg for one in caplog.records if one.name == logger.name] == ["something else"]
    finally:
        logger.removeFilter(compat._is_of_interest)
        for one in kept:
            logger.addFilter(one)


@pytest.mark.parametrize(("version", "agreed"), [("TLSv1_3", True), ("TLSv1_2", False)])
def test_the_suites_leave_tls_1_3_alone(tmp_path: Path, version: str, agreed: bool) -> None:
    """``privet.common.link.identity`` sets ``GRPC_SSL_CIPHER_SUITES`` before gRPC is loaded."""
    authority = Authority.found("test")
    certificate, key = authority.serve("coordinator")
    asked, own = request("North")
    (tmp_path / "pair.pem").write_bytes(own + authority.admit(asked, "North"))
    context = ssl.create_default_context(cadata=authority.pem().decode())
    context.load_cert_chain(tmp_path / "pair.pem")
    context.check_hostname = False
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_alpn_protocols(["h2"])

    def shakes(port: int) -> bool:
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
                context.wrap_socket(plain) as found,
            ):
                return found.version() == "TLSv1.3"
        except (ssl.SSLError, ConnectionError):
            return False

    async def doing(port: int) -> bool:
        return await asyncio.to_thread(shakes, port)

    shown = grpc.ssl_server_credentials([(key, certificate)], authority.pem(), True)
    assert with_server(ours, doing, shown=shown) is agreed
