"""The rounds that a restored coordinator has in its journal, and whose models it has not.

Each is made again from what the sites released then and keep in their outboxes: the orders that the
journal lists as joined are asked once more, and nothing else, so that no site pays. The model that
comes of it must be the journal's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol, Self

from privet.common.errors import RunError
from privet.common.flat import Arrays, digest_arrays
from privet.common.order import Order, Status
from privet.server.evidence.collector import EvidenceCollector, Show
from privet.server.evidence.journal import ORDER
from privet.server.replies import Reply
from privet.server.retry import pause


class ReplayLink(Protocol):
    """What is needed of :class:`privet.server.rounds.Link`."""

    def ask(
        self, round_number: int, orders: list[Order], model: Arrays, heads: dict[str, str]
    ) -> list[Reply]:
        """Send orders; return the replies that came in time."""
        ...

    def wait(self, away: list[str], seconds: float | None = None) -> list[str] | None:
        """Wait until a site is there, or seconds have passed; None where that makes no sense."""
        ...

    def join(self, round_number: int, model: Arrays, replies: list[Reply]) -> Arrays:
        """Return the next model."""
        ...


@dataclass(frozen=True)
class Restored:
    """What the journal of a run says beyond its newest snapshot.

    Attributes:
        done: round of that snapshot; 0 if there is none.
        rounds: what the journal says of each later round that joined something.
        taken_back: entries that came back from the sites just now.
        is_ended: the journal has the run's end, too.
    """

    done: int
    rounds: dict[int, dict[str, Any]]
    taken_back: int
    is_ended: bool

    @classmethod
    def find(
        cls, recorder: EvidenceCollector, run_id: str, done: int, sites: list[str], show: Show
    ) -> Self:
        """Take back what the journal lacks, and return what is to be made again.

        Args:
            recorder: holds the journal.
            run_id: identifier of the run.
            done: round of the newest snapshot.
            sites: that are there.
            show: asks them.

        Raises:
            RunError: if the journal cannot be had back, or the run had failed later and nobody
                resumed it. Nothing was written or ordered then.
        """
        if not recorder.can_restore:
            return cls(done, {}, 0, False)
        journal = recorder.journal
        try:
            taken_back = recorder.restore(sites, show)
            noted = {n: value for n, value in journal.rounds_of(run_id).items() if n > done}
            found = cls(done, noted, taken_back, journal.is_done(run_id))
            failed = journal.log.book.closed.get(run_id) == "failed"
            if found.text and failed and not recorder.resumes:
                raise RunError(f"{found.text}. After that the run had failed; resume it to go on")
        except BaseException:
            recorder.close()
            raise
        return found

    @property
    def last(self) -> int:
        """The last round that is done, by snapshot or journal."""
        return max([self.done, *self.rounds])

    @property
    def text(self) -> str:
        """Words that say that the coordinator was restored; "" if it was not."""
        if not self.taken_back and not self.rounds:
            return ""
        ended = f"ended at round {self.done}" if self.done else "held no round of this run"
        return f"this coordinator was restored from a copy that {ended}"

    def tell(self, recorder: EvidenceCollector, number: int) -> None:
        """Tell what came back, once round ``number`` is there and it is the last of them."""
        if not self.text or number != self.last:
            return
        first, last = self.done + 1, self.last
        which = f"rounds {first}–{last} were" if first < last else f"round {last} was"
        came = f"{which} fetched again from the sites' outboxes, at no cost"
        if not self.rounds:
            came = "what its journal lacked came back from the sites"
        recorder.on_restored(f"{self.text}; {came}")


@dataclass
class Replay:
    """Makes rounds again.

    Args:
        link: reaches the sites.
        recorder: holds the journal, its orders, and the sites' heads.
        restored: which rounds.
        sites: that are there.
    """

    link: ReplayLink
    recorder: EvidenceCollector
    restored: Restored
    sites: list[str]

    @property
    def rounds(self) -> dict[int, dict[str, Any]]:
        """What the journal says of the rounds that are made again."""
        return self.restored.rounds

    def train(self, number: int, model: Arrays) -> tuple[list[Reply], Arrays]:
        """Return the replies that were joined in a round, and the model that they make.

        Raises:
            RunError: if a release is not to be had any more, or they make another model.
        """
        record = self.rounds[number]
        if not record["joined"]:
            return [], model
        replies = self._gather(record, "train", model)
        joined = self.link.join(record["round"], model, replies)
        if digest_arrays(joined) != record["next"]:
            raise RunError(
                f"{self.restored.text}. Round {record['round']} makes another model than the "
                "journal says: its strategy keeps something from round to round, which the copy "
                f"has not. {_WHAT_NOW}"
            )
        return replies, joined

    def measure(self, number: int, shown: Arrays) -> list[Reply]:
        """Return what was measured in a round.

        Raises:
            RunError: if a release is not to be had any more.
        """
        record = self.rounds[number]
        return self._gather(record, "evaluate", shown) if record["metrics"] else []

    def _gather(self, record: dict[str, Any], purpose: str, model: Arrays) -> list[Reply]:
        """Ask for the releases of a round until all are here; a site that is away is waited for."""
        wanted = self._wanted(record, purpose)
        if gone := [site for site in wanted if site not in self.sites]:
            raise RunError(
                f"{self.restored.text}. Round {record['round']} is made again from what these "
                f"sites released in it, and they are not connected: {', '.join(gone)}. Nothing was "
                "paid for; resume the run once they are"
            )
        held: dict[str, Reply] = {}
        tries = 0
        while missing := [site for site in wanted if site not in held]:
            if tries and not self._wait(missing, tries, record):
                raise RunError(self._lost(record, missing[0], "did not answer"))
            tries += 1
            orders = [wanted[site][0] for site in missing]
            heads = {site: self.recorder.head(site) for site in missing}
            for reply in self.link.ask(record["round"], orders, model, heads):
                if reply.status is Status.NOT_NOW:
                    continue
                found = reply.release and reply.release.facts["digest"]
                if found != wanted[reply.site][1]:
                    said = "released something else" if found else f"answered '{reply.status}'"
                    raise RunError(self._lost(record, reply.site, said))
                held[reply.site] = reply
        return [held[site] for site in wanted]

    def _wait(self, missing: list[str], tries: int, record: dict[str, Any]) -> bool:
        self.recorder.on_restored(
            f"{self.restored.text}. Round {record['round']} is made again once these sites have "
            f"handed out what they released in it: {', '.join(missing)}"
        )
        return self.link.wait([], pause(tries)) is not None and self.link.wait(missing) is not None

    def _wanted(self, record: dict[str, Any], purpose: str) -> dict[str, tuple[Order, str]]:
        """Return by site the order that was answered, and the digest of its release."""
        store = self.recorder.journal.log.store
        part = record["joined" if purpose == "train" else "metrics"]
        digests = {item["site"]: item["digest"] for item in part}
        found = {}
        for item in record["orders"]:
            if item["site"] in digests and (item["purpose"], item["answer"]) == (
                purpose, str(Status.RELEASED)
            ):  # fmt: skip
                value = json.loads(store.paper(ORDER, item["order"]) or "null")
                if value is None:
                    raise RunError(f"{self.restored.text}. An order of the journal is not kept")
                order = Order.decode(value["order"], value["keyid"], value["sig"])
                found[item["site"]] = order, digests[item["site"]]
        if found.keys() != digests.keys():
            raise RunError(f"{self.restored.text}. The journal names no order for a release")
        return {site: found[site] for site in digests}

    def _lost(self, record: dict[str, Any], site: str, said: str) -> str:
        return (
            f"{self.restored.text}. Lost: the model of round {record['round']}, for site '{site}' "
            f"{said} when it was asked for its release again. Nothing was paid for. {_WHAT_NOW}"
        )


_WHAT_NOW = (
    "Put a newer copy of the coordinator's folder back, or resume the run once the site has its "
    "releases again; a plan that is submitted again as another run is paid for anew"
)
