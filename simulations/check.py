"""Check the sites' records of a simulation against its plan before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from privet.client.operator.check import DataCheck, check_records, unreadable
from privet.client.operator.check_format import compare_format
from privet.common.errors import DataError
from privet.common.plan import Plan
from privet.simulations.planning import RunSpec, Setting


def check_sites(
    plan: Plan, setting: Setting, tell: Callable[[str], None] = lambda stage: None
) -> Iterator[tuple[str, DataCheck]]:
    """Yield each site's name and the check of its records, as its operator would see it.

    Args:
        plan: calibrated or not.
        setting: names the folder of the records.
        tell: called with the name of each stage as it begins.

    Raises:
        DataError: if a file cannot be read, or lacks a column.
        InputError: if the plan's task or model cannot be built.
    """
    spec = RunSpec(plan, setting)
    records, resolved = spec.records, spec.calibrated().plan
    shared = records.loaded().faults.get("", ())
    for place, site in enumerate(plan.sites):
        data = records.site(site.name)
        tell(site.name)
        try:
            own = plan.data.path is None
            found = check_records(data, resolved, site.name, is_own_file=own)
            if records.scenario is None and (own or not place):
                declared, where = resolved.data.format, "[data] of the plan"
                compare_format(found, Path(data.source), declared, where)
        except DataError as error:
            found = unreadable(data.source, resolved, error)
        if shared and not place:
            found.left_out |= {fault.place: fault.why for fault in shared}
            found.add(
                "warning",
                "left-out",
                f"{len(shared)} records of the file for all sites cannot be read, and are nobody's",
                [fault.place for fault in shared],
            )
        yield site.name, found
