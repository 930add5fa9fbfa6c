"""A federation of three sites on real apps, in this process, small enough to run often.

Its parties are those of a simulation: keys, ledgers, witnesses, a journal, a roster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from privet.client.app import create_app as create_client_app
from privet.client.data.records import SiteData
from privet.client.site import Site
from privet.client.training.trainer import Trainer, mechanism
from privet.common.flat import Arrays, digest_arrays
from privet.common.models import initial_model
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting import events as ev
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.statement import Entry
from privet.privacy.mechanism.noise import Stream
from privet.server.app import create_app as create_server_app
from privet.server.evidence.collector import EvidenceCollector
from privet.server.evidence.journal import Journal
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import Snapshots
from privet.simulations.federation import SimulatedFederation
from privet.simulations.grid import InProcessGrid

RUN = "tiny-run"
ANSWERS = ("reserved", "refused", "released", "metric-released", "aborted")
"""Kinds of entries that come of orders."""


@dataclass
class Federation:
    """Sites behind one ``ClientApp``, and a way to run rounds over any grid."""

    plan: Plan
    folder: Path
    parties: SimulatedFederation
    roster: Roster
    frames: dict[str, pd.DataFrame]
    stream: Callable[[Order], Stream | None]
    kind: type[Site] = Site
    sites: list[Site] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    @property
    def client(self) -> ClientApp:
        return create_client_app(self.site_of)

    def site_of(self, context: Context) -> Site:
        return self.sites[int(str(context.node_config["partition-id"]))]

    def grid(self, kind: type[InProcessGrid] = InProcessGrid) -> InProcessGrid:
        return kind(self.client, len(self.sites))

    def run(
        self,
        grid: InProcessGrid | None = None,
        snapshots: str = "model",
        collector: Callable[[], EvidenceCollector] | None = None,
        run: str = RUN,
    ) -> Outcome:
        """Run every round of the plan and return what came of it."""
        outcomes: list[Outcome] = []
        seen: list[Progress] = []
        server = create_server_app(
            run,
            self.plan,
            lambda: initial_model(self.plan),
            Snapshots(self.folder / snapshots),
            collector or (lambda: self.parties.collector(self.roster)),
            observe=seen.append,
            finish=outcomes.append,
        )
        server(grid or self.grid(), context())
        assert seen == outcomes[0].progress
        return outcomes[0]

    def restart(
        self,
        name: str,
        open_data: Callable[[], SiteData] | None = None,
        kind: type[Site] | None = None,
        stream: Callable[[Order], Stream | None] | None = None,
    ) -> Site:
        """A site as a new process would make it, from what is on its disk."""
        return (kind or self.kind)(
            name,
            self.plan,
            self.home(name),
            self.parties.admission(name, self.roster),
            self.parties.witness(name),
            self.roster,
            Trainer(self.plan, name, open_data or (lambda: self.data(name)), stream or self.stream),
        )

    def data(self, name: str) -> SiteData:
        """A site's records, split as a simulation does; who asked is noted."""
        self.opened.append(name)
        frame = self.frames[name]
        cut = len(frame) - len(frame) // 5
        parts = frame.iloc[:cut], frame.iloc[cut:]
        return SiteData(*(part.reset_index(drop=True) for part in parts))

    def home(self, name: str) -> Path:
        """Where a site keeps what is its own."""
        return self.parties.home(name)

    def ledger(self, name: str) -> Ledger:
        """A fresh reading of a site's ledger from its file."""
        return self.parties.ledger(name)

    def entries(self, name: str) -> list[Entry]:
        """All entries of a site's ledger, from its file, by the signature of its key."""
        log = self.ledger(name).log
        return [Entry.read(leaf, (log.key.public,)) for leaf in log.store.leaves()]

    def answers(self, name: str) -> list[Entry]:
        """The entries that came of orders."""
        return [entry for entry in self.entries(name) if entry.kind in ANSWERS]

    def kinds(self, name: str) -> list[str]:
        """The kinds of :meth:`answers`."""
        return [entry.kind for entry in self.answers(name)]

    def charged(self, name: str) -> int:
        """How many training releases count against a site's population."""
        ((step, count),) = ev.group([mechanism(self.plan).event])
        steps = dict(ev.group(self.ledger(name).history())).get(step, 0)
        assert steps % count == 0
        return steps // count

    @cached_property
    def journal(self) -> Journal:
        """The coordinator's journal, another reading than a run's own."""
        return self.parties.collector(self.roster).journal

    def journal_entries(self, kind: str | None = None) -> list[Entry]:
        """The entries of the journal, from its file."""
        log = self.parties.collector(self.roster).journal.log
        entries = [Entry.read(leaf, (log.key.public,)) for leaf in log.store.leaves()]
        return [entry for entry in entries if kind in (None, entry.kind)]

    def bundle(self, name: str = "run.bundle") -> Path:
        """What an auditor is given of the run folder."""
        return write_bundle([self.folder], self.folder.parent / f"{self.folder.name}-{name}").path

    def verdict(self, name: str = "run.bundle") -> Verdict:
        """What the verifier says of the bundle, by the fingerprints of the roster."""
        pinned = self.folder / "roster-fingerprints.json"
        return verify(self.bundle(name), pinned, processes=1)

    def log(self, name: str) -> str:
        path = self.home(name) / "operator.log"
        return path.read_text() if path.exists() else ""

    def release(self, name: str, number: int, purpose: str = "train") -> Arrays:
        """What a site let out in a round, from its outbox."""
        site = next(site for site in self.sites if site.name == name)
        found = site.outbox.get(f"{RUN}/{purpose}/{number}/1")
        assert found is not None
        return found.arrays


class Silent(InProcessGrid):
    """Some nodes, East's alone unless said, receive orders and never answer; nor do they show logs."""

    silent_to: tuple[str, ...] = ("train", "evaluate", "query.show")
    nodes: tuple[int, ...] = (2,)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        return [
            reply for reply in replies
            if not reply.metadata.message_type.startswith(self.silent_to)
            or reply.metadata.src_node_id not in self.nodes
        ]  # fmt: skip


def context() -> Context:
    """A context for a ``ServerApp``."""
    return Context(
        run_id=1, node_id=0, node_config=UserConfig(), state=RecordDict(), run_config=UserConfig()
    )


@pytest.fixture
def federation(
    tmp_path: Path,
    plan_value: Callable[..., dict[str, Any]],
    frame_of: Callable[..., pd.DataFrame],
) -> Callable[..., Federation]:
    """Make a federation: ``frames`` replaces sites' records, other words change the plan."""

    def make(
        frames: dict[str, pd.DataFrame] | None = None,
        *,
        folder: str = "run",
        noise_seed: int | None = None,
        site: type[Site] = Site,
        ledgers: Path | None = None,
        cap: float | None = None,
        witnesses: int | None = None,
        **changes: Any,
    ) -> Federation:
        plan = Plan.parse(plan_value(**changes))
        records = {
            spec.name: frame_of(spec.nominal_size + 15, number, persons=12)
            for number, spec in enumerate(plan.sites)
        } | (frames or {})

        def stream(order: Order) -> Stream | None:
            if noise_seed is None and plan.privacy is not None:
                return None
            return Stream.seeded(noise_seed or 0, order.site, order.purpose, order.round)

        home = tmp_path / folder
        home.mkdir(parents=True)
        parties = SimulatedFederation(plan, home, ledgers, cap, witnesses=witnesses)
        made = Federation(plan, home, parties, parties.found(), records, stream, site)
        made.sites.extend(made.restart(spec.name) for spec in plan.participants)
        return made

    return make


@pytest.fixture
def order_for() -> Callable[..., Order]:
    """Make the signed order of round 1 for a site; other words replace its fields."""

    def make(fed: Federation, site: str, model: Arrays, /, **changes: Any) -> Order:
        fields = {
            "run": RUN, "site": site, "round": 1, "attempt": 1, "purpose": "train",
            "plan": fed.plan.digest, "model": digest_arrays(model), "parameters": tuple(model),
        }  # fmt: skip
        return fed.journal.sign(Order(**{**fields, **changes}))

    return make


@pytest.fixture
def start() -> Callable[[Plan], Arrays]:
    """The public initial model of a plan."""
    return initial_model


@pytest.fixture
def as_bytes() -> Callable[[RecordDict | Message], bytes]:
    """Return what would go over the wire."""
    from flwr.common.serde import recorddict_to_proto

    def encode(value: RecordDict | Message) -> bytes:
        content = value.content if isinstance(value, Message) else value
        return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))

    return encode


@pytest.fixture
def same() -> Callable[[Arrays, Arrays], bool]:
    """Whether two models are the same bit for bit."""

    def compare(one: Arrays, other: Arrays) -> bool:
        return list(one) == list(other) and all(
            one[name].dtype == other[name].dtype
            and np.array_equal(one[name].view(np.uint8), other[name].view(np.uint8))
            for name in one
        )

    return compare


@pytest.fixture
def turned() -> type[InProcessGrid]:
    """A grid whose replies arrive in the reverse order."""

    class Turned(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            return list(super().send_and_receive(messages, timeout=timeout))[::-1]

    return Turned
