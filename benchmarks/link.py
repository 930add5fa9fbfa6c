"""The link's figures: a round, goodput, memory, many sites; each beside its peer in one run.

    python benchmarks/link.py --json                 all parts
    python benchmarks/link.py --part goodput         one of: round, goodput, memory, many, witnesses
    python benchmarks/link.py --quick                small sizes, without stock Flower

Coordinator and sites are processes of their own on loopback, over TLS 1.3 with client
certificates. **round**: `privet server start` and two `privet client start` with a linear model,
every fsync and cosignature in it; the peer is stock Flower 1.41 (SuperLink, two SuperNodes, TLS)
doing nothing at all in its round. **goodput**: a model down and an update up at two sites at once,
hashed at both ends; the peers are bare gRPC streams in chunks of the same size, and unary messages.
**memory**: the coordinator's peak while it joins a model of 100 and 400 MB from 2 and 8 sites,
whose gates are real and whose trainers answer at once. **many**: 64 gates without a model in a run.
**witnesses**: 64 such gates in short runs; 7 sites cosign each ledger by lot, and then all do.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
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
PARTS = ("round", "goodput", "memory", "many", "witnesses")


class Ends:
    """Certificates for a coordinator and two sites, and the sites' processes."""

    def __init__(self, folder: Path, size: int) -> None:
        from privet.common.link.identity import fingerprint_of, read_certificate, request
        from privet.server.membership.certificates import Authority

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
    from privet.server.link.server import LinkServer

    ends = Ends(folder, size)
    hub = LinkServer("coordinator", ends.identify, folder / "spool")
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
        took = []
        for _ in range(repeats + 1):
            async with asyncio.timeout(120):
                while handler.waiting < 2:  # a site that came too late would wait for ever
                    await asyncio.sleep(0.005)
            begun = time.perf_counter()
            hashlib.sha256(handler.model.data).digest()
            handler.go.set()
            while handler.waiting:
                await asyncio.sleep(0)
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


def a_round(quick: bool) -> list[Row]:
    """Seconds a round, from order to the next order, of the real commands."""
    from federation_fixture import FederationFixture, follow, plan_for

    rounds = 40 if quick else 300
    with tempfile.TemporaryDirectory() as name:
        federation = FederationFixture(
            Path(name) / "federation", plan_for(["North", "East"], rounds)
        )
        run = federation.submit()
        try:
            federation.start_all()
            times = follow(run, federation)
        finally:
            federation.close()
    took = [after - before for before, after in itertools.pairwise(times[5:]) if after > before]
    stock = None if quick else _stock_round()
    median = statistics.median(took)
    return [
        row(
            "round of a linear model, 2 sites, median", median, "s",
            None if stock is None else "stock Flower 1.41, an empty round", stock, goal="< 0.05",
            worst=max(took), rounds=len(took),
        )
    ]  # fmt: skip


_STOCK_APP = """
import time
import numpy as np
from flwr.app import ArrayRecord, Array, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()


@client.train()
def train(message, context):
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


server = ServerApp()


@server.main()
def main(grid, context):
    def note(number, arrays):
        with open(TIMES, "a") as out:
            out.write(f"{time.time()}\\n")
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    arrays = ArrayRecord([np.zeros((2, 4), np.float32)])
    strategy.start(grid, arrays, num_rounds=ROUNDS, evaluate_fn=note)
"""


def _stock_round() -> float:
    """Return the median seconds of a round of stock Flower that does nothing."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from stock_kit import PROGRAMS, StockFlower

    rounds = 5
    with tempfile.TemporaryDirectory() as name:
        folder, times = Path(name), Path(name) / "times"
        app = folder / "app"
        (app / "stocked").mkdir(parents=True)
        (app / "stocked" / "__init__.py").write_text("")
        head = f"TIMES, ROUNDS = {str(times)!r}, {rounds}\n"
        (app / "stocked" / "app.py").write_text(head + _STOCK_APP.replace("\\\\n", "\\n"))
        (app / "pyproject.toml").write_text(
            '[project]\nname = "stocked"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
            '[tool.flwr.app]\npublisher = "bench"\nfab-include = ["stocked/*.py"]\n'
            "[tool.flwr.app.components]\n"
            'serverapp = "stocked.app:server"\nclientapp = "stocked.app:client"\n'
        )
        flower = StockFlower(folder / "flower")
        try:
            for site in ("North", "East"):
                flower.node(site, PROGRAMS / "flower-supernode")
            number = flower.run(app)
            flower.ended(number, lambda: times.exists() and _lines(times) > rounds)
        finally:
            flower.close()
        noted = [float(line) for line in times.read_text().splitlines()]
    return statistics.median(after - before for before, after in itertools.pairwise(noted))


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def memory(quick: bool) -> list[Row]:
    """The coordinator's peak in MB, beside twice the model."""
    from federation_fixture import FederationFixture, follow, plan_for
    from link_model import INPUTS

    rows = []
    for megabytes, count in ((20, 2),) if quick else ((100, 2), (100, 8), (400, 2), (400, 8)):
        names = [f"Site {number}" for number in range(count)]
        options = {"hidden": megabytes * 250_000 // (INPUTS + 2)}
        plan = plan_for(names, 2, model={"kind": "link_model:make", "options": options})
        with tempfile.TemporaryDirectory() as name:
            federation = FederationFixture(Path(name) / "federation", plan, ("light",))
            run = federation.submit()
            try:
                federation.start_all()
                follow(run, federation)
                peak = federation.peak("hub")
            finally:
                federation.close()
        tell(f"{megabytes} MB, {count} sites: {peak:.0f} MB")
        rows.append(
            row(
                f"coordinator's peak memory, {megabytes} MB model, {count} sites", peak, "MB",
                "twice the model", 2.0 * megabytes, goal=f"< {2 * megabytes + 200}",
            )
        )  # fmt: skip
    return rows


def many(quick: bool) -> list[Row]:
    """A run of many sites; every order of every round is answered once."""
    return many_of(8, 5) if quick else many_of(64, 1000)


def witnesses(quick: bool) -> list[Row]:
    """The time of a round with few witnesses, beside that with all."""
    count, rounds, drawn = (8, 5, 5) if quick else (64, 21, 7)
    _, all_of_them = many_of(count, rounds)
    _, few = many_of(count, rounds, witnesses=drawn)
    return [
        row(
            f"round of {count} sites, median, {drawn} witnesses by lot",
            few["value"], "s", "all sites cosign", all_of_them["value"], goal="0.6",
        )
    ]  # fmt: skip


def many_of(count: int, rounds: int, **strategy: Any) -> list[Row]:
    """The same for so many, with other words of the plan's strategy."""
    from federation_fixture import FederationFixture, follow, plan_for

    names = [f"Site {number}" for number in range(count)]
    plan = plan_for(names, rounds, strategy=strategy)
    with tempfile.TemporaryDirectory() as name:
        federation = FederationFixture(Path(name) / "federation", plan, ("light",))
        run = federation.submit()
        try:
            federation.start_all()
            times = follow(
                run, federation, seconds=6 * 3600, note=_every(50, f"of {rounds} rounds")
            )
        finally:
            federation.close()
        answers = _orders(federation.registry.folder / "runs" / "run" / "coordinator")
    lost = sum(order["answer"] != "released" for order in answers)
    asked = {(order["site"], order["order"]) for order in answers}
    took = [after - before for before, after in itertools.pairwise(times) if after > before]
    wanted = count * rounds
    return [
        row(f"orders lost, {count} sites, {rounds} rounds", lost + wanted - len(asked), "", None,
            None, goal="0", doubled=len(answers) - len(asked)),
        row(f"round of {count} sites, median", statistics.median(took), "s", None, None,
            first=statistics.median(took[:100]), last=statistics.median(took[-100:])),
    ]  # fmt: skip


def _every(count: int, what: str) -> Callable[[int], None]:
    """Return what tells of every so many."""
    return lambda done: tell(f"{done} {what}") if done % count == 0 else None


def _orders(folder: Path) -> list[dict[str, Any]]:
    """Return the orders in a coordinator's journal, with how they were answered."""
    from privet.privacy.evidence.statement import Entry
    from privet.privacy.evidence.store import Store

    return [
        order
        for leaf in Store(folder / "journal.db").leaves()
        if (entry := Entry.read(leaf)).kind == "round"
        for order in entry.predicate["orders"]
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--part", choices=PARTS, action="append", help="only these parts")
    options = arguments.parse_args()
    makers: dict[str, Callable[[bool], list[Row]]] = {
        "round": a_round,
        "goodput": goodput,
        "memory": memory,
        "many": many,
        "witnesses": witnesses,
    }
    rows: list[Row] = []
    for part in options.part or PARTS:
        rows += makers[part](options.quick)
    finish(rows, options.json, _line)


def _line(item: dict[str, Any]) -> str:
    peer = f"; {item['peer']} {item['peer_value']:.4g}" if item["peer_value"] else ""
    ratio = f", ratio {item['ratio']:.3g}" if item["ratio"] else ""
    goal = f" (goal {item['goal']})" if item.get("goal") else ""
    return f"{item['name']}: {item['value']:.4g} {item['unit']}{peer}{ratio}{goal}"


if __name__ == "__main__":
    main()
