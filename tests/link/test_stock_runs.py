"""A submitted run over a grid of Flower's kind: gathered, cut off, gone on with, refused.

Sites answer by their real endpoints, in this process; only SuperLink and SuperNodes are not there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict, UserConfig
from stock_kit import enrol

from privet.client.endpoint import SiteEndpoint
from privet.client.link.dial import LinkRequest
from privet.client.operator.decisions import note_policy
from privet.client.start import make_endpoint
from privet.client.stock_flower.clientapp import reply_of
from privet.common.errors import InputError, RunError
from privet.common.files.lock import alone
from privet.common.link import offer
from privet.common.models import initial_model
from privet.common.order import Status
from privet.common.plan import Plan
from privet.flower import client as bundle
from privet.flower import server as bundle_server
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.evidence.statement import Entry
from privet.privacy.policy import Policy
from privet.server import flower_serverapp
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import cancel, submit
from privet.server.snapshot import Snapshot, map_model
from privet.simulations.grid import InProcessGrid

SITES = ("North", "East")
Make = Callable[..., Any]


class Town:
    """A federation of two sites that came in by files, each answering by its endpoint."""

    def __init__(self, folder: Path, plan: Plan, frame_of: Make) -> None:
        self.plan = plan
        self.federation = MemberRegistry.found(folder / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2")
        self.policies = [
            enrol(self.federation, plan, folder / name, name, frame_of(80, number))
            for number, name in enumerate(SITES)
        ]
        self.run = submit(self.federation, plan, "first")
        self.endpoints: dict[Path, SiteEndpoint] = {}
        self.left = -1

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as a SuperNode with the launcher; what is asked after `left` messages is lost."""
        if not self.left:
            raise ConnectionError
        self.left -= 1

        def ask(policy: Path, kind: str, records: bytes, arrays: Any) -> Any:
            if policy not in self.endpoints:
                self.endpoints[policy] = make_endpoint(policy, None)
            told = self.endpoints[policy](LinkRequest(kind, "", records, arrays))
            return told.records, told.arrays

        policy = self.policies[int(str(context.node_config["partition-id"]))]
        return reply_of(message, policy, ask)

    def restart(self) -> None:
        """End every site's process."""
        for endpoint in self.endpoints.values():
            endpoint.close()
        self.endpoints.clear()

    def go(self, client: Any = None, patience: float = 0, run: str = "first") -> None:
        grid = Cut(client or self, len(SITES))
        flower_serverapp.run_submitted(self.federation, run, initial_model, grid, patience=patience)

    def entries(self, kind: str) -> list[int]:
        """How many entries of a kind each site's ledger holds."""
        logs = [self.endpoints[policy].ledger.log for policy in self.policies]
        return [[Entry.read(leaf).kind for leaf in log.store.leaves()].count(kind) for log in logs]


class Cut(InProcessGrid):
    """A grid whose SuperLink goes away when a site can no longer be reached."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if any(reply.has_error() and reply.error.reason == "ConnectionError" for reply in replies):
            raise ConnectionError("the SuperLink is gone")
        return replies


@pytest.fixture
def town(
    tmp_path: Path, plan_value: Make, frame_of: Make, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Town]:
    monkeypatch.setattr(flower_serverapp, "_OFFER_INTERVAL_S", 0.01)
    value = plan_value(metrics={"source": "off"})
    value["sites"] = [site for site in value["sites"] if site["name"] in SITES]
    made = Town(tmp_path, calibrated(Plan.parse(value, where="test")), frame_of)
    yield made
    made.restart()


def test_a_run_goes_on_where_its_superlink_was_lost(town: Town, tmp_path: Path) -> None:
    # Two offers, two questions who is there, two logs three times, then the first round.
    town.left = 2 + 2 + 6 + 1
    with pytest.raises(ConnectionError):
        town.go()
    assert town.run.status["state"] == "running" and town.entries("released") == [1, 0]
    town.left = -1
    town.restart()
    town.go()
    status = town.run.status
    assert (status["state"], status["round"]) == ("done", 2)
    for kind in ("reserved", "released"):
        assert town.entries(kind) == [2, 2], "the repeated order was paid once"
    model, facts = map_model(town.run.folder / "model" / "model.safetensors")
    assert facts == {"plan": town.plan.digest, "private": "true", "names": facts["names"]}
    assert all(np.isfinite(array).all() for array in model.values())
    with pytest.raises(InputError, match="run 'first' is done: submit another one"):
        town.go()


@pytest.mark.long
def test_a_run_keeps_to_its_data_set(town: Town) -> None:
    """An operator who changes the sizes of two data sets does not move a run to the other."""
    town.left = 2 + 2 + 6 + 1
    with pytest.raises(ConnectionError):
        town.go()
    town.left = -1
    town.restart()
    policy = town.policies[0]
    text = policy.read_text()
    before, data_set = text.split("[data.records]\n")
    moved = data_set.replace("nominal_size = ", "nominal_size = 1")
    assert moved != data_set
    policy.write_text(f"{before}[data.other]\n{data_set}\n[data.records]\n{moved.split('[')[0]}")
    with pytest.raises(RunError, match="North: refused-policy"):
        town.go()
    assert town.entries("reserved") == [1, 0]
    policy.write_text(text)
    town.go()
    assert town.run.status["state"] == "done"


def test_sites_that_are_not_ready_are_named_and_may_be_ready_later(town: Town) -> None:
    text = town.policies[0].read_text()
    town.policies[0].write_text(text.replace(town.plan.digest, "sha256:" + "0" * 64))
    with pytest.raises(RunError, match=r"North: waits-for-approval\); start the run again"):
        town.go()
    status = town.run.status
    assert status["state"] == "queued" and "North: waits-for-approval" in status["fault"]
    assert status["sites"] == {"North": "waits-for-approval", "East": "present"}
    town.policies[0].write_text(text)
    town.go()
    assert (town.run.status["state"], town.run.status["fault"]) == ("done", "")


def test_a_run_that_was_cancelled_while_it_waited_orders_nothing(town: Town) -> None:
    def cancelling(message: Message, context: Context) -> Message:
        if town.run.status["state"] == "waiting":
            cancel(town.federation, "first")
        return town(message, context)

    with pytest.raises(RunError, match="cancelled"):
        town.go(cancelling)
    assert town.run.status["state"] == "failed" and town.entries("reserved") == [0, 0]


@pytest.mark.long
def test_a_file_is_looked_at_in_each_offer_until_the_first_order(town: Town) -> None:
    """A run may wait for days for another site, and a file be moved meanwhile."""
    text = town.policies[1].read_text()
    town.policies[1].write_text(text.replace(town.plan.digest, "sha256:" + "0" * 64))
    records = town.policies[0].with_name("records.csv")
    for moved in (False, True):
        if moved:
            records.rename(records.with_suffix(".away"))
        with pytest.raises(RunError, match="not all sites are ready"):
            town.go()
        assert town.run.status["sites"]["North"] == ("refused-policy" if moved else "present")
    records.with_suffix(".away").rename(records)
    town.policies[1].write_text(text)
    town.go()
    assert town.run.status["state"] == "done"


@pytest.mark.parametrize("follows", [True, False])
def test_a_run_follows_a_policy_that_another_coordinators_offer_brought_into_force(
    town: Town, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    """A site's endpoints share a ledger: what one notes holds for all. The control does not look."""
    if not follows:
        monkeypatch.setattr(SiteEndpoint, "_follow_policy", lambda endpoint: None)
    path, changed = town.policies[0], []
    answer = SiteEndpoint.__call__

    def asked(endpoint: SiteEndpoint, message: LinkRequest) -> Any:
        if message.kind == "train" and endpoint.join.site == SITES[0] and not changed:
            changed.append(
                path.write_text(path.read_text().replace("[allow]", "[allow]\nmax_rounds = 9"))
            )
            note_policy(Policy.load(path), endpoint.ledger)
        return answer(endpoint, message)

    monkeypatch.setattr(SiteEndpoint, "__call__", asked)
    if follows:
        town.go()
        assert town.run.status["state"] == "done" and town.entries("released") == [2, 2]
    else:
        with pytest.raises(RunError, match="refused-policy"):
            town.go()


def test_another_roster_starts_no_other_trainer(town: Town) -> None:
    """A coordinator could keep a site busy with nothing else."""
    endpoint = make_endpoint(town.policies[0], None)
    roster = town.run.roster(town.federation)
    trainers = set()
    for sites in (roster.sites, roster.sites[::-1], roster.sites):
        offered = offer.encode("first", town.plan.to_dict(), replace(roster, sites=sites).to_dict())
        assert (
            offer.decode_answer(endpoint(LinkRequest(offer.KIND, "", offered, {})).records)
            == offer.READY
        )
        trainers.add(id(endpoint._training))
    endpoint.close()
    assert len(trainers) == 1


def test_code_of_a_plans_own_is_there_before_a_run_begins(
    tmp_path: Path, plan_value: Make, frame_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site without the plan's module is not ready; a changed module gets a new trainer."""
    value = plan_value(metrics={"source": "off"}, model={"kind": "gate_net:make"})
    value["sites"] = [site for site in value["sites"] if site["name"] in SITES]
    town = Town(tmp_path, calibrated(Plan.parse(value, where="test")), frame_of)
    (tmp_path / "own").mkdir()
    module = tmp_path / "own" / "gate_net.py"
    monkeypatch.syspath_prepend(tmp_path / "own")
    endpoint = make_endpoint(town.policies[0], None)
    roster = town.run.roster(town.federation).to_dict()
    offered = offer.encode("first", town.plan.to_dict(), roster)

    def told() -> Any:
        return offer.decode_answer(endpoint(LinkRequest(offer.KIND, "", offered, {})).records)

    assert told() is Status.REFUSED_POLICY and endpoint._training is None
    trainers = []
    for text in ("raise RuntimeError\n", "raise RuntimeError\n", "raise OSError\n"):
        module.write_text(text)
        importlib.invalidate_caches()
        assert told() == offer.READY
        trainers.append(endpoint._training)
    endpoint.close()
    assert trainers[0] is trainers[1] is not trainers[2]
    assert "gate_net" not in sys.modules


def test_a_waiting_run_is_asked_for_its_enrolled_sites_alone(town: Town) -> None:
    town.run.roster(town.federation)
    town.federation.revoke("East")
    with pytest.raises(InputError, match="'East' is not enrolled"):
        town.run.roster(town.federation)
    # Once a round was done its evidence has a roster, and that is the run's.
    town.run.snapshots.store(Snapshot(1, {"w": np.zeros(1, np.float32)}, {}))
    assert [site.name for site in town.run.roster(town.federation).sites] == list(SITES)


def test_nodes_without_the_launcher_are_not_sites(town: Town) -> None:
    """The bundle's own app is there instead, as if nobody had put the launcher first."""
    with pytest.raises(RunError, match=r"2 of the nodes did not say.*launcher"):
        town.go(bundle)
    assert town.run.status["sites"] == dict.fromkeys(SITES, "not connected")
    town.endpoints = {policy: make_endpoint(policy, None) for policy in town.policies}
    assert all(not endpoint.ledger.state.populations for endpoint in town.endpoints.values())


def test_one_coordinator_works_in_a_folder(town: Town) -> None:
    before = town.run.status
    with alone(town.federation.folder), pytest.raises(InputError, match="running here already"):
        town.go()
    assert town.run.status == before


@pytest.mark.parametrize("run", ["", "second", "../runs/first", "a/b"])
def test_what_was_not_submitted_is_not_run(town: Town, run: str) -> None:
    with pytest.raises(InputError, match="privet server submit"):
        town.go(run=run)


@pytest.mark.parametrize(
    ("hub", "said"), [("hub", "absolute path"), ("/nowhere", "privet server init")]
)
def test_the_app_names_a_federation(hub: str, said: str) -> None:
    config = UserConfig({"hub": hub, "run": "first", "wait": 0})
    context = Context(1, 0, UserConfig(), RecordDict(), config)
    with pytest.raises(InputError, match=said):
        bundle_server(InProcessGrid(bundle, 2, config=config), context)
