"""A simulation on a cluster of two Ray nodes, one of which dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify

Make = Callable[..., Any]
pytestmark = [pytest.mark.slow, pytest.mark.long]
SCRIPT = """
import json, os, sys
from pathlib import Path
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
from ray.cluster_utils import Cluster
from privet.common.plan import Plan
from privet.simulations.planning import Setting
from privet.simulations.run import run_plan

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
plan, out = Plan.parse(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])

def seen(progress):
    if sys.argv[3] == "die" and progress.round == 2:
        cluster.remove_node(other, allow_graceful=False)

run_plan(plan, Setting(engine="ray", ray_address=cluster.address), out, seen)
cluster.shutdown()
"""


@pytest.mark.parametrize("fate", ["live", "die"])
def test_a_run_whose_node_dies_goes_on(
    plan_value: Make, files: Path, tmp_path: Path, fate: str
) -> None:
    value = plan_value(training={"rounds": 5})
    for site in value["sites"]:
        site["path"] = str(files / site["path"])
    (tmp_path / "plan.json").write_text(json.dumps(value))
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "plan.json"), str(tmp_path / "run"), fate]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("the run continues from its last round" in done.stderr) == (fate == "die")
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [(site["released"], site["rounds"]) for site in facts["sites"]] == [(5, 5)] * 3
    assert len(facts["history"]) == 5
    assert verify(write_bundle([tmp_path / "run"], tmp_path / "run.bundle").path).ok
