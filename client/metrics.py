"""The Prometheus metrics of a site's client, on the site's own machine.

They hold only facts that the ledger and the link reveal anyway. The time of an order depends on the
number of records drawn, which is never published: so seconds are one sum, in whole seconds, from
order to answer, which the coordinator can measure as well.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from privet.client.link.coordinators import Membership
from privet.client.link.dial import Dialer, LinkRequest, LinkResponse
from privet.client.link.refusals import Refusals
from privet.client.operator.status import site_standing
from privet.common.errors import LedgerError, PolicyError
from privet.common.flower.wire import status_of
from privet.common.link.identity import read_certificate
from privet.common.order import Status
from privet.common.output.metrics import counter, gauge
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.policy import Policy

_PURPOSES = ("train", "evaluate")
_STATES = ("open", "paused", "withdrawn")
_COORDINATOR = ("coordinator",)
_TERMS = ("population", "delta", "unit", "relation")


class ClientMetrics(Collector):
    """Read the state of dialers and ledger on each scrape.

    Args:
        links: the site's dialers, each with its membership.
        policy: reads the site's policy as it is now.
    """

    def __init__(
        self, links: Sequence[tuple[Membership, Dialer]], policy: Callable[[], Policy]
    ) -> None:
        self._links = [(one.name, one, dialer) for one, dialer in links]
        self._policy = policy
        self._orders: Counter[tuple[str, str]] = Counter()
        self._seconds = 0.0
        self._released = 0
        self._kept: Policy | None = None
        self._ledger: Ledger | None = None
        self._known: tuple[Any, dict[str, Any]] = None, {}
        for _, dialer in links:
            dialer.on_answer = self._note

    def _note(self, asked: LinkRequest, told: LinkResponse, seconds: float) -> None:
        if asked.kind in _PURPOSES:
            self._orders[asked.kind, str(status_of(told.records) or Status.FAILED)] += 1
            self._seconds += seconds
            if status_of(told.records) == Status.RELEASED:
                self._released = int(time.time())

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        yield from self._link()
        yield from self._orders_now()
        yield from self._standing()

    def _link(self) -> Iterable[Metric]:
        tallies = {name: dialer.tally for name, _, dialer in self._links}
        yield gauge(
            "client_connected", "1 if this site attends at the coordinator.", _COORDINATOR,
            {(name,): tally.connected for name, tally in tallies.items()},
        )  # fmt: skip
        yield counter(
            "client_streams", "Streams that were begun; all but the first are reconnects.",
            _COORDINATOR, {(name,): tally.streams for name, tally in tallies.items()},
        )  # fmt: skip
        yield counter(
            "client_bytes", "Bytes of messages, before gRPC and TLS add theirs.",
            (*_COORDINATOR, "direction"),
            {(name, way): getattr(tally, way)
             for name, tally in tallies.items() for way in ("received", "sent")},
        )  # fmt: skip
        files = {name: place.link / "link.pem" for name, place, _ in self._links}
        ends: dict[tuple[str, ...], float] = {
            (name,): read_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
            for name, path in files.items()
        }
        yield gauge(
            "client_certificate_expiry_timestamp_seconds", "When the site's certificate ends.",
            _COORDINATOR, ends,
        )  # fmt: skip

    def _orders_now(self) -> Iterable[Metric]:
        answers = [str(status) for status in Status if status is not Status.PRESENT]
        yield counter(
            "client_orders", "Orders by what was answered.", ("purpose", "status"),
            {(p, said): self._orders[p, said] for p in _PURPOSES for said in answers},
        )  # fmt: skip
        yield counter(
            "client_busy_seconds", "Whole seconds from orders to their answers, in sum.", (),
            {(): int(self._seconds)},
        )  # fmt: skip
        yield gauge(
            "client_last_release_timestamp_seconds",
            "When an order was last answered with a release, in whole seconds; 0 before the first.",
            (), {(): self._released},
        )  # fmt: skip

    def _standing(self) -> Iterable[Metric]:
        policy, valid = self._read_policy()
        yield gauge("client_policy_valid", "1 if the policy can be read.", (), {(): valid})
        try:
            value = self._now(policy)
        except LedgerError:
            # Its key was replaced meanwhile, or it is damaged: then the metrics say only this.
            self._ledger = None
            value = self._now(policy)
        yield gauge(
            "client_site_state", "1 for the state the site is in.", ("state",),
            {(state,): value["state"] == state for state in _STATES},
        )  # fmt: skip
        yield gauge("client_ledger_entries", "Entries of the ledger.", (), {(): value["entries"]})
        yield gauge(
            "client_ledger_witnessed", "Entries under the last head that witnesses cosigned.", (),
            {(): value["witnessed"]},
        )  # fmt: skip
        yield gauge(
            "client_ledger_open", "Reservations that are not finished.", (),
            {(): len(value["open"])},
        )  # fmt: skip
        failed = {(one["plan"],): one for one in value["plans"] if "failed_attempts" in one}
        yield gauge(
            "client_plan_failed_attempts", "Attempts of a plan that failed in a row.", ("plan",),
            {name: one["failed_attempts"] for name, one in failed.items()},
        )  # fmt: skip
        yield gauge(
            "client_plan_closed", "1 for a plan that its failures closed here.", ("plan",),
            {name: one["closed"] for name, one in failed.items()},
        )  # fmt: skip
        yield gauge(
            "client_offer_waits", "1 while an offered plan waits for approval here.", (),
            {(): self._waits()},
        )  # fmt: skip
        for key, text in (
            ("epsilon", "ε that a population has spent, over its life."),
            ("cap", "ε that a population may spend, over its life."),
            ("cap_minus_spent", "The cap minus what was spent."),
        ):
            name = {"epsilon": "spent", "cap": "cap", "cap_minus_spent": "left"}[key]
            found = {
                tuple(str(one[term]) for term in _TERMS): float(one[key])
                for one in value["populations"]
                if one[key] is not None
            }
            yield gauge(f"client_epsilon_{name}", text, _TERMS, found)

    def _waits(self) -> bool:
        """Whether a coordinator's last offer was answered that its plan waits for approval."""
        offers = [Refusals(place.state).read()["offer"] for _, place, _ in self._links]
        return any(o is not None and o.get("status") == Status.WAITS_FOR_APPROVAL for o in offers)

    def _read_policy(self) -> tuple[Policy, bool]:
        """Return the policy as it was when it could last be read, and whether it can be now."""
        try:
            self._kept = self._policy()
        except PolicyError:
            if self._kept is None:
                raise
            return self._kept, False
        return self._kept, True

    def _now(self, policy: Policy) -> dict[str, Any]:
        """Return the site's status; ε is computed again only if the ledger has grown.

        The ledger is read without its key, by a reader of its own.
        """
        if self._ledger is None:
            self._ledger = Ledger.read(policy.ledger_folder, policy.site)
        self._ledger.log.refresh()
        cosigned = self._ledger.log.cosigned()
        version = len(self._ledger.log), cosigned and cosigned.size, policy.digest
        if self._known[0] != version:
            self._known = version, site_standing(policy, self._ledger)
        return self._known[1]
