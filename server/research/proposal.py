"""Read and price a submitted plan in a process of its own, with limits.

A stranger's plan may need much time or memory; the coordinator must continue meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

from privet.common.errors import InputError, PrivetError
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated

MAX_BYTES = 1 << 20
"""Of a plan."""
TIMEOUT_S = 120.0
MAX_MEMORY = 8 << 30
"""Bytes that pricing may take."""


def read_proposal(text: bytes) -> Plan:
    """Return the plan in ``text`` (JSON), with its noise calibrated.

    Raises:
        InputError: if it is no plan, is too long, costs more than it declares, or takes too long to
            price.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"a plan has at most {MAX_BYTES} bytes")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PRIVET_PASS")}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "privet.server.research.proposal"],
            input=text, env=environment, capture_output=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError("the plan takes too long to price") from None
    if done.returncode:
        said = "the plan cannot be priced"
        if done.returncode == 2:
            said = done.stderr.decode(errors="replace").strip()[-2000:]
        raise InputError(said)
    return Plan.parse(json.loads(done.stdout), where="proposal")


def main() -> None:
    """Read a plan on standard input; write it with its noise, or its fault to standard error."""
    with suppress(ImportError, OSError, ValueError):  # not every system has such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        os.nice(10)
    try:
        plan = calibrated(Plan.parse(json.load(sys.stdin), where="proposal"))
    except (PrivetError, ValueError, RecursionError) as error:
        sys.stderr.write(str(error))
        raise SystemExit(2) from None
    sys.stdout.write(json.dumps(plan.to_dict()))


if __name__ == "__main__":
    main()
