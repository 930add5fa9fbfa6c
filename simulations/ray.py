"""Run the same two apps by Flower's own simulation engine on Ray."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from privet.common.errors import InputError, PrivetError, RunError
from privet.common.flower.grid import PassingGrid, limit


class _WorkerLostError(Exception):
    """A process that answers for sites has died, as where its node did. Not the run's failure."""


class StoppableGrid(PassingGrid):
    """Flower's grid, which stops waiting once ``stopped`` is set, or a worker has died.

    Flower runs the ``ServerApp`` in a thread of its own. If its engine fails to start, that thread
    would wait for replies until the plan's time limit. Where a worker dies, Flower's engine hands
    messages to it without end; the run has to begin again with those that are left.

    Args:
        grid: Flower's.
        stopped: set when the engine has ended.
        lost: set when a worker has died.
    """

    def __init__(self, grid: Grid, stopped: threading.Event, lost: threading.Event) -> None:
        super().__init__(grid)
        self._stopped, self._lost = stopped, lost

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids.

        Raises:
            RunError: once the engine has stopped.
        """
        self._check()
        return super().get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, and wait for the replies.

        Args:
            messages: to send.
            timeout: longest wait in seconds; None waits without end.

        Raises:
            RunError: once the engine has stopped.
        """
        end = time.monotonic() + limit(timeout)
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            self._check()
            arrived = list(self.pull_messages(waiting))
            for reply in arrived:
                if reply.has_error() and _DEAD.search(str(reply.error.reason)):
                    self._lost.set()
                    raise _WorkerLostError
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if waiting and not arrived:
                self._stopped.wait(_PULL_INTERVAL)
        return replies

    def _check(self) -> None:
        if self._stopped.is_set():
            raise RunError("Flower's Ray engine has stopped")


_LOG = logging.getLogger("privet.ray")
_PULL_INTERVAL = 0.05
_DEAD = re.compile(r"ray\.exceptions\.(\w*Actor\w*|Node\w*|WorkerCrashed\w*|OutOfMemory\w*)Error")
"""How Ray names a process that is gone."""
_MAX_LOST = 5
"""How often a run continues after workers died."""
_NOTICE_S = 120.0
"""Seconds that Ray may need to notice that a node is gone."""
_MAX_STARTS = 3
"""How often a local cluster is started before that is an error."""


def _stoppable(server: ServerApp, stopped: threading.Event, lost: threading.Event) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        server(StoppableGrid(grid, stopped, lost), context)

    return app


def run_on_ray(server: ServerApp, client: ClientApp, sites: int, address: str | None) -> None:
    """Run both apps on Ray. Where a node dies, the run continues from its last round.

    Args:
        server: of the coordinator.
        client: of the sites.
        sites: number of nodes.
        address: of an existing Ray cluster; None starts one on this machine.

    Raises:
        InputError: if Ray is not installed.
        RunError: if the engine fails.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: install Privet with the extra [simulation]")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    init: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    if address is not None:
        init["address"] = address
    else:
        # "local": never join a cluster that happens to run on this machine.
        init |= {"address": "local", "num_cpus": os.cpu_count() or 1}
    for left in reversed(range(_MAX_LOST + 1)):
        if _run(server, client, sites, init, address):
            return
        if not left:
            raise RunError("processes on Ray died again and again; the run ends")
        _LOG.warning("a process on Ray has died; the run continues from its last round")
        if address is not None:
            _await_nodes(init)


def _run(
    server: ServerApp, client: ClientApp, sites: int, init: dict[str, Any], address: str | None
) -> bool:
    """Run both apps once; return False if a worker died.

    Raises:
        RunError: if the engine fails.
    """
    from flwr.simulation import run_simulation

    stopped, lost = threading.Event(), threading.Event()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if address is None:
                _start_ray(init)
            run_simulation(
                _stoppable(server, stopped, lost),
                client,
                sites,
                backend_config={
                    "init_args": init,
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
        except PrivetError:
            raise
        except Exception as error:
            if not lost.is_set():
                raise RunError(f"Flower's Ray engine failed: {error}") from error
        finally:
            stopped.set()
            _stop_ray(address)
    return not lost.is_set()


def _await_nodes(init: dict[str, Any]) -> None:
    """Wait until each node that counts as alive answers: Ray needs a while to notice a death.

    Flower's engine would otherwise wait without end for a worker on a node that is gone.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(**init, ignore_reinit_error=True)
    probe = ray.remote(num_cpus=0)(_nothing)
    end = time.monotonic() + _NOTICE_S
    while time.monotonic() < end:
        asked = [
            probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in ray.nodes()
            if node["Alive"]
        ]
        done, left = ray.wait(asked, num_returns=len(asked), timeout=15.0)
        try:
            ray.get(done)
        except RayError:
            left = done
        if not left:
            return
        time.sleep(1.0)


def _nothing() -> None:
    return None


def _start_ray(init: dict[str, Any]) -> None:
    """Start a cluster, which Flower's engine then uses.

    Ray gives a node only 30 seconds to start, which is short on a busy machine.

    Raises:
        RunError: if it does not start.
    """
    import ray

    pythonpath = os.pathsep.join(entry for entry in sys.path if entry)
    runtime = {"env_vars": {"PYTHONPATH": pythonpath}}
    for left in reversed(range(_MAX_STARTS)):
        try:
            ray.init(**init, runtime_env=runtime)
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise RunError(f"Ray does not start on this machine: {error}") from error


def _stop_ray(address: str | None) -> None:
    import ray

    if address is None and ray.is_initialized():
        ray.shutdown()
