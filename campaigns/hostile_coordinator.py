"""A hostile coordinator, with a certificate that the site trusts, and the site that it has."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc import aio
from hostile_attacks import fields, mutated

from privet.common.flat import chunks, digest_arrays, size_of
from privet.common.link import link_pb2 as pb

WELCOME = pb.ToSite(welcome=pb.Welcome(version=1, coordinator="hub", most_numbers=1 << 30))
SITE = "North"


class TargetSite:
    """A federation's folder whose keys the hostile coordinator has, and a site's folder."""

    def __init__(self, folder: Path) -> None:
        from privet.client.link.coordinators import LINK
        from privet.client.link.join import Join, keep
        from privet.client.operator.decisions import make_site
        from privet.common.link.identity import request
        from privet.common.plan import Plan
        from privet.privacy.evidence.keys import FileSigner
        from privet.privacy.evidence.signed_note import COSIGN, Key, key_name
        from privet.server.membership.registry import MemberRegistry

        self.plan = Plan.parse(
            {
                "name": "small",
                "task": {"classes": ["0", "1"], "label": "y",
                         "numeric": {"x": {"low": 0, "high": 1}}},
                "training": {"rounds": 3, "steps": 1, "sample_rate": 1.0, "max_attempts": 100},
                "metrics": {"source": "gate"},
                "privacy": {"epsilon": 1.0, "delta": 1e-5, "noise_multiplier": 4.0},
                "sites": [{"name": SITE, "nominal_size": 40}],
            }
        )  # fmt: skip
        self.home, hub = folder / SITE, folder / "hub"
        self.federation = MemberRegistry.found(hub, "hub", "127.0.0.1:1", "127.0.0.1:2")
        make_site(self.home, SITE, None)
        vkeys = []
        for kind, type_ in (("ledger", 1), ("witness", COSIGN)):
            public = FileSigner.load(self.home / "ledger" / f"{kind}.pem", None).public
            vkeys.append(str(Key(key_name(kind, SITE, public), public, type_)))
        invitation = self.federation.invite(SITE)
        asked, key = request(SITE)
        (self.home / LINK).mkdir()
        (self.home / LINK / "link.key").touch(mode=0o600)
        (self.home / LINK / "link.key").write_bytes(key)
        pem = self.federation.enrol(SITE, invitation["token"], asked, *vkeys)
        self.pem = (hub / "server.key").read_bytes(), (hub / "server.pem").read_bytes()
        self.authority = (hub / "authority.pem").read_bytes()
        self.port = 0
        self._invitation, self._pem, self._join, self._keep = invitation, pem, Join, keep
        draw = np.random.default_rng(1)
        rows = "\n".join(f"{draw.random():.3f},{draw.integers(2)}" for _ in range(40))
        (self.home / "records.csv").write_text("x,y\n" + rows + "\n")

    @property
    def policy(self) -> Path:
        """The site's policy."""
        return self.home / "site.toml"

    def settle(self, port: int) -> None:
        """Write the site's join file and policy, once the port is known."""
        from privet.client.link.coordinators import LINK

        path = self.home / "join.json"
        path.write_text(json.dumps({**self._invitation, "address": f"127.0.0.1:{port}"}))
        join = self._join.load(path)
        self._keep(join, self.home / LINK, self._pem)
        self.policy.write_text(
            f'site = "{SITE}"\n[populations.patients]\nunit = "record"\nepsilon = 100.0\n'
            'delta = 1e-5\n[data.records]\npopulation = "patients"\nnominal_size = 40\n'
            'path = "records.csv"\n[allow]\ntasks = ["*"]\nmodels = ["*"]\n'
            f'coordinators = ["{join.coordinator["orders"]}"]\nplans = ["{self.plan.digest}"]\n'
        )

    def offer(self) -> dict[str, Any]:
        """Return the offer that an honest coordinator would make."""
        run = self.federation.folder / "runs" / "one"
        roster = self.federation.roster([SITE], run)
        return {"run": "one", "plan": self.plan.to_dict(), "roster": roster.to_dict()}

    def entries(self) -> Counter[str]:
        """Return how many entries of each kind the site's ledger has."""
        from privet.privacy.evidence.statement import Entry
        from privet.privacy.evidence.store import Store

        store = Store(self.home / "ledger" / "ledger.db")
        found = Counter(Entry.read(leaf).kind for leaf in store.leaves())
        store.close()
        return found


SiteAttack = Callable[["Coordinator", Any], Awaitable[None]]


class Coordinator:
    """Does one hostile thing on each stream of the site.

    Args:
        target: whose certificate it shows.
        seed: of its luck.
        large: the largest number of parcels on one stream, and of megabytes in one download.
    """

    def __init__(self, target: TargetSite, seed: int, large: int) -> None:
        self.target, self.large, self.many = target, large, large
        self.chance = random.Random(seed)
        self.said = 0
        self.traffic: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.goal = 0
        self.download: Callable[[Any, pb.Want], Awaitable[None]] = self._nothing
        self.offered = ""
        self._pings = 0
        self._order: list[SiteAttack] = []
        self._answers: asyncio.Queue[pb.Answer] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._offer = target.offer()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(20)

    async def _listen(self) -> int:
        self._server = aio.server(
            options=[("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
        )
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        credentials = grpc.ssl_server_credentials([self.target.pem], self.target.authority, True)
        port = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()
        return int(port)

    def close(self) -> None:
        """Stop listening."""
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    # what the site calls

    async def attend(self, context: Any) -> None:
        """Say Welcome, or not, and do one hostile thing; every fourth time ask honestly."""
        await context.read()
        reader = asyncio.create_task(self._read(context))
        try:
            if not self.offered:
                await context.write(WELCOME.SerializeToString())
                self.offered = await self.honest(context)
            elif self.said >= self.goal or self.chance.random() < 0.25:
                await context.write(WELCOME.SerializeToString())
                await self._ask(context)
                return
            self._order = self._order or self.chance.sample(SITE_ATTACKS, len(SITE_ATTACKS))
            attack = self._order.pop()
            self.words[(attack.__doc__ or "").strip()] += 1
            if attack not in _WITHOUT_WELCOME:
                await context.write(WELCOME.SerializeToString())
            await attack(self, context)
        finally:
            reader.cancel()

    async def _read(self, context: Any) -> None:
        with suppress(Exception):
            while isinstance(raw := await context.read(), bytes):
                word = pb.FromSite.FromString(raw)
                self._answers.put_nowait(word.answer)

    async def _ask(self, context: Any) -> None:
        """Ask what an honest coordinator asks, with numbers, until it is answered."""
        self._pings += 1
        self.traffic["asked"] += 1
        arrays = {"w": np.full(30_000, self._pings, "<f4")}
        number = f"ping-{self._pings}"
        self.download = functools.partial(_whole, arrays)
        await self.say(context, _parcel(number, "query", b"{}", arrays))
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with suppress(TimeoutError):
                answer = await asyncio.wait_for(self._answers.get(), 1)
                if answer.id == number:
                    right = b"present" in answer.records and SITE.encode() in answer.records
                    self.traffic["answered"] += 1
                    self.traffic["wrong"] += not right
                    return
        self.traffic["lost"] += 1

    async def honest(self, context: Any) -> str:
        """Make the honest offer; return the site's word."""
        await self.say(context, _parcel("offer", "offer", json.dumps(self._offer).encode()))
        answer = await asyncio.wait_for(self._answers.get(), 60)
        return str(json.loads(answer.records)["status"])

    async def say(self, context: Any, message: pb.ToSite | bytes) -> None:
        """Say something to the site."""
        self.said += 1
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        await asyncio.wait_for(context.write(raw), 60)

    async def drain(self, seconds: float) -> None:
        """Let the site answer for a while."""
        with suppress(TimeoutError):
            while True:
                await asyncio.wait_for(self._answers.get(), seconds)

    async def _nothing(self, context: Any, want: pb.Want) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "nothing")

    def real(self) -> pb.ToSite:
        """Return a message that the site might get in a run."""
        kind = self.chance.choice(["offer", "query", "query.show", "train", "evaluate"])
        if kind == "offer":
            records = json.dumps(self._offer).encode()
        elif kind == "query":
            records = b"{}"
        elif kind == "query.show":
            ask = {"head": "", "since": [0], "slots": [], "shown": {}}
            records = json.dumps({"show": {"json": json.dumps(ask)}}).encode()
        else:
            order = {"run": "one", "site": SITE, "round": 1, "attempt": 1, "purpose": kind,
                     "plan": self.target.plan.digest, "model": "sha256:" + "0" * 64,
                     "parameters": ["w"], "nonce": "0" * 64}  # fmt: skip
            signed = {"json": json.dumps(order), "keyid": "0" * 64, "signature": "AAAA", "head": ""}
            records = json.dumps({"order": signed, "config": {}, "arrays": "arrays"}).encode()
        return _parcel(self.number(), kind, records)

    def number(self) -> str:
        """Return a new parcel's id."""
        return f"{self.chance.getrandbits(64):x}"


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, coordinator: Coordinator) -> None:
        self._one = coordinator

    def service(self, details: Any) -> Any:
        one, method = self._one, details.method.rpartition("/")[2]

        async def handle(_: Any, context: Any) -> None:
            with suppress(TimeoutError):
                if method == "Attend":
                    await one.attend(context)
                elif method == "Download":
                    await one.download(context, pb.Want.FromString(await context.read()))
                else:
                    await context.abort(grpc.StatusCode.INTERNAL, "no")

        return grpc.stream_stream_rpc_method_handler(handle)


def _parcel(number: str, kind: str, records: bytes, arrays: Any = None) -> pb.ToSite:
    made = pb.ToSite(parcel=pb.Parcel(id=number, kind=kind, group="1", records=records))
    if arrays:
        sha256 = bytes.fromhex(digest_arrays(arrays).removeprefix("sha256:"))
        made.parcel.numbers.CopyFrom(pb.Numbers(sha256=sha256, size=size_of(arrays)))
    return made


async def _whole(arrays: Any, context: Any, want: pb.Want) -> None:
    for part in chunks(arrays, want.offset):
        await context.write(pb.Chunk(data=part).SerializeToString())


async def turned(one: Coordinator, context: Any) -> None:
    """Real messages with bytes turned."""
    for _ in range(40):
        await one.say(context, mutated(one.chance, one.real().SerializeToString()))
    await one.drain(0.3)


async def turned_records(one: Coordinator, context: Any) -> None:
    """Real messages whose JSON has bytes turned."""
    for _ in range(40):
        message = one.real()
        message.parcel.records = mutated(one.chance, message.parcel.records)
        await one.say(context, message)
    await one.drain(0.3)


async def made_up(one: Coordinator, context: Any) -> None:
    """Made-up fields, unknown kinds of messages and of parcels."""
    for _ in range(20):
        kind = one.chance.choice(["", "x" * 3000, "query.nothing", "offer.", "\0", "system"])
        await one.say(context, _parcel(one.number(), kind, one.chance.randbytes(30)))
    for _ in range(20):
        await one.say(context, fields(one.chance))
    await one.drain(0.3)


async def many_at_once(one: Coordinator, context: Any) -> None:
    """Thousands of parcels at once."""
    count, one.many = one.many, max(100, one.large // 20)
    for _ in range(count):
        await one.say(context, _parcel(one.number(), "none", b"{}"))
    await one.drain(0.3)


async def large_at_once(one: Coordinator, context: Any) -> None:
    """Parcels of four megabytes, one after the other."""
    for _ in range(30):
        await one.say(context, _parcel(one.number(), "query", b" " * (4 << 20)))
    await one.drain(0.3)


async def wrong_lengths(one: Coordinator, context: Any) -> None:
    """Numbers whose size, digest, label or shape lies."""
    for _ in range(20):
        label = one.chance.choice([
            b"w\0<f4\0" + b"99999999999", b"w\0<f8\0" + b"0,999999999999999,999999999999999",
            b"w\0<f4\0" + b"2", b"w\0|O\0" + b"2", one.chance.randbytes(9),
        ])  # fmt: skip
        size = one.chance.choice([8, 4 * 99999999999, (1 << 64) - 1])
        inline = len(label).to_bytes(8, "little") + label + size.to_bytes(8, "little") + b"\xff" * 8
        message = one.real()
        message.parcel.numbers.CopyFrom(pb.Numbers(
            sha256=one.chance.choice([hashlib.sha256(inline).digest(), b"", b"0" * 32]),
            size=one.chance.choice([len(inline), 1, 1 << 33, 1 << 40, (1 << 64) - 1]),
            inline=one.chance.choice([inline, b""]),
        ))  # fmt: skip
        await one.say(context, message)
    await one.drain(0.3)


async def no_numbers(one: Coordinator, context: Any) -> None:
    """Numbers that are NaN and infinite, with the right digest."""
    arrays = {"w": np.full(20_000, np.nan, "<f4"), "b": np.full(9, -np.inf, "<f8")}
    one.download = functools.partial(_whole, arrays)
    for kind in ("train", "evaluate", "query", "offer", "query.show"):
        message = one.real()
        message.parcel.kind = kind
        message.parcel.numbers.CopyFrom(_parcel("", "", b"", arrays).parcel.numbers)
        await one.say(context, message)
    await one.drain(0.5)


def _download(how: str) -> SiteAttack:
    async def download(one: Coordinator, context: Any, want: pb.Want) -> None:
        size = 200_000_000
        label = b"w\0<f4\0" + str(size // 4).encode()
        data = len(label).to_bytes(8, "little") + label + size.to_bytes(8, "little")
        with suppress(Exception):
            for count in range(one.large):
                one.said += 1
                if how == "empty":
                    part = b""
                elif how == "too long":
                    part = data + bytes((1 << 20) - len(data))
                    data = b""
                else:
                    part = data + bytes(1000)
                    data = b""
                await context.write(pb.Chunk(data=part).SerializeToString())
                if how == "stands still" and count:
                    await asyncio.sleep(10)
                if how == "cut" and count > 50:
                    break
        await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def attack(one: Coordinator, context: Any) -> None:
        one.download = functools.partial(download, one)
        message = one.real()
        size = 1_000_000 if how == "too long" else 200_000_100
        message.parcel.numbers.CopyFrom(pb.Numbers(sha256=one.chance.randbytes(32), size=size))
        await one.say(context, message)
        await one.drain(1.0)

    attack.__doc__ = f"A download that is {how}."
    return attack


async def bad_offers(one: Coordinator, context: Any) -> None:
    """Offers: other plans, rosters, runs; deep, huge, without end."""
    for _ in range(20):
        records = json.dumps(_bad_offer(one, json.loads(json.dumps(one._offer)))).encode()
        deep = [b"[" * 200_000, b'{"a":' * 50_000, b"[1e999]", b"1" * 100_000]
        records = one.chance.choice([records, records, records, one.chance.choice(deep)])
        await one.say(context, _parcel(one.number(), "offer", records))
    await one.drain(0.5)


def _bad_offer(one: Coordinator, offer: dict[str, Any]) -> dict[str, Any]:
    plan, roster = offer["plan"], offer["roster"]
    changes: list[Callable[[], Any]] = [
        lambda: plan.update(name=one.number()),
        lambda: plan.update(name="x" * 100_000),
        lambda: plan.update(model={"name": "os:system"}),
        lambda: plan.update(task=[]),
        lambda: plan["privacy"].update(epsilon=float("nan")),
        lambda: plan["privacy"].update(noise_multiplier=0),
        lambda: plan["training"].update(rounds=10**400),
        lambda: plan.update(sites=plan["sites"] * 10_000),
        lambda: plan.update(sites=[]),
        lambda: roster.clear(),
        lambda: roster.update(quorum=-1),
        lambda: offer.update(run="../../x"),
        lambda: offer.update(run=None),
    ]
    one.chance.choice(changes)()
    return offer


async def twice(one: Coordinator, context: Any) -> None:
    """Welcome again and again."""
    for _ in range(5):
        await one.say(context, WELCOME)


async def silent(one: Coordinator, context: Any) -> None:
    """No Welcome, ever."""
    one.said += 1
    await asyncio.sleep(one.chance.choice([0.1, 4.0]))


async def another_version(one: Coordinator, context: Any) -> None:
    """A Welcome of another version, or another message in its place."""
    words = [pb.ToSite(welcome=pb.Welcome(version=7)), pb.ToSite(), one.real()]
    await one.say(context, one.chance.choice(words))


async def statuses(one: Coordinator, context: Any) -> None:
    """Any status that does not say that the site is none of ours."""
    hopeless = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION)
    codes = [c for c in grpc.StatusCode if c not in (*hopeless, grpc.StatusCode.OK)]
    one.said += 1
    text = one.chance.choice(["", "x" * 3000, "\x1b[2J", "é\n" * 50])
    await context.abort(one.chance.choice(codes), text)


async def bomb(one: Coordinator, context: Any) -> None:
    """A compressed message that unpacks to a hundred megabytes."""
    context.set_compression(grpc.Compression.Gzip)
    await one.say(context, _parcel(one.number(), "query", bytes(100 << 20)))
    await one.drain(0.3)


async def too_large(one: Coordinator, context: Any) -> None:
    """A message of twenty megabytes."""
    await one.say(context, _parcel(one.number(), "query", bytes(20 << 20)))
    await one.drain(0.3)


_WITHOUT_WELCOME = (silent, another_version, bomb, statuses)
SITE_ATTACKS: tuple[SiteAttack, ...] = (
    turned, turned_records, turned_records, made_up, many_at_once, large_at_once, wrong_lengths,
    no_numbers, bad_offers, twice, silent, another_version, statuses, bomb, too_large,
    *(_download(how) for how in ("empty", "too long", "cut", "stands still")),
)  # fmt: skip
