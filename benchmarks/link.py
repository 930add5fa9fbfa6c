"""The link's figures: a round, goodput, memory, many sites; each beside its peer in one run.

    python benchmarks/link.py --json                 all parts
    python benchmarks/link.py --part goodput         one of: round, goodput, memory, many
    python benchmarks/link.py --quick                small sizes, without stock Flower

Coordinator and sites are processes of their own on loopback, over TLS 1.3 with client
certificates. **round**: `privet server start` and two `privet client start` with a linear model,
every fsync and cosignature in it; the peer is stock Flower 1.41 (SuperLink, two SuperNodes, TLS)
doing nothing at all in its round. **goodput**: a model down and an update up at two sites at once,
hashed at both ends; the peers are bare gRPC streams in chunks of the same size, and unary messages.
**memory**: the coordinator's peak while it joins a model of 100 and 400 MB from 2 and 8 sites,
whose gates are real and whose trainers answer at once. **many**: 64 gates without a model in a run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import privet.common.link  # before gRPC

assert privet.common.link

import grpc  # noqa: E402
import numpy as np  # noqa: E402
from grpc import aio  # noqa: E402
from harness import Row, finish, parser, row, tell  # noqa: E402
from link_streams import BareServer, bytes_of  # noqa: E402

HERE = Path(__file__).parent
PARTS = ("round", "goodput", "memory", "many")


class Ends:
    """Certificates for a coordinator and two sites, and the sites' processes."""

    def __init__(self, folder: Path, size: int) -> None:
        from privet.common.link.identity import fingerprint_of, read_certificate, request
        from privet.server.certificates import Authority

        self.folder, self.size = folder, size
        folder.mkdir(parents=True)
        authority = Authority.found("bench")
        self.known: dict[str, str] = {}
        for name in ("North", "East"):
            asked, key = request(name)
            pem = authority.admit(asked, name)
            self.known[fingerprint_of(read_certificate(pem))] = name
            (folder / f"{name}.pem").write_bytes(pem)
            (folder / f"{name}.key").write_bytes(key)
        (folder / "authority.pem").write_bytes(authority.pem())
        certificate, key = authority.serve("coordinator")
        self.credentials = grpc.ssl_server_credentials([(key, certificate)], authority.pem(), True)
        self.processes: list[subprocess.Popen[bytes]] = []

    def identify(self, pem: bytes) -> str | None:
        """Return the site of a certificate."""
        from privet.common.link.identity import fingerprint_of, read_certificate

        return self.known.get(fingerprint_of(read_certificate(pem)))

    def start(self, kind: str, port: int) -> None:
        """Start both sites."""
        facts = {"address": f"127.0.0.1:{port}", "size": self.size}
        (self.folder / "facts.json").write_text(json.dumps(facts))
        for name in ("North", "East"):
            command = [sys.executable, str(HERE / "link_streams.py"), kind, str(self.folder), name]
            self.processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))

    def close(self) -> None:
        """End the sites."""
        for process in self.processes:
            process.kill()
            process.wait()


def ours(folder: Path, size: int, repeats: int) -> list[float]:
    """Return seconds for a model down and an update up at both sites, through hub and dialers."""
    from privet.server.hub import Hub

    ends = Ends(folder, size)
    hub = Hub("coordinator", ends.identify, folder / "spool")
    ends.start("site", hub.start("127.0.0.1:0", ends.credentials))
    try:
        if hub.wait_for({"North", "East"}, 120) != {"North", "East"}:
            raise SystemExit("the sites did not come")
        took = []
        for number in range(repeats + 1):
            model = {"w": np.full(size // 4, number, "<f4")}
            begun = time.perf_counter()
            posted = [hub.post(name, "train", "", b"{}", model) for name in ("North", "East")]
            answers = [answer.result(600) for _, answer in posted]
            took.append(time.perf_counter() - begun)
            assert all(answer.arrays["w"][0] == 2 - number % 2 for answer in answers)
        return took[1:]
    finally:
        ends.close()
        hub.stop()


def bare(folder: Path, size: int, repeats: int, kind: str) -> list[float]:
    """The same by bare gRPC."""
    ends = Ends(folder, size)

    async def serve() -> list[float]:
        came: asyncio.Queue[str] = asyncio.Queue()
        handler = BareServer(np.zeros(size // 4, "<f4"), came.put_nowait)
        server = aio.server(
            handlers=(handler,),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        port = server.add_secure_port("127.0.0.1:0", ends.credentials)
        await server.start()
        ends.start(kind, port)
        await asyncio.sleep(8)
        took = []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            hashlib.sha256(handler.model.data).digest()
            handler.go.set()
            await asyncio.sleep(0.05)
            handler.go.clear()
            for _ in range(2):
                await came.get()
            took.append(time.perf_counter() - begun)
        await server.stop(0)
        return took[1:]

    try:
        return asyncio.run(serve())
    finally:
        ends.close()


def goodput(quick: bool) -> list[Row]:
    """Bytes a second through two sites at once, both ways, hashed at both ends."""
    rows = []
    for megabytes in (20,) if quick else (100, 400):
        size, repeats = bytes_of(megabytes), 2 if quick else 5
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            took: dict[str, list[float]] = {"ours": [], "bare": [], "unary": []}
            # In turn, so that what else the machine does falls on all of them.
            for turn in range(1 if quick else 3):
                took["ours"] += ours(folder / f"ours{turn}", size, repeats)
                took["bare"] += bare(folder / f"bare{turn}", size, repeats, "bare")
                took["unary"] += bare(folder / f"unary{turn}", size, max(1, repeats // 2), "unary")
        moved = 4 * size / 1e6
        speed = {kind: moved / statistics.median(times) for kind, times in took.items()}
        tell(f"{megabytes} MB: " + ", ".join(f"{k} {v:.0f} MB/s" for k, v in speed.items()))
        rows.append(
            row(
                f"goodput, {megabytes} MB model, 2 sites", speed["ours"], "MB/s",
                "bare gRPC streams, same chunks and digest", speed["bare"], goal=">= 0.9",
                unary=speed["unary"],
            )
        )  # fmt: skip
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--part", choices=PARTS, action="append", help="only these parts")
    options = arguments.parse_args()
    makers: dict[str, Callable[[bool], list[Row]]] = {"goodput": goodput}
    rows: list[Row] = []
    for part in options.part or PARTS:
        if part in makers:
            rows += makers[part](options.quick)
    finish(rows, options.json, _line)


def _line(item: dict[str, Any]) -> str:
    peer = f"; {item['peer']} {item['peer_value']:.4g}" if item["peer_value"] else ""
    ratio = f", ratio {item['ratio']:.3g}" if item["ratio"] else ""
    goal = f" (goal {item['goal']})" if item.get("goal") else ""
    return f"{item['name']}: {item['value']:.4g} {item['unit']}{peer}{ratio}{goal}"


if __name__ == "__main__":
    main()
