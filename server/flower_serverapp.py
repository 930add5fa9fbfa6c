"""Run the coordinator on stock Flower: a run that was submitted, over a SuperLink's grid.

Folder, journal, snapshots, offers and rounds are those of :mod:`privet.server.coordinator`; only
the transport differs. Flower forgets a run when its SuperLink ends. The folder keeps it: the same
run, started again, continues at the same round, and no site trains or pays twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from privet.common.errors import InputError, PrivetError, QuorumError, RunError
from privet.common.files.lock import alone
from privet.common.flat import Arrays
from privet.common.flower.grid import PassingGrid, limit
from privet.common.flower.wire import decode_reply, encode_offer
from privet.common.link import offer
from privet.common.plan import Plan
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import OPEN, why_no_quorum
from privet.server.queue import Run as Submitted
from privet.server.rehearsal import rehearse
from privet.server.run import execute_run

_OFFER_INTERVAL_S = 5.0
"""Seconds between two offers."""
_ANSWER_TIMEOUT_S = 120.0
"""Seconds that a site has to answer an offer: a process starts there for it."""
_POLL_INTERVAL_S = 0.5
"""Seconds between two polls for answers; Flower itself polls every three."""
_AWAY = "not connected"


def run_submitted(
    federation: MemberRegistry,
    run_id: str,
    initial: Callable[[Plan], Arrays],
    grid: Grid,
    *,
    patience: float,
) -> None:
    """Run the plan that was submitted under ``run_id``, from its latest snapshot if there is one.

    Args:
        federation: the opened folder, with the passphrase of its keys.
        run_id: as `privet server submit` printed it.
        initial: makes the first model of a plan.
        grid: Flower's.
        patience: seconds to wait until all sites are ready.

    Raises:
        InputError: if there is no such run, it has ended, or a coordinator is running here.
        RunError: if the sites are not ready in time, or the run fails.
    """
    run = find(federation, run_id)
    with alone(federation.folder):
        federation.bring_up_to_date()
        try:
            _Stock(federation, run, _Prompt(grid, run.require_wanted)).run(initial, patience)
        except PrivetError as error:
            # A site that is not ready yet ends nothing: the same run may be started again.
            if run.status["state"] == "running":
                named = why_no_quorum(run.status) if isinstance(error, QuorumError) else ""
                run.note(state="failed", fault=f"{error}{named}")
            else:
                run.note(state="queued", fault=str(error))
            raise


def find(federation: MemberRegistry, run_id: str) -> Submitted:
    """Return a run that was submitted and has not ended.

    Args:
        federation: the opened folder.
        run_id: as `privet server submit` printed it.

    Raises:
        InputError: if no such run was submitted, or it has ended.
    """
    run = Submitted(federation.folder / "runs" / run_id)
    if not run_id or "/" in run_id or not (run.folder / "status.json").exists():
        raise InputError(
            f"{federation.folder}: no run '{run_id}' was submitted; do that with `privet server "
            'submit`, and name it with run="…" in --run-config'
        )
    if run.status["state"] not in OPEN:
        raise InputError(f"run '{run_id}' is {run.status['state']}: submit another one")
    return run


class _Prompt(PassingGrid):
    """Flower's grid, polled for answers more often; it waits for sites that answer ``not-now``."""

    def __init__(self, grid: Grid, on_wait: Callable[[], None] = lambda: None) -> None:
        super().__init__(grid)
        self._on_wait = on_wait

    def wait_for(self, nodes: set[int], seconds: float | None = None) -> set[int] | None:
        """Wait ``seconds``; return those of ``nodes`` that Flower still has.

        A node that has gone comes back under another id, so there is no use in waiting for it: None
        if there are only such nodes.
        """
        end = time.monotonic() + (seconds or 0.0)
        while True:
            self._on_wait()
            there = nodes & set(self.get_node_ids())
            if (left := end - time.monotonic()) <= 0 or there:
                return there if there or seconds is not None else None
            time.sleep(min(_POLL_INTERVAL_S, left))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        end = time.monotonic() + limit(timeout)
        waiting = {number for number in self.push_messages(messages) if number}
        came: list[Message] = []
        while waiting:
            for message in self.pull_messages(waiting):
                waiting.discard(message.metadata.reply_to_message_id)
                came.append(message)
            if time.monotonic() > end:
                break
            if waiting:
                time.sleep(_POLL_INTERVAL_S)
        return came


class _Stock:
    """One run over Flower's grid."""

    def __init__(self, federation: MemberRegistry, run: Submitted, grid: _Prompt) -> None:
        self._federation, self._run, self._grid = federation, run, grid
        self._plan = run.plan
        self._names = [site.name for site in self._plan.sites]

    def run(self, initial: Callable[[Plan], Arrays], patience: float) -> None:
        run, plan = self._run, self._plan
        roster = run.roster(self._federation)
        if not run.has_begun:
            rehearse(plan, initial(plan), run.folder)
        self._gather(offer.encode(run.id, plan.to_dict(), roster.to_dict()), patience)
        execute_run(
            run,
            self._grid,
            lambda: initial(plan),
            lambda: self._federation.collector(roster, run.folder, plan.strategy.witnesses),
        )

    def _gather(self, offered: bytes, patience: float) -> None:
        """Wait until all sites are ready; for a continued run, a quorum is enough in the end."""
        begun = self._run.has_begun
        self._run.note(state="waiting", fault="")
        end = time.monotonic() + patience
        while True:
            self._run.require_wanted()
            said, nameless = self._offer(offered)
            self._run.note(sites=said)
            ready = [name for name in self._names if said[name] == offer.READY]
            late = time.monotonic() > end
            if len(ready) == len(self._names) or (
                late and begun and len(ready) >= self._plan.quorum
            ):
                return
            if late:
                raise RunError(_not_ready(said, nameless))
            time.sleep(_OFFER_INTERVAL_S)

    def _offer(self, offered: bytes) -> tuple[dict[str, str], int]:
        """Offer the run to every node; return each site's answer, and the number of nodes that are
        no site.
        """
        said, nameless = dict.fromkeys(self._names, _AWAY), 0
        messages = [
            Message(encode_offer(offered), node, f"{MessageType.QUERY}.offer")
            for node in self._grid.get_node_ids()
        ]
        if not messages:
            return said, nameless
        for message in self._grid.send_and_receive(messages, timeout=_ANSWER_TIMEOUT_S):
            try:
                site = ""
                if not message.has_error():
                    site, status, _ = decode_reply(message.content)
            except InputError:
                site = ""
            if site in said:
                said[site] = str(status)
            else:
                nameless += 1
        return said, nameless


def _not_ready(said: dict[str, str], nameless: int) -> str:
    missing = ", ".join(f"{name}: {word}" for name, word in said.items() if word != offer.READY)
    text = f"not all sites are ready ({missing}); start the run again when they are"
    if nameless:
        text += (
            f". {nameless} of the nodes did not say which site they are: does Privet's launcher "
            "start there, and does --node-config name a policy? The site's own log says more"
        )
    return text
