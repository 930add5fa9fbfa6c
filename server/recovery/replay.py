"""Make rounds again that a restored coordinator has in its journal, but without their models.

A round is made from the releases that the sites keep in their outboxes. The coordinator sends
exactly the orders that the journal lists as aggregated, so no site pays again. The resulting model
must be the one of the journal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from privet.common.errors import RunError
from privet.common.flat import Arrays, digest_arrays
from privet.common.order import Order, Status
from privet.server.evidence.run_evidence import RunEvidence, Show
from privet.server.replies import Reply
from privet.server.retry import pause


class ReplayLink(Protocol):
    """The part of :class:`privet.server.rounds.Link` that replays and rounds need."""

    def ask(
        self, round_number: int, orders: list[Order], model: Arrays, heads: dict[str, str]
    ) -> list[Reply]:
        """Send orders; return the replies that came in time.

        Args:
            round_number: number of the round, from 1.
            orders: signed orders of one purpose, at most one for each site.
            model: the model that the updates start from.
            heads: by site, the newest head of its log that somebody witnessed.
        """

    def wait(self, away: list[str], seconds: float | None = None) -> list[str] | None:
        """Wait until a site is connected.

        Args:
            away: sites that did not answer.
            seconds: longest wait; None waits without end.

        Returns:
            The sites of ``away`` that are connected; None if waiting is useless on this link.
        """

    def join(self, round_number: int, model: Arrays, replies: list[Reply]) -> Arrays:
        """Return the next model.

        Args:
            round_number: number of the round, from 1.
            model: the model that the updates start from.
            replies: of the round; those without a release are left out.
        """


@dataclass(frozen=True)
class Restored:
    """The part of a run that its journal has and its newest snapshot has not.

    Attributes:
        done: round of that snapshot; 0 if there is none.
        rounds: the journal's record of each later round that aggregated something, by its number.
        taken_back: number of entries that were just fetched from the sites.
        is_ended: whether the journal has the run's end as well.
    """

    done: int
    rounds: dict[int, dict[str, Any]]
    taken_back: int
    is_ended: bool

    @classmethod
    def find(
        cls, collector: RunEvidence, run_id: str, done: int, sites: list[str], show: Show
    ) -> Self:
        """Fetch the entries that the journal lacks, and return the rounds that must be made again.

        Args:
            collector: holds the journal.
            run_id: identifier of the run.
            done: round of the newest snapshot.
            sites: that are connected.
            show: sends questions to sites, and returns their answers.

        Raises:
            RunError: if no site keeps the journal's rest, or the run failed later and nobody
                resumed it. Nothing was written or ordered then.
        """
        if not collector.can_restore:
            return cls(done, {}, 0, False)
        try:
            taken_back = collector.restore(sites, show)
            noted = {n: value for n, value in collector.rounds_of(run_id).items() if n > done}
            found = cls(done, noted, taken_back, collector.is_done(run_id))
            if found.text and collector.has_failed(run_id) and not collector.resumes:
                raise RunError(f"{found.text}. After that the run failed; resume it to continue")
        except BaseException:
            collector.close()
            raise
        return found

    @property
    def last(self) -> int:
        """The last round that is done, by snapshot or journal."""
        return max([self.done, *self.rounds])

    @property
    def text(self) -> str:
        """A sentence that says that the coordinator was restored; "" if it was not."""
        if not self.taken_back and not self.rounds:
            return ""
        ended = f"ended at round {self.done}" if self.done else "held no round of this run"
        return f"this coordinator was restored from a copy that {ended}"

    def tell(self, collector: RunEvidence, number: int) -> None:
        """Report what was recovered, once the last of the rounds is made again.

        Args:
            collector: whose callback ``on_restored`` receives the sentence.
            number: of the round that is done now; 0 before the first.
        """
        if not self.text or number != self.last:
            return
        first, last = self.done + 1, self.last
        which = f"rounds {first}–{last} were" if first < last else f"round {last} was"
        came = f"{which} fetched again from the sites' outboxes, at no cost"
        if not self.rounds:
            came = "what its journal lacked came back from the sites"
        collector.on_restored(f"{self.text}; {came}")


@dataclass
class Replay:
    """Make rounds again from the sites' outboxes.

    Args:
        link: reaches the sites.
        collector: has the records of the rounds, their orders, and the sites' heads.
        restored: the rounds to make again.
        sites: that are connected.
    """

    link: ReplayLink
    collector: RunEvidence
    restored: Restored
    sites: list[str]

    @property
    def rounds(self) -> dict[int, dict[str, Any]]:
        """The journal's records of the rounds that are made again, by number."""
        return self.restored.rounds

    def train(self, number: int, model: Arrays) -> tuple[list[Reply], Arrays]:
        """Fetch a round's releases again, and aggregate them.

        Args:
            number: of the round, from 1.
            model: the model before that round.

        Returns:
            The replies that were aggregated in the round, and the model that they make; no reply
            and the same model if the round aggregated none.

        Raises:
            RunError: if a release is lost, or the model is not the journal's.
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
        """Fetch a round's measurements again.

        Args:
            number: of the round, from 1.
            shown: the model that was published and measured in that round.

        Returns:
            The replies with the measurements; none if the round had none.

        Raises:
            RunError: if a release is lost.
        """
        record = self.rounds[number]
        return self._gather(record, "evaluate", shown) if record["metrics"] else []

    def _gather(self, record: dict[str, Any], purpose: str, model: Arrays) -> list[Reply]:
        """Ask for the releases of a round until all are here; wait for absent sites."""
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
            heads = {site: self.collector.head(site) for site in missing}
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
        self.collector.on_restored(
            f"{self.restored.text}. Round {record['round']} is made again once these sites have "
            f"handed out what they released in it: {', '.join(missing)}"
        )
        return self.link.wait([], pause(tries)) is not None and self.link.wait(missing) is not None

    def _wanted(self, record: dict[str, Any], purpose: str) -> dict[str, tuple[Order, str]]:
        """Return by site the order that was answered, and the digest of its release."""
        part = {"train": "joined", "evaluate": "metrics"}[purpose]
        digests = {item["site"]: item["digest"] for item in record[part]}
        found = {}
        for item in record["orders"]:
            if item["site"] in digests and (item["purpose"], item["answer"]) == (
                purpose, str(Status.RELEASED)
            ):  # fmt: skip
                order = self.collector.kept_order(item["order"])
                if order is None:
                    raise RunError(f"{self.restored.text}. An order of the journal is not kept")
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
    "Restore a newer copy of the coordinator's folder, or resume the run once the site has its "
    "releases again; a plan that is submitted again as another run is paid for again"
)
