"""Warm processes that train some of a round's sites while this one trains the others.

::

    this process                      another one
      reserves, signs, aggregates       has the plan, the model and its own copy of the records
      ── orders, model ──────────────►  draws, trains, adds noise
      ◄────────────────── updates ───

A process trains a share of the sites, with one thread. What it draws comes from a stream of its
own, fresh from the operating system (or from the seed of the simulation), as in this process.
Whatever goes wrong in it, its sites are trained here when they answer.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, Protocol

import torch

from privet.client.training.protocol import TrainerOutput
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.common.plan import Plan
from privet.simulations.cohort.cohort import Cohort
from privet.simulations.cohort.member import CohortMember, train_together

_LOG = logging.getLogger("privet.cohort")
_CODE = "from privet.simulations.cohort.processes import main; main()"
_START_LIMIT_S = 300.0
"""Seconds that the start of a process may take."""
_LIMIT_S, _LIMIT = 120.0, 20.0
"""Seconds that a process may take for its share, and how many times as long as this one took."""
_START_S = 20.0
"""Seconds of training that are left from which further processes are worth their start."""
_STEP = 0.5
"""How far a share moves in a round towards the one that would have ended with the others'."""
_MIN_MEMORY = 1 << 30
"""Least memory that a process is given, in bytes."""


class MemberMaker(Protocol):
    """Make the trainers of a plan's sites; it can be pickled."""

    @property
    def plan(self) -> Plan:
        """The plan of the run."""

    def trainer(self, site: str) -> CohortMember:
        """Return a new trainer of a site."""

    def cohort(self) -> Cohort | None:
        """Return what trains sites together; None if their model has no form for that."""


class _Process:
    """One of them, and the end of its pipe.

    Args:
        maker: makes its trainers.
    """

    def __init__(self, maker: MemberMaker) -> None:
        self._pipe, theirs = Pipe()
        self.is_ready, self.is_lost = False, False
        self.seconds = 0.0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # What libraries print may quote records; what goes wrong is met again, and logged, here.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
        theirs.close()
        # One that is stopped takes nothing: a message to it must not wait without end.
        with socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 60, 0))
        self._send((list(sys.path), os.environ.get("PRIVET_DATA"), pickle.dumps(maker)))

    def look(self) -> bool:
        """Return whether it can be given work."""
        if not self.is_ready and not self.is_lost and self._pipe.poll():
            self.is_ready = self._receive(_START_LIMIT_S) == "ready"
        return self.is_ready and not self.is_lost

    def wait(self) -> None:
        """Wait until it is ready, or lost."""
        if not self.is_ready and not self.is_lost:
            self.is_ready = self._receive(_START_LIMIT_S) == "ready"

    def begin(self, orders: list[Order], model: Arrays) -> None:
        """Give it orders that are reserved."""
        self._send((orders, dict(model.items())))

    def end(self, limit: float) -> dict[str, TrainerOutput]:
        """Return what it made, by the order's digest; what is lacking is to be made here.

        Args:
            limit: seconds to wait for it.
        """
        made = self._receive(limit)
        if made is None:
            return {}
        self.seconds, outputs = made
        return dict(outputs)

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, what: object) -> None:
        try:
            self._pipe.send(what)
        except OSError as error:
            self._lose(error)

    def _receive(self, limit: float) -> Any:
        if self.is_lost:
            return None
        end = time.monotonic() + limit
        try:
            while not self._pipe.poll(1.0):
                if self._process.poll() is not None and not self._pipe.poll():
                    raise EOFError("it ended")
                if time.monotonic() > end:
                    raise EOFError("it does not answer")
            return self._pipe.recv()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self._lose(error)
            return None

    def _lose(self, error: Exception) -> None:
        if not self.is_lost:
            _LOG.warning("a process that trains sites is lost; they are trained here: %r", error)
        self.is_lost = True
        self._process.kill()


class TrainingProcesses:
    """Share the training of rounds among processes, from when that pays.

    Args:
        maker: makes the trainers of the others.
        count: of processes, this one included; None takes as many as there are cores, once a
            round says that what is left takes longer than their start.
        tell: called with what is done now.
    """

    def __init__(
        self,
        maker: MemberMaker,
        count: int | None,
        *,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._maker, self._count, self._tell = maker, count, tell
        self._others: list[_Process] = []
        self._share = 0.0
        self._begun: list[_Process] = []
        self._first: float | None = None
        self.used = 1
        """Processes that trained in the last round, this one included."""
        if count is not None and count > 1 and self._most(count) > 1:
            self._start(self._most(count) - 1)
            for one in self._others:
                one.wait()

    def shares(self, sites: int) -> list[int]:
        """Return how many of a round's sites each process trains, this one first."""
        ready = [one for one in self._others if one.look()]
        if not ready or sites < 2:
            return [sites]
        if not self._share:
            self._share = 1 / (1 + len(ready))
        mine = min(sites - 1, max(1, round(self._share * sites)))
        rest = sites - mine
        ends = [rest * k // len(ready) for k in range(len(ready) + 1)]
        return [mine, *(end - start for start, end in itertools.pairwise(ends))]

    def begin(self, shares: list[int], orders: Sequence[Order], model: Arrays) -> None:
        """Give the others their orders, those after this process's.

        Args:
            shares: of :meth:`shares`.
            orders: of all sites of the round, reserved.
            model: that came with them.
        """
        first, self._begun = shares[0], []
        ready = [one for one in self._others if one.look()]
        for one, share in zip(ready, shares[1:], strict=False):
            if share:
                one.begin(list(orders[first : first + share]), model)
                self._begun.append(one)
            first += share
        self.used = 1 + len(self._begun)

    def end(self, mine: float) -> dict[str, TrainerOutput]:
        """Return what the others made, by the order's digest.

        Args:
            mine: seconds that this process trained.
        """
        found: dict[str, TrainerOutput] = {}
        for one in self._begun:
            found |= one.end(max(_LIMIT_S, _LIMIT * mine))
        theirs = max((one.seconds for one in self._begun), default=0.0)
        if mine > 0 and theirs > 0:
            # As much as would have let all end at once, by what a site took on each side.
            speed = self._share / mine
            other = (1 - self._share) / theirs
            self._share += _STEP * (speed / (speed + other) - self._share)
        return found

    def round_took(self, seconds: float, number: int) -> None:
        """Take how long the training of a round took, and start processes if it pays.

        Args:
            seconds: of the training. That of the first round has the reading of the records, too,
                which another process has to do as well.
            number: of the round.
        """
        if self._first is None:
            self._first = seconds
            return
        left = seconds * (self._maker.plan.last_round - number)
        reading = max(0.0, self._first - seconds)
        if self._count is None and not self._others and left > _START_S + 2 * reading:
            more = self._most(processes_that_fit()) - 1
            if more > 0:
                self._tell(f"starting {more} more processes" if more > 1 else "starting a process")
                self._start(more)

    def close(self) -> None:
        """End the others."""
        for one in self._others:
            one.close()
        self._others = []

    def _most(self, count: int) -> int:
        """Return how many processes a round has work for, of that many."""
        return min(count, self._maker.plan.sites_in_a_round)

    def _start(self, more: int) -> None:
        self._others = [_Process(self._maker) for _ in range(more)]


def processes_that_fit() -> int:
    """Return how many processes the machine's cores and free memory hold, this one included."""
    try:
        cores = len(os.sched_getaffinity(0))
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1  # not on this system
    import resource

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return max(1, min(cores, 1 + int(free // max(_MIN_MEMORY, own))))


def main() -> None:
    """Train what comes through the pipe, whose number is the first argument, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that is asked to end ends this one
    pipe = Connection(int(sys.argv[1]))
    path, data, pickled = pipe.recv()
    sys.path[:] = path
    if data is not None:
        os.environ["PRIVET_DATA"] = data
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        # From the process that started this one, over a pipe that nobody else has.
        worker = _Worker(pickle.loads(pickled))
        pipe.send("ready")
        while True:
            orders, model = pipe.recv()
            pipe.send(worker.train(orders, model))


class _Worker:
    """The other side: a trainer for each site that it was given, and what trains them together."""

    def __init__(self, maker: MemberMaker) -> None:
        self._maker = maker
        self._cohort = maker.cohort()
        if self._cohort is not None:
            self._cohort.threads = 1
        self._trainers: dict[str, CohortMember] = {}
        torch.set_num_threads(1)  # building a runtime sets the plan's

    def train(self, orders: list[Order], model: Arrays) -> tuple[float, dict[str, TrainerOutput]]:
        """Return the seconds that it took, and the outputs by the order's digest."""
        began = time.perf_counter()
        members = [self._trainer(order.site) for order in orders]
        if self._cohort is not None:
            with contextlib.suppress(Exception):
                train_together(self._cohort, members, orders, model)
        found: dict[str, TrainerOutput] = {}
        for member, order in zip(members, orders, strict=True):
            with contextlib.suppress(Exception):  # it is met again where it is logged
                found[order.digest] = member.release(order, model)
        return time.perf_counter() - began, found

    def _trainer(self, site: str) -> CohortMember:
        if site not in self._trainers:
            self._trainers[site] = self._maker.trainer(site)
        return self._trainers[site]
