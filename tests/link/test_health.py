"""gRPC's health service on the link: for members, and nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from link_kit import Ends, until

from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import SERVER_NAME, request
from privet.server.link.tally import REASONS

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "hub", ["North", "East"])
    yield made
    made.close()


def channel(ends: Ends, pair: tuple[bytes, bytes] | None) -> grpc.Channel:
    certificate, key = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(ends.authority.pem(), key, certificate)
    return grpc.secure_channel(
        ends.address, credentials, [("grpc.ssl_target_name_override", SERVER_NAME)]
    )


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    return code


def check(there: grpc.Channel, service: str = "") -> Any:
    asked = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(there).Check(asked, timeout=10)


def test_a_member_is_told_that_the_link_is_served(ends: Ends) -> None:
    with channel(ends, ends.keys["North"]) as there:
        for service in ("", "privet.link.v1.Link"):
            assert check(there, service).status == SERVING
        assert code_of(lambda: check(there, "privet.link.v1.Enrolment")) == (
            grpc.StatusCode.NOT_FOUND
        )
        watch = health_pb2_grpc.HealthStub(there).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert code_of(lambda: list(watch)) == grpc.StatusCode.UNIMPLEMENTED
    until(lambda: ends.hub._calls["North"] == 0)


def test_who_is_no_member_is_told_nothing(ends: Ends) -> None:
    asked, key = request("West")
    stranger = ends.authority.admit(asked, "West"), key
    with channel(ends, stranger) as there:
        assert code_of(lambda: check(there)) == grpc.StatusCode.UNAUTHENTICATED
        watch = health_pb2_grpc.HealthStub(there).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert code_of(lambda: list(watch)) == grpc.StatusCode.UNAUTHENTICATED
    assert ends.hub.tally.refused["not-a-member"] == 2
    with channel(ends, None) as there:
        assert code_of(lambda: check(there)) == grpc.StatusCode.UNAVAILABLE
    # It did not come as far as a call.
    assert ends.hub.tally.refused["not-a-member"] == 2


def test_a_site_that_was_revoked_is_told_nothing(ends: Ends) -> None:
    with channel(ends, ends.keys["East"]) as there:
        assert check(there).status == SERVING
        ends.members.known = {p: name for p, name in ends.members.known.items() if name != "East"}
        assert code_of(lambda: check(there)) == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_off(ends: Ends, version: str) -> None:
    with channel(ends, ends.keys["North"]) as there:
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        call = there.stream_stream(path)(iter([b""]), timeout=2)
        # Calls of methods that there are not get no answer (server/link/calls.py).
        assert code_of(lambda: list(call)) == grpc.StatusCode.DEADLINE_EXCEEDED


def test_refused_calls_are_counted_by_reason(ends: Ends) -> None:
    with channel(ends, ends.keys["North"]) as there:
        stub = rpc.LinkStub(there)
        assert code_of(lambda: list(stub.Download(pb.Want(sha256=b"x" * 32), timeout=10)))
        piece = pb.Piece(parcel="nothing", sha256=b"x" * 32, size=5)
        assert code_of(lambda: stub.Upload(iter([piece]), timeout=10))
        answer = pb.FromSite(answer=pb.Answer(id="1"))
        assert code_of(lambda: list(stub.Attend(iter([answer]), timeout=10)))
        hello = pb.FromSite(hello=pb.Hello(versions=[99]))
        assert code_of(lambda: list(stub.Attend(iter([hello]), timeout=10)))
    refused = ends.hub.tally.refused
    until(lambda: sum(refused.values()) == 4)
    assert dict(refused) == {"not-offered": 2, "malformed": 1, "version": 1}
    assert set(refused) <= set(REASONS)
