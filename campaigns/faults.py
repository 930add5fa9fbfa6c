"""A run under faults ends with the model of the run that had none, and each charge is explained.

    python campaigns/faults.py --json               300 rounds, three sites
    python campaigns/faults.py --quick              12 rounds

The same plan is run twice, with noise that can be made again, by processes of their own over TLS:
once in peace, and once while every site dials through a proxy that cuts, holds up, doubles and
flips bytes, and while coordinator and sites are killed (SIGKILL) at random and started again. All
sites must release in each round. In the end the two models are compared bit by bit, every ledger
is verified, and each charge must be a release or a broken attempt that its ledger names.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import numpy as np
from federation_fixture import FederationFixture, follow, plan_for
from harness import Row, finish, parser, row, tell

SITES = ["North", "East", "South"]


class Trouble:
    """Proxies on loopback that do to bytes what bad networks do; each in one loop.

    Args:
        port: of the coordinator.
        seed: of what happens.
        rate: chance of a fault for each piece that passes.
    """

    def __init__(self, port: int, seed: int, rate: float) -> None:
        self.count: Counter[str] = Counter()
        self._port, self._rate = port, rate
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def proxy(self) -> int:
        """Open a proxy; return its port."""
        made = asyncio.start_server(self._pass, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(made, self._loop).result()
        return int(server.sockets[0].getsockname()[1])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        self.count["connections"] += 1
        ends = (writer, there[1])
        await asyncio.gather(self._pump(reader, there[1], ends), self._pump(there[0], writer, ends))

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, ...],
    ) -> None:
        chance = self._chance
        try:
            while data := await reader.read(1 << 16):
                if chance.random() < self._rate:
                    kind = chance.choice(("cut", "held up", "doubled", "flipped", "swallowed"))
                    self.count[kind] += 1
                    if kind == "cut":
                        break
                    if kind == "held up":
                        await asyncio.sleep(chance.uniform(0.1, 3))
                    elif kind == "doubled":
                        data += data
                    elif kind == "flipped":
                        place = chance.randrange(len(data))
                        changed = data[place] ^ 1 << chance.randrange(8)
                        data = data[:place] + bytes([changed]) + data[place + 1 :]
                    else:
                        continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            for end in ends:
                end.close()


def undisturbed(folder: Path, rounds: int) -> FederationFixture:
    """Run the plan in peace."""
    federation = FederationFixture(folder, plan_for(SITES, rounds), ("seeded",))
    run = federation.submit()
    try:
        federation.start_all()
        follow(run, federation)
    finally:
        federation.close()
    return federation


def disturbed(
    folder: Path, rounds: int, every: float, seed: int
) -> tuple[FederationFixture, Counter[str]]:
    """Run it under faults; ``every`` is the mean time between two kills in seconds."""
    federation = FederationFixture(folder, plan_for(SITES, rounds), ("seeded",))
    trouble = Trouble(federation.port, seed, 0.01)
    for name in SITES:
        federation.redirect(name, trouble.proxy())
    run = federation.submit()
    chance, count = random.Random(seed), trouble.count
    over = threading.Event()

    def kill() -> None:
        while not over.wait(chance.expovariate(1 / every)):
            who = chance.choice(["hub", *SITES])
            federation.kill(who)
            count["killed hub" if who == "hub" else "killed sites"] += 1
            if over.wait(chance.choice((0.0, 0.0, 2.0, 6.0))):
                return
            federation.start(who)

    federation.start_all()
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    told = time.monotonic()
    try:
        while (status := run.status)["state"] != "done":
            if status["state"] == "failed":
                raise SystemExit(f"{status}\n{federation.logs()}")
            if time.monotonic() - told > 30:
                told = time.monotonic()
                tell(f"round {status.get('round', 0)}, {dict(count)}")
            time.sleep(0.05)
    finally:
        over.set()
        killer.join()
        federation.close()
    return federation, count


def model_of(federation: FederationFixture) -> dict[str, np.ndarray]:
    """Return the final model."""
    from safetensors.numpy import load_file

    return load_file(federation.registry.folder / "runs" / "run" / "model" / "model.safetensors")


def judge(federation: FederationFixture, rounds: int) -> tuple[int, int, int]:
    """Verify all ledgers; return faults, broken attempts and charges that nothing explains."""
    from privet.privacy.audit.bundle import write_bundle
    from privet.privacy.audit.verify import verify
    from privet.privacy.evidence.statement import Entry
    from privet.privacy.evidence.store import Store

    folder = federation.registry.folder / "runs" / "run"
    out = federation.folder / "run.bundle"
    write_bundle([folder, *(federation.folder / name / "ledger" for name in SITES)], out)
    verdict = verify(out, folder / "roster-fingerprints.json")
    for fault in verdict.faults:
        tell(f"fault: {fault}")
    broken = unexplained = 0
    for site in verdict.sites:
        leaves = Store(federation.folder / site.site / "ledger" / "ledger.db").leaves()
        kinds = Counter(Entry.read(leaf).kind for leaf in leaves)
        broken += kinds["aborted"]
        unexplained += abs(site.charges - kinds["released"] - kinds["aborted"])
        # A release may have been paid for by an attempt that came too late to be joined.
        unexplained += max(0, rounds - kinds["released"])
    return len(verdict.faults), broken, unexplained


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, help="rounds of the run")
    arguments.add_argument("--seed", type=int, default=1, help="of what happens")
    options = arguments.parse_args()
    rounds = options.rounds or (12 if options.quick else 300)
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        calm = undisturbed(Path(name) / "calm", rounds)
        tell(f"in peace: {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        wild, count = disturbed(Path(name) / "wild", rounds, 4.0, options.seed)
        tell(f"under faults: {time.monotonic() - began:.0f} s, {dict(count)}")
        ours, theirs = model_of(wild), model_of(calm)
        other = sum(not np.array_equal(ours[key], theirs[key]) for key in theirs)
        faults, broken, unexplained = judge(wild, rounds)
    rows: list[Row] = [
        row("arrays of the final model that differ", other, "", None, None, goal="0"),
        row("faults of the evidence", faults, "", None, None, goal="0"),
        row("charges that no ledger explains", unexplained, "", None, None, goal="0"),
        row("rounds under faults", rounds, "", None, None, **count, broken_attempts=broken),
    ]
    finish(rows, options.json, lambda item: f"{item['name']}: {item['value']}")
    if other or faults or unexplained:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
