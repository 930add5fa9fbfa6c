"""Make the first model of a plan in a process of its own, so that a coordinator needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from privet.common.errors import RunError
from privet.common.flat import Arrays
from privet.common.plan import Plan
from privet.server.snapshot import map_model, save_model


def first_model(plan: Plan, path: Path) -> Arrays:
    """Return the public initial values of the parameters that a plan trains.

    Args:
        plan: names the model and the seed.
        path: the file that keeps them, so that a restarted coordinator has the same model.

    Raises:
        RunError: if the model cannot be made here.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PRIVET_PASS")}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "privet.server.initial", str(path)],
            input=json.dumps(plan.to_dict()),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            raise RunError(f"the first model of plan '{plan.name}' cannot be made: {last}")
    arrays, facts = map_model(path)
    if facts.get("plan") != plan.digest:
        raise RunError(f"{path}: this is the first model of another plan")
    return arrays


def main() -> None:
    """Make the model of the plan on standard input; write it to the path in the first argument."""
    from privet.common.models import initial_model

    plan = Plan.parse(json.load(sys.stdin))
    save_model(Path(sys.argv[1]), initial_model(plan), {"plan": plan.digest})


if __name__ == "__main__":
    main()
