"""The coordinator's Prometheus metrics. They hold only facts that the coordinator has anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from privet.common.link.identity import read_certificate
from privet.common.order import Order, Status
from privet.common.output.metrics import counter, gauge
from privet.server.coordinator import Coordinator
from privet.server.link.tally import REASONS
from privet.server.queue import OPEN, runs

_ANSWERS = [str(status) for status in Status if status is not Status.PRESENT]
_FAILURES = [said for said in _ANSWERS if said != Status.RELEASED]
_PURPOSES = ("train", "evaluate")
_STATES = ("enrolled", "invited", "expired", "revoked")
_RUNS = (*OPEN, "done", "failed")
_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
_SPENT = ("site", "delta", "unit", "relation")


class ServerMetrics(Collector):
    """Read the state of coordinator, link server and federation on each scrape.

    Counters begin at 0 when the process starts.

    Args:
        coordinator: its callbacks ``on_answer`` and ``on_round`` are set here.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._ordered: Counter[str] = Counter()
        self._answered: Counter[tuple[str, str]] = Counter()
        self._repeated: Counter[str] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._seconds = Histogram(
            "privet_server_round_seconds",
            "Seconds from the end of the round before, or the run's start, to a round's end.",
            buckets=_BUCKETS,
            registry=None,
        )
        coordinator.on_answer = self._note
        coordinator.on_round = self._seconds.observe

    def _note(self, order: Order, said: str) -> None:
        if said == "ordered":
            self._ordered[order.purpose] += 1
            self._repeated[order.site] += order.attempt > 1
        else:
            self._answered[order.purpose, said] += 1
            if said != Status.RELEASED:
                self._failed[order.site, said] += 1

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        yield from self._members()
        yield from self._runs()
        yield from self._orders()
        yield from self._link()
        yield from self._seconds.collect()

    def _members(self) -> Iterable[Metric]:
        coordinator = self._coordinator
        members, present = coordinator.federation.members(), set(coordinator.link_server.present())
        states = Counter(record.state for record in members.values())
        enrolled = [name for name, record in members.items() if record.state == "enrolled"]
        yield gauge(
            "server_sites", "Sites by state.", ("state",), {(s,): states[s] for s in _STATES}
        )
        yield gauge(
            "server_site_connected", "1 if an enrolled site attends now.", ("site",),
            {(name,): name in present for name in enrolled},
        )  # fmt: skip
        yield gauge(
            "server_enrolment_open", "1 if the port for enrolment is open.", (),
            {(): coordinator.is_enrolling},
        )  # fmt: skip
        certificate = read_certificate((coordinator.federation.folder / "server.pem").read_bytes())
        yield gauge(
            "server_certificate_expiry_timestamp_seconds", "When the link's certificate ends.", (),
            {(): certificate.not_valid_after_utc.timestamp()},
        )  # fmt: skip

    def _runs(self) -> Iterable[Metric]:
        found = [run.status for run in runs(self._coordinator.federation)]
        states = Counter(str(status["state"]) for status in found)
        yield gauge("server_runs", "Runs by state.", ("state",), {(s,): states[s] for s in _RUNS})
        begun = [status for status in found if status["state"] in OPEN]
        yield gauge(
            "server_run_round", "Last round that was done, of each run that is not over.", ("run",),
            {(status["run"],): status.get("round", 0) for status in begun},
        )  # fmt: skip
        yield gauge(
            "server_run_last_round_timestamp_seconds",
            "When the last round was done, or the run went on, of each run that is running.",
            ("run",),
            {
                (status["run"],): max(status.get("round_ended", 0.0), status["began"])
                for status in begun
                if status["state"] == "running" and "began" in status
            },
        )  # fmt: skip
        yield gauge(
            "server_run_waits_for", "1 for each site that a run waits for, with what it says.",
            ("run", "site", "status"),
            {
                (status["run"], site, said): 1
                for status in begun
                if status["state"] == "waiting"
                for site, said in status.get("sites", {}).items()
                if said != Status.PRESENT
            },
        )  # fmt: skip
        spent: dict[tuple[str, ...], float] = {}
        for status in found:
            for site, loss in status.get("spent", {}).items():
                terms = tuple(str(loss[name]) for name in _SPENT[1:])
                if loss["epsilon"] is not None:
                    # Runs take turns: the largest is the latest, since the spent loss never falls.
                    spent[site, *terms] = max(loss["epsilon"], spent.get((site, *terms), 0.0))
        yield gauge(
            "server_epsilon_spent", "What a site's population has spent, as its last release says.",
            _SPENT, spent,
        )  # fmt: skip

    def _orders(self) -> Iterable[Metric]:
        yield counter(
            "server_orders", "Orders that were signed.", ("purpose",),
            {(purpose,): self._ordered[purpose] for purpose in _PURPOSES},
        )  # fmt: skip
        yield counter(
            "server_answers", "Answers to orders that came in time.", ("purpose", "status"),
            {(p, said): self._answered[p, said] for p in _PURPOSES for said in _ANSWERS},
        )  # fmt: skip

        known = sorted(self._coordinator.federation.members())
        yield counter(
            "server_repeated_orders", "Orders of a second or later attempt: each may be charged.",
            ("site",), {(site,): self._repeated[site] for site in known},
        )  # fmt: skip
        yield counter(
            "server_failed_answers", "Answers to orders that were no release, by site.",
            ("site", "status"),
            {(s, said): self._failed[s, said] for s in known for said in _FAILURES},
        )  # fmt: skip

    def _link(self) -> Iterable[Metric]:
        link_server, tally = self._coordinator.link_server, self._coordinator.link_server.tally
        yield gauge(
            "server_parcels_open", "Messages that were posted and not yet answered.", (),
            {(): link_server.open_parcels()},
        )  # fmt: skip
        known = sorted({*self._coordinator.federation.members(), *tally.streams})
        yield counter(
            "server_streams", "Streams that a site began; all but the first are reconnects.",
            ("site",),
            {(name,): tally.streams[name] for name in known},
        )  # fmt: skip
        yield counter(
            "server_late_answers", "Answers that came too late, twice, or to nothing.", ("site",),
            {(name,): tally.late[name] for name in known},
        )  # fmt: skip
        both = (("received", tally.received), ("sent", tally.sent))
        yield counter(
            "server_bytes", "Bytes of messages, before gRPC and TLS add theirs.",
            ("site", "direction"),
            {(name, way): count[name] for way, count in both for name in known},
        )  # fmt: skip
        yield counter(
            "server_refused_calls", "Calls over the link that were refused.", ("reason",),
            {(reason,): tally.refused[reason] for reason in REASONS},
        )  # fmt: skip
