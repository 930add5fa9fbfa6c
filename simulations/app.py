"""The two apps for ``flwr run .``: a scenario or a plan in Flower's own simulation runtime.

What is run comes from the app's config (``[tool.flwr.app.config]`` or ``--run-config``):
``plan`` (a scenario or the absolute path of a plan), ``epsilon`` and ``rounds`` (0: the
plan's), ``data`` and ``out`` (absolute folders; "": ``PRIVET_DATA``, and a new folder below
the system's folder for temporary files). The federation must have as many nodes as the
plan has sites.

A coordinator ships this code to the nodes, so here it simulates and protects nobody from
the coordinator.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from privet.client.app import create_app as create_client_app
from privet.client.site import Site
from privet.common.canonical import write_json
from privet.common.errors import InputError
from privet.server.rounds import Outcome
from privet.simulations.parties import Parties
from privet.simulations.planning import adjusted, attestations, find_plan, resolve
from privet.simulations.records import Records
from privet.simulations.result import make_result, write_result
from privet.simulations.run import SiteMaker, public_test, server_app


def _run(context: Context) -> SiteMaker:
    config = tuple(sorted((str(key), value) for key, value in context.run_config.items()))
    return _prepared(config, context.run_id)


@functools.lru_cache(maxsize=2)
def _prepared(config: tuple[tuple[str, Any], ...], number: int) -> SiteMaker:
    """Resolve the plan; every process comes to the same one."""
    given = dict(config)
    plan, base = find_plan(str(given.get("plan", "lending")))
    plan = adjusted(plan, epsilon=given.get("epsilon") or None, rounds=given.get("rounds") or None)
    run_id = f"{plan.name.replace(' ', '-')}-flower-{number}"
    data = Path(given["data"]) if given.get("data") else None
    default = Path(tempfile.gettempdir()) / run_id
    folder = Path(str(given.get("out") or default))
    return SiteMaker(
        run_id,
        Parties(resolve(plan.changed(attested=attestations(plan))), folder),
        Records(plan, data, base),
        None,
    )


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan on Flower's grid and write the run folder."""
    run = _run(context)
    plan, folder = run.plan, run.folder
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; a run's history is never overwritten")
    write_json(folder / "plan.json", plan.to_dict())
    run.parties.found()
    outcomes: list[Outcome] = []
    app = server_app(run, public_test(run), outcomes.append)
    app(grid, context)
    write_result(make_result(run.run_id, run.parties, outcomes[0], seconds=0.0))


def _site(context: Context) -> Site:
    return _run(context)(context)


client = create_client_app(_site)
