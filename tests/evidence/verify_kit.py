"""A small writer of bundles for the tests of the verifier, written from the format page.

It shares nothing with the verifier or with the program's writer. ``tweak`` is called with every
entry before it is signed, so that a test can plant a fault that is properly signed and logged.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Tweak = Callable[[str, str, dict[str, Any]], None]
SITES = ("North", "East", "South Bay")
HUB = "Hub"
TYPE = "application/vnd.in-toto+json"
START = 1_795_000_000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    return "sha256:" + sha(value if isinstance(value, bytes) else rfc8785.dumps(value))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pae(kind: str, payload: bytes) -> bytes:
    return f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload


def clock(ticks: int) -> str:
    return datetime.fromtimestamp(START + ticks, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Key:
    """A key pair with a name; ``prefix`` makes the name PREFIX/NAME/FP16."""

    def __init__(self, prefix: str, who: str, kind: int, *, salt: str = "", name: str = "") -> None:
        seed = hashlib.sha256(f"{prefix}|{who}|{salt}".encode()).digest()
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.hex = sha(self.raw)
        self.name = name or f"{prefix}/{who.replace(' ', '_')}/{self.hex[:16]}"
        self.kind = kind
        self.id = hashlib.sha256(self.name.encode() + b"\n" + bytes([kind]) + self.raw).digest()[:4]

    @property
    def vkey(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64(bytes([self.kind]) + self.raw)}"

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)

    def line(self, body: str, time: int = START) -> str:
        if self.kind == 1:
            signed = self.sign(body.encode())
        else:
            message = f"cosignature/v1\ntime {time}\n{body}".encode()
            signed = time.to_bytes(8, "big") + self.sign(message)
        return f"— {self.name} {b64(self.id + signed)}\n"


def tree_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962, section 2.1, by recursion."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_root(leaves[:k]) + tree_root(leaves[k:])).digest()


def tree_path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) <= 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if index < k:
        return [*tree_path(index, leaves[:k]), tree_root(leaves[k:])]
    return [*tree_path(index - k, leaves[k:]), tree_root(leaves[:k])]


def tree_consistency(first: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    if first == len(leaves):
        return [] if whole else [tree_root(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if first <= k:
        return [*tree_consistency(first, leaves[:k], whole), tree_root(leaves[k:])]
    return [*tree_consistency(first - k, leaves[k:], False), tree_root(leaves[:k])]


SUBJECT = {
    "genesis": "key", "key-rotated": "key", "order-key": "key", "policy": "policy",
    "plan-approved": "plan",
    "plan-refused": "plan", "run-opened": "plan", "reserved": "order", "refused": "order",
    "released": "release", "metric-released": "release", "round": "model", "run-closed": "model",
    "run-resumed": "model",
}  # fmt: skip


def subject(kind: str, predicate: dict[str, Any]) -> list[dict[str, Any]]:
    name = SUBJECT.get(kind, "ledger")
    if name == "key":
        value = sha(base64.b64decode(predicate["key"].split("+", 2)[2])[1:])
    elif name == "policy":
        value = sha(rfc8785.dumps(predicate["policy"]))
    elif name == "ledger":
        value = sha(predicate["log"].encode())
    else:
        field = {"release": "digest", "model": "next" if kind == "round" else "model"}
        value = predicate[field.get(name, name)][7:]
    return [{"name": name, "digest": {"sha256": value}}]


class Log:
    """One append-only log and its checkpoints."""

    def __init__(self, role: str, name: str, tweak: Tweak | None = None) -> None:
        self.role, self.name, self.tweak = role, name, tweak
        self.key = Key(f"privet.{role}", name, 1)
        self.witness = Key("privet.witness", name, 4)
        self.origin = self.key.name
        self.leaves: list[bytes] = []
        self.predicates: list[tuple[str, dict[str, Any]]] = []
        self.notes: dict[int, str] = {}
        self.ticks = 0

    def add(self, kind: str, /, **fields: Any) -> int:
        """Append an entry; return its sequence."""
        signers = fields.pop("signers", None)
        self.ticks += 10
        sequence = len(self.leaves)
        predicate = {"sequence": sequence, "time": clock(self.ticks), "log": self.origin, **fields}
        if self.tweak is not None:
            self.tweak(self.name, kind, predicate)
        self.predicates.append((kind, predicate))
        statement = {
            "_type": "https://in-toto.io/Statement/v1", "subject": subject(kind, predicate),
            "predicateType": f"urn:privet:{self.role}:v1:{kind}", "predicate": predicate,
        }  # fmt: skip
        self.leaves.append(envelope(rfc8785.dumps(statement), signers or [self.key]))
        return sequence

    def rotate(self, salt: str = "new", why: str = "rotation", by: Key | None = None) -> None:
        new = Key(f"privet.{self.role}", self.name, 1, salt=salt, name=self.origin)
        self.add("key-rotated", key=new.vkey, why=why, signers=[by or self.key, new])
        self.key = new

    def root(self, size: int | None = None) -> bytes:
        return tree_root(self.leaves[:size])

    def checkpoint(self, cosigners: Iterable[Key], key: Key | None = None) -> int:
        """Sign the head; return its size."""
        size = len(self.leaves)
        body = f"{self.origin}\n{size}\n{b64(self.root())}\n"
        others = sorted(cosigners, key=lambda k: k.name)
        lines = [k.line(body, START + self.ticks) for k in (key or self.key, *others)]
        self.notes[size] = body + "\n" + "".join(lines)
        return size

    def proof(self, index: int, size: int) -> str:
        path = "".join(b64(h) + "\n" for h in tree_path(index, self.leaves[:size]))
        return f"c2sp.org/tlog-proof@v1\nindex {index}\n{path}\n{self.notes[size]}"


def envelope(payload: bytes, signers: list[Key]) -> bytes:
    return rfc8785.dumps({
        "payload": b64(payload), "payloadType": TYPE,
        "signatures": [{"keyid": k.hex, "sig": b64(k.sign(pae(TYPE, payload)))} for k in signers],
    })  # fmt: skip


def plan_of(**changes: Any) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "name": "tiny",
        "sites": [{"name": name, "nominal_size": 100} for name in SITES],
        "training": {"rounds": 2, "steps": 3, "sample_rate": 0.5},
        "strategy": {"average_last": 1},
        "privacy": {
            "epsilon": 8.0, "delta": 1e-5, "unit": "record",
            "relation": "add_or_remove_one", "clip": 0.5, "noise_multiplier": 4.0,
        },
        "metrics": {"source": "gate", "every": 1, "noise_multiplier": 20.0},
    }  # fmt: skip
    for key, change in changes.items():
        plan[key] = {**plan[key], **change} if isinstance(change, dict) else change
    return plan


def gaussian(sd: float, sensitivity: float) -> dict[str, Any]:
    return {"type": "gaussian", "standard_deviation": repr(sd), "sensitivity": repr(sensitivity)}


def discrete(sd: int, sensitivity: int = 2**20) -> dict[str, Any]:
    return {"type": "discrete_gaussian", "standard_deviation": sd, "sensitivity": sensitivity}


def repeated(event: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "repeated", "event": event, "count": count}


def sampled(rate: float, event: dict[str, Any]) -> dict[str, Any]:
    return {"type": "poisson_sampled", "sample_rate": repr(rate), "event": event}


def train_event(plan: dict[str, Any]) -> dict[str, Any]:
    if "privacy" not in plan:
        return {"type": "non_private", "reason": "no privacy"}
    q, steps = float(plan["training"]["sample_rate"]), plan["training"]["steps"]
    clip = float(plan["privacy"]["clip"])
    step = gaussian(float(plan["privacy"]["noise_multiplier"]) * clip, clip)
    return repeated(step if q == 1 else sampled(q, step), steps)


def gate_event(plan: dict[str, Any]) -> dict[str, Any]:
    if "privacy" not in plan:
        return {"type": "non_private", "reason": "no privacy"}
    return discrete(math.ceil(Fraction(plan["metrics"]["noise_multiplier"]) * 2**20))


def gate_event_before(plan: dict[str, Any]) -> dict[str, Any]:
    """As the gate was charged before it had integer weights."""
    return gaussian(float(plan["metrics"]["noise_multiplier"]), 1.0)


class Federation:
    """Three sites and a coordinator; ``bundle()`` gives the lines of a bundle."""

    def __init__(
        self, *, tweak: Tweak | None = None, cap: str | None = "8.0", setting: str = "site",
        quorum: int = 2, setup: bool = True, journal: bool = True,
    ) -> None:  # fmt: skip
        self.quorum, self.journal_here = quorum, journal
        self.order_key = Key("privet.orders", HUB, 1)
        self.sites = {name: Log("ledger", name, tweak) for name in SITES}
        self.hub = Log("journal", HUB, tweak)
        self.tweak = tweak
        #: Sites whose head nobody cosigns, in a bundle without a journal.
        self.alone: set[str] = set()
        self.orders: list[dict[str, Any]] = []
        self.plans: list[dict[str, Any]] = []
        self.receipts: list[dict[str, Any]] = []
        self.recovery = {name: Key("recovery", name, 1) for name in (*SITES, HUB)}
        if setup:
            self._setup(cap, setting)

    def logs(self) -> list[Log]:
        return [*self.sites.values(), self.hub]

    def genesis(self, log: Log, setting: str = "site") -> None:
        kind = {"ledger": "site", "journal": "coordinator"}[log.role]
        more = {"orders": self.order_key.vkey} if kind == "coordinator" else {}
        log.add(
            "genesis", **{kind: log.name}, key=log.key.vkey, witness=log.witness.vkey,
            recovery=self.recovery[log.name].vkey, setting=setting, software="kit 1", **more,
        )  # fmt: skip

    def _setup(self, cap: str | None, setting: str) -> None:
        for log in self.logs():
            self.genesis(log, setting)
        for log in self.sites.values():
            log.add(
                "population", population="patients", unit="record", relation="add_or_remove_one",
                epsilon=cap, delta="1e-05", max_records=1,
            )  # fmt: skip
            log.add("data-set", data_set="er", population="patients", disjoint="")
            log.add("policy", policy=self.policy(log.name, cap, setting))

    def policy(self, site: str, cap: str | None, setting: str, **changes: Any) -> dict[str, Any]:
        """A policy as a site publishes it; keys that no rule reads may be any."""
        terms = {
            "unit": "record", "relation": "add_or_remove_one", "epsilon": cap, "delta": "1e-05",
            "max_records": 1,
        }  # fmt: skip
        allow = {
            "tasks": ["*"], "models": ["*"], "metrics": ["public", "gate", "off"],
            "coordinators": ["sha256:" + self.order_key.hex], "plans": [], "max_rounds": 1000,
            "approval": "manual", "approvers": 1,
        }  # fmt: skip
        return {
            "site": site, "setting": "site" if setting == "site" else "simulation",
            "populations": {"patients": terms}, "allow": {**allow, **changes},
            "data": {"er": {"population": "patients", "disjoint": ""}}, "note": "Größe ✓",
        }  # fmt: skip

    def approve(self, plan: dict[str, Any]) -> str:
        self.plans.append(plan)
        for log in self.sites.values():
            log.add("plan-approved", plan=digest(plan), by=["dpo"], how="manual")
        return digest(plan)

    def order(self, run: str, site: str, round_: int, purpose: str, plan: str, model: str,
              attempt: int = 1) -> tuple[str, dict[str, Any]]:  # fmt: skip
        order = {
            "run": run, "site": site, "round": round_, "attempt": attempt, "purpose": purpose,
            "plan": plan, "model": model, "parameters": ["w", "b"],
        }  # fmt: skip
        if self.tweak is not None:
            self.tweak(site, "order", order)
        self.orders.append(order)
        return digest(order), order

    def slot(self, order: dict[str, Any]) -> dict[str, Any]:
        """The fields of 'reserved' and 'refused' that say which order was answered."""
        fields = ("run", "round", "attempt", "purpose", "plan", "model")
        kept = {name: order[name] for name in fields}
        return {**kept, "order": digest(order), "keyid": self.order_key.hex}

    def refuse(self, site: str, order: dict[str, Any], status: str, **more: Any) -> int:
        return self.sites[site].add("refused", **{**self.slot(order), "status": status, **more})

    def reserve(self, site: str, order: dict[str, Any], event: dict[str, Any], **more: Any) -> int:
        fields = {
            "population": "patients", "data_set": "er", **self.slot(order),
            "code": digest(b"code"), "event": event, "self_tests": ["H6", "H16"], **more,
        }  # fmt: skip
        return self.sites[site].add("reserved", **fields)

    def release(self, site: str, order: dict[str, Any], reservation: int, event: dict[str, Any],
                **more: Any) -> int:  # fmt: skip
        kind = "released" if order["purpose"] == "train" else "metric-released"
        fields = {
            "reservation": reservation, "order": digest(order),
            "digest": digest(f"release of {digest(order)}".encode()), "event": event,
            "reproducible": False, **more,
        }  # fmt: skip
        return self.sites[site].add(kind, **fields)

    def ask(
        self, run: str, round_: int, purpose: str, plan: dict[str, Any], model: str
    ) -> list[Any]:
        """One order to each site, answered: (site, order, entry) for each."""
        event = train_event(plan) if purpose == "train" else gate_event(plan)
        done = []
        for site in SITES:
            _, order = self.order(run, site, round_, purpose, digest(plan), model)
            reservation = self.reserve(site, order, event)
            done.append((site, order, self.release(site, order, reservation, event)))
        return done

    def witness(self, log: Log, key: Key | None = None, most: int | None = None) -> int:
        """All others, or the first ``most`` of them, cosign the head of ``log``."""
        others = [other.witness for other in self.logs() if other is not log]
        return log.checkpoint(others[:most], key)

    def run(self, run: str = "run-1", plan: dict[str, Any] | None = None, rounds: int | None = None,
            close: str | None = "done", moves: bool | None = None) -> None:  # fmt: skip
        """``moves``: whether a round ends with another model; default where the plan trains."""
        plan = plan_of() if plan is None else plan
        name = self.approve(plan) if plan not in self.plans else digest(plan)
        model = digest(f"{run} 0".encode())
        sites = [site["name"] for site in plan["sites"]]
        self.hub.add("run-opened", run=run, plan=name, model=model, sites=sites)
        trains = plan["training"]["rounds"] > 0
        count = (plan["training"]["rounds"] or 1) if rounds is None else rounds
        gate = plan.get("metrics", {}).get("source") == "gate"
        for round_ in range(1, count + 1):
            after = digest(f"{run} {round_}".encode()) if moves or trains else model
            done = self.ask(run, round_, "train", plan, model) if trains else []
            every = plan["metrics"]["every"] if gate else 1
            if gate and (round_ % every == 0 or round_ == max(1, plan["training"]["rounds"])):
                done += self.ask(run, round_, "evaluate", plan, after)
            self.close_round(run, round_, model, after, done)
            model = after
        if close is not None:
            fault = None if close == "done" else "stopped"
            self.hub.add("run-closed", run=run, rounds=count, model=model, how=close, fault=fault)

    def close_round(self, run: str, round_: int, model: str, after: str, done: list[Any]) -> None:
        sizes = {log.name: self.witness(log) for log in self.sites.values()}
        witnessed = [
            {
                "log": log.origin, "size": sizes[log.name],
                "root": "sha256:" + log.root(sizes[log.name]).hex(),
                "cosigners": sorted(o.witness.name for o in self.logs() if o is not log),
            }
            for log in self.sites.values()
        ]  # fmt: skip
        items: dict[str, list[Any]] = {"train": [], "evaluate": []}
        listed = []
        for site, order, entry in done:
            log = self.sites[site]
            purpose, attempt = order["purpose"], order["attempt"]
            items[purpose].append({
                "site": site, "log": log.origin, "entry": entry,
                "digest": log.predicates[entry][1]["digest"],
            })  # fmt: skip
            listed.append({
                "site": site, "order": digest(order), "purpose": purpose, "attempt": attempt,
                "answer": "released",
            })  # fmt: skip
        self.hub.add(
            "round", run=run, round=round_, model=model, next=after, shown=after,
            joined=items["train"], metrics=items["evaluate"], orders=listed, witnessed=witnessed,
        )  # fmt: skip
        for purpose in ("train", "evaluate"):
            for site, order, entry in done:
                if order["purpose"] == purpose:
                    log = self.sites[site]
                    self.receipts.append({
                        "kind": "receipt", "run": run, "round": round_, "purpose": purpose,
                        "site": site, "proof": log.proof(entry, sizes[site]),
                    })  # fmt: skip

    def roster(self) -> dict[str, Any]:
        return {
            "format": "privet/roster/v1", "quorum": self.quorum,
            "coordinator": {
                "name": HUB, "journal": first(self.hub).vkey, "orders": self.order_key.vkey,
                "witness": self.hub.witness.vkey,
            },
            "sites": [
                {"name": log.name, "ledger": first(log).vkey, "witness": log.witness.vkey}
                for log in self.sites.values()
            ],
        }  # fmt: skip

    def fingerprints(self) -> dict[str, Any]:
        """The roster as it is handed over out of band."""
        roster = self.roster()
        for member in (roster["coordinator"], *roster["sites"]):
            for field, text in member.items():
                if field != "name":
                    member[field] = digest(base64.b64decode(text.split("+", 2)[2])[1:])
        return roster

    def order_line(self, order: dict[str, Any]) -> dict[str, Any]:
        message = pae("application/vnd.privet.order+json", rfc8785.dumps(order))
        return {
            "kind": "order", "order": order, "keyid": self.order_key.hex,
            "sig": b64(self.order_key.sign(message)),
        }  # fmt: skip

    def bundle(self) -> list[bytes]:
        """The lines of the bundle without newlines and without the end line."""
        values: list[Any] = [
            {"kind": "bundle", "format": "privet/bundle/v1"},
            {"kind": "roster", "roster": self.roster()},
        ]
        values += [{"kind": "plan", "plan": plan} for plan in sorted(self.plans, key=digest)]
        if self.journal_here:
            slot = ("run", "round", "purpose", "attempt", "site")
            ordered = sorted(self.orders, key=lambda o: tuple(o[k] for k in slot))
            values += [self.order_line(order) for order in ordered]
        lines = [rfc8785.dumps(value) for value in values]
        for log in self.logs() if self.journal_here else self.sites.values():
            if len(log.leaves) not in log.notes:
                self.witness(log, most=self.quorum)
            role = "site" if log.role == "ledger" else "coordinator"
            lines.append(rfc8785.dumps({
                "kind": "log", "log": log.origin, "name": log.name, "role": role,
                "size": len(log.leaves),
            }))  # fmt: skip
            lines += log.leaves
            notes = log.notes
            if not self.journal_here:
                last = self.witness(log, most=0 if log.name in self.alone else self.quorum)
                notes = {last: notes[last]}
            lines += [
                rfc8785.dumps({"kind": "checkpoint", "note": notes[size]}) for size in sorted(notes)
            ]
        if self.journal_here:
            lines += [rfc8785.dumps(receipt) for receipt in self.receipts]
        return lines


def first(log: Log) -> Key:
    return Key(f"privet.{log.role}", log.name, 1)


def write(path: Path, lines: list[bytes]) -> Path:
    """Write lines and the end line."""
    text = b"".join(line + b"\n" for line in lines)
    path.write_bytes(text + rfc8785.dumps({"kind": "end", "sha256": sha(text)}) + b"\n")
    return path


def write_roster(path: Path, roster: dict[str, Any]) -> Path:
    path.write_text(json.dumps(roster, indent=2), encoding="utf-8")
    return path
