"""The two apps that ``flwr run .`` finds.

The app's config decides what runs (``[tool.flwr.app.config]`` or ``--run-config``).

- A federation: ``hub`` (its folder at the coordinator, absolute), ``run`` (as `privet server
  submit` printed it) and ``wait`` (seconds until all sites are ready). At the sites Privet's
  launcher answers, never the ``client`` of this bundle.
- A simulation, if ``hub`` is empty: ``plan`` (a scenario or the absolute path of a plan),
  ``epsilon`` and ``rounds`` (0: the plan's), ``data`` and ``out`` (absolute folders; "":
  ``PRIVET_DATA``, and a new folder below the system's folder for temporary files). The
  federation must have as many nodes as the plan has sites.

A coordinator sends this code to the nodes, so here it protects nobody from the coordinator: it
opens no ledger of a real site, and its own ledgers note that it came in a bundle, which makes the
claim ``none``.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, UserConfig
from flwr.serverapp import Grid, ServerApp

from privet.client.app import AnsweringSite
from privet.client.app import create_app as create_client_app
from privet.common.canonical import write_json
from privet.common.errors import InputError
from privet.common.flower.wire import encode_reply
from privet.common.models import initial_model
from privet.common.order import Status
from privet.privacy.evidence.keys import passphrase_from_environment
from privet.server.flower_serverapp import run_submitted
from privet.server.membership.registry import MemberRegistry
from privet.server.rounds import Outcome
from privet.simulations.federation import SimulatedFederation
from privet.simulations.planning import adjusted, attested, find_plan, resolve
from privet.simulations.records import SiteRecords
from privet.simulations.result import make_result
from privet.simulations.run import SiteMaker, public_test, rehearse, server_app
from privet.simulations.run_folder import write_result

_SETTING = "bundle"
_LOG = logging.getLogger("privet.bundle")


def _run(context: Context) -> SiteMaker:
    config = tuple(sorted((str(key), value) for key, value in context.run_config.items()))
    return _prepared(config, context.run_id)


@functools.lru_cache(maxsize=2)
def _prepared(config: tuple[tuple[str, Any], ...], number: int) -> SiteMaker:
    """Resolve the plan; every process gets the same one."""
    given = dict(config)
    plan, base = find_plan(str(given.get("plan", "lending")))
    plan = adjusted(plan, epsilon=given.get("epsilon") or None, rounds=given.get("rounds") or None)
    run_id = f"{plan.name.replace(' ', '-')}-flower-{number}"
    data = Path(given["data"]) if given.get("data") else None
    default = Path(tempfile.gettempdir()) / run_id
    folder = Path(str(given.get("out") or default))
    return SiteMaker(
        run_id,
        SimulatedFederation(resolve(attested(plan)), folder, setting=_SETTING),
        SiteRecords(plan, data, base),
        None,
    )


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation's plan, or simulate one and write the run folder.

    Args:
        grid: Flower's; its nodes are the sites.
        context: holds the app's config.

    Raises:
        InputError: if the config, the plan or a folder is wrong.
        RunError: if the run fails.
    """
    if context.run_config.get("hub"):
        _coordinate(grid, context.run_config)
        return
    run = _run(context)
    plan, folder = run.plan, run.folder
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; a run's history is never overwritten")
    with tempfile.TemporaryDirectory(prefix="privet-") as scratch:
        rehearse(plan, Path(scratch))
    write_json(folder / "plan.json", plan.to_dict())
    run.parties.found()
    outcomes: list[Outcome] = []
    app = server_app(run, public_test(run), outcomes.append)
    app(grid, context)
    write_result(make_result(run.run_id, run.parties, outcomes[0], seconds=0.0, engine="flower"))


def _coordinate(grid: Grid, config: UserConfig) -> None:
    hub = Path(str(config["hub"]))
    if not hub.is_absolute():
        raise InputError(f"hub = '{hub}' must be an absolute path: the app runs in another folder")
    run_submitted(
        MemberRegistry.load(hub, passphrase_from_environment()),
        str(config.get("run", "")),
        initial_model,
        grid,
        patience=float(config.get("wait", 0)),
    )


def _site(context: Context) -> AnsweringSite:
    if context.run_config.get("hub") or context.node_config.get("policy"):
        raise InputError(
            "an app that came in a bundle answers for no real site: start the SuperNode by "
            "Privet's launcher (`privet client launcher`)"
        )
    return _run(context)(context)


client = create_client_app(_site)


@client.query("offer")
def offered(message: Message, context: Context) -> Message:
    """Answer that there is no site: only the app that is installed at a site accepts an offer.

    Args:
        message: the offer; it is not read.
        context: of the node; unused.
    """
    del context
    _LOG.error("a run was offered to an app that came in a bundle; use `privet client launcher`")
    return Message(encode_reply("", Status.FAILED), reply_to=message)
