"""The processes that campaigns/hostile.py attacks: a coordinator, two honest sites, a site.

    python campaigns/hostile_victims.py coordinator FOLDER LINK ENROLMENT PATIENCE FAULT
    python campaigns/hostile_victims.py honest FOLDER LINK
    python campaigns/hostile_victims.py site POLICY FAULT

The coordinator is the one that ``privet server start`` starts, and a thread beside it posts
parcels: to the honest sites, whose answers are compared, and to the hostile member, so that
there is something to get at. FAULT plants one, so that a test can see that it is noticed.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import privet.common.link.identity  # before gRPC is loaded

HONEST = ("Honest 1", "Honest 2")
HOSTILE, IDLER = "Mallory", "Idler"
STATUS = "traffic.json"
_WAIT = 20.0
"""Seconds after which an honest message counts as unanswered."""
_LATE = 10.0
"""Seconds after which some planted faults begin."""


def _tidy(*_: Any) -> None:
    """Give back what is free, so that only what is in use is measured."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def coordinator(folder: str, link: str, enrolment: str, patience: str, fault: str) -> None:
    """Serve a federation, and post parcels to its members."""
    from privet.server.coordinator import Coordinator
    from privet.server.membership.registry import MemberRegistry

    logging.basicConfig(level=logging.INFO)
    federation = MemberRegistry.load(Path(folder))
    _plant(fault)
    office = Coordinator(federation, link=link, enrolment=enrolment)
    office.link_server._patience = float(patience)
    signal.signal(signal.SIGTERM, lambda *_: office.stopped.set())
    posting = threading.Thread(target=_post, args=(office, Path(folder)), daemon=True)
    posting.start()
    office.serve()


def _post(office: Any, folder: Path) -> None:
    import numpy as np

    from privet.common.canonical import write_json

    server, said, wrong = office.link_server, Counter[str](), 0
    while not office.port:
        time.sleep(0.05)
    large = {"w": np.arange(1 << 19, dtype="<f4")}
    mine: dict[str, tuple[Any, bool, float]] = {}
    open_requests: dict[str, tuple[Any, float]] = {}
    number, gap, last = 0, 0.0, time.monotonic()
    while not office.stopped.wait(0.05):
        now = time.monotonic()
        for site in HONEST:
            if sum(site in key for key in mine) < 1:
                number += 1
                with_numbers = number % 8 == 0
                words = json.dumps({"number": number}).encode()
                post = server.post(site, "ping", "", words, large if with_numbers else {})
                mine[f"{site}/{post[0]}/{number}"] = (post[1], with_numbers, now)
                said["asked"] += 1
        for key, (answer, with_numbers, since) in list(mine.items()):
            if answer.done():
                del mine[key]
                got = answer.result()
                right = json.loads(got.records) == {"number": int(key.rpartition("/")[2])}
                if with_numbers:
                    right = right and bool(np.array_equal(got.arrays["w"], large["w"] + 1))
                said["answered"] += 1
                last = now
                wrong += not right
            elif now - since > _WAIT:
                del mine[key]
                server.withdraw(key.split("/")[1])
                said["lost"] += 1
        gap = max(gap, now - last)
        for post_id, (answer, since) in list(open_requests.items()):
            if answer.done() or now - since > 3:
                server.withdraw(post_id)
                del open_requests[post_id]
        while len(open_requests) < 5:
            arrays = large if len(open_requests) % 2 else {}
            whom = IDLER if len(open_requests) == 3 else HOSTILE
            post_id, answer = server.post(whom, "train", "1", b"{}", arrays)
            open_requests[post_id] = (answer, now)
        with suppress(OSError):
            write_json(
                folder / STATUS,
                {
                    **said, "wrong": wrong, "gap": gap, "open": [k.split("/")[1] for k in mine],
                    "for_attackers": list(open_requests), "present": sorted(server.present()),
                    "time": time.time(),
                },
            )  # fmt: skip


def _plant(fault: str) -> None:
    """Plant a fault, for the tests of the campaign itself; it is there after a few seconds."""
    from privet.common.link import link_pb2 as pb
    from privet.server.link import server, service

    kept: list[bytes] = []
    begun = time.monotonic()
    member, answered = service.Service._member, server.LinkServer.answered

    def planted(self: Any, context: Any) -> Any:
        if fault == "leak":
            kept.append(b"x" * 500_000)
        if fault == "traceback":
            logging.getLogger("planted").error("Traceback (most recent call last):")
        return member(self, context)

    def telling(self: Any, serve: Any) -> Any:
        async def served(context: Any) -> None:
            try:
                with member(self, context) as call:
                    await serve(call, context)
            except service.RpcAbort:
                await service.MessageStream(context, pb.Want).write(pb.Held(offset=1), 5)

        return served

    async def nothing(self: Any, site: str, answer: Any) -> bool:
        late = time.monotonic() - begun > _LATE and site in HONEST
        return True if late else await answered(self, site, answer)

    if fault in ("leak", "traceback"):
        service.Service._member = planted  # type: ignore[method-assign]
    elif fault == "tells":
        service.Service._for_members = telling  # type: ignore[method-assign]
    elif fault == "unanswered":
        server.LinkServer.answered = nothing  # type: ignore[method-assign]
    elif fault == "dies":
        threading.Timer(_LATE, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    elif fault:
        raise SystemExit(f"no fault is called {fault}")


def honest(folder: str, link: str) -> None:
    """Two sites that answer what they are asked, and now and then come anew."""
    asyncio.run(_honest(Path(folder), link))


async def _honest(folder: Path, link: str) -> None:
    tasks = [asyncio.create_task(_one(folder / name, link)) for name in HONEST]
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, lambda: [task.cancel() for task in tasks]
    )
    await asyncio.gather(*tasks, return_exceptions=True)


async def _one(home: Path, link: str) -> None:
    import grpc

    from privet.client.link import dial

    def answer(asked: dial.LinkRequest) -> dial.LinkResponse:
        return dial.LinkResponse(asked.records, {name: a + 1 for name, a in asked.arrays.items()})

    def credentials() -> grpc.ChannelCredentials:
        names = ("authority.pem", "link.key", "link.pem")
        return grpc.ssl_channel_credentials(*((home / name).read_bytes() for name in names))

    while True:
        running = asyncio.create_task(dial.Dialer(link, credentials, answer).run())
        await asyncio.wait([running], timeout=random.uniform(5, 15))
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def site(policy: str, fault: str) -> None:
    """A site's client, as ``privet client start`` starts it, but quicker to dial again."""
    import torch

    from privet.client import start
    from privet.client.link import dial

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO)
    dial._MAX_PAUSE_S = 0.5
    dial._REPLY_TIMEOUT_S = dial._DOWNLOAD_STALL_TIMEOUT_S = 3.0
    endpoint = start.make_endpoint(Path(policy), None)
    dialer = start.dialer(endpoint)
    if fault == "leak":
        dial._MAX_KEPT_ANSWERS, dial._MAX_KEPT_TENSORS = 1 << 30, 1 << 30
        serve, kept = dialer._serve, []

        def leaking(asked: dial.LinkRequest) -> dial.LinkResponse:
            kept.append(b"x" * 500_000)
            return serve(asked)

        dialer._serve = leaking
    asyncio.run(start.run(dialer))


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tidy)
    assert privet.common.link.identity.SERVER_NAME
    {"coordinator": coordinator, "honest": honest, "site": site}[sys.argv[1]](*sys.argv[2:])
