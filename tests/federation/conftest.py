"""A federation of three sites on real apps, in this process, small enough to run often."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from privet.client.app import create_app as create_client_app
from privet.client.site import Site, budget_of
from privet.client.trainer import SiteData
from privet.common.order import Order
from privet.common.plan import Plan
from privet.common.release import Arrays, digest_arrays
from privet.privacy.ledger import RunHistory
from privet.privacy.noise import Stream
from privet.server.app import create_app as create_server_app
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import Snapshots
from privet.simulations.grid import InProcessGrid
from privet.simulations.run import initial_model

RUN = "tiny-run"


@dataclass
class Federation:
    """Sites behind one ``ClientApp``, and a way to run rounds over any grid."""

    plan: Plan
    folder: Path
    sites: list[Site]
    frames: dict[str, pd.DataFrame]
    opened: list[str] = field(default_factory=list)

    @property
    def client(self) -> ClientApp:
        return create_client_app(self.site_of)

    def site_of(self, context: Context) -> Site:
        return self.sites[int(str(context.node_config["partition-id"]))]

    def grid(self, kind: type[InProcessGrid] = InProcessGrid) -> InProcessGrid:
        return kind(self.client, len(self.sites))

    def run(self, grid: InProcessGrid | None = None, snapshots: str = "model") -> Outcome:
        """Run every round of the plan and return what came of it."""
        outcomes: list[Outcome] = []
        seen: list[Progress] = []
        server = create_server_app(
            RUN,
            self.plan,
            lambda: initial_model(self.plan),
            Snapshots(self.folder / snapshots),
            observe=seen.append,
            finish=outcomes.append,
        )
        server(grid or self.grid(), context())
        assert seen == outcomes[0].progress
        return outcomes[0]

    def ledger(self, name: str) -> RunHistory:
        """A fresh reading of a site's ledger from its file."""
        return RunHistory(self.folder / name / "events.jsonl", budget_of(self.plan))

    def log(self, name: str) -> str:
        path = self.folder / name / "operator.log"
        return path.read_text() if path.exists() else ""

    def release(self, name: str, number: int, purpose: str = "train") -> Arrays:
        """What a site let out in a round, from its outbox."""
        site = next(site for site in self.sites if site.name == name)
        found = site.outbox.get(f"{RUN}/{purpose}/{number}/1")
        assert found is not None
        return found.arrays


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
        folder: str = "sites",
        noise_seed: int | None = None,
        site: type[Site] = Site,
        **changes: Any,
    ) -> Federation:
        plan = Plan.parse(plan_value(**changes))
        records = {
            spec.name: frame_of(spec.nominal_size + 15, number, persons=12)
            for number, spec in enumerate(plan.sites)
        } | (frames or {})
        made = Federation(plan, tmp_path / folder, [], records)

        def open_data(name: str) -> SiteData:
            made.opened.append(name)
            frame = records[name]
            cut = len(frame) - len(frame) // 5
            return SiteData(frame.iloc[:cut].reset_index(drop=True),
                            frame.iloc[cut:].reset_index(drop=True))  # fmt: skip

        def stream(order: Order) -> Stream | None:
            if noise_seed is None and plan.privacy is not None:
                return None
            return Stream.seeded(noise_seed or 0, order.site, order.purpose, order.round)

        for spec in plan.sites:
            home = made.folder / spec.name
            ledger = RunHistory(home / "events.jsonl", budget_of(plan))
            made.sites.append(
                site(spec.name, plan, home, ledger, _call(open_data, spec.name), stream)
            )
        return made

    return make


def _call(function: Callable[[str], SiteData], name: str) -> Callable[[], SiteData]:
    return lambda: function(name)


@pytest.fixture
def order_for() -> Callable[..., Order]:
    """Make the order of round 1 for a site; other words replace its fields."""

    def make(plan: Plan, site: str, model: Arrays, /, **changes: Any) -> Order:
        fields = {
            "run": RUN, "site": site, "round": 1, "attempt": 1, "purpose": "train",
            "plan": plan.digest, "model": digest_arrays(model), "parameters": tuple(model),
        }  # fmt: skip
        return Order(**{**fields, **changes})

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
