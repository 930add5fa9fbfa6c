"""What a site's client tells Prometheus, on the site's own machine.

Nothing of it is more than the ledger and the link say. How long an order took depends on how
many records were drawn, which is never told: seconds are a sum, in whole seconds, from order to
answer, which the coordinator can measure too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from privet.client.dial import Asked, Dialer, Told
from privet.client.standing import site_standing
from privet.common.errors import LedgerError, PolicyError
from privet.common.link.identity import read_certificate
from privet.common.metrics import counter, gauge
from privet.common.order import Status
from privet.common.wire import status_of
from privet.privacy.ledger import Ledger
from privet.privacy.policy import Policy

_PURPOSES = ("train", "evaluate")
_STATES = ("open", "paused", "withdrawn")
_TERMS = ("population", "delta", "unit", "relation")


class ClientMetrics(Collector):
    """Reads what the dialer and the ledger know, when it is asked.

    Args:
        dialer: the site's.
        policy: reads the site's policy as it is now.
        certificate: the site's, as PEM file.
    """

    def __init__(self, dialer: Dialer, policy: Callable[[], Policy], certificate: Path) -> None:
        self._dialer = dialer
        self._policy = policy
        self._certificate = certificate
        self._orders: Counter[tuple[str, str]] = Counter()
        self._seconds = 0.0
        self._kept: Policy | None = None
        self._ledger: Ledger | None = None
        self._known: tuple[Any, dict[str, Any]] = None, {}
        dialer.on_answer = self._note

    def _note(self, asked: Asked, told: Told, seconds: float) -> None:
        if asked.kind in _PURPOSES:
            self._orders[asked.kind, str(status_of(told.records) or Status.FAILED)] += 1
            self._seconds += seconds

    def collect(self) -> Iterable[Metric]:
        """Yield the figures as they are now."""
        yield from self._link()
        yield from self._orders_now()
        yield from self._standing()

    def _link(self) -> Iterable[Metric]:
        tally = self._dialer.tally
        yield gauge(
            "client_connected", "1 if this site attends at its coordinator.", (),
            {(): tally.connected},
        )  # fmt: skip
        yield counter(
            "client_streams", "Streams that were begun; all but the first are reconnects.", (),
            {(): tally.streams},
        )  # fmt: skip
        yield counter(
            "client_bytes", "Bytes of messages, before gRPC and TLS add theirs.", ("direction",),
            {("received",): tally.received, ("sent",): tally.sent},
        )  # fmt: skip
        certificate = read_certificate(self._certificate.read_bytes())
        yield gauge(
            "client_certificate_expiry_timestamp_seconds", "When the site's certificate ends.", (),
            {(): certificate.not_valid_after_utc.timestamp()},
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

    def _standing(self) -> Iterable[Metric]:
        policy, valid = self._read_policy()
        yield gauge("client_policy_valid", "1 if the policy can be read.", (), {(): valid})
        try:
            value = self._now(policy)
        except LedgerError:
            # Its key was replaced meanwhile, or it is damaged: then this is what is said.
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
        for key, text in (
            ("epsilon", "ε that a population has spent, over its life."),
            ("cap", "ε that a population may spend, over its life."),
            ("cap_minus_spent", "The cap less what was spent."),
        ):
            name = {"epsilon": "spent", "cap": "cap", "cap_minus_spent": "left"}[key]
            found = {
                tuple(str(one[term]) for term in _TERMS): float(one[key])
                for one in value["populations"]
                if one[key] is not None
            }
            yield gauge(f"client_epsilon_{name}", text, _TERMS, found)

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
        """Return how the site stands; ε is worked out again only where the ledger has grown.

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
