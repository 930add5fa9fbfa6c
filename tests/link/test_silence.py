"""Who is known to be gone is not waited for: silence, grace, what is owed, and twins."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from link_kit import Ends, Wire, until

from privet.client.link import dial
from privet.client.link.dial import LinkRequest, LinkResponse
from privet.common.flower.grid import Enough
from privet.common.flower.wire import pack
from privet.common.link import beats
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import SERVER_NAME
from privet.server.link import service
from privet.server.link.grid import LinkGrid

NAMES = ["North", "East", "South"]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "hub", NAMES)
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Beat more often, and call less of it silence."""

    def set_beat(seconds: float) -> None:
        for module in (service, dial):
            monkeypatch.setattr(module, "BEAT", seconds)
        monkeypatch.setattr(beats, "SILENCE", 2.0)
        monkeypatch.setattr(beats, "_TICK_S", 0.25)

    return set_beat


class Site:
    """Answers at once, or only once it is let; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, asked: LinkRequest) -> LinkResponse:
        self.asked.append(f"{asked.kind} {asked.group}")
        if not asked.kind.startswith("query"):
            assert self.free.wait(60)
        return LinkResponse(*pack(RecordDict({"said": ConfigRecord({"kind": asked.kind})})))


def messages(number: int, kind: str = "train", nodes: int = 3) -> list[Message]:
    content = RecordDict({"asked": ConfigRecord({"round": number})})
    return [Message(content, node, kind, group_id=str(number)) for node in range(1, nodes + 1)]


def of(replies: list[Message]) -> list[str]:
    return [NAMES[reply.metadata.src_node_id - 1] for reply in replies]


def two(grace: float | None = 0.3) -> Enough:
    return Enough(lambda replies: len(replies) >= 2, grace)


# silence


def test_who_says_nothing_is_gone_at_both_ends(
    ends: Ends, quick: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    quick(0.2)
    caplog.set_level(logging.INFO)
    wire, states = Wire(ends.port), []
    ends.dial("North", Site(), address=f"127.0.0.1:{wire.port}", on_state=states.append)
    assert ends.hub.wait_for({"North"}, 10)
    time.sleep(3)  # longer than what counts as silence: it beats
    assert states == ["connected"] and ends.hub.tally.streams["North"] == 1
    wire.open.clear()
    until(lambda: not ends.hub.present() and "cut" in states, 30)
    assert "nothing is heard of a site; it counts as gone" in caplog.text
    wire.open.set()
    assert ends.hub.wait_for({"North"}, 60)
    wire.close()


def test_a_dialer_ends_that_is_cancelled_while_its_stream_is_cut(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC may raise the cut where the cancellation arrived; the dialer would call for ever."""

    async def attend(self: dial.Dialer, stub: object) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "cut"
        )

    monkeypatch.setattr(dial.Dialer, "_attend", attend)
    dialed = ends.dial("North", Site())
    time.sleep(0.5)
    dialed.stop()
    assert dialed.ended and dialed.error is None


def test_without_a_beat_an_idle_stream_counts_as_silent(
    ends: Ends, quick: Callable[[float], None]
) -> None:
    """The control: it is the beats that keep the stream of the test before."""
    quick(1000)
    ends.dial("North", Site())
    until(lambda: ends.hub.tally.streams["North"] > 1, 30)


def test_a_site_of_before_there_were_beats_is_left_to_the_pings(
    ends: Ends, quick: Callable[[float], None]
) -> None:
    quick(0.2)
    certificate, key = ends.keys["North"]
    credentials = grpc.ssl_channel_credentials(ends.authority.pem(), key, certificate)
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    ended = threading.Event()

    def words() -> Iterator[pb.FromSite]:
        yield pb.FromSite(hello=pb.Hello(versions=[1]))
        ended.wait(30)

    with grpc.secure_channel(ends.address, credentials, options) as channel:
        stream = rpc.LinkStub(channel).Attend(words())
        assert not next(stream).welcome.beats
        time.sleep(4)
        assert ends.hub.present() == ["North"]
        ended.set()


def test_numbers_come_over_a_slow_line(ends: Ends, quick: Callable[[float], None]) -> None:
    """A ping would wait behind them for longer than its answer is waited for."""
    quick(0.2)
    wire = Wire(ends.port)
    wire.rate = 400_000

    def echo(asked: LinkRequest) -> LinkResponse:
        return LinkResponse(b"{}", {name: array + 1 for name, array in asked.arrays.items()})

    ends.dial("North", echo, address=f"127.0.0.1:{wire.port}")
    _, answer = ends.hub.post("North", "train", "1", b"{}", {"w": np.zeros(400_000, "<f4")})
    assert answer.result(180).arrays["w"].sum() == 400_000
    wire.close()


# what is waited for


def test_a_site_that_fell_silent_is_asked_no_more_until_it_is_back(ends: Ends) -> None:
    wire, sites = Wire(ends.port), {name: Site() for name in NAMES}
    for name, site in sites.items():
        port = wire.port if name == "South" else ends.port
        ends.dial(name, site, address=f"127.0.0.1:{port}")
    grid = ends.grid()
    assert of(grid.gather(messages(1), 30, two())) == NAMES
    wire.open.clear()
    assert of(grid.gather(messages(2), 30, two())) == ["North", "East"]
    began = time.monotonic()
    for number in range(3, 9):
        assert of(grid.gather(messages(number), 30, two(60))) == ["North", "East"]
    assert time.monotonic() - began < 60, "nobody waited out the grace of sixty seconds"
    streams = ends.hub.tally.streams["South"]
    until(lambda: "South" not in ends.hub.present(), 30)
    wire.open.set()
    until(lambda: ends.hub.tally.streams["South"] > streams, 60)
    assert of(grid.gather(messages(9), 30, two(30))) == NAMES
    # One order was on its way when it fell silent; of the six since, it hears nothing.
    assert set(sites["South"].asked) <= {"train 1", "train 2", "train 9"}
    wire.close()


def test_who_is_late_gives_its_answer_before_it_is_asked_for_more(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    sites = {name: Site() for name in NAMES}
    for name, site in sites.items():
        ends.dial(name, site)
    grid, slow = ends.grid(), sites["South"]
    slow.free.clear()
    assert of(grid.gather(messages(1), 30, two())) == ["North", "East"]
    assert "a round continues without" in caplog.text
    # It shows its log meanwhile.
    assert (
        of(grid.gather(messages(1, "query.show"), 30, Enough(lambda came: len(came) == 3))) == NAMES
    )
    assert of(grid.gather(messages(2), 30, two())) == ["North", "East"]
    assert slow.asked == ["train 1", "query.show 1"]
    slow.free.set()
    until(lambda: ends.hub.late["South"] == 1)
    assert of(grid.gather(messages(3), 30, two(30))) == NAMES
    assert slow.asked == ["train 1", "query.show 1", "train 3"]


def test_who_was_late_once_is_waited_for_as_long_as_it_takes(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privet.server.link.grid.MIN_GRACE_S", 0.5)
    sites = {name: Site() for name in NAMES}
    for name, site in sites.items():
        ends.dial(name, site)
    grid, slow = ends.grid(), sites["South"]
    # What it takes is not known yet: its trainer may have to start.
    slow.free.clear()
    threading.Timer(3, slow.free.set).start()
    assert of(grid.gather(messages(1), 30, two(None))) == NAMES
    assert of(grid.gather(messages(1), 30, two(None))) == NAMES
    # It is known to be quick now, and is slow.
    slow.free.clear()
    assert of(grid.gather(messages(1), 30, two(None))) == ["North", "East"]
    threading.Timer(4, slow.free.set).start()
    until(lambda: ends.hub.late["South"] == 1, 30)
    slow.free.clear()
    threading.Timer(3, slow.free.set).start()
    assert of(grid.gather(messages(2), 30, two(None))) == NAMES
    # The control: a grace that the plan names holds, however long it took.
    slow.free.clear()
    assert of(grid.gather(messages(3), 30, two(0.5))) == ["North", "East"]
    slow.free.set()


def test_without_enough_everybody_is_waited_for(ends: Ends) -> None:
    sites = {name: Site() for name in NAMES}
    for name, site in sites.items():
        ends.dial(name, site)
    grid, slow = ends.grid(), sites["South"]
    slow.free.clear()
    assert of(grid.gather(messages(1), 1, two(0))) == ["North", "East"]
    threading.Timer(2, slow.free.set).start()
    all_three = Enough(lambda replies: len(replies) >= 3, 0)
    assert of(grid.gather(messages(2), 60, all_three)) == NAMES


# twins


def test_two_processes_with_one_certificate_are_named_and_call_less_and_less(
    ends: Ends, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_MIN_TWIN_PAUSE_S", 0.2)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        ends.dial("North", Site())
    until(lambda: "North" in ends.hub.twins.all, 60)
    peers = ends.hub.twins.all["North"]
    assert len(set(peers)) == 2 and all(peer.startswith("ipv4:127.0.0.1:") for peer in peers)
    said = [(record.name, record.getMessage()) for record in caplog.records]
    assert any(name == "privet.link" and "two processes attend" in text for name, text in said)
    assert any(name == "privet.dial" and "Stop one of the two" in text for name, text in said)
    waits = [record.again_s for record in caplog.records if hasattr(record, "again_s")]
    assert len(waits) >= 2 and all(wait <= 300 for wait in waits)
    streams = ends.hub.tally.streams["North"]
    time.sleep(5)
    assert ends.hub.tally.streams["North"] - streams < 10, "it was six times a second"


def test_one_site_that_calls_again_is_no_pair(ends: Ends) -> None:
    wire = Wire(ends.port)
    ends.dial("North", Site(), address=f"127.0.0.1:{wire.port}")
    for number in range(1, 5):
        until(lambda wanted=number: ends.hub.tally.streams["North"] >= wanted, 30)
        wire.cut()
    assert not ends.hub.twins.all
    wire.close()


def test_the_grid_refuses_a_node_that_there_is_not(ends: Ends) -> None:
    with pytest.raises(ValueError, match="no node 4"):
        LinkGrid(ends.hub, NAMES).gather(messages(1, nodes=4), 1)
