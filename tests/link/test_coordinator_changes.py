"""Between two runs of one federation the coordinator moves and replaces its order key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from office_kit import Town, _free_port

from privet.client.link.coordinators import standing
from privet.client.operator.decisions import OperatorDecisions
from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.server.queue import cancel, told_of
from privet.server.rotation import rotate_orders

Make = Callable[..., Any]
SITES = ("North", "East")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]


@pytest.fixture
def town(tmp_path: Path, root: Path, plan_value: Make, frame_of: Make) -> Iterator[Town]:
    plan = plan_value(
        training={"rounds": 2, "steps": 1}, privacy={"noise_multiplier": 8.0},
        strategy={"min_sites": 2}, metrics={"source": "off"},
    )  # fmt: skip
    plan["sites"] = [site for site in plan["sites"] if site["name"] in SITES]
    frames = {name: frame_of(40, number) for number, name in enumerate(SITES)}
    made = Town(tmp_path / "town", root, Plan.parse(plan), frames)
    yield made
    made.close()


def until(check: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def kinds(town: Town, name: str) -> list[str]:
    store = Store(town.folder / name / "ledger" / "ledger.db")
    found = [Entry.read(leaf).kind for leaf in store.leaves()]
    store.close()
    return found


def order_keys_of(policy: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = standing(policy, OperatorDecisions.open(policy, None).ledger)[
        "coordinators"
    ]
    return list(found[0]["order_keys"])


def verdict(town: Town, run: str) -> Verdict:
    folder = town.federation.folder / "runs" / run
    sources = [folder, *(town.folder / name / "ledger" for name in SITES)]
    out = write_bundle(sources, town.folder / f"{run}.bundle").path
    return verify(out, folder / "roster-fingerprints.json", require_witnessed=run == "second")


@pytest.mark.long
def test_a_federation_goes_on_elsewhere_and_under_another_order_key(town: Town) -> None:
    federation, sites = town.federation, sorted(SITES)
    run = town.run_all()
    town.wait(run, lambda s: s["state"] in ("waiting", "running"))
    until(lambda: (run.folder / "coordinator" / "journal.db").exists())
    with pytest.raises(InputError, match="open runs"):
        rotate_orders(federation)
    town.wait(run, lambda s: s["state"] == "done")
    # While everybody is at work: nobody does anything at the sites.
    first, thiefs = federation.order_key(), (federation.keys / "orders.pem").read_bytes()
    old, new = rotate_orders(federation)
    assert (old, new) == (first.fingerprint, federation.order_key().fingerprint)
    for name in SITES:
        until(lambda: "order-key" in kinds(town, name))  # noqa: B023
    place = _free_port()
    federation.set_address(f"127.0.0.1:{place}")
    until(lambda: told_of(federation) == sites)
    town.kill("hub")
    town.port = place
    town.start("hub")
    second = town.submit("second")
    town.wait(second, lambda s: s["state"] == "done")
    for name in SITES:
        assert kinds(town, name).count("released") == 4
        (shown,) = order_keys_of(town.folder / name / "site.toml")
        assert shown == {"old": old, "new": new, "may_ask": True}
    for one in ("first", "second"):
        found = verdict(town, one)
        assert found.ok, found.faults
    # Who has an old copy of the key, and all else of the coordinator's, begins no run by it.
    town.kill("hub")
    mode = (federation.keys / "orders.pem").stat().st_mode
    (federation.keys / "orders.pem").write_bytes(thiefs)
    (federation.keys / "orders.pem").chmod(mode)
    town.start("hub")
    before = {name: kinds(town, name) for name in SITES}
    third = town.submit("third")
    town.wait(third, lambda s: s.get("sites", {}) == dict.fromkeys(SITES, "refused-policy"))
    assert {name: kinds(town, name) for name in SITES} == before
    cancel(federation, "third")


def test_a_policy_that_takes_listed_keys_alone_waits_for_its_operator(town: Town) -> None:
    federation = town.federation
    for name in SITES:
        path = town.folder / name / "site.toml"
        path.write_text(path.read_text() + 'key_rotation = "listed"\n')
    town.start_all()
    old, new = rotate_orders(federation)
    run = town.submit()
    town.wait(run, lambda s: s.get("sites", {}) == dict.fromkeys(SITES, "refused-policy"))
    for name in SITES:
        assert "order-key" not in kinds(town, name)
        path = town.folder / name / "site.toml"
        (shown,) = order_keys_of(path)
        assert shown == {"old": old, "new": new, "may_ask": False}
        path.write_text(path.read_text().replace(old, f'{old}", "{new}'))
    town.wait(run, lambda s: s["state"] == "done")
    assert all("order-key" in kinds(town, name) for name in SITES)
    found = verdict(town, "first")
    assert found.ok, found.faults
