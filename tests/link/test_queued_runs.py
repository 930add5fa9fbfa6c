"""A run that waits for people lets one that was not offered yet go first.

A turn is an hour here: who waits for one does not end within the test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from office_kit import Town, _write_to

from privet.common.models.start import FOLDERS
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.server import coordinator
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import cancel, submit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]
SITE = "North"


def run_patient_office(folder: Path, address: str, log: Path, models: str) -> None:
    """What `privet server start` does, with turns that last."""
    _write_to(log)
    os.environ[FOLDERS] = models
    coordinator._RUN_TURN_S = 3600.0
    at_work = coordinator.Coordinator(MemberRegistry.load(folder), link=address)
    signal.signal(signal.SIGTERM, lambda *_: at_work.stopped.set())
    at_work.serve()


@pytest.fixture
def town(
    tmp_path: Path, root: Path, plan_value: Callable[..., Any], frame_of: Callable[..., Any]
) -> Iterator[tuple[Town, Plan]]:
    def plan(name: str) -> Plan:
        sites = [{"name": SITE, "nominal_size": 40}]
        value = plan_value(metrics={"source": "off"}, strategy={"min_sites": 1}, sites=sites)
        return Plan.parse({**value, "name": name, "training": {**value["training"], "rounds": 1}})

    made = Town(tmp_path / "town", root, plan("approved"), {SITE: frame_of(40, 0)})
    yield made, calibrated(plan("undecided"))
    made.close()


def test_a_run_that_waits_for_people_holds_no_other_up(town: Any) -> None:
    here, undecided = town
    waits = submit(here.federation, undecided, "waits")
    here.start("hub", run_patient_office)
    here.start(SITE)
    here.wait(waits, lambda s: s.get("sites", {}).get(SITE) == "waits-for-approval", 120)
    # One that came while it waited; and one that came while that one ran, or after.
    here.wait(here.submit("second"), lambda s: s["state"] == "done", 120)
    here.wait(here.submit("third"), lambda s: s["state"] == "done", 120)
    # Both wait for people: each was offered.
    other = submit(here.federation, undecided, "other")
    here.wait(other, lambda s: s.get("sites", {}).get(SITE) == "waits-for-approval", 120)
    # And one that comes then is not held up by the two.
    last = here.submit("fourth")
    here.wait(last, lambda s: s["state"] == "done", 120)
    cancel(here.federation, "waits")
