"""A small history with entries of nearly every kind, written with the kit, and all its keys."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from verify_kit import (
    HUB,
    SITES,
    Federation,
    Log,
    digest,
    first,
    gate_event,
    plan_of,
    train_event,
    write_roster,
)

from privet.privacy.audit.verify.cost import accounting
from privet.privacy.audit.verify.formats import signatures

sys.path.append(str(Path(__file__).parents[2] / "campaigns"))

from meaning import Keys
from trial import Trial

RUN, APART = "run-1", "no patient works here"
OTHER = plan_of(name="refused")


def plan() -> dict[str, Any]:
    """A plan with the sections that a real one has."""
    made = plan_of(
        privacy={"trust": "local", "max_records": 1}, strategy={"min_sites": 2, "kind": "fedavg"}
    )
    return {
        **made, "title": "Three clinics", "seed": 0, "attested": {"H21": "one clinic each"},
        "task": {"kind": "tabular", "label": "y", "numeric": {"x": {"low": 0, "high": 1}}},
        "model": {"kind": "linear", "options": {}},
    }  # fmt: skip


def policy(site: str, key: str, name: str) -> dict[str, Any]:
    """A site's policy, as it is published; North has a second population."""
    made = _policy(site, key, name)
    if site == "North":
        for part, known, new in (("populations", "patients", "staff"), ("data", "er", "hr")):
            made[part][new] = {**made[part][known]}
        made["data"]["hr"].update(population="staff", disjoint=APART)
    return made


def _policy(site: str, key: str, name: str) -> dict[str, Any]:
    return {
        "site": site, "setting": "site", "attested": {"H21": "one clinic each"},
        "allow": {
            "approval": "manual", "approvers": 1, "coordinators": [f"sha256:{key}"],
            "max_parameters": 1000, "max_rounds": 2, "metrics": ["gate"], "models": ["linear"],
            "plans": [name], "tasks": ["tabular"],
        },
        "data": {"er": {"disjoint": "", "independent": "", "population": "patients"}},
        "populations": {
            "patients": {
                "delta": "1e-05", "epsilon": "8.0", "max_records": 1,
                "relation": "add_or_remove_one", "unit": "record",
            },
        },
    }  # fmt: skip


def history() -> Federation:
    """One run of two rounds: an attempt that broke, a refusal, a pause, a rotated key."""
    run_plan, again = plan(), list[dict[str, Any]]()
    name = digest(run_plan)

    def tweak(who: str, kind: str, value: dict[str, Any]) -> None:
        if kind == "policy":
            value["policy"] = policy(who, fed.order_key.hex, name)
        elif kind == "round":
            value["orders"] = [*(again if value["round"] == 1 else []), *value["orders"]]

    fed = Federation(tweak=tweak, setup=False)
    fed._setup("8.0", "site")
    north, east, south = fed.sites.values()
    north.add(
        "population", population="staff", unit="record", relation="add_or_remove_one",
        epsilon="8.0", delta="1e-05", max_records=1,
    )  # fmt: skip
    north.add("data-set", data_set="hr", population="staff", disjoint=APART)
    north.rotate()
    north.add("plan-refused", plan=digest(OTHER), by=["dpo"], how="manual")
    fed.approve(run_plan)
    model = digest(f"{RUN} 0".encode())
    fed.hub.add("run-opened", run=RUN, plan=name, model=model, sites=list(SITES))
    _break(fed, north, name, model, again)
    _refuse(fed, east, name, model, again)
    for number in (1, 2):
        after = digest(f"{RUN} {number}".encode())
        done = []
        for purpose, start in (("train", model), ("evaluate", after)):
            event = train_event(run_plan) if purpose == "train" else gate_event(run_plan)
            for site in SITES:
                tried = (number, purpose) == (1, "train") and site in ("North", "East")
                _, order = fed.order(RUN, site, number, purpose, name, start, 1 + tried)
                reservation = fed.reserve(site, order, event)
                done.append((site, order, fed.release(site, order, reservation, event)))
        fed.close_round(RUN, number, model, after, done)
        model = after
    fed.hub.add("run-closed", run=RUN, rounds=2, model=model, how="done", fault=None)
    south.add("budget-closed", population="patients")
    south.add("withdrawn", by=["dpo"])
    return fed


def _break(fed: Federation, log: Log, name: str, model: str, again: list[dict[str, Any]]) -> None:
    _, order = fed.order(RUN, log.name, 1, "train", name, model)
    reservation = fed.reserve(log.name, order, train_event(plan()))
    log.add("aborted", reservation=reservation, data_opened=True, reason="failed")
    again.append(_listed(order, "failed"))


def _refuse(fed: Federation, log: Log, name: str, model: str, again: list[dict[str, Any]]) -> None:
    log.add("paused", by=["dpo"])
    _, order = fed.order(RUN, log.name, 1, "train", name, model)
    fed.refuse(log.name, order, "refused-paused")
    log.add("resumed", by=["dpo"])
    again.append(_listed(order, "refused-paused"))


def _listed(order: dict[str, Any], answer: str) -> dict[str, Any]:
    return {
        "site": order["site"], "order": digest(order), "purpose": order["purpose"],
        "attempt": order["attempt"], "answer": answer,
    }  # fmt: skip


def keys_of(fed: Federation) -> Keys:
    """Every key, those that were rotated away among them."""
    keys = Keys()
    for log in fed.logs():
        for key in (first(log), log.key, log.witness, fed.recovery[log.name]):
            keys.add(key.private)
    keys.add(fed.order_key.private)
    return keys


def trial_in(folder: Path) -> Trial:
    """What forges this history, with its files in ``folder``."""
    fed = history()
    roster = write_roster(folder / "roster.json", fed.fingerprints())
    return Trial(fed.bundle(), roster, keys_of(fed), folder)


_seen: dict[str, Any] = {}
_ed25519, _epsilon = signatures.ed25519, accounting.epsilon
_fast = lru_cache(maxsize=None)(_ed25519)


def _once(*given: Any) -> Any:
    key = repr(given)
    if key not in _seen:
        _seen[key] = _epsilon(*given)
    return _seen[key]


def memoise(patch: pytest.MonkeyPatch) -> None:
    """Check the same signature, and compute the same epsilon, once: the answer cannot differ."""
    patch.setattr(signatures, "ed25519", _fast)
    patch.setattr(accounting, "epsilon", _once)


__all__ = ["HUB", "RUN", "history", "keys_of", "memoise", "plan", "policy", "trial_in"]
